"""Send to one in twenty, ask a colleague, then send to the rest; or take it back from those who have it.

The question waits under *Required actions* in Airflow's UI and holds no worker. It is a branch and not an
`ApprovalOperator`, since a rejection is to do something, and an `ApprovalOperator` would skip it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.hitl import HITLBranchOperator
from airflow.sdk import DAG, task

from airflow_provider_sib.campaign import CsvAudience
from airflow_provider_sib.hooks import CampaignHook
from airflow_provider_sib.operators import SendCampaignOperator, WithdrawCampaignOperator

CAMPAIGN = "new-prices"
ANNOUNCEMENT: dict[str, Any] = {
    "campaign_id": CAMPAIGN,
    "audience": CsvAudience(str(Path(__file__).parent / "include" / "visitors.csv")),
    "text": "Hi [[ visitor.first_name ]]! From January the plan [[ visitor.plan ]] has a new price. "
    "Ask us here if you have a question.",
}

with DAG(
    "canary_with_approval", schedule=None, catchup=False, doc_md=__doc__, tags=["conversations"]
) as canary_with_approval:
    canary = SendCampaignOperator(task_id="canary", fraction=0.05, **ANNOUNCEMENT)

    ask = HITLBranchOperator(
        task_id="ask",
        subject="Send the new prices to everybody?",
        body="{{ ti.xcom_pull('canary')['totals']['sent'] }} visitors have the announcement, "
        "{{ ti.xcom_pull('canary')['totals']['pending'] }} wait.",
        options=["Send to the rest", "Take it back"],
        options_mapping={"Send to the rest": "rest", "Take it back": "abort"},
    )

    # The same campaign with a larger fraction: the first ones are among them, and are not written to again.
    rest = SendCampaignOperator(task_id="rest", fraction=1.0, **ANNOUNCEMENT)

    @task
    def abort() -> None:
        """See to it that no other run goes on with it."""
        with CampaignHook() as campaigns:
            campaigns.abort(CAMPAIGN)

    withdraw = WithdrawCampaignOperator(task_id="withdraw", campaign_id=CAMPAIGN)

    aborted = abort()
    canary >> ask >> [rest, aborted]
    aborted >> withdraw
