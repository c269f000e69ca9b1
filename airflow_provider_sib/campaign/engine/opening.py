"""Before the first message: open a campaign, or go on with it, and take an audience into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_sib.campaign.announcement import Announcement, Enroller, RecipientError
from airflow_provider_sib.campaign.audience import BadRow, Row
from airflow_provider_sib.campaign.ledger import (
    Campaign,
    Enrolled,
    Enrolment,
    Json,
    Ledger,
    Refusal,
    RefusalKind,
    Text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence


class CampaignRefused(Exception):
    """Nothing was sent, and a retry can't help: the author has to choose.

    :param campaign_id: the campaign.
    :param refusal: what the ledger said.
    """

    def __init__(self, campaign_id: str, refusal: Refusal) -> None:
        super().__init__(_refusal_sentence(campaign_id, refusal))
        self.campaign_id = campaign_id
        self.refusal = refusal

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.campaign_id, self.refusal)


def _refusal_sentence(campaign_id: str, refusal: Refusal) -> str:
    match refusal.kind:
        case RefusalKind.UNKNOWN_TEXT:
            return (
                f"Campaign {campaign_id!r} has never had this text, and some may have got another. To change what "
                "it says, also where it was sent already, run UpdateCampaignOperator with the new text; for a new "
                "announcement choose a new campaign_id."
            )
        case RefusalKind.OTHER_BINDING:
            return (
                f"Campaign {campaign_id!r} began with {refusal.name} {refusal.kept!r}, and now it is "
                f"{refusal.given!r}. Who was reached there doesn't count here: go back to what it was, or choose "
                "a new campaign_id."
            )
        case RefusalKind.STATUS:
            return f"Campaign {campaign_id!r} is {refusal.kept}, so it can't be {refusal.given}."


class TooManyBadRows(Exception):
    """A list of visitors has more unusable rows than allowed, so that nothing is sent.

    :param of: which list.
    :param count: unusable rows.
    :param allowed: ``max_bad_rows``.
    :param named: the first of them.
    """

    def __init__(self, of: str, count: int, allowed: int, named: Sequence[BadRow]) -> None:
        listed = "; ".join(f"line {row.line} {row.reason}" for row in named)
        more = f"; and {count - len(named)} more" if count > len(named) else ""
        super().__init__(
            f"{count} row{'s' if count != 1 else ''} of {of} can't be used, and max_bad_rows is {allowed}, "
            f"so nothing is sent: {listed}{more}."
        )
        self.of, self.count, self.allowed, self.named = of, count, allowed, tuple(named)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.of, self.count, self.allowed, self.named)


class BadRows:
    """Unusable rows of a list of visitors: how many, and the first 20 of them.

    :param of: which list, to follow on "3 rows of".
    """

    def __init__(self, of: str = "the audience") -> None:
        self.of = of
        self.count = 0
        self.named: list[BadRow] = []

    def add(self, row: BadRow) -> None:
        """Count one."""
        self.count += 1
        if len(self.named) < 20:
            self.named.append(row)

    def refuse_beyond(self, allowed: int) -> None:
        """Say whether that is few enough.

        :param allowed: ``max_bad_rows``.
        :raises TooManyBadRows: when there are more.
        """
        if self.count > allowed:
            raise TooManyBadRows(self.of, self.count, allowed, self.named)


def text_of(announcement: Announcement) -> Text:
    """Put an announcement into the ledger's form."""
    return Text(announcement.digest, announcement.as_dict())


def open_campaign(
    ledger: Ledger,
    campaign_id: str,
    *,
    binding: Mapping[str, str],
    announcement: Announcement | None,
    each_run: bool = False,
    settings: Mapping[str, Json] | None = None,
) -> Campaign:
    """Create a campaign, or go on with it.

    :param binding: what it is bound to for ever: API host, connection, what "once" means.
    :param announcement: what to say; None goes on with what it says by now.
    :param each_run: whether newcomers join.
    :param settings: its rules, for those who look at it from outside.
    :raises CampaignRefused: it began elsewhere, or has never had this text.
    """
    opened = ledger.open_campaign(
        campaign_id,
        binding=binding,
        each_run=each_run,
        text=None if announcement is None else text_of(announcement),
        settings=settings or {},
    )
    if isinstance(opened, Refusal):
        raise CampaignRefused(campaign_id, opened)
    return opened


def enrol(
    ledger: Ledger,
    campaign_id: str,
    rows: Iterable[Row | BadRow],
    enroller: Enroller,
    *,
    max_bad_rows: int = 0,
    tell: Callable[[BadRow], None] | None = None,
) -> Enrolled:
    """Take an audience into a campaign, or nobody.

    Each text is rendered once, so that row 7,999 can't fail after eighty hours. A snapshot that is complete is
    not read again.

    :param rows: from :func:`~airflow_provider_sib.campaign.audience.read`.
    :param enroller: draws and renders.
    :param max_bad_rows: unusable rows that are left out.
    :param tell: is called with the first 20 of them, when the others are enrolled.
    :raises TooManyBadRows: when there are more.
    """
    bad = BadRows()

    def usable() -> Iterator[Enrolment]:
        yield from enrolments(rows, enroller, bad)
        bad.refuse_beyond(max_bad_rows)

    enrolled = ledger.enrol(campaign_id, usable(), bad_rows=lambda: bad.count)
    if tell is not None:
        for row in bad.named:
            tell(row)
    return enrolled


def enrolments(rows: Iterable[Row | BadRow], enroller: Enroller, bad: BadRows) -> Iterator[Enrolment]:
    """Make the enrolment of each row that can be used.

    :param rows: from :func:`~airflow_provider_sib.campaign.audience.read`.
    :param enroller: draws and renders.
    :param bad: gets the others.
    """
    for row in rows:
        if isinstance(row, BadRow):
            bad.add(row)
            continue
        try:
            enrolment = enroller.enrolment(row)
        except RecipientError as error:
            bad.add(BadRow(row.line, str(error)))
        else:
            yield enrolment
