"""Read and change deliveries' rows, by the key or the index of states; a change meets the state it was meant for."""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are always bound

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from airflow_provider_sib.campaign.ledger import (
    FORGOTTEN,
    LEASE_EXPIRED,
    RANKS,
    CampaignStatus,
    Delivery,
    State,
)
from airflow_provider_sib.campaign.sql_ledger import books

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from airflow_provider_sib.campaign.sql_ledger.database import Row, Transaction

DELIVERY_COLUMNS = (
    "seq, once_key, visitor, vars, zone, locale, variant, state, reason, claim, lease_ms, revision, text_hash, "
    "message, at_ms"
)


def page(
    tx: Transaction,
    book: books.Book,
    state: State | None,
    zone: int,
    *,
    limit: int,
    after: int = -1,
    upto: int = RANKS - 1,
    columns: str = DELIVERY_COLUMNS,
    reasons: Collection[str] | None = None,
    before_ms: int | None = None,
) -> list[Row]:
    """Read rows of one state and zone in the order of ranks, by the index; without a state all, by the key."""
    table, place = "sib_delivery", "seq > :after AND seq <= :upto"
    order = "ORDER BY seq"
    if state is not None:
        table = tx.dialect.todo
        place, _, order = tx.dialect.next_in_zone.partition(" ORDER BY ")
        place, order = f"state = :state AND {place}", f"ORDER BY {order}"
    if reasons is not None:
        place += " AND reason IN :reasons" if reasons else " AND 1 = 0"
    if before_ms is not None:
        place += " AND at_ms < :before"
    values: dict[str, Any] = {"part": book.part, "after": after, "upto": upto, "limit": limit}
    if state is not None:
        values |= {"state": int(state), "zone": zone}
    if reasons:
        values["reasons"] = list(reasons)
    if before_ms is not None:
        values["before"] = before_ms
    return tx.rows(
        f"SELECT {columns} FROM {table} WHERE part = :part AND {place} {order} LIMIT :limit",
        **values,
    )


def read(
    tx: Transaction, book: books.Book, rows: Sequence[Row], *, claimed: tuple[int, int] | None = None
) -> list[Delivery]:
    """Make deliveries of rows of :data:`DELIVERY_COLUMNS`, with all their message ids.

    :param claimed: a claim and its lease: the rows as they will be once they are claimed.
    """
    # Only a row whose state knows a message can have several.
    extras: dict[int, list[str]] = defaultdict(list)
    told = [row[0] for row in rows if row[13] is not None]
    if told:
        for seq, message in tx.rows(
            "SELECT seq, message FROM sib_message WHERE part = :part AND seq BETWEEN :first AND :last",
            part=book.part,
            first=min(told),
            last=max(told),
        ):
            extras[seq].append(message)
    zones = book.zones
    if any(row[4] >= len(zones) for row in rows):
        # Newcomers have brought a time zone since the book was read.
        zones = books.look(tx, book.campaign.campaign_id).zones
    if claimed is not None:
        now = (int(State.SENDING), None, *claimed, book.campaign.revision)
        rows = [(*row[:7], *now, *row[12:14], book.now_ms) for row in rows]
    return [
        Delivery(
            rank=seq,
            key=key,
            visitor_id=visitor,
            variables=None if variables is None else json.loads(variables),
            timezone=zones[zone],
            locale=locale,
            variant=variant,
            state=State(state),
            reason=reason,
            claim=claim,
            lease_until_ms=lease_ms,
            revision=revision,
            text_hash=text_hash,
            message_ids=(message, *extras[seq]) if message is not None else (),
            at_ms=at_ms,
        )
        for (
            seq,
            key,
            visitor,
            variables,
            zone,
            locale,
            variant,
            state,
            reason,
            claim,
            lease_ms,
            revision,
            text_hash,
            message,
            at_ms,
        ) in rows
    ]


def occupied(tx: Transaction, book: books.Book, state: State) -> list[int]:
    """List the zones that have rows of a state: one seek each, however many rows there are."""
    todo = tx.dialect.todo
    first = f"SELECT zone FROM {todo} WHERE part = :part AND state = :state"
    rows = tx.rows(
        f"WITH RECURSIVE z (zone) AS (SELECT ({first} ORDER BY zone LIMIT 1) UNION ALL"
        f" SELECT ({first} AND zone > z.zone ORDER BY zone LIMIT 1) FROM z WHERE z.zone IS NOT NULL)"
        " SELECT zone FROM z WHERE zone IS NOT NULL",
        part=book.part,
        state=int(state),
    )
    return [zone for (zone,) in rows]


def sending(tx: Transaction, book: books.Book) -> tuple[int, int | None]:
    """Tell how many rows are being sent, and when the last of their leases ends."""
    sql = f"SELECT COUNT(*), MAX(lease_ms) FROM {tx.dialect.todo} WHERE part = :part AND state = 1"
    count, until = tx.row(sql, part=book.part)
    return count, until


def rank_at(tx: Transaction, part: int, place: int) -> int:
    """Find the rank at a place in the order, which counts from 0."""
    sql = "SELECT seq FROM sib_delivery WHERE part = :part ORDER BY seq LIMIT 1 OFFSET :place"
    return int(tx.row(sql, part=part, place=place)[0])


def skip(tx: Transaction, book: books.Book, skipped: Mapping[str, list[int]]) -> None:
    """Skip pending rows, given by reason."""
    for reason, seqs in skipped.items():
        tx.run(
            "UPDATE sib_delivery SET state = 5, reason = :reason, at_ms = :at_ms"
            " WHERE part = :part AND seq IN :seqs AND state+0 = 0",
            reason=reason,
            at_ms=book.now_ms,
            part=book.part,
            seqs=seqs,
        )
    if FORGOTTEN in skipped:
        # Whoever is forgetting them has not come to this campaign yet.
        rows = tx.rows(
            "SELECT seq, once_key FROM sib_delivery"
            " WHERE part = :part AND seq IN :seqs AND visitor IS NOT NULL",
            part=book.part,
            seqs=skipped[FORGOTTEN],
        )
        erase(tx, book.part, rows)


def again(tx: Transaction, book: books.Book, state: State, seqs: list[int]) -> None:
    """Set rows of a state to pending; a finished campaign runs again."""
    if not seqs:
        return
    tx.run(
        "UPDATE sib_delivery SET state = 0, reason = NULL, at_ms = :at_ms"
        " WHERE part = :part AND seq IN :seqs AND state+0 = :state",
        at_ms=book.now_ms,
        part=book.part,
        seqs=seqs,
        state=int(state),
    )
    untouch(tx, book.part, seqs)
    if book.campaign.status is CampaignStatus.FINISHED:
        books.set_status(tx, book.campaign.campaign_id, CampaignStatus.RUNNING)


def untouch(tx: Transaction, part: int, seqs: list[int]) -> None:
    """Take rows off the frequency caps' count."""
    if seqs:
        tx.run("DELETE FROM sib_touch WHERE part = :part AND seq IN :seqs", part=part, seqs=seqs)


def erase(tx: Transaction, part: int, rows: Iterable[Row]) -> None:
    """Erase who a row is for: of ``(rank, once key)`` only a hash of the key stays."""
    values = [{"key": tx.forgotten_key(key), "part": part, "seq": seq} for seq, key in rows]
    if values:
        tx.many(
            "UPDATE sib_delivery SET visitor = NULL, vars = NULL, once_key = :key"
            " WHERE part = :part AND seq = :seq",
            values,
        )


def sweep(tx: Transaction, book: books.Book) -> tuple[int, int | None]:
    """Put expired leases in doubt; return how many, and when the next one can expire."""
    if book.sweep_at_ms is None or book.sweep_at_ms > book.now_ms:
        return 0, book.sweep_at_ms
    swept = tx.run(
        f"UPDATE {tx.dialect.todo} SET state = 4, reason = :reason, at_ms = :now"
        " WHERE part = :part AND state = 1 AND lease_ms <= :now",
        reason=LEASE_EXPIRED,
        now=book.now_ms,
        part=book.part,
    )
    (first,) = tx.row(
        f"SELECT MIN(lease_ms) FROM {tx.dialect.todo} WHERE part = :part AND state = 1",
        part=book.part,
    )
    return swept, first
