"""Keep a ledger in this process's memory, with the answers of the others and none of their durability."""

from __future__ import annotations

import heapq
import json
import secrets
import threading
import time
import uuid
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.ledger.quota import Granted, Quota, QuotaUse, held, paced
from airflow_provider_sib.campaign.ledger.rules import (
    CHARTED,
    FORGOTTEN,
    LEASE_EXPIRED,
    RETRYABLE,
    SETTLED,
    SETTLEMENTS,
    SKIPPED_AT_ONCE,
    binding_refusal,
    check_campaign_id,
    check_enrolment,
    edited,
    first_ranks,
    flaw_of,
    keyed_hash,
    limit_rank,
    purge_refusal,
    rank_after,
    status_refusal,
    to_json,
    transition,
)
from airflow_provider_sib.campaign.ledger.values import (
    Backlog,
    Campaign,
    CampaignStatus,
    Counts,
    Cycle,
    Cycled,
    Delivery,
    EditCycle,
    Edited,
    EditorBusy,
    Enrolled,
    Enrolment,
    Identity,
    Json,
    Moment,
    Refusal,
    RefusalKind,
    Result,
    Revision,
    Share,
    State,
    Suppression,
    Text,
    UnknownCampaign,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence


class _Book:
    """One campaign of a :class:`MemoryLedger`."""

    def __init__(self, campaign: Campaign, revision: Revision) -> None:
        self.campaign = campaign
        self.revisions = [revision]
        self.rows: dict[int, Delivery] = {}
        self.order: list[int] = []
        self.ranks: dict[str, int] = {}
        self.excluded: frozenset[str] = frozenset()
        self.editor = 0
        self.editor_until_ms = 0
        self.sending: set[int] = set()
        # Ranks that are or were pending, by time zone in the order in which the zones came; ranks that are
        # pending no longer are dropped when met.
        self.pending: dict[str | None, list[int]] = {}

    def put(self, row: Delivery) -> None:
        before = self.rows.get(row.rank)
        self.rows[row.rank] = row
        if row.state is State.PENDING and (before is None or before.state is not State.PENDING):
            heapq.heappush(self.pending.setdefault(row.timezone, []), row.rank)
        (self.sending.add if row.state is State.SENDING else self.sending.discard)(row.rank)

    def first_pending(self, zone: str | None) -> int | None:
        ranks = self.pending.get(zone, [])
        while ranks and self.rows[ranks[0]].state is not State.PENDING:
            heapq.heappop(ranks)
        return ranks[0] if ranks else None

    def lease_until_ms(self) -> int | None:
        return max((self.rows[rank].lease_until_ms for rank in self.sending), default=None)


class MemoryLedger:
    """Keeps a ledger in this process's memory: for tests, trials and dry runs. It is gone with the process.

    :param clock: seconds since 1970; the ledger's clock.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._id = str(uuid.uuid4())
        self._secret = secrets.token_bytes(32)
        self._books: dict[str, _Book] = {}
        self._purged_claims = 0
        self._quotas: dict[tuple[str, str], Quota] = {}
        self._suppressed: dict[str, Suppression] = {}
        # When a visitor was sent something, by group and hashed visitor, then by campaign and rank.
        self._touches: dict[tuple[str, str], dict[tuple[str, int], int]] = defaultdict(dict)
        self._touched: dict[tuple[str, int], tuple[str, str]] = {}

    def identity(self) -> Identity:
        """See :meth:`Ledger.identity`."""
        with self._lock:
            claims = self._purged_claims + sum(book.campaign.claims for book in self._books.values())
            return Identity(self._id, 1, claims)

    def now_ms(self) -> int:
        """See :meth:`Ledger.now_ms`."""
        return round(self._clock() * 1000)

    def close(self) -> None:
        """See :meth:`Ledger.close`."""

    def open_campaign(
        self,
        campaign_id: str,
        *,
        binding: Mapping[str, str],
        each_run: bool,
        text: Text | None,
        settings: Mapping[str, Json],
    ) -> Campaign | Refusal:
        """See :meth:`Ledger.open_campaign`."""
        check_campaign_id(campaign_id)
        with self._lock:
            now_ms = self.now_ms()
            book = self._books.get(campaign_id)
            if book is None:
                if text is None:
                    raise UnknownCampaign(campaign_id)
                campaign = Campaign(
                    campaign_id=campaign_id,
                    binding=dict(binding),
                    each_run=each_run,
                    status=CampaignStatus.RUNNING,
                    revision=1,
                    text=text,
                    settings=dict(settings),
                    memo={},
                    enrolled_at_ms=None,
                    total=0,
                    duplicates=0,
                    bad_rows=0,
                    fraction=1.0,
                    limit_rank=None,
                    claims=0,
                    created_at_ms=now_ms,
                    last_seen_ms=None,
                    next_wake_ms=None,
                )
                self._books[campaign_id] = _Book(campaign, Revision(1, text, now_ms))
                return campaign
            kept = book.campaign
            if refusal := binding_refusal(kept.binding, kept.each_run, binding, each_run=each_run):
                return refusal
            if text is not None and text.digest not in {known.text.digest for known in book.revisions}:
                return Refusal(RefusalKind.UNKNOWN_TEXT, "text", kept.text.digest, text.digest)
            book.campaign = replace(kept, settings=dict(settings))
            return book.campaign

    def campaign(self, campaign_id: str) -> Campaign:
        """See :meth:`Ledger.campaign`."""
        return self._book(campaign_id).campaign

    def campaigns(self) -> list[Campaign]:
        """See :meth:`Ledger.campaigns`."""
        with self._lock:
            return [book.campaign for book in reversed(self._books.values())]

    def revise(self, campaign_id: str, text: Text) -> Campaign:
        """See :meth:`Ledger.revise`."""
        with self._lock:
            book = self._book(campaign_id)
            if text.digest != book.campaign.text.digest:
                revision = Revision(book.campaign.revision + 1, text, self.now_ms())
                book.revisions.append(revision)
                book.campaign = replace(book.campaign, revision=revision.revision, text=text)
            return book.campaign

    def revisions(self, campaign_id: str) -> list[Revision]:
        """See :meth:`Ledger.revisions`."""
        with self._lock:
            return list(self._book(campaign_id).revisions)

    def set_status(
        self, campaign_id: str, status: CampaignStatus, *, seen: CampaignStatus | None = None
    ) -> Campaign | Refusal:
        """See :meth:`Ledger.set_status`."""
        with self._lock:
            book = self._book(campaign_id)
            if refusal := status_refusal(book.campaign.status, status, seen):
                return refusal
            book.campaign = replace(book.campaign, status=status)
            return book.campaign

    def finish(self, campaign_id: str) -> bool:
        """See :meth:`Ledger.finish`."""
        with self._lock:
            book = self._book(campaign_id)
            over = not book.sending and all(book.first_pending(zone) is None for zone in list(book.pending))
            if over and book.campaign.status is CampaignStatus.RUNNING:
                book.campaign = replace(book.campaign, status=CampaignStatus.FINISHED, next_wake_ms=None)
            return book.campaign.status is CampaignStatus.FINISHED

    def set_fraction(self, campaign_id: str, fraction: float) -> Campaign:
        """See :meth:`Ledger.set_fraction`."""
        with self._lock:
            book = self._book(campaign_id)
            limit = limit_rank(fraction)
            if limit is not None and not book.campaign.each_run:
                limit = book.order[first_ranks(fraction, len(book.order)) - 1] if book.order else -1
            book.campaign = replace(book.campaign, fraction=fraction, limit_rank=limit)
            return book.campaign

    def enrol(
        self, campaign_id: str, rows: Iterable[Enrolment], *, bad_rows: Callable[[], int] = lambda: 0
    ) -> Enrolled:
        """See :meth:`Ledger.enrol`."""
        kept = self.campaign(campaign_id)
        if kept.enrolled_at_ms is not None and not kept.each_run:
            return Enrolled(0, kept.duplicates, kept.bad_rows, kept.total)
        read: dict[str, Enrolment] = {}
        duplicates = 0
        for row in rows:
            check_enrolment(row)
            duplicates += row.key in read
            read.setdefault(row.key, replace(row, variables=json.loads(to_json(row.variables))))
        bad = bad_rows()
        with self._lock:
            book = self._book(campaign_id)
            kept, now_ms = book.campaign, self.now_ms()
            if kept.enrolled_at_ms is not None and not kept.each_run:
                return Enrolled(0, kept.duplicates, kept.bad_rows, kept.total)
            new: dict[int, Enrolment] = {}
            for row in sorted(read.values(), key=lambda row: (row.rank, row.key)):
                if row.key in book.ranks or self._forgotten_key(row.key) in book.ranks:
                    duplicates += 1
                    continue
                rank = row.rank
                while rank in book.rows or rank in new:
                    rank = rank_after(rank)
                new[rank] = row
            for row in read.values():
                book.pending.setdefault(row.timezone, [])
            for rank, row in new.items():
                book.ranks[row.key] = rank
                book.put(_delivery(row, rank, now_ms))
                suppression = self._suppressed.get(self._hash(row.visitor_id))
                if suppression is not None and suppression.visitor_id is None:
                    self._forget(book, book.rows[rank], now_ms)
            book.order = sorted(book.rows)
            again = new and kept.status is CampaignStatus.FINISHED
            book.campaign = replace(
                kept,
                status=CampaignStatus.RUNNING if again else kept.status,
                enrolled_at_ms=now_ms,
                total=len(book.rows),
                duplicates=duplicates,
                bad_rows=bad,
            )
            return Enrolled(len(new), duplicates, bad, len(book.rows))

    def exclude(self, campaign_id: str, visitor_ids: Iterable[str]) -> int:
        """See :meth:`Ledger.exclude`."""
        excluded = frozenset(visitor_ids)
        with self._lock:
            self._book(campaign_id).excluded = excluded
            return len(excluded)

    def cycle(self, cycle: Cycle) -> Cycled:
        """See :meth:`Ledger.cycle`."""
        with self._lock:
            book, now_ms, use = self._book(cycle.campaign_id), self.now_ms(), cycle.quota
            quota = self._quotas.get((use.account, use.bucket), Quota())
            mine = tuple(
                book.rows[rank] for rank in sorted(book.sending) if book.rows[rank].claim == cycle.token
            )
            if mine:
                return Cycled(now_ms, book.campaign, mine, {}, 0, 0, Granted(now_ms, quota, len(mine)))
            quota, permits = paced(use, quota, now_ms)
            undo: list[Callable[[], None]] = []
            try:
                recorded = self._record(book, cycle.results, undo, now_ms)
                swept = self._sweep(book, undo, now_ms)
                claimed, skipped = self._claim(book, cycle, permits, undo, now_ms)
            except BaseException:
                for step in reversed(undo):
                    step()
                raise
            self._quotas[use.account, use.bucket] = quota = held(use, quota, now_ms, begun=len(claimed))
            book.campaign = replace(
                book.campaign,
                claims=book.campaign.claims + len(claimed),
                last_seen_ms=now_ms,
                next_wake_ms=None if claimed else cycle.next_wake_ms,
                memo=book.campaign.memo if cycle.memo is None else dict(cycle.memo),
            )
            granted = Granted(now_ms, quota, permits)
            return Cycled(now_ms, book.campaign, tuple(claimed), skipped, swept, recorded, granted)

    def backlog(self, campaign_id: str) -> Backlog:
        """See :meth:`Ledger.backlog`."""
        with self._lock:
            book = self._book(campaign_id)
            limit = book.campaign.limit_rank
            zones, held_back = set(), False
            for zone in list(book.pending):
                first = book.first_pending(zone)
                if first is not None and (limit is None or first <= limit):
                    zones.add(zone)
                if limit is not None and not held_back:
                    held_back = any(
                        rank > limit and book.rows[rank].state is State.PENDING for rank in book.pending[zone]
                    )
            return Backlog(
                self.now_ms(), frozenset(zones), held_back, len(book.sending), book.lease_until_ms()
            )

    def quota(self, use: QuotaUse) -> Granted:
        """See :meth:`Ledger.quota`."""
        with self._lock:
            return self._grant(use, self.now_ms())

    def skip_pending(
        self, campaign_id: str, reason: str, *, held_back: bool = True, limit: int = 2000
    ) -> int:
        """See :meth:`Ledger.skip_pending`."""
        with self._lock:
            book, now_ms, done = self._book(campaign_id), self.now_ms(), 0
            upto = None if held_back else book.campaign.limit_rank
            for zone in list(book.pending):
                while done < limit and (rank := book.first_pending(zone)) is not None:
                    if upto is not None and rank > upto:
                        break
                    row = book.rows[rank]
                    book.put(replace(row, state=State.SKIPPED, reason=reason, at_ms=now_ms))
                    done += 1
            return done

    def edit(self, cycle: EditCycle) -> Edited | EditorBusy:
        """See :meth:`Ledger.edit`."""
        with self._lock:
            book, now_ms = self._book(cycle.campaign_id), self.now_ms()
            if book.editor not in (0, cycle.editor) and book.editor_until_ms > now_ms:
                return EditorBusy(now_ms, book.editor_until_ms)
            self._sweep(book, [], now_ms)
            granted = self._grant(cycle.quota, now_ms)
            book.editor = cycle.editor if cycle.lease_seconds else 0
            book.editor_until_ms = now_ms + round(cycle.lease_seconds * 1000)
            recorded = 0
            for result in cycle.results:
                row = book.rows.get(result.rank)
                if row is not None and (after := edited(row, result, now_ms)) is not None:
                    book.put(after)
                    recorded += 1
            return Edited(now_ms, book.campaign, recorded, granted)

    def sent(
        self,
        campaign_id: str,
        *,
        below_revision: int | None = None,
        sent_before_ms: int | None = None,
        after: int = -1,
        limit: int = 500,
    ) -> list[Delivery]:
        """See :meth:`Ledger.sent`."""
        with self._lock:
            book = self._book(campaign_id)
            found: list[Delivery] = []
            for rank in book.order[bisect_right(book.order, after) :]:
                row = book.rows[rank]
                if (
                    row.state is State.SENT
                    and (below_revision is None or row.revision < below_revision)
                    and (sent_before_ms is None or row.at_ms < sent_before_ms)
                ):
                    found.append(row)
                    if len(found) == limit:
                        break
            return found

    def retry(self, campaign_id: str, state: State, *, reasons: Collection[str] | None = None) -> int:
        """See :meth:`Ledger.retry`."""
        if state not in RETRYABLE:
            raise ValueError(f"deliveries that are {state.name.lower()} can't be tried again")
        with self._lock:
            book, done = self._book(campaign_id), 0
            for rank in book.order:
                row = book.rows[rank]
                if row.state is state and (reasons is None or row.reason in reasons):
                    self._again(book, row)
                    done += 1
            return done

    def settle(self, campaign_id: str, key: str, state: State, *, message_id: str | None = None) -> bool:
        """See :meth:`Ledger.settle`."""
        if state not in SETTLEMENTS:
            raise ValueError(f"a doubt can't be settled as {state.name.lower()}")
        with self._lock:
            book = self._book(campaign_id)
            row = book.rows.get(book.ranks.get(key, -1))
            if row is None or row.state is not State.IN_DOUBT:
                return False
            if state is State.PENDING:
                self._again(book, row)
                return True
            ids = row.message_ids or ((message_id,) if message_id and state is State.SENT else ())
            book.put(replace(row, state=state, message_ids=ids, reason=SETTLED, at_ms=self.now_ms()))
            if state is State.FAILED:
                self._untouch((campaign_id, row.rank))
            return True

    def quotas(self) -> dict[tuple[str, str], Quota]:
        """See :meth:`Ledger.quotas`."""
        with self._lock:
            return dict(self._quotas)

    def counts(self, campaign_id: str) -> Counts:
        """See :meth:`Ledger.counts`."""
        with self._lock:
            book = self._book(campaign_id)
            limit = book.campaign.limit_rank
            by_state = Counter(row.state for row in book.rows.values())
            held_back = sum(
                row.state is State.PENDING and limit is not None and row.rank > limit
                for row in book.rows.values()
            )
            return Counts(dict(by_state), held_back)

    def breakdown(self, campaign_id: str) -> list[Share]:
        """See :meth:`Ledger.breakdown`."""
        with self._lock:
            shares = Counter(
                (row.state, row.reason, row.variant, row.revision)
                for row in self._book(campaign_id).rows.values()
            )
        return [
            Share(*alike, count)
            for alike, count in sorted(
                shares.items(), key=lambda item: (item[0][0], item[0][1] or "", item[0][2:])
            )
        ]

    def series(self, campaign_id: str, *, seconds: int, since_ms: int = 0) -> list[Moment]:
        """See :meth:`Ledger.series`."""
        span = seconds * 1000
        with self._lock:
            moments = Counter(
                (row.at_ms // span * span, row.state)
                for row in self._book(campaign_id).rows.values()
                if row.state in CHARTED and row.at_ms >= since_ms
            )
        return [Moment(start_ms, state, count) for (start_ms, state), count in sorted(moments.items())]

    def deliveries(
        self,
        campaign_id: str,
        *,
        states: Collection[State] | None = None,
        reasons: Collection[str] | None = None,
        before_ms: int | None = None,
    ) -> Iterator[Delivery]:
        """See :meth:`Ledger.deliveries`."""
        with self._lock:
            book = self._book(campaign_id)
            rows = [book.rows[rank] for rank in book.order]
            zones = list(book.pending)
        if states is not None:
            rows = [row for row in rows if row.state in states]
            rows.sort(key=lambda row: (row.state, zones.index(row.timezone), row.rank))
        return (
            row
            for row in rows
            if (reasons is None or row.reason in reasons) and (before_ms is None or row.at_ms < before_ms)
        )

    def suppress(self, visitor_ids: Iterable[str], reason: str) -> int:
        """See :meth:`Ledger.suppress`."""
        with self._lock:
            now_ms, before = self.now_ms(), len(self._suppressed)
            for visitor_id in visitor_ids:
                if flaw := flaw_of(visitor_id):
                    raise ValueError(f"a visitor's id {flaw}")
                self._suppressed.setdefault(self._hash(visitor_id), Suppression(visitor_id, reason, now_ms))
            return len(self._suppressed) - before

    def unsuppress(self, visitor_ids: Iterable[str]) -> int:
        """See :meth:`Ledger.unsuppress`."""
        with self._lock:
            return sum(self._suppressed.pop(self._hash(id_), None) is not None for id_ in visitor_ids)

    def suppressed(self) -> Iterator[Suppression]:
        """See :meth:`Ledger.suppressed`."""
        with self._lock:
            return iter(list(self._suppressed.values()))

    def forget_visitor(self, visitor_id: str) -> int:
        """See :meth:`Ledger.forget_visitor`."""
        with self._lock:
            now_ms, changed = self.now_ms(), 0
            self._suppressed[self._hash(visitor_id)] = Suppression(None, FORGOTTEN, now_ms)
            for book in self._books.values():
                book.excluded -= {visitor_id}
                for row in [row for row in book.rows.values() if row.visitor_id == visitor_id]:
                    self._forget(book, row, now_ms)
                    changed += 1
            return changed

    def scrub_variables(self, before_ms: int) -> int:
        """See :meth:`Ledger.scrub_variables`."""
        with self._lock:
            done = 0
            for book in self._books.values():
                for row in list(book.rows.values()):
                    over = row.state not in (State.PENDING, State.SENDING) and row.at_ms < before_ms
                    if over and row.variables is not None:
                        book.put(replace(row, variables=None))
                        done += 1
            return done

    def purge(self, campaign_id: str) -> Refusal | None:
        """See :meth:`Ledger.purge`."""
        with self._lock:
            book = self._book(campaign_id)
            if refusal := purge_refusal(book.campaign.status, book.lease_until_ms(), self.now_ms()):
                return refusal
            self._purged_claims += book.campaign.claims
            for at in [at for at in self._touched if at[0] == campaign_id]:
                self._untouch(at)
            del self._books[campaign_id]
            return None

    def _book(self, campaign_id: str) -> _Book:
        try:
            return self._books[campaign_id]
        except KeyError:
            raise UnknownCampaign(campaign_id) from None

    def _hash(self, value: str) -> str:
        return keyed_hash(self._secret, value)

    def _forgotten_key(self, key: str) -> str:
        return "#" + self._hash(key)

    def _grant(self, use: QuotaUse, now_ms: int) -> Granted:
        quota, permits = paced(use, self._quotas.get((use.account, use.bucket), Quota()), now_ms)
        self._quotas[use.account, use.bucket] = quota = held(use, quota, now_ms, begun=permits)
        return Granted(now_ms, quota, permits)

    def _change(self, book: _Book, row: Delivery, undo: list[Callable[[], None]]) -> None:
        undo.append(partial(book.put, book.rows[row.rank]))
        book.put(row)
        place = self._touched.get((book.campaign.campaign_id, row.rank))
        if place is not None and row.state in (State.PENDING, State.FAILED, State.SKIPPED):
            at = (book.campaign.campaign_id, row.rank)
            undo.append(partial(self._touch, at, place, self._touches[place][at]))
            self._untouch(at)

    def _record(
        self, book: _Book, results: Sequence[Result], undo: list[Callable[[], None]], now_ms: int
    ) -> int:
        recorded = 0
        for result in results:
            row = book.rows.get(result.rank)
            if row is None:
                continue
            first = row.message_ids[0] if row.message_ids else None
            change = transition(row.state, row.claim, first, result)
            if change is None:
                continue
            others = row.message_ids[1:]
            if change.extra is not None and change.extra not in others:
                others = (*others, change.extra)
            after = replace(
                row,
                state=change.state,
                message_ids=(change.message_id, *others) if change.message_id else (),
                text_hash=result.text_hash or row.text_hash,
                reason=result.reason if change.state is result.state else row.reason,
                at_ms=now_ms,
            )
            self._change(book, after, undo)
            recorded += 1
        return recorded

    def _sweep(self, book: _Book, undo: list[Callable[[], None]], now_ms: int) -> int:
        late = [book.rows[rank] for rank in book.sending if book.rows[rank].lease_until_ms <= now_ms]
        for row in late:
            self._change(book, replace(row, state=State.IN_DOUBT, reason=LEASE_EXPIRED, at_ms=now_ms), undo)
        return len(late)

    def _claim(
        self, book: _Book, cycle: Cycle, permits: int, undo: list[Callable[[], None]], now_ms: int
    ) -> tuple[list[Delivery], dict[str, int]]:
        claimed: list[Delivery] = []
        skipped: Counter[str] = Counter()
        campaign = book.campaign
        if campaign.status is not CampaignStatus.RUNNING or campaign.enrolled_at_ms is None:
            permits = 0
        for zone in list(book.pending) if cycle.zones is None else cycle.zones:
            while len(claimed) < permits and skipped.total() < SKIPPED_AT_ONCE:
                rank = book.first_pending(zone)
                if rank is None:
                    break
                if campaign.limit_rank is not None and rank > campaign.limit_rank:
                    break
                row = book.rows[rank]
                reason = self._skip_reason(book, cycle, row, now_ms)
                if reason is not None:
                    self._change(book, replace(row, state=State.SKIPPED, reason=reason, at_ms=now_ms), undo)
                    if reason == FORGOTTEN:
                        self._erase(book, book.rows[rank], undo)
                    skipped[reason] += 1
                    continue
                row = replace(
                    row,
                    state=State.SENDING,
                    reason=None,
                    claim=cycle.token,
                    lease_until_ms=now_ms + round(cycle.lease_seconds * 1000),
                    revision=campaign.revision,
                    at_ms=now_ms,
                )
                self._change(book, row, undo)
                claimed.append(row)
                if cycle.cap is not None:
                    at = (campaign.campaign_id, rank)
                    self._touch(at, (cycle.cap.group, self._hash(row.visitor_id or "")), now_ms)
                    undo.append(partial(self._untouch, at))
        return claimed, dict(skipped)

    def _forget(self, book: _Book, row: Delivery, now_ms: int) -> None:
        if row.state is State.PENDING:
            row = replace(row, state=State.SKIPPED, reason=FORGOTTEN, at_ms=now_ms)
        self._erase(book, row, [])

    def _erase(self, book: _Book, row: Delivery, undo: list[Callable[[], None]]) -> None:
        if row.visitor_id is None:
            return
        key = self._forgotten_key(row.key)
        undo.append(partial(book.ranks.__setitem__, row.key, row.rank))
        del book.ranks[row.key]
        book.ranks[key] = row.rank
        self._change(book, replace(row, key=key, visitor_id=None, variables=None), undo)

    def _skip_reason(self, book: _Book, cycle: Cycle, row: Delivery, now_ms: int) -> str | None:
        if row.visitor_id is None:
            return FORGOTTEN
        hashed = self._hash(row.visitor_id)
        if (suppression := self._suppressed.get(hashed)) is not None:
            return FORGOTTEN if suppression.visitor_id is None else "suppressed"
        if row.visitor_id in book.excluded:
            return "excluded"
        if cycle.cap is not None:
            since = now_ms - cycle.cap.within_seconds * 1000
            touches = sum(at > since for at in self._touches[cycle.cap.group, hashed].values())
            if touches >= cycle.cap.at_most:
                return "frequency_cap"
        return cycle.screen(row) if cycle.screen is not None else None

    def _touch(self, at: tuple[str, int], place: tuple[str, str], now_ms: int) -> None:
        self._touches[place][at] = now_ms
        self._touched[at] = place

    def _untouch(self, at: tuple[str, int]) -> None:
        place = self._touched.pop(at, None)
        if place is not None:
            del self._touches[place][at]

    def _again(self, book: _Book, row: Delivery) -> None:
        book.put(replace(row, state=State.PENDING, reason=None, at_ms=self.now_ms()))
        self._untouch((book.campaign.campaign_id, row.rank))
        if book.campaign.status is CampaignStatus.FINISHED:
            book.campaign = replace(book.campaign, status=CampaignStatus.RUNNING)


def _delivery(row: Enrolment, rank: int, now_ms: int) -> Delivery:
    return Delivery(
        rank=rank,
        key=row.key,
        visitor_id=row.visitor_id,
        variables=row.variables,
        timezone=row.timezone,
        locale=row.locale,
        variant=row.variant,
        state=State.PENDING if row.skip is None else State.SKIPPED,
        reason=row.skip,
        at_ms=now_ms,
    )
