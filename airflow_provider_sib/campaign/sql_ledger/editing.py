"""Keep the one editor's place in a campaign, hand it sent rows, and record what it edited and withdrew."""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are always bound

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.ledger import Delivery, EditCycle, Edited, EditorBusy, edited
from airflow_provider_sib.campaign.sql_ledger import books, deliveries, quotas
from airflow_provider_sib.campaign.sql_ledger.deliveries import DELIVERY_COLUMNS

if TYPE_CHECKING:
    from airflow_provider_sib.campaign.sql_ledger.database import Transaction


def edit(tx: Transaction, cycle: EditCycle) -> Edited | EditorBusy:
    """See :meth:`Ledger.edit`."""
    book = books.lock(tx, cycle.campaign_id)
    if book.editor not in (0, cycle.editor) and book.editor_until_ms > book.now_ms:
        return EditorBusy(book.now_ms, book.editor_until_ms)
    recorded = _record(tx, book, cycle) if cycle.results else 0
    # Who withdraws waits for what a killed sender has left, and no other sender may ever come.
    _, sweep_at = deliveries.sweep(tx, book)
    granted = quotas.grant(tx, cycle.quota, book.now_ms)
    tx.run(
        "UPDATE sib_campaign SET editor = :editor, editor_until_ms = :until, sweep_at_ms = :sweep"
        " WHERE campaign = :campaign",
        editor=cycle.editor if cycle.lease_seconds else 0,
        until=book.now_ms + round(cycle.lease_seconds * 1000),
        sweep=sweep_at,
        campaign=cycle.campaign_id,
    )
    return Edited(book.now_ms, book.campaign, recorded, granted)


def sent(
    tx: Transaction,
    campaign_id: str,
    *,
    below_revision: int | None = None,
    sent_before_ms: int | None = None,
    after: int = -1,
    limit: int = 500,
) -> list[Delivery]:
    """See :meth:`Ledger.sent`."""
    book = books.look(tx, campaign_id)
    older = "" if below_revision is None else " AND revision < :below"
    before = "" if sent_before_ms is None else " AND at_ms < :before"
    rows = tx.rows(
        f"SELECT {DELIVERY_COLUMNS} FROM sib_delivery WHERE part = :part AND seq > :after AND state+0 = 2"
        f"{older}{before} ORDER BY seq LIMIT :limit",
        part=book.part,
        after=after,
        below=below_revision,
        before=sent_before_ms,
        limit=limit,
    )
    return deliveries.read(tx, book, rows)


def _record(tx: Transaction, book: books.Book, cycle: EditCycle) -> int:
    rows = tx.rows(
        f"SELECT {DELIVERY_COLUMNS} FROM sib_delivery WHERE part = :part AND seq IN :seqs",
        part=book.part,
        seqs=list({result.rank for result in cycle.results}),
    )
    known = {row.rank: row for row in deliveries.read(tx, book, rows)}
    changed: dict[int, Delivery] = {}
    recorded = 0
    for result in cycle.results:
        row = changed.get(result.rank) or known.get(result.rank)
        if row is not None and (after := edited(row, result, book.now_ms)) is not None:
            changed[row.rank] = after
            recorded += 1
    if changed:
        tx.many(
            "UPDATE sib_delivery SET state = :state, revision = :revision, text_hash = :text_hash,"
            " reason = :reason, at_ms = :at_ms WHERE part = :part AND seq = :seq AND state+0 = 2",
            [
                {
                    "state": int(row.state),
                    "revision": row.revision,
                    "text_hash": row.text_hash,
                    "reason": row.reason,
                    "at_ms": row.at_ms,
                    "part": book.part,
                    "seq": row.rank,
                }
                for row in changed.values()
            ],
        )
    return recorded
