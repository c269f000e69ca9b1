"""Decides what a campaign does next: send, edit, delete, wait, or be done; it never sleeps and never speaks HTTP.

Whoever drives it asks :meth:`Engine.next`, performs the requests it is handed, and hands their outcomes to
:meth:`Engine.take`. Every call is one or a few transactions of the ledger, so that the process may die between
any two of them: nobody is written to twice, nobody is forgotten, and what was under way is in doubt by name. What
it doesn't know: how a request is made, and what its errors mean.
"""

from __future__ import annotations

import hashlib
import random as random_module
import re
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from fnmatch import translate
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_sib.campaign.announcement import (
    Announcement,
    Enroller,
    RecipientError,
    window_state,
)
from airflow_provider_sib.campaign.audience import BadRow, Row
from airflow_provider_sib.campaign.ledger import (
    LEASE_EXPIRED,
    Backlog,
    Campaign,
    CampaignStatus,
    Cap,
    Cycle,
    Cycled,
    Delivery,
    EditCycle,
    Edited,
    EditorBusy,
    EditResult,
    Enrolled,
    Enrolment,
    Granted,
    Json,
    Ledger,
    LedgerError,
    QuotaUse,
    Refusal,
    RefusalKind,
    Result,
    State,
    Text,
    new_token,
)
from airflow_provider_sib.campaign.pacing import Rate, Seen, opening, pace
from airflow_provider_sib.campaign.report import hours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from airflow_provider_sib.campaign import FrequencyCap, SendWindow

NOT_ALLOWED = "allowed_visitors"
"""Reason of those who are skipped since the connection doesn't allow them."""

NO_TIMEZONE = "timezone_unknown"
"""Reason of those who are skipped since nobody knows when their window is open."""

NOT_AFTER = "not_after"
"""Reason of those who are skipped since it is too late."""

WITHDRAWN = "withdrawn"
"""Reason of those who are skipped since the announcement was taken back."""

UNRENDERABLE = "text_not_rendered"
"""Reason of those who failed since the newest text can't be made for them."""

NO_MESSAGE_ID = "message_id_unknown"
"""Reason of those whose message can't be changed, having been settled by hand without its id."""

IN_A_ROW = 3
"""Requests without an answer, one after the other, after which to wait and look before the next message."""

FEWEST_OUTCOMES = 20
"""Outcomes of a run before its share of failures counts, except at its end."""

LONGEST_OUTAGE_WAIT_SECONDS = 900.0

BAD_ROWS_NAMED = 20


uptime: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
"""Reads a clock in seconds that never jumps, and goes on while the machine is suspended, where there is one."""


# What a driver is handed, and what it gives back. A request is equal to itself only: each is made once.


@dataclass(frozen=True, slots=True, eq=False)
class Post:
    """Send a message."""

    rank: int
    claim: int
    visitor_id: str
    text: str
    text_hash: str
    agent_id: str | None
    group_id: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Put:
    """Give a message another text."""

    rank: int
    message_id: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Delete:
    """Delete a message."""

    rank: int
    message_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """Ask for a message, to see whether it is there, or (None: for one that can't be) whether Brevo answers."""

    rank: int | None = None
    message_id: str | None = None


Request = Post | Put | Delete | Look


class Fate(StrEnum):
    """What became of a request."""

    DONE = "done"
    """Carried out."""
    GONE = "gone"
    """There is no such thing (404)."""
    REFUSED = "refused"
    """Refused for what it says (other 4xx): repeating it can't help, other requests may fare better."""
    UNAUTHORIZED = "unauthorized"
    """Refused for who asks: no request will fare better."""
    LIMITED = "limited"
    """Refused since the quota is used up (429)."""
    UNBEGUN = "unbegun"
    """Not begun: too late, or told to stop."""
    UNREACHED = "unreached"
    """Begun, and surely not carried out."""
    UNKNOWN = "unknown"
    """Nobody knows."""


_STATES = {
    Fate.DONE: State.SENT,
    Fate.GONE: State.FAILED,
    Fate.REFUSED: State.FAILED,
    Fate.UNKNOWN: State.IN_DOUBT,
}
"""What a message's fate makes of its row; any other sends it back."""

_ANSWERED = frozenset({Fate.DONE, Fate.GONE, Fate.REFUSED, Fate.UNAUTHORIZED, Fate.LIMITED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one request.

    :param request: the very one that was handed out.
    :param fate: how it ended.
    :param began_at: when it began, on the engine's clock.
    :param ended_at: when it ended.
    :param made: whether a request was made at all.
    :param message_id: of a message that was sent.
    :param reason: a code for a fate that isn't ``DONE``; never a visitor's data.
    :param error: what to show when the campaign stops for it.
    :param limit: requests per window, if the answer told.
    :param remaining: requests left, if told.
    :param reset_in_seconds: seconds left of the window, if told.
    """

    request: Request
    fate: Fate
    began_at: float
    ended_at: float
    made: bool = True
    message_id: str | None = None
    reason: str | None = None
    error: Exception | None = None
    limit: int | None = None
    remaining: int | None = None
    reset_in_seconds: float | None = None

    def seen(self, now: float) -> Seen:
        """Return what it told about the quota.

        :param now: the engine's clock.
        """
        return Seen(
            begun_ago=max(0.0, now - self.began_at),
            ended_ago=max(0.0, now - self.ended_at),
            limit=self.limit,
            remaining=self.remaining,
            reset_in_seconds=self.reset_in_seconds,
            refused=self.fate is Fate.LIMITED,
            spent=self.made and self.fate is not Fate.UNREACHED,
        )


@dataclass(frozen=True, slots=True)
class Send:
    """Perform these requests, all at once if you can, and tell of each.

    :param requests: what to do.
    :param begin_by: on the engine's clock; later none is begun, since the ledger's lease would end before it does.
    """

    requests: tuple[Request, ...]
    begin_by: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again when a request in flight has ended, or after so many seconds.

    :param reason: why: ``in_flight``, ``quota``, ``probe``, ``send_window``, ``paused``, ``outage``, ``sending``
        (another worker's messages are under way), ``editor`` (another task edits this campaign).
    :param seconds: until when there is nothing to do; None: until somebody acts, or a request ends.
    :param until_ms: the same as a moment of the ledger's clock.
    """

    reason: str
    seconds: float | None = None
    until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """Everything that is due has an outcome.

    :param held_back: whether a larger fraction would reach more.
    """

    held_back: bool = False


@dataclass(frozen=True, slots=True)
class Stopped:
    """The campaign can't go on by itself.

    :param reason: ``aborted``, ``unauthorized``, ``max_failure_share``, or ``interrupted`` by its driver.
    :param error: Brevo's answer, where it is the cause.
    """

    reason: str
    error: Exception | None = None


Step = Send | Wait | Done | Stopped


class Engine(Protocol):
    """What a driver drives. One thread at a time may call it."""

    def take(self, outcomes: Iterable[Outcome]) -> None:
        """Take outcomes in, for the next call of :meth:`next` or :meth:`leave` to record; asks no ledger."""

    def next(self) -> Step:
        """Record what was taken in, and say what to do.

        When it raises :class:`~airflow_provider_sib.campaign.ledger.LedgerUnavailable` nothing is lost: call it
        again. ``Done`` comes when nothing is in flight; after ``Stopped`` no request is handed out any more.
        """

    def leave(self, *, until_ms: int | None = None) -> None:
        """Take leave with nothing in flight: note when somebody means to come back, on the ledger's clock."""

    def unrecorded(self) -> list[tuple[int, str | None]]:
        """Give the rows, and their messages' ids, whose outcomes the ledger has not taken in."""

    def tally(self) -> dict[str, Json]:
        """Count what was done, for a line of progress."""


# Before the first message


class CampaignRefused(Exception):
    """Nothing was sent, and a retry can't help: the author has to choose.

    :param campaign_id: the campaign.
    :param refusal: what the ledger said.
    """

    def __init__(self, campaign_id: str, refusal: Refusal) -> None:
        super().__init__(_refusal_sentence(campaign_id, refusal))
        self.campaign_id = campaign_id
        self.refusal = refusal

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.campaign_id, self.refusal)


def _refusal_sentence(campaign_id: str, refusal: Refusal) -> str:
    match refusal.kind:
        case RefusalKind.UNKNOWN_TEXT:
            return (
                f"Campaign {campaign_id!r} has never had this text, and some may have got another. To change what "
                "it says, also where it was sent already, run UpdateCampaignOperator with the new text; for a new "
                "announcement choose a new campaign_id."
            )
        case RefusalKind.OTHER_BINDING:
            return (
                f"Campaign {campaign_id!r} began with {refusal.name} {refusal.kept!r}, and now it is "
                f"{refusal.given!r}. Who was reached there doesn't count here: go back to what it was, or choose "
                "a new campaign_id."
            )
        case RefusalKind.STATUS:
            return f"Campaign {campaign_id!r} is {refusal.kept}, so it can't be {refusal.given}."


class TooManyBadRows(Exception):
    """The audience has more unusable rows than allowed, so nobody was enrolled.

    :param count: unusable rows.
    :param allowed: ``max_bad_rows``.
    :param named: the first of them.
    """

    def __init__(self, count: int, allowed: int, named: Sequence[BadRow]) -> None:
        listed = "; ".join(f"line {row.line} {row.reason}" for row in named)
        more = f"; and {count - len(named)} more" if count > len(named) else ""
        super().__init__(
            f"{count} row{'s' if count != 1 else ''} of the audience can't be used, and max_bad_rows is {allowed}, "
            f"so nothing is sent: {listed}{more}."
        )
        self.count, self.allowed, self.named = count, allowed, tuple(named)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.count, self.allowed, self.named)


def text_of(announcement: Announcement) -> Text:
    """Put an announcement into the ledger's form."""
    return Text(announcement.digest, announcement.as_dict())


def open_campaign(
    ledger: Ledger,
    campaign_id: str,
    *,
    binding: Mapping[str, str],
    announcement: Announcement | None,
    each_run: bool = False,
    settings: Mapping[str, Json] | None = None,
) -> Campaign:
    """Create a campaign, or go on with it.

    :param binding: what it is bound to for ever: API host, connection, what "once" means.
    :param announcement: what to say; None goes on with what it says by now.
    :param each_run: whether newcomers join.
    :param settings: its rules, for those who look at it from outside.
    :raises CampaignRefused: it began elsewhere, or has never had this text.
    """
    opened = ledger.open_campaign(
        campaign_id,
        binding=binding,
        each_run=each_run,
        text=None if announcement is None else text_of(announcement),
        settings=settings or {},
    )
    if isinstance(opened, Refusal):
        raise CampaignRefused(campaign_id, opened)
    return opened


def enrol(
    ledger: Ledger,
    campaign_id: str,
    rows: Iterable[Row | BadRow],
    enroller: Enroller,
    *,
    max_bad_rows: int = 0,
) -> Enrolled:
    """Take an audience into a campaign, or nobody.

    Each text is rendered once, so that row 7,999 can't fail after eighty hours. A snapshot that is complete is
    not read again.

    :param rows: from :func:`~airflow_provider_sib.campaign.audience.read`.
    :param enroller: draws and renders.
    :param max_bad_rows: unusable rows that are left out without a word.
    :raises TooManyBadRows: when there are more.
    """
    count = 0
    named: list[BadRow] = []

    def usable() -> Iterator[Enrolment]:
        nonlocal count
        for row in rows:
            bad = row
            if isinstance(row, Row):
                try:
                    enrolment = enroller.enrolment(row)
                except RecipientError as error:
                    bad = BadRow(row.line, str(error))
                else:
                    yield enrolment
                    continue
            count += 1
            if len(named) < BAD_ROWS_NAMED and isinstance(bad, BadRow):
                named.append(bad)
        if count > max_bad_rows:
            raise TooManyBadRows(count, max_bad_rows, named)

    return ledger.enrol(campaign_id, usable(), bad_rows=lambda: count)


# Sending


BUCKET = "conversations"
"""Which of an account's limits a campaign's calls count against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is read when sending, not when planning.

    :param account: whose quota; connections of one key share one.
    :param rate: how the quota may be used.
    :param bucket: which of the account's limits.
    :param max_in_flight: rows between intent and result at most.
    :param timeout_seconds: within which a request has ended.
    :param send_window: when, on the visitor's own clock.
    :param frequency_cap: how often at most.
    :param not_after_ms: the moment from which nothing is sent, in milliseconds since 1970.
    :param allowed_visitors: shell patterns of visitor ids; empty: all.
    :param agent_id: in whose name, unless a row's own column ``agent_id`` or ``group_id`` says it.
    :param group_id: the group of which an agent writes, likewise.
    :param max_failure_share: share of a run's outcomes that may be failures and doubts; what a killed sender left in
        doubt is no outcome of it.
    :param resend_doubts: whether those in doubt are written to again; may reach them twice.
    :param outage_wait_seconds: first wait when Brevo doesn't answer; it doubles.
    """

    account: str
    rate: Rate = field(default_factory=Rate)
    bucket: str = BUCKET
    max_in_flight: int = 8
    timeout_seconds: float = 30.0
    send_window: SendWindow | None = None
    frequency_cap: FrequencyCap | None = None
    not_after_ms: int | None = None
    allowed_visitors: tuple[str, ...] = ()
    agent_id: str | None = None
    group_id: str | None = None
    max_failure_share: float = 0.2
    resend_doubts: bool = False
    outage_wait_seconds: float = 60.0

    @property
    def lease_seconds(self) -> float:
        """Seconds after which a claimed row without a result is reported as in doubt."""
        return 2 * self.timeout_seconds + 30

    @property
    def begin_within_seconds(self) -> float:
        """Seconds after it was permitted within which a request has begun, so that it ends before its lease does."""
        return self.timeout_seconds + 15


class _Work:
    """What every engine has: a ledger, a place in the quota, requests in flight, and a sense for outages."""

    def __init__(
        self,
        ledger: Ledger,
        campaign_id: str,
        rules: Rules,
        *,
        clock: Callable[[], float] = uptime,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._ledger = ledger
        self._campaign_id = campaign_id
        self.rules = rules
        self._rate = replace(rules.rate, jitter_seconds=rules.rate.jitter_seconds or random())
        self._clock = clock
        self._random = random
        self._holder = f"{new_token():x}"
        self._flying: set[Request] = set()
        self._ended: list[Outcome] = []
        self._telling = 0
        self._offset_ms = 0.0
        self._granted: Granted | None = None
        self._error: Exception | None = None
        self._outage = _Outage(rules.outage_wait_seconds, random)
        self._announcement: tuple[int, Announcement] | None = None
        self.calls = 0
        """Requests that were made."""

    def take(self, outcomes: Iterable[Outcome]) -> None:
        """See :meth:`Engine.take`."""
        for outcome in outcomes:
            self._take(outcome)

    def _take(self, outcome: Outcome) -> None:
        raise NotImplementedError

    def _now_ms(self) -> int:
        """Estimate the ledger's clock."""
        return round(self._clock() * 1000 + self._offset_ms)

    def _learn(self, granted: Granted) -> None:
        """Take in the ledger's answer to :meth:`_use`."""
        self._granted = granted
        del self._ended[: self._telling]
        self._telling = 0
        self._synchronise(granted.now_ms)

    def _synchronise(self, now_ms: int) -> None:
        self._offset_ms = now_ms - self._clock() * 1000

    def _end(self, outcome: Outcome) -> None:
        """Take in what every outcome has."""
        self._flying.discard(outcome.request)
        self._ended.append(outcome)
        self.calls += outcome.made
        if outcome.fate is Fate.UNAUTHORIZED and self._error is None:
            self._error = outcome.error or RuntimeError("Brevo refuses this connection.")
        self._outage.learn(outcome, self._clock(), self._now_ms())

    def _use(self, wanted: int) -> QuotaUse:
        """Ask for so many requests, telling what was learnt since the last time."""
        now, flying = self._clock(), len(self._flying)
        self._telling = len(self._ended)
        return QuotaUse(
            account=self.rules.account,
            bucket=self.rules.bucket,
            holder=self._holder,
            flying=flying,
            wanted=wanted,
            lease_seconds=self.rules.lease_seconds,
            pace=pace(
                self._rate,
                [outcome.seen(now) for outcome in self._ended],
                holder=self._holder,
                flying=flying,
                wanted=wanted,
                probe_seconds=self.rules.lease_seconds,
            ),
        )

    def _send(self, requests: tuple[Request, ...], asked_at: float) -> Send:
        return Send(requests, asked_at + self.rules.begin_within_seconds)

    def _at_once(self) -> int:
        """Return how many requests more may be in flight, the quota apart."""
        most = 1 if self._outage.slow else self.rules.max_in_flight
        return max(0, most - len(self._flying))

    def _wait(self, reason: str, until_ms: int) -> Wait:
        return Wait(reason, max(0.05, (until_ms - self._now_ms()) / 1000), until_ms)

    def _shut(self) -> Wait:
        """Wait for the quota."""
        assert self._granted is not None  # noqa: S101  permits were asked for before this is called
        found = opening(self._granted.quota, self._granted.now_ms, rate=self._rate)
        return self._wait(found.reason, found.at_ms)

    def _through_outage(self) -> Step | None:
        """Wait, or look, before the next message; None: go on."""
        if not self._outage.open:
            return None
        if self._flying:
            return Wait("in_flight")
        if self._now_ms() < self._outage.again_ms:
            return self._wait("outage", self._outage.again_ms)
        asked_at = self._clock()
        granted = self._ledger.quota(self._use(1))
        self._learn(granted)
        if not granted.permits:
            return self._shut()
        look = Look()
        self._flying.add(look)
        return self._send((look,), asked_at)

    def _texts(self, campaign: Campaign) -> Announcement:
        if self._announcement is None or self._announcement[0] != campaign.revision:
            self._announcement = campaign.revision, Announcement.from_dict(campaign.text.body)
        return self._announcement[1]


class _Outage:
    """Tells a lost answer from an outage, which must not burn the audience.

    After the first request without an answer: one at a time. After a few in a row: wait, and look, before the
    next; longer each time.
    """

    def __init__(self, first_wait_seconds: float, random: Callable[[], float]) -> None:
        self._first = first_wait_seconds
        self._random = random
        self.row = 0
        self.slow = False
        self.again_ms = 0
        self._wait = first_wait_seconds
        self._looked = False
        self._since = float("-inf")

    @property
    def open(self) -> bool:
        """Whether to look before the next message."""
        return self.row >= IN_A_ROW and not self._looked

    def memo(self) -> dict[str, Json]:
        """Give what another process must know to go on."""
        return {"row": self.row, "again_ms": self.again_ms, "wait": self._wait} if self.slow else {}

    def restore(self, memo: Mapping[str, Json]) -> None:
        """Go on where another process was."""
        self.row, self.again_ms = memo.get("row", 0), memo.get("again_ms", 0)
        self._wait = memo.get("wait", self._first)
        self.slow = bool(memo)

    def learn(self, outcome: Outcome, now: float, now_ms: int) -> None:
        """Take an outcome in."""
        if outcome.fate in _ANSWERED:
            if isinstance(outcome.request, Look) and outcome.request.message_id is None:
                self._looked = True
                return
            # An answer to what began before the outage says nothing about after it.
            if outcome.began_at >= self._since:
                self.slow, self.row, self._wait = False, 0, self._first
            elif self.row < IN_A_ROW:
                self.row = 0
        elif outcome.fate is not Fate.UNBEGUN:
            self.row += 1
            self.slow, self._looked, self._since = True, False, now
            if self.row >= IN_A_ROW and (self.again_ms <= now_ms or self.row == IN_A_ROW):
                self.again_ms = now_ms + round(self._wait * (1 + self._random() / 10) * 1000)
                self._wait = min(self._wait * 2, max(self._first, LONGEST_OUTAGE_WAIT_SECONDS))


class SendEngine(_Work):
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
        self._base: dict[str, int] = {}
        self._run: Counter[State] = Counter()
        # Doubts that a sender left who was killed: they say nothing about how Brevo fares.
        self._swept = 0
        self._calls_before = 0
        self._seconds_before = 0.0
        self._started = clock()
        self._resent = 0
        self._wake_ms: int | None = None
        self._zones: _Zones | None = None

    def begin(self, *, resumed: bool, fraction: float = 1.0, retry_failed: bool = False) -> Campaign:
        """Begin a run, or go on with the one that was interrupted to wait.

        :param resumed: whether an earlier call of this run took leave to wait.
        :param fraction: share of the audience that may be sent to by now.
        :param retry_failed: whether those who failed in earlier runs are tried again.
        """
        ledger, campaign_id = self._ledger, self._campaign_id
        campaign = ledger.campaign(campaign_id)
        memo = campaign.memo
        self._outage.restore(memo.get("outage", {}))
        if not (resumed and "base" in memo):
            if retry_failed:
                while ledger.retry(campaign_id, State.FAILED):
                    pass
            if self.rules.resend_doubts:
                while ledger.retry(campaign_id, State.IN_DOUBT):
                    pass
            counts = _by_name(ledger.counts(campaign_id).by_state)
            memo = {"base": counts | {LEASE_EXPIRED: self._lease_expired()}}
        self._base = memo["base"]
        self._calls_before, self._seconds_before = memo.get("calls", 0), memo.get("seconds", 0.0)
        self._resent = memo.get("resent", 0)
        now = _by_name(ledger.counts(campaign_id).by_state) if resumed else self._base
        self._run = Counter(
            {
                state: max(0, now.get(state.name.lower(), 0) - self._base.get(state.name.lower(), 0))
                for state in (State.SENT, State.FAILED, State.IN_DOUBT)
            }
        )
        if resumed:
            self._swept = max(0, self._lease_expired() - self._base.get(LEASE_EXPIRED, 0))
            self._run[State.IN_DOUBT] = max(0, self._run[State.IN_DOUBT] - self._swept)
        # What a fraction lets through depends on how many there are, so it is counted anew each time.
        if campaign.fraction != fraction or (fraction != 1 and not resumed):
            ledger.set_fraction(campaign_id, fraction)
        self._synchronise(ledger.now_ms())
        return ledger.campaign(campaign_id)

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
        undone = self._undone[0].results if self._undone is not None else ()
        return [(result.rank, result.message_id) for result in (*undone, *self._results)]

    def tally(self) -> dict[str, Json]:
        """See :meth:`Engine.tally`: what this run did so far, its earlier parts included."""
        quota = None if self._granted is None else self._granted.quota
        return {
            "sent": self._run[State.SENT],
            "failed": self._run[State.FAILED],
            "in_doubt": self._run[State.IN_DOUBT] + self._swept,
            "calls": self._calls_before + self.calls,
            "seconds": self._seconds(),
            "quota_limit": None if quota is None else quota.limit,
            "quota_left": None if quota is None else quota.remaining,
        }

    def result(self) -> dict[str, Json]:
        """Count what this run did, by comparing the ledger with what it was when the run began."""
        now = _by_name(self._ledger.counts(self._campaign_id).by_state)
        gained = {
            name: now.get(name, 0) - self._base.get(name, 0)
            for name in ("sent", "failed", "in_doubt", "skipped")
        }
        tally = self.tally()
        return {**gained, "calls": tally["calls"], "seconds": tally["seconds"]}

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

    def _lease_expired(self) -> int:
        """Count the doubts that killed senders have left."""
        left = self._ledger.deliveries(self._campaign_id, states=[State.IN_DOUBT], reasons=[LEASE_EXPIRED])
        return sum(1 for _ in left)

    def _memo(self) -> dict[str, Json]:
        """Give what somebody who goes on with this run must know."""
        return {
            "base": self._base,
            "resent": self._resent,
            "outage": self._outage.memo(),
            "calls": self._calls_before + self.calls,
            "seconds": self._seconds(),
        }

    def _seconds(self) -> float:
        return round(self._seconds_before + self._clock() - self._started, 3)

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
                memo=self._memo(),
            )
            self._undone = cycle, self._clock()
        # The same cycle again when it is not known whether it was committed: its token finds its rows.
        cycled = self._ledger.cycle(self._undone[0])
        self._claimed_at = self._undone[1]
        self._asked = self._undone[0].quota.wanted > 0
        self._undone = None
        self._learn(cycled.granted)
        self._swept += cycled.swept
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
        # An outage that hit the last ones keeps nobody waiting.
        if self._outage.open and (self._flying or self._ledger.backlog(self._campaign_id).zones):
            step = self._through_outage()
            if step is not None:
                return step
        if self._flying and not self._at_once():
            return Wait("in_flight")
        if self._asked and not cycled.granted.permits:
            return self._shut()
        return self._rest(cycled)

    def _rest(self, cycled: Cycled) -> Step | None:
        """Look what is left to do."""
        rules, now_ms = self.rules, cycled.now_ms
        if rules.not_after_ms is not None and now_ms >= rules.not_after_ms:
            while self._ledger.skip_pending(self._campaign_id, NOT_AFTER):
                pass
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


# Changing what was sent


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


class _EditEngine(_Work):
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
            if not self._error and not self._outage.open:
                self._fill()
            wanted = 0 if self._error or self._outage.open else min(self._at_once(), len(self._queue))
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
        """See :meth:`Engine.tally`: what this process did."""
        return {
            "changed": self._changed,
            "untouched": self._untouched,
            "gone": self._gone,
            "failed": dict(self._failed),
            "calls": self.calls,
        }

    # What differs

    _calls_per_message = 1

    def _read(self, campaign: Campaign, after: int) -> list[Delivery]:
        raise NotImplementedError

    def _plan(self, row: Delivery, campaign: Campaign) -> _Plan | EditResult:
        """Say which requests a row needs, or its result when it needs none."""
        raise NotImplementedError

    def _result(self, plan: _Plan) -> EditResult:
        """Say what to record of a row whose requests were carried out."""
        raise NotImplementedError

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
                self._tries[request] += 1
                if self._tries[request] < IN_A_ROW:
                    self._queue.appendleft(request)
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

    def _idle(self, wanted: int) -> Step | None:
        if self._error:
            return Stopped("unauthorized", self._error)
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
            return Done()
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

    def begin(self, announcement: Announcement | None) -> Campaign:
        """Make this the campaign's text.

        :param announcement: what it says from now on; None, when going on: what it says by now.
        """
        if announcement is None:
            campaign = self._ledger.campaign(self._campaign_id)
        else:
            campaign = self._ledger.revise(self._campaign_id, text_of(announcement))
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
        if hashed == row.text_hash:
            return EditResult(row.rank, State.SENT, row.message_ids, revision=campaign.revision)
        if not row.message_ids:
            return EditResult(row.rank, State.SENT, (), reason=NO_MESSAGE_ID)
        puts: set[Request] = {Put(row.rank, message_id, text) for message_id in row.message_ids}
        return _Plan(row, campaign.revision, hashed, puts)

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


def text_hash(text: str) -> str:
    """Hash a rendered text: 32 hexadecimal digits; equal texts need no edit."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _own(variables: Mapping[str, Json], column: str) -> str | None:
    """Give a row's own agent or group; blank is none."""
    value = variables.get(column)
    return value if isinstance(value, str) and value.strip() else None


def _by_name(counts: Mapping[State, int]) -> dict[str, int]:
    return {state.name.lower(): count for state, count in counts.items()}
