"""What DAG authors write: refused early in clear words, printed stably, the same again from JSON."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from datetime import UTC, date, time, timedelta
from pathlib import Path

import pytest

from airflow_provider_sib.campaign import (
    WEEKDAYS,
    CampaignAudience,
    CsvAudience,
    FrequencyCap,
    JsonLinesAudience,
    RowsAudience,
    SendWindow,
    SqlAudience,
    Variant,
    audience_of,
    value_from_dict,
)

VALUES = [
    CsvAudience("visitors.csv"),
    CsvAudience("s3://b/v.csv", conn_id="aws", visitor_id="id", encoding="cp1252", delimiter=";"),
    JsonLinesAudience("visitors.jsonl", timezone="tz"),
    SqlAudience("select 1", "warehouse", parameters={"since": "{{ ds }}"}, hook_params={"schema": "x"}),
    SqlAudience("select %s", "warehouse", parameters=["a", 1]),
    RowsAudience([{"visitor_id": "a", "name": "Ada"}], locale="lang"),
    RowsAudience([]),
    CampaignAudience("release", status="failed", after=timedelta(days=1, microseconds=5)),
    SendWindow("09:00", "18:30", ["tue", "mon"], default_timezone="Europe/Berlin"),
    SendWindow(time(22), time(6), default_timezone=None),
    Variant({"en": "Hi", "fr": "Salut"}, 2.5),
    Variant("Hi"),
    FrequencyCap(2, timedelta(hours=36), "news"),
]


class ResolveMixin:
    """Stand in for Airflow's class of that name, from which every XComArg descends."""


class XComArg(ResolveMixin):
    operator = None
    key = "return_value"


class ObjectStoragePath:
    """Stand in for Airflow's path, which is no ``os.PathLike`` for remote files."""

    def __str__(self):
        return "s3://conn@bucket/visitors.jsonl"


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_json_and_back_gives_an_equal_value(value):
    assert value_from_dict(json.loads(json.dumps(value.as_dict()))) == value


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_copies_are_equal_and_print_the_same(value):
    for other in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert other == value
        assert repr(other) == repr(value)
        assert " at 0x" not in repr(value)


def test_rows_print_their_number_and_columns_but_no_data():
    audience = RowsAudience([{"visitor_id": "secret-id", "name": "Ada"}, {"visitor_id": "b", "plan": "pro"}])
    assert repr(audience) == str(audience) == f"{audience}" == "RowsAudience(2 rows: visitor_id, name, plan)"
    assert repr(RowsAudience([])) == "RowsAudience(0 rows)"


def test_days_are_kept_in_the_order_of_the_week():
    assert SendWindow("01:00", "02:00", ["sun", "mon"], default_timezone=None).days == ("mon", "sun")
    assert SendWindow("01:00", "02:00", default_timezone=None).days == WEEKDAYS


def test_a_whole_day_goes_from_midnight_to_24():
    window = SendWindow("00:00", "24:00", ["sat"], default_timezone="UTC")
    assert (window.start, window.end) == (time(0), time(0))


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: CsvAudience(None), TypeError, "CsvAudience.path is None"),
        (lambda: CsvAudience(" "), ValueError, "CsvAudience.path is blank"),
        (lambda: CsvAudience(XComArg()), TypeError, "CsvAudience.path is the output of a task"),
        (lambda: CsvAudience("a", delimiter=";;"), ValueError, "CsvAudience.delimiter is ';;'"),
        (lambda: CsvAudience("a", encoding="utf-9"), ValueError, "CsvAudience.encoding is 'utf-9'"),
        (lambda: CsvAudience("a", visitor_id=""), ValueError, "CsvAudience.visitor_id is blank"),
        (lambda: CsvAudience("a", conn_id=3), TypeError, "CsvAudience.conn_id is of type int"),
        (lambda: JsonLinesAudience(b"a"), TypeError, "JsonLinesAudience.path is of type bytes"),
        (lambda: SqlAudience("", "c"), ValueError, "SqlAudience.sql is blank"),
        (lambda: SqlAudience("select", None), TypeError, "SqlAudience.conn_id is None"),
        (lambda: SqlAudience("s", "c", parameters="x"), TypeError, "SqlAudience.parameters is of type str"),
        (
            lambda: SqlAudience("s", "c", hook_params=[1]),
            TypeError,
            "SqlAudience.hook_params is of type list",
        ),
        (lambda: RowsAudience(XComArg()), TypeError, "audience=task.output"),
        (lambda: RowsAudience({"visitor_id": "a"}), TypeError, "RowsAudience.rows is of type dict"),
        (lambda: RowsAudience("abc"), TypeError, "RowsAudience.rows is of type str"),
        (lambda: RowsAudience([{}, 3]), TypeError, r"RowsAudience.rows\[1\] is of type int"),
        (lambda: CampaignAudience("a", status="gone"), ValueError, "CampaignAudience.status is 'gone'"),
        (lambda: CampaignAudience("a", after=3), TypeError, "CampaignAudience.after is of type int"),
        (lambda: CampaignAudience("a", after=-timedelta(1)), ValueError, "after is negative"),
        (lambda: SendWindow("09:00", "x", default_timezone=None), ValueError, "SendWindow.end is 'x'"),
        (lambda: SendWindow(9, "18:00", default_timezone=None), TypeError, "SendWindow.start is of type int"),
        (lambda: SendWindow(time(9, tzinfo=UTC), "18:00", default_timezone=None), ValueError, "leave it out"),
        (lambda: SendWindow("09:00", "09:00", default_timezone=None), ValueError, "same time"),
        (lambda: SendWindow("09:00", "18:00", "mon", default_timezone=None), TypeError, "SendWindow.days"),
        (lambda: SendWindow("09:00", "18:00", [], default_timezone=None), ValueError, "days is empty"),
        (lambda: SendWindow("09:00", "18:00", ["Mo"], default_timezone=None), ValueError, "days has 'Mo'"),
        (lambda: SendWindow("09:00", "18:00", default_timezone="Europe"), ValueError, "not an IANA zone"),
        (lambda: SendWindow("09:00", "18:00", default_timezone="Berlin"), ValueError, "not an IANA zone"),
        (lambda: SendWindow("09:00", "18:00", default_timezone="../x"), ValueError, "not an IANA zone"),
        (lambda: SendWindow("09:00", "18:00", default_timezone="x" * 999), ValueError, "not an IANA zone"),
        (
            lambda: SendWindow("09:00", "18:00", default_timezone=1),
            TypeError,
            "default_timezone is of type int",
        ),
        (lambda: SendWindow("09:00", "18:00"), TypeError, "default_timezone"),
        (lambda: Variant(3), TypeError, "Variant.text is of type int"),
        (lambda: Variant({}), TypeError, "a string for each locale"),
        (lambda: Variant({"en": 3}), TypeError, "a string for each locale"),
        (lambda: Variant("a", 0), ValueError, "Variant.weight is 0"),
        (lambda: Variant("a", float("nan")), ValueError, "Variant.weight is nan"),
        (lambda: Variant("a", True), TypeError, "Variant.weight is of type bool"),
        (lambda: FrequencyCap(0, timedelta(1)), ValueError, "FrequencyCap.at_most is 0"),
        (lambda: FrequencyCap("1", timedelta(1)), TypeError, "FrequencyCap.at_most is of type str"),
        (lambda: FrequencyCap(1, 60), TypeError, "FrequencyCap.within is of type int"),
        (lambda: FrequencyCap(1, timedelta(0)), ValueError, "FrequencyCap.within"),
        (lambda: FrequencyCap(1, timedelta(1), ""), ValueError, "FrequencyCap.group is blank"),
        (lambda: value_from_dict({"kind": "cvs"}), ValueError, "'kind' is 'cvs'"),
        (lambda: value_from_dict({"kind": "csv"}), ValueError, "CsvAudience can't be made"),
        (lambda: value_from_dict({"kind": "csv", "path": "a", "x": 1}), ValueError, "has no field 'x'"),
        (lambda: audience_of("SELECT 1"), ValueError, "SqlAudience"),
        (lambda: audience_of("visitors.txt"), ValueError, r"\.csv, \.jsonl or \.ndjson"),
        (lambda: audience_of("folder.csv/visitors"), ValueError, r"\.csv, \.jsonl or \.ndjson"),
        (lambda: audience_of({"visitor_id": "a"}), TypeError, "audience is of type dict"),
        (lambda: audience_of(None), TypeError, "audience is None"),
        (lambda: audience_of(b"a.csv"), TypeError, "audience is of type bytes"),
        (lambda: audience_of(["a"]), TypeError, r"rows\[0\] is of type str"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(make, error, said):
    with pytest.raises(error, match=said):
        make()


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("visitors.csv", CsvAudience("visitors.csv")),
        ("/data/Visitors.CSV", CsvAudience("/data/Visitors.CSV")),
        (Path("a.ndjson"), JsonLinesAudience("a.ndjson")),
        ("s3://bucket/v.jsonl?versionId=3.x", JsonLinesAudience("s3://bucket/v.jsonl?versionId=3.x")),
        (ObjectStoragePath(), JsonLinesAudience("s3://conn@bucket/visitors.jsonl")),
        ([{"visitor_id": "a"}], RowsAudience([{"visitor_id": "a"}])),
        (({"visitor_id": "a"},), RowsAudience([{"visitor_id": "a"}])),
        ([], RowsAudience([])),
        (VALUES[3], VALUES[3]),
    ],
    ids=repr,
)
def test_an_audience_is_made_of_what_the_operators_accept(given, made):
    assert audience_of(given) == made


def test_strings_are_rendered_in_a_copy_and_rows_never():
    def render(text: str) -> str:
        return text.replace("{{ ds }}", "2026-11-23")

    written = SqlAudience("select '{{ ds }}'", "c", parameters={"day": ["{{ ds }}", date(2026, 1, 1), 3]})
    assert written.rendered(render) == SqlAudience(
        "select '2026-11-23'", "c", parameters={"day": ["2026-11-23", date(2026, 1, 1), 3]}
    )
    assert written.sql == "select '{{ ds }}'"
    assert CsvAudience("{{ ds }}.csv").rendered(render) == CsvAudience("2026-11-23.csv")
    assert CampaignAudience("r-{{ ds }}").rendered(render).campaign_id == "r-2026-11-23"
    assert Variant({"{{ ds }}": "{{ ds }}"}, 3.0).rendered(render) == Variant({"{{ ds }}": "2026-11-23"}, 3.0)
    rows = RowsAudience([{"visitor_id": "{{ ds }}"}])
    assert rows.rendered(render) is rows
    window = VALUES[8]
    assert window.rendered(render) is window


def test_importing_the_values_needs_the_standard_library_only():
    code = (
        "import sys, airflow_provider_sib.campaign;"
        "heavy = ('airflow_provider_sib.campaign.', 'airflow.', 'jinja2', 'pendulum', 'sqlalchemy');"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
