"""Keep the accounts' quotas, a locked row each, in the transaction of what is counted against them."""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are always bound

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.ledger import Granted, Holding, Quota, QuotaUse, held, paced, to_json

if TYPE_CHECKING:
    from airflow_provider_sib.campaign.sql_ledger.database import Transaction

_FIELDS = frozenset(Quota.__dataclass_fields__) - {"holders"}


def grant(tx: Transaction, use: QuotaUse, now_ms: int) -> Granted:
    """Apply a pace and count all it permits as begun."""
    quota, permits = paced(use, locked(tx, use), now_ms)
    quota = held(use, quota, now_ms, begun=permits)
    keep(tx, use, quota)
    return Granted(now_ms, quota, permits)


def locked(tx: Transaction, use: QuotaUse) -> Quota:
    """Lock a quota row, made if need be, and read it."""
    sql = f"SELECT doc FROM sib_quota WHERE account = :account AND bucket = :bucket{tx.dialect.lock}"
    key = {"account": use.account, "bucket": use.bucket}
    rows = tx.rows(sql, **key)
    if not rows:
        missing = tx.dialect.missing.format("account")
        tx.run(
            f"INSERT INTO sib_quota (account, bucket, doc) VALUES (:account, :bucket, '{{}}') {missing}",
            **key,
        )
        rows = tx.rows(sql, **key)
    return _read(rows[0][0])


def known(tx: Transaction) -> dict[tuple[str, str], Quota]:
    """Read all quota rows, locking none."""
    rows = tx.rows("SELECT account, bucket, doc FROM sib_quota")
    return {(account, bucket): _read(doc) for account, bucket, doc in rows}


def _read(text: str) -> Quota:
    doc = json.loads(text)
    holders = {name: Holding(*holding) for name, holding in doc.pop("holders", {}).items()}
    # A newer release may have added fields that this one doesn't know.
    return Quota(**{name: doc[name] for name in doc.keys() & _FIELDS}, holders=holders)


def keep(tx: Transaction, use: QuotaUse, quota: Quota) -> None:
    """Write a quota whose row is locked."""
    doc = asdict(quota)
    doc["holders"] = {name: [held.flying, held.until_ms] for name, held in quota.holders.items()}
    tx.run(
        "UPDATE sib_quota SET doc = :doc WHERE account = :account AND bucket = :bucket",
        doc=to_json(doc),
        account=use.account,
        bucket=use.bucket,
    )
