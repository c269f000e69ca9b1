"""When faults strike, and what is refused."""

from __future__ import annotations

import re

import pytest

from airflow_provider_sib.sandbox import faults
from airflow_provider_sib.sandbox.faults import KINDS, fault_from, strike
from airflow_provider_sib.sandbox.state import OPERATIONS


def struck(values, calls):
    """Tell for each call whether the fault struck."""
    inforce = [fault_from(values, OPERATIONS)]
    return [strike(inforce, operation).kind is not None for operation in calls]


GET, SEND = "get_message", "send_message"


@pytest.mark.parametrize(
    ("when", "calls", "expected"),
    [
        ({}, [GET, SEND, GET], [True, True, True]),
        ({"times": 2}, [GET, SEND, GET], [True, True, False]),
        ({"operation": SEND}, [GET, SEND, GET], [False, True, False]),
        ({"after": 2, "times": 1}, [GET] * 4, [False, False, True, False]),
        ({"after": 1, "operation": SEND}, [GET, SEND, GET, SEND], [False, False, False, True]),
        ({"share": 0}, [GET] * 3, [False] * 3),
    ],
)
def test_a_fault_strikes_when_it_was_told_to(when, calls, expected):
    assert struck({"kind": "garbage", **when}, calls) == expected


def test_a_share_is_drawn_from_its_seed():
    first = struck({"kind": "garbage", "share": 0.3, "seed": 5}, [GET] * 1000)
    assert first == struck({"kind": "garbage", "share": 0.3, "seed": 5}, [GET] * 1000)
    assert first != struck({"kind": "garbage", "share": 0.3, "seed": 6}, [GET] * 1000)
    assert 250 < sum(first) < 350


def test_some_faults_add_up_and_of_the_others_the_first_wins_without_using_up_the_second():
    inforce = [
        fault_from(values, OPERATIONS)
        for values in (
            {"kind": "latency", "seconds": 1},
            {"kind": "latency", "seconds": 0.5},
            {"kind": "extra_fields"},
            {"kind": "no_rate_headers"},
            {"kind": "garbage", "times": 1},
            {"kind": "error_html", "times": 1},
        )
    ]
    both = [strike(inforce, GET) for _ in range(3)]
    assert [meets.kind for meets in both] == ["garbage", "error_html", None]
    assert {(meets.latency_seconds, meets.extra_fields, meets.no_rate_headers) for meets in both} == {
        (1.5, True, True)
    }
    assert [fault.kind for fault in inforce] == ["latency", "latency", "extra_fields", "no_rate_headers"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "kind must be one of latency, "),
        ({"kind": "fire"}, "it is 'fire'."),
        ({"kind": ["latency"]}, "kind must be one of"),
        (
            {"kind": "garbage", "status": 500},
            "The fault garbage has no parameter status; it has store, times, ",
        ),
        ({"kind": "garbage", "operation": "send"}, "operation must be one of delete_message, "),
        ({"kind": "garbage", "times": 0}, "times must be 1 or more; it is 0."),
        ({"kind": "garbage", "after": "1"}, "after must be a whole number; it is '1'."),
        ({"kind": "garbage", "share": 1.5}, "share must be a number from 0 to 1; it is 1.5."),
        ({"kind": "garbage", "store": 1}, "store must be true or false; it is 1."),
        ({"kind": "latency", "seconds": -1}, "seconds must be a number from 0 to inf; it is -1."),
        ({"kind": "error_json", "status": 200}, "status must be 400 or more and at most 599; it is 200."),
    ],
)
def test_a_wrong_fault_is_refused_by_name(values, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        fault_from(values, OPERATIONS)


def test_the_table_in_the_docs_has_every_kind():
    table = (faults.__doc__ or "").split("=====\n", 2)[2]
    assert re.findall(r"^([a-z_]+) ", table, re.MULTILINE)[: len(KINDS)] == list(KINDS)
