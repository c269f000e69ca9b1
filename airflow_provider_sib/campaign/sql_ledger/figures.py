"""Look at a campaign's deliveries: what is left, counts, shares, a chart, and the rows themselves."""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are always bound

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.ledger import (
    CHARTED,
    Backlog,
    Counts,
    Delivery,
    Moment,
    Share,
    State,
    UnknownCampaign,
)
from airflow_provider_sib.campaign.sql_ledger import books, deliveries

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from airflow_provider_sib.campaign.sql_ledger.database import Database, Transaction


def backlog(tx: Transaction, campaign_id: str) -> Backlog:
    """See :meth:`Ledger.backlog`."""
    book = books.look(tx, campaign_id)
    limit, zones, held_back = book.campaign.limit_rank, set(), False
    for zone in deliveries.occupied(tx, book, State.PENDING):
        first = deliveries.page(tx, book, State.PENDING, zone, limit=1, columns="seq")
        if first and (limit is None or first[0][0] <= limit):
            zones.add(book.zones[zone])
        if limit is not None and not held_back:
            held_back = bool(
                deliveries.page(tx, book, State.PENDING, zone, after=limit, limit=1, columns="seq")
            )
    return Backlog(book.now_ms, frozenset(zones), held_back, *deliveries.sending(tx, book))


def counts(tx: Transaction, campaign_id: str) -> Counts:
    """See :meth:`Ledger.counts`."""
    book = books.look(tx, campaign_id)
    limit, held_back = book.campaign.limit_rank, 0
    # Counting takes as long as there are many: the most numerous are what is left of the total, read at once with
    # the others, since newcomers raise it.
    most = State.SENT if 2 * book.campaign.claims > book.campaign.total else State.PENDING
    rows = tx.rows(
        "SELECT state, COUNT(*), (SELECT total FROM sib_campaign WHERE campaign = :campaign)"
        f" FROM {tx.dialect.todo} WHERE part = :part AND state IN :states GROUP BY state",
        campaign=campaign_id,
        part=book.part,
        states=[int(state) for state in State if state is not most],
    )
    by_state = {State(state): count for state, count, _ in rows}
    total = rows[0][2] if rows else book.campaign.total
    if total is None:  # it was purged since the statement before
        raise UnknownCampaign(campaign_id)
    if left := total - sum(by_state.values()):
        by_state[most] = left
    if limit is not None:
        held_back = tx.row(
            f"SELECT COUNT(*) FROM {tx.dialect.todo} WHERE part = :part AND state = 0 AND seq > :upto",
            part=book.part,
            upto=limit,
        )[0]
    return Counts(by_state, held_back)


def breakdown(tx: Transaction, campaign_id: str) -> list[Share]:
    """See :meth:`Ledger.breakdown`."""
    rows = tx.rows(
        "SELECT state, reason, variant, revision, COUNT(*) FROM sib_delivery WHERE part = :part"
        " GROUP BY state, reason, variant, revision",
        part=books.look(tx, campaign_id).part,
    )
    shares = [Share(State(state), *alike) for state, *alike in rows]
    return sorted(shares, key=lambda share: (share.state, share.reason or "", share.variant, share.revision))


def series(tx: Transaction, campaign_id: str, *, seconds: int, since_ms: int = 0) -> list[Moment]:
    """See :meth:`Ledger.series`."""
    # The span is a literal, for PostgreSQL doesn't see that two parameters group alike.
    start = f"at_ms - at_ms % {int(seconds) * 1000}"
    rows = tx.rows(
        f"SELECT {start}, state, COUNT(*) FROM sib_delivery WHERE part = :part AND state IN :states"
        f" AND at_ms >= :since GROUP BY {start}, state",
        part=books.look(tx, campaign_id).part,
        states=[int(state) for state in CHARTED],
        since=since_ms,
    )
    return [Moment(*row) for row in sorted((at, State(state), count) for at, state, count in rows)]


def every(
    database: Database,
    campaign_id: str,
    *,
    states: Collection[State] | None = None,
    reasons: Collection[str] | None = None,
    before_ms: int | None = None,
) -> Iterator[Delivery]:
    """See :meth:`Ledger.deliveries`."""
    book = database.read(lambda tx: books.look(tx, campaign_id))
    places: list[tuple[State | None, int]] = [(None, 0)]
    if states is not None:
        places = [(state, zone) for state in sorted(states) for zone in range(len(book.zones))]

    def pages() -> Iterator[Delivery]:
        for state, zone in places:
            after = -1
            while True:

                def work(
                    tx: Transaction,
                    state: State | None = state,
                    zone: int = zone,
                    after: int = after,
                ) -> list[Delivery]:
                    rows = deliveries.page(
                        tx,
                        book,
                        state,
                        zone,
                        after=after,
                        limit=500,
                        reasons=reasons,
                        before_ms=before_ms,
                    )
                    return deliveries.read(tx, book, rows)

                page = database.read(work)
                yield from page
                if len(page) < 500:
                    break
                after = page[-1].rank

    return pages()
