"""Take an announcement back once it is out of date, so that nobody reads in March what was news in November.

Every message of the campaign is deleted, and whoever has not been written to yet is left out. With `sent_before` only
the older messages go, and the campaign itself goes on.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from airflow_provider_sib.operators import WithdrawCampaignOperator

with DAG(
    "withdraw_expired",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["conversations"],
    params={
        "sent_before": Param(
            None,
            type=["null", "string"],
            format="date-time",
            description="Withdraw only what was sent before this moment; empty: all of it.",
        )
    },
) as withdraw_expired:
    WithdrawCampaignOperator(
        task_id="withdraw",
        campaign_id="release-2.0",
        sent_before="{{ params.sent_before or '' }}",
    )
