"""Read campaigns' own rows, locked where they are going to be changed; the campaign's lock is the first of all."""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are always bound

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.ledger import Campaign, CampaignStatus, Json, Text, UnknownCampaign

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_sib.campaign.sql_ledger.database import Row, Transaction

CAMPAIGN_COLUMNS = (
    "campaign, part, binding, each_run, status, revision, digest, settings, memo, enrolled_at_ms, total, "
    "duplicates, bad_rows, fraction, limit_rank, claims, zones, created_at_ms, last_seen_ms, next_wake_ms, "
    "sweep_at_ms, editor, editor_until_ms"
)


@dataclass(frozen=True, slots=True)
class Book:
    """A campaign's row as it was read, locked where it is going to be changed."""

    campaign: Campaign
    part: int
    zones: tuple[str | None, ...]
    sweep_at_ms: int | None
    editor: int
    editor_until_ms: int
    now_ms: int


def lock(tx: Transaction, campaign_id: str) -> Book:
    """Lock a campaign's row and read it.

    :raises UnknownCampaign: there is none.
    """
    return _read(tx, campaign_id, lock=tx.dialect.lock)


def look(tx: Transaction, campaign_id: str) -> Book:
    """Read a campaign's row.

    :raises UnknownCampaign: there is none.
    """
    return _read(tx, campaign_id, lock="")


def _read(tx: Transaction, campaign_id: str, *, lock: str) -> Book:
    now = tx.dialect.now if tx.database.clock is None else "0"
    rows = tx.rows(
        f"SELECT {CAMPAIGN_COLUMNS}, {now} FROM sib_campaign WHERE campaign = :campaign{lock}",
        campaign=campaign_id,
    )
    if not rows:
        raise UnknownCampaign(campaign_id)
    return _book(tx, rows[0])


def every(tx: Transaction) -> list[Campaign]:
    """Read all campaigns, the newest first."""
    # With their texts at once: one by one they take longer than everything else, and a second statement would see
    # what was opened or revised meanwhile.
    columns = ", ".join(f"c.{name}" for name in CAMPAIGN_COLUMNS.split(", "))
    rows = tx.rows(
        f"SELECT {columns}, 0, t.body FROM sib_campaign c JOIN sib_text t"
        " ON t.campaign = c.campaign AND t.revision = c.revision ORDER BY c.created_at_ms DESC, c.campaign"
    )
    bodies = {row[6]: row[-1] for row in rows}  # by digest: many campaigns may have one text
    texts = {digest: json.loads(body) for digest, body in bodies.items()}
    return [_book(tx, row[:-1], texts).campaign for row in rows]


def set_status(tx: Transaction, campaign_id: str, status: CampaignStatus) -> None:
    """Write a campaign's status."""
    tx.run(
        "UPDATE sib_campaign SET status = :status WHERE campaign = :campaign",
        status=status.value,
        campaign=campaign_id,
    )


def _book(tx: Transaction, row: Row, texts: Mapping[str, Json] | None = None) -> Book:
    (campaign_id, part, binding, each_run, status, revision, digest, settings, memo, enrolled_at_ms) = row[
        :10
    ]
    (total, duplicates, bad_rows, fraction, limit, claims, zones, created, seen, wake) = row[10:20]
    sweep_at_ms, editor, editor_until_ms, now_ms = row[20:]
    campaign = Campaign(
        campaign_id=campaign_id,
        binding=json.loads(binding),
        each_run=bool(each_run),
        status=CampaignStatus(status),
        revision=revision,
        text=Text(digest, _body(tx, campaign_id, revision, digest) if texts is None else texts[digest]),
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
    now_ms = now_ms if tx.database.clock is None else round(tx.database.clock() * 1000)
    return Book(campaign, part, tuple(json.loads(zones)), sweep_at_ms, editor, editor_until_ms, int(now_ms))


def _body(tx: Transaction, campaign_id: str, revision: int, digest: str) -> Json:
    if digest not in tx.database.texts:
        (body,) = tx.row(
            "SELECT body FROM sib_text WHERE campaign = :campaign AND revision = :revision",
            campaign=campaign_id,
            revision=revision,
        )
        if len(tx.database.texts) >= 64:
            tx.database.texts.clear()
        tx.database.texts[digest] = json.loads(body)
    return tx.database.texts[digest]
