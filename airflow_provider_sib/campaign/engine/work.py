"""What every engine stands on: the rules, a place in the quota, requests in flight, and a sense for outages."""

from __future__ import annotations

import hashlib
import random as random_module
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.announcement import Announcement
from airflow_provider_sib.campaign.engine.steps import Fate, Look, Outcome, Request, Send, Step, Wait, uptime
from airflow_provider_sib.campaign.ledger import Campaign, Granted, Json, Ledger, QuotaUse, new_token
from airflow_provider_sib.campaign.pacing import Rate, opening, pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from airflow_provider_sib.campaign import FrequencyCap, SendWindow


UNRENDERABLE = "text_not_rendered"
"""Reason of those who failed since the newest text can't be made for them."""

IN_A_ROW = 3
"""Requests without an answer, one after the other, after which to wait and look before the next message."""

FEWEST_OUTCOMES = 20
"""Outcomes of a run before its share of failures counts, except at its end."""

FIRST_OUTAGE_WAIT_SECONDS = 60.0
"""Wait when Brevo doesn't answer; it doubles each time."""

LONGEST_OUTAGE_WAIT_SECONDS = 900.0

BUCKET = "conversations"
"""Which of an account's limits a campaign's calls count against."""

_ANSWERED = frozenset({Fate.DONE, Fate.GONE, Fate.REFUSED, Fate.UNAUTHORIZED, Fate.LIMITED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is read when sending, not when planning.

    :param account: whose quota; connections of one key share one.
    :param rate: how the quota may be used.
    :param max_in_flight: rows between intent and result at most.
    :param timeout_seconds: within which a request has ended.
    :param send_window: when, on the visitor's own clock.
    :param frequency_cap: how often at most.
    :param not_after_ms: the moment from which nothing is sent, in milliseconds since 1970.
    :param allowed_visitors: shell patterns of visitor ids; empty: all.
    :param agent_id: in whose name, unless a row's own column ``agent_id`` or ``group_id`` says it.
    :param group_id: the group of which an agent writes, likewise.
    :param max_failure_share: share of a run's outcomes that may be failures and doubts; what a killed sender left in
        doubt is no outcome of it. Of an edit: share of the messages it had to change that Brevo did not let it.
    :param resend_doubts: whether those in doubt are written to again; may reach them twice.
    """

    account: str
    rate: Rate = field(default_factory=Rate)
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

    @property
    def lease_seconds(self) -> float:
        """Seconds after which a claimed row without a result is reported as in doubt."""
        return 2 * self.timeout_seconds + 30

    @property
    def begin_within_seconds(self) -> float:
        """Seconds after it was permitted within which a request has begun, so that it ends before its lease does."""
        return self.timeout_seconds + 15


class Work(ABC):
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
        self._outage = Outage(random)
        self._announcement: tuple[int, Announcement] | None = None
        self.calls = 0
        """Requests that were made."""

    def take(self, outcomes: Iterable[Outcome]) -> None:
        """See :meth:`Engine.take`."""
        for outcome in outcomes:
            self._take(outcome)

    @abstractmethod
    def _take(self, outcome: Outcome) -> None:
        """Take one outcome in."""

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
            bucket=BUCKET,
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


class Outage:
    """Tells a lost answer from an outage, which must not burn the audience.

    After the first request without an answer: one at a time. After a few in a row: wait, and look, before the
    next; longer each time.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.row = 0
        self.slow = False
        self.again_ms = 0
        self._wait = FIRST_OUTAGE_WAIT_SECONDS
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
        self._wait = memo.get("wait", FIRST_OUTAGE_WAIT_SECONDS)
        self.slow = bool(memo)

    def learn(self, outcome: Outcome, now: float, now_ms: int) -> None:
        """Take an outcome in."""
        if outcome.fate in _ANSWERED:
            if isinstance(outcome.request, Look) and outcome.request.message_id is None:
                self._looked = True
                return
            # An answer to what began before the outage says nothing about after it.
            if outcome.began_at >= self._since:
                self.slow, self.row, self._wait = False, 0, FIRST_OUTAGE_WAIT_SECONDS
            elif self.row < IN_A_ROW:
                self.row = 0
        elif outcome.fate is not Fate.UNBEGUN:
            self.row += 1
            self.slow, self._looked, self._since = True, False, now
            if self.row >= IN_A_ROW and (self.again_ms <= now_ms or self.row == IN_A_ROW):
                self.again_ms = now_ms + round(self._wait * (1 + self._random() / 10) * 1000)
                self._wait = min(self._wait * 2, LONGEST_OUTAGE_WAIT_SECONDS)


def text_hash(text: str) -> str:
    """Hash a rendered text: 32 hexadecimal digits; equal texts need no edit."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
