"""Say what every ledger does, and what it promises of each call; :class:`Ledger` knows of no implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from airflow_provider_sib.campaign.ledger.quota import Granted, Quota, QuotaUse
    from airflow_provider_sib.campaign.ledger.values import (
        Backlog,
        Campaign,
        CampaignStatus,
        Counts,
        Cycle,
        Cycled,
        Delivery,
        EditCycle,
        Edited,
        EditorBusy,
        Enrolled,
        Enrolment,
        Identity,
        Json,
        Moment,
        Refusal,
        Revision,
        Share,
        State,
        Suppression,
        Text,
    )


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

    def set_status(
        self, campaign_id: str, status: CampaignStatus, *, seen: CampaignStatus | None = None
    ) -> Campaign | Refusal:
        """Pause, resume or abort, as :data:`STATUS_CHANGES` allows; the status it has already is no refusal.

        Effective at once: nothing is claimed in a transaction that begins later. What is in flight goes on.

        :param status: the status to set.
        :param seen: refuse when it has another status than this by now; None: whatever it has.
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
        somebody joined runs again. A forgotten visitor's row is erased before it is kept, and skipped: as
        ``forgotten``, unless it came with a reason of its own.

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

    def skip_pending(
        self, campaign_id: str, reason: str, *, held_back: bool = True, limit: int = 2000
    ) -> int:
        """Skip pending rows in chunks; call until it returns 0.

        :param held_back: those too that only a larger fraction would let through.
        """

    # changing what was sent

    def edit(self, cycle: EditCycle) -> Edited | EditorBusy:
        """Take or keep the editor's place, record edits and deletions, put expired leases in doubt, ask for permits.

        One transaction.
        """

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

    def quotas(self) -> dict[tuple[str, str], Quota]:
        """Read what is known of every account's quota, by account and bucket; asks for none of it."""

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

        Refused while something is being sent under a lease that is not over: what became of it would find no row.
        A campaign of the same id would write to everyone again, and frequency caps forget its messages.
        """
