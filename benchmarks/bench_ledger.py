"""Measure the ledger: enrolment against raw sqlite3, memory, and what a cycle costs as an audience grows.

Prints a table; ``--json FILE`` writes the figures as well. Each measurement runs in a process of its own.
``--bytes`` measures instead what a delivery takes on disk, in SQLite or, with ``--url``, on a server.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_sib.campaign.announcement import Announcement
from airflow_provider_sib.campaign.engine import Fate, Outcome, Rules, Send, SendEngine, text_of, uptime
from airflow_provider_sib.campaign.ledger import (
    Campaign,
    Cycle,
    Cycled,
    Enrolment,
    QuotaUse,
    Result,
    State,
    to_json,
)
from airflow_provider_sib.campaign.sql_ledger import ENROLMENT_COLUMNS, SqlLedger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEXT = text_of(Announcement("Hi [[ visitor.first_name ]]"))
BATCH = 32
TURNS = 400


def audience(rows: int) -> Iterator[Enrolment]:
    """Yield recipients with random ids, in no order of rank."""
    chance = random.Random(7)
    for number in range(rows):
        visitor = f"{chance.getrandbits(96):024x}"
        variables = {"first_name": f"Visitor {number}", "plan": "pro", "amount": number % 97}
        yield Enrolment(visitor, chance.getrandbits(63), visitor, locale="en", variables=variables)


def peak_mib() -> float:
    """Tell the process's highest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def opened(url: str, campaign_id: str = "c") -> SqlLedger:
    """Open a ledger with a campaign."""
    ledger = SqlLedger(url)
    campaign = ledger.open_campaign(campaign_id, binding={}, each_run=False, text=TEXT, settings={})
    assert isinstance(campaign, Campaign)
    return ledger


def time_audience(rows: int, _: str) -> dict[str, float]:
    """Time the generator by itself, to be taken off the others."""
    began = time.perf_counter()
    for row in audience(rows):
        to_json(row.variables)
    return {"seconds": time.perf_counter() - began}


def time_raw(rows: int, folder: str) -> dict[str, float]:
    """Time sqlite3's own executemany of the same rows with random ids into a table with that primary key."""
    conn = sqlite3.connect(f"{folder}/raw.db", isolation_level=None)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("PRAGMA synchronous = FULL")
    conn.execute(f"CREATE TABLE t ({', '.join(ENROLMENT_COLUMNS)}, PRIMARY KEY (part, seq)) WITHOUT ROWID")
    values = (
        (1, row.rank, row.key, row.visitor_id, 0, row.variant, row.locale, to_json(row.variables), 0, None, 1)
        for row in audience(rows)
    )
    began = time.perf_counter()
    conn.execute("BEGIN")
    conn.executemany(f"INSERT INTO t VALUES ({', '.join('?' * len(ENROLMENT_COLUMNS))})", values)
    conn.execute("COMMIT")
    return {"seconds": time.perf_counter() - began}


def time_enrolment(rows: int, url: str) -> dict[str, float]:
    """Time an enrolment, and tell what it costs in memory above the imports."""
    before = peak_mib()
    ledger = opened(url)
    began = time.perf_counter()
    assert ledger.enrol("c", audience(rows)).joined == rows
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "mib": peak_mib() - before}


def free(quota: Any, _: int) -> tuple[Any, int]:
    """Allow any number of requests."""
    return quota, 2**31


def cycle(ledger: SqlLedger, before: Cycled | None, campaign: str, wanted: int = BATCH) -> Cycled:
    """Record what was claimed before as sent, and claim the next."""
    results = [
        Result(row.rank, row.claim, State.SENT, message_id=f"{row.rank:024x}", text_hash="0123456789abcdef")
        for row in (before.claimed if before else ())
    ]
    use = QuotaUse("a", "other", "w", 0, wanted, 60, free)
    return ledger.cycle(Cycle(campaign, use, 60, results=results))


def first_message(ledger: SqlLedger) -> float:
    """Tell how many milliseconds an engine takes from its start to its first message, which isn't sent."""
    began = time.perf_counter()
    engine = SendEngine(ledger, "c", Rules(account="a"))
    engine.begin(resumed=False)
    step = engine.next()
    milliseconds = (time.perf_counter() - began) * 1000
    assert isinstance(step, Send)
    now = uptime()
    engine.take(
        Outcome(request=post, fate=Fate.UNBEGUN, began_at=now, ended_at=now) for post in step.requests
    )
    engine.leave()
    return milliseconds


def settle(ledger: SqlLedger, rows: int, campaign: str) -> None:
    """Send to so many more, quickly, so that an audience is half sent or nearly done; a server tidies up meanwhile."""
    engine = ledger._database.engine  # noqa: SLF001 - a state that takes hours to reach
    with engine.connect() as conn:
        conn.exec_driver_sql(
            "UPDATE sib_delivery SET state = 2, claim = 1, message = 'm', revision = 1 WHERE state = 0"
            f" AND part = (SELECT part FROM sib_campaign WHERE campaign = '{campaign}') AND seq <="
            " (SELECT seq FROM (SELECT seq FROM sib_delivery WHERE state = 0 AND part ="
            f" (SELECT part FROM sib_campaign WHERE campaign = '{campaign}')"
            f" ORDER BY seq LIMIT 1 OFFSET {rows - 1}) t)"
        )
        conn.commit()
    if freshen := FRESHEN.get(ledger._database.dialect.name):  # noqa: SLF001
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.exec_driver_sql(freshen)


def cycles(rows: int, url: str) -> Iterator[tuple[str, float]]:
    """Yield what enrolment takes, then the milliseconds of cycles that record and claim 32 rows, by how far they are.

    A small audience is gone through several times, for the rare slow cycles to be met.
    """
    turns = min(TURNS, rows // BATCH // 5)
    sent = turns * BATCH
    for number in range(TURNS // turns):
        campaign = "c" if not number else f"c{number}"
        ledger = opened(url, campaign)
        began = time.perf_counter()
        ledger.enrol(campaign, audience(rows))
        if not number:
            yield "enrolment", time.perf_counter() - began
            yield "first_message", first_message(ledger)
        for name, skip in (("fresh", 0), ("half", rows // 2 - sent), ("nearly", rows // 2 - 2 * sent)):
            if skip > 0:
                settle(ledger, skip, campaign)
            last = None
            for turn in range(turns):
                began = time.perf_counter()
                last = cycle(ledger, last, campaign)
                assert len(last.claimed) == BATCH
                if turn >= turns // 10:
                    yield name, (time.perf_counter() - began) * 1000
            cycle(ledger, last, campaign, 0)
        ledger.close()


def time_cycles(sizes: list[int], urls: list[str]) -> dict[int, dict[str, float]]:
    """Time cycles at several sizes, in turns, so that a busy moment of the machine falls upon all of them."""
    taken: dict[int, dict[str, list[float]]] = {rows: {} for rows in sizes}
    running = {rows: cycles(rows, url) for rows, url in zip(sizes, urls, strict=True)}
    while running:
        for rows in list(running):
            try:
                name, milliseconds = next(running[rows])
            except StopIteration:
                del running[rows]
            else:
                taken[rows].setdefault(name, []).append(milliseconds)
    figures: dict[int, dict[str, float]] = {}
    for rows, url in zip(sizes, urls, strict=True):
        figures[rows] = {}
        (seconds,) = taken[rows].pop("enrolment")
        figures[rows]["enrolled_rows_per_second"] = rows / seconds
        (figures[rows]["first_message_ms"],) = taken[rows].pop("first_message")
        for name, milliseconds_ in taken[rows].items():
            figures[rows][f"{name}_p50_ms"] = statistics.median(milliseconds_)
            figures[rows][f"{name}_p99_ms"] = statistics.quantiles(milliseconds_, n=100)[98]
            figures[rows][f"{name}_claims_per_second"] = BATCH * 1000 / statistics.mean(milliseconds_)
        ledger = SqlLedger(url)
        for name, look in (
            ("counts", ledger.counts),
            ("backlog", ledger.backlog),
            ("breakdown", ledger.breakdown),
        ):
            began = time.perf_counter()
            look("c")
            figures[rows][f"{name}_ms"] = (time.perf_counter() - began) * 1000
        ledger.close()
    return figures


PARTS: dict[str, Callable[[int, str], dict[str, float]]] = {
    "audience": time_audience,
    "raw": time_raw,
    "enrolment": time_enrolment,
}


def measure(part: str, rows: int, place: str) -> dict[str, float]:
    """Run one part in a fresh process."""
    command = [sys.executable, __file__, "--part", part, "--rows", str(rows), "--place", place]
    figures: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return figures


def enrolment_figures(rows: int, folder: Path, tries: int = 3) -> dict[str, float]:
    """Compare an enrolment into SQLite, fully durable, with raw sqlite3; the best of some tries each."""
    bare = min(measure("audience", rows, "")["seconds"] for _ in range(tries))
    raw, ours, mib = [], [], []
    for number in range(tries):
        place = folder / f"{rows}-{number}"
        place.mkdir()
        raw.append(measure("raw", rows, str(place))["seconds"] - bare)
        enrolment = measure("enrolment", rows, f"sqlite:///{place}/ledger.db")
        ours.append(enrolment["seconds"] - bare)
        mib.append(enrolment["mib"])
    return {
        "raw_rows_per_second": rows / min(raw),
        "enrolled_rows_per_second": rows / min(ours),
        "share_of_raw": min(raw) / min(ours),
        "enrolment_mib": max(mib),
        "file_mib": (place / "ledger.db").stat().st_size / 2**20,
    }


STORED = {
    "sqlite": "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
    "postgresql": "SELECT pg_total_relation_size('sib_delivery')",
    "mysql": "SELECT data_length + index_length FROM information_schema.tables"
    " WHERE table_name = 'sib_delivery' AND table_schema = DATABASE()",
}
"""What tells how many bytes are taken: by the whole file, else by the table of deliveries with its indexes."""

FRESHEN = {"postgresql": "VACUUM ANALYZE sib_delivery", "mysql": "ANALYZE TABLE sib_delivery"}
"""What makes a server count anew, and free what nobody needs."""


def stored_bytes(rows: int, url: str) -> dict[str, float]:
    """Tell the bytes a delivery takes while it is pending, and after all were sent, cycle by cycle."""
    ledger = opened(url)
    engine = ledger._database.engine  # noqa: SLF001 - no ledger is asked for its size
    kind = ledger._database.dialect.name  # noqa: SLF001

    def per_row() -> float:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            if kind in FRESHEN:
                conn.exec_driver_sql(FRESHEN[kind])
            taken = conn.exec_driver_sql(STORED[kind]).scalar_one()
        return float(taken) / rows

    ledger.enrol("c", audience(rows))
    figures = {"pending_bytes_per_row": per_row()}
    last = None
    while last is None or last.claimed:
        last = cycle(ledger, last, "c", 250)
    assert ledger.counts("c").by_state == {State.SENT: rows}
    figures["sent_bytes_per_row"] = per_row()
    if kind == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.exec_driver_sql("VACUUM FULL sib_delivery")
        figures["packed_bytes_per_row"] = per_row()
    ledger.close()
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 1_000_000])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--url", nargs="*", help="empty ledgers on a server, one for each of the sizes")
    parser.add_argument("--bytes", action="store_true", help="measure what a delivery takes on disk")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes: list[int] = options.rows
    if options.part:
        print(json.dumps(PARTS[options.part](sizes[0], options.place)))
        return
    if options.bytes:
        with tempfile.TemporaryDirectory() as folder:
            table = {sizes[0]: stored_bytes(sizes[0], *(options.url or [f"sqlite:///{folder}/bytes.db"]))}
    elif options.url:
        table = time_cycles(sizes, options.url)
    else:
        with tempfile.TemporaryDirectory() as folder:
            enrolments = {rows: enrolment_figures(rows, Path(folder)) for rows in sizes}
            spent = time_cycles(sizes, [f"sqlite:///{folder}/{rows}.db" for rows in sizes])
        table = {rows: spent[rows] | enrolments[rows] for rows in sizes}
    names = list(table[sizes[0]])
    print(
        f"{'':28}" + "".join(f"{rows:>14,}" for rows in table) + ("        growth" if len(table) > 1 else "")
    )
    for name in names:
        line = [figures[name] for figures in table.values()]
        grows = name.endswith(("p50_ms", "p99_ms", "claims_per_second"))
        growth = f"{line[-1] / line[0]:14.2f}" if len(line) > 1 and grows else ""
        print(f"{name:28}" + "".join(f"{figure:14.2f}" for figure in line) + growth)
    if options.json:
        options.json.write_text(json.dumps({str(rows): figures for rows, figures in table.items()}, indent=2))


if __name__ == "__main__":
    main()
