"""Name what a ledger is told and what it tells: campaigns, deliveries, results, counts; values, and the errors."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_sib.campaign.ledger.quota import Granted, QuotaUse

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


class LedgerRefused(LedgerUnavailable):
    """The ledger's database answers, and refuses: its name, the login, its password or its rights are not right.

    Calling again is right all the same: that may be mended on the server alone.
    """


class LedgerUnsafe(LedgerError):
    """The ledger can't keep what it must: a network disk, a newer schema, an asynchronous commit."""


class LedgerMissing(LedgerError):
    """There is no ledger at this place, and whoever looks makes none."""


class UnknownCampaign(LedgerError):
    """The ledger has no campaign of this id."""

    def __init__(self, campaign_id: str) -> None:
        super().__init__(
            f"This ledger has no campaign {campaign_id!r}: `campaigns list` names those it has; another ledger is "
            "chosen by `--ledger-conn-id` or ledger_conn_id."
        )
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
    :param name: the part of the binding that differs, ``text``, ``status``, ``seen`` or ``sending``.
    :param kept: what the ledger holds; with ``sending``, when the last of its leases ends, in milliseconds since 1970.
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


Screen = Callable[[Delivery], str | None]
"""``screen(delivery) -> reason``: say why this row is skipped, or None. Pure and quick: a lock is held."""


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

    @property
    def waiting(self) -> int:
        """Deliveries that may be sent to and have no outcome yet."""
        return self.due + self.by_state.get(State.SENDING, 0)


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
