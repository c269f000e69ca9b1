"""Open, revise, limit, finish and purge campaigns; each function is the work of one transaction."""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are always bound

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.ledger import (
    Campaign,
    CampaignStatus,
    Json,
    Refusal,
    RefusalKind,
    Revision,
    State,
    Text,
    binding_refusal,
    check_campaign_id,
    first_ranks,
    limit_rank,
    purge_refusal,
    status_refusal,
    to_json,
)
from airflow_provider_sib.campaign.sql_ledger import books, deliveries, facts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_sib.campaign.sql_ledger.database import Transaction


def open_campaign(
    tx: Transaction,
    campaign_id: str,
    *,
    binding: Mapping[str, str],
    each_run: bool,
    text: Text | None,
    settings: Mapping[str, Json],
) -> Campaign | Refusal:
    """See :meth:`Ledger.open_campaign`."""
    check_campaign_id(campaign_id)
    if text is not None:
        _create(tx, campaign_id, dict(binding), each_run=each_run, text=text)
    kept = books.lock(tx, campaign_id).campaign
    if refusal := binding_refusal(kept.binding, kept.each_run, binding, each_run=each_run):
        return refusal
    if text is not None and not tx.rows(
        "SELECT revision FROM sib_text WHERE campaign = :campaign AND digest = :digest",
        campaign=campaign_id,
        digest=text.digest,
    ):
        return Refusal(RefusalKind.UNKNOWN_TEXT, "text", kept.text.digest, text.digest)
    tx.run(
        "UPDATE sib_campaign SET settings = :settings WHERE campaign = :campaign",
        settings=to_json(dict(settings)),
        campaign=campaign_id,
    )
    return replace(kept, settings=dict(settings))


def _create(
    tx: Transaction,
    campaign_id: str,
    binding: dict[str, str],
    *,
    each_run: bool,
    text: Text,
) -> None:
    if tx.rows("SELECT 1 FROM sib_campaign WHERE campaign = :campaign", campaign=campaign_id):
        return
    now_ms = tx.now_ms()
    created = tx.run(
        "INSERT INTO sib_campaign (campaign, part, binding, each_run, status, revision, digest, settings, memo,"
        " total, duplicates, bad_rows, fraction, claims, zones, created_at_ms, editor, editor_until_ms)"
        " VALUES (:campaign, 0, :binding, :each_run, 'running', 1, :digest, '{}', '{}', 0, 0, 0, 1, 0,"
        f" '[]', :now, 0, 0) {tx.dialect.missing.format('campaign')}",
        campaign=campaign_id,
        binding=to_json(binding),
        each_run=int(each_run),
        digest=text.digest,
        now=now_ms,
    )
    if created:
        _add_text(tx, campaign_id, 1, text, now_ms)


def _add_text(tx: Transaction, campaign_id: str, revision: int, text: Text, now_ms: int) -> None:
    tx.run(
        "INSERT INTO sib_text (campaign, revision, digest, body, at_ms)"
        f" VALUES (:campaign, :revision, :digest, :body, :now) {tx.dialect.missing.format('campaign')}",
        campaign=campaign_id,
        revision=revision,
        digest=text.digest,
        body=to_json(text.body),
        now=now_ms,
    )


def revise(tx: Transaction, campaign_id: str, text: Text) -> Campaign:
    """See :meth:`Ledger.revise`."""
    book = books.lock(tx, campaign_id)
    kept = book.campaign
    if kept.text.digest == text.digest:
        return kept
    revision = kept.revision + 1
    _add_text(tx, campaign_id, revision, text, book.now_ms)
    tx.run(
        "UPDATE sib_campaign SET revision = :revision, digest = :digest WHERE campaign = :campaign",
        revision=revision,
        digest=text.digest,
        campaign=campaign_id,
    )
    return replace(kept, revision=revision, text=text)


def revisions(tx: Transaction, campaign_id: str) -> list[Revision]:
    """See :meth:`Ledger.revisions`."""
    books.look(tx, campaign_id)
    rows = tx.rows(
        "SELECT revision, digest, body, at_ms FROM sib_text WHERE campaign = :campaign ORDER BY revision",
        campaign=campaign_id,
    )
    return [
        Revision(revision, Text(digest, json.loads(body)), at_ms) for revision, digest, body, at_ms in rows
    ]


def set_status(
    tx: Transaction, campaign_id: str, status: CampaignStatus, seen: CampaignStatus | None
) -> Campaign | Refusal:
    """See :meth:`Ledger.set_status`."""
    kept = books.lock(tx, campaign_id).campaign
    if refusal := status_refusal(kept.status, status, seen):
        return refusal
    books.set_status(tx, campaign_id, status)
    return replace(kept, status=status)


def finish(tx: Transaction, campaign_id: str) -> bool:
    """See :meth:`Ledger.finish`."""
    book = books.lock(tx, campaign_id)
    status = book.campaign.status
    for state in (State.PENDING, State.SENDING):
        if deliveries.occupied(tx, book, state):
            return status is CampaignStatus.FINISHED
    if status is CampaignStatus.RUNNING:
        status = CampaignStatus.FINISHED
        tx.run(
            "UPDATE sib_campaign SET status = :status, next_wake_ms = NULL WHERE campaign = :campaign",
            status=status.value,
            campaign=campaign_id,
        )
    return status is CampaignStatus.FINISHED


def set_fraction(tx: Transaction, campaign_id: str, fraction: float) -> Campaign:
    """See :meth:`Ledger.set_fraction`."""
    limit = limit_rank(fraction)
    book = books.lock(tx, campaign_id)
    kept, upto = book.campaign, limit
    if upto is not None and not kept.each_run:
        place = first_ranks(fraction, kept.total) - 1
        upto = -1 if place < 0 else deliveries.rank_at(tx, book.part, place)
    tx.run(
        "UPDATE sib_campaign SET fraction = :fraction, limit_rank = :upto WHERE campaign = :campaign",
        fraction=fraction,
        upto=upto,
        campaign=campaign_id,
    )
    return replace(kept, fraction=fraction, limit_rank=upto)


def purge(tx: Transaction, campaign_id: str) -> Refusal | None:
    """See :meth:`Ledger.purge`."""
    book = books.lock(tx, campaign_id)
    _, lease_until_ms = deliveries.sending(tx, book)
    if refusal := purge_refusal(book.campaign.status, lease_until_ms, book.now_ms):
        return refusal
    purged = int(facts.locked(tx, "purged_claims")) + book.campaign.claims
    facts.keep(tx, "purged_claims", str(purged))
    tx.run("UPDATE sib_part SET state = 'dead' WHERE campaign = :campaign", campaign=campaign_id)
    for sql in (
        "DELETE FROM sib_suppress WHERE scope = :campaign",
        "DELETE FROM sib_text WHERE campaign = :campaign",
        "DELETE FROM sib_campaign WHERE campaign = :campaign",
    ):
        tx.run(sql, campaign=campaign_id)
    return None
