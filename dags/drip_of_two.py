"""Write twice to everyone: a greeting, and three days after it a hint.

The second announcement's audience is the first campaign itself: those to whom it was sent, three days ago or longer.
So whoever was never greeted, or was skipped, gets no hint.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG

from airflow_provider_sib.campaign import CampaignAudience, CsvAudience
from airflow_provider_sib.operators import SendCampaignOperator

with DAG(
    "drip_of_two", schedule="0 9 * * *", catchup=False, doc_md=__doc__, tags=["conversations"]
) as drip_of_two:
    greet = SendCampaignOperator(
        task_id="greet",
        campaign_id="tour-1",
        audience=CsvAudience(str(Path(__file__).parent / "include" / "visitors.csv")),
        enrol="each_run",
        text="Hi [[ visitor.first_name ]]! Here is a tour of three minutes: https://example.com/tour",
    )
    hint = SendCampaignOperator(
        task_id="hint",
        campaign_id="tour-2",
        audience=CampaignAudience("tour-1", after=timedelta(days=3)),
        enrol="each_run",
        # The first campaign's variables are there too.
        text="[[ visitor.first_name ]], did you know? With Ctrl-K you find everything.",
    )
    greet >> hint
