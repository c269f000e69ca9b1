"""Tell those who look at the numbers every morning that this night's are late, when their load has failed for good.

A notifier runs once the last try is over, sends each message at most once, and needs no task of its own. There is no
such export here: so trigger it, and see them told. For more than a handful of visitors use a campaign.
"""

from __future__ import annotations

from pathlib import Path

from airflow.sdk import DAG, task

from airflow_provider_sib.notifications import SibNotifier

READERS = ("32T1mrBDwpYlJYjuxr42heKFc12IflZQ", "HvMhS80iKrqoSNM7jARu9SHy0WNXX1mF")

with DAG(
    "tell_visitors_about_an_outage",
    schedule="0 5 * * *",
    catchup=False,
    doc_md=__doc__,
    tags=["conversations"],
    params={"export": "/data/exports/numbers.csv"},
) as tell_visitors_about_an_outage:

    @task(
        on_failure_callback=[
            SibNotifier(
                visitor_id=reader,
                text="The numbers of {{ dag_run.run_after.date() }} are late, yesterday's are shown. We are on it.",
            )
            for reader in READERS
        ]
    )
    def load(params: dict[str, str]) -> int:
        """Count the night's numbers."""
        return len(Path(params["export"]).read_text(encoding="utf-8").splitlines())

    load()
