"""Welcome those who have signed up, every night anew, at a time of day when they are awake.

One campaign for all nights: with `enrol="each_run"` newcomers join it, and whoever was welcomed before is not again.
"""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_provider_sib.campaign import SendWindow, SqlAudience
from airflow_provider_sib.operators import SendCampaignOperator

with DAG(
    "welcome_newcomers", schedule="0 4 * * *", catchup=False, doc_md=__doc__, tags=["conversations"]
) as welcome_newcomers:
    SendCampaignOperator(
        task_id="welcome",
        campaign_id="welcome",
        # A week back, so that a night on which nothing ran loses nobody.
        audience=SqlAudience(
            "SELECT visitor_id, first_name, timezone FROM visitors WHERE signed_up_on >= "
            "'{{ (dag_run.run_after - macros.timedelta(days=7)).date() }}'",
            conn_id="warehouse",
        ),
        enrol="each_run",
        text="Welcome, [[ visitor.first_name | default('and hello') ]]! If you have a question, write it here: "
        "people answer.",
        # On each visitor's own clock; the task is deferred until it is morning for the next.
        send_window=SendWindow("09:00", "18:00", default_timezone="Europe/Paris"),
    )
