"""Keep who got what, so that nobody is sent to twice: values, the :class:`Ledger` protocol, a memory ledger.

What a ledger promises: per campaign and once key at most one POST begins, since a row is durably ``SENDING``
before its POST and goes back to ``PENDING`` only by the holder of its claim (for a POST that surely did not
happen), or by hand. What it doesn't know: HTTP, texts, windows, and how many requests the quota allows; the
last is told by a :data:`Pace` function that is called on the locked quota row.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import secrets
import threading
import time
import uuid
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any, Protocol

Json = Any
"""A value that ``json.dumps`` takes: None, bool, int, float, str, or a list or dict of such."""

RANKS = 2**63
"""Ranks are whole numbers from 0 up to, not including, this one."""


class State(IntEnum):
    """Where a delivery stands; the numbers are stored."""

    PENDING = 0
    SENDING = 1
    SENT = 2
    FAILED = 3
    IN_DOUBT = 4
    SKIPPED = 5
    WITHDRAWN = 6


class CampaignStatus(StrEnum):
    """What is intended with a campaign; who works at it is told by ``last_seen_ms`` and ``next_wake_ms``."""

    RUNNING = "running"
    PAUSED = "paused"
    ABORTED = "aborted"
    FINISHED = "finished"


STATUS_CHANGES: Mapping[CampaignStatus, frozenset[CampaignStatus]] = {
    CampaignStatus.RUNNING: frozenset({CampaignStatus.PAUSED, CampaignStatus.ABORTED}),
    CampaignStatus.PAUSED: frozenset({CampaignStatus.RUNNING, CampaignStatus.ABORTED}),
    # An abort can be taken back: a new campaign id would write to everyone again who was reached.
    CampaignStatus.ABORTED: frozenset({CampaignStatus.RUNNING}),
    CampaignStatus.FINISHED: frozenset({CampaignStatus.RUNNING, CampaignStatus.ABORTED}),
}
"""What :meth:`Ledger.set_status` may change; ``FINISHED`` is reached by :meth:`Ledger.finish` only."""


class LedgerError(Exception):
    """Anything a ledger can't do."""


class LedgerUnavailable(LedgerError):
    """The ledger did not answer, or a commit's outcome is unknown: call again with the same arguments."""


class LedgerUnsafe(LedgerError):
    """The ledger can't keep what it must: a network disk, a newer schema, an asynchronous commit."""


class UnknownCampaign(LedgerError):
    """The ledger has no campaign of this id."""

    def __init__(self, campaign_id: str) -> None:
        super().__init__(f"This ledger has no campaign {campaign_id!r}.")
        self.campaign_id = campaign_id


@dataclass(frozen=True, slots=True)
class Recipient:
    """One visitor as an audience yields it.

    :param visitor_id: Brevo's id of the visitor.
    :param variables: the row's other columns, JSON-able.
    :param timezone: IANA name, or None when unknown.
    :param locale: BCP 47 tag, or None when unknown.
    """

    visitor_id: str
    variables: Mapping[str, Json]
    timezone: str | None = None
    locale: str | None = None


@dataclass(frozen=True, slots=True)
class Enrolment:
    """One recipient, ready for the ledger.

    :param key: once key: the ledger keeps one delivery per campaign and key.
    :param rank: 0 up to :data:`RANKS`, a keyed hash of campaign and once key: the same key, the same
        rank.
    :param visitor_id: Brevo's id of the visitor.
    :param variant: name of the variant.
    :param skip: reason for which nothing will be sent (``holdout``), or None.
    :param timezone: IANA name, or None when unknown.
    :param locale: BCP 47 tag, or None when unknown.
    :param variables: the row's other columns, JSON-able.
    """

    key: str
    rank: int
    visitor_id: str
    variant: str = ""
    skip: str | None = None
    timezone: str | None = None
    locale: str | None = None
    variables: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Text:
    """What a campaign says, at one revision.

    :param digest: identity of the texts; equal digests mean equal texts.
    :param body: the texts in a JSON-able form, as the announcement understands them.
    """

    digest: str
    body: Json


@dataclass(frozen=True, slots=True)
class Revision:
    """A text a campaign has had. Revisions count from 1; the highest is the one that is sent."""

    revision: int
    text: Text
    at_ms: int


@dataclass(frozen=True, slots=True)
class Campaign:
    """A campaign's own row.

    :param campaign_id: chosen by its author.
    :param binding: what may never change: API host, connection, what once means.
    :param each_run: whether newcomers join at every run, else the audience is a snapshot.
    :param status: the intent.
    :param revision: number of the newest text.
    :param text: the newest text.
    :param settings: how it was last opened (window, cap, ...), for those who look at it from outside.
    :param memo: the engine's own small state, shared by the campaign's workers.
    :param enrolled_at_ms: when the (last) enrolment was complete; None: there is none yet.
    :param total: deliveries enrolled.
    :param duplicates: rows left out since their once key was enrolled before, in the last enrolment.
    :param bad_rows: unusable rows of the last enrolment.
    :param fraction: share of the audience that may be sent to.
    :param limit_rank: highest rank that may be sent to; None: all.
    :param claims: rows claimed so far; never falls.
    :param created_at_ms: when it was opened first.
    :param last_seen_ms: when a worker last had a cycle.
    :param next_wake_ms: when its worker means to go on; None: at once, or nobody works at it.
    """

    campaign_id: str
    binding: Mapping[str, str]
    each_run: bool
    status: CampaignStatus
    revision: int
    text: Text
    settings: Mapping[str, Json]
    memo: Mapping[str, Json]
    enrolled_at_ms: int | None
    total: int
    duplicates: int
    bad_rows: int
    fraction: float
    limit_rank: int | None
    claims: int
    created_at_ms: int
    last_seen_ms: int | None
    next_wake_ms: int | None


class RefusalKind(StrEnum):
    """Why a ledger says no to an author."""

    OTHER_BINDING = "other_binding"
    UNKNOWN_TEXT = "unknown_text"
    STATUS = "status"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A no that the author must read; nothing was changed.

    :param kind: what is wrong.
    :param name: the part of the binding that differs, ``text`` or ``status``.
    :param kept: what the ledger holds.
    :param given: what was asked for.
    """

    kind: RefusalKind
    name: str
    kept: str
    given: str


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What an enrolment brought.

    :param joined: deliveries added now.
    :param duplicates: rows left out since their once key was there already.
    :param bad_rows: unusable rows, as the caller counted them.
    :param total: deliveries of the campaign.
    """

    joined: int
    duplicates: int
    bad_rows: int
    total: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """One recipient's row.

    :param rank: its number in the campaign, and its place in the sending order.
    :param key: once key (a keyed hash of it once the visitor is forgotten).
    :param visitor_id: None once forgotten.
    :param variables: None once scrubbed.
    :param timezone: IANA name, or None.
    :param locale: BCP 47 tag, or None.
    :param variant: name of the variant.
    :param state: where it stands.
    :param reason: why it was skipped, failed, is in doubt; what the last edit said.
    :param claim: token of the last claim, 0 before the first.
    :param lease_until_ms: until when its claim's holder is expected to tell; 0 before the first claim.
    :param revision: the text it was (or may have been) sent with, or has been edited to; 0 before the first.
    :param text_hash: hash of its rendered text, as the caller made it.
    :param message_ids: Brevo's ids of its messages; more than one only after a doubt was sent again.
    :param at_ms: when its state last changed.
    """

    rank: int
    key: str
    visitor_id: str | None
    variables: Mapping[str, Json] | None
    timezone: str | None
    locale: str | None
    variant: str
    state: State = State.PENDING
    reason: str | None = None
    claim: int = 0
    lease_until_ms: int = 0
    revision: int = 0
    text_hash: str | None = None
    message_ids: tuple[str, ...] = ()
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a claimed row.

    :param rank: the row.
    :param claim: the token it was claimed with (``Delivery.claim``).
    :param state: ``SENT``; ``FAILED``; ``IN_DOUBT``; ``PENDING`` or ``SKIPPED`` only when the POST was never
        begun or surely refused.
    :param message_id: Brevo's id, with ``SENT``.
    :param text_hash: hash of the rendered text, with ``SENT`` and ``IN_DOUBT``.
    :param reason: a code, never a visitor's data.
    """

    rank: int
    claim: int
    state: State
    message_id: str | None = None
    text_hash: str | None = None
    reason: str | None = None


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
    :param seen_at_ms: when Brevo's headers were last seen.
    :param window_at_ms: when the window began, where no header tells.
    :param used: requests begun since ``window_at_ms``.
    :param probe: holder that may send one request to learn whether the window is open again.
    :param probe_until_ms: when the probe is taken for lost.
    :param holders: who has how much in flight, by holder.
    """

    limit: int | None = None
    remaining: int | None = None
    reset_at_ms: int | None = None
    seen_at_ms: int | None = None
    window_at_ms: int | None = None
    used: int = 0
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

Screen = Callable[[Delivery], str | None]
"""``screen(delivery) -> reason``: say why this row is skipped, or None. Pure and quick: a lock is held."""


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


@dataclass(frozen=True, slots=True)
class Cap:
    """A frequency cap as the ledger reads it: at most so many deliveries per visitor and group in a span."""

    at_most: int
    within_seconds: float
    group: str


def new_token() -> int:
    """Make a claim token that nobody else has: 1 up to 2**63."""
    return secrets.randbelow(RANKS - 1) + 1


@dataclass(frozen=True, slots=True)
class Cycle:
    """One turn of a campaign's worker: everything it has to tell and to ask, for one transaction.

    :param campaign_id: the campaign.
    :param quota: the quota to count against; ``quota.wanted`` bounds the claim, as ``pace`` does.
    :param lease_seconds: after which a claimed row without a result is reported as in doubt.
    :param results: what became of rows claimed before; late ones too.
    :param zones: time zones whose window is open, the most urgent first; None: all.
    :param cap: frequency cap, read and written at the claim.
    :param screen: rule that skips rows at the claim.
    :param next_wake_ms: when the worker goes on if this cycle gives it nothing; None: soon.
    :param memo: the engine's own state to be kept; None: leave what is there.
    :param token: claim token of the rows claimed now; the same when repeating after an unknown outcome.
    """

    campaign_id: str
    quota: QuotaUse
    lease_seconds: float
    results: Sequence[Result] = ()
    zones: Sequence[str | None] | None = None
    cap: Cap | None = None
    screen: Screen | None = None
    next_wake_ms: int | None = None
    memo: Mapping[str, Json] | None = None
    token: int = field(default_factory=new_token)


@dataclass(frozen=True, slots=True)
class Cycled:
    """What a cycle brought.

    :param now_ms: the ledger's clock.
    :param campaign: the campaign as it is now (its ``status`` told whether anything was claimed).
    :param claimed: rows to send, ``SENDING`` on disk; at most ``min(wanted, permits)``.
    :param skipped: rows skipped at this claim, by reason (``suppressed``, ``excluded``, ``forgotten``,
        ``frequency_cap``, or what ``screen`` said).
    :param swept: rows whose lease ran out and that are in doubt now.
    :param recorded: results that changed their row.
    :param granted: what the pace allowed; the holder is counted with ``flying + len(claimed)`` in flight.
    """

    now_ms: int
    campaign: Campaign
    claimed: tuple[Delivery, ...]
    skipped: Mapping[str, int]
    swept: int
    recorded: int
    granted: Granted


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is left to do, without counting it.

    :param now_ms: the ledger's clock.
    :param zones: time zones (None: unknown) that have a pending row which may be sent to.
    :param held_back: whether pending rows wait for a larger fraction.
    :param sending: rows claimed and without a result, of all workers.
    :param lease_until_ms: when the last of their leases ends.
    """

    now_ms: int
    zones: frozenset[str | None]
    held_back: bool
    sending: int
    lease_until_ms: int | None


@dataclass(frozen=True, slots=True)
class EditResult:
    """What became of an edit or a deletion of a sent row.

    :param rank: the row.
    :param state: ``SENT`` after an edit, ``WITHDRAWN`` once all its messages are gone.
    :param message_ids: the messages that were edited or deleted; when the row has another one by now, it
        stays as it was and is met again.
    :param revision: the revision it shows now; None when the edit failed.
    :param text_hash: hash of the rendered text it shows now; None: unchanged.
    :param reason: a code, when the edit failed or the message was gone.
    """

    rank: int
    state: State
    message_ids: tuple[str, ...]
    revision: int | None = None
    text_hash: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class EditCycle:
    """One turn of a campaign's editor, of which there is one at a time.

    :param campaign_id: the campaign.
    :param editor: the editor's own token (:func:`new_token`), the same through all its cycles.
    :param quota: the quota to count against; each PUT, DELETE or GET needs a permit.
    :param lease_seconds: how long the editor keeps its place without a word; 0 gives it up.
    :param results: what became of rows.
    """

    campaign_id: str
    editor: int
    quota: QuotaUse
    lease_seconds: float
    results: Sequence[EditResult] = ()


@dataclass(frozen=True, slots=True)
class Edited:
    """What an edit cycle brought; ``granted.permits`` requests may begin."""

    now_ms: int
    campaign: Campaign
    recorded: int
    granted: Granted


@dataclass(frozen=True, slots=True)
class EditorBusy:
    """Another editor has the campaign, until this moment unless it goes on; nothing was recorded."""

    now_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Deliveries by state; ``held_back`` of the pending ones wait for a larger fraction."""

    by_state: Mapping[State, int]
    held_back: int

    @property
    def total(self) -> int:
        """Deliveries of the campaign."""
        return sum(self.by_state.values())

    @property
    def due(self) -> int:
        """Pending deliveries that may be sent to."""
        return self.by_state.get(State.PENDING, 0) - self.held_back


@dataclass(frozen=True, slots=True)
class Share:
    """A number of deliveries that are alike in state, reason, variant and revision."""

    state: State
    reason: str | None
    variant: str
    revision: int
    count: int


@dataclass(frozen=True, slots=True)
class Moment:
    """Deliveries that came to a state in one span of time, which begins at ``start_ms``."""

    start_ms: int
    state: State
    count: int


@dataclass(frozen=True, slots=True)
class Suppression:
    """A visitor to whom nothing is sent. ``visitor_id`` is None when only the keyed hash is left."""

    visitor_id: str | None
    reason: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a ledger is.

    :param ledger_id: made at its creation; a copy has the same.
    :param schema: version of its tables.
    :param claims: rows claimed in all campaigns, purged ones too; never falls, so an older copy shows.
    :param warnings: what weakens its promises (an asynchronous commit), as sentences.
    """

    ledger_id: str
    schema: int
    claims: int
    warnings: tuple[str, ...] = ()


class Ledger(Protocol):
    """Keeps campaigns, their deliveries and the quota.

    Each method is one transaction (those that say so: several short ones), all or nothing, on the ledger's
    own clock. Every method may be called from any thread; whoever wants one database thread sees to it. All
    raise :class:`LedgerUnavailable` when the database doesn't answer; repeating the call is then right. All
    that take a campaign id raise :class:`UnknownCampaign`, except :meth:`open_campaign`.
    """

    # who

    def identity(self) -> Identity:
        """Tell who this ledger is and how far its claims have come."""

    def now_ms(self) -> int:
        """Tell the time on the ledger's clock, in milliseconds since 1970."""

    def close(self) -> None:
        """Give connections back; the ledger can't be used afterwards."""

    # campaigns

    def open_campaign(
        self,
        campaign_id: str,
        *,
        binding: Mapping[str, str],
        each_run: bool,
        text: Text | None,
        settings: Mapping[str, Json],
    ) -> Campaign | Refusal:
        """Create a campaign, or go on with it.

        A text the campaign has had before goes on with the newest revision; one it never had is refused
        (:meth:`revise` is the way to change it).

        :param campaign_id: up to 255 characters.
        :param binding: facts that must be the same each time, e.g. host, connection, once_per.
        :param each_run: whether newcomers join; part of the binding.
        :param text: what to say; None goes on with the newest revision (only for a campaign that exists).
        :param settings: replaces what was kept.
        :return: the campaign, or why not.
        :raises UnknownCampaign: without a text, and the campaign doesn't exist.
        :raises ValueError: the id is blank, too long, or has blanks around it.
        """

    def campaign(self, campaign_id: str) -> Campaign:
        """Read a campaign."""

    def campaigns(self) -> list[Campaign]:
        """Read all campaigns, the newest first."""

    def revise(self, campaign_id: str, text: Text) -> Campaign:
        """Make this the text that is sent from now on; equal to the newest, it changes nothing."""

    def revisions(self, campaign_id: str) -> list[Revision]:
        """Read all texts of a campaign, the oldest first."""

    def set_status(self, campaign_id: str, status: CampaignStatus) -> Campaign | Refusal:
        """Pause, resume or abort, as :data:`STATUS_CHANGES` allows; the status it has already is no refusal.

        Effective at once: nothing is claimed in a transaction that begins later. What is in flight goes on.
        """

    def finish(self, campaign_id: str) -> bool:
        """Set a running campaign to finished if no row is pending or sending.

        :return: whether it is finished now.
        """

    def set_fraction(self, campaign_id: str, fraction: float) -> Campaign:
        """Limit who may be sent to.

        A snapshot: exactly the first ``ceil(fraction * total)`` deliveries by rank. A campaign that newcomers
        join: the ranks below ``fraction * RANKS``. Both are nested: a larger fraction contains a smaller one.

        :param fraction: over 0, up to 1; read as the decimal that is written (0.07 of 100 is 7).
        """

    # audience

    def enrol(
        self, campaign_id: str, rows: Iterable[Enrolment], *, bad_rows: Callable[[], int] = lambda: 0
    ) -> Enrolled:
        """Take an audience in; several short transactions.

        All of ``rows`` is read (to disk, in constant memory) before anything changes: when it raises, nothing
        was enrolled. A snapshot appears at once and whole when its last row is in; killed before, there is
        none and the next call starts anew. When a snapshot is complete already nothing is read. With
        ``each_run`` rows join in batches, those known by once key are left out, and a finished campaign that
        somebody joined runs again.

        :param rows: in any order; twice the same key counts as a duplicate, the first wins.
        :param bad_rows: asked after the last row for the number of unusable ones, to be kept.
        :raises ValueError: an id or a rank the ledger can't hold.
        """

    def exclude(self, campaign_id: str, visitor_ids: Iterable[str]) -> int:
        """Replace the visitors this campaign leaves out (skipped as ``excluded``); several transactions.

        :return: how many they are now.
        """

    # sending

    def cycle(self, cycle: Cycle) -> Cycled:
        """Record results, sweep expired leases into doubt, apply the pace, claim rows: one transaction.

        Locks the campaign, then the quota row. Claims only while the campaign is running and enrolled, in the
        order of ``zones``, then by rank. A visitor who is suppressed, excluded, forgotten, over the cap or
        refused by ``screen`` is skipped instead, about 2,000 at most, so that less than the permits may be claimed
        though more are left. When the outcome of the commit is unknown
        :class:`LedgerUnavailable` is raised, and the same ``Cycle`` finds its rows again by its token.
        """

    def backlog(self, campaign_id: str) -> Backlog:
        """Tell what is left to do; cheap at any size."""

    def quota(self, use: QuotaUse) -> Granted:
        """Apply a pace to a quota row and count the holder's ``flying + permits``; for single calls."""

    def skip_pending(self, campaign_id: str, reason: str, *, limit: int = 2000) -> int:
        """Skip pending rows, held back ones too, in chunks; call until it returns 0."""

    # changing what was sent

    def edit(self, cycle: EditCycle) -> Edited | EditorBusy:
        """Take or keep the editor's place, record edits and deletions, ask for permits: one transaction."""

    def sent(
        self,
        campaign_id: str,
        *,
        below_revision: int | None = None,
        sent_before_ms: int | None = None,
        after: int = -1,
        limit: int = 500,
    ) -> list[Delivery]:
        """Read sent rows by rank, for editing and withdrawing.

        :param below_revision: only those that show an older text.
        :param sent_before_ms: only those whose state is older than this moment.
        :param after: begin above this rank; -1 at first, then the last row's rank.
        """

    # by hand

    def retry(self, campaign_id: str, state: State, *, reasons: Collection[str] | None = None) -> int:
        """Set failed, in doubt or skipped rows to pending again; several short transactions.

        A finished campaign runs again. Doubts may be delivered twice: the caller's explicit choice.

        :param state: ``FAILED``, ``IN_DOUBT`` or ``SKIPPED``.
        :param reasons: only these; None: all.
        :return: how many.
        """

    def settle(self, campaign_id: str, key: str, state: State, *, message_id: str | None = None) -> bool:
        """Decide a doubt.

        :param key: the once key of the row.
        :param state: ``SENT``, ``FAILED``, or ``PENDING`` to send again.
        :param message_id: with ``SENT``, if known; without it the row can't be edited or withdrawn.
        :return: False when there is no such row in doubt.
        """

    # looking

    def counts(self, campaign_id: str) -> Counts:
        """Count deliveries by state."""

    def breakdown(self, campaign_id: str) -> list[Share]:
        """Count deliveries by state, reason, variant and revision."""

    def series(self, campaign_id: str, *, seconds: int, since_ms: int = 0) -> list[Moment]:
        """Count deliveries by the span of time in which they came to ``SENT``, ``FAILED`` or ``IN_DOUBT``.

        :param seconds: length of a span; spans begin at multiples of it since 1970.
        :param since_ms: leave out what is older.
        """

    def deliveries(
        self,
        campaign_id: str,
        *,
        states: Collection[State] | None = None,
        reasons: Collection[str] | None = None,
        before_ms: int | None = None,
    ) -> Iterator[Delivery]:
        """Iterate over deliveries in constant memory, a page per short transaction.

        Ordered by rank; with ``states``: state by state, in each by time zone and rank. A row whose state
        changes meanwhile may be met once, twice or not at all.

        :param states: only these; None: all.
        :param reasons: only these; None: all.
        :param before_ms: only rows whose state is older than this moment.
        """

    # people

    def suppress(self, visitor_ids: Iterable[str], reason: str) -> int:
        """Never send to these visitors, in no campaign; return how many are new."""

    def unsuppress(self, visitor_ids: Iterable[str]) -> int:
        """Take visitors off the list, forgotten ones too; return how many were on it."""

    def suppressed(self) -> Iterator[Suppression]:
        """Iterate over the visitors who are suppressed."""

    def forget_visitor(self, visitor_id: str) -> int:
        """Erase a visitor's id and variables in all campaigns, and suppress their keyed hash; several steps.

        What is pending is skipped as ``forgotten``. Brevo's message ids stay, so that withdrawing works.

        :return: deliveries changed.
        """

    def scrub_variables(self, before_ms: int) -> int:
        """Erase the variables of rows that came to an end before this moment; several transactions."""

    def purge(self, campaign_id: str) -> Refusal | None:
        """Delete a campaign that is finished or aborted, whole; several transactions.

        A campaign of the same id would write to everyone again, and frequency caps forget its messages.
        """


# What follows is shared by the implementations: a rule has one place.


@dataclass(frozen=True, slots=True)
class Transition:
    """What a result does to its row: its state, and its first message id; ``extra`` adds one beside it."""

    state: State
    message_id: str | None
    extra: str | None = None


def transition(state: State, claim: int, message_id: str | None, result: Result) -> Transition | None:
    """Decide what a result changes; None: nothing.

    A message is a fact and always accepted, however late; anything else only from the holder of the claim.

    :param state: the row's.
    :param claim: the row's.
    :param message_id: the row's first.
    :param result: what its sender says.
    """
    if result.state is State.SENT:
        # While the row is being sent again its first message is kept, until the second one's fate is known.
        after = State.SENDING if state is State.SENDING and claim != result.claim else State.SENT
        if result.message_id in (None, message_id):
            if state in (State.SENT, State.WITHDRAWN) or after is state:
                return None
            return Transition(after, message_id)
        if message_id is None or state is State.WITHDRAWN:
            return Transition(after, result.message_id)
        return Transition(after, message_id, result.message_id)
    if claim != result.claim or state not in (State.SENDING, State.IN_DOUBT):
        return None
    if message_id is not None:
        return Transition(State.SENT, message_id)
    return Transition(result.state, None)


def first_ranks(fraction: float, total: int) -> int:
    """Return how many of ``total`` a fraction lets through: ``ceil(fraction * total)``, exact in decimals."""
    share = Fraction(repr(float(fraction))) * total
    return -(-share.numerator // share.denominator)


def flaw_of(identifier: str) -> str | None:
    """Say what is wrong with an id, or None: every database must agree on which ids are equal."""
    if not identifier or identifier != identifier.strip():
        return "is empty or has blanks around it"
    if len(identifier) > 255:
        return "has more than 255 characters"
    return _unstorable(identifier)


def _unstorable(text: str) -> str | None:
    if "\0" in text:
        return "contains a NUL character"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "contains half a surrogate pair"
    return None


to_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
"""Write a JSON text, the same in every ledger; raises ValueError for what JSON has no word for."""


def keyed_hash(secret: bytes, value: str) -> str:
    """Hash an id with the ledger's own secret: 32 hexadecimal digits."""
    return hashlib.blake2b(value.encode(), key=secret, digest_size=16).hexdigest()


def limit_rank(fraction: float) -> int | None:
    """Return the highest rank a fraction lets through where newcomers join; None: all.

    :raises ValueError: the fraction is not over 0 and up to 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be over 0 and up to 1, not {fraction!r}")
    return None if fraction == 1 else first_ranks(fraction, RANKS) - 1


def check_enrolment(row: Enrolment) -> None:
    """Refuse a row that not every ledger can hold.

    :raises ValueError: an id, a name or the rank has a flaw.
    """
    if flaw := flaw_of(row.visitor_id):
        raise ValueError(f"a visitor's id {flaw}")
    if flaw := "is empty" if not row.key else _unstorable(row.key):
        raise ValueError(f"a once key {flaw}")
    if not 0 <= row.rank < RANKS:
        raise ValueError("a rank must be from 0 up to 2**63")
    _check_names((row.variant, row.timezone or "", row.locale or "", row.skip or ""))


@lru_cache(maxsize=4096)
def _check_names(names: tuple[str, ...]) -> None:
    for name in names:
        if flaw := "has more than 255 characters" if len(name) > 255 else _unstorable(name):
            raise ValueError(f"a variant's, time zone's or locale's name {flaw}")


def rank_after(rank: int) -> int:
    """Return the place of the second of two once keys that have the same rank.

    :raises ValueError: there is none, with a chance of one in 2**63.
    """
    if rank + 1 == RANKS:
        raise ValueError("two once keys have the last of all ranks; choose another campaign id")
    return rank + 1


def check_campaign_id(campaign_id: str) -> None:
    """Refuse an id the ledger can't hold.

    :raises ValueError: it has a flaw.
    """
    if flaw := flaw_of(campaign_id):
        raise ValueError(f"campaign_id {flaw}")


def binding_refusal(
    kept: Mapping[str, str], kept_each_run: bool, binding: Mapping[str, str], *, each_run: bool
) -> Refusal | None:
    """Name the first part of a binding that differs from what a campaign began with, or None."""
    before = {**kept, "enrol": "each_run" if kept_each_run else "once"}
    now = {**binding, "enrol": "each_run" if each_run else "once"}
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            return Refusal(RefusalKind.OTHER_BINDING, name, before.get(name, ""), now.get(name, ""))
    return None


def status_refusal(kept: CampaignStatus, status: CampaignStatus) -> Refusal | None:
    """Refuse a change of status that :data:`STATUS_CHANGES` doesn't have, or None."""
    if status is kept or status in STATUS_CHANGES[kept]:
        return None
    return Refusal(RefusalKind.STATUS, "status", kept, status)


def purge_refusal(kept: CampaignStatus) -> Refusal | None:
    """Refuse to purge a campaign that goes on, or None."""
    if kept in (CampaignStatus.FINISHED, CampaignStatus.ABORTED):
        return None
    return Refusal(RefusalKind.STATUS, "status", kept, "purged")


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


SKIPPED_AT_ONCE = 2000
"""After so many rows skipped a claim ends, for others wait for its lock."""

FORGOTTEN = "forgotten"
"""Reason of suppressions and skips after :meth:`Ledger.forget_visitor`."""

RETRYABLE = frozenset({State.FAILED, State.IN_DOUBT, State.SKIPPED})
"""What :meth:`Ledger.retry` may set to pending."""

SETTLEMENTS = frozenset({State.SENT, State.FAILED, State.PENDING})
"""What :meth:`Ledger.settle` may decide."""

LEASE_EXPIRED = "lease_expired"
"""Reason of a doubt that came from a sweep."""

SETTLED = "settled"
"""Reason of a delivery whose doubt was settled by hand."""

CHARTED = frozenset({State.SENT, State.FAILED, State.IN_DOUBT})
"""What :meth:`Ledger.series` counts."""


def edited(row: Delivery, result: EditResult, now_ms: int) -> Delivery | None:
    """Apply an edit's or a deletion's result; None: the row is not as the editor knew it, and stays."""
    if row.state is not State.SENT or not set(row.message_ids) <= set(result.message_ids):
        return None
    return replace(
        row,
        state=result.state,
        revision=row.revision if result.revision is None else result.revision,
        text_hash=result.text_hash or row.text_hash,
        reason=result.reason,
        at_ms=row.at_ms if result.state is State.SENT else now_ms,
    )


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

    def set_status(self, campaign_id: str, status: CampaignStatus) -> Campaign | Refusal:
        """See :meth:`Ledger.set_status`."""
        with self._lock:
            book = self._book(campaign_id)
            if refusal := status_refusal(book.campaign.status, status):
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
            until = max((book.rows[rank].lease_until_ms for rank in book.sending), default=None)
            return Backlog(self.now_ms(), frozenset(zones), held_back, len(book.sending), until)

    def quota(self, use: QuotaUse) -> Granted:
        """See :meth:`Ledger.quota`."""
        with self._lock:
            return self._grant(use, self.now_ms())

    def skip_pending(self, campaign_id: str, reason: str, *, limit: int = 2000) -> int:
        """See :meth:`Ledger.skip_pending`."""
        with self._lock:
            book, now_ms, done = self._book(campaign_id), self.now_ms(), 0
            for zone in list(book.pending):
                while done < limit and (rank := book.first_pending(zone)) is not None:
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
                    if row.state is State.PENDING:
                        book.put(replace(row, state=State.SKIPPED, reason=FORGOTTEN, at_ms=now_ms))
                    self._erase(book, book.rows[row.rank], [])
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
            if refusal := purge_refusal(book.campaign.status):
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
