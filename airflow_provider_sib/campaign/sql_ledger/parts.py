"""Number the parts of ``sib_delivery``, one an enrolment, and delete chunk by chunk those that nobody needs."""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are always bound

from __future__ import annotations

from airflow_provider_sib.campaign.ledger import RANKS
from airflow_provider_sib.campaign.sql_ledger import facts
from airflow_provider_sib.campaign.sql_ledger.database import CHUNK, Database, Transaction

FILL_LEASE_MS = 600_000
"""After which an enrolment that adds nothing is taken for dead."""


def new(tx: Transaction, campaign_id: str, state: str) -> int:
    """Give a campaign a part of its own."""
    part = int(facts.locked(tx, "next_part"))
    facts.keep(tx, "next_part", str(part + 1))
    tx.run(
        "INSERT INTO sib_part (part, campaign, state, lease_ms) VALUES (:part, :campaign, :state, :lease)",
        part=part,
        campaign=campaign_id,
        state=state,
        lease=tx.now_ms() + FILL_LEASE_MS,
    )
    return part


def bury(database: Database) -> None:
    """Delete rows of purged campaigns and of enrolments that were abandoned, chunk by chunk."""
    over = "(state = 'dead' OR (state = 'filling' AND lease_ms < :now))"

    def dead(tx: Transaction) -> list[int]:
        rows = tx.rows(f"SELECT part FROM sib_part WHERE {over}", now=tx.now_ms())
        return [part for (part,) in rows]

    for part in database.read(dead):

        def condemn(tx: Transaction, part: int = part) -> bool:
            sql = f"UPDATE sib_part SET state = 'dead', lease_ms = lease_ms + 1 WHERE part = :part AND {over}"
            return bool(tx.run(sql, part=part, now=tx.now_ms()))

        def delete(tx: Transaction, part: int = part) -> bool:
            sql = "SELECT seq FROM sib_delivery WHERE part = :part ORDER BY seq LIMIT :limit"
            seqs = [seq for (seq,) in tx.rows(sql, part=part, limit=CHUNK)]
            upto = seqs[-1] if len(seqs) == CHUNK else RANKS - 1
            for table in ("sib_delivery", "sib_message", "sib_touch"):
                tx.run(f"DELETE FROM {table} WHERE part = :part AND seq <= :upto", part=part, upto=upto)
            if len(seqs) < CHUNK:
                tx.run("DELETE FROM sib_part WHERE part = :part", part=part)
            return len(seqs) == CHUNK

        if database.write(condemn):
            while database.write(delete):
                pass
