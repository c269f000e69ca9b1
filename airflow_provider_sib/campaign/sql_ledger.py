"""Keep the ledger in SQLite, PostgreSQL, MySQL or MariaDB, with the promises of :mod:`.ledger`, durably.

A row that was answered to be ``SENDING`` is on disk before the answer; a process or a database may die between
any two statements. What it doesn't know: whether the database keeps what it says it committed (a network disk, an
asynchronous commit); it refuses the first, and reports or mends the second where the database tells.

Lock order, the same everywhere: campaign, then quota, then frequency cap group, then the ledger's own facts.
"""

# ruff: noqa: S608 - statements are put together from this module's own constants; values are always bound

from __future__ import annotations

import json
import marshal
import os
import random
import re
import secrets
import sqlite3
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.pool import QueuePool

from airflow_provider_sib import __version__
from airflow_provider_sib.campaign.ledger import (
    CHARTED,
    FORGOTTEN,
    LEASE_EXPIRED,
    RANKS,
    RETRYABLE,
    SETTLED,
    SETTLEMENTS,
    SKIPPED_AT_ONCE,
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
    Holding,
    Identity,
    Json,
    LedgerUnavailable,
    LedgerUnsafe,
    Moment,
    Quota,
    QuotaUse,
    Refusal,
    RefusalKind,
    Result,
    Revision,
    Share,
    State,
    Suppression,
    Text,
    UnknownCampaign,
    binding_refusal,
    check_campaign_id,
    check_enrolment,
    edited,
    first_ranks,
    flaw_of,
    held,
    keyed_hash,
    limit_rank,
    new_token,
    paced,
    purge_refusal,
    rank_after,
    status_refusal,
    to_json,
    transition,
)

T = TypeVar("T")
Row = Sequence[Any]
Params = Mapping[str, Any]

SCHEMA = 1
"""Version of the tables this code writes."""

READABLE_FROM = ("1", "0.1.0")
"""The oldest code that may use tables of :data:`SCHEMA`: the schema it knows, and its release."""

CHUNK = 2000
"""Rows per transaction where many are changed: other writers wait for less than 100 ms."""

PATIENCE_SECONDS = 30.0
"""How long to wait for another writer before the ledger counts as unavailable."""

NETWORK_DISKS = frozenset(
    [
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
    ]
    + ["smb2", "smb3", "smbfs"]
    + [f"fuse.{name}" for name in ("blobfuse", "blobfuse2", "ceph", "davfs", "gcsfuse", "glusterfs")]
    + [f"fuse.{name}" for name in ("rclone", "s3fs", "sshfs")]
)
"""File systems on which SQLite's locks or its shared memory don't hold (https://www.sqlite.org/wal.html)."""

DELIVERY_COLUMNS = (
    "seq, once_key, visitor, vars, zone, locale, variant, state, reason, claim, lease_ms, revision, text_hash, "
    "message, at_ms"
)
ENROLMENT_COLUMNS = "part seq once_key visitor zone variant locale vars state reason at_ms".split()  # noqa: SIM905 - reads better
CAMPAIGN_COLUMNS = (
    "campaign, part, binding, each_run, status, revision, digest, settings, memo, enrolled_at_ms, total, "
    "duplicates, bad_rows, fraction, limit_rank, claims, zones, created_at_ms, last_seen_ms, next_wake_ms, "
    "sweep_at_ms, editor, editor_until_ms"
)


@dataclass(frozen=True, slots=True)
class _Dialect:
    """What one database says differently.

    :param now: its clock, in milliseconds; None: the process's own is the same one.
    :param lock: what makes a SELECT lock its rows.
    :param text: type of a long text.
    :param table: what ends a CREATE TABLE; ``keyed`` for the table of deliveries, whose rows lie in key order.
    :param todo: the table of deliveries, to be read by the index of states.
    :param next_in_zone: rows of one state and zone up to a rank, so that only that index can give their order.
        PostgreSQL would walk the primary key past everything that is done, were zone a constant.
    :param missing: end of an INSERT that leaves alone what is there; with a column to name for MySQL.
    :param generation: end of an INSERT of a suppression that renews its generation instead.
    """

    now: str | None
    lock: str
    text: str
    table: str
    keyed: str
    todo: str
    next_in_zone: str
    missing: str
    generation: str


_PLAIN_NEXT = "zone = :zone AND seq > :after AND seq <= :upto ORDER BY seq"
_DIALECTS = {
    "sqlite": _Dialect(
        now=None,
        lock="",
        text="TEXT",
        table="",
        keyed=" WITHOUT ROWID",
        todo="sib_delivery INDEXED BY sib_delivery_todo",
        next_in_zone=_PLAIN_NEXT,
        missing="ON CONFLICT DO NOTHING",
        generation="ON CONFLICT (scope, hash) DO UPDATE SET gen = excluded.gen",
    ),
    "postgresql": _Dialect(
        now="CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        lock=" FOR UPDATE",
        text="TEXT",
        table="",
        keyed="",
        todo="sib_delivery",
        next_in_zone="(zone, seq) > (:zone, :after) AND (zone, seq) <= (:zone, :upto) ORDER BY zone, seq",
        missing="ON CONFLICT DO NOTHING",
        generation="ON CONFLICT (scope, hash) DO UPDATE SET gen = excluded.gen",
    ),
    "mysql": _Dialect(
        now="CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)",
        lock=" FOR UPDATE",
        text="MEDIUMTEXT",
        table=" ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin",
        keyed=" ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin",
        todo="sib_delivery FORCE INDEX (sib_delivery_todo)",
        next_in_zone=_PLAIN_NEXT,
        missing="ON DUPLICATE KEY UPDATE {0} = {0}",
        generation="ON DUPLICATE KEY UPDATE gen = VALUES(gen)",
    ),
}
_DIALECTS["mariadb"] = _DIALECTS["mysql"]

STEPS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE IF NOT EXISTS sib_meta (
            k VARCHAR(255) NOT NULL PRIMARY KEY, v {text} NOT NULL){table}""",
        """CREATE TABLE IF NOT EXISTS sib_campaign (
            campaign VARCHAR(255) NOT NULL PRIMARY KEY, part BIGINT NOT NULL, binding {text} NOT NULL,
            each_run SMALLINT NOT NULL, status VARCHAR(16) NOT NULL, revision INTEGER NOT NULL,
            digest VARCHAR(255) NOT NULL, settings {text} NOT NULL, memo {text} NOT NULL, enrolled_at_ms BIGINT,
            total BIGINT NOT NULL, duplicates BIGINT NOT NULL, bad_rows BIGINT NOT NULL,
            fraction DOUBLE PRECISION NOT NULL, limit_rank BIGINT, claims BIGINT NOT NULL, zones {text} NOT NULL,
            created_at_ms BIGINT NOT NULL, last_seen_ms BIGINT, next_wake_ms BIGINT, sweep_at_ms BIGINT,
            editor BIGINT NOT NULL, editor_until_ms BIGINT NOT NULL){table}""",
        """CREATE TABLE IF NOT EXISTS sib_text (
            campaign VARCHAR(255) NOT NULL, revision INTEGER NOT NULL, digest VARCHAR(255) NOT NULL,
            body {text} NOT NULL, at_ms BIGINT NOT NULL, PRIMARY KEY (campaign, revision)){table}""",
        """CREATE TABLE IF NOT EXISTS sib_part (
            part BIGINT NOT NULL PRIMARY KEY, campaign VARCHAR(255) NOT NULL, state VARCHAR(8) NOT NULL,
            lease_ms BIGINT NOT NULL){table}""",
        """CREATE TABLE IF NOT EXISTS sib_delivery (
            part BIGINT NOT NULL, seq BIGINT NOT NULL, zone INTEGER NOT NULL, state SMALLINT NOT NULL,
            visitor VARCHAR(255), once_key {text} NOT NULL, variant VARCHAR(255) NOT NULL, locale VARCHAR(255),
            vars {text}, claim BIGINT NOT NULL DEFAULT 0, lease_ms BIGINT NOT NULL DEFAULT 0,
            revision INTEGER NOT NULL DEFAULT 0, text_hash VARCHAR(255), message VARCHAR(255),
            reason VARCHAR(255), at_ms BIGINT NOT NULL, PRIMARY KEY (part, seq){inner}){keyed}""",
        "{outer}",
        """CREATE TABLE IF NOT EXISTS sib_message (
            part BIGINT NOT NULL, seq BIGINT NOT NULL, message VARCHAR(255) NOT NULL,
            PRIMARY KEY (part, seq, message)){table}""",
        """CREATE TABLE IF NOT EXISTS sib_suppress (
            scope VARCHAR(255) NOT NULL, hash CHAR(32) NOT NULL, visitor VARCHAR(255), reason VARCHAR(255) NOT NULL,
            at_ms BIGINT NOT NULL, gen BIGINT NOT NULL, PRIMARY KEY (scope, hash)){keyed}""",
        """CREATE TABLE IF NOT EXISTS sib_touch (
            grp VARCHAR(255) NOT NULL, hash CHAR(32) NOT NULL, part BIGINT NOT NULL, seq BIGINT NOT NULL,
            at_ms BIGINT NOT NULL, PRIMARY KEY (part, seq){touch_inner}){keyed}""",
        "{touch_outer}",
        """CREATE TABLE IF NOT EXISTS sib_quota (
            account VARCHAR(255) NOT NULL, bucket VARCHAR(64) NOT NULL, doc {text} NOT NULL,
            PRIMARY KEY (account, bucket)){table}""",
    ),
)
"""What each schema version adds. Each statement may be run again, by older code beside newer, and only adds."""

TODO_INDEX = "sib_delivery_todo (part, state, zone, seq)"
TOUCH_INDEX = "sib_touch_seen (grp, hash, at_ms)"


class SqlLedger:
    """Keeps a ledger in a SQL database; see :class:`airflow_provider_sib.campaign.ledger.Ledger`.

    Opening it creates or migrates its tables.

    :param url: SQLAlchemy's URL: a SQLite file's (created for its owner alone), PostgreSQL's, MySQL's, MariaDB's.
    :param clock: seconds since 1970; None is the database's own clock, which all workers share.
    :param sleep: waits so many seconds for another writer.
    :param random: a number from 0 up to 1, for the jitter of those waits.
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
    ) -> None:
        url = sa.engine.make_url(url)
        self._kind = url.get_backend_name()
        if self._kind not in _DIALECTS:
            raise LedgerUnsafe(
                f"A ledger can't be kept in {self._kind}: use SQLite, PostgreSQL, MySQL or MariaDB."
            )
        self._sqlite = self._kind == "sqlite"
        self._dialect = _DIALECTS[self._kind]
        self._clock = time.time if clock is None and self._sqlite else clock
        self._sleep, self._random = sleep, random
        # Claim tokens whose commit was begun and not confirmed.
        self._unsure: set[int] = set()
        self._bodies: dict[str, Json] = {}
        if self._sqlite:
            _prepare_file(url.database)
        self._engine = _engine(url, sqlite=self._sqlite)
        self._ledger_id, self._secret, self._warnings = self._open()

    # who

    def identity(self) -> Identity:
        """See :meth:`Ledger.identity`."""

        def work(conn: sa.engine.Connection) -> Identity:
            meta = self._meta(conn)
            claims = _one(conn, "SELECT COALESCE(SUM(claims), 0) FROM sib_campaign")[0]
            total = int(claims) + int(meta["purged_claims"])
            return Identity(self._ledger_id, int(meta["schema"]), total, self._warnings)

        return self._read(work)

    def now_ms(self) -> int:
        """See :meth:`Ledger.now_ms`."""
        return self._read(self._now)

    def close(self) -> None:
        """See :meth:`Ledger.close`."""
        self._engine.dispose()

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
        check_campaign_id(campaign_id)

        def work(conn: sa.engine.Connection) -> Campaign | Refusal:
            if text is not None:
                self._create(conn, campaign_id, dict(binding), each_run=each_run, text=text)
            kept = self._lock(conn, campaign_id).campaign
            if refusal := binding_refusal(kept.binding, kept.each_run, binding, each_run=each_run):
                return refusal
            if text is not None and not _all(
                conn,
                "SELECT revision FROM sib_text WHERE campaign = :campaign AND digest = :digest",
                campaign=campaign_id,
                digest=text.digest,
            ):
                return Refusal(RefusalKind.UNKNOWN_TEXT, "text", kept.text.digest, text.digest)
            _run(
                conn,
                "UPDATE sib_campaign SET settings = :settings WHERE campaign = :campaign",
                settings=to_json(dict(settings)),
                campaign=campaign_id,
            )
            return replace(kept, settings=dict(settings))

        return self._write(work)

    def campaign(self, campaign_id: str) -> Campaign:
        """See :meth:`Ledger.campaign`."""
        return self._read(lambda conn: self._look(conn, campaign_id).campaign)

    def campaigns(self) -> list[Campaign]:
        """See :meth:`Ledger.campaigns`."""

        def work(conn: sa.engine.Connection) -> list[Campaign]:
            rows = _all(
                conn, f"SELECT {CAMPAIGN_COLUMNS}, 0 FROM sib_campaign ORDER BY created_at_ms DESC, campaign"
            )
            return [self._book(conn, row).campaign for row in rows]

        return self._read(work)

    def revise(self, campaign_id: str, text: Text) -> Campaign:
        """See :meth:`Ledger.revise`."""

        def work(conn: sa.engine.Connection) -> Campaign:
            book = self._lock(conn, campaign_id)
            kept = book.campaign
            if kept.text.digest == text.digest:
                return kept
            revision = kept.revision + 1
            self._add_text(conn, campaign_id, revision, text, book.now_ms)
            _run(
                conn,
                "UPDATE sib_campaign SET revision = :revision, digest = :digest WHERE campaign = :campaign",
                revision=revision,
                digest=text.digest,
                campaign=campaign_id,
            )
            return replace(kept, revision=revision, text=text)

        return self._write(work)

    def revisions(self, campaign_id: str) -> list[Revision]:
        """See :meth:`Ledger.revisions`."""

        def work(conn: sa.engine.Connection) -> list[Revision]:
            self._look(conn, campaign_id)
            rows = _all(
                conn,
                "SELECT revision, digest, body, at_ms FROM sib_text WHERE campaign = :campaign ORDER BY revision",
                campaign=campaign_id,
            )
            return [
                Revision(revision, Text(digest, json.loads(body)), at_ms)
                for revision, digest, body, at_ms in rows
            ]

        return self._read(work)

    def set_status(self, campaign_id: str, status: CampaignStatus) -> Campaign | Refusal:
        """See :meth:`Ledger.set_status`."""

        def work(conn: sa.engine.Connection) -> Campaign | Refusal:
            kept = self._lock(conn, campaign_id).campaign
            if refusal := status_refusal(kept.status, status):
                return refusal
            self._set_status(conn, campaign_id, status)
            return replace(kept, status=status)

        return self._write(work)

    def finish(self, campaign_id: str) -> bool:
        """See :meth:`Ledger.finish`."""

        def work(conn: sa.engine.Connection) -> bool:
            book = self._lock(conn, campaign_id)
            status = book.campaign.status
            for state in (State.PENDING, State.SENDING):
                if self._occupied(conn, book, state):
                    return status is CampaignStatus.FINISHED
            if status is CampaignStatus.RUNNING:
                status = CampaignStatus.FINISHED
                _run(
                    conn,
                    "UPDATE sib_campaign SET status = :status, next_wake_ms = NULL WHERE campaign = :campaign",
                    status=status.value,
                    campaign=campaign_id,
                )
            return status is CampaignStatus.FINISHED

        return self._write(work)

    def set_fraction(self, campaign_id: str, fraction: float) -> Campaign:
        """See :meth:`Ledger.set_fraction`."""
        limit = limit_rank(fraction)

        def work(conn: sa.engine.Connection) -> Campaign:
            book = self._lock(conn, campaign_id)
            kept, upto = book.campaign, limit
            if upto is not None and not kept.each_run:
                place = first_ranks(fraction, kept.total) - 1
                upto = -1 if place < 0 else self._rank_at(conn, book.part, place)
            _run(
                conn,
                "UPDATE sib_campaign SET fraction = :fraction, limit_rank = :upto WHERE campaign = :campaign",
                fraction=fraction,
                upto=upto,
                campaign=campaign_id,
            )
            return replace(kept, fraction=fraction, limit_rank=upto)

        return self._write(work)

    # audience

    def enrol(
        self, campaign_id: str, rows: Iterable[Enrolment], *, bad_rows: Callable[[], int] = lambda: 0
    ) -> Enrolled:
        """See :meth:`Ledger.enrol`."""
        kept = self.campaign(campaign_id)
        if kept.enrolled_at_ms is not None and not kept.each_run:
            return Enrolled(0, kept.duplicates, kept.bad_rows, kept.total)
        with _Spool() as spool:
            spool.read(rows)
            bad = bad_rows()
            enrolled = None
            while enrolled is None:
                enrolled = (self._join if kept.each_run else self._snapshot)(campaign_id, spool, bad)
        self._bury()
        return enrolled

    def exclude(self, campaign_id: str, visitor_ids: Iterable[str]) -> int:
        """See :meth:`Ledger.exclude`."""
        self.campaign(campaign_id)
        gen = new_token()

        def add(conn: sa.engine.Connection, *, hashes: list[str]) -> None:
            now_ms = self._now(conn)
            _many(
                conn,
                "INSERT INTO sib_suppress (scope, hash, visitor, reason, at_ms, gen)"
                f" VALUES (:scope, :hash, NULL, 'excluded', :at_ms, :gen) {self._dialect.generation}",
                [{"scope": campaign_id, "hash": hash_, "at_ms": now_ms, "gen": gen} for hash_ in hashes],
            )

        for chunk in _chunks(self._hash(visitor_id) for visitor_id in visitor_ids):
            self._write(partial(add, hashes=sorted(set(chunk))))

        def end(conn: sa.engine.Connection) -> int:
            self._lock(conn, campaign_id)
            _run(
                conn,
                "DELETE FROM sib_suppress WHERE scope = :scope AND gen <> :gen",
                scope=campaign_id,
                gen=gen,
            )
            return int(
                _one(conn, "SELECT COUNT(*) FROM sib_suppress WHERE scope = :scope", scope=campaign_id)[0]
            )

        return self._write(end)

    # sending

    def cycle(self, cycle: Cycle) -> Cycled:
        """See :meth:`Ledger.cycle`."""
        return self._write(lambda conn: self._cycle(conn, cycle), token=cycle.token)

    def backlog(self, campaign_id: str) -> Backlog:
        """See :meth:`Ledger.backlog`."""

        def work(conn: sa.engine.Connection) -> Backlog:
            book = self._look(conn, campaign_id)
            limit, zones, held_back = book.campaign.limit_rank, set(), False
            for zone in self._occupied(conn, book, State.PENDING):
                first = self._page(conn, book, State.PENDING, zone, limit=1, columns="seq")
                if first and (limit is None or first[0][0] <= limit):
                    zones.add(book.zones[zone])
                if limit is not None and not held_back:
                    held_back = bool(
                        self._page(conn, book, State.PENDING, zone, after=limit, limit=1, columns="seq")
                    )
            sending, until = _one(
                conn,
                f"SELECT COUNT(*), MAX(lease_ms) FROM {self._dialect.todo} WHERE part = :part AND state = 1",
                part=book.part,
            )
            return Backlog(book.now_ms, frozenset(zones), held_back, sending, until)

        return self._read(work)

    def quota(self, use: QuotaUse) -> Granted:
        """See :meth:`Ledger.quota`."""
        return self._write(lambda conn: self._grant(conn, use, self._now(conn)))

    def skip_pending(self, campaign_id: str, reason: str, *, limit: int = CHUNK) -> int:
        """See :meth:`Ledger.skip_pending`."""

        def work(conn: sa.engine.Connection) -> int:
            book, done = self._lock(conn, campaign_id), 0
            for zone in self._occupied(conn, book, State.PENDING):
                page = self._page(conn, book, State.PENDING, zone, limit=limit - done, columns="seq")
                if page:
                    self._skip(conn, book, {reason: [seq for (seq,) in page]})
                    done += len(page)
                if done >= limit:
                    break
            return done

        return self._write(work)

    # changing what was sent

    def edit(self, cycle: EditCycle) -> Edited | EditorBusy:
        """See :meth:`Ledger.edit`."""

        def work(conn: sa.engine.Connection) -> Edited | EditorBusy:
            book = self._lock(conn, cycle.campaign_id)
            if book.editor not in (0, cycle.editor) and book.editor_until_ms > book.now_ms:
                return EditorBusy(book.now_ms, book.editor_until_ms)
            recorded = self._record_edits(conn, book, cycle) if cycle.results else 0
            granted = self._grant(conn, cycle.quota, book.now_ms)
            _run(
                conn,
                "UPDATE sib_campaign SET editor = :editor, editor_until_ms = :until WHERE campaign = :campaign",
                editor=cycle.editor if cycle.lease_seconds else 0,
                until=book.now_ms + round(cycle.lease_seconds * 1000),
                campaign=cycle.campaign_id,
            )
            return Edited(book.now_ms, book.campaign, recorded, granted)

        return self._write(work)

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

        def work(conn: sa.engine.Connection) -> list[Delivery]:
            book = self._look(conn, campaign_id)
            older = "" if below_revision is None else " AND revision < :below"
            before = "" if sent_before_ms is None else " AND at_ms < :before"
            rows = _all(
                conn,
                f"SELECT {DELIVERY_COLUMNS} FROM sib_delivery WHERE part = :part AND seq > :after AND state+0 = 2"
                f"{older}{before} ORDER BY seq LIMIT :limit",
                part=book.part,
                after=after,
                below=below_revision,
                before=sent_before_ms,
                limit=limit,
            )
            return self._deliveries(conn, book, rows)

        return self._read(work)

    # by hand

    def retry(self, campaign_id: str, state: State, *, reasons: Collection[str] | None = None) -> int:
        """See :meth:`Ledger.retry`."""
        if state not in RETRYABLE:
            raise ValueError(f"deliveries that are {state.name.lower()} can't be tried again")
        done = 0
        for zone in range(len(self._read(lambda conn: self._look(conn, campaign_id)).zones)):
            after = -1
            while True:

                def work(conn: sa.engine.Connection, zone: int = zone, after: int = after) -> list[int]:
                    book = self._lock(conn, campaign_id)
                    page = self._page(
                        conn, book, state, zone, after=after, limit=CHUNK, columns="seq", reasons=reasons
                    )
                    seqs = [seq for (seq,) in page]
                    self._again(conn, book, state, seqs)
                    return seqs

                seqs = self._write(work)
                done += len(seqs)
                if len(seqs) < CHUNK:
                    break
                after = seqs[-1]
        return done

    def settle(self, campaign_id: str, key: str, state: State, *, message_id: str | None = None) -> bool:
        """See :meth:`Ledger.settle`."""
        if state not in SETTLEMENTS:
            raise ValueError(f"a doubt can't be settled as {state.name.lower()}")

        def work(conn: sa.engine.Connection) -> bool:
            book = self._lock(conn, campaign_id)
            rows = _all(
                conn,
                f"SELECT seq, message, once_key FROM {self._dialect.todo}"
                " WHERE part = :part AND state = 4 AND once_key = :key",
                part=book.part,
                key=key,
            )
            # MySQL takes "a" and "a " for equal.
            found = next(((seq, message) for seq, message, once_key in rows if once_key == key), None)
            if found is None:
                return False
            seq, message = found
            if state is State.PENDING:
                self._again(conn, book, State.IN_DOUBT, [seq])
                return True
            _run(
                conn,
                "UPDATE sib_delivery SET state = :state, message = :message, reason = :reason, at_ms = :at_ms"
                " WHERE part = :part AND seq = :seq AND state+0 = 4",
                state=int(state),
                message=message or (message_id if state is State.SENT else None),
                reason=SETTLED,
                at_ms=book.now_ms,
                part=book.part,
                seq=seq,
            )
            if state is State.FAILED:
                self._untouch(conn, book.part, [seq])
            return True

        return self._write(work)

    # looking

    def counts(self, campaign_id: str) -> Counts:
        """See :meth:`Ledger.counts`."""

        def work(conn: sa.engine.Connection) -> Counts:
            book = self._look(conn, campaign_id)
            limit, held_back = book.campaign.limit_rank, 0
            rows = _all(
                conn,
                f"SELECT state, COUNT(*) FROM {self._dialect.todo} WHERE part = :part GROUP BY state",
                part=book.part,
            )
            if limit is not None:
                held_back = _one(
                    conn,
                    f"SELECT COUNT(*) FROM {self._dialect.todo}"
                    " WHERE part = :part AND state = 0 AND seq > :upto",
                    part=book.part,
                    upto=limit,
                )[0]
            return Counts({State(state): count for state, count in rows}, held_back)

        return self._read(work)

    def breakdown(self, campaign_id: str) -> list[Share]:
        """See :meth:`Ledger.breakdown`."""

        def work(conn: sa.engine.Connection) -> list[Share]:
            rows = _all(
                conn,
                "SELECT state, reason, variant, revision, COUNT(*) FROM sib_delivery WHERE part = :part"
                " GROUP BY state, reason, variant, revision",
                part=self._look(conn, campaign_id).part,
            )
            shares = [Share(State(state), *alike) for state, *alike in rows]
            return sorted(
                shares, key=lambda share: (share.state, share.reason or "", share.variant, share.revision)
            )

        return self._read(work)

    def series(self, campaign_id: str, *, seconds: int, since_ms: int = 0) -> list[Moment]:
        """See :meth:`Ledger.series`."""

        def work(conn: sa.engine.Connection) -> list[Moment]:
            # The span is a literal, for PostgreSQL doesn't see that two parameters group alike.
            start = f"at_ms - at_ms % {int(seconds) * 1000}"
            rows = _all(
                conn,
                f"SELECT {start}, state, COUNT(*) FROM sib_delivery WHERE part = :part AND state IN :states"
                f" AND at_ms >= :since GROUP BY {start}, state",
                part=self._look(conn, campaign_id).part,
                states=[int(state) for state in CHARTED],
                since=since_ms,
            )
            return [Moment(*row) for row in sorted((at, State(state), count) for at, state, count in rows)]

        return self._read(work)

    def deliveries(
        self,
        campaign_id: str,
        *,
        states: Collection[State] | None = None,
        reasons: Collection[str] | None = None,
        before_ms: int | None = None,
    ) -> Iterator[Delivery]:
        """See :meth:`Ledger.deliveries`."""
        book = self._read(lambda conn: self._look(conn, campaign_id))
        places: list[tuple[State | None, int]] = [(None, 0)]
        if states is not None:
            places = [(state, zone) for state in sorted(states) for zone in range(len(book.zones))]

        def pages() -> Iterator[Delivery]:
            for state, zone in places:
                after = -1
                while True:

                    def work(
                        conn: sa.engine.Connection,
                        state: State | None = state,
                        zone: int = zone,
                        after: int = after,
                    ) -> list[Delivery]:
                        rows = self._page(
                            conn,
                            book,
                            state,
                            zone,
                            after=after,
                            limit=500,
                            reasons=reasons,
                            before_ms=before_ms,
                        )
                        return self._deliveries(conn, book, rows)

                    page = self._read(work)
                    yield from page
                    if len(page) < 500:
                        break
                    after = page[-1].rank

        return pages()

    # people

    def suppress(self, visitor_ids: Iterable[str], reason: str) -> int:
        """See :meth:`Ledger.suppress`."""
        new = 0
        for chunk in _chunks(visitor_ids):
            if flaw := next(filter(None, map(flaw_of, chunk)), None):
                raise ValueError(f"a visitor's id {flaw}")
            by_hash = {self._hash(visitor_id): visitor_id for visitor_id in chunk}

            def work(conn: sa.engine.Connection, by_hash: dict[str, str] = by_hash) -> int:
                there = _all(
                    conn,
                    "SELECT hash FROM sib_suppress WHERE scope = '' AND hash IN :hashes",
                    hashes=list(by_hash),
                )
                absent = sorted(by_hash.keys() - {hash_ for (hash_,) in there})
                self._suppress(conn, [(hash_, by_hash[hash_]) for hash_ in absent], reason)
                return len(absent)

            new += self._write(work)
        return new

    def unsuppress(self, visitor_ids: Iterable[str]) -> int:
        """See :meth:`Ledger.unsuppress`."""
        gone = 0
        for chunk in _chunks(visitor_ids):
            hashes = sorted({self._hash(visitor_id) for visitor_id in chunk})

            def work(conn: sa.engine.Connection, hashes: list[str] = hashes) -> int:
                sql = "DELETE FROM sib_suppress WHERE scope = '' AND hash IN :hashes"
                return _run(conn, sql, hashes=hashes).rowcount

            gone += self._write(work)
        return gone

    def suppressed(self) -> Iterator[Suppression]:
        """See :meth:`Ledger.suppressed`."""
        after = ""
        while True:

            def work(conn: sa.engine.Connection, after: str = after) -> list[Row]:
                return _all(
                    conn,
                    "SELECT hash, visitor, reason, at_ms FROM sib_suppress WHERE scope = '' AND hash > :after"
                    " ORDER BY hash LIMIT 1000",
                    after=after,
                )

            rows = self._read(work)
            yield from (Suppression(*row[1:]) for row in rows)
            if len(rows) < 1000:
                return
            after = rows[-1][0]

    def forget_visitor(self, visitor_id: str) -> int:
        """See :meth:`Ledger.forget_visitor`."""
        hashed = self._hash(visitor_id)

        def mark(conn: sa.engine.Connection) -> None:
            self._suppress(conn, [(hashed, None)], FORGOTTEN)
            _run(
                conn,
                "UPDATE sib_suppress SET visitor = NULL, reason = :reason WHERE scope = '' AND hash = :hash",
                reason=FORGOTTEN,
                hash=hashed,
            )

        self._write(mark)
        found = self._read(
            lambda conn: _all(
                conn,
                "SELECT part, visitor FROM sib_delivery WHERE visitor = :visitor",
                visitor=visitor_id,
            )
        )
        parts = sorted({part for part, visitor in found if visitor == visitor_id})
        return sum(self._write(partial(self._forget, part=part, visitor_id=visitor_id)) for part in parts)

    def scrub_variables(self, before_ms: int) -> int:
        """See :meth:`Ledger.scrub_variables`."""
        done = 0
        over = "vars IS NOT NULL AND state+0 NOT IN (0, 1) AND at_ms < :before"
        for campaign in self.campaigns():
            after = -1
            while True:

                def work(
                    conn: sa.engine.Connection, campaign_id: str = campaign.campaign_id, after: int = after
                ) -> list[int]:
                    book = self._lock(conn, campaign_id)
                    rows = _all(
                        conn,
                        "SELECT seq FROM sib_delivery WHERE part = :part AND seq > :after"
                        f" AND {over} ORDER BY seq LIMIT :limit",
                        part=book.part,
                        after=after,
                        before=before_ms,
                        limit=CHUNK,
                    )
                    seqs = [seq for (seq,) in rows]
                    if seqs:
                        _run(
                            conn,
                            f"UPDATE sib_delivery SET vars = NULL WHERE part = :part AND seq IN :seqs AND {over}",
                            part=book.part,
                            seqs=seqs,
                            before=before_ms,
                        )
                    return seqs

                try:
                    seqs = self._write(work)
                except UnknownCampaign:
                    break
                done += len(seqs)
                if len(seqs) < CHUNK:
                    break
                after = seqs[-1]
        self._bury()
        return done

    def purge(self, campaign_id: str) -> Refusal | None:
        """See :meth:`Ledger.purge`."""

        def work(conn: sa.engine.Connection) -> Refusal | None:
            book = self._lock(conn, campaign_id)
            if refusal := purge_refusal(book.campaign.status):
                return refusal
            purged = int(self._meta_locked(conn, "purged_claims")) + book.campaign.claims
            self._set_meta(conn, "purged_claims", str(purged))
            _run(conn, "UPDATE sib_part SET state = 'dead' WHERE campaign = :campaign", campaign=campaign_id)
            for sql in (
                "DELETE FROM sib_suppress WHERE scope = :campaign",
                "DELETE FROM sib_text WHERE campaign = :campaign",
                "DELETE FROM sib_campaign WHERE campaign = :campaign",
            ):
                _run(conn, sql, campaign=campaign_id)
            return None

        refusal = self._write(work)
        self._bury()
        return refusal

    # the parts of a cycle

    def _cycle(self, conn: sa.engine.Connection, cycle: Cycle) -> Cycled:
        book = self._lock(conn, cycle.campaign_id)
        now_ms, use = book.now_ms, cycle.quota
        lease_ms = now_ms + round(cycle.lease_seconds * 1000)
        if cycle.token in self._unsure:
            mine = self._claimed_before(conn, book, cycle, lease_ms)
            if mine:
                granted = Granted(now_ms, self._quota_of(conn, use), len(mine))
                return Cycled(now_ms, book.campaign, tuple(mine), {}, 0, 0, granted)
        recorded = self._record(conn, book, cycle.results) if cycle.results else 0
        swept, sweep_at = self._sweep(conn, book)
        quota, permits = paced(use, self._quota_of(conn, use), now_ms)
        claimed: list[Delivery] = []
        skipped: Counter[str] = Counter()
        campaign = book.campaign
        if permits and campaign.status is CampaignStatus.RUNNING and campaign.enrolled_at_ms is not None:
            claimed, skipped = self._claim(conn, book, cycle, permits, lease_ms)
        quota = held(use, quota, now_ms, begun=len(claimed))
        self._set_quota(conn, use, quota)
        if claimed:
            sweep_at = lease_ms if sweep_at is None else min(sweep_at, lease_ms)
        campaign = replace(
            campaign,
            claims=campaign.claims + len(claimed),
            last_seen_ms=now_ms,
            next_wake_ms=None if claimed else cycle.next_wake_ms,
            memo=campaign.memo if cycle.memo is None else dict(cycle.memo),
        )
        _run(
            conn,
            "UPDATE sib_campaign SET claims = :claims, last_seen_ms = :seen, next_wake_ms = :wake, memo = :memo,"
            " sweep_at_ms = :sweep WHERE campaign = :campaign",
            claims=campaign.claims,
            seen=now_ms,
            wake=campaign.next_wake_ms,
            memo=to_json(campaign.memo),
            sweep=sweep_at,
            campaign=campaign.campaign_id,
        )
        granted = Granted(now_ms, quota, permits)
        return Cycled(now_ms, campaign, tuple(claimed), dict(skipped), swept, recorded, granted)

    def _claimed_before(
        self, conn: sa.engine.Connection, book: _Book, cycle: Cycle, lease_ms: int
    ) -> list[Delivery]:
        # A sweep may have come between; nobody but this caller could have sent them, and it had no answer.
        rows = _all(
            conn,
            f"SELECT {DELIVERY_COLUMNS} FROM {self._dialect.todo}"
            " WHERE part = :part AND state IN (1, 4) AND claim = :claim ORDER BY seq",
            part=book.part,
            claim=cycle.token,
        )
        if rows:
            _run(
                conn,
                "UPDATE sib_delivery SET state = 1, reason = NULL, lease_ms = :lease"
                " WHERE part = :part AND seq IN :seqs AND claim = :claim AND state+0 IN (1, 4)",
                lease=lease_ms,
                part=book.part,
                seqs=[row[0] for row in rows],
                claim=cycle.token,
            )
            self._sweep_by(conn, book, lease_ms)
        return [
            replace(row, state=State.SENDING, reason=None, lease_until_ms=lease_ms)
            for row in self._deliveries(conn, book, rows)
        ]

    def _record(self, conn: sa.engine.Connection, book: _Book, results: Sequence[Result]) -> int:
        rows = _all(
            conn,
            "SELECT seq, state, claim, message, text_hash, reason FROM sib_delivery"
            " WHERE part = :part AND seq IN :seqs",
            part=book.part,
            seqs=list({result.rank for result in results}),
        )
        before = {row[0]: row for row in rows}
        after: dict[int, dict[str, Any]] = {}
        extras: list[dict[str, Any]] = []
        recorded = 0
        for result in results:
            if result.rank not in before:
                continue
            _, was, claim, message, text_hash, reason = before[result.rank]
            known = after.get(result.rank) or {
                "state": was,
                "message": message,
                "text_hash": text_hash,
                "reason": reason,
            }
            change = transition(State(known["state"]), claim, known["message"], result)
            if change is None:
                continue
            recorded += 1
            after[result.rank] = {
                "state": int(change.state),
                "message": change.message_id,
                "text_hash": result.text_hash or known["text_hash"],
                "reason": result.reason if change.state is result.state else known["reason"],
                "at_ms": book.now_ms,
                "part": book.part,
                "seq": result.rank,
                "was": was,
                "claim": claim,
            }
            if change.extra is not None:
                extras.append({"part": book.part, "seq": result.rank, "message": change.extra})
        if after:
            _many(
                conn,
                "UPDATE sib_delivery SET state = :state, message = :message, text_hash = :text_hash,"
                " reason = :reason, at_ms = :at_ms"
                " WHERE part = :part AND seq = :seq AND claim = :claim AND state+0 = :was",
                list(after.values()),
            )
        if extras:
            missing = self._dialect.missing.format("part")
            _many(
                conn,
                f"INSERT INTO sib_message (part, seq, message) VALUES (:part, :seq, :message) {missing}",
                extras,
            )
        given_up = (State.PENDING, State.FAILED, State.SKIPPED)
        self._untouch(conn, book.part, [seq for seq, row in after.items() if row["state"] in given_up])
        return recorded

    def _sweep(self, conn: sa.engine.Connection, book: _Book) -> tuple[int, int | None]:
        """Put expired leases in doubt; return how many, and when the next one can expire."""
        if book.sweep_at_ms is None or book.sweep_at_ms > book.now_ms:
            return 0, book.sweep_at_ms
        swept = _run(
            conn,
            f"UPDATE {self._dialect.todo} SET state = 4, reason = :reason, at_ms = :now"
            " WHERE part = :part AND state = 1 AND lease_ms <= :now",
            reason=LEASE_EXPIRED,
            now=book.now_ms,
            part=book.part,
        ).rowcount
        (first,) = _one(
            conn,
            f"SELECT MIN(lease_ms) FROM {self._dialect.todo} WHERE part = :part AND state = 1",
            part=book.part,
        )
        return swept, first

    def _sweep_by(self, conn: sa.engine.Connection, book: _Book, lease_ms: int) -> None:
        _run(
            conn,
            "UPDATE sib_campaign SET sweep_at_ms = :lease WHERE campaign = :campaign"
            " AND (sweep_at_ms IS NULL OR sweep_at_ms > :lease)",
            lease=lease_ms,
            campaign=book.campaign.campaign_id,
        )

    def _claim(
        self, conn: sa.engine.Connection, book: _Book, cycle: Cycle, permits: int, lease_ms: int
    ) -> tuple[list[Delivery], Counter[str]]:
        screen = _Screen(self, conn, book, cycle)
        claimed: list[Delivery] = []
        skipped: dict[str, list[int]] = defaultdict(list)
        refused = 0
        upto = RANKS - 1 if book.campaign.limit_rank is None else book.campaign.limit_rank
        for zone in self._open_zones(conn, book, cycle.zones):
            after = -1
            while len(claimed) < permits and refused < SKIPPED_AT_ONCE:
                # Rows come singly only while hardly any are refused.
                limit = max(permits - len(claimed), 256 if refused else 0)
                rows = self._page(conn, book, State.PENDING, zone, after=after, upto=upto, limit=limit)
                page = self._deliveries(conn, book, rows)
                for row, reason in zip(page, screen(page), strict=True):
                    if reason is not None:
                        skipped[reason].append(row.rank)
                        refused += 1
                        continue
                    screen.passed(row)
                    claimed.append(row)
                    if len(claimed) == permits:
                        # The rules are read when a row's turn has come, not before.
                        break
                if len(page) < limit:
                    break
                after = page[-1].rank
        self._skip(conn, book, skipped)
        if claimed:
            _run(
                conn,
                "UPDATE sib_delivery SET state = 1, reason = NULL, claim = :claim, lease_ms = :lease,"
                " revision = :revision, at_ms = :at_ms WHERE part = :part AND seq IN :seqs AND state+0 = 0",
                claim=cycle.token,
                lease=lease_ms,
                revision=book.campaign.revision,
                at_ms=book.now_ms,
                part=book.part,
                seqs=[row.rank for row in claimed],
            )
        if claimed and cycle.cap is not None:
            _many(
                conn,
                "INSERT INTO sib_touch (grp, hash, part, seq, at_ms) VALUES (:grp, :hash, :part, :seq, :at_ms)",
                [
                    {
                        "grp": cycle.cap.group,
                        "hash": self._hash(row.visitor_id or ""),
                        "part": book.part,
                        "seq": row.rank,
                        "at_ms": book.now_ms,
                    }
                    for row in claimed
                ],
            )
        sending = [
            replace(
                row,
                state=State.SENDING,
                reason=None,
                claim=cycle.token,
                lease_until_ms=lease_ms,
                revision=book.campaign.revision,
                at_ms=book.now_ms,
            )
            for row in claimed
        ]
        return sending, Counter({reason: len(seqs) for reason, seqs in skipped.items()})

    def _open_zones(
        self, conn: sa.engine.Connection, book: _Book, zones: Sequence[str | None] | None
    ) -> list[int]:
        wanted = (
            list(range(len(book.zones)))
            if zones is None
            else [book.zones.index(zone) for zone in dict.fromkeys(zones) if zone in book.zones]
        )
        if len(wanted) <= 2:
            return wanted
        pending = set(self._occupied(conn, book, State.PENDING))
        return [zone for zone in wanted if zone in pending]

    def _skip(self, conn: sa.engine.Connection, book: _Book, skipped: Mapping[str, list[int]]) -> None:
        for reason, seqs in skipped.items():
            _run(
                conn,
                "UPDATE sib_delivery SET state = 5, reason = :reason, at_ms = :at_ms"
                " WHERE part = :part AND seq IN :seqs AND state+0 = 0",
                reason=reason,
                at_ms=book.now_ms,
                part=book.part,
                seqs=seqs,
            )
        if FORGOTTEN in skipped:
            # Someone forgotten was in an audience again.
            rows = _all(
                conn,
                "SELECT seq, once_key FROM sib_delivery"
                " WHERE part = :part AND seq IN :seqs AND visitor IS NOT NULL",
                part=book.part,
                seqs=skipped[FORGOTTEN],
            )
            self._erase(conn, book.part, rows)

    def _again(self, conn: sa.engine.Connection, book: _Book, state: State, seqs: list[int]) -> None:
        if not seqs:
            return
        _run(
            conn,
            "UPDATE sib_delivery SET state = 0, reason = NULL, at_ms = :at_ms"
            " WHERE part = :part AND seq IN :seqs AND state+0 = :state",
            at_ms=book.now_ms,
            part=book.part,
            seqs=seqs,
            state=int(state),
        )
        self._untouch(conn, book.part, seqs)
        if book.campaign.status is CampaignStatus.FINISHED:
            self._set_status(conn, book.campaign.campaign_id, CampaignStatus.RUNNING)

    def _untouch(self, conn: sa.engine.Connection, part: int, seqs: list[int]) -> None:
        if seqs:
            _run(conn, "DELETE FROM sib_touch WHERE part = :part AND seq IN :seqs", part=part, seqs=seqs)

    def _record_edits(self, conn: sa.engine.Connection, book: _Book, cycle: EditCycle) -> int:
        rows = _all(
            conn,
            f"SELECT {DELIVERY_COLUMNS} FROM sib_delivery WHERE part = :part AND seq IN :seqs",
            part=book.part,
            seqs=list({result.rank for result in cycle.results}),
        )
        known = {row.rank: row for row in self._deliveries(conn, book, rows)}
        changed: dict[int, Delivery] = {}
        recorded = 0
        for result in cycle.results:
            row = changed.get(result.rank) or known.get(result.rank)
            if row is not None and (after := edited(row, result, book.now_ms)) is not None:
                changed[row.rank] = after
                recorded += 1
        if changed:
            _many(
                conn,
                "UPDATE sib_delivery SET state = :state, revision = :revision, text_hash = :text_hash,"
                " reason = :reason, at_ms = :at_ms WHERE part = :part AND seq = :seq AND state+0 = 2",
                [
                    {
                        "state": int(row.state),
                        "revision": row.revision,
                        "text_hash": row.text_hash,
                        "reason": row.reason,
                        "at_ms": row.at_ms,
                        "part": book.part,
                        "seq": row.rank,
                    }
                    for row in changed.values()
                ],
            )
        return recorded

    # the quota

    def _grant(self, conn: sa.engine.Connection, use: QuotaUse, now_ms: int) -> Granted:
        quota, permits = paced(use, self._quota_of(conn, use), now_ms)
        quota = held(use, quota, now_ms, begun=permits)
        self._set_quota(conn, use, quota)
        return Granted(now_ms, quota, permits)

    def _quota_of(self, conn: sa.engine.Connection, use: QuotaUse) -> Quota:
        """Lock a quota row, made if need be, and read it."""
        sql = f"SELECT doc FROM sib_quota WHERE account = :account AND bucket = :bucket{self._dialect.lock}"
        key = {"account": use.account, "bucket": use.bucket}
        rows = _all(conn, sql, **key)
        if not rows:
            missing = self._dialect.missing.format("account")
            _run(
                conn,
                f"INSERT INTO sib_quota (account, bucket, doc) VALUES (:account, :bucket, '{{}}') {missing}",
                **key,
            )
            rows = _all(conn, sql, **key)
        doc = json.loads(rows[0][0])
        holders = {name: Holding(*holding) for name, holding in doc.pop("holders", {}).items()}
        # A newer release may have added fields that this one doesn't know.
        return Quota(**{name: doc[name] for name in doc.keys() & _QUOTA_FIELDS}, holders=holders)

    def _set_quota(self, conn: sa.engine.Connection, use: QuotaUse, quota: Quota) -> None:
        doc = asdict(quota)
        doc["holders"] = {name: [held.flying, held.until_ms] for name, held in quota.holders.items()}
        _run(
            conn,
            "UPDATE sib_quota SET doc = :doc WHERE account = :account AND bucket = :bucket",
            doc=to_json(doc),
            account=use.account,
            bucket=use.bucket,
        )

    # enrolment

    def _snapshot(self, campaign_id: str, spool: _Spool, bad: int) -> Enrolled | None:
        """Take a spooled audience in whole; None: this try was taken for dead and buried meanwhile."""
        part = self._write(lambda conn: self._new_part(conn, campaign_id, "filling"))
        distinct = _Distinct(spool)
        total = 0
        for chunk in _chunks(_placed(distinct)):
            now_ms = self.now_ms()
            values = [(part, *row, now_ms) for row in chunk]

            def fill(conn: sa.engine.Connection, values: list[tuple[Any, ...]] = values) -> bool:
                alive = _run(
                    conn,
                    "UPDATE sib_part SET lease_ms = :lease WHERE part = :part AND state = 'filling'",
                    lease=self._now(conn) + FILL_LEASE_MS,
                    part=part,
                ).rowcount
                if alive:
                    self._insert(conn, values)
                return bool(alive)

            if not self._write(fill):
                return self._enrolled(campaign_id)
            total += len(values)

        def end(conn: sa.engine.Connection) -> Enrolled | None:
            book = self._lock(conn, campaign_id)
            if book.campaign.enrolled_at_ms is not None:
                _run(conn, "UPDATE sib_part SET state = 'dead' WHERE part = :part", part=part)
                kept = book.campaign
                return Enrolled(0, kept.duplicates, kept.bad_rows, kept.total)
            # Others that are filling for this campaign are too late, or dead.
            _run(
                conn,
                "UPDATE sib_part SET state = 'dead' WHERE campaign = :campaign AND part <> :part",
                campaign=campaign_id,
                part=part,
            )
            alive = _run(
                conn,
                "UPDATE sib_part SET state = 'live' WHERE part = :part AND state = 'filling'",
                part=part,
            ).rowcount
            if not alive:
                return None
            _run(
                conn,
                "UPDATE sib_campaign SET part = :part, zones = :zones, enrolled_at_ms = :now, total = :total,"
                " duplicates = :duplicates, bad_rows = :bad WHERE campaign = :campaign",
                part=part,
                zones=to_json(spool.zones),
                now=book.now_ms,
                total=total,
                duplicates=distinct.duplicates,
                bad=bad,
                campaign=campaign_id,
            )
            return Enrolled(total, distinct.duplicates, bad, total)

        return self._write(end)

    def _join(self, campaign_id: str, spool: _Spool, bad: int) -> Enrolled:
        """Let a spooled audience join those who are there."""
        zones = self._write(lambda conn: self._begin_join(conn, campaign_id, spool.zones))
        distinct = _Distinct(spool)
        joined = known = 0
        for chunk in _chunks(distinct):
            rows = [(*row[:3], zones[row[3]], *row[4:]) for row in chunk]

            def join(conn: sa.engine.Connection, rows: list[tuple[Any, ...]] = rows) -> int:
                book = self._lock(conn, campaign_id)
                values = [(book.part, *row, book.now_ms) for row in self._newcomers(conn, book.part, rows)]
                if values:
                    self._insert(conn, values)
                    _run(
                        conn,
                        "UPDATE sib_campaign SET total = total + :new WHERE campaign = :campaign",
                        new=len(values),
                        campaign=campaign_id,
                    )
                    if book.campaign.status is CampaignStatus.FINISHED:
                        self._set_status(conn, campaign_id, CampaignStatus.RUNNING)
                return len(values)

            new = self._write(join)
            joined += new
            known += len(rows) - new

        def end(conn: sa.engine.Connection) -> Enrolled:
            book = self._lock(conn, campaign_id)
            duplicates = distinct.duplicates + known
            _run(
                conn,
                "UPDATE sib_campaign SET enrolled_at_ms = :now, duplicates = :duplicates, bad_rows = :bad"
                " WHERE campaign = :campaign",
                now=book.now_ms,
                duplicates=duplicates,
                bad=bad,
                campaign=campaign_id,
            )
            return Enrolled(joined, duplicates, bad, book.campaign.total)

        return self._write(end)

    def _begin_join(
        self, conn: sa.engine.Connection, campaign_id: str, zones: Sequence[str | None]
    ) -> list[int]:
        """Make room for newcomers; return the campaign's number of each of the given zones."""
        book = self._lock(conn, campaign_id)
        kept = [*book.zones, *(zone for zone in zones if zone not in book.zones)]
        part = book.part or self._new_part(conn, campaign_id, "live")
        _run(
            conn,
            "UPDATE sib_campaign SET part = :part, zones = :zones WHERE campaign = :campaign",
            part=part,
            zones=to_json(kept),
            campaign=campaign_id,
        )
        return [kept.index(zone) for zone in zones]

    def _newcomers(
        self, conn: sa.engine.Connection, part: int, rows: list[tuple[Any, ...]]
    ) -> list[tuple[Any, ...]]:
        """Leave out rows whose once key is enrolled; two keys of the same rank stand one after the other."""
        keys = dict(
            _all(
                conn,
                "SELECT seq, once_key FROM sib_delivery WHERE part = :part AND seq IN :seqs",
                part=part,
                seqs=[row[0] for row in rows],
            )
        )
        new: dict[int, tuple[Any, ...]] = {}
        for hashed_rank, key, *others in rows:
            rank = hashed_rank
            while rank in keys and keys[rank] not in (key, self._forgotten_key(key)):
                rank = rank_after(rank)
                if rank not in keys:
                    sql = "SELECT seq, once_key FROM sib_delivery WHERE part = :part AND seq = :seq"
                    keys.update(dict(_all(conn, sql, part=part, seq=rank)))
            if rank not in keys:
                keys[rank] = key
                new[rank] = (rank, key, *others)
        return list(new.values())

    def _insert(self, conn: sa.engine.Connection, values: list[tuple[Any, ...]]) -> None:
        columns = ", ".join(ENROLMENT_COLUMNS)
        if self._sqlite:
            marks = ", ".join("?" * len(ENROLMENT_COLUMNS))
            conn.exec_driver_sql(f"INSERT INTO sib_delivery ({columns}) VALUES ({marks})", values)
            return
        # The drivers' own executemany takes a round trip per row.
        marks = f"({', '.join(['%s'] * len(ENROLMENT_COLUMNS))})"
        for begin in range(0, len(values), 500):
            some = values[begin : begin + 500]
            conn.exec_driver_sql(
                f"INSERT INTO sib_delivery ({columns}) VALUES {', '.join([marks] * len(some))}",
                tuple(value for row in some for value in row),
            )

    def _enrolled(self, campaign_id: str) -> Enrolled | None:
        kept = self.campaign(campaign_id)
        if kept.enrolled_at_ms is None:
            return None
        return Enrolled(0, kept.duplicates, kept.bad_rows, kept.total)

    def _new_part(self, conn: sa.engine.Connection, campaign_id: str, state: str) -> int:
        part = int(self._meta_locked(conn, "next_part"))
        self._set_meta(conn, "next_part", str(part + 1))
        _run(
            conn,
            "INSERT INTO sib_part (part, campaign, state, lease_ms) VALUES (:part, :campaign, :state, :lease)",
            part=part,
            campaign=campaign_id,
            state=state,
            lease=self._now(conn) + FILL_LEASE_MS,
        )
        return part

    def _bury(self) -> None:
        """Delete rows of purged campaigns and of enrolments that were abandoned, chunk by chunk."""
        over = "(state = 'dead' OR (state = 'filling' AND lease_ms < :now))"

        def dead(conn: sa.engine.Connection) -> list[int]:
            rows = _all(conn, f"SELECT part FROM sib_part WHERE {over}", now=self._now(conn))
            return [part for (part,) in rows]

        for part in self._read(dead):

            def condemn(conn: sa.engine.Connection, part: int = part) -> bool:
                sql = f"UPDATE sib_part SET state = 'dead', lease_ms = lease_ms + 1 WHERE part = :part AND {over}"
                return bool(_run(conn, sql, part=part, now=self._now(conn)).rowcount)

            def delete(conn: sa.engine.Connection, part: int = part) -> bool:
                sql = "SELECT seq FROM sib_delivery WHERE part = :part ORDER BY seq LIMIT :limit"
                seqs = [seq for (seq,) in _all(conn, sql, part=part, limit=CHUNK)]
                upto = seqs[-1] if len(seqs) == CHUNK else RANKS - 1
                for table in ("sib_delivery", "sib_message", "sib_touch"):
                    _run(
                        conn, f"DELETE FROM {table} WHERE part = :part AND seq <= :upto", part=part, upto=upto
                    )
                if len(seqs) < CHUNK:
                    _run(conn, "DELETE FROM sib_part WHERE part = :part", part=part)
                return len(seqs) == CHUNK

            if self._write(condemn):
                while self._write(delete):
                    pass

    # people

    def _suppress(
        self, conn: sa.engine.Connection, hashes: Sequence[tuple[str, str | None]], reason: str
    ) -> None:
        now_ms = self._now(conn)
        if hashes:
            _many(
                conn,
                "INSERT INTO sib_suppress (scope, hash, visitor, reason, at_ms, gen)"
                f" VALUES ('', :hash, :visitor, :reason, :at_ms, 0) {self._dialect.missing.format('scope')}",
                [
                    {"hash": hash_, "visitor": visitor, "reason": reason, "at_ms": now_ms}
                    for hash_, visitor in hashes
                ],
            )

    def _forget(self, conn: sa.engine.Connection, *, part: int, visitor_id: str) -> int:
        owners = _all(conn, "SELECT campaign FROM sib_part WHERE part = :part", part=part)
        if owners:
            with suppress(UnknownCampaign):
                self._lock(conn, owners[0][0])
        found = _all(
            conn,
            "SELECT seq, once_key, visitor FROM sib_delivery WHERE part = :part AND visitor = :visitor",
            part=part,
            visitor=visitor_id,
        )
        rows = [(seq, key) for seq, key, visitor in found if visitor == visitor_id]
        if rows:
            _run(
                conn,
                "UPDATE sib_delivery SET state = 5, reason = :reason, at_ms = :at_ms"
                " WHERE part = :part AND seq IN :seqs AND state+0 = 0",
                reason=FORGOTTEN,
                at_ms=self._now(conn),
                part=part,
                seqs=[seq for seq, _ in rows],
            )
            self._erase(conn, part, rows)
        return len(rows)

    def _erase(self, conn: sa.engine.Connection, part: int, rows: Iterable[Row]) -> None:
        values = [{"key": self._forgotten_key(key), "part": part, "seq": seq} for seq, key in rows]
        if values:
            _many(
                conn,
                "UPDATE sib_delivery SET visitor = NULL, vars = NULL, once_key = :key"
                " WHERE part = :part AND seq = :seq",
                values,
            )

    def _hash(self, value: str) -> str:
        return keyed_hash(self._secret, value)

    def _forgotten_key(self, key: str) -> str:
        return "#" + self._hash(key)

    # rows

    def _create(
        self,
        conn: sa.engine.Connection,
        campaign_id: str,
        binding: dict[str, str],
        *,
        each_run: bool,
        text: Text,
    ) -> None:
        if _all(conn, "SELECT 1 FROM sib_campaign WHERE campaign = :campaign", campaign=campaign_id):
            return
        now_ms = self._now(conn)
        created = _run(
            conn,
            "INSERT INTO sib_campaign (campaign, part, binding, each_run, status, revision, digest, settings, memo,"
            " total, duplicates, bad_rows, fraction, claims, zones, created_at_ms, editor, editor_until_ms)"
            " VALUES (:campaign, 0, :binding, :each_run, 'running', 1, :digest, '{}', '{}', 0, 0, 0, 1, 0,"
            f" '[]', :now, 0, 0) {self._dialect.missing.format('campaign')}",
            campaign=campaign_id,
            binding=to_json(binding),
            each_run=int(each_run),
            digest=text.digest,
            now=now_ms,
        ).rowcount
        if created:
            self._add_text(conn, campaign_id, 1, text, now_ms)

    def _add_text(
        self, conn: sa.engine.Connection, campaign_id: str, revision: int, text: Text, now_ms: int
    ) -> None:
        _run(
            conn,
            "INSERT INTO sib_text (campaign, revision, digest, body, at_ms)"
            f" VALUES (:campaign, :revision, :digest, :body, :now) {self._dialect.missing.format('campaign')}",
            campaign=campaign_id,
            revision=revision,
            digest=text.digest,
            body=to_json(text.body),
            now=now_ms,
        )

    def _set_status(self, conn: sa.engine.Connection, campaign_id: str, status: CampaignStatus) -> None:
        _run(
            conn,
            "UPDATE sib_campaign SET status = :status WHERE campaign = :campaign",
            status=status.value,
            campaign=campaign_id,
        )

    def _lock(self, conn: sa.engine.Connection, campaign_id: str) -> _Book:
        return self._look(conn, campaign_id, lock=self._dialect.lock)

    def _look(self, conn: sa.engine.Connection, campaign_id: str, *, lock: str = "") -> _Book:
        now = self._dialect.now if self._clock is None else "0"
        rows = _all(
            conn,
            f"SELECT {CAMPAIGN_COLUMNS}, {now} FROM sib_campaign WHERE campaign = :campaign{lock}",
            campaign=campaign_id,
        )
        if not rows:
            raise UnknownCampaign(campaign_id)
        return self._book(conn, rows[0])

    def _book(self, conn: sa.engine.Connection, row: Row) -> _Book:
        (campaign_id, part, binding, each_run, status, revision, digest, settings, memo, enrolled_at_ms) = (
            row[:10]
        )
        (total, duplicates, bad_rows, fraction, limit, claims, zones, created, seen, wake) = row[10:20]
        sweep_at_ms, editor, editor_until_ms, now_ms = row[20:]
        campaign = Campaign(
            campaign_id=campaign_id,
            binding=json.loads(binding),
            each_run=bool(each_run),
            status=CampaignStatus(status),
            revision=revision,
            text=Text(digest, self._body(conn, campaign_id, revision, digest)),
            settings=json.loads(settings),
            memo=json.loads(memo),
            enrolled_at_ms=enrolled_at_ms,
            total=total,
            duplicates=duplicates,
            bad_rows=bad_rows,
            fraction=fraction,
            limit_rank=limit,
            claims=claims,
            created_at_ms=created,
            last_seen_ms=seen,
            next_wake_ms=wake,
        )
        now_ms = now_ms if self._clock is None else round(self._clock() * 1000)
        return _Book(
            campaign, part, tuple(json.loads(zones)), sweep_at_ms, editor, editor_until_ms, int(now_ms)
        )

    def _body(self, conn: sa.engine.Connection, campaign_id: str, revision: int, digest: str) -> Json:
        if digest not in self._bodies:
            (body,) = _one(
                conn,
                "SELECT body FROM sib_text WHERE campaign = :campaign AND revision = :revision",
                campaign=campaign_id,
                revision=revision,
            )
            if len(self._bodies) >= 64:
                self._bodies.clear()
            self._bodies[digest] = json.loads(body)
        return self._bodies[digest]

    def _page(
        self,
        conn: sa.engine.Connection,
        book: _Book,
        state: State | None,
        zone: int,
        *,
        limit: int,
        after: int = -1,
        upto: int = RANKS - 1,
        columns: str = DELIVERY_COLUMNS,
        reasons: Collection[str] | None = None,
        before_ms: int | None = None,
    ) -> list[Row]:
        """Read rows of one state and zone in the order of ranks, by the index; without a state all, by the key."""
        table, place = "sib_delivery", "seq > :after AND seq <= :upto"
        order = "ORDER BY seq"
        if state is not None:
            table = self._dialect.todo
            place, _, order = self._dialect.next_in_zone.partition(" ORDER BY ")
            place, order = f"state = :state AND {place}", f"ORDER BY {order}"
        if reasons is not None:
            place += " AND reason IN :reasons" if reasons else " AND 1 = 0"
        if before_ms is not None:
            place += " AND at_ms < :before"
        values: dict[str, Any] = {"part": book.part, "after": after, "upto": upto, "limit": limit}
        if state is not None:
            values |= {"state": int(state), "zone": zone}
        if reasons:
            values["reasons"] = list(reasons)
        if before_ms is not None:
            values["before"] = before_ms
        return _all(
            conn,
            f"SELECT {columns} FROM {table} WHERE part = :part AND {place} {order} LIMIT :limit",
            **values,
        )

    def _occupied(self, conn: sa.engine.Connection, book: _Book, state: State) -> list[int]:
        """List the zones that have rows of a state: one seek each, however many rows there are."""
        todo = self._dialect.todo
        first = f"SELECT zone FROM {todo} WHERE part = :part AND state = :state"
        rows = _all(
            conn,
            f"WITH RECURSIVE z (zone) AS (SELECT ({first} ORDER BY zone LIMIT 1) UNION ALL"
            f" SELECT ({first} AND zone > z.zone ORDER BY zone LIMIT 1) FROM z WHERE z.zone IS NOT NULL)"
            " SELECT zone FROM z WHERE zone IS NOT NULL",
            part=book.part,
            state=int(state),
        )
        return [zone for (zone,) in rows]

    def _rank_at(self, conn: sa.engine.Connection, part: int, place: int) -> int:
        sql = "SELECT seq FROM sib_delivery WHERE part = :part ORDER BY seq LIMIT 1 OFFSET :place"
        return int(_one(conn, sql, part=part, place=place)[0])

    def _deliveries(self, conn: sa.engine.Connection, book: _Book, rows: Sequence[Row]) -> list[Delivery]:
        # Only a row whose state knows a message can have several.
        extras: dict[int, list[str]] = defaultdict(list)
        told = [row[0] for row in rows if row[13] is not None]
        if told:
            for seq, message in _all(
                conn,
                "SELECT seq, message FROM sib_message WHERE part = :part AND seq BETWEEN :first AND :last",
                part=book.part,
                first=min(told),
                last=max(told),
            ):
                extras[seq].append(message)
        return [
            Delivery(
                rank=seq,
                key=key,
                visitor_id=visitor,
                variables=None if variables is None else json.loads(variables),
                timezone=book.zones[zone],
                locale=locale,
                variant=variant,
                state=State(state),
                reason=reason,
                claim=claim,
                lease_until_ms=lease_ms,
                revision=revision,
                text_hash=text_hash,
                message_ids=(message, *extras[seq]) if message is not None else (),
                at_ms=at_ms,
            )
            for (
                seq,
                key,
                visitor,
                variables,
                zone,
                locale,
                variant,
                state,
                reason,
                claim,
                lease_ms,
                revision,
                text_hash,
                message,
                at_ms,
            ) in rows
        ]

    # the ledger's own facts

    def _meta(self, conn: sa.engine.Connection) -> dict[str, str]:
        return dict(_all(conn, "SELECT k, v FROM sib_meta WHERE k NOT LIKE 'cap:%'"))

    def _meta_locked(self, conn: sa.engine.Connection, name: str) -> str:
        """Lock one of the ledger's facts, made empty if need be, and read it."""
        sql = f"SELECT v FROM sib_meta WHERE k = :k{self._dialect.lock}"
        rows = _all(conn, sql, k=name)
        if not rows:
            missing = self._dialect.missing.format("k")
            _run(conn, f"INSERT INTO sib_meta (k, v) VALUES (:k, '') {missing}", k=name)
            rows = _all(conn, sql, k=name)
        return str(rows[0][0])

    def _set_meta(self, conn: sa.engine.Connection, name: str, value: str) -> None:
        _run(conn, "UPDATE sib_meta SET v = :v WHERE k = :k", k=name, v=value)

    def _now(self, conn: sa.engine.Connection) -> int:
        if self._clock is not None:
            return round(self._clock() * 1000)
        return int(_one(conn, f"SELECT {self._dialect.now}")[0])

    # opening

    def _open(self) -> tuple[str, bytes, tuple[str, ...]]:
        def known(conn: sa.engine.Connection) -> dict[str, str]:
            return self._meta(conn) if sa.inspect(conn).has_table("sib_meta") else {}

        meta = self._read(known)
        if int(meta.get("schema", 0)) < SCHEMA:
            self._check(meta)
            self._write(self._migrate)
            meta = self._read(known)
        self._check(meta)
        return meta["ledger_id"], bytes.fromhex(meta["secret"]), self._read(self._weaknesses)

    def _check(self, meta: Mapping[str, str]) -> None:
        if int(meta.get("readable_from", 0)) > SCHEMA:
            raise LedgerUnsafe(
                f"This ledger has schema {meta['schema']}, which needs airflow-provider-sib"
                f" {meta['readable_from_release']} or newer; this is {__version__} (schema {SCHEMA})."
                " Upgrade it wherever this ledger is used, or choose another ledger."
            )

    def _migrate(self, conn: sa.engine.Connection) -> None:
        # Two CREATE TABLE IF NOT EXISTS at once fail on PostgreSQL and MySQL.
        mysql = self._dialect is _DIALECTS["mysql"]
        if self._kind == "postgresql":
            _run(conn, "SELECT pg_advisory_xact_lock(7305810225)")
        elif mysql and not _one(conn, "SELECT GET_LOCK(CONCAT(DATABASE(), '.sib_ledger'), 60)")[0]:
            raise LedgerUnavailable("Another process has been migrating this ledger for a minute.")
        try:
            there = sa.inspect(conn).has_table("sib_meta")
            meta = self._meta(conn) if there else {}
            self._check(meta)
            parts = {
                "text": self._dialect.text,
                "table": self._dialect.table,
                "keyed": self._dialect.keyed,
                "inner": f", KEY {TODO_INDEX}" if mysql else "",
                "outer": "" if mysql else _index(TODO_INDEX, "sib_delivery"),
                "touch_inner": f", KEY {TOUCH_INDEX}" if mysql else "",
                "touch_outer": "" if mysql else _index(TOUCH_INDEX, "sib_touch"),
            }
            for step in STEPS[int(meta.get("schema", 0)) :]:
                for statement in filter(None, (template.format(**parts) for template in step)):
                    _run(conn, statement)
            schema, release = READABLE_FROM
            facts = {
                "ledger_id": str(uuid.uuid4()),
                "secret": secrets.token_hex(32),
                "next_part": "1",
                "purged_claims": "0",
                "schema": str(SCHEMA),
                "readable_from": schema,
                "readable_from_release": release,
            }
            missing = self._dialect.missing.format("k")
            _many(
                conn,
                f"INSERT INTO sib_meta (k, v) VALUES (:k, :v) {missing}",
                [{"k": name, "v": value} for name, value in facts.items()],
            )
            for name in ("schema", "readable_from", "readable_from_release"):
                self._set_meta(conn, name, facts[name])
        finally:
            if mysql:
                _run(conn, "SELECT RELEASE_LOCK(CONCAT(DATABASE(), '.sib_ledger'))")

    def _weaknesses(self, conn: sa.engine.Connection) -> tuple[str, ...]:
        if self._kind == "postgresql" and _one(conn, "SHOW fsync")[0] == "off":
            return ("PostgreSQL runs with fsync=off: a crash of its machine may lose what was sent.",)
        if self._dialect is _DIALECTS["mysql"]:
            flush = int(_one(conn, "SELECT @@innodb_flush_log_at_trx_commit")[0])
            if flush != 1:
                danger = "a crash of the database's machine may lose what was sent"
                return (f"innodb_flush_log_at_trx_commit is {flush}, not 1: {danger}.",)
        return ()

    # transactions

    def _read(self, work: Callable[[sa.engine.Connection], T]) -> T:
        return self._attempt(work, commit=False, token=0)

    def _write(self, work: Callable[[sa.engine.Connection], T], *, token: int = 0) -> T:
        return self._attempt(work, commit=True, token=token)

    def _attempt(self, work: Callable[[sa.engine.Connection], T], *, commit: bool, token: int) -> T:
        """Run a transaction, again where it surely left nothing behind: a lock, a deadlock, an old connection."""
        waited, deadlocks, reconnected = 0.0, 0, False
        while True:
            committing = False
            try:
                with self._engine.connect() as conn:
                    if self._sqlite:
                        conn.exec_driver_sql("BEGIN IMMEDIATE" if commit else "BEGIN")
                    value = work(conn)
                    if token:
                        self._unsure.add(token)
                    if commit:
                        committing = True
                        self._commit(conn)
                    self._unsure.discard(token)
                    return value
            except DBAPIError as error:
                if committing:
                    raise _unavailable(error) from error
                if self._sqlite and _is_busy(error) and waited < PATIENCE_SECONDS:
                    pause = 0.001 + 0.002 * self._random()
                    waited += pause
                    self._sleep(pause)
                elif _is_deadlock(error) and deadlocks < 5:
                    deadlocks += 1
                    self._sleep(0.01 * deadlocks * (1 + self._random()))
                elif error.connection_invalidated and not reconnected:
                    reconnected = True
                elif isinstance(error, (OperationalError, InterfaceError)) or error.connection_invalidated:
                    raise _unavailable(error) from error
                else:
                    raise

    def _commit(self, conn: sa.engine.Connection) -> None:
        try:
            conn.commit()
        except BaseException:
            # SQLAlchemy would give the connection back with its transaction, and its locks, still open.
            conn.invalidate()
            raise


@dataclass(frozen=True, slots=True)
class _Book:
    """A campaign's row as it was read, locked where it is going to be changed."""

    campaign: Campaign
    part: int
    zones: tuple[str | None, ...]
    sweep_at_ms: int | None
    editor: int
    editor_until_ms: int
    now_ms: int


class _Screen:
    """Says of pending rows whether they must be skipped, for one claim."""

    def __init__(self, ledger: SqlLedger, conn: sa.engine.Connection, book: _Book, cycle: Cycle) -> None:
        self._ledger, self._conn, self._book, self._cycle = ledger, conn, book, cycle
        self._touches: Counter[str] = Counter()
        if cycle.cap is not None:
            # Campaigns of one group must not count beside each other.
            ledger._meta_locked(conn, f"cap:{cycle.cap.group}")  # noqa: SLF001 - a part of the same module

    def __call__(self, page: list[Delivery]) -> Iterator[str | None]:
        """Yield per row the reason to skip it, or None; tell :meth:`passed` before asking for the next."""
        hashes = {row.visitor_id: self._hash(row.visitor_id) for row in page if row.visitor_id is not None}
        refused: dict[str, str] = {}
        if hashes:
            for scope, hash_, visitor in _all(
                self._conn,
                "SELECT scope, hash, visitor FROM sib_suppress"
                " WHERE scope IN ('', :campaign) AND hash IN :hashes ORDER BY scope DESC",
                campaign=self._cycle.campaign_id,
                hashes=sorted(hashes.values()),
            ):
                refused[hash_] = "excluded" if scope else FORGOTTEN if visitor is None else "suppressed"
        cap = self._cycle.cap
        if hashes and cap is not None:
            fresh = [hash_ for hash_ in set(hashes.values()) if hash_ not in self._touches]
            counts = _all(
                self._conn,
                "SELECT hash, COUNT(*) FROM sib_touch WHERE grp = :grp AND hash IN :hashes AND at_ms > :since"
                " GROUP BY hash",
                grp=cap.group,
                hashes=fresh or [""],
                since=self._book.now_ms - round(cap.within_seconds * 1000),
            )
            self._touches.update(dict.fromkeys(fresh, 0))
            self._touches.update(dict(counts))
        for row in page:
            if row.visitor_id is None:
                yield FORGOTTEN
            elif (hash_ := hashes[row.visitor_id]) in refused:
                yield refused[hash_]
            elif cap is not None and self._touches[hash_] >= cap.at_most:
                yield "frequency_cap"
            else:
                yield self._cycle.screen(row) if self._cycle.screen is not None else None

    def passed(self, row: Delivery) -> None:
        """Count a row that is going to be claimed."""
        if self._cycle.cap is not None and row.visitor_id is not None:
            self._touches[self._hash(row.visitor_id)] += 1

    def _hash(self, visitor_id: str) -> str:
        return self._ledger._hash(visitor_id)  # noqa: SLF001 - a part of the same module


class _Spool:
    """Holds an audience on disk, in constant memory, to be read in the order of ranks.

    Rows are tuples ``(rank, key, visitor, zone, variant, locale, variables, state, reason)``.
    """

    BUCKETS = 256
    HELD = 16384

    def __init__(self) -> None:
        # Unlinked at once where the system can: the audience is gone with the process.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._buckets: list[list[tuple[Any, ...]]] = [[] for _ in range(self.BUCKETS)]
        self._places: list[list[int]] = [[] for _ in range(self.BUCKETS)]
        self.zones: list[str | None] = []

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, rows: Iterable[Enrolment]) -> None:
        """Take all rows in.

        :raises ValueError: a row the ledger can't hold.
        """
        zones: dict[str | None, int] = {}
        shift = RANKS.bit_length() - 1 - (self.BUCKETS.bit_length() - 1)
        buckets = self._buckets
        pending, skipped = int(State.PENDING), int(State.SKIPPED)
        for count, row in enumerate(rows, 1):
            check_enrolment(row)
            zone = zones.setdefault(row.timezone, len(zones))
            buckets[row.rank >> shift].append(
                (
                    row.rank,
                    row.key,
                    row.visitor_id,
                    zone,
                    row.variant,
                    row.locale,
                    to_json(row.variables),
                    pending if row.skip is None else skipped,
                    row.skip,
                )
            )
            if count % self.HELD == 0:
                self._spill()
        self.zones = list(zones)

    def _spill(self) -> None:
        self._file.seek(0, os.SEEK_END)
        for bucket, places in zip(self._buckets, self._places, strict=True):
            if bucket:
                places.append(self._file.tell())
                marshal.dump(bucket, self._file)
                bucket.clear()

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Yield the rows by rank and key, those that are alike in both in the order they came."""
        for bucket, places in zip(self._buckets, self._places, strict=True):
            rows: list[tuple[Any, ...]] = []
            for place in places:
                self._file.seek(place)
                rows += marshal.load(self._file)  # noqa: S302 - this process wrote it, and nobody else can
            rows += bucket
            rows.sort(key=itemgetter(0, 1))
            yield from rows


class _Distinct:
    """Yields a spool's rows once per once key, in its order; ``duplicates`` counts the others."""

    def __init__(self, spool: _Spool) -> None:
        self._spool = spool
        self.duplicates = 0

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        last_key = ""
        for row in self._spool:
            if row[1] == last_key:
                self.duplicates += 1
            else:
                last_key = row[1]
                yield row


def _placed(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Give rows of the same rank a place each, one after the other."""
    last = -1
    for row in rows:
        if row[0] > last:
            last = row[0]
            yield row
        else:
            last = rank_after(last)
            yield (last, *row[1:])


FILL_LEASE_MS = 600_000
"""After which an enrolment that adds nothing is taken for dead."""

_QUOTA_FIELDS = frozenset(Quota.__dataclass_fields__) - {"holders"}


@lru_cache(maxsize=512)
def _statement(sql: str) -> sa.sql.elements.TextClause:
    lists: list[sa.BindParameter[Any]] = [
        sa.bindparam(name, expanding=True) for name in re.findall(r"IN :(\w+)", sql)
    ]
    return sa.text(sql).bindparams(*lists)


def _run(conn: sa.engine.Connection, sql: str, **params: Any) -> sa.engine.CursorResult[Any]:
    return conn.execute(_statement(sql), params)


def _many(conn: sa.engine.Connection, sql: str, rows: list[dict[str, Any]]) -> None:
    conn.execute(_statement(sql), rows)


def _all(conn: sa.engine.Connection, sql: str, **params: Any) -> list[Any]:
    return list(conn.execute(_statement(sql), params).all())


def _one(conn: sa.engine.Connection, sql: str, **params: Any) -> Any:
    return conn.execute(_statement(sql), params).one()


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _index(index: str, table: str) -> str:
    name, _, columns = index.partition(" ")
    return f"CREATE INDEX IF NOT EXISTS {name} ON {table} {columns}"


def _unavailable(error: DBAPIError) -> LedgerUnavailable:
    return LedgerUnavailable(
        f"The ledger's database did not do it: {type(error.orig).__name__}: {error.orig}"
    )


def _is_busy(error: DBAPIError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _is_deadlock(error: DBAPIError) -> bool:
    # PostgreSQL's deadlock_detected and serialization_failure; MySQL's ER_LOCK_DEADLOCK.
    if getattr(error.orig, "pgcode", None) in ("40P01", "40001"):
        return True
    return (
        not hasattr(error.orig, "sqlite_errorcode")
        and error.orig is not None
        and error.orig.args[:1] == (1213,)
    )


def network_disk(path: Path, mounts: str) -> str | None:
    """Name the network file system a path lies on, or None.

    :param path: absolute and without symbolic links.
    :param mounts: the text of ``/proc/mounts``.
    """
    found, kind = Path("/"), ""
    for line in mounts.splitlines():
        _, place, type_, *_ = line.split(" ")
        # Blanks in a mount point are written as octal escapes (proc(5)).
        mount = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), place))
        if path.is_relative_to(mount) and len(mount.parts) >= len(found.parts):
            found, kind = mount, type_
    return kind if kind in NETWORK_DISKS else None


def _prepare_file(database: str | None) -> None:
    if not database or database == ":memory:" or database.startswith("file:"):
        raise LedgerUnsafe("A ledger in SQLite needs the path of a file.")
    path = Path(database).resolve()
    mounts = Path("/proc/mounts")
    kind = network_disk(path, mounts.read_text(errors="replace")) if mounts.exists() else None
    if kind is not None:
        raise LedgerUnsafe(
            f"The ledger's file {path} lies on a network disk ({kind}), where SQLite may lose rows: put it on a"
            " local disk, or keep the ledger in PostgreSQL or MySQL (ledger_conn_id)."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise LedgerUnavailable(f"The ledger's file {path} can't be opened: {error.strerror}.") from error


def _engine(url: sa.engine.URL, *, sqlite: bool) -> sa.engine.Engine:
    if sqlite:
        engine = sa.create_engine(
            url,
            future=True,
            hide_parameters=True,
            poolclass=QueuePool,
            connect_args={"timeout": 0, "check_same_thread": False, "isolation_level": None},
        )
        sa.event.listen(engine, "connect", _on_sqlite)
        return engine
    postgresql = url.get_backend_name() == "postgresql"
    engine = sa.create_engine(
        url,
        future=True,
        hide_parameters=True,
        isolation_level="READ COMMITTED",
        pool_recycle=240,
        connect_args={"connect_timeout": 10},
        **({"executemany_mode": "values_plus_batch"} if url.get_driver_name() == "psycopg2" else {}),
    )
    sa.event.listen(engine, "connect", _on_postgresql if postgresql else _on_mysql)
    return engine


def _on_sqlite(dbapi: Any, _: object) -> None:
    # https://www.sqlite.org/pragma.html#pragma_synchronous: in WAL mode only FULL survives a power loss.
    dbapi.execute("PRAGMA synchronous = FULL")
    # 16 MiB of log: a checkpoint then falls upon fewer than one cycle in a hundred.
    dbapi.execute("PRAGMA wal_autocheckpoint = 4000")
    for _turn in range(1000):
        try:
            dbapi.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            time.sleep(0.002)
        else:
            return


def _on_postgresql(dbapi: Any, _: object) -> None:
    with _cursor(dbapi) as cursor:
        # An asynchronous commit could forget an intent after its POST; this is ours to choose, per session.
        # https://www.postgresql.org/docs/current/wal-async-commit.html
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') = 'off'"
        )
        cursor.execute("SET lock_timeout = '30s'")


def _on_mysql(dbapi: Any, _: object) -> None:
    with _cursor(dbapi) as cursor:
        # UNIX_TIMESTAMP reads local time, which an autumn night has twice.
        cursor.execute("SET time_zone = '+00:00', innodb_lock_wait_timeout = 30")


@contextmanager
def _cursor(dbapi: Any) -> Iterator[Any]:
    cursor = dbapi.cursor()
    try:
        yield cursor
        dbapi.commit()
    finally:
        cursor.close()
