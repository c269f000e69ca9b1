"""Keep one account's quota as all who use it share it; how much of it may be used now is a :data:`Pace`'s to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Holding:
    """Requests in flight of one holder, believed until a moment.

    :param flying: requests begun, or about to begin, and not yet answered.
    :param until_ms: when the holder is taken for dead.
    """

    flying: int
    until_ms: int


@dataclass(frozen=True, slots=True)
class Quota:
    """What is known of one account's quota in one bucket; shared by workers, campaigns and single calls.

    When the fields change is the :data:`Pace`'s business, except ``holders``, which the ledger keeps.

    :param limit: requests per window; None: not learnt yet.
    :param remaining: requests left, as last told.
    :param reset_at_ms: when the window ends.
    :param window_at_ms: when the window began, where no header tells.
    :param probe: holder that may send one request to learn whether the window is open again.
    :param probe_until_ms: when the probe is taken for lost.
    :param holders: who has how much in flight, by holder.
    """

    limit: int | None = None
    remaining: int | None = None
    reset_at_ms: int | None = None
    window_at_ms: int | None = None
    probe: str | None = None
    probe_until_ms: int | None = None
    holders: Mapping[str, Holding] = field(default_factory=dict)

    def in_flight(self, now_ms: int, *, besides: str | None = None) -> int:
        """Count requests in flight of all living holders.

        :param now_ms: the ledger's clock.
        :param besides: a holder to leave out, usually oneself.
        """
        return sum(
            holding.flying
            for holder, holding in self.holders.items()
            if holder != besides and holding.until_ms > now_ms
        )

    def holding(self, holder: str, flying: int, *, now_ms: int, until_ms: int) -> Quota:
        """Return the quota with this holder's requests in flight set, and the dead holders dropped."""
        alive = {
            name: held for name, held in self.holders.items() if held.until_ms > now_ms and name != holder
        }
        if flying:
            alive[holder] = Holding(flying, until_ms)
        return replace(self, holders=alive)


Pace = Callable[[Quota, int], tuple[Quota, int]]
"""``pace(quota, now_ms) -> (quota, permits)``: apply what was observed, say how many requests may begin now.

Called once per transaction on the locked row; a pure function, since a transaction that fails is tried again.
"""


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """A holder's wish to begin requests.

    :param account: whose quota, e.g. the connection's id.
    :param bucket: which of the account's limits.
    :param holder: who asks; unique per process or single call.
    :param flying: requests of this holder that are in flight and stay so.
    :param wanted: requests it would like to begin.
    :param lease_seconds: how long to believe in them without a word.
    :param pace: the policy.
    """

    account: str
    bucket: str
    holder: str
    flying: int
    wanted: int
    lease_seconds: float
    pace: Pace


@dataclass(frozen=True, slots=True)
class Granted:
    """An answer to :class:`QuotaUse`: at most ``permits`` requests may begin."""

    now_ms: int
    quota: Quota
    permits: int


def paced(use: QuotaUse, quota: Quota, now_ms: int) -> tuple[Quota, int]:
    """Apply a pace; the permits are from 0 up to what is wanted."""
    quota, permits = use.pace(quota, now_ms)
    return quota, max(0, min(permits, use.wanted))


def held(use: QuotaUse, quota: Quota, now_ms: int, *, begun: int) -> Quota:
    """Return the quota with the holder's requests counted; a probe it has no use for is given back."""
    flying = use.flying + begun
    if not flying and quota.probe == use.holder:
        quota = replace(quota, probe=None, probe_until_ms=None)
    return quota.holding(use.holder, flying, now_ms=now_ms, until_ms=now_ms + round(use.lease_seconds * 1000))
