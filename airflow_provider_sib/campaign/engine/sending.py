"""Sends a campaign: to each at most once, at the pace the quota allows, by the rules as they are now."""

from __future__ import annotations

import random as random_module
import re
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import translate
from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.announcement import RecipientError, window_state
from airflow_provider_sib.campaign.engine.steps import Done, Fate, Outcome, Post, Step, Stopped, Wait, uptime
from airflow_provider_sib.campaign.engine.work import (
    FEWEST_OUTCOMES,
    IN_A_ROW,
    UNRENDERABLE,
    Rules,
    Work,
    text_hash,
)
from airflow_provider_sib.campaign.ledger import (
    Backlog,
    Campaign,
    CampaignStatus,
    Cap,
    Cycle,
    Cycled,
    Delivery,
    Json,
    Ledger,
    LedgerError,
    Result,
    State,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from airflow_provider_sib.campaign import SendWindow


NOT_ALLOWED = "allowed_visitors"
"""Reason of those who are skipped since the connection doesn't allow them."""

NO_TIMEZONE = "timezone_unknown"
"""Reason of those who are skipped since nobody knows when their window is open."""

NOT_AFTER = "not_after"
"""Reason of those who are skipped since it is too late."""

_STATES = {
    Fate.DONE: State.SENT,
    Fate.GONE: State.FAILED,
    Fate.REFUSED: State.FAILED,
    Fate.UNKNOWN: State.IN_DOUBT,
}
"""What a message's fate makes of its row; any other sends it back."""


class SendEngine(Work):
    """Sends a campaign: to each at most once, at the pace the quota allows, by the rules as they are now.

    :param ledger: where it is kept.
    :param campaign_id: an opened and enrolled campaign.
    :param rules: what is read when sending.
    :param clock: seconds; see :func:`uptime`.
    :param random: a number from 0 up to 1 at each call.
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
        allowed = "|".join(translate(pattern) for pattern in rules.allowed_visitors)
        self._allowed = re.compile(allowed) if allowed else None
        cap = rules.frequency_cap
        self._cap = None if cap is None else Cap(cap.at_most, cap.within.total_seconds(), cap.group)
        self._results: list[Result] = []
        self._undone: tuple[Cycle, float] | None = None
        self._claimed_at = 0.0
        self._asked = False
        self._run: Counter[State] = Counter()
        # Doubts that a sender left who was killed: they say nothing about how Brevo fares.
        self._swept = 0
        self._calls_before = 0
        self._seconds_before = 0.0
        self._started = clock()
        self._resent = 0
        self._wake_ms: int | None = None
        self._zones: _Zones | None = None
        self._fraction = 1.0

    def begin(self, *, resumed: bool, fraction: float = 1.0, retry_failed: bool = False) -> Campaign:
        """Begin a run, or go on with the one that was interrupted to wait.

        :param resumed: whether an earlier call of this run took leave to wait.
        :param fraction: share of the audience that may be sent to by now.
        :param retry_failed: whether those who failed in earlier runs are tried again.
        """
        ledger, campaign_id = self._ledger, self._campaign_id
        campaign = ledger.campaign(campaign_id)
        self._outage.restore(campaign.memo.get("outage", {}))
        if not resumed:
            if retry_failed:
                while ledger.retry(campaign_id, State.FAILED):
                    pass
            if self.rules.resend_doubts:
                while ledger.retry(campaign_id, State.IN_DOUBT):
                    pass
        self._fraction = fraction
        if resumed:  # somebody may have let more through meanwhile
            fraction = max(fraction, campaign.fraction)
        # What a fraction lets through depends on how many there are, so it is counted anew each time.
        if campaign.fraction != fraction or (fraction != 1 and not resumed):
            ledger.set_fraction(campaign_id, fraction)
        self._synchronise(ledger.now_ms())
        return ledger.campaign(campaign_id)

    def go_on(self, tally: Mapping[str, Json]) -> None:
        """Count on from where the part of this run came to that took leave to wait.

        :param tally: of that part.
        """
        self._swept = tally["lease_expired"]
        self._run = Counter(
            {
                State.SENT: tally["sent"],
                State.FAILED: tally["failed"],
                State.IN_DOUBT: tally["in_doubt"] - self._swept,
                State.SKIPPED: tally["skipped"],
            }
        )
        self._resent = tally["resent"]
        self._calls_before, self._seconds_before = tally["calls"], tally["seconds"]

    def next(self) -> Step:
        """See :meth:`Engine.next`."""
        while True:
            cycled = self._cycle()
            posts = tuple(self._posts(cycled))
            if posts:
                return self._send(posts, self._claimed_at)
            if not self._results and (step := self._idle(cycled)) is not None:
                self._wake_ms = step.until_ms if isinstance(step, Wait) else None
                return step

    def leave(self, *, until_ms: int | None = None) -> None:
        """See :meth:`Engine.leave`."""
        self._wake_ms = until_ms
        while True:
            if self._undone is not None:
                cycle, at = self._undone
                self._undone = replace(cycle, next_wake_ms=until_ms, quota=replace(cycle.quota, wanted=0)), at
            # A cycle that was cut off may have claimed rows, whose requests were never handed out.
            claimed = self._cycle(wanted=0).claimed
            self._results += [Result(row.rank, row.claim, State.PENDING) for row in claimed]
            if not self._results and not self._ended:
                return

    def unrecorded(self) -> list[tuple[int, str | None]]:
        """See :meth:`Engine.unrecorded`."""
        undone = self._undone
        results = (*(() if undone is None else undone[0].results), *self._results)
        return [(result.rank, result.message_id) for result in results]

    def tally(self) -> dict[str, Json]:
        """See :meth:`Engine.tally`: what this run did so far, its earlier parts included."""
        quota = None if self._granted is None else self._granted.quota
        return {
            "sent": self._run[State.SENT],
            "failed": self._run[State.FAILED],
            "in_doubt": self._run[State.IN_DOUBT] + self._swept,
            "lease_expired": self._swept,
            "skipped": self._run[State.SKIPPED],
            "resent": self._resent,
            "calls": self._calls_before + self.calls,
            "seconds": round(self._seconds_before + self._clock() - self._started, 3),
            "quota_limit": None if quota is None else quota.limit,
            "quota_left": None if quota is None else quota.remaining,
        }

    def _take(self, outcome: Outcome) -> None:
        self._end(outcome)
        request = outcome.request
        if not isinstance(request, Post):
            return
        state = _STATES.get(outcome.fate, State.PENDING)
        self._run[state] += 1
        self._results.append(
            Result(
                request.rank,
                request.claim,
                state,
                outcome.message_id,
                request.text_hash if state in (State.SENT, State.IN_DOUBT) else None,
                outcome.reason if state in (State.FAILED, State.IN_DOUBT) else None,
            )
        )

    def _cycle(self, wanted: int | None = None) -> Cycled:
        if self._undone is None:
            if wanted is None:
                wanted = self._wanted()
            zones = self._open_zones() if wanted else None
            if zones is not None and not zones:
                wanted = 0
            results, self._results = tuple(self._results), []
            cycle = Cycle(
                campaign_id=self._campaign_id,
                quota=self._use(wanted),
                lease_seconds=self.rules.lease_seconds,
                results=results,
                zones=zones,
                cap=self._cap,
                screen=self._screen if self._allowed or self.rules.send_window else None,
                next_wake_ms=self._wake_ms,
                memo={"outage": self._outage.memo()},
            )
            self._undone = cycle, self._clock()
        # The same cycle again when it is not known whether it was committed: its token finds its rows.
        cycled = self._ledger.cycle(self._undone[0])
        self._claimed_at = self._undone[1]
        self._asked = self._undone[0].quota.wanted > 0
        self._undone = None
        self._learn(cycled.granted)
        self._swept += cycled.swept
        self._run[State.SKIPPED] += sum(cycled.skipped.values())
        return cycled

    def _wanted(self) -> int:
        too_late = self.rules.not_after_ms is not None and self._now_ms() >= self.rules.not_after_ms
        if self._error or too_late or self._outage.open or self._broken(FEWEST_OUTCOMES):
            return 0
        return self._at_once()

    def _broken(self, fewest: int) -> bool:
        bad = self._run[State.FAILED] + self._run[State.IN_DOUBT]
        outcomes = bad + self._run[State.SENT]
        return outcomes >= fewest and bad > self.rules.max_failure_share * outcomes

    def _screen(self, row: Delivery) -> str | None:
        if self._allowed is not None and self._allowed.match(row.visitor_id or "") is None:
            return NOT_ALLOWED
        if self._zones is not None and row.timezone in self._zones.unknown:
            return NO_TIMEZONE
        return None

    def _open_zones(self) -> Sequence[str | None] | None:
        window = self.rules.send_window
        if window is None:
            return None
        now_ms = self._now_ms()
        if self._zones is None or not self._zones.seen_ms <= now_ms < self._zones.until_ms:
            self._zones = _Zones.look(window, self._ledger.backlog(self._campaign_id), now_ms)
        return self._zones.open

    def _posts(self, cycled: Cycled) -> Iterator[Post]:
        """Make a row's message of each row that was claimed; a row whose text can't be made has failed."""
        if not cycled.claimed:
            return
        announcement = self._texts(cycled.campaign)
        for row in cycled.claimed:
            try:
                text = announcement.render(row, row.variant)
            except RecipientError:
                self._results.append(Result(row.rank, row.claim, State.FAILED, reason=UNRENDERABLE))
                self._run[State.FAILED] += 1
                continue
            variables = row.variables or {}
            agent_id, group_id = _own(variables, "agent_id"), _own(variables, "group_id")
            if agent_id is None and group_id is None:
                agent_id, group_id = self.rules.agent_id, self.rules.group_id
            post = Post(row.rank, row.claim, row.visitor_id or "", text, text_hash(text), agent_id, group_id)
            self._flying.add(post)
            yield post

    def _idle(self, cycled: Cycled) -> Step | None:
        """Say why nothing was claimed; None: try again."""
        match cycled.campaign.status:
            case CampaignStatus.ABORTED:
                return Stopped("aborted")
            case CampaignStatus.PAUSED:
                return Wait("in_flight") if self._flying else Wait("paused")
            case _ if cycled.campaign.enrolled_at_ms is None:
                raise LedgerError(f"Campaign {self._campaign_id!r} has no audience yet.")
        if self._error:
            return Stopped("unauthorized", self._error)
        if self._broken(FEWEST_OUTCOMES):
            return Stopped("max_failure_share")
        # An outage that hit the last ones keeps nobody waiting, nor does a quota that they used up.
        if self._outage.open and (self._flying or self._ledger.backlog(self._campaign_id).zones):
            step = self._through_outage()
            if step is not None:
                return step
        if self._flying and not self._at_once():
            return Wait("in_flight")
        if self._asked and not cycled.granted.permits and self._ledger.backlog(self._campaign_id).zones:
            return self._shut()
        return self._rest(cycled)

    def _rest(self, cycled: Cycled) -> Step | None:
        """Look what is left to do."""
        rules, now_ms = self.rules, cycled.now_ms
        if rules.not_after_ms is not None and now_ms >= rules.not_after_ms:
            while skipped := self._ledger.skip_pending(self._campaign_id, NOT_AFTER, held_back=False):
                self._run[State.SKIPPED] += skipped
        backlog = self._ledger.backlog(self._campaign_id)
        if backlog.zones:
            if cycled.campaign.status is CampaignStatus.FINISHED:
                # Somebody who had been suspended gave rows back after the others were through.
                self._ledger.set_status(self._campaign_id, CampaignStatus.RUNNING)
                return None
            if rules.send_window is None:
                # Others may have been faster.
                return None if cycled.skipped else self._wait("sending", now_ms + 1000)
            before, self._zones = self._zones, _Zones.look(rules.send_window, backlog, now_ms)
            if self._zones.open:
                changed = before is None or before.open != self._zones.open
                return None if changed or cycled.skipped else self._wait("sending", now_ms + 1000)
            return self._wait("send_window", self._zones.opens_ms)
        if self._flying:
            return Wait("in_flight")
        if backlog.sending:
            return self._wait("sending", (backlog.lease_until_ms or now_ms) + 100)
        if rules.resend_doubts and self._resent < IN_A_ROW and self._resend():
            return None
        if backlog.held_back and cycled.campaign.fraction < self._fraction:
            # A canary that began later has narrowed it.
            self._ledger.set_fraction(self._campaign_id, self._fraction)
            return None
        if not backlog.held_back and not self._ledger.finish(self._campaign_id):
            return self._wait("sending", now_ms + 1000)
        return Stopped("max_failure_share") if self._broken(1) else Done(backlog.held_back)

    def _resend(self) -> bool:
        self._resent += 1
        again = 0
        while count := self._ledger.retry(self._campaign_id, State.IN_DOUBT):
            again += count
        self._run[State.IN_DOUBT] = self._swept = 0
        return again > 0


@dataclass(frozen=True, slots=True)
class _Zones:
    """Where the window is open.

    :param open: zones to claim from, the one that closes first first; those that nobody knows, too.
    :param unknown: those of them whose visitors are skipped.
    :param seen_ms: when this was found.
    :param until_ms: until when it holds.
    :param opens_ms: when the next of the others opens.
    """

    open: tuple[str | None, ...]
    unknown: frozenset[str | None]
    seen_ms: int
    until_ms: int
    opens_ms: int

    @classmethod
    def look(cls, window: SendWindow, backlog: Backlog, now_ms: int) -> _Zones:
        now = datetime.fromtimestamp(now_ms / 1000, UTC)
        # Newcomers may bring zones nobody had a minute ago.
        until_ms = now_ms + 60_000
        opens_ms = now_ms + 86_400_000
        unknown, urgent = set(), []
        for zone in backlog.zones:
            state = window_state(window, zone, now)
            if state is None:
                unknown.add(zone)
                urgent.append((0, zone))
                continue
            changes_ms = opens_ms
            if state.changes_at is not None:
                changes_ms = -int(-state.changes_at.timestamp() * 1000 // 1)
            until_ms = min(until_ms, changes_ms)
            if state.is_open:
                urgent.append((changes_ms, zone))
            else:
                opens_ms = min(opens_ms, changes_ms)
        urgent.sort(key=lambda pair: (pair[0], pair[1] or ""))
        return cls(tuple(zone for _, zone in urgent), frozenset(unknown), now_ms, until_ms, opens_ms)


def _own(variables: Mapping[str, Json], column: str) -> str | None:
    """Give a row's own agent or group; blank is none."""
    value = variables.get(column)
    return value if isinstance(value, str) and value.strip() else None
