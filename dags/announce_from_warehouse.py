"""Announce something to the result of a query: two wordings against each other, and a tenth that gets none.

The connection `warehouse` may be of any type whose hook speaks DB-API (Postgres, Snowflake, BigQuery, SQLite, …); rows
are streamed, and every column is a variable of the text. Trigger it with `dry_run` first: that reads and renders
everything, sends nothing, and logs what would happen and how many hours it would take.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from airflow_provider_sib.campaign import FrequencyCap, SqlAudience
from airflow_provider_sib.operators import SendCampaignOperator

with DAG(
    "announce_from_warehouse",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["conversations"],
    params={"dry_run": Param(False, type="boolean", description="Only rehearse it.")},
) as announce_from_warehouse:
    SendCampaignOperator(
        task_id="announce",
        campaign_id="scheduled-exports",
        audience=SqlAudience(
            "SELECT visitor_id, first_name, exports FROM visitors WHERE plan <> 'free'", conn_id="warehouse"
        ),
        variants={
            "short": "New: let your exports run by themselves, every night.",
            "personal": "Hi [[ visitor.first_name ]], you have run [[ visitor.exports ]] exports this month. "
            "From now on they can run by themselves, every night.",
        },
        # Whoever is held out is drawn by a keyed hash: the same ones at every run.
        holdout=0.1,
        # Over all campaigns that have a cap, so that nobody hears from us twice a day.
        frequency_cap=FrequencyCap(at_most=1, within=timedelta(days=1)),
        dry_run="{{ params.dry_run }}",
    )
