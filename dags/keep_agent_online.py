"""Keep an agent online during office hours, so that the chat says that somebody is there.

Brevo forgets an agent two to three minutes after the last ping. The triggerer sends one a minute, no worker is held;
an hour costs 60 calls of the account's quota. Put in an agent of yours: for an e-mail address it doesn't know, Brevo
makes a dummy agent.
"""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_sib.operators import AgentOnlineOperator

with DAG(
    "keep_agent_online",
    start_date=pendulum.datetime(2026, 1, 1, tz="Europe/Paris"),
    schedule="0 9 * * 1-5",
    catchup=False,
    doc_md=__doc__,
    tags=["conversations"],
    params={"minutes": 8 * 60},
) as keep_agent_online:
    AgentOnlineOperator(
        task_id="keep_online",
        agent_email="ada@example.com",
        agent_name="Ada",
        received_from="Airflow",
        # A moment and not a duration, which a retry would begin anew.
        until="{{ (dag_run.run_after + macros.timedelta(minutes=params.minutes)).isoformat() }}",
    )
