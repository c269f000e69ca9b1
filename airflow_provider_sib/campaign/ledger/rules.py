"""Decide what all ledgers must decide alike, one place a rule: transitions, refusals, fractions, what can be kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

from airflow_provider_sib.campaign.ledger.values import (
    RANKS,
    STATUS_CHANGES,
    CampaignStatus,
    Delivery,
    EditResult,
    Enrolment,
    Refusal,
    RefusalKind,
    Result,
    State,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

SKIPPED_AT_ONCE = 2000
"""After so many rows skipped a claim ends, for others wait for its lock."""

FORGOTTEN = "forgotten"
"""Reason of suppressions and skips after :meth:`Ledger.forget_visitor`."""

RETRYABLE = frozenset({State.FAILED, State.IN_DOUBT, State.SKIPPED})
"""What :meth:`Ledger.retry` may set to pending."""

SETTLEMENTS = frozenset({State.SENT, State.FAILED, State.PENDING})
"""What :meth:`Ledger.settle` may decide."""

LEASE_EXPIRED = "lease_expired"
"""Reason of a doubt that came from a sweep."""

SETTLED = "settled"
"""Reason of a delivery whose doubt was settled by hand."""

CHARTED = frozenset({State.SENT, State.FAILED, State.IN_DOUBT})
"""What :meth:`Ledger.series` counts."""


@dataclass(frozen=True, slots=True)
class Transition:
    """What a result does to its row: its state, and its first message id; ``extra`` adds one beside it."""

    state: State
    message_id: str | None
    extra: str | None = None


def transition(state: State, claim: int, message_id: str | None, result: Result) -> Transition | None:
    """Decide what a result changes; None: nothing.

    A message is a fact and always accepted, however late; anything else only from the holder of the claim.

    :param state: the row's.
    :param claim: the row's.
    :param message_id: the row's first.
    :param result: what its sender says.
    """
    if result.state is State.SENT:
        # While the row is being sent again its first message is kept, until the second one's fate is known.
        after = State.SENDING if state is State.SENDING and claim != result.claim else State.SENT
        if result.message_id in (None, message_id):
            if state in (State.SENT, State.WITHDRAWN) or after is state:
                return None
            return Transition(after, message_id)
        if message_id is None or state is State.WITHDRAWN:
            return Transition(after, result.message_id)
        return Transition(after, message_id, result.message_id)
    if claim != result.claim or state not in (State.SENDING, State.IN_DOUBT):
        return None
    if message_id is not None:
        return Transition(State.SENT, message_id)
    return Transition(result.state, None)


def edited(row: Delivery, result: EditResult, now_ms: int) -> Delivery | None:
    """Apply an edit's or a deletion's result; None: the row is not as the editor knew it, and stays."""
    if row.state is not State.SENT or not set(row.message_ids) <= set(result.message_ids):
        return None
    return replace(
        row,
        state=result.state,
        revision=row.revision if result.revision is None else result.revision,
        text_hash=result.text_hash or row.text_hash,
        reason=result.reason,
        at_ms=row.at_ms if result.state is State.SENT else now_ms,
    )


def first_ranks(fraction: float, total: int) -> int:
    """Return how many of ``total`` a fraction lets through: ``ceil(fraction * total)``, exact in decimals."""
    share = Fraction(repr(float(fraction))) * total
    return -(-share.numerator // share.denominator)


def flaw_of(identifier: str) -> str | None:
    """Say what is wrong with an id, or None: every database must agree on which ids are equal."""
    if not identifier or identifier != identifier.strip():
        return "is empty or has blanks around it"
    if len(identifier) > 255:
        return "has more than 255 characters"
    return _unstorable(identifier)


def _unstorable(text: str) -> str | None:
    if "\0" in text:
        return "contains a NUL character"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "contains half a surrogate pair"
    return None


to_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
"""Write a JSON text, the same in every ledger; raises ValueError for what JSON has no word for."""


def keyed_hash(secret: bytes, value: str) -> str:
    """Hash an id with the ledger's own secret: 32 hexadecimal digits."""
    return hashlib.blake2b(value.encode(), key=secret, digest_size=16).hexdigest()


def limit_rank(fraction: float) -> int | None:
    """Return the highest rank a fraction lets through where newcomers join; None: all.

    :raises ValueError: the fraction is not over 0 and up to 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be over 0 and up to 1, not {fraction!r}")
    return None if fraction == 1 else first_ranks(fraction, RANKS) - 1


def check_enrolment(row: Enrolment) -> None:
    """Refuse a row that not every ledger can hold.

    :raises ValueError: an id, a name or the rank has a flaw.
    """
    if flaw := flaw_of(row.visitor_id):
        raise ValueError(f"a visitor's id {flaw}")
    if flaw := "is empty" if not row.key else _unstorable(row.key):
        raise ValueError(f"a once key {flaw}")
    if not 0 <= row.rank < RANKS:
        raise ValueError("a rank must be from 0 up to 2**63")
    _check_names((row.variant, row.timezone or "", row.locale or "", row.skip or ""))


@lru_cache(maxsize=4096)
def _check_names(names: tuple[str, ...]) -> None:
    for name in names:
        if flaw := "has more than 255 characters" if len(name) > 255 else _unstorable(name):
            raise ValueError(f"a variant's, time zone's or locale's name {flaw}")


def rank_after(rank: int) -> int:
    """Return the place of the second of two once keys that have the same rank.

    :raises ValueError: there is none, with a chance of one in 2**63.
    """
    if rank + 1 == RANKS:
        raise ValueError("two once keys have the last of all ranks; choose another campaign id")
    return rank + 1


def check_campaign_id(campaign_id: str) -> None:
    """Refuse an id the ledger can't hold.

    :raises ValueError: it has a flaw.
    """
    if flaw := flaw_of(campaign_id):
        raise ValueError(f"campaign_id {flaw}")


def binding_refusal(
    kept: Mapping[str, str], kept_each_run: bool, binding: Mapping[str, str], *, each_run: bool
) -> Refusal | None:
    """Name the first part of a binding that differs from what a campaign began with, or None."""
    before = {**kept, "enrol": "each_run" if kept_each_run else "once"}
    now = {**binding, "enrol": "each_run" if each_run else "once"}
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            return Refusal(RefusalKind.OTHER_BINDING, name, before.get(name, ""), now.get(name, ""))
    return None


def status_refusal(
    kept: CampaignStatus, status: CampaignStatus, seen: CampaignStatus | None
) -> Refusal | None:
    """Refuse a change of another status than was seen, or one that :data:`STATUS_CHANGES` doesn't have, or None."""
    if seen not in (None, kept):
        return Refusal(RefusalKind.STATUS, "seen", kept, seen)
    if status is kept or status in STATUS_CHANGES[kept]:
        return None
    return Refusal(RefusalKind.STATUS, "status", kept, status)


def purge_refusal(kept: CampaignStatus, lease_until_ms: int | None, now_ms: int) -> Refusal | None:
    """Refuse to purge a campaign that goes on, or whose senders have yet to say what became of messages, or None.

    :param lease_until_ms: when the last lease of what is being sent ends; None: nothing is.
    """
    if kept not in (CampaignStatus.FINISHED, CampaignStatus.ABORTED):
        return Refusal(RefusalKind.STATUS, "status", kept, "purged")
    if lease_until_ms is not None and lease_until_ms > now_ms:
        return Refusal(RefusalKind.STATUS, "sending", str(lease_until_ms), "purged")
    return None
