"""Keep to whom nothing is sent, and erase whom a ledger must not know any longer."""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are always bound

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.ledger import FORGOTTEN, Suppression, UnknownCampaign, flaw_of
from airflow_provider_sib.campaign.sql_ledger import books, deliveries, facts, parts
from airflow_provider_sib.campaign.sql_ledger.database import CHUNK, Database, Row, Transaction, chunks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def exclude(database: Database, campaign_id: str, visitor_ids: Iterable[str]) -> int:
    """See :meth:`Ledger.exclude`."""

    def begin(tx: Transaction) -> int:
        books.look(tx, campaign_id)
        newest = "SELECT COALESCE(MAX(gen), 0) FROM sib_suppress WHERE scope = :scope"
        return int(tx.row(newest, scope=campaign_id)[0]) + 1

    # Two tasks may read their lists at once. Whoever began later wins; who began together leave out both lists.
    gen = database.read(begin)

    def add(tx: Transaction, *, hashes: list[str]) -> None:
        now_ms = tx.now_ms()
        tx.many(
            "INSERT INTO sib_suppress (scope, hash, visitor, reason, at_ms, gen)"
            f" VALUES (:scope, :hash, NULL, 'excluded', :at_ms, :gen) {tx.dialect.generation}",
            [{"scope": campaign_id, "hash": hash_, "at_ms": now_ms, "gen": gen} for hash_ in hashes],
        )

    added = False
    for chunk in chunks(database.hash(visitor_id) for visitor_id in visitor_ids):
        database.write(partial(add, hashes=sorted(set(chunk))))
        added = True
    if gen == 1 and not added:  # as with most campaigns
        return 0

    def end(tx: Transaction) -> int:
        books.lock(tx, campaign_id)
        tx.run(
            "DELETE FROM sib_suppress WHERE scope = :scope AND gen < :gen",
            scope=campaign_id,
            gen=gen,
        )
        return int(tx.row("SELECT COUNT(*) FROM sib_suppress WHERE scope = :scope", scope=campaign_id)[0])

    return database.write(end)


def suppress(database: Database, visitor_ids: Iterable[str], reason: str) -> int:
    """See :meth:`Ledger.suppress`."""
    new = 0
    for chunk in chunks(visitor_ids):
        if flaw := next(filter(None, map(flaw_of, chunk)), None):
            raise ValueError(f"a visitor's id {flaw}")
        by_hash = {database.hash(visitor_id): visitor_id for visitor_id in chunk}

        def work(tx: Transaction, by_hash: dict[str, str] = by_hash) -> int:
            there = tx.rows(
                "SELECT hash FROM sib_suppress WHERE scope = '' AND hash IN :hashes",
                hashes=list(by_hash),
            )
            absent = sorted(by_hash.keys() - {hash_ for (hash_,) in there})
            _suppress(tx, [(hash_, by_hash[hash_]) for hash_ in absent], reason)
            return len(absent)

        new += database.write(work)
    return new


def unsuppress(database: Database, visitor_ids: Iterable[str]) -> int:
    """See :meth:`Ledger.unsuppress`."""
    gone = 0
    for chunk in chunks(visitor_ids):
        hashes = sorted({database.hash(visitor_id) for visitor_id in chunk})

        def work(tx: Transaction, hashes: list[str] = hashes) -> int:
            sql = "DELETE FROM sib_suppress WHERE scope = '' AND hash IN :hashes"
            return tx.run(sql, hashes=hashes)

        gone += database.write(work)
    return gone


def suppressed(database: Database) -> Iterator[Suppression]:
    """See :meth:`Ledger.suppressed`."""
    after = ""
    while True:

        def work(tx: Transaction, after: str = after) -> list[Row]:
            return tx.rows(
                "SELECT hash, visitor, reason, at_ms FROM sib_suppress WHERE scope = '' AND hash > :after"
                " ORDER BY hash LIMIT 1000",
                after=after,
            )

        rows = database.read(work)
        yield from (Suppression(*row[1:]) for row in rows)
        if len(rows) < 1000:
            return
        after = rows[-1][0]


def forget_visitor(database: Database, visitor_id: str) -> int:
    """See :meth:`Ledger.forget_visitor`."""
    hashed = database.hash(visitor_id)

    def mark(tx: Transaction) -> None:
        _suppress(tx, [(hashed, None)], FORGOTTEN)
        tx.run(
            "UPDATE sib_suppress SET visitor = NULL, reason = :reason WHERE scope = '' AND hash = :hash",
            reason=FORGOTTEN,
            hash=hashed,
        )
        # How often it was done, by which enrolments see that the list has grown.
        facts.keep(tx, "forgotten", str(int(facts.locked(tx, "forgotten") or 0) + 1))

    database.write(mark)
    for campaign in database.read(books.every):
        # Whoever is enrolling and did not see the mark is waited for: the rows are to be found.
        with contextlib.suppress(UnknownCampaign):
            database.read(partial(books.lock, campaign_id=campaign.campaign_id))
    found = database.read(
        lambda tx: tx.rows(
            "SELECT part, visitor FROM sib_delivery WHERE visitor = :visitor",
            visitor=visitor_id,
        )
    )
    theirs = sorted({part for part, visitor in found if visitor == visitor_id})
    return sum(database.write(partial(_forget, part=part, visitor_id=visitor_id)) for part in theirs)


def scrub_variables(database: Database, before_ms: int) -> int:
    """See :meth:`Ledger.scrub_variables`."""
    done = 0
    over = "vars IS NOT NULL AND state+0 NOT IN (0, 1) AND at_ms < :before"
    for campaign in database.read(books.every):
        after = -1
        while True:

            def work(
                tx: Transaction, campaign_id: str = campaign.campaign_id, after: int = after
            ) -> list[int]:
                book = books.lock(tx, campaign_id)
                rows = tx.rows(
                    "SELECT seq FROM sib_delivery WHERE part = :part AND seq > :after"
                    f" AND {over} ORDER BY seq LIMIT :limit",
                    part=book.part,
                    after=after,
                    before=before_ms,
                    limit=CHUNK,
                )
                seqs = [seq for (seq,) in rows]
                if seqs:
                    tx.run(
                        f"UPDATE sib_delivery SET vars = NULL WHERE part = :part AND seq IN :seqs AND {over}",
                        part=book.part,
                        seqs=seqs,
                        before=before_ms,
                    )
                return seqs

            try:
                seqs = database.write(work)
            except UnknownCampaign:
                break
            done += len(seqs)
            if len(seqs) < CHUNK:
                break
            after = seqs[-1]
    parts.bury(database)
    return done


def _suppress(tx: Transaction, hashes: Sequence[tuple[str, str | None]], reason: str) -> None:
    now_ms = tx.now_ms()
    if hashes:
        tx.many(
            "INSERT INTO sib_suppress (scope, hash, visitor, reason, at_ms, gen)"
            f" VALUES ('', :hash, :visitor, :reason, :at_ms, 0) {tx.dialect.missing.format('scope')}",
            [
                {"hash": hash_, "visitor": visitor, "reason": reason, "at_ms": now_ms}
                for hash_, visitor in hashes
            ],
        )


def _forget(tx: Transaction, *, part: int, visitor_id: str) -> int:
    owners = tx.rows("SELECT campaign FROM sib_part WHERE part = :part", part=part)
    if owners:
        with contextlib.suppress(UnknownCampaign):
            books.lock(tx, owners[0][0])
    found = tx.rows(
        "SELECT seq, once_key, visitor FROM sib_delivery WHERE part = :part AND visitor = :visitor",
        part=part,
        visitor=visitor_id,
    )
    rows = [(seq, key) for seq, key, visitor in found if visitor == visitor_id]
    if rows:
        tx.run(
            "UPDATE sib_delivery SET state = 5, reason = :reason, at_ms = :at_ms"
            " WHERE part = :part AND seq IN :seqs AND state+0 = 0",
            reason=FORGOTTEN,
            at_ms=tx.now_ms(),
            part=part,
            seqs=[seq for seq, _ in rows],
        )
        deliveries.erase(tx, part, rows)
    return len(rows)
