"""What an author writes in a DAG: audiences, a send window, variants, a cap. Values, standard library only.

Nothing here reads a file, asks a database or knows a visitor: the values say *what*; a task finds out *who*
when it runs. Each has a stable ``repr`` (Airflow makes it part of a DAG's version), equality, and a form as
JSON (``as_dict()`` and :func:`value_from_dict`). Airflow doesn't render strings inside an object; the
campaign operators do it with ``rendered``.
"""

from __future__ import annotations

import codecs
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from datetime import time, timedelta
from typing import Any, ClassVar, Self
from zoneinfo import ZoneInfo

__all__ = [
    "WEEKDAYS",
    "Audience",
    "CampaignAudience",
    "CsvAudience",
    "FrequencyCap",
    "JsonLinesAudience",
    "RowsAudience",
    "SendWindow",
    "SqlAudience",
    "Variant",
    "audience_of",
    "value_from_dict",
]

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
"""The days of a week by the names :class:`SendWindow` takes, in the order of ``datetime.weekday()``."""

SETTLED = ("sent", "failed", "in_doubt", "skipped", "withdrawn")
"""The outcomes a delivery can have, by which :class:`CampaignAudience` chooses."""

_OUTPUT_INSIDE = "is the output of a task, which Airflow doesn't resolve inside an object"


class _Value:
    """Give a dataclass its form as JSON and its rendered copy."""

    __slots__ = ()
    kind: ClassVar[str]
    _templates: ClassVar[tuple[str, ...]] = ()

    def as_dict(self) -> dict[str, Any]:
        """
        Give this value as plain JSON, from which :func:`value_from_dict` makes an equal one.

        :return: the fields by name, and ``kind``; times as ``HH:MM:SS``, durations as seconds.
        """
        plain: dict[str, Any] = {"kind": self.kind}
        for name in _field_names(self):
            plain[name] = _plain(getattr(self, name))
        return plain

    def rendered(self, render: Callable[[str], str]) -> Self:
        """
        Give a copy in which the strings that may be Airflow templates went through ``render``.

        :param render: Airflow's renderer for one string, already holding the context.
        :return: a new value of the same class; this one stays as it was written.
        """
        changes = {name: _render(getattr(self, name), render) for name in self._templates}
        return replace(self, **changes) if changes else self  # type: ignore[type-var]  # subclasses are dataclasses


@dataclass(frozen=True, slots=True)
class CsvAudience(_Value):
    """
    Read recipients from a CSV file whose first line names the columns; the others are variables of the text.

    :param path: a path, or any URL that Airflow's ``ObjectStoragePath`` opens, such as ``s3://…``. Templated.
    :param conn_id: the connection for that URL. Templated.
    :param visitor_id: the column with the visitor's id.
    :param timezone: the column with an IANA zone name; it needn't exist.
    :param locale: the column with a locale such as ``fr-CA``; it needn't exist.
    :param encoding: of the file; the default is UTF-8 with or without a byte order mark.
    :param delimiter: one character.
    """

    path: str
    _: KW_ONLY
    conn_id: str | None = None
    visitor_id: str = "visitor_id"
    timezone: str = "timezone"
    locale: str = "locale"
    encoding: str = "utf-8-sig"
    delimiter: str = ","
    kind: ClassVar[str] = "csv"
    _templates: ClassVar[tuple[str, ...]] = ("path", "conn_id")

    def __post_init__(self) -> None:
        _check_file(self)
        if not isinstance(self.delimiter, str) or len(self.delimiter) != 1 or self.delimiter in '\r\n"\0':
            raise ValueError(
                f"CsvAudience.delimiter is {self.delimiter!r}, but must be one character, "
                "such as ',' or ';' or '\\t'."
            )


@dataclass(frozen=True, slots=True)
class JsonLinesAudience(_Value):
    """
    Read recipients from a file with one JSON object a line; all other keys are variables of the text.

    :param path: path or any URL that Airflow's ``ObjectStoragePath`` opens. Templated.
    :param conn_id: the connection for that URL. Templated.
    :param visitor_id: the key with the visitor's id.
    :param timezone: the key with an IANA zone name; it needn't exist.
    :param locale: the key with a locale such as ``fr-CA``; it needn't exist.
    :param encoding: of the file; the default is UTF-8 with or without a byte order mark.
    """

    path: str
    _: KW_ONLY
    conn_id: str | None = None
    visitor_id: str = "visitor_id"
    timezone: str = "timezone"
    locale: str = "locale"
    encoding: str = "utf-8-sig"
    kind: ClassVar[str] = "json_lines"
    _templates: ClassVar[tuple[str, ...]] = ("path", "conn_id")

    def __post_init__(self) -> None:
        _check_file(self)


@dataclass(frozen=True, slots=True)
class SqlAudience(_Value):
    """
    Read recipients from a query on any connection whose hook speaks DB-API; other columns are variables.

    :param sql: one query. Templated.
    :param conn_id: the connection to ask. Templated.
    :param parameters: bound by the driver, in its own style: a mapping or a list. Its strings are templated.
    :param hook_params: given to the connection's hook when it is made.
    :param visitor_id: the column with the visitor's id.
    :param timezone: the column with an IANA zone name; it needn't exist.
    :param locale: the column with a locale such as ``fr-CA``; it needn't exist.
    """

    sql: str
    conn_id: str
    _: KW_ONLY
    parameters: Mapping[str, Any] | Sequence[Any] | None = None
    hook_params: Mapping[str, Any] | None = None
    visitor_id: str = "visitor_id"
    timezone: str = "timezone"
    locale: str = "locale"
    kind: ClassVar[str] = "sql"
    _templates: ClassVar[tuple[str, ...]] = ("sql", "conn_id", "parameters")

    def __post_init__(self) -> None:
        _check_text(self, "sql", "conn_id")
        _check_columns(self)
        match self.parameters:
            case None:
                pass
            case Mapping():
                object.__setattr__(self, "parameters", dict(self.parameters))
            case list() | tuple():
                object.__setattr__(self, "parameters", list(self.parameters))
            case _:
                raise _type_error(
                    self, "parameters", "a mapping or a list, as the database's driver wants them"
                )
        match self.hook_params:
            case None:
                pass
            case Mapping():
                object.__setattr__(self, "hook_params", dict(self.hook_params))
            case _:
                raise _type_error(self, "hook_params", "a mapping of the hook's arguments")


@dataclass(frozen=True, slots=True, repr=False)
class RowsAudience(_Value):
    """
    Take recipients from rows at hand: literal ones, or those another task returned.

    Printed it only says how many rows and which columns there are, so that visitors' data reach neither
    Airflow's database nor its logs. The rows are data and are never rendered as templates.

    :param rows: mappings, one per recipient; the output of a task is given to the operator as it is:
        ``audience=task.output``.
    :param visitor_id: the key with the visitor's id.
    :param timezone: the key with an IANA zone name; it needn't exist.
    :param locale: the key with a locale such as ``fr-CA``; it needn't exist.
    """

    rows: Sequence[Mapping[str, Any]]
    _: KW_ONLY
    visitor_id: str = "visitor_id"
    timezone: str = "timezone"
    locale: str = "locale"
    kind: ClassVar[str] = "rows"

    def __post_init__(self) -> None:
        if _is_xcom(self.rows):
            raise TypeError(
                f"RowsAudience.rows {_OUTPUT_INSIDE}. Give it to the operator itself: audience=task.output."
            )
        if isinstance(self.rows, (str, bytes, Mapping)) or not isinstance(self.rows, Sequence):
            raise _type_error(self, "rows", "a list of mappings, one per recipient")
        rows = tuple(self.rows)
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise TypeError(
                    f"RowsAudience.rows[{number}] is {_kind(row)}, but must be a mapping of column to value."
                )
        object.__setattr__(self, "rows", rows)
        _check_columns(self)

    def __repr__(self) -> str:
        columns = dict.fromkeys(str(column) for row in self.rows for column in row)
        return (
            f"RowsAudience({len(self.rows)} rows: {', '.join(columns)})"
            if columns
            else "RowsAudience(0 rows)"
        )

    def as_dict(self) -> dict[str, Any]:
        """
        Give this value as plain JSON **with the visitors' data in it**: not for logs, XCom or a trigger.

        :return: the fields by name, and ``kind``.
        """
        return {
            "kind": self.kind,
            "rows": [dict(row) for row in self.rows],
            "visitor_id": self.visitor_id,
            "timezone": self.timezone,
            "locale": self.locale,
        }


@dataclass(frozen=True, slots=True)
class CampaignAudience(_Value):
    """
    Take the recipients of an earlier campaign, with their variables: the next step of a sequence.

    :param campaign_id: the earlier campaign, in the same ledger. Templated.
    :param status: what became of it: ``sent``, ``failed``, ``in_doubt``, ``skipped`` or ``withdrawn``.
    :param after: only those with that outcome for at least so long.
    """

    campaign_id: str
    _: KW_ONLY
    status: str = "sent"
    after: timedelta = timedelta(0)
    kind: ClassVar[str] = "campaign"
    _templates: ClassVar[tuple[str, ...]] = ("campaign_id",)

    def __post_init__(self) -> None:
        _check_text(self, "campaign_id")
        if self.status not in SETTLED:
            raise ValueError(
                f"CampaignAudience.status is {self.status!r}, but must be one of {', '.join(SETTLED)}."
            )
        if not isinstance(self.after, timedelta):
            raise _type_error(self, "after", "a timedelta, such as timedelta(days=3)")
        if self.after < timedelta(0):
            raise ValueError("CampaignAudience.after is negative, but must be a timedelta of zero or more.")


@dataclass(frozen=True, slots=True)
class SendWindow(_Value):
    """
    Send only while the visitor's own clock shows a time in this window.

    A window whose end is not after its start goes over midnight and belongs to the day on which it opens;
    ``SendWindow("00:00", "24:00", ["mon"])`` is a whole Monday.

    :param start: the first time that is inside, as ``"09:00"`` or a ``datetime.time`` without zone.
    :param end: the first time that is outside again.
    :param days: the days on which the window opens, by the names in :data:`WEEKDAYS`.
    :param default_timezone: the IANA zone of visitors whose own is unknown; ``None`` skips them. There is no
        default, since guessing it writes to somebody at night.
    """

    start: time
    end: time
    days: tuple[str, ...] = WEEKDAYS
    _: KW_ONLY
    default_timezone: str | None
    kind: ClassVar[str] = "send_window"

    def __init__(
        self,
        start: time | str,
        end: time | str,
        days: Iterable[str] = WEEKDAYS,
        *,
        default_timezone: str | None,
    ) -> None:
        object.__setattr__(self, "start", _clock_time("start", start))
        object.__setattr__(self, "end", _clock_time("end", time(0) if end == "24:00" else end))
        object.__setattr__(self, "days", _weekdays(days))
        object.__setattr__(self, "default_timezone", default_timezone)
        if self.start == self.end != time(0):
            raise ValueError(
                "SendWindow.start and end are the same time, so it would never be open. For whole days write "
                'SendWindow("00:00", "24:00", …); for no window at all leave send_window out.'
            )
        if default_timezone is None:
            return
        if not isinstance(default_timezone, str):
            raise _type_error(
                self, "default_timezone", 'the name of an IANA zone such as "Europe/Berlin", or None'
            )
        try:
            ZoneInfo(default_timezone)
        # An unknown name is a KeyError; one that is a directory, or too long, an OSError.
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(
                f"SendWindow.default_timezone {default_timezone!r} is not an IANA zone this machine knows. "
                'Write one such as "Europe/Berlin", or None to skip visitors whose zone is unknown.'
            ) from error


@dataclass(frozen=True, slots=True)
class Variant(_Value):
    """
    Give one wording of an announcement its share of the audience.

    :param text: the text, or texts by locale. Templated by Airflow, then per visitor.
    :param weight: its share against the weights of the other variants.
    """

    text: str | Mapping[str, str]
    weight: float = 1.0
    kind: ClassVar[str] = "variant"
    _templates: ClassVar[tuple[str, ...]] = ("text",)

    def __post_init__(self) -> None:
        if isinstance(self.text, Mapping):
            object.__setattr__(self, "text", dict(self.text))
            if not self.text or not all(isinstance(part, str) for pair in self.text.items() for part in pair):
                raise TypeError(
                    "Variant.text is a mapping, so it must give a string for each locale, at least for one."
                )
        elif not isinstance(self.text, str):
            raise _type_error(self, "text", "a string, or a mapping of locale to string")
        if isinstance(self.weight, bool) or not isinstance(self.weight, (int, float)):
            raise _type_error(self, "weight", "a number above zero")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"Variant.weight is {self.weight}, but must be a finite number above zero.")


@dataclass(frozen=True, slots=True)
class FrequencyCap(_Value):
    """
    Write to a visitor at most so often, counted over all campaigns of the same group in one ledger.

    :param at_most: messages, at least one.
    :param within: the time looked back over.
    :param group: campaigns are counted together when their caps name the same group.
    """

    at_most: int
    within: timedelta
    group: str = "default"
    kind: ClassVar[str] = "frequency_cap"

    def __post_init__(self) -> None:
        if isinstance(self.at_most, bool) or not isinstance(self.at_most, int):
            raise _type_error(self, "at_most", "a whole number, at least 1")
        if self.at_most < 1:
            raise ValueError(f"FrequencyCap.at_most is {self.at_most}, but must be at least 1.")
        if not isinstance(self.within, timedelta):
            raise _type_error(self, "within", "a timedelta, such as timedelta(days=7)")
        if self.within <= timedelta(0):
            raise ValueError("FrequencyCap.within must be a timedelta above zero.")
        _check_text(self, "group")


Audience = CsvAudience | JsonLinesAudience | SqlAudience | RowsAudience | CampaignAudience
"""Any of the five audiences."""

_KINDS: dict[str, type[_Value]] = {
    cls.kind: cls for cls in (*Audience.__args__, SendWindow, Variant, FrequencyCap)
}


def audience_of(value: object, *, name: str = "audience") -> Audience:
    """
    Make an audience of what the operators accept for one.

    A path is told by its ending, so give it after Airflow has rendered it.

    :param value: an audience, a path or URL ending in ``.csv``, ``.jsonl`` or ``.ndjson``, or a list of rows.
    :param name: the operator's argument, for the error.
    :return: the audience.
    :raises TypeError: when it is nothing of the kind.
    :raises ValueError: when a string doesn't end like a file this reads.
    """
    match value:
        case CsvAudience() | JsonLinesAudience() | SqlAudience() | RowsAudience() | CampaignAudience():
            return value
        case str():
            return _file_audience(value, name)
        case os.PathLike():
            return _file_audience(str(value), name)
        case Sequence() if not isinstance(value, (bytes, bytearray, memoryview)) and not _is_xcom(value):
            return RowsAudience(value)
        case _ if any(cls.__name__ == "ObjectStoragePath" for cls in type(value).__mro__):
            return _file_audience(str(value), name)
        case _:
            raise TypeError(
                f"{name} is {_kind(value)}, but must be an audience such as CsvAudience(path) "
                "or SqlAudience(sql, conn_id), a path or URL ending in .csv, .jsonl or .ndjson, or rows."
            )


def value_from_dict(plain: Mapping[str, Any]) -> Audience | SendWindow | Variant | FrequencyCap:
    """
    Make the value again whose ``as_dict()`` this is.

    :param plain: what ``as_dict()`` gave.
    :return: an equal value.
    :raises ValueError: when the kind or a field is unknown or missing.
    """
    arguments = dict(plain)
    kind = arguments.pop("kind", None)
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(f"'kind' is {kind!r}, but must be one of {', '.join(_KINDS)}.")
    for name in ("after", "within"):
        if isinstance(arguments.get(name), (int, float)):
            arguments[name] = timedelta(seconds=arguments[name])
    wanted = set(_field_names(cls))
    if unknown := arguments.keys() - wanted:
        raise ValueError(
            f"{cls.__name__} has no field {', '.join(sorted(map(repr, unknown)))}; it has {sorted(wanted)}."
        )
    try:
        return cls(**arguments)  # type: ignore[return-value]  # _KINDS holds these classes and no other
    except TypeError as error:
        raise ValueError(f"{cls.__name__} can't be made of this: {error}") from error


def _field_names(value: _Value | type[_Value]) -> list[str]:
    return [field.name for field in fields(value)]  # type: ignore[arg-type]  # subclasses are dataclasses


def _plain(value: Any) -> Any:
    match value:
        case timedelta():
            return value.total_seconds()
        case time():
            return value.isoformat()
        case Mapping():
            return {key: _plain(item) for key, item in value.items()}
        case tuple() | list():
            return [_plain(item) for item in value]
        case _:
            return value


def _render(value: Any, render: Callable[[str], str]) -> Any:
    match value:
        case str():
            return render(value)
        case Mapping():
            return {key: _render(item, render) for key, item in value.items()}
        case tuple() | list():
            return [_render(item, render) for item in value]
        case _:
            return value


def _file_audience(path: str, argument: str) -> CsvAudience | JsonLinesAudience:
    name = path.partition("?")[0].partition("#")[0] if "://" in path else path
    match name.rpartition(".")[2].lower() if "." in name else "":
        case "csv":
            return CsvAudience(path)
        case "jsonl" | "ndjson":
            return JsonLinesAudience(path)
        case _:
            raise ValueError(
                f"{argument} is a string that doesn't end in .csv, .jsonl or .ndjson. For another file "
                "write CsvAudience(path) or JsonLinesAudience(path); for a query SqlAudience(sql, conn_id)."
            )


def _check_file(value: CsvAudience | JsonLinesAudience) -> None:
    _check_text(value, "path", "encoding")
    _check_columns(value)
    if value.conn_id is not None:
        _check_text(value, "conn_id")
    try:
        codecs.lookup(value.encoding)
    except LookupError as error:
        raise ValueError(
            f"{type(value).__name__}.encoding is {value.encoding!r}, which Python doesn't know; "
            "leave it out for UTF-8, or write one such as 'cp1252' or 'utf-16'."
        ) from error


def _check_columns(value: CsvAudience | JsonLinesAudience | SqlAudience | RowsAudience) -> None:
    _check_text(value, "visitor_id", "timezone", "locale")


def _check_text(value: _Value, *names: str) -> None:
    for name in names:
        text = getattr(value, name)
        if not isinstance(text, str):
            raise _type_error(value, name, "a string")
        if not text.strip():
            raise ValueError(
                f"{type(value).__name__}.{name} is blank, but must be a string with something in it."
            )


def _clock_time(name: str, value: object) -> time:
    if isinstance(value, str):
        try:
            value = time.fromisoformat(value)
        except ValueError as error:
            raise ValueError(
                f"SendWindow.{name} is {value!r}, but must be a time such as '09:00'."
            ) from error
    if not isinstance(value, time):
        raise TypeError(
            f"SendWindow.{name} is {_kind(value)}, but must be a time such as '09:00' or time(9)."
        )
    if value.tzinfo is not None:
        raise ValueError(
            f"SendWindow.{name} has a time zone, but the zone is each visitor's own: leave it out."
        )
    return value


def _weekdays(days: object) -> tuple[str, ...]:
    if isinstance(days, str) or not isinstance(days, Iterable):
        raise TypeError(f"SendWindow.days is {_kind(days)}, but must be a list such as ['mon', 'tue'].")
    chosen = list(days)
    for day in chosen:
        if day not in WEEKDAYS:
            raise ValueError(f"SendWindow.days has {day!r}, but may only have {', '.join(WEEKDAYS)}.")
    if not chosen:
        raise ValueError("SendWindow.days is empty, so it would never be open; leave days out for every day.")
    return tuple(day for day in WEEKDAYS if day in chosen)


def _is_xcom(value: object) -> bool:
    # By name, since this module imports nothing of Airflow.
    return any(cls.__name__ in {"XComArg", "ResolveMixin"} for cls in type(value).__mro__)


def _kind(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _type_error(owner: _Value, name: str, wanted: str) -> TypeError:
    value, field = getattr(owner, name), f"{type(owner).__name__}.{name}"
    if _is_xcom(value):
        return TypeError(
            f"{field} {_OUTPUT_INSIDE}. Write a template, such as \"{{{{ ti.xcom_pull(task_ids='…') }}}}\", "
            "and put that task upstream; or give its output to the operator itself: audience=task.output."
        )
    return TypeError(f"{field} is {_kind(value)}, but must be {wanted}.")
