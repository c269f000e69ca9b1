"""Reads an audience as a stream, in constant memory: recipients as :class:`Row`, the rest as :class:`BadRow`.

What is wrong with one row never ends the stream; what is wrong with all of them (no such column, not a text file)
raises :class:`AudienceError`. No visitor's data is in either. How to open a URL or a connection is the caller's
knowledge, handed in.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import count
from typing import Any, BinaryIO, NoReturn
from uuid import UUID

from airflow_provider_sib.campaign import (
    Audience,
    CampaignAudience,
    CsvAudience,
    JsonLinesAudience,
    RowsAudience,
    SqlAudience,
)
from airflow_provider_sib.campaign.ledger import Json, Ledger, Recipient, State, flaw_of

LONGEST_LINE = 2**20
"""Characters after which a line is taken for a sign that the file isn't one of rows."""

PORTION = 2**16
"""Characters of a file that are looked through at once."""

FETCHED_AT_ONCE = 1000
"""Rows asked of a database at a time."""


class AudienceError(Exception):
    """An audience that can't be read as it is described: a retry alone doesn't help."""


@dataclass(frozen=True, slots=True)
class Row(Recipient):
    """One recipient, and where it was read.

    :param line: line of the file it begins in, or number of the row, from 1.
    """

    line: int = 0


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be used.

    :param line: line of the file, or number of the row, from 1.
    :param reason: what is wrong, to follow on "line 7"; without visitors' data.
    """

    line: int
    reason: str


def read(
    audience: Audience,
    *,
    open_path: Callable[[str, str | None], BinaryIO],
    connect: Callable[[SqlAudience], Any],
    ledger: Ledger,
) -> Iterator[Row | BadRow]:
    """
    Read an audience row by row.

    A record of a CSV file that is broken over several lines counts as that many bad rows, since a quote that is
    never closed swallows the recipients after it.

    :param audience: what to read.
    :param open_path: opens a path or URL, with its connection id, for reading bytes.
    :param connect: gives a new DB-API connection for a query; it is closed afterwards.
    :param ledger: where the recipients of an earlier campaign are.
    :return: recipients and bad rows in the order of the source.
    :raises AudienceError: the source isn't what it should be.
    """
    match audience:
        case CsvAudience():
            return _csv_rows(audience, open_path)
        case JsonLinesAudience():
            return _json_rows(audience, open_path)
        case SqlAudience():
            return _sql_rows(audience, connect)
        case RowsAudience():
            return _given_rows(audience)
        case CampaignAudience():
            return _campaign_rows(audience, ledger)


def _csv_rows(
    audience: CsvAudience, open_path: Callable[[str, str | None], BinaryIO]
) -> Iterator[Row | BadRow]:
    with closing(_Lines(audience, open_path, newline="")) as lines:
        reader = csv.reader(lines, delimiter=audience.delimiter, strict=True)
        header = _csv_header(audience, reader, lines)
        width = len(header)
        visitor, zone, locale = audience.visitor_id, audience.timezone, audience.locale
        while True:
            first = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                flaw = f"is broken CSV ({error})"
            else:
                if lines.flaw:
                    flaw = lines.flaw
                elif len(cells) == width:
                    row: dict[str, Json] = dict(zip(header, cells, strict=True))
                    yield _recipient(row, first, visitor, zone, locale)
                    continue
                elif cells:
                    flaw = f"has {len(cells)} cells, but the header has {width}"
                else:
                    continue
            lines.flaw = None
            for line in range(first, reader.line_num + 1):
                yield BadRow(line, flaw)


def _csv_header(audience: CsvAudience, reader: Iterator[list[str]], lines: _Lines) -> list[str]:
    try:
        header = next((cells for cells in reader if cells), None)
    except csv.Error as error:
        raise AudienceError(f"The header of {lines.name} is broken CSV: {error}.") from error
    if header is None:
        raise AudienceError(f"{lines.name} is empty: its first line must name the columns.")
    if lines.flaw:
        raise AudienceError(f"The header of {lines.name} {lines.flaw}. Is its encoding another one?")
    _check_columns(audience, header, lines.name)
    return header


_SUSPECT_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


def _json_rows(
    audience: JsonLinesAudience, open_path: Callable[[str, str | None], BinaryIO]
) -> Iterator[Row | BadRow]:
    decode = json.JSONDecoder(parse_constant=_no_constant).decode
    with closing(_Lines(audience, open_path, newline=None)) as lines:
        for number, line in enumerate(lines, 1):
            if lines.flaw:
                yield BadRow(number, lines.flaw)
                lines.flaw = None
                continue
            if line.isspace():
                continue
            try:
                row = decode(line)
            except (ValueError, RecursionError):
                yield BadRow(number, "is not JSON")
                continue
            if not isinstance(row, dict):
                yield BadRow(number, f"is a JSON {type(row).__name__}, but must be an object")
                continue
            # Only an escape can bring a character that the line itself doesn't have.
            if _SUSPECT_ESCAPE.search(line) and (flaw := _flaw_within(row)):
                yield BadRow(number, flaw)
                continue
            yield _recipient(row, number, audience.visitor_id, audience.timezone, audience.locale)


def _sql_rows(audience: SqlAudience, connect: Callable[[SqlAudience], Any]) -> Iterator[Row | BadRow]:
    # PyMySQL's streaming cursor must be closed before its connection, and reads all that is left then.
    with closing(connect(audience)) as connection, closing(_streaming_cursor(connection)) as cursor:
        if audience.parameters is None:
            cursor.execute(audience.sql)
        else:
            cursor.execute(audience.sql, audience.parameters)
        rows = cursor.fetchmany(FETCHED_AT_ONCE)
        # psycopg2's named cursors know their columns after the first fetch only.
        if cursor.description is None:
            raise AudienceError("The query of SqlAudience gives no rows: it must be one SELECT.")
        columns = [column[0] for column in cursor.description]
        _check_columns(audience, columns, "the query of SqlAudience")
        numbers = count(1)
        while rows:
            for cells, number in zip(rows, numbers, strict=False):
                values = cells.values() if isinstance(cells, Mapping) else cells
                yield _converted(audience, dict(zip(columns, values, strict=True)), number)
            rows = cursor.fetchmany(FETCHED_AT_ONCE)


def _streaming_cursor(connection: Any) -> Any:
    """Make a cursor that leaves the rows on the server, where the driver has one and doesn't use it by itself."""
    for module in (cls.__module__.partition(".")[0] for cls in type(connection).__mro__):
        match module:
            case "psycopg2" | "psycopg":
                # Without a transaction around it a cursor must outlive its statement.
                return connection.cursor("sib_audience", withhold=connection.autocommit)
            case "pymysql" | "MySQLdb":
                from importlib import import_module

                return connection.cursor(import_module(f"{module}.cursors").SSCursor)
    return connection.cursor()


def _given_rows(audience: RowsAudience) -> Iterator[Row | BadRow]:
    for number, row in enumerate(audience.rows, 1):
        yield _converted(audience, dict(row), number)


def _campaign_rows(audience: CampaignAudience, ledger: Ledger) -> Iterator[Row | BadRow]:
    deliveries = ledger.deliveries(
        audience.campaign_id,
        states=[State[audience.status.upper()]],
        # The ledger leaves out the moment itself.
        before_ms=ledger.now_ms() - audience.after // timedelta(milliseconds=1) + 1,
    )
    number = 0
    for delivery in deliveries:
        # A forgotten visitor has left every audience.
        if delivery.visitor_id is None:
            continue
        number += 1
        yield Row(delivery.visitor_id, delivery.variables or {}, delivery.timezone, delivery.locale, number)


class _Lines:
    """Give the lines of a text file, and tell of each whether it holds what no row may hold.

    :ivar flaw: what is wrong with a line given since it was last set to None.
    """

    def __init__(
        self,
        audience: CsvAudience | JsonLinesAudience,
        open_path: Callable[[str, str | None], BinaryIO],
        *,
        newline: str | None,
    ) -> None:
        # A URL's query may be a signature.
        self.name = audience.path.partition("?")[0]
        self.flaw: str | None = None
        self._encoding = audience.encoding
        # With surrogateescape a wrong byte spoils its own line and not the rest of the file.
        self._text = io.TextIOWrapper(
            open_path(audience.path, audience.conn_id),
            encoding=audience.encoding,
            errors="surrogateescape",
            newline=newline,
        )

    def close(self) -> None:
        self._text.close()

    def __iter__(self) -> Iterator[str]:
        number = 0
        try:
            while portion := self._text.read(PORTION):
                tail = self._text.readline(LONGEST_LINE)
                if len(tail) == LONGEST_LINE:
                    raise AudienceError(
                        f"A line of {self.name} after line {number} has over {LONGEST_LINE} characters: "
                        "this is not a file of rows."
                    )
                portion += tail
                lines = io.StringIO(portion, newline="")
                if self._flaw_of(portion) is None:
                    yield from lines
                else:
                    for line in lines:
                        self.flaw = self._flaw_of(line) or self.flaw
                        yield line
                number += portion.count("\n")
        except UnicodeError as error:
            raise AudienceError(
                f"{self.name} isn't {self._encoding} after line {number}: write its own encoding."
            ) from error

    def _flaw_of(self, text: str) -> str | None:
        if "\0" in text:
            return f"has a NUL character, so it isn't {self._encoding} text"
        if not _encodable(text):
            return f"has bytes that aren't {self._encoding}"
        return None


def _check_columns(audience: CsvAudience | SqlAudience, columns: Sequence[str], name: str) -> None:
    names = ", ".join(map(repr, columns))
    owner = type(audience).__name__
    if twice := [column for column, times in Counter(columns).items() if times > 1]:
        raise AudienceError(f"The column {twice[0]!r} is twice in {name}; its columns are {names}.")
    wanted = [("visitor_id", audience.visitor_id)]
    # The default columns needn't be there; one that the author named must be.
    wanted += [
        (field, column)
        for field, column in (("timezone", audience.timezone), ("locale", audience.locale))
        if column != field
    ]
    for field, column in wanted:
        if column not in columns:
            way_out = f"name the right one with {owner}(…, {field}=…)"
            if isinstance(audience, CsvAudience) and len(columns) == 1:
                way_out += " or the right delimiter with delimiter=…"
            raise AudienceError(
                f"There is no column {column!r} in {name}; its columns are {names}: {way_out}."
            )


def _converted(audience: SqlAudience | RowsAudience, row: dict[Any, Any], number: int) -> Row | BadRow:
    """Make a recipient of values as Python and database drivers have them."""
    for column, value in row.items():
        if type(value) is str and value.isascii() and "\0" not in value:
            continue
        try:
            row[column] = _plain(value)
        except (TypeError, ValueError) as error:
            return BadRow(number, f"has {error} in column {str(column)!r}")
    if not all(type(column) is str for column in row):
        return BadRow(number, "has a column whose name is not a string")
    return _recipient(row, number, audience.visitor_id, audience.timezone, audience.locale)


# Thousands of rows share a zone and a locale.
_tag_flaw = lru_cache(maxsize=1024)(flaw_of)


def _recipient(row: dict[str, Json], line: int, visitor: str, zone: str, locale: str) -> Row | BadRow:
    visitor_id = row.pop(visitor, None)
    if type(visitor_id) is int:
        visitor_id = str(visitor_id)
    if visitor_id is None or visitor_id == "":
        return BadRow(line, f"has no visitor id in column {visitor!r}")
    if not isinstance(visitor_id, str):
        return BadRow(line, f"has a visitor id of type {type(visitor_id).__name__} in column {visitor!r}")
    if flaw := flaw_of(visitor_id):
        return BadRow(line, f"has a visitor id that {flaw}")
    rest: list[str | None] = []
    for column in (zone, locale):
        value = row.pop(column, None)
        if value is None or value == "":
            rest.append(None)
        elif isinstance(value, str) and not _tag_flaw(value):
            rest.append(value)
        else:
            return BadRow(line, f"has no usable string in column {column!r}")
    return Row(visitor_id, row, rest[0], rest[1], line)


def _plain(value: Any) -> Json:
    """
    Turn a value into JSON.

    :raises ValueError: with what it is instead.
    """
    match value:
        case None | bool() | int():
            return value
        case str():
            if "\0" in value:
                raise ValueError("a NUL character")
            if not _encodable(value):
                raise ValueError("half a surrogate pair")
            return str.__str__(value)
        case float() if math.isfinite(value):
            return value
        case float():
            raise ValueError("a number that isn't finite")
        case Decimal() if value.is_finite():
            # As text, so that a price keeps its two decimals.
            return str(value)
        case UUID():
            return str(value)
        case date() | time():
            return value.isoformat()
        case list() | tuple():
            return [_plain(item) for item in value]
        case Mapping():
            return {
                _plain(key) if isinstance(key, str) else str(key): _plain(item) for key, item in value.items()
            }
        case _:
            raise ValueError(f"a value of type {type(value).__name__}, which has no form as text,")


def _flaw_within(value: Json) -> str | None:
    try:
        _plain(value)
    except ValueError as error:
        return f"has {error}"
    return None


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
