"""Tells how a campaign stands: counts, reasons, rates, time left; one value, plain JSON on demand."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.ledger import (
    Campaign,
    CampaignStatus,
    Counts,
    Json,
    Ledger,
    Quota,
    Share,
    State,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMITS = (100, 200, 600)
"""Requests per hour that Brevo's plans allow: https://developers.brevo.com/docs/api-limits."""

RESERVE = 10
"""Calls of an hour left to others, where a campaign's task hasn't told how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a campaign stands.

    :param campaign_id: the campaign.
    :param ledger_id: where it is kept.
    :param status: ``running``, ``paused``, ``aborted``, ``finished``.
    :param revision: number of the newest text, from 1.
    :param total: deliveries.
    :param duplicates: rows left out in the last enrolment, having been enrolled before.
    :param bad_rows: rows left out in the last enrolment since they couldn't be used.
    :param pending: to be sent to, those held back included.
    :param held_back: of them, those that wait for a larger fraction.
    :param sending: under way.
    :param sent: sent, and still there.
    :param failed: refused by Brevo for what they are.
    :param in_doubt: sent or not, nobody knows.
    :param skipped: left out by a rule.
    :param withdrawn: sent, and deleted.
    :param failed_by: failed by code.
    :param in_doubt_by: in doubt by reason.
    :param skipped_by: skipped by reason.
    :param variants: deliveries by variant, then by state.
    :param revisions: sent deliveries by the revision they show.
    :param settled_share: share, from 0 to 1, of those who may be sent to that have an outcome; 0 until the
        audience is known.
    :param last_hour: messages sent within the hour before the report.
    :param enrolled_at_ms: when the last enrolment was complete.
    :param last_seen_ms: when a worker last had a turn.
    :param next_wake_ms: when its worker means to go on.
    :param at_ms: when this was found, on the ledger's clock.
    """

    campaign_id: str
    ledger_id: str
    status: str
    revision: int
    total: int
    duplicates: int
    bad_rows: int
    pending: int
    held_back: int
    sending: int
    sent: int
    failed: int
    in_doubt: int
    skipped: int
    withdrawn: int
    failed_by: dict[str, int]
    in_doubt_by: dict[str, int]
    skipped_by: dict[str, int]
    variants: dict[str, dict[str, int]]
    revisions: dict[str, int]
    settled_share: float
    last_hour: int
    enrolled_at_ms: int | None
    last_seen_ms: int | None
    next_wake_ms: int | None
    at_ms: int

    @property
    def due(self) -> int:
        """Deliveries that wait to be sent to, by now."""
        return self.pending - self.held_back

    @property
    def is_over(self) -> bool:
        """Whether everybody who may be sent to has an outcome."""
        return self.enrolled_at_ms is not None and self.due + self.sending == 0

    def hours_left(self, per_hour: int, *, left: int | None = None) -> float:
        """Estimate the hours until the last message.

        :param per_hour: messages the quota allows in an hour, the reserve taken off.
        :param left: messages it allows before the hour is over; None: a whole hour's.
        """
        return hours(self.due, per_hour, left=left)

    def as_dict(self) -> dict[str, Json]:
        """Give the report as plain JSON."""
        return asdict(self)


def report(ledger: Ledger, campaign_id: str) -> Report:
    """Find how a campaign stands; reads every delivery's state once.

    :raises UnknownCampaign: there is none of this id.
    """
    campaign = ledger.campaign(campaign_id)
    counts = ledger.counts(campaign_id)
    shares = ledger.breakdown(campaign_id)
    at_ms = ledger.now_ms()
    hour = ledger.series(campaign_id, seconds=60, since_ms=at_ms - 3_600_000)
    by_state = {state: counts.by_state.get(state, 0) for state in State}
    variants: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    revisions: dict[str, int] = defaultdict(int)
    for share in shares:
        variants[share.variant][share.state.name.lower()] += share.count
        if share.state is State.SENT:
            revisions[str(share.revision)] += share.count
    return Report(
        campaign_id=campaign.campaign_id,
        ledger_id=ledger.identity().ledger_id,
        status=CampaignStatus(campaign.status).value,
        revision=campaign.revision,
        total=counts.total,
        duplicates=campaign.duplicates,
        bad_rows=campaign.bad_rows,
        pending=by_state[State.PENDING],
        held_back=counts.held_back,
        sending=by_state[State.SENDING],
        sent=by_state[State.SENT],
        failed=by_state[State.FAILED],
        in_doubt=by_state[State.IN_DOUBT],
        skipped=by_state[State.SKIPPED],
        withdrawn=by_state[State.WITHDRAWN],
        failed_by=_by_reason(shares, State.FAILED),
        in_doubt_by=_by_reason(shares, State.IN_DOUBT),
        skipped_by=_by_reason(shares, State.SKIPPED),
        variants={name: dict(states) for name, states in variants.items()},
        revisions=dict(revisions),
        settled_share=settled_share(campaign, counts),
        last_hour=sum(moment.count for moment in hour if moment.state is State.SENT),
        enrolled_at_ms=campaign.enrolled_at_ms,
        last_seen_ms=campaign.last_seen_ms,
        next_wake_ms=campaign.next_wake_ms,
        at_ms=at_ms,
    )


def settled_share(campaign: Campaign, counts: Counts) -> float:
    """Tell the share of those who may be sent to that have an outcome; 0 until the audience is known."""
    if campaign.enrolled_at_ms is None:
        return 0.0
    reachable = counts.total - counts.held_back
    return 1 - counts.waiting / reachable if reachable else 1.0


def _by_reason(shares: Sequence[Share], state: State) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for share in shares:
        if share.state is state:
            found[share.reason or "unknown"] += share.count
    return dict(found)


def hours(calls: int, per_hour: int, *, left: int | None = None) -> float:
    """Return the whole hours to wait until the last of so many calls may be made; 0: all of them now.

    :param calls: to be made.
    :param per_hour: calls the quota allows in an hour, the reserve taken off; at least 1.
    :param left: calls it allows before the hour is over; None: a whole hour's.
    """
    later = calls - (per_hour if left is None else left)
    return float(max(0, -(-later // max(1, per_hour))))


def seconds_left(campaign: Campaign, due: int, quota: Quota, now_ms: int) -> float | None:
    """Estimate how long the quota makes a campaign last at least; None where nobody knows.

    :param campaign: the campaign's own row.
    :param due: deliveries that wait to be sent to, by now.
    :param quota: what is known of its account's quota.
    :param now_ms: the ledger's clock.
    """
    if campaign.status is not CampaignStatus.RUNNING or campaign.enrolled_at_ms is None:
        return None
    return calls_take(due, quota, now_ms, reserve=campaign.settings.get("reserve", RESERVE))


def calls_take(calls: int, quota: Quota, now_ms: int, *, reserve: int) -> float | None:
    """Estimate the seconds until the last of so many calls; None where the quota isn't known, 0 within its hour.

    :param calls: to be made.
    :param quota: what is known of the account's quota.
    :param now_ms: the ledger's clock.
    :param reserve: calls of each hour left to others.
    """
    if quota.limit is None:
        return None
    reserve = min(reserve, quota.limit - 1)
    per_hour = quota.limit - reserve
    until_reset = seconds_until_reset(quota, now_ms)
    if until_reset is None:
        return 3600 * hours(calls, per_hour)
    waits = hours(calls, per_hour, left=max(0, (quota.remaining or 0) - reserve))
    return 3600 * (waits - 1) + until_reset if waits else 0.0


def seconds_until_reset(quota: Quota, now_ms: int) -> float | None:
    """Tell how long the quota's present hour still is; None where that isn't known."""
    if quota.remaining is None or (quota.reset_at_ms or 0) <= now_ms:
        return None
    return ((quota.reset_at_ms or 0) - now_ms) / 1000


def hours_table(calls: int, *, reserve: int = 10) -> list[tuple[int, float]]:
    """Return the hours so many calls take, by the requests per hour of a plan.

    :param calls: one per recipient.
    :param reserve: calls of each hour left to others.
    """
    return [(limit, hours(calls, limit - min(reserve, limit - 1))) for limit in LIMITS]


def duration(seconds: float) -> str:
    """Say a span of time in words for people, rounded up."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = -(-round(seconds) // 60)
    if minutes < 60:
        return f"{minutes} min"
    whole, minutes = divmod(minutes, 60)
    if whole < 48:
        return f"{whole} h {minutes} min"
    return f"{whole // 24} d {whole % 24} h"
