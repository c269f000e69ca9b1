"""Says what the quota allows now, from Brevo's own headers; with them, nobody who asks here is refused.

Pure: a quota row goes in, the row and a number of permits come out, and only the caller's ledger keeps time. What
it doesn't know is what others send with the same key between two answers.

https://developers.brevo.com/docs/limit-headers: limit, remaining, and the seconds until the quota is renewed. They
may be missing, on any answer. https://developers.brevo.com/docs/api-limits: the allowance is one of an hour.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.ledger import Pace, Quota

if TYPE_CHECKING:
    from collections.abc import Iterable

HOUR_MS = 3_600_000
"""Length of a window, where no header tells when it ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How a connection's quota may be used.

    :param reserve: requests of each window that are left to others; one request of a window is always used,
        however large the reserve.
    :param requests_per_hour: the limit where Brevo's headers don't tell it; None: one request at a time.
    :param jitter_seconds: how much later than others this process comes back to a new window; drawn once,
        from 0 to 1.
    """

    reserve: int = 10
    requests_per_hour: int | None = None
    jitter_seconds: float = 0.0

    def kept_back(self, limit: int | None) -> int:
        """Return how many requests of a window are left to others.

        :param limit: requests per window, None if unknown.
        """
        return self.reserve if limit is None else min(self.reserve, max(0, limit - 1))

    def shut_until_ms(self, reset_at_ms: int) -> int:
        """Return when a new window may be tried, its end being told in whole seconds."""
        return reset_at_ms + 1000 + round(self.jitter_seconds * 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one request that came to an end told about the quota.

    :param begun_ago: seconds since it began.
    :param ended_ago: seconds since its answer came, or was given up.
    :param limit: requests per window, if told.
    :param remaining: requests left, if told.
    :param reset_in_seconds: seconds left of the window when the answer came, if told.
    :param refused: whether it was a 429.
    :param spent: False if it surely did not reach Brevo, so that it cost nothing.
    """

    begun_ago: float
    ended_ago: float
    limit: int | None = None
    remaining: int | None = None
    reset_in_seconds: float | None = None
    refused: bool = False
    spent: bool = True


class Closed(StrEnum):
    """Why no request may begin."""

    QUOTA = "quota"
    """The window is used up."""
    PROBE = "probe"
    """One request is under way to learn what a new window allows."""
    IN_FLIGHT = "in_flight"
    """What is left is in flight."""


@dataclass(frozen=True, slots=True)
class Opening:
    """When to ask again, and why not earlier."""

    at_ms: int
    reason: Closed


def pace(
    rate: Rate, seen: Iterable[Seen], *, holder: str, flying: int, wanted: int, probe_seconds: float
) -> Pace:
    """Make the policy for one transaction.

    :param rate: how the quota may be used.
    :param seen: requests of this holder that ended since its last transaction.
    :param holder: who asks.
    :param flying: its requests in flight that stay so.
    :param wanted: requests it would like to begin.
    :param probe_seconds: how long a probe without an answer is waited for.
    """
    seen = tuple(seen)

    def apply(quota: Quota, now_ms: int) -> tuple[Quota, int]:
        quota = _sane(quota, now_ms)
        for one in seen:
            quota = _observed(quota, one, rate, now_ms)
        if seen and quota.probe == holder:
            quota = replace(quota, probe=None, probe_until_ms=None)
        if wanted <= 0:
            return quota, 0
        if _unknown(quota, rate, now_ms):
            if flying > 0 or _probed(quota, holder, now_ms):
                return quota, 0
            quota = replace(
                quota, probe=holder, probe_until_ms=now_ms + round(probe_seconds * 1000), window_at_ms=now_ms
            )
            return quota, 1
        return quota, max(0, _left(quota, rate, holder, flying, now_ms))

    return apply


def opening(quota: Quota, now_ms: int, *, rate: Rate) -> Opening:
    """Tell when to ask again for permits after none were given.

    :param quota: the row as :func:`pace` left it.
    :param now_ms: the ledger's clock.
    :param rate: as given to :func:`pace`.
    """
    soon = now_ms + 1000
    if _unknown(quota, rate, now_ms):
        return Opening(soon, Closed.PROBE)
    if (quota.remaining or 0) - rate.kept_back(quota.limit) > 0:
        return Opening(soon, Closed.IN_FLIGHT)
    return Opening(rate.shut_until_ms(quota.reset_at_ms or now_ms), Closed.QUOTA)


def _sane(quota: Quota, now_ms: int) -> Quota:
    """Forget a quota that a jump of the ledger's clock, or a longer hour than there is, has put out of reach."""
    latest = now_ms + HOUR_MS + 5000
    if (quota.window_at_ms or 0) > now_ms + 5000 or (quota.reset_at_ms or 0) > latest:
        return Quota(limit=quota.limit, holders=quota.holders)
    return quota


def _unknown(quota: Quota, rate: Rate, now_ms: int) -> bool:
    """Tell whether only one request may go, to learn: at first, without headers, in a new window."""
    if quota.remaining is None:
        return True
    return quota.reset_at_ms is None or now_ms >= rate.shut_until_ms(quota.reset_at_ms)


def _probed(quota: Quota, holder: str, now_ms: int) -> bool:
    """Tell whether somebody else is learning already."""
    return quota.probe not in (None, holder) and (quota.probe_until_ms or 0) > now_ms


def _left(quota: Quota, rate: Rate, holder: str, flying: int, now_ms: int) -> int:
    others = quota.in_flight(now_ms, besides=holder)
    return (quota.remaining or 0) - rate.kept_back(quota.limit) - others - flying


def _observed(quota: Quota, seen: Seen, rate: Rate, now_ms: int) -> Quota:
    """Take in what one request told."""
    if not seen.spent:
        return quota
    begun_ms = now_ms - round(seen.begun_ago * 1000)
    ended_ms = now_ms - round(seen.ended_ago * 1000)
    window_at_ms = begun_ms if quota.window_at_ms is None else quota.window_at_ms
    if begun_ms < window_at_ms:
        # It began before the window that is being learnt, and tells about the one before.
        return quota
    limit = seen.limit or quota.limit or rate.requests_per_hour
    by_length = window_at_ms + HOUR_MS
    reset_at_ms = by_length
    if seen.reset_in_seconds is not None:
        reset_at_ms = ended_ms + round(seen.reset_in_seconds * 1000)
    known = quota.remaining if quota.remaining is not None else -1
    # A window that has passed is no measure for what an answer out of the next one tells.
    fresh = known < 0 or begun_ms >= rate.shut_until_ms(quota.reset_at_ms or 0)
    remaining: int | None
    if seen.refused:
        # Where nobody tells when: an hour after the window began, or after this.
        remaining, reset_at_ms = 0, max(reset_at_ms, ended_ms)
        limit = seen.limit or quota.limit
    elif seen.remaining is None:
        # Counted, where the limit is known; where it isn't, nothing is known but that one more went through.
        remaining = max(0, known - 1) if not fresh else None if limit is None else limit - 1
        if not fresh and seen.reset_in_seconds is None:
            reset_at_ms = quota.reset_at_ms or by_length
    elif fresh:
        remaining = seen.remaining
        if known >= 0 and limit:
            remaining, reset_at_ms = _no_trickle(remaining, reset_at_ms, limit, rate, ended_ms)
    elif (
        # Answers come late by up to their own duration, and tell whole seconds.
        seen.remaining > known and reset_at_ms - (ended_ms - begun_ms) > (quota.reset_at_ms or 0) + 1500
    ):
        # A new window has begun although the old one was believed in.
        remaining, window_at_ms = seen.remaining, begun_ms
    else:
        remaining = min(seen.remaining, known)
    # Not `replace`, which takes thrice as long, once per message.
    return Quota(
        limit=limit,
        remaining=remaining,
        reset_at_ms=None if remaining is None else reset_at_ms,
        window_at_ms=window_at_ms,
        probe=quota.probe,
        probe_until_ms=quota.probe_until_ms,
        holders=quota.holders,
    )


def _no_trickle(remaining: int, reset_at_ms: int, limit: int, rate: Rate, ended_ms: int) -> tuple[int, int]:
    """Where the window slides, wait until a tenth of the limit is free rather than come back for each request."""
    usable = limit - rate.kept_back(limit)
    missing = min(limit // 10, usable - 1) - (remaining - rate.kept_back(limit))
    if missing <= 0:
        return remaining, reset_at_ms
    return 0, max(reset_at_ms, ended_ms + round(missing / limit * HOUR_MS))
