"""A DAG by whose id tests/test_campaigns.py runs its own: dag.test() runs only what it finds in a bundle."""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

with DAG("campaign", schedule=None) as campaign:
    # Airflow 3.1 looks for the tasks, too.
    for task_id in ("send", "update", "withdraw", "visitors"):
        EmptyOperator(task_id=task_id)
