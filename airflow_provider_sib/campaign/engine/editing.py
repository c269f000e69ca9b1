"""Changes what was sent: gives it another text, or takes it back."""

from __future__ import annotations

import random as random_module
from abc import abstractmethod
from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.announcement import Announcement, RecipientError
from airflow_provider_sib.campaign.engine.opening import text_of
from airflow_provider_sib.campaign.engine.steps import (
    Delete,
    Done,
    Fate,
    Look,
    Outcome,
    Put,
    Request,
    Step,
    Stopped,
    Wait,
    uptime,
)
from airflow_provider_sib.campaign.engine.work import (
    FEWEST_OUTCOMES,
    IN_A_ROW,
    UNRENDERABLE,
    Rules,
    Work,
    text_hash,
)
from airflow_provider_sib.campaign.ledger import (
    Campaign,
    Delivery,
    EditCycle,
    Edited,
    EditorBusy,
    EditResult,
    Json,
    Ledger,
    State,
    Text,
    new_token,
)
from airflow_provider_sib.campaign.report import hours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


WITHDRAWN = "withdrawn"
"""Reason of those who are skipped since the announcement was taken back."""

NO_MESSAGE_ID = "message_id_unknown"
"""Reason of those whose message can't be changed, having been settled by hand without its id."""


@dataclass(frozen=True, slots=True)
class Price:
    """What an edit or a withdrawal will cost.

    :param calls: requests.
    :param hours: until the last of them, at what the quota allows.
    :param untouched: rows that need no request.
    """

    calls: int
    hours: float
    untouched: int


@dataclass(slots=True)
class _Plan:
    """The requests one row needs, and what became of them so far."""

    row: Delivery
    revision: int | None
    text_hash: str | None
    open: set[Request]
    gone: int = 0
    failed: str | None = None


class _EditEngine(Work):
    """Changes messages that were sent, row by row, until a whole pass finds nothing left to change.

    One at a time per campaign, since a late PUT of revision 2 would overwrite 3; safe beside a running send.
    """

    def __init__(
        self,
        ledger: Ledger,
        campaign_id: str,
        rules: Rules,
        *,
        clock: Callable[[], float] = uptime,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        super().__init__(ledger, campaign_id, rules, clock=clock, random=random)
        self._editor = new_token()
        self._revision = 0
        self._queue: deque[Request] = deque()
        self._plans: dict[int, _Plan] = {}
        self._tries: Counter[Request] = Counter()
        self._results: list[EditResult] = []
        self._after: int | None = -1
        self._met = 0
        self._settled = False
        self._old_leases_end_ms: int | None = None
        self._given_up: set[int] = set()
        self._failed: Counter[str] = Counter()
        self._changed = self._untouched = self._gone = 0
        self._calls_before, self._seconds_before = 0, 0.0
        self._started = clock()

    def go_on(self, tally: Mapping[str, Json]) -> None:
        """Go on counting where an earlier part of this run took leave to wait.

        Its failures are met again, and so are not counted twice.

        :param tally: of that part.
        """
        self._changed, self._gone = tally["changed"], tally["gone"]
        self._untouched = tally["untouched"]
        self._calls_before, self._seconds_before = tally["calls"], tally["seconds"]

    def price(self) -> Price:
        """Count what is to be done, without doing it; a pass over all that was sent."""
        calls = untouched = 0
        campaign = self._ledger.campaign(self._campaign_id)
        for page in self._pages(campaign):
            for row in page:
                plan = self._plan(row, campaign)
                requests = len(plan.open) * self._calls_per_message if isinstance(plan, _Plan) else 0
                calls += requests
                untouched += not requests
        granted = self._ledger.quota(self._use(0))
        self._learn(granted)
        quota, rate = granted.quota, self._rate
        limit = quota.limit or rate.requests_per_hour or 100
        usable = limit - rate.kept_back(limit)
        left = usable
        if quota.remaining is not None and (quota.reset_at_ms or 0) > granted.now_ms:
            left = max(0, quota.remaining - rate.kept_back(limit))
        return Price(calls, hours(calls, usable, left=left), untouched)

    def next(self) -> Step:
        """See :meth:`Engine.next`."""
        while True:
            held = bool(self._error) or self._outage.open or self._broken(FEWEST_OUTCOMES)
            if not held:
                self._fill()
            wanted = 0 if held else min(self._at_once(), len(self._queue))
            asked_at = self._clock()
            edited = self._edit(wanted)
            if isinstance(edited, EditorBusy):
                return Wait("in_flight") if self._flying else self._wait("editor", edited.until_ms)
            if edited.granted.permits:
                if edited.campaign.revision != self._revision:
                    # Planned with an older text, which must not overwrite a newer one.
                    self._restart(edited.campaign.revision)
                    continue
                requests = tuple(self._queue.popleft() for _ in range(edited.granted.permits))
                self._flying.update(requests)
                return self._send(requests, asked_at)
            if not self._results and (step := self._idle(wanted)) is not None:
                return step

    def leave(self, *, until_ms: int | None = None) -> None:  # noqa: ARG002  an editor has no moment of its own
        """See :meth:`Engine.leave`: somebody else may edit."""
        self._edit(0, lease_seconds=0)

    def unrecorded(self) -> list[tuple[int, str | None]]:
        """See :meth:`Engine.unrecorded`."""
        return [(result.rank, ", ".join(result.message_ids) or None) for result in self._results]

    def tally(self) -> dict[str, Json]:
        """See :meth:`Engine.tally`: what this run did so far, its earlier parts included."""
        quota = None if self._granted is None else self._granted.quota
        return {
            "changed": self._changed,
            "untouched": self._untouched,
            "gone": self._gone,
            "failed": dict(self._failed),
            "calls": self._calls_before + self.calls,
            "seconds": round(self._seconds_before + self._clock() - self._started, 3),
            "quota_limit": None if quota is None else quota.limit,
            "quota_left": None if quota is None else quota.remaining,
        }

    # What differs

    _calls_per_message = 1

    @abstractmethod
    def _read(self, campaign: Campaign, after: int) -> list[Delivery]:
        """Read some of the rows that may need a change, by rank."""

    @abstractmethod
    def _plan(self, row: Delivery, campaign: Campaign) -> _Plan | EditResult:
        """Say which requests a row needs, or its result when it needs none."""

    @abstractmethod
    def _result(self, plan: _Plan) -> EditResult:
        """Say what to record of a row whose requests were carried out."""

    def _follow(self, request: Request) -> Request | None:  # noqa: ARG002  for those who verify
        """Say which request follows one that was carried out."""
        return None

    # What is the same

    def _pages(self, campaign: Campaign) -> Iterator[list[Delivery]]:
        after = -1
        while page := self._read(campaign, after):
            yield page
            after = page[-1].rank

    def _fill(self) -> None:
        """Plan rows until there is enough to do, or the pass is over."""
        while self._after is not None and len(self._queue) < self.rules.max_in_flight:
            if len(self._results) >= 500:
                return
            campaign = self._ledger.campaign(self._campaign_id)
            if campaign.revision != self._revision:
                self._restart(campaign.revision)
            page = self._read(campaign, self._after)
            self._after = page[-1].rank if page else None
            for row in page:
                if row.rank in self._given_up or row.rank in self._plans:
                    continue
                self._met += 1
                plan = self._plan(row, campaign)
                if isinstance(plan, EditResult):
                    self._record(plan)
                    continue
                self._plans[row.rank] = plan
                self._queue.extend(sorted(plan.open, key=repr))

    def _restart(self, revision: int) -> None:
        """Plan anew for a newer text; what is in flight ends as it was planned, and is met again."""
        self._revision = revision
        flying = {request.rank for request in self._flying}
        self._queue = deque(request for request in self._queue if request.rank in flying)
        self._plans = {rank: plan for rank, plan in self._plans.items() if rank in flying}
        self._given_up.clear()
        self._failed.clear()
        self._after = -1

    def _record(self, result: EditResult) -> None:
        self._results.append(result)
        if result.revision is None and result.state is State.SENT:
            self._given_up.add(result.rank)
            self._failed[result.reason or "unknown"] += 1

    def _take(self, outcome: Outcome) -> None:
        self._end(outcome)
        request = outcome.request
        if request.rank is None:
            return
        plan = self._plans[request.rank]
        match outcome.fate:
            case Fate.UNAUTHORIZED:
                return
            case Fate.LIMITED | Fate.UNBEGUN | Fate.UNREACHED:
                self._queue.appendleft(request)
                return
            case Fate.UNKNOWN:
                # What opens an outage says nothing of this message.
                self._tries[request] += self._outage.row != IN_A_ROW
                if self._tries[request] < IN_A_ROW:
                    self._queue.append(request)
                    return
                plan.failed = outcome.reason or "no_answer"
            case Fate.REFUSED:
                plan.failed = outcome.reason or "refused"
            case Fate.GONE:
                plan.gone += not isinstance(request, Look)
            case Fate.DONE if isinstance(request, Look):
                plan.failed = "still_there"
            case Fate.DONE:
                follow = self._follow(request)
                if follow is not None:
                    plan.open.add(follow)
                    self._queue.appendleft(follow)
        plan.open.discard(request)
        self._tries.pop(request, None)
        if not plan.open:
            del self._plans[request.rank]
            self._close(plan)

    def _close(self, plan: _Plan) -> None:
        if plan.failed is not None:
            ids = plan.row.message_ids
            self._record(EditResult(plan.row.rank, State.SENT, ids, reason=plan.failed))
            return
        result = self._result(plan)
        gone = plan.gone == len(plan.row.message_ids)
        self._gone += gone
        self._changed += not gone
        self._record(replace(result, reason="gone") if gone else result)

    def _edit(self, wanted: int, lease_seconds: float | None = None) -> Edited | EditorBusy:
        results = tuple(self._results)
        edited = self._ledger.edit(
            EditCycle(
                campaign_id=self._campaign_id,
                editor=self._editor,
                quota=self._use(wanted),
                lease_seconds=self.rules.lease_seconds if lease_seconds is None else lease_seconds,
                results=results,
            )
        )
        if isinstance(edited, Edited):
            self._learn(edited.granted)
            del self._results[: len(results)]
        return edited

    def _broken(self, fewest: int) -> bool:
        # What has no id can't be changed by anybody, as a doubt can't: that is no sign of how Brevo fares.
        bad = self._failed.total() - self._failed[NO_MESSAGE_ID]
        outcomes = bad + self._changed + self._gone
        return outcomes >= fewest and bad > self.rules.max_failure_share * outcomes

    def _idle(self, wanted: int) -> Step | None:
        if self._error:
            return Stopped("unauthorized", self._error)
        if self._broken(FEWEST_OUTCOMES):
            return Wait("in_flight") if self._flying else Stopped("max_failure_share")
        if (step := self._through_outage()) is not None:
            return step
        if self._flying:
            return Wait("in_flight")
        if self._queue:
            return self._shut() if wanted else None
        if self._after is not None:
            return None
        # The pass is over. It was the last one if it found nothing, and nobody was sending an older text.
        if self._settled and not self._met:
            return Stopped("max_failure_share") if self._broken(1) else Done()
        self._after, self._met = -1, 0
        return self._settle()

    def _settle(self) -> Wait | None:
        """Wait until what was claimed before this engine began has become a message or a doubt."""
        if self._settled:
            return None
        backlog = self._ledger.backlog(self._campaign_id)
        if self._old_leases_end_ms is None:
            self._old_leases_end_ms = backlog.lease_until_ms or 0
        self._settled = not backlog.sending or backlog.now_ms > self._old_leases_end_ms
        if self._settled:
            return None
        self._synchronise(backlog.now_ms)
        return self._wait("sending", min(self._old_leases_end_ms + 100, backlog.now_ms + 5000))


class UpdateEngine(_EditEngine):
    """Edits what was sent with an older text; pending rows get the newest by themselves.

    A row whose newest text is the one it shows costs no request.
    """

    _between: tuple[int, dict[int, Announcement]] | None = None

    def begin(self, announcement: Announcement | None, *, by: str | None = None) -> Campaign:
        """Make this the campaign's text.

        :param announcement: what it says from now on; None, when going on: what it says by now.
        :param by: names who makes it, through all tries. Who has made this very text already goes on with the newest:
            a try that comes after another's newer text must not put the older one back.
        """
        made = by is not None and any(
            revision.text.body.get("by") == by
            for revision in self._ledger.revisions(self._campaign_id)
            if announcement is not None and revision.text.digest == announcement.digest
        )
        if announcement is None or made:
            campaign = self._ledger.campaign(self._campaign_id)
        else:
            text = text_of(announcement)
            if by is not None:
                text = Text(text.digest, {**text.body, "by": by})
            campaign = self._ledger.revise(self._campaign_id, text)
        self._revision = campaign.revision
        self._synchronise(self._ledger.now_ms())
        return campaign

    def _read(self, campaign: Campaign, after: int) -> list[Delivery]:
        return self._ledger.sent(self._campaign_id, below_revision=campaign.revision, after=after)

    def _plan(self, row: Delivery, campaign: Campaign) -> _Plan | EditResult:
        try:
            text = self._texts(campaign).render(row, row.variant)
        except RecipientError:
            return EditResult(row.rank, State.SENT, row.message_ids, reason=UNRENDERABLE)
        hashed = text_hash(text)
        if hashed == row.text_hash and not self._may_show_another(row, campaign):
            return EditResult(row.rank, State.SENT, row.message_ids, revision=campaign.revision)
        if not row.message_ids:
            return EditResult(row.rank, State.SENT, (), reason=NO_MESSAGE_ID)
        puts: set[Request] = {Put(row.rank, message_id, text) for message_id in row.message_ids}
        return _Plan(row, campaign.revision, hashed, puts)

    def _may_show_another(self, row: Delivery, campaign: Campaign) -> bool:
        """Tell whether an edit to a text in between may have been carried out, and not been recorded."""
        if row.revision == campaign.revision - 1:
            return False
        if self._between is None or self._between[0] != campaign.revision:
            revisions = self._ledger.revisions(self._campaign_id)
            texts = {one.revision: Announcement.from_dict(one.text.body) for one in revisions}
            self._between = campaign.revision, texts
        for revision in range(row.revision + 1, campaign.revision):
            try:
                text = self._between[1][revision].render(row, row.variant)
            except RecipientError:  # nobody could put it there
                continue
            if text_hash(text) != row.text_hash:
                return True
        return False

    def _result(self, plan: _Plan) -> EditResult:
        row = plan.row
        return EditResult(row.rank, State.SENT, row.message_ids, plan.revision, plan.text_hash)

    def _record(self, result: EditResult) -> None:
        self._untouched += result.revision is not None and result.text_hash is None
        super()._record(result)


class WithdrawEngine(_EditEngine):
    """Deletes what was sent; what is gone already counts.

    :param sent_before_ms: only what was sent before this moment; None: all, and the pending are skipped.
    :param verify: whether Brevo is asked for each message afterwards.
    """

    def __init__(
        self,
        ledger: Ledger,
        campaign_id: str,
        rules: Rules,
        *,
        sent_before_ms: int | None = None,
        verify: bool = False,
        clock: Callable[[], float] = uptime,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        super().__init__(ledger, campaign_id, rules, clock=clock, random=random)
        self._sent_before_ms = sent_before_ms
        self._verify = verify
        self._calls_per_message = 2 if verify else 1

    def begin(self) -> Campaign:
        """Skip what is pending, unless only what was sent before some moment is taken back."""
        if self._sent_before_ms is None:
            self._skip()
        campaign = self._ledger.campaign(self._campaign_id)
        self._revision = campaign.revision
        self._synchronise(self._ledger.now_ms())
        return campaign

    def _skip(self) -> None:
        while self._ledger.skip_pending(self._campaign_id, WITHDRAWN):
            pass

    def _settle(self) -> Wait | None:
        if self._sent_before_ms is not None:
            return super()._settle()
        # A running send gives rows back that were refused for the quota, and would send them again.
        self._skip()
        backlog = self._ledger.backlog(self._campaign_id)
        self._settled = not backlog.sending and not backlog.zones
        if self._settled:
            return None
        self._synchronise(backlog.now_ms)
        until_ms = backlog.now_ms if backlog.lease_until_ms is None else backlog.lease_until_ms
        return self._wait("sending", min(until_ms + 100, backlog.now_ms + 5000))

    def _read(self, campaign: Campaign, after: int) -> list[Delivery]:  # noqa: ARG002  the texts don't matter
        return self._ledger.sent(self._campaign_id, sent_before_ms=self._sent_before_ms, after=after)

    def _plan(self, row: Delivery, campaign: Campaign) -> _Plan | EditResult:  # noqa: ARG002  as above
        if not row.message_ids:
            return EditResult(row.rank, State.SENT, (), reason=NO_MESSAGE_ID)
        deletes: set[Request] = {Delete(row.rank, message_id) for message_id in row.message_ids}
        return _Plan(row, None, None, deletes)

    def _result(self, plan: _Plan) -> EditResult:
        return EditResult(plan.row.rank, State.WITHDRAWN, plan.row.message_ids)

    def _follow(self, request: Request) -> Request | None:
        return (
            Look(request.rank, request.message_id) if self._verify and isinstance(request, Delete) else None
        )
