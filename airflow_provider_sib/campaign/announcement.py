"""Says what each visitor is told, who is drawn for what, and when their clock allows it: values in, values out.

Texts are templates in double square brackets, rendered in a sandbox that knows ``visitor``, filters and
``[% if %]``: no calls, no loops, no Python attributes, so that a text costs a bounded time. Visitors' data are
values in it, never templates, and never in an error.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import accumulate
from typing import Any, Protocol, Self
from zoneinfo import ZoneInfo

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, UndefinedError, nodes
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.sandbox import SandboxedEnvironment

from airflow_provider_sib.campaign import WEEKDAYS, SendWindow, Variant
from airflow_provider_sib.campaign.ledger import Enrolment, Json, Recipient, flaw_of

HOLDOUT = "holdout"
"""The reason for which those are skipped who are held back to compare with."""

ONLY_VARIANT = ""
"""The name of the variant of an announcement that has no variants."""

DRAWS = 2**64
"""A draw for a variant or for the holdout is a whole number from 0 up to, not including, this one."""


class RecipientError(ValueError):
    """Something that keeps one recipient from being enrolled or written to, without any of their data."""


class Addressee(Protocol):
    """Whoever a text is rendered for: a recipient, or a delivery of the ledger."""

    @property
    def visitor_id(self) -> str | None: ...  # noqa: D102  # the ledger describes these four
    @property
    def variables(self) -> Mapping[str, Json] | None: ...  # noqa: D102
    @property
    def timezone(self) -> str | None: ...  # noqa: D102
    @property
    def locale(self) -> str | None: ...  # noqa: D102


class Announcement:
    """
    Hold the texts of a campaign, by variant and locale.

    :param text: one text, or texts by locale; either this or ``variants``.
    :param variants: by name: a text, texts by locale, or a :class:`~airflow_provider_sib.campaign.Variant`.
    :param default_locale: for visitors whose locale is unknown or has no text. ``fr-CA`` falls back on ``fr``,
        then on this.
    :raises TypeError: a text is no string.
    :raises ValueError: a text can't be a template, or something is missing.
    """

    __slots__ = ("_by_locale", "_choose", "_default", "digest", "weights")

    digest: str
    """Identity of the texts, weights and default locale: 64 hexadecimal digits."""
    weights: Mapping[str, float]
    """Each variant's share against the others, by name."""

    def __init__(
        self,
        text: str | Mapping[str, str] | None = None,
        variants: Mapping[str, str | Mapping[str, str] | Variant] | None = None,
        *,
        default_locale: str = "en",
    ) -> None:
        if (text is None) == (variants is None):
            raise ValueError("Give an announcement either text or variants.")
        if not isinstance(default_locale, str) or not _fallbacks(default_locale):
            raise ValueError("default_locale must be a locale such as 'en' or 'fr-CA'.")
        self._default = _fallbacks(default_locale)[0]
        self._by_locale: dict[str, dict[str, _Text]] = {}
        weights = {}
        for name, variant in _variants(text, variants):
            weights[name] = float(variant.weight)
            self._by_locale[name] = self._compiled(name, variant.text)
        self.weights = weights
        self.digest = hashlib.sha256(_canonical(self.as_dict()).encode()).hexdigest()
        # Bounded, since a locale is whatever an audience has in that column.
        self._choose = lru_cache(maxsize=1024)(self._chosen)

    def _compiled(self, name: str, text: str | Mapping[str, str]) -> dict[str, _Text]:
        whose = f"The text of variant {name!r}" if name else "The text"
        texts = {self._default: text} if isinstance(text, str) else text
        compiled: dict[str, _Text] = {}
        for locale, source in texts.items():
            tag = next(iter(_fallbacks(locale)), None)
            if tag is None or tag in compiled:
                problem = "is no locale" if tag is None else "is there twice"
                raise ValueError(f"{whose}: {locale!r} {problem}.")
            compiled[tag] = _Text(source, whose if isinstance(text, str) else f"{whose} for {locale!r}")
        if not any(tag in compiled for tag in _fallbacks(self._default)):
            raise ValueError(
                f"{whose} is given for {', '.join(map(repr, texts))}, but not for default_locale "
                f"{self._default!r}: add that one, or choose another default_locale."
            )
        return compiled

    def as_dict(self) -> dict[str, Any]:
        """Give the announcement as JSON, from which :meth:`from_dict` makes an equal one."""
        return {
            "default_locale": self._default,
            "variants": {
                name: {
                    "weight": self.weights[name],
                    "texts": {locale: text.source for locale, text in texts.items()},
                }
                for name, texts in self._by_locale.items()
            },
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """
        Make the announcement again whose ``as_dict()`` this is.

        :param plain: what ``as_dict()`` gave.
        :return: an equal announcement.
        """
        variants = {
            name: Variant(variant["texts"], variant["weight"]) for name, variant in plain["variants"].items()
        }
        if variants.keys() == {ONLY_VARIANT}:
            return cls(variants[ONLY_VARIANT].text, default_locale=plain["default_locale"])
        return cls(None, variants, default_locale=plain["default_locale"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Announcement) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Announcement({self.digest[:12]}: {len(self.weights)} variants)"

    def render(self, addressee: Addressee, variant: str = ONLY_VARIANT) -> str:
        """
        Render the text for one visitor, in their locale.

        :param addressee: a recipient or a delivery; ``visitor`` in the text has their variables, and
            ``visitor_id``, ``timezone`` and ``locale``.
        :param variant: the name of the variant they were drawn for.
        :return: the text to send.
        :raises RecipientError: a placeholder can't be filled, nothing is left to say, or there is no such variant.
        """
        text = self._choose(variant, addressee.locale)
        if text.is_plain:
            return text.source
        return text.render(
            {
                **(addressee.variables or {}),
                "visitor_id": addressee.visitor_id,
                "timezone": addressee.timezone,
                "locale": addressee.locale,
            }
        )

    def _chosen(self, variant: str, locale: str | None) -> _Text:
        texts = self._by_locale.get(variant)
        if texts is None:
            raise RecipientError(f"belongs to the variant {variant!r}, which the announcement no longer has")
        tags = (*_fallbacks(locale or ""), *_fallbacks(self._default))
        return next(texts[tag] for tag in tags if tag in texts)


class Enroller:
    """
    Turn recipients into enrolments: once key, place in the order, variant, holdout.

    All is drawn by a hash of campaign and once key: the same recipient draws the same in every run, and rank,
    variant and holdout are drawn independently of each other, so that a canary holds every variant.

    :param campaign_id: the campaign.
    :param announcement: each recipient's text is rendered once, so that it can't fail when its turn comes.
    :param once_per: what "once" means: ``visitor_id``, another column, or several columns together.
    :param holdout: share from 0 up to, not including, 1 that gets nothing, to compare with.
    :raises TypeError: ``once_per`` or ``holdout`` is of another type.
    :raises ValueError: ``once_per`` names nothing or a column twice; ``holdout`` is out of range.
    """

    __slots__ = ("_announcement", "_bounds", "_held", "_keyed", "_names", "once_per")

    once_per: tuple[str, ...]
    """The columns that make the once key."""

    def __init__(
        self,
        campaign_id: str,
        announcement: Announcement,
        *,
        once_per: str | Iterable[str] = "visitor_id",
        holdout: float = 0.0,
    ) -> None:
        if isinstance(holdout, bool) or not isinstance(holdout, (int, float)):
            raise TypeError(
                f"holdout is of type {type(holdout).__name__}, but must be a number from 0 up to 1."
            )
        if not 0 <= holdout < 1:
            raise ValueError(f"holdout is {holdout}, but must be from 0 up to, not including, 1.")
        self.once_per = _once_columns(once_per)
        self._announcement = announcement
        self._held = int(holdout * DRAWS)
        # By name, so that the order in which an author lists the variants draws nobody anew.
        self._names = sorted(announcement.weights)
        sums = list(accumulate(announcement.weights[name] for name in self._names))
        self._bounds = [int(total / sums[-1] * DRAWS) for total in sums[:-1]]
        key = hashlib.blake2b(campaign_id.encode(), digest_size=32).digest()
        self._keyed = hashlib.blake2b(key=key, digest_size=24, person=b"sib-campaign")

    def draw(self, once_key: str) -> tuple[int, int, int]:
        """
        Draw a once key's lots.

        :param once_key: from :meth:`once_key`.
        :return: its rank, from 0 up to 2**63; its draws for the variant and for the holdout, up to
            :data:`DRAWS`.
        """
        lots = self._keyed.copy()
        lots.update(once_key.encode())
        rank, variant, holdout = struct.unpack(">QQQ", lots.digest())
        return rank >> 1, variant, holdout

    def once_key(self, recipient: Recipient) -> str:
        """
        Give the key under which a recipient is enrolled once.

        :param recipient: one row of the audience.
        :return: the one column's value, or a JSON array of all of them.
        :raises RecipientError: a column is missing, blank, or no string or whole number.
        """
        if self.once_per == ("visitor_id",):
            return recipient.visitor_id
        values = [_key_part(recipient, column) for column in self.once_per]
        key = values[0] if len(values) == 1 else json.dumps(values, ensure_ascii=False, separators=(",", ":"))
        if flaw := flaw_of(key):
            raise RecipientError(f"has a once key ({', '.join(self.once_per)}) that {flaw}")
        return key

    def enrolment(self, recipient: Recipient) -> Enrolment:
        """
        Make a recipient's enrolment, and try its text.

        :param recipient: one row of the audience.
        :return: what the ledger takes.
        :raises RecipientError: the once key or the text can't be made; to follow on "line 7".
        """
        key = self.once_key(recipient)
        rank, lot, held = self.draw(key)
        variant = self._names[bisect_right(self._bounds, lot)]
        skip = HOLDOUT if held < self._held else None
        if skip is None:
            self._announcement.render(recipient, variant)
        return Enrolment(
            key,
            rank,
            recipient.visitor_id,
            variant,
            skip,
            recipient.timezone,
            recipient.locale,
            recipient.variables,
        )


@dataclass(frozen=True, slots=True)
class WindowState:
    """
    Whether a window is open in one time zone, and until when that holds.

    :param is_open: at the moment asked about.
    :param changes_at: when it closes, or opens next, in UTC; ``None``: never.
    """

    is_open: bool
    changes_at: datetime | None


def window_state(window: SendWindow, timezone: str | None, now: datetime) -> WindowState | None:
    """
    Tell whether a visitor's own clock shows a time inside the window.

    The clock on the wall decides, also when it is put forward or back: a window from 02:00 to 03:00 doesn't open
    on the day that hour is left out, and opens for both on the day it comes twice.

    :param window: the window.
    :param timezone: the visitor's IANA zone; unknown names count as no zone.
    :param now: an aware moment.
    :return: the state; ``None``: neither the visitor's zone is known nor has the window a default one.
    :raises ValueError: ``now`` is naive.
    """
    if now.tzinfo is None:
        raise ValueError("now has no time zone, so it is no moment.")
    zone = _zone(timezone) or _zone(window.default_timezone)
    if zone is None:
        return None
    moment = now.astimezone(UTC)
    is_open = _shows_inside(window, moment.astimezone(zone))
    # Two edges a day for a week, and as many again for clocks that change.
    for _ in range(32):
        moment = _next_edge(window, zone, moment)
        if _shows_inside(window, moment.astimezone(zone)) is not is_open:
            return WindowState(is_open, moment)
    return WindowState(is_open, None)


def _shows_inside(window: SendWindow, local: datetime) -> bool:
    clock, today = local.time(), local.weekday()
    if window.start < window.end:
        return window.start <= clock < window.end and WEEKDAYS[today] in window.days
    if clock >= window.start:
        return WEEKDAYS[today] in window.days
    return clock < window.end and WEEKDAYS[today - 1] in window.days


def _next_edge(window: SendWindow, zone: ZoneInfo, moment: datetime) -> datetime:
    """Give the next moment at which the clock shows the window's start or end, or at which the clock is changed."""
    local = moment.astimezone(zone)
    shown = local.replace(tzinfo=None, fold=0)
    edges = (datetime.combine(shown.date(), edge) for edge in (window.start, window.end))
    step = min(edge - shown if edge > shown else edge - shown + timedelta(days=1) for edge in edges)
    offset = local.utcoffset()
    if (moment + step).astimezone(zone).utcoffset() == offset:
        return moment + step
    # zoneinfo doesn't tell when a clock is changed; it is at a whole second.
    before, after = int(moment.timestamp()), math.ceil((moment + step).timestamp())
    while after - before > 1:
        middle = (before + after) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return datetime.fromtimestamp(after, UTC)


@lru_cache(maxsize=1024)
def _zone(name: str | None) -> ZoneInfo | None:
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    # An unknown name is a KeyError; one that is a directory, or too long, an OSError.
    except (KeyError, ValueError, OSError):
        return None


def _variants(
    text: str | Mapping[str, str] | None, variants: Mapping[str, str | Mapping[str, str] | Variant] | None
) -> Iterator[tuple[str, Variant]]:
    if variants is None:
        if not isinstance(text, (str, Mapping)):
            raise TypeError(
                f"text is of type {type(text).__name__}, but must be a string or a mapping of locale to string."
            )
        yield ONLY_VARIANT, _variant("text", text)
        return
    if not isinstance(variants, Mapping) or not variants:
        raise TypeError("variants must be a mapping of name to text, with at least one.")
    for name, given in variants.items():
        if not isinstance(name, str) or flaw_of(name):
            raise ValueError(
                f"variants: the name {name!r} must be a string of 1 to 255 characters, no blanks around."
            )
        yield name, given if isinstance(given, Variant) else _variant(f"variants[{name!r}]", given)


def _variant(field: str, text: str | Mapping[str, str]) -> Variant:
    try:
        return Variant(text)
    except TypeError as error:
        raise TypeError(f"{field}: {error}") from error


def _canonical(value: Json) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)


_LOCALE = re.compile(r"[A-Za-z]{1,8}(?:[-_][A-Za-z0-9]{1,8})*")


def _fallbacks(locale: str) -> list[str]:
    """Give a locale's tags from its own to its language: ``fr_CA.UTF-8`` gives ``fr-ca`` and ``fr``."""
    found = _LOCALE.match(locale)
    if found is None:
        return []
    parts = found[0].replace("_", "-").lower().split("-")
    return ["-".join(parts[:length]) for length in range(len(parts), 0, -1)]


def _once_columns(once_per: str | Iterable[str]) -> tuple[str, ...]:
    columns = (once_per,) if isinstance(once_per, str) else tuple(once_per)
    if not all(isinstance(column, str) for column in columns):
        raise TypeError("once_per must be the name of a column, or several names.")
    if not columns or not all(columns):
        raise ValueError("once_per is empty: leave it out for once per visitor, or name a column.")
    if len(set(columns)) < len(columns):
        raise ValueError("once_per names a column twice.")
    return columns


def _key_part(recipient: Recipient, column: str) -> str:
    match column:
        case "visitor_id":
            value: Json = recipient.visitor_id
        case "timezone" | "locale":
            value = getattr(recipient, column)
        case _:
            value = recipient.variables.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RecipientError(f"has nothing in column {column!r}, of which once_per makes the once key")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RecipientError(
            f"has a {type(value).__name__} in column {column!r}, but once_per needs a string or a whole number"
        )
    return str(value)


# What a text may do to a value: each is cheap and gives little more than it was given.
_FILTERS = (
    "abs", "capitalize", "d", "default", "first", "join", "last", "length", "lower", "round", "string", "title",
    "trim", "truncate", "upper", "urlencode",
)  # fmt: skip
_TESTS = (
    "!=", "<", "<=", "==", ">", ">=", "defined", "divisibleby", "eq", "even", "false", "ge", "gt", "in", "le",
    "lt", "ne", "none", "number", "odd", "string", "true", "undefined",
)  # fmt: skip
_NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.Name, nodes.Getattr, nodes.Getitem,
    nodes.Const, nodes.List, nodes.Tuple, nodes.Filter, nodes.Test, nodes.Compare, nodes.Operand, nodes.CondExpr,
    nodes.Concat, nodes.Keyword, nodes.And, nodes.Or, nodes.Not, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div,
    nodes.FloorDiv, nodes.Mod, nodes.Neg, nodes.Pos,
)  # fmt: skip


class _Empty(Undefined):
    """A column with nothing in it: ``default`` applies, ``if`` takes it for false, printing it is an error."""

    __slots__ = ()

    def __str__(self) -> str:
        return self._fail_with_undefined_error()

    def __iter__(self) -> Iterator[Any]:
        return self._fail_with_undefined_error()

    def __len__(self) -> int:
        return self._fail_with_undefined_error()


class _Numbered(Extension):
    """Give each placeholder its number for a line number, so that a failure can be traced to it."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        number = 0
        for token in stream:
            number += token.type in {"variable_begin", "block_begin"}
            yield Token(number, token.type, token.value)


class _Sandbox(SandboxedEnvironment):
    """Know data only: what stands after a dot is a key of a mapping, whatever Python would find by that name."""

    # Else '%99999999s' % 1 or 'a' * 10**10 would fill the memory.
    intercepted_binops = frozenset({"*", "%", "+"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Undefined):
            return obj
        if isinstance(obj, Mapping):
            value = obj.get(argument, self)
            if value is self:
                return StrictUndefined(f"there is no {argument!r} in this row")
            if value is None or (isinstance(value, str) and not value.strip()):
                return _Empty(f"{argument!r} is empty; add | default('…') for such visitors")
            return value
        if isinstance(obj, list) and isinstance(argument, int) and -len(obj) <= argument < len(obj):
            return obj[argument]
        return StrictUndefined(f"there is no {argument!r} in this value")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        for value in (left, right):
            if isinstance(value, Undefined):
                str(value)
        kinds = (int, float, str) if operator == "+" else (int, float)
        if not (isinstance(left, kinds) and isinstance(right, kinds)):
            raise TypeError
        return super().call_binop(context, operator, left, right)


def _printable(value: Any) -> Any:
    if isinstance(value, (list, dict)):
        raise TypeError
    return value


def _integer(value: Any) -> int:
    """Make a whole number, or fail: jinja's own filter makes 0 of what isn't one."""
    try:
        return int(value)
    except ValueError:
        return int(float(value))


def _environment() -> _Sandbox:
    environment = _Sandbox(
        variable_start_string="[[",
        variable_end_string="]]",
        block_start_string="[%",
        block_end_string="%]",
        # No comments, since "[#123]" is something people write; and no text has a NUL.
        comment_start_string="\0#",
        comment_end_string="#\0",
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=_printable,
        autoescape=False,  # a chat shows text as text
        extensions=[_Numbered],
    )
    environment.filters = {name: environment.filters[name] for name in _FILTERS}
    environment.filters |= {"int": _integer, "float": float}
    environment.tests = {name: environment.tests[name] for name in _TESTS}
    environment.globals = {}
    return environment


_ENVIRONMENT = _environment()


class _Text:
    """
    Hold one text, compiled once.

    :param source: the text.
    :param name: how to call it in errors.
    :raises ValueError: its author must mend it.
    """

    __slots__ = ("_placeholders", "_template", "is_plain", "source")

    def __init__(self, source: str, name: str) -> None:
        self.source = source
        _refuse_slips(source, name)
        self._placeholders = _placeholders(source, name)
        self.is_plain = not self._placeholders and "[%" not in source
        if self.is_plain:
            return
        try:
            tree = _ENVIRONMENT.parse(source)
            for node in tree.find_all(nodes.Node):
                if problem := _problem(node):
                    raise ValueError(f"{name}: {self._placeholder(node.lineno)}: {problem}.")
            self._template = _ENVIRONMENT.from_string(tree)
        except TemplateSyntaxError as error:
            raise ValueError(f"{name}: {self._placeholder(error.lineno)}: {error.message}") from error
        except RecursionError as error:
            raise ValueError(f"{name} has a placeholder that is nested too deeply.") from error

    def render(self, visitor: Mapping[str, Json]) -> str:
        context = self._template.new_context({"visitor": visitor})
        try:
            text = "".join(self._template.root_render_func(context))
        # Whatever a filter raises on odd data is this row's failure, and its message may quote the data.
        except Exception as error:  # noqa: BLE001
            reason = error.message if isinstance(error, UndefinedError) else None
            raise RecipientError(
                f"can't fill {self._placeholder(self._failed_at(error))}: "
                + (reason or f"the value is of the wrong kind ({type(error).__name__})")
            ) from None
        if not text.strip():
            raise RecipientError("gives a text that is blank")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                # JSON can escape what no UTF-8 can carry; the request could not be made.
                raise RecipientError(
                    "gives a text with half of a surrogate pair, which is no character"
                ) from None
        return text

    def _failed_at(self, error: Exception) -> int:
        number, trace = 0, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_globals.get("__jinja_template__") is self._template:
                number = self._template.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        return number

    def _placeholder(self, number: int) -> str:
        if 0 < number <= len(self._placeholders):
            return f"the placeholder {_short(self._placeholders[number - 1])}"
        return "a placeholder"


def _refuse_slips(source: str, name: str) -> None:
    if not source.strip():
        raise ValueError(f"{name} is blank.")
    if flaw := _unsendable(source):
        raise ValueError(f"{name} contains {flaw}.")
    if found := re.search(r"\{\{.*?\}\}|\{%.*?%\}", source, re.DOTALL):
        raise ValueError(
            f"{name} still contains {_short(found[0])}: Airflow's own placeholders are filled before; what differs "
            "per visitor is in double square brackets, such as [[ visitor.first_name ]]."
        )


def _unsendable(source: str) -> str | None:
    if "\0" in source:
        return "a NUL character"
    try:
        source.encode()
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return None


def _placeholders(source: str, name: str) -> list[str]:
    """Give the placeholders of a text as they were written, in their order."""
    found: list[str] = []
    outside = ""
    is_inside = False
    try:
        for _, kind, text in _ENVIRONMENT.lex(source):
            if kind in {"variable_begin", "block_begin"}:
                found.append("")
                is_inside = True
            if is_inside:
                found[-1] += text
            elif kind == "data":
                outside += text
            if kind in {"variable_end", "block_end"}:
                is_inside = False
    except TemplateSyntaxError as error:
        where = f"the placeholder that begins {_short(found[-1])}" if found else "a placeholder"
        raise ValueError(f"{name}: {where}: {error.message}.") from error
    if is_inside:
        end = "]]" if found[-1].startswith("[[") else "%]"
        raise ValueError(
            f"{name}: the placeholder that begins {_short(found[-1])} has no {end}. "
            "To print two brackets write [[ '[[' ]]."
        )
    if slip := re.search(r"(?<!\[)\[\s*visitor\s*[.\[|][^\]\n]*\]", outside):
        raise ValueError(
            f"{name} contains {_short(slip[0])}, but a placeholder has two brackets on either side: "
            "[[ visitor.first_name ]]."
        )
    return found


def _problem(node: nodes.Node) -> str | None:
    match node:
        case nodes.Name(name=name) if name != "visitor":
            return f"there is no name {name!r}; a column is visitor.{name}, a text is in quotes"
        case nodes.Filter(name=name) if name not in _ENVIRONMENT.filters:
            return f"there is no filter {name!r}, but {', '.join(sorted(_ENVIRONMENT.filters))}"
        case nodes.Test(name=name) if name not in _ENVIRONMENT.tests:
            return f"there is no test {name!r}, but {', '.join(test for test in _TESTS if test.isalpha())}"
        case nodes.Getitem(arg=argument) if not isinstance(argument, (nodes.Const, nodes.Neg)):
            return "in single brackets there may be a column's name in quotes, or a number"
        case nodes.Call():
            return "nothing can be called; there are filters, such as | upper"
        case _ if not isinstance(node, _NODES):
            return f"a text can't have {type(node).__name__}; it has values, filters and [% if %]"
    return None


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
