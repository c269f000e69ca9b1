"""Measures the Campaign page: how long its answers take on a ledger of 1,000 campaigns and a million deliveries.

The ledger is a SQLite file, filled by plain INSERTs; one campaign has most of the deliveries.
What is timed is what the API server does for each answer, JSON included; Airflow's own authentication is not in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.announcement import Announcement
from airflow_provider_sib.campaign.engine import open_campaign
from airflow_provider_sib.campaign.ledger import RANKS
from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from airflow_provider_sib.hooks import CampaignHook
from airflow_provider_sib.page import views

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = {
    "en": "Version 2.0 is here: dark mode, and exports of any size. " * 4,
    "fr": "La version 2.0 est là. " * 8,
}
COLUMNS = (
    "part, seq, zone, state, visitor, once_key, variant, locale, vars, claim, revision, text_hash, message, "
    "reason, at_ms"
)
DAGS = 50
DAY_MS = 86_400_000


def fill(file: Path, campaigns: int, largest: int, rest: int) -> None:
    """Make the ledger: of a campaign's rows one in fifty failed, is in doubt or was skipped, the rest is sent."""
    ledger = SqlLedger(f"sqlite:///{file}")
    for number in range(campaigns):
        open_campaign(
            ledger,
            f"campaign-{number:04d}",
            binding={"host": "https://api.brevo.com/v3", "connection": "sib"},
            announcement=Announcement(variants={"a": TEXTS, "b": f"Version 2.{number}"}),
            each_run=False,
            settings={"dag_id": f"dag_{number % DAGS}", "task_id": "announce", "reserve": 10},
        )
    now = ledger.now_ms()
    with ledger._database.engine.connect() as conn:  # noqa: SLF001 - a state that takes months to reach
        conn.exec_driver_sql("BEGIN")
        for number in range(campaigns):
            rows = largest if number == campaigns - 1 else rest // (campaigns - 1)
            values = (
                (
                    number + 1, index * (RANKS // rows), 0, (3, 4, 5)[index % 3] if index % 50 == 0 else 2,
                    f"kZMvWhf8np{index:014d}", f"kZMvWhf8np{index:014d}", "ab"[index % 2], "en",
                    '{"first_name":"Ada","plan":"pro"}', 77, 1, "0123456789abcdef", f"{index:024x}",
                    ("http_404", "no_answer", "holdout")[index % 3] if index % 50 == 0 else None,
                    now - (rows - index) * 30 * DAY_MS // rows,
                )
                for index in range(rows)
            )  # fmt: skip
            marks = ", ".join("?" * 15)
            conn.connection.driver_connection.executemany(  # type: ignore[union-attr]
                f"INSERT INTO sib_delivery ({COLUMNS}) VALUES ({marks})", values
            )
            conn.exec_driver_sql(
                f"UPDATE sib_campaign SET part = {number + 1}, total = {rows}, zones = '[null]',"
                f" enrolled_at_ms = {now}, created_at_ms = {now - 30 * DAY_MS + number}, last_seen_ms = {now}"
                f" WHERE campaign = 'campaign-{number:04d}'"
            )
        conn.commit()
    ledger.close()


def timed(work: Callable[[], object], turns: int) -> dict[str, float]:
    """Time a work several times; ``cpu_ms`` is the processor's time, which other programs make no longer."""
    taken, spent = [], []
    for _ in range(turns):
        began, worked = time.perf_counter(), time.process_time()
        work()
        taken.append((time.perf_counter() - began) * 1000)
        spent.append((time.process_time() - worked) * 1000)
    return {
        "first_ms": taken[0],
        "p50_ms": statistics.median(taken),
        "worst_ms": max(taken),
        "cpu_ms": statistics.median(spent),
    }


def measure(hook: CampaignHook, campaigns: int, turns: int) -> dict[str, dict[str, float]]:
    """Time each answer of the page."""
    ledger = hook.ledger
    largest, small = f"campaign-{campaigns - 1:04d}", "campaign-0001"
    figures = views.Figures()

    def listed(**query: object) -> Callable[[], str]:
        return lambda: json.dumps(views.listed(hook, lambda dags: dags, **query))  # type: ignore[arg-type]

    def one(name: str) -> Callable[[], str]:
        return lambda: json.dumps(views.one(hook, ledger.campaign(name)))

    def figured(name: str) -> Callable[[], str]:
        return lambda: json.dumps(figures.of(ledger, ledger.campaign(name)))

    table = {
        "list, first page (the largest in it)": timed(listed(), turns),
        "list, last page": timed(listed(offset=campaigns - 25), turns),
        "list, searched": timed(listed(search="campaign-09"), turns),
        "largest campaign": timed(one(largest), turns),
        "small campaign": timed(one(small), turns),
        "small campaign, figures": timed(figured(small), turns),
        "largest campaign, doubts": timed(lambda: json.dumps(views.doubts(hook, largest)), turns),
        "largest campaign, doubts from 5,000": timed(
            lambda: json.dumps(views.doubts(hook, largest, offset=views.MOST_DOUBTS)), turns
        ),
        "largest campaign, figures": timed(figured(largest), turns),
    }
    table["counting those, beside the answers"] = timed(
        lambda: views.count(ledger, ledger.campaign(largest)), 3
    )
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--campaigns", type=int, default=1000)
    parser.add_argument("--largest", type=int, default=750_000, help="deliveries of the largest campaign")
    parser.add_argument("--rest", type=int, default=250_000, help="deliveries of all others together")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sib_ledger.db"
        fill(file, options.campaigns, options.largest, options.rest)
        with CampaignHook() as hook:
            hook._ledger = SqlLedger(f"sqlite:///{file}")  # noqa: SLF001 - none that a task has made
            table = measure(hook, options.campaigns, options.turns)
    print(f"{'milliseconds':40}" + "".join(f"{name:>10}" for name in ("first", "p50", "worst", "cpu")))
    for name, figures in table.items():
        print(f"{name:40}" + "".join(f"{figure:10.1f}" for figure in figures.values()))
    if options.json:
        options.json.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
