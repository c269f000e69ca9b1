"""Tell customers how their orders stand: a stream, in which a visitor hears once of each status of each order.

The shop appends to a file of JSON lines, here `include/orders.jsonl`; a path, or a URL such as `s3://…`. Every quarter
of an hour the whole file is read, and only what is new is sent. What could not be sent within two hours is left out:
by then the parcel may be somewhere else.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG

from airflow_provider_sib.campaign import JsonLinesAudience
from airflow_provider_sib.operators import SendCampaignOperator

with DAG(
    "order_status_updates",
    schedule="*/15 * * * *",
    catchup=False,
    # Beside a later run, this one's not_after would leave out those who joined with that one.
    max_active_runs=1,
    doc_md=__doc__,
    tags=["conversations"],
    params={"orders": str(Path(__file__).parent / "include" / "orders.jsonl")},
) as order_status_updates:
    SendCampaignOperator(
        task_id="tell",
        campaign_id="order-status",
        audience=JsonLinesAudience("{{ params.orders }}"),
        enrol="each_run",
        # Instead of the visitor: who has two orders hears of both.
        once_per=["order_id", "status"],
        text="Your order [[ visitor.order_id ]] is [[ visitor.status ]].",
        not_after=timedelta(hours=2),
        # A line that the shop got wrong is left out and counted, the others are told all the same.
        max_bad_rows=10,
    )
