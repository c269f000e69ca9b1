"""Run one cycle of a campaign: record results, sweep, apply the pace and claim, all in one transaction."""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are always bound

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_sib.campaign.ledger import (
    FORGOTTEN,
    RANKS,
    SKIPPED_AT_ONCE,
    CampaignStatus,
    Cycle,
    Cycled,
    Delivery,
    Granted,
    Result,
    State,
    held,
    paced,
    to_json,
    transition,
)
from airflow_provider_sib.campaign.sql_ledger import books, deliveries, facts, quotas
from airflow_provider_sib.campaign.sql_ledger.deliveries import DELIVERY_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from airflow_provider_sib.campaign.sql_ledger.database import Transaction


def cycle(tx: Transaction, cycle: Cycle) -> Cycled:
    """See :meth:`Ledger.cycle`."""
    book = books.lock(tx, cycle.campaign_id)
    now_ms, use = book.now_ms, cycle.quota
    lease_ms = now_ms + round(cycle.lease_seconds * 1000)
    if cycle.token in tx.database.unsure:
        mine = _claimed_before(tx, book, cycle, lease_ms)
        if mine:
            granted = Granted(now_ms, quotas.locked(tx, use), len(mine))
            return Cycled(now_ms, book.campaign, tuple(mine), {}, 0, 0, granted)
    recorded = _record(tx, book, cycle.results) if cycle.results else 0
    swept, sweep_at = deliveries.sweep(tx, book)
    quota, permits = paced(use, quotas.locked(tx, use), now_ms)
    claimed: list[Delivery] = []
    skipped: Counter[str] = Counter()
    campaign = book.campaign
    if permits and campaign.status is CampaignStatus.RUNNING and campaign.enrolled_at_ms is not None:
        claimed, skipped = _claim(tx, book, cycle, permits, lease_ms)
    quota = held(use, quota, now_ms, begun=len(claimed))
    quotas.keep(tx, use, quota)
    if claimed:
        sweep_at = lease_ms if sweep_at is None else min(sweep_at, lease_ms)
    campaign = replace(
        campaign,
        claims=campaign.claims + len(claimed),
        last_seen_ms=now_ms,
        next_wake_ms=None if claimed else cycle.next_wake_ms,
        memo=campaign.memo if cycle.memo is None else dict(cycle.memo),
    )
    tx.run(
        "UPDATE sib_campaign SET claims = :claims, last_seen_ms = :seen, next_wake_ms = :wake, memo = :memo,"
        " sweep_at_ms = :sweep WHERE campaign = :campaign",
        claims=campaign.claims,
        seen=now_ms,
        wake=campaign.next_wake_ms,
        memo=to_json(campaign.memo),
        sweep=sweep_at,
        campaign=campaign.campaign_id,
    )
    granted = Granted(now_ms, quota, permits)
    return Cycled(now_ms, campaign, tuple(claimed), dict(skipped), swept, recorded, granted)


def _claimed_before(tx: Transaction, book: books.Book, cycle: Cycle, lease_ms: int) -> list[Delivery]:
    # A sweep may have come between; nobody but this caller could have sent them, and it had no answer.
    rows = tx.rows(
        f"SELECT {DELIVERY_COLUMNS} FROM {tx.dialect.todo}"
        " WHERE part = :part AND state IN (1, 4) AND claim = :claim ORDER BY seq",
        part=book.part,
        claim=cycle.token,
    )
    if rows:
        tx.run(
            "UPDATE sib_delivery SET state = 1, reason = NULL, lease_ms = :lease"
            " WHERE part = :part AND seq IN :seqs AND claim = :claim AND state+0 IN (1, 4)",
            lease=lease_ms,
            part=book.part,
            seqs=[row[0] for row in rows],
            claim=cycle.token,
        )
        _sweep_by(tx, book, lease_ms)
    return [
        replace(row, state=State.SENDING, reason=None, lease_until_ms=lease_ms)
        for row in deliveries.read(tx, book, rows)
    ]


def _record(tx: Transaction, book: books.Book, results: Sequence[Result]) -> int:
    rows = tx.rows(
        "SELECT seq, state, claim, message, text_hash, reason FROM sib_delivery"
        " WHERE part = :part AND seq IN :seqs",
        part=book.part,
        seqs=list({result.rank for result in results}),
    )
    before = {row[0]: row for row in rows}
    after: dict[int, dict[str, Any]] = {}
    extras: list[dict[str, Any]] = []
    recorded = 0
    for result in results:
        if result.rank not in before:
            continue
        _, was, claim, message, text_hash, reason = before[result.rank]
        known = after.get(result.rank) or {
            "state": was,
            "message": message,
            "text_hash": text_hash,
            "reason": reason,
        }
        change = transition(State(known["state"]), claim, known["message"], result)
        if change is None:
            continue
        recorded += 1
        after[result.rank] = {
            "state": int(change.state),
            "message": change.message_id,
            "text_hash": result.text_hash or known["text_hash"],
            "reason": result.reason if change.state is result.state else known["reason"],
            "at_ms": book.now_ms,
            "part": book.part,
            "seq": result.rank,
            "was": was,
            "claim": claim,
        }
        if change.extra is not None:
            extras.append({"part": book.part, "seq": result.rank, "message": change.extra})
    if after:
        tx.many(
            "UPDATE sib_delivery SET state = :state, message = :message, text_hash = :text_hash,"
            " reason = :reason, at_ms = :at_ms"
            " WHERE part = :part AND seq = :seq AND claim = :claim AND state+0 = :was",
            list(after.values()),
        )
    if extras:
        missing = tx.dialect.missing.format("part")
        tx.many(
            f"INSERT INTO sib_message (part, seq, message) VALUES (:part, :seq, :message) {missing}",
            extras,
        )
    given_up = (State.PENDING, State.FAILED, State.SKIPPED)
    deliveries.untouch(tx, book.part, [seq for seq, row in after.items() if row["state"] in given_up])
    return recorded


def _sweep_by(tx: Transaction, book: books.Book, lease_ms: int) -> None:
    tx.run(
        "UPDATE sib_campaign SET sweep_at_ms = :lease WHERE campaign = :campaign"
        " AND (sweep_at_ms IS NULL OR sweep_at_ms > :lease)",
        lease=lease_ms,
        campaign=book.campaign.campaign_id,
    )


def _claim(
    tx: Transaction, book: books.Book, cycle: Cycle, permits: int, lease_ms: int
) -> tuple[list[Delivery], Counter[str]]:
    screen = _Screen(tx, book, cycle)
    claimed: list[Delivery] = []
    skipped: dict[str, list[int]] = defaultdict(list)
    refused = 0
    upto = RANKS - 1 if book.campaign.limit_rank is None else book.campaign.limit_rank
    for zone in _open_zones(tx, book, cycle.zones):
        after = -1
        while len(claimed) < permits and refused < SKIPPED_AT_ONCE:
            # Rows come singly only while hardly any are refused.
            limit = max(permits - len(claimed), 256 if refused else 0)
            rows = deliveries.page(tx, book, State.PENDING, zone, after=after, upto=upto, limit=limit)
            page = deliveries.read(tx, book, rows, claimed=(cycle.token, lease_ms))
            for row, reason in zip(page, screen(page), strict=True):
                if reason is not None:
                    skipped[reason].append(row.rank)
                    refused += 1
                    continue
                screen.passed(row)
                claimed.append(row)
                if len(claimed) == permits:
                    # The rules are read when a row's turn has come, not before.
                    break
            if len(page) < limit:
                break
            after = page[-1].rank
    deliveries.skip(tx, book, skipped)
    if claimed:
        tx.run(
            "UPDATE sib_delivery SET state = 1, reason = NULL, claim = :claim, lease_ms = :lease,"
            " revision = :revision, at_ms = :at_ms WHERE part = :part AND seq IN :seqs AND state+0 = 0",
            claim=cycle.token,
            lease=lease_ms,
            revision=book.campaign.revision,
            at_ms=book.now_ms,
            part=book.part,
            seqs=[row.rank for row in claimed],
        )
    if claimed and cycle.cap is not None:
        tx.many(
            "INSERT INTO sib_touch (grp, hash, part, seq, at_ms) VALUES (:grp, :hash, :part, :seq, :at_ms)",
            [
                {
                    "grp": cycle.cap.group,
                    "hash": tx.hash(row.visitor_id or ""),
                    "part": book.part,
                    "seq": row.rank,
                    "at_ms": book.now_ms,
                }
                for row in claimed
            ],
        )
    return claimed, Counter({reason: len(seqs) for reason, seqs in skipped.items()})


def _open_zones(tx: Transaction, book: books.Book, zones: Sequence[str | None] | None) -> list[int]:
    wanted = (
        list(range(len(book.zones)))
        if zones is None
        else [book.zones.index(zone) for zone in dict.fromkeys(zones) if zone in book.zones]
    )
    if len(wanted) <= 2:
        return wanted
    pending = set(deliveries.occupied(tx, book, State.PENDING))
    return [zone for zone in wanted if zone in pending]


class _Screen:
    """Says of pending rows whether they must be skipped, for one claim."""

    def __init__(self, tx: Transaction, book: books.Book, cycle: Cycle) -> None:
        self._tx, self._book, self._cycle = tx, book, cycle
        self._touches: Counter[str] = Counter()
        if cycle.cap is not None:
            # Campaigns of one group must not count beside each other.
            facts.locked(tx, f"cap:{cycle.cap.group}")

    def __call__(self, page: list[Delivery]) -> Iterator[str | None]:
        """Yield per row the reason to skip it, or None; tell :meth:`passed` before asking for the next."""
        hashes = {row.visitor_id: self._tx.hash(row.visitor_id) for row in page if row.visitor_id is not None}
        refused: dict[str, str] = {}
        if hashes:
            for scope, hash_, visitor in self._tx.rows(
                "SELECT scope, hash, visitor FROM sib_suppress"
                " WHERE scope IN ('', :campaign) AND hash IN :hashes ORDER BY scope DESC",
                campaign=self._cycle.campaign_id,
                hashes=sorted(hashes.values()),
            ):
                refused[hash_] = "excluded" if scope else FORGOTTEN if visitor is None else "suppressed"
        cap = self._cycle.cap
        if hashes and cap is not None:
            fresh = [hash_ for hash_ in set(hashes.values()) if hash_ not in self._touches]
            counts = self._tx.rows(
                "SELECT hash, COUNT(*) FROM sib_touch WHERE grp = :grp AND hash IN :hashes AND at_ms > :since"
                " GROUP BY hash",
                grp=cap.group,
                hashes=fresh or [""],
                since=self._book.now_ms - round(cap.within_seconds * 1000),
            )
            self._touches.update(dict.fromkeys(fresh, 0))
            self._touches.update(dict(counts))
        for row in page:
            if row.visitor_id is None:
                yield FORGOTTEN
            elif (hash_ := hashes[row.visitor_id]) in refused:
                yield refused[hash_]
            elif cap is not None and self._touches[hash_] >= cap.at_most:
                yield "frequency_cap"
            else:
                yield self._cycle.screen(row) if self._cycle.screen is not None else None

    def passed(self, row: Delivery) -> None:
        """Count a row that is going to be claimed."""
        if self._cycle.cap is not None and row.visitor_id is not None:
            self._touches[self._tx.hash(row.visitor_id)] += 1
