"""Make and migrate the ledger's tables: steps that only add, run under a lock, refused where newer code is needed."""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are always bound

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from airflow_provider_sib import __version__
from airflow_provider_sib.campaign.ledger import LedgerMissing, LedgerUnavailable, LedgerUnsafe
from airflow_provider_sib.campaign.sql_ledger import facts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_sib.campaign.sql_ledger.database import Database, Transaction

SCHEMA = 1
"""Version of the tables this code writes."""

READABLE_FROM = ("1", "0.1.0")
"""The oldest code that may use tables of :data:`SCHEMA`: the schema it knows, and its release."""

# A statement that takes longer than database.SILENCE_SECONDS is given up: a step on tables with rows goes in chunks.
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


@dataclass(frozen=True, slots=True)
class Opened:
    """Who a ledger is, as its tables say.

    :param ledger_id: made with the tables.
    :param secret: key of its hashes.
    :param warnings: what weakens its promises, as sentences.
    """

    ledger_id: str
    secret: bytes
    warnings: tuple[str, ...]


def opened(database: Database, *, create: bool) -> Opened:
    """Make the tables or bring them forward, and read who the ledger is.

    :param create: whether to make them where there are none.
    :raises LedgerMissing: there are none, and none are to be made.
    :raises LedgerUnsafe: the tables need newer code.
    """

    def known(tx: Transaction) -> dict[str, str]:
        return facts.known(tx) if sa.inspect(tx.conn).has_table("sib_meta") else {}

    meta = database.read(known)
    if not meta and not create:
        raise LedgerMissing(f"There is no ledger in {database.place}.")
    if int(meta.get("schema", 0)) < SCHEMA:
        _check(meta)
        database.write(_migrate)
        meta = database.read(known)
    _check(meta)
    return Opened(meta["ledger_id"], bytes.fromhex(meta["secret"]), database.read(_weaknesses))


def _check(meta: Mapping[str, str]) -> None:
    if int(meta.get("readable_from", 0)) > SCHEMA:
        raise LedgerUnsafe(
            f"This ledger has schema {meta['schema']}, which needs airflow-provider-sib"
            f" {meta['readable_from_release']} or newer; this is {__version__} (schema {SCHEMA})."
            " Upgrade it wherever this ledger is used, or choose another ledger."
        )


def _migrate(tx: Transaction) -> None:
    # Two CREATE TABLE IF NOT EXISTS at once fail on PostgreSQL and MySQL.
    mysql = tx.dialect.name == "mysql"
    if tx.dialect.name == "postgresql":
        tx.run("SELECT pg_advisory_xact_lock(7305810225)")
    elif mysql and not tx.row("SELECT GET_LOCK(CONCAT(DATABASE(), '.sib_ledger'), 50)")[0]:
        raise LedgerUnavailable("Another process has been migrating this ledger for almost a minute.")
    try:
        there = sa.inspect(tx.conn).has_table("sib_meta")
        meta = facts.known(tx) if there else {}
        _check(meta)
        known = int(meta.get("schema", 0))
        if known >= SCHEMA:
            return  # somebody else was here first, perhaps newer code, whose facts are its own
        words = {
            "text": tx.dialect.text,
            "table": tx.dialect.table,
            "keyed": tx.dialect.keyed,
            "inner": f", KEY {TODO_INDEX}" if mysql else "",
            "outer": "" if mysql else _index(TODO_INDEX, "sib_delivery"),
            "touch_inner": f", KEY {TOUCH_INDEX}" if mysql else "",
            "touch_outer": "" if mysql else _index(TOUCH_INDEX, "sib_touch"),
        }
        for step in STEPS[known:]:
            for statement in filter(None, (template.format(**words) for template in step)):
                tx.run(statement)
        schema, release = READABLE_FROM
        initial = {
            "ledger_id": str(uuid.uuid4()),
            "secret": secrets.token_hex(32),
            "next_part": "1",
            "purged_claims": "0",
            "schema": str(SCHEMA),
            "readable_from": schema,
            "readable_from_release": release,
        }
        missing = tx.dialect.missing.format("k")
        tx.many(
            f"INSERT INTO sib_meta (k, v) VALUES (:k, :v) {missing}",
            [{"k": name, "v": value} for name, value in initial.items()],
        )
        for name in ("schema", "readable_from", "readable_from_release"):
            facts.keep(tx, name, initial[name])
    finally:
        if mysql:
            tx.run("SELECT RELEASE_LOCK(CONCAT(DATABASE(), '.sib_ledger'))")


def _weaknesses(tx: Transaction) -> tuple[str, ...]:
    if tx.dialect.name == "postgresql" and tx.row("SHOW fsync")[0] == "off":
        return ("PostgreSQL runs with fsync=off: a crash of its machine may lose what was sent.",)
    if tx.dialect.name == "mysql":
        flush = int(tx.row("SELECT @@innodb_flush_log_at_trx_commit")[0])
        if flush != 1:
            danger = "a crash of the database's machine may lose what was sent"
            return (f"innodb_flush_log_at_trx_commit is {flush}, not 1: {danger}.",)
    return ()


def _index(index: str, table: str) -> str:
    name, _, columns = index.partition(" ")
    return f"CREATE INDEX IF NOT EXISTS {name} ON {table} {columns}"
