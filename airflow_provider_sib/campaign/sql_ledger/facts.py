"""Keep what the ledger knows of itself in ``sib_meta``: its id, its secret, its schema, its counters."""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are always bound

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_sib.campaign.sql_ledger.database import Transaction


def known(tx: Transaction) -> dict[str, str]:
    """Read all facts; the locks of frequency caps, which stand beside them, are none."""
    return dict(tx.rows("SELECT k, v FROM sib_meta WHERE k NOT LIKE 'cap:%'"))


def locked(tx: Transaction, name: str) -> str:
    """Lock one of the ledger's facts, made empty if need be, and read it."""
    sql = f"SELECT v FROM sib_meta WHERE k = :k{tx.dialect.lock}"
    rows = tx.rows(sql, k=name)
    if not rows:
        missing = tx.dialect.missing.format("k")
        tx.run(f"INSERT INTO sib_meta (k, v) VALUES (:k, '') {missing}", k=name)
        rows = tx.rows(sql, k=name)
    return str(rows[0][0])


def keep(tx: Transaction, name: str, value: str) -> None:
    """Set a fact that is there."""
    tx.run("UPDATE sib_meta SET v = :v WHERE k = :k", k=name, v=value)
