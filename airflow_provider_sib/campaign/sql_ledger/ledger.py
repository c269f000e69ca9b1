"""Be a :class:`Ledger` in a database: each method is a transaction, or several, of what the rooms beside do."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.ledger import (
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
    Granted,
    Identity,
    Json,
    Moment,
    Quota,
    QuotaUse,
    Refusal,
    Revision,
    Share,
    State,
    Suppression,
    Text,
)
from airflow_provider_sib.campaign.sql_ledger import (
    books,
    campaigns,
    editing,
    enrolment,
    figures,
    parts,
    people,
    quotas,
    schema,
    sending,
    settling,
)
from airflow_provider_sib.campaign.sql_ledger.database import CHUNK, Database, Transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    import sqlalchemy as sa


class SqlLedger:
    """Keeps a ledger in a SQL database; see :class:`airflow_provider_sib.campaign.ledger.Ledger`.

    Opening it migrates its tables, and creates them unless told otherwise.

    :param url: SQLAlchemy's URL: a SQLite file's (created for its owner alone), PostgreSQL's, MySQL's, MariaDB's.
    :param clock: seconds since 1970; None is the database's own clock, which all workers share.
    :param sleep: waits so many seconds for another writer.
    :param random: a number from 0 up to 1, for the jitter of those waits.
    :param create: False: where there is no ledger none is made.
    :raises LedgerMissing: there is none, and none is to be made.
    :raises LedgerUnsafe: a network disk, a schema that needs newer code, a database of another kind.
    :raises LedgerUnavailable: the database doesn't answer.
    """

    def __init__(
        self,
        url: str | sa.engine.URL,
        *,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = random.random,
        create: bool = True,
    ) -> None:
        self._database = Database(url, clock=clock, sleep=sleep, random=random, create=create)
        try:
            opened = schema.opened(self._database, create=create)
        except BaseException:
            self._database.close()
            raise
        self._ledger_id, self._warnings = opened.ledger_id, opened.warnings
        self._database.secret = opened.secret

    # who

    def identity(self) -> Identity:
        """See :meth:`Ledger.identity`."""

        def work(tx: Transaction) -> Identity:
            # One statement sees both counts at one moment: a purge moves claims from the one to the other.
            rows = tx.rows(
                "SELECT k, v, (SELECT COALESCE(SUM(claims), 0) FROM sib_campaign) FROM sib_meta"
                " WHERE k IN ('schema', 'purged_claims')"
            )
            meta = {name: int(value) for name, value, _ in rows}
            total = int(rows[0][2]) + meta["purged_claims"]
            return Identity(self._ledger_id, meta["schema"], total, self._warnings)

        return self._database.read(work)

    def now_ms(self) -> int:
        """See :meth:`Ledger.now_ms`."""
        return self._database.read(Transaction.now_ms)

    def close(self) -> None:
        """See :meth:`Ledger.close`."""
        self._database.close()

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
        """See :meth:`Ledger.open_campaign`."""
        return self._database.write(
            lambda tx: campaigns.open_campaign(
                tx, campaign_id, binding=binding, each_run=each_run, text=text, settings=settings
            )
        )

    def campaign(self, campaign_id: str) -> Campaign:
        """See :meth:`Ledger.campaign`."""
        return self._database.read(lambda tx: books.look(tx, campaign_id).campaign)

    def campaigns(self) -> list[Campaign]:
        """See :meth:`Ledger.campaigns`."""
        return self._database.read(books.every)

    def revise(self, campaign_id: str, text: Text) -> Campaign:
        """See :meth:`Ledger.revise`."""
        return self._database.write(lambda tx: campaigns.revise(tx, campaign_id, text))

    def revisions(self, campaign_id: str) -> list[Revision]:
        """See :meth:`Ledger.revisions`."""
        return self._database.read(lambda tx: campaigns.revisions(tx, campaign_id))

    def set_status(
        self, campaign_id: str, status: CampaignStatus, *, seen: CampaignStatus | None = None
    ) -> Campaign | Refusal:
        """See :meth:`Ledger.set_status`."""
        return self._database.write(lambda tx: campaigns.set_status(tx, campaign_id, status, seen))

    def finish(self, campaign_id: str) -> bool:
        """See :meth:`Ledger.finish`."""
        return self._database.write(lambda tx: campaigns.finish(tx, campaign_id))

    def set_fraction(self, campaign_id: str, fraction: float) -> Campaign:
        """See :meth:`Ledger.set_fraction`."""
        return self._database.write(lambda tx: campaigns.set_fraction(tx, campaign_id, fraction))

    # audience

    def enrol(
        self, campaign_id: str, rows: Iterable[Enrolment], *, bad_rows: Callable[[], int] = lambda: 0
    ) -> Enrolled:
        """See :meth:`Ledger.enrol`."""
        return enrolment.enrol(self._database, campaign_id, rows, bad_rows=bad_rows)

    def exclude(self, campaign_id: str, visitor_ids: Iterable[str]) -> int:
        """See :meth:`Ledger.exclude`."""
        return people.exclude(self._database, campaign_id, visitor_ids)

    # sending

    def cycle(self, cycle: Cycle) -> Cycled:
        """See :meth:`Ledger.cycle`."""
        return self._database.write(lambda tx: sending.cycle(tx, cycle), token=cycle.token)

    def backlog(self, campaign_id: str) -> Backlog:
        """See :meth:`Ledger.backlog`."""
        return self._database.read(lambda tx: figures.backlog(tx, campaign_id))

    def quota(self, use: QuotaUse) -> Granted:
        """See :meth:`Ledger.quota`."""
        return self._database.write(lambda tx: quotas.grant(tx, use, tx.now_ms()))

    def skip_pending(
        self, campaign_id: str, reason: str, *, held_back: bool = True, limit: int = CHUNK
    ) -> int:
        """See :meth:`Ledger.skip_pending`."""
        return self._database.write(
            lambda tx: settling.skip_pending(tx, campaign_id, reason, held_back=held_back, limit=limit)
        )

    # changing what was sent

    def edit(self, cycle: EditCycle) -> Edited | EditorBusy:
        """See :meth:`Ledger.edit`."""
        return self._database.write(lambda tx: editing.edit(tx, cycle))

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
        return self._database.read(
            lambda tx: editing.sent(
                tx,
                campaign_id,
                below_revision=below_revision,
                sent_before_ms=sent_before_ms,
                after=after,
                limit=limit,
            )
        )

    # by hand

    def retry(self, campaign_id: str, state: State, *, reasons: Collection[str] | None = None) -> int:
        """See :meth:`Ledger.retry`."""
        return settling.retry(self._database, campaign_id, state, reasons=reasons)

    def settle(self, campaign_id: str, key: str, state: State, *, message_id: str | None = None) -> bool:
        """See :meth:`Ledger.settle`."""
        return self._database.write(
            lambda tx: settling.settle(tx, campaign_id, key, state, message_id=message_id)
        )

    # looking

    def quotas(self) -> dict[tuple[str, str], Quota]:
        """See :meth:`Ledger.quotas`."""
        return self._database.read(quotas.known)

    def counts(self, campaign_id: str) -> Counts:
        """See :meth:`Ledger.counts`."""
        return self._database.read(lambda tx: figures.counts(tx, campaign_id))

    def breakdown(self, campaign_id: str) -> list[Share]:
        """See :meth:`Ledger.breakdown`."""
        return self._database.read(lambda tx: figures.breakdown(tx, campaign_id))

    def series(self, campaign_id: str, *, seconds: int, since_ms: int = 0) -> list[Moment]:
        """See :meth:`Ledger.series`."""
        return self._database.read(
            lambda tx: figures.series(tx, campaign_id, seconds=seconds, since_ms=since_ms)
        )

    def deliveries(
        self,
        campaign_id: str,
        *,
        states: Collection[State] | None = None,
        reasons: Collection[str] | None = None,
        before_ms: int | None = None,
    ) -> Iterator[Delivery]:
        """See :meth:`Ledger.deliveries`."""
        return figures.every(self._database, campaign_id, states=states, reasons=reasons, before_ms=before_ms)

    # people

    def suppress(self, visitor_ids: Iterable[str], reason: str) -> int:
        """See :meth:`Ledger.suppress`."""
        return people.suppress(self._database, visitor_ids, reason)

    def unsuppress(self, visitor_ids: Iterable[str]) -> int:
        """See :meth:`Ledger.unsuppress`."""
        return people.unsuppress(self._database, visitor_ids)

    def suppressed(self) -> Iterator[Suppression]:
        """See :meth:`Ledger.suppressed`."""
        return people.suppressed(self._database)

    def forget_visitor(self, visitor_id: str) -> int:
        """See :meth:`Ledger.forget_visitor`."""
        return people.forget_visitor(self._database, visitor_id)

    def scrub_variables(self, before_ms: int) -> int:
        """See :meth:`Ledger.scrub_variables`."""
        return people.scrub_variables(self._database, before_ms)

    def purge(self, campaign_id: str) -> Refusal | None:
        """See :meth:`Ledger.purge`."""
        refusal = self._database.write(lambda tx: campaigns.purge(tx, campaign_id))
        parts.bury(self._database)
        return refusal
