"""Keep who got what, so that nobody is sent to twice: values, the :class:`Ledger` protocol, a memory ledger.

What a ledger promises: per campaign and once key at most one POST begins, since a row is durably ``SENDING``
before its POST and goes back to ``PENDING`` only by the holder of its claim (for a POST that surely did not
happen), or by hand. What it doesn't know: HTTP, texts, windows, and how many requests the quota allows; the
last is told by a :data:`Pace` function that is called on the locked quota row.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from fractions import Fraction
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


class LedgerUnavailable(LedgerError):  # noqa: N818 - named by what it means, as all of the error tree
    """The ledger did not answer, or a commit's outcome is unknown: call again with the same arguments."""


class LedgerUnsafe(LedgerError):  # noqa: N818 - as above
    """The ledger can't keep what it must: a network disk, a newer schema, an asynchronous commit."""


class UnknownCampaign(LedgerError):  # noqa: N818 - as above
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
"""``screen(delivery) -> reason``: say why this row is skipped now, or None. Pure and quick: a lock is held."""


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
        refused by ``screen`` is skipped instead. When the outcome of the commit is unknown
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

    def retry(
        self,
        campaign_id: str,
        state: State,
        *,
        reasons: Collection[str] | None = None,
        limit: int = 2000,
    ) -> int:
        """Set failed, in doubt or skipped rows to pending again, in chunks; call until it returns 0.

        A finished campaign runs again. Doubts may be delivered twice: the caller's explicit choice.

        :param state: ``FAILED``, ``IN_DOUBT`` or ``SKIPPED``.
        :param reasons: only these; None: all.
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

        A campaign of the same id would write to everyone again.
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
    if "\0" in identifier:
        return "contains a NUL character"
    if not identifier.isascii():
        try:
            identifier.encode()
        except UnicodeEncodeError:
            return "contains half a surrogate pair"
    return None


def keyed_hash(secret: bytes, value: str) -> str:
    """Hash an id with the ledger's own secret: 32 hexadecimal digits."""
    return hashlib.blake2b(value.encode(), key=secret, digest_size=16).hexdigest()
