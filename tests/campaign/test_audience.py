"""Audiences are streams: every row is a recipient or a bad row named by its line, and no visitor's data leaks."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import tracemalloc
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pymysql
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sib.campaign import (
    CampaignAudience,
    CsvAudience,
    JsonLinesAudience,
    RowsAudience,
    SqlAudience,
)
from airflow_provider_sib.campaign.audience import (
    FETCHED_AT_ONCE,
    LONGEST_LINE,
    PORTION,
    AudienceError,
    BadRow,
    Row,
    read,
)
from airflow_provider_sib.campaign.ledger import Enrolment, MemoryLedger, Recipient, Text

if TYPE_CHECKING:
    from collections.abc import Iterator


def never(*_arguments):
    raise AssertionError("this audience needs neither a file nor a database nor a ledger")


def rows_of(audience, data: bytes | str = b"", **given):
    raw = data.encode() if isinstance(data, str) else data
    sources = {"open_path": lambda _path, _conn_id: io.BytesIO(raw), "connect": never, "ledger": None}
    return list(read(audience, **(sources | given)))


CSV = CsvAudience("v.csv")
LINES = JsonLinesAudience("v.jsonl")


def test_a_row_of_csv_is_a_recipient_with_the_other_columns_as_variables():
    text = "visitor_id,name,timezone,locale\nv1,Ada,Europe/Paris,fr\n\nv2,,,\n"
    assert rows_of(CSV, text) == [
        Row("v1", {"name": "Ada"}, "Europe/Paris", "fr", 2),
        Row("v2", {"name": ""}, None, None, 4),
    ]
    assert all(isinstance(row, Recipient) for row in rows_of(CSV, text))


@pytest.mark.parametrize(
    ("audience", "data"),
    [
        (CSV, "\ufeffvisitor_id,näme\r\nv1,Zoë\r\n".encode()),
        (CsvAudience("v", encoding="cp1252"), "visitor_id,näme\nv1,Zoë\n".encode("cp1252")),
        (CsvAudience("v", encoding="utf-16"), "visitor_id,näme\nv1,Zoë\n".encode("utf-16")),
        (CsvAudience("v", delimiter=";"), b'n\xc3\xa4me;visitor_id\n"Zo\xc3\xab";v1'),
        (LINES, '\ufeff{"visitor_id": "v1", "näme": "Zoë"}\r\n \n'.encode()),
        (LINES, b'{"visitor_id": "v1", "n\\u00e4me": "Zo\\u00eb"}'),
        (JsonLinesAudience("v", encoding="utf-16"), '{"visitor_id":"v1","näme":"Zoë"}\n'.encode("utf-16")),
    ],
)
def test_files_are_read_in_their_own_encoding(audience, data):
    (row,) = rows_of(audience, data)
    assert (row.visitor_id, row.variables) == ("v1", {"näme": "Zoë"})


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        (b",Ada", [BadRow(2, "has no visitor id in column 'visitor_id'")]),
        (b" v1,Ada", [BadRow(2, "has a visitor id that is empty or has blanks around it")]),
        (b" ,Ada", [BadRow(2, "has a visitor id that is empty or has blanks around it")]),
        (b"v" * 256 + b",Ada", [BadRow(2, "has a visitor id that has more than 255 characters")]),
        (b"v\0,Ada", [BadRow(2, "has a NUL character, so it isn't utf-8-sig text")]),
        (b"v1,Zo\xeb", [BadRow(2, "has bytes that aren't utf-8-sig")]),
        (b"v1", [BadRow(2, "has 1 cells, but the header has 2")]),
        (b"v1,Ada,3", [BadRow(2, "has 3 cells, but the header has 2")]),
        (b'v1,"Ada"x', [BadRow(2, "is broken CSV (',' expected after '\"')")]),
        (b'v1,"Ada\nLovelace",3', [BadRow(line, "has 3 cells, but the header has 2") for line in (2, 3)]),
    ],
)
def test_a_bad_row_of_csv_is_named_by_line_and_the_next_one_is_read(line, bad):
    assert rows_of(CSV, b"visitor_id,name\n" + line + b"\nv9,Eve\n") == [
        *bad,
        Row("v9", {"name": "Eve"}, None, None, 2 + len(bad)),
    ]


def test_a_quote_that_is_never_closed_counts_every_row_it_swallows():
    rows = rows_of(CSV, 'visitor_id,name\nv1,Ada\nv2,"Bob\n' + "v,x\n" * 100)
    assert rows[0] == Row("v1", {"name": "Ada"}, None, None, 2)
    assert [row.line for row in rows[1:]] == list(range(3, 104))
    assert {row.reason for row in rows[1:]} == {"is broken CSV (unexpected end of data)"}


def test_a_record_over_several_lines_is_one_row_named_by_its_first():
    rows = rows_of(CSV, 'visitor_id,name\nv1,"Ada\nLovelace"\nv2,Bob\n')
    assert rows == [
        Row("v1", {"name": "Ada\nLovelace"}, None, None, 2),
        Row("v2", {"name": "Bob"}, None, None, 4),
    ]


@pytest.mark.parametrize(
    ("audience", "data", "said"),
    [
        (CSV, b"", r"v.csv is empty"),
        (CSV, b"\n\n", r"v.csv is empty"),
        (
            CSV,
            b"id,name\nv1,Ada",
            r"no column 'visitor_id' in v.csv; its columns are 'id', 'name'.*visitor_id=…",
        ),
        (CSV, b"visitor_id;name\nv1;Ada", r"its columns are 'visitor_id;name'.*or the right delimiter"),
        (CSV, b"visitor_id,name,name\n", r"The column 'name' is twice in v.csv"),
        (
            CsvAudience("v.csv", timezone="tz"),
            b"visitor_id,timezone\n",
            r"There is no column 'tz'.*timezone=…",
        ),
        (CSV, "visitor_id,name\n".encode("utf-16"), r"The header of v.csv has .*encoding another"),
        (CSV, b'"visitor_id"x\n', r"The header of v.csv is broken CSV"),
        (
            CsvAudience("v.csv", encoding="utf-16"),
            b"visitor_id,name\n",
            r"v.csv isn't utf-16|The header|no column",
        ),
        (
            CsvAudience("v.csv", encoding="ascii"),
            "visitor_id,naïve\n".encode(),
            r"The header of v.csv has bytes",
        ),
        (
            CSV,
            b"visitor_id\n" + b"x" * (PORTION + LONGEST_LINE),
            r"A line of v.csv after line 0 has over \d+ characters",
        ),
        (LINES, b"x" * (PORTION + LONGEST_LINE), r"A line of v.jsonl after line 0 has over"),
        (CsvAudience("s3://b/v.csv?Signature=secret"), b"", r"^s3://b/v.csv is empty"),
    ],
)
def test_a_file_that_is_no_audience_is_refused_in_one_sentence(audience, data, said):
    with pytest.raises(AudienceError, match=said) as caught:
        rows_of(audience, data)
    assert "secret" not in str(caught.value)


def test_a_utf_16_file_cut_in_the_middle_of_a_character_is_refused():
    with pytest.raises(AudienceError, match="isn't utf-16 after line"):
        rows_of(CsvAudience("v.csv", encoding="utf-16"), "visitor_id\nv1\nv2\n".encode("utf-16")[:-1])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not JSON"),
        (b'{"visitor_id": "v1", "x": NaN}', "is not JSON"),
        (b'{"visitor_id": "v1", "x": ' + b"[" * 100_000, "is not JSON"),
        (b'{"visitor_id": "v1", "x": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'[{"visitor_id": "v1"}]', "is a JSON list, but must be an object"),
        (b'"v1"', "is a JSON str, but must be an object"),
        (b"{}", "has no visitor id in column 'visitor_id'"),
        (b'{"visitor_id": null}', "has no visitor id in column 'visitor_id'"),
        (b'{"visitor_id": true}', "has a visitor id of type bool in column 'visitor_id'"),
        (b'{"visitor_id": 1.5}', "has a visitor id of type float in column 'visitor_id'"),
        (b'{"visitor_id": "v1\\ud800"}', "has half a surrogate pair"),
        (b'{"visitor_id": "v1", "x": [{"\\u0000": 1}]}', "has a NUL character"),
        (b'{"visitor_id": "v1", "x": "Zo\xeb"}', "has bytes that aren't utf-8-sig"),
        (b'{"visitor_id": "v1", "timezone": 3}', "has no usable string in column 'timezone'"),
        (b'{"visitor_id": "v1", "locale": " fr"}', "has no usable string in column 'locale'"),
    ],
)
def test_a_bad_line_of_json_is_named_and_the_next_one_is_read(line, reason):
    assert rows_of(LINES, line + b'\n{"visitor_id": 7, "x": [1, {"y": null}], "e": "\\u00eb"}') == [
        BadRow(1, reason),
        Row("7", {"x": [1, {"y": None}], "e": "ë"}, None, None, 2),
    ]


@given(st.lists(st.binary(max_size=30), max_size=8))
def test_whatever_is_in_a_file_each_line_is_a_row_a_bad_row_or_blank(lines):
    for audience, header in ((CSV, b"visitor_id,name\n"), (LINES, b"")):
        for row in rows_of(audience, header + b"\n".join(lines)):
            assert isinstance(row, (Row, BadRow))
            assert row.line >= 1
            if isinstance(row, Row):
                assert row.visitor_id == row.visitor_id.strip()
                json.dumps(row.variables, ensure_ascii=False).encode()


@given(
    st.lists(
        st.fixed_dictionaries(
            {"visitor_id": st.from_regex(r"[a-z0-9/]{1,20}", fullmatch=True)},
            optional={"name": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))},
        )
    )
)
def test_json_lines_come_back_as_they_were_written(people):
    rows = rows_of(LINES, "".join(json.dumps(person) + "\n" for person in people))
    assert [{"visitor_id": row.visitor_id, **row.variables} for row in rows] == people


def test_a_million_cells_are_read_in_constant_memory():
    class Endless(io.RawIOBase):
        left = 100_000

        def readable(self):
            return True

        def readinto(self, buffer):
            lines = min(self.left, len(buffer) // 32)
            self.left -= lines
            data = b"v1,aaaaaaaaaaaaaaaaaaaaaaaaaaa\n"[:32] * lines
            buffer[: len(data)] = data
            return len(data)

    stream = io.BufferedReader(Endless())
    rows = read(
        CsvAudience("v", visitor_id="v1"), open_path=lambda _path, _conn: stream, connect=never, ledger=None
    )
    next(rows)
    tracemalloc.start()
    try:
        number = sum(1 for _ in rows)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert number > 90_000
    assert peak < 1_000_000


def test_lines_keep_their_ends_and_numbers_over_many_portions():
    people = [f'v{number},"a\r\nb{"x" * (number % 50)}é"\r\n' for number in range(20_000)]
    rows = rows_of(CSV, "visitor_id,name\r\n" + "".join(people))
    assert [row.line for row in rows] == list(range(2, 40_002, 2))
    assert all(row.variables["name"].startswith("a\r\nb") for row in rows)
    people[15_000] = people[15_000].replace("é", "\0")
    rows = rows_of(CSV, "visitor_id,name\r\n" + "".join(people))
    assert [row.line for row in rows if isinstance(row, BadRow)] == [30_002, 30_003]
    assert len(rows) == 20_001


def test_the_file_is_closed_when_the_reader_stops_early():
    stream = io.BytesIO(b"visitor_id\nv1\nv2\n")
    rows = read(CSV, open_path=lambda _path, _conn: stream, connect=never, ledger=None)
    next(rows)
    rows.close()
    assert stream.closed


def test_the_path_is_opened_with_its_connection(tmp_path):
    asked = []

    def open_path(path, conn_id):
        asked.append((path, conn_id))
        return (tmp_path / "x").open("rb")

    Path(tmp_path / "x").write_text("visitor_id\nv1\n")
    assert len(rows_of(CsvAudience("s3://b/x.csv", conn_id="aws"), open_path=open_path)) == 1
    assert asked == [("s3://b/x.csv", "aws")]


# rows at hand


def test_values_of_python_become_json_able():
    moment = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    given = {
        "visitor_id": UUID(int=1),
        "price": Decimal("10.50"),
        "day": date(2026, 1, 2),
        "at": moment,
        "time": time(9),
        "tags": ("a", {"b": 1}),
        "none": None,
        "flag": True,
    }
    (row,) = rows_of(RowsAudience([given]))
    assert row.visitor_id == str(UUID(int=1))
    assert row.variables == {
        "price": "10.50",
        "day": "2026-01-02",
        "at": "2026-01-02T03:04:00+00:00",
        "time": "09:00:00",
        "tags": ["a", {"b": 1}],
        "none": None,
        "flag": True,
    }
    assert given["price"] == Decimal("10.50")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"visitor_id": "v", "x": b"secret"},
            "has a value of type bytes, which has no form as text, in column 'x'",
        ),
        ({"visitor_id": "v", "x": float("inf")}, "has a number that isn't finite in column 'x'"),
        ({"visitor_id": "v", "x": Decimal("nan")}, "has a value of type Decimal, which has no form"),
        ({"visitor_id": "v", "x": timedelta(1)}, "has a value of type timedelta"),
        ({"visitor_id": "v", "x": {"y": object()}}, "has a value of type object"),
        ({"visitor_id": "v", "x": "\ud800"}, "has half a surrogate pair in column 'x'"),
        ({"visitor_id": "v\0"}, "has a NUL character in column 'visitor_id'"),
        ({"visitor_id": "v", 3: 1}, "has a column whose name is not a string"),
        ({"name": "secret"}, "has no visitor id in column 'visitor_id'"),
    ],
)
def test_a_bad_row_is_named_by_its_number_without_its_data(row, reason):
    good, bad = rows_of(RowsAudience([{"visitor_id": "v0"}, row]))
    assert good == Row("v0", {}, None, None, 1)
    assert bad.line == 2
    assert bad.reason.startswith(reason)
    assert "secret" not in bad.reason


# an earlier campaign


def test_the_recipients_of_an_earlier_campaign_come_with_their_variables():
    now = 1_000_000.0

    def clock() -> float:
        return now

    ledger = MemoryLedger(clock=clock)
    ledger.open_campaign("one", binding={}, each_run=False, text=Text("d", "Hi"), settings={})
    people = [
        Enrolment("k1", 5, "v1", timezone="UTC", locale="fr", variables={"n": 1}),
        Enrolment("k2", 6, "v2", variables={"n": 2}),
        Enrolment("k3", 7, "v3", skip="holdout"),
    ]
    ledger.enrol("one", people)
    ledger.skip_pending("one", "not_after")
    ledger.forget_visitor("v2")
    skipped = CampaignAudience("one", status="skipped")
    rows = rows_of(skipped, ledger=ledger)
    assert [row.line for row in rows] == [1, 2]
    assert {(row.visitor_id, row.variables.get("n"), row.timezone, row.locale) for row in rows} == {
        ("v1", 1, "UTC", "fr"),
        ("v3", None, None, None),
    }
    assert rows_of(CampaignAudience("one"), ledger=ledger) == []
    later = CampaignAudience("one", status="skipped", after=timedelta(hours=1))
    assert rows_of(later, ledger=ledger) == []
    now += 3601
    assert len(rows_of(later, ledger=ledger)) == 2


# databases


QUERY = SqlAudience(
    "select visitor_id, name, price from people where n < :n order by n", "db", parameters={"n": 3000}
)


def sqlite(rows: int) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table people (n integer, visitor_id text, name text, price)")
    connection.executemany(
        "insert into people values (?, ?, ?, ?)", ((n, f"v{n}", "Zoë", n / 4) for n in range(rows))
    )
    return connection


class Watched:
    """Note what is asked of a connection, and hand it on."""

    def __init__(self, connection):
        self.connection = connection
        self.fetched = []
        self.closed = False

    def cursor(self):
        cursor, watched = self.connection.cursor(), self

        class Cursor:
            def __getattr__(self, name):
                return getattr(cursor, name)

            def fetchmany(self, size):
                watched.fetched.append(size)
                return cursor.fetchmany(size)

        return Cursor()

    def close(self):
        self.closed = True
        self.connection.close()


def test_a_query_is_fetched_in_portions_and_its_connection_closed():
    watched = Watched(sqlite(5000))
    rows = rows_of(QUERY, connect=lambda _audience: watched)
    assert len(rows) == 3000
    assert rows[2999] == Row("v2999", {"name": "Zoë", "price": 2999 / 4}, None, None, 3000)
    assert watched.fetched == [FETCHED_AT_ONCE] * 4
    assert watched.closed


def test_a_query_that_is_left_early_closes_its_connection():
    watched = Watched(sqlite(5000))
    rows = read(QUERY, open_path=never, connect=lambda _audience: watched, ledger=None)
    next(rows)
    rows.close()
    assert watched.closed


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        (
            "select name from people",
            "no column 'visitor_id' in the query of SqlAudience; its columns are 'name'",
        ),
        ("select visitor_id, n, n from people", "The column 'n' is twice"),
        ("update people set n = 1", "must be one SELECT"),
    ],
)
def test_a_query_that_gives_no_audience_is_refused(sql, said):
    with pytest.raises(AudienceError, match=said):
        rows_of(SqlAudience(sql, "db"), connect=lambda _audience: sqlite(1))


def test_a_blob_is_a_bad_row():
    rows = rows_of(
        SqlAudience("select 'v' as visitor_id, x'00' as picture", "db"), connect=lambda _audience: sqlite(0)
    )
    assert rows == [BadRow(1, "has a value of type bytes, which has no form as text, in column 'picture'")]


def psycopg2_connection():
    import psycopg2

    try:
        return psycopg2.connect(host="127.0.0.1", user="root", dbname="test", connect_timeout=3)
    except psycopg2.OperationalError:
        # In CI a failure, by tests/conftest.py, as every skip.
        pytest.skip("no PostgreSQL answers at 127.0.0.1")


def pymysql_connection():
    try:
        return pymysql.connect(host="127.0.0.1", user="root", database="test", connect_timeout=3)
    except pymysql.err.OperationalError:
        # In CI a failure, by tests/conftest.py, as every skip.
        pytest.skip("no MariaDB answers at 127.0.0.1")


MANY_POSTGRES = (
    "select 'v' || n as visitor_id, n::numeric / 4 as price, repeat('x', 500) as x "
    "from generate_series(1, 20000) n"
)
MANY_MARIADB = (
    "select concat('v', seq) as visitor_id, seq / 4 as price, repeat('x', 500) as x from seq_1_to_20000"
)


@pytest.fixture(params=["postgresql", "postgresql autocommit", "mariadb"])
def server(request) -> Iterator[tuple[object, str]]:
    if request.param == "mariadb":
        yield pymysql_connection(), MANY_MARIADB
        return
    connection = psycopg2_connection()
    connection.autocommit = "autocommit" in request.param
    yield connection, MANY_POSTGRES


def test_servers_stream_their_rows(server):
    connection, sql = server
    rows = read(SqlAudience(sql, "db"), open_path=never, connect=lambda _audience: connection, ledger=None)
    first = next(rows)
    assert first.visitor_id == "v1"
    assert Decimal(first.variables["price"]) == Decimal("0.25")
    tracemalloc.start()
    try:
        assert sum(isinstance(row, Row) for row in rows) == 19_999
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # All rows at once are over 12 MB.
    assert peak < 4_000_000


def test_the_connection_to_a_server_is_closed_when_its_rows_are_left_early(server):
    connection, sql = server
    rows = read(SqlAudience(sql, "db"), open_path=never, connect=lambda _audience: connection, ledger=None)
    next(rows)
    rows.close()
    assert getattr(connection, "closed", False) or not connection.open


def test_a_parameter_is_bound_by_the_driver(server):
    connection, _ = server
    audience = SqlAudience("select %s as visitor_id", "db", parameters=["x'; drop table y"])
    (row,) = rows_of(audience, connect=lambda _audience: connection)
    assert row.visitor_id == "x'; drop table y"


def test_an_empty_result_still_tells_a_missing_column(server):
    connection, _ = server
    with pytest.raises(AudienceError, match="its columns are 'other'"):
        rows_of(SqlAudience("select 1 as other where 1 = 0", "db"), connect=lambda _audience: connection)


def test_no_descriptor_is_left_open():
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # a directory of the kernel's
    for _ in range(20):
        rows_of(QUERY, connect=lambda _audience: sqlite(10))
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208
