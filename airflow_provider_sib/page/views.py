"""Says what the page shows of the ledger, as plain JSON; knows neither HTTP nor who asks."""

from __future__ import annotations

import time
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.engine import BUCKET
from airflow_provider_sib.campaign.ledger import CampaignStatus, Quota, State, UnknownCampaign
from airflow_provider_sib.campaign.report import RESERVE, seconds_left, settled_share

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from airflow_provider_sib.campaign.ledger import Campaign, Counts, Json, Ledger, Share
    from airflow_provider_sib.hooks import CampaignHook

MOST_DOUBTS = 5_000
"""Doubts that can be paged through; the command line lists them all."""

ALIVE_MS = 120_000
"""For how long after its last word, or after the moment it meant to go on, somebody is taken to deliver."""

POINTS = 240
"""Points of a chart, at most about."""

_SPANS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 43_200)
_DAY_SECONDS = 86_400

PROMPT_SECONDS = 0.15
"""How long an answer waits for figures to be counted before it says that they are not ready."""

FRESH_SECONDS = 3.0
"""For how long counted figures are fresh, at least; and for as long as 30 times what counting them took."""


def dag_of(campaign: Campaign) -> str | None:
    """Name the DAG whose task sends a campaign; None where none is told of."""
    dag_id = campaign.settings.get("dag_id")
    return dag_id if isinstance(dag_id, str) and dag_id else None


def listed(
    hook: CampaignHook,
    readable: Callable[[Collection[str | None]], Collection[str | None]],
    *,
    search: str = "",
    status: str = "",
    offset: int = 0,
    limit: int = 25,
) -> dict[str, Json]:
    """Give a page of the list of campaigns, the newest first.

    :param hook: on the ledger.
    :param readable: leaves of some DAGs those that the user may see.
    :param search: letters of the campaign's id, its DAG's or its task's.
    :param status: only campaigns of this status; empty: all.
    :param offset: how many to leave out.
    :param limit: how many at most.
    """
    ledger = hook.ledger
    campaigns = hook.list()
    dags = readable({dag_of(campaign) for campaign in campaigns})
    words = search.casefold().split()
    found = [
        campaign
        for campaign in campaigns
        if dag_of(campaign) in dags
        and status in ("", campaign.status.value)
        and all(word in _haystack(campaign) for word in words)
    ]
    quotas, now_ms = ledger.quotas(), ledger.now_ms()
    rows = []
    for campaign in found[offset : offset + limit]:
        try:
            counts = ledger.counts(campaign.campaign_id)
        except UnknownCampaign:  # it has just been purged
            continue
        rows.append(_row(campaign, counts, quotas, now_ms))
    return {"total": len(found), "offset": offset, "now_ms": now_ms, "campaigns": rows}


def _haystack(campaign: Campaign) -> str:
    settings = campaign.settings
    return f"{campaign.campaign_id}\n{settings.get('dag_id')}\n{settings.get('task_id')}".casefold()


def _row(
    campaign: Campaign, counts: Counts, quotas: Mapping[tuple[str, str], Quota], now_ms: int
) -> dict[str, Json]:
    by_state = {state.name.lower(): counts.by_state.get(state, 0) for state in State}
    quota = quotas.get((campaign.binding.get("connection", ""), BUCKET), Quota())
    return {
        "id": campaign.campaign_id,
        "status": campaign.status.value,
        "dag_id": dag_of(campaign),
        "task_id": campaign.settings.get("task_id"),
        "total": counts.total,
        **by_state,
        "held_back": counts.held_back,
        "due": counts.due,
        "settled_share": settled_share(campaign, counts),
        "quota": {
            "limit": quota.limit,
            "reserve": campaign.settings.get("reserve", RESERVE),
            "remaining": quota.remaining if (quota.reset_at_ms or 0) > now_ms else None,
            "reset_at_ms": quota.reset_at_ms if (quota.reset_at_ms or 0) > now_ms else None,
            "known_reset_ms": quota.reset_at_ms,
        },
        "seconds_left": seconds_left(campaign, counts.due, quota, now_ms) if counts.waiting else 0.0,
        "delivery": _delivery(campaign, counts.waiting, held_back=counts.held_back, now_ms=now_ms),
        "created_at_ms": campaign.created_at_ms,
        "enrolled_at_ms": campaign.enrolled_at_ms,
        "last_seen_ms": campaign.last_seen_ms,
        "next_wake_ms": campaign.next_wake_ms,
    }


def _delivery(campaign: Campaign, waiting: int, *, held_back: int, now_ms: int) -> str:
    """Say who delivers.

    :return: ``over``, ``stopped``, ``held_back``, ``settled``, ``waits``, ``now``, ``preparing``, ``nobody`` or
        ``never``.
    """
    if campaign.status is CampaignStatus.FINISHED:
        return "over"
    if campaign.status is not CampaignStatus.RUNNING:
        return "stopped"
    if campaign.enrolled_at_ms is None:
        return "now" if campaign.created_at_ms + ALIVE_MS > now_ms else "preparing"
    if not waiting:
        return "held_back" if held_back else "settled"
    if campaign.next_wake_ms is not None and campaign.next_wake_ms + ALIVE_MS > now_ms:
        return "waits" if campaign.next_wake_ms > now_ms else "now"
    seen_ms = campaign.last_seen_ms or 0
    if max(seen_ms, campaign.enrolled_at_ms) + ALIVE_MS > now_ms:
        return "now"
    if seen_ms < campaign.enrolled_at_ms:
        return "never"
    # Newcomers are there before their enrolment is complete, and only then its moment is written.
    return "preparing" if campaign.each_run else "nobody"


def one(hook: CampaignHook, campaign: Campaign) -> dict[str, Json]:
    """Give what is shown of one campaign, except what has to be counted row by row."""
    ledger = hook.ledger
    now_ms = ledger.now_ms()
    counts = ledger.counts(campaign.campaign_id)
    settings = campaign.settings
    return _row(campaign, counts, ledger.quotas(), now_ms) | {
        "now_ms": now_ms,
        "each_run": campaign.each_run,
        "revision": campaign.revision,
        "duplicates": campaign.duplicates,
        "bad_rows": campaign.bad_rows,
        "fraction": campaign.fraction,
        "host": campaign.binding.get("host"),
        "connection": campaign.binding.get("connection"),
        "rules": {
            name: settings.get(name)
            for name in (
                "audience",
                "holdout",
                "send_window",
                "frequency_cap",
                "not_after",
                "on_doubt",
                "reserve",
            )
            if settings.get(name) not in (None, "", "0", "0.0")
        },
        "texts": [
            {
                "revision": revision.revision,
                "at_ms": revision.at_ms,
                "variants": [
                    {"variant": name, "weight": variant.get("weight"), "texts": variant.get("texts", {})}
                    for name, variant in revision.text.body.get("variants", {}).items()
                ],
            }
            for revision in reversed(ledger.revisions(campaign.campaign_id))
        ],
        "settle_command": hook.place.command(
            "campaigns", "settle", campaign.campaign_id, "ONCE_KEY", "--sent"
        ),
    }


def doubts(hook: CampaignHook, campaign_id: str, *, offset: int = 0, limit: int = 25) -> dict[str, Json]:
    """Give a page of the recipients whose message's fate nobody knows."""
    found = hook.deliveries(campaign_id, states=["in_doubt"])
    rows = islice(found, offset, offset + limit)
    return {
        "offset": offset,
        "most": MOST_DOUBTS,
        "doubts": [
            {
                "visitor_id": row.visitor_id,
                "once_key": row.key,
                "reason": row.reason,
                "variant": row.variant,
                "locale": row.locale,
                "at_ms": row.at_ms,
            }
            for row in rows
        ],
    }


#: The ledger's id, the campaign's, and when it was opened: a purged one may have a successor of its name.
_Key = tuple[str, str, int]


@dataclass(slots=True)
class _Counted:
    """Figures of one campaign: the last ones, and those that are being counted."""

    coming: Future[dict[str, Json]]
    figures: dict[str, Json] | None = None
    fresh_until: float = 0.0


class Figures:
    """What has to be counted row by row: counted beside the answers, kept, and counted again when it is old.

    A million deliveries take a second or more. Whoever asks waits :data:`PROMPT_SECONDS` at most, and is told what
    was counted before, or to ask again.

    :param clock: seconds, of any beginning.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._counted: dict[_Key, _Counted] = {}
        # One at a time: each keeps a core busy while it lasts.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sib-figures")

    def of(self, ledger: Ledger, campaign: Campaign) -> dict[str, Json]:
        """Give a campaign's figures, ``{"ready": False}`` while there are none yet.

        :raises LedgerUnavailable: when counting them failed for that.
        """
        key = (ledger.identity().ledger_id, campaign.campaign_id, campaign.created_at_ms)
        with self._lock:
            counted = self._counted.get(key)
            if counted is None or (counted.coming.done() and counted.fresh_until <= self._clock()):
                coming = self._pool.submit(self._count, key, ledger, campaign)
                counted = _Counted(coming, counted.figures if counted is not None else None)
                self._counted.pop(key, None)
                self._counted[key] = counted
                while len(self._counted) > 200:
                    del self._counted[next(iter(self._counted))]
        try:
            counted.figures = counted.coming.result(PROMPT_SECONDS)
        except TimeoutError:
            return counted.figures or {"ready": False}
        return counted.figures

    def _count(self, key: _Key, ledger: Ledger, campaign: Campaign) -> dict[str, Json]:
        began = self._clock()
        figures = count(ledger, campaign)
        now = self._clock()
        with self._lock:
            if key in self._counted:
                self._counted[key].fresh_until = now + max(FRESH_SECONDS, 30 * (now - began))
        return figures


def count(ledger: Ledger, campaign: Campaign) -> dict[str, Json]:
    """Count a campaign's deliveries by reason, variant, revision and time; reads every one of them."""
    now_ms = ledger.now_ms()
    shares = ledger.breakdown(campaign.campaign_id)
    last_ms = max(campaign.last_seen_ms or 0, campaign.enrolled_at_ms or 0, campaign.created_at_ms)
    seconds = _span((last_ms - campaign.created_at_ms) / 1000 / POINTS)
    moments: dict[int, dict[str, int]] = defaultdict(dict)
    for moment in ledger.series(campaign.campaign_id, seconds=seconds):
        moments[moment.start_ms][moment.state.name.lower()] = moment.count
    return {
        "ready": True,
        "at_ms": now_ms,
        "reasons": {
            state.name.lower(): _by(shares, lambda share: share.reason or "unknown", state)
            for state in (State.FAILED, State.IN_DOUBT, State.SKIPPED)
        },
        "variants": {
            variant: {state.name.lower(): n for state in State if (n := _number(shares, variant, state))}
            for variant in sorted({share.variant for share in shares})
        },
        "revisions": _by(shares, lambda share: str(share.revision), State.SENT),
        "chart": {
            "seconds": seconds,
            "begin_ms": campaign.created_at_ms,
            "moments": [{"at_ms": at_ms, **states} for at_ms, states in sorted(moments.items())],
        },
    }


def _span(seconds: float) -> int:
    for span in _SPANS:
        if span >= seconds:
            return span
    return _DAY_SECONDS * max(1, round(seconds / _DAY_SECONDS))


def _by(shares: Collection[Share], name: Callable[[Share], str], state: State) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for share in shares:
        if share.state is state:
            found[name(share)] += share.count
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _number(shares: Collection[Share], variant: str, state: State) -> int:
    return sum(share.count for share in shares if share.variant == variant and share.state is state)
