"""Take audiences in: a snapshot appears whole or not at all, newcomers join chunk by chunk."""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are always bound

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_sib.campaign.ledger import (
    FORGOTTEN,
    Campaign,
    CampaignStatus,
    Enrolled,
    Enrolment,
    State,
    rank_after,
    to_json,
)
from airflow_provider_sib.campaign.sql_ledger import books, facts, parts
from airflow_provider_sib.campaign.sql_ledger.database import Database, Transaction, chunks
from airflow_provider_sib.campaign.sql_ledger.parts import FILL_LEASE_MS
from airflow_provider_sib.campaign.sql_ledger.spool import Distinct, Spool, placed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

ENROLMENT_COLUMNS = "part seq once_key visitor zone variant locale vars state reason at_ms".split()  # noqa: SIM905 - reads better


def enrol(
    database: Database,
    campaign_id: str,
    rows: Iterable[Enrolment],
    *,
    bad_rows: Callable[[], int] = lambda: 0,
) -> Enrolled:
    """See :meth:`Ledger.enrol`."""
    kept = _campaign(database, campaign_id)
    if kept.enrolled_at_ms is not None and not kept.each_run:
        return Enrolled(0, kept.duplicates, kept.bad_rows, kept.total)
    with Spool() as spool:
        spool.read(rows)
        bad = bad_rows()
        enrolled = None
        while enrolled is None:
            enrolled = (_join if kept.each_run else _snapshot)(database, campaign_id, spool, bad)
    parts.bury(database)
    if enrolled.joined and database.dialect.name == "postgresql":
        # Without statistics, until autovacuum comes by, it reads a whole campaign for each batch of results.
        database.write(lambda tx: tx.run("ANALYZE sib_delivery"))
    return enrolled


def _snapshot(database: Database, campaign_id: str, spool: Spool, bad: int) -> Enrolled | None:
    """Take a spooled audience in whole; None: this try was taken for dead and buried meanwhile."""
    part = database.write(lambda tx: parts.new(tx, campaign_id, "filling"))
    distinct, forgotten = Distinct(spool), _Forgotten()
    total = 0
    for chunk in chunks(placed(distinct)):
        now_ms = database.read(Transaction.now_ms)
        values = [(part, *row, now_ms) for row in chunk]

        def fill(tx: Transaction, values: list[tuple[Any, ...]] = values) -> bool:
            books.lock(tx, campaign_id)
            alive = tx.run(
                "UPDATE sib_part SET lease_ms = :lease WHERE part = :part AND state = 'filling'",
                lease=tx.now_ms() + FILL_LEASE_MS,
                part=part,
            )
            if alive:
                _insert(tx, forgotten.erased(tx, values))
            return bool(alive)

        if not database.write(fill):
            return _enrolled(database, campaign_id)
        total += len(values)

    def end(tx: Transaction) -> Enrolled | None:
        book = books.lock(tx, campaign_id)
        if book.campaign.enrolled_at_ms is not None:
            tx.run("UPDATE sib_part SET state = 'dead' WHERE part = :part", part=part)
            kept = book.campaign
            return Enrolled(0, kept.duplicates, kept.bad_rows, kept.total)
        # Others that are filling for this campaign are too late, or dead.
        tx.run(
            "UPDATE sib_part SET state = 'dead' WHERE campaign = :campaign AND part <> :part",
            campaign=campaign_id,
            part=part,
        )
        alive = tx.run(
            "UPDATE sib_part SET state = 'live' WHERE part = :part AND state = 'filling'",
            part=part,
        )
        if not alive:
            return None
        tx.run(
            "UPDATE sib_campaign SET part = :part, zones = :zones, enrolled_at_ms = :now, total = :total,"
            " duplicates = :duplicates, bad_rows = :bad WHERE campaign = :campaign",
            part=part,
            zones=to_json(spool.zones),
            now=book.now_ms,
            total=total,
            duplicates=distinct.duplicates,
            bad=bad,
            campaign=campaign_id,
        )
        return Enrolled(total, distinct.duplicates, bad, total)

    return database.write(end)


def _enrolled(database: Database, campaign_id: str) -> Enrolled | None:
    kept = _campaign(database, campaign_id)
    if kept.enrolled_at_ms is None:
        return None
    return Enrolled(0, kept.duplicates, kept.bad_rows, kept.total)


def _campaign(database: Database, campaign_id: str) -> Campaign:
    return database.read(lambda tx: books.look(tx, campaign_id).campaign)


def _join(database: Database, campaign_id: str, spool: Spool, bad: int) -> Enrolled:
    """Let a spooled audience join those who are there."""
    zones = database.write(lambda tx: _begin_join(tx, campaign_id, spool.zones))
    distinct, forgotten = Distinct(spool), _Forgotten()
    joined = known = 0
    for chunk in chunks(distinct):
        rows = [(*row[:3], zones[row[3]], *row[4:]) for row in chunk]

        def join(tx: Transaction, rows: list[tuple[Any, ...]] = rows) -> int:
            book = books.lock(tx, campaign_id)
            values = [(book.part, *row, book.now_ms) for row in _newcomers(tx, book.part, rows)]
            if values:
                _insert(tx, forgotten.erased(tx, values))
                tx.run(
                    "UPDATE sib_campaign SET total = total + :new WHERE campaign = :campaign",
                    new=len(values),
                    campaign=campaign_id,
                )
                if book.campaign.status is CampaignStatus.FINISHED:
                    books.set_status(tx, campaign_id, CampaignStatus.RUNNING)
            return len(values)

        new = database.write(join)
        joined += new
        known += len(rows) - new

    def end(tx: Transaction) -> Enrolled:
        book = books.lock(tx, campaign_id)
        duplicates = distinct.duplicates + known
        tx.run(
            "UPDATE sib_campaign SET enrolled_at_ms = :now, duplicates = :duplicates, bad_rows = :bad"
            " WHERE campaign = :campaign",
            now=book.now_ms,
            duplicates=duplicates,
            bad=bad,
            campaign=campaign_id,
        )
        return Enrolled(joined, duplicates, bad, book.campaign.total)

    return database.write(end)


def _begin_join(tx: Transaction, campaign_id: str, zones: Sequence[str | None]) -> list[int]:
    """Make room for newcomers; return the campaign's number of each of the given zones."""
    book = books.lock(tx, campaign_id)
    kept = [*book.zones, *(zone for zone in zones if zone not in book.zones)]
    part = book.part or parts.new(tx, campaign_id, "live")
    tx.run(
        "UPDATE sib_campaign SET part = :part, zones = :zones WHERE campaign = :campaign",
        part=part,
        zones=to_json(kept),
        campaign=campaign_id,
    )
    return [kept.index(zone) for zone in zones]


def _newcomers(tx: Transaction, part: int, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Leave out rows whose once key is enrolled; two keys of the same rank stand one after the other."""
    keys = dict(
        tx.rows(
            "SELECT seq, once_key FROM sib_delivery WHERE part = :part AND seq IN :seqs",
            part=part,
            seqs=[row[0] for row in rows],
        )
    )
    new: dict[int, tuple[Any, ...]] = {}
    for hashed_rank, key, *others in rows:
        rank = hashed_rank
        while rank in keys and keys[rank] not in (key, tx.forgotten_key(key)):
            rank = rank_after(rank)
            if rank not in keys:
                sql = "SELECT seq, once_key FROM sib_delivery WHERE part = :part AND seq = :seq"
                keys.update(dict(tx.rows(sql, part=part, seq=rank)))
        if rank not in keys:
            keys[rank] = key
            new[rank] = (rank, key, *others)
    return list(new.values())


class _Forgotten:
    """Keeps forgotten visitors out of rows that are about to be inserted, as if they were forgotten right after.

    The campaign must be locked. Who forgets marks, then waits for that lock, then looks for rows: so either the mark
    is seen here, or the rows are found there.
    """

    def __init__(self) -> None:
        self._times: str | None = "not read yet"
        self._hashes: set[str] = set()

    def erased(self, tx: Transaction, values: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Erase who was forgotten from rows of :data:`ENROLMENT_COLUMNS`."""
        # The list may be long; that it has grown is told by a number beside it.
        times = facts.known(tx).get("forgotten")
        if times != self._times:
            marked = tx.rows("SELECT hash FROM sib_suppress WHERE scope = '' AND visitor IS NULL")
            self._times, self._hashes = times, {hash_ for (hash_,) in marked}
        if not self._hashes:
            return values
        return [_erased(tx, row) if tx.hash(row[3]) in self._hashes else row for row in values]


def _erased(tx: Transaction, row: tuple[Any, ...]) -> tuple[Any, ...]:
    part, seq, key, _visitor, zone, variant, locale, _vars, _state, reason, at_ms = row
    key, state, reason = tx.forgotten_key(key), int(State.SKIPPED), reason or FORGOTTEN
    return part, seq, key, None, zone, variant, locale, None, state, reason, at_ms


def _insert(tx: Transaction, values: list[tuple[Any, ...]]) -> None:
    columns = ", ".join(ENROLMENT_COLUMNS)
    if tx.dialect.name == "sqlite":
        marks = ", ".join("?" * len(ENROLMENT_COLUMNS))
        tx.conn.exec_driver_sql(f"INSERT INTO sib_delivery ({columns}) VALUES ({marks})", values)
        return
    # The drivers' own executemany takes a round trip per row.
    marks = f"({', '.join(['%s'] * len(ENROLMENT_COLUMNS))})"
    for begin in range(0, len(values), 500):
        some = values[begin : begin + 500]
        tx.conn.exec_driver_sql(
            f"INSERT INTO sib_delivery ({columns}) VALUES {', '.join([marks] * len(some))}",
            tuple(value for row in some for value in row),
        )
