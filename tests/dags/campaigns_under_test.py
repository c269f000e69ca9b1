"""A DAG by whose id tests/test_campaigns.py runs its own: dag.test() runs only what it finds in a bundle."""

from __future__ import annotations

from airflow.sdk import DAG

campaign = DAG("campaign", schedule=None)
