"""What an engine and its driver hand each other: requests, their outcomes, and what to do next."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Protocol

from airflow_provider_sib.campaign.pacing import Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_provider_sib.campaign.ledger import Json


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
