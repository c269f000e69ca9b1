"""Change rows by hand: skip them, try them again, settle a doubt."""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are always bound

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.ledger import RANKS, RETRYABLE, SETTLED, SETTLEMENTS, State
from airflow_provider_sib.campaign.sql_ledger import books, deliveries
from airflow_provider_sib.campaign.sql_ledger.database import CHUNK, Database, Transaction

if TYPE_CHECKING:
    from collections.abc import Collection


def skip_pending(
    tx: Transaction, campaign_id: str, reason: str, *, held_back: bool = True, limit: int = CHUNK
) -> int:
    """See :meth:`Ledger.skip_pending`."""
    book, done = books.lock(tx, campaign_id), 0
    upto = RANKS - 1 if held_back or book.campaign.limit_rank is None else book.campaign.limit_rank
    for zone in deliveries.occupied(tx, book, State.PENDING):
        page = deliveries.page(tx, book, State.PENDING, zone, upto=upto, limit=limit - done, columns="seq")
        if page:
            deliveries.skip(tx, book, {reason: [seq for (seq,) in page]})
            done += len(page)
        if done >= limit:
            break
    return done


def retry(
    database: Database, campaign_id: str, state: State, *, reasons: Collection[str] | None = None
) -> int:
    """See :meth:`Ledger.retry`."""
    if state not in RETRYABLE:
        raise ValueError(f"deliveries that are {state.name.lower()} can't be tried again")
    done = 0
    for zone in range(len(database.read(lambda tx: books.look(tx, campaign_id)).zones)):
        after = -1
        while True:

            def work(tx: Transaction, zone: int = zone, after: int = after) -> list[int]:
                book = books.lock(tx, campaign_id)
                page = deliveries.page(
                    tx, book, state, zone, after=after, limit=CHUNK, columns="seq", reasons=reasons
                )
                seqs = [seq for (seq,) in page]
                deliveries.again(tx, book, state, seqs)
                return seqs

            seqs = database.write(work)
            done += len(seqs)
            if len(seqs) < CHUNK:
                break
            after = seqs[-1]
    return done


def settle(
    tx: Transaction, campaign_id: str, key: str, state: State, *, message_id: str | None = None
) -> bool:
    """See :meth:`Ledger.settle`."""
    if state not in SETTLEMENTS:
        raise ValueError(f"a doubt can't be settled as {state.name.lower()}")
    book = books.lock(tx, campaign_id)
    rows = tx.rows(
        f"SELECT seq, message, once_key FROM {tx.dialect.todo}"
        " WHERE part = :part AND state = 4 AND once_key = :key",
        part=book.part,
        key=key,
    )
    # MySQL takes "a" and "a " for equal.
    found = next(((seq, message) for seq, message, once_key in rows if once_key == key), None)
    if found is None:
        return False
    seq, message = found
    if state is State.PENDING:
        deliveries.again(tx, book, State.IN_DOUBT, [seq])
        return True
    tx.run(
        "UPDATE sib_delivery SET state = :state, message = :message, reason = :reason, at_ms = :at_ms"
        " WHERE part = :part AND seq = :seq AND state+0 = 4",
        state=int(state),
        message=message or (message_id if state is State.SENT else None),
        reason=SETTLED,
        at_ms=book.now_ms,
        part=book.part,
        seq=seq,
    )
    if state is State.FAILED:
        deliveries.untouch(tx, book.part, [seq])
    return True
