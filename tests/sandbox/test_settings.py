"""The switches: what is written about them is true, and what is wrong is refused by name."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import pytest

from airflow_provider_sib.sandbox import state
from airflow_provider_sib.sandbox.settings import Settings, hints, parsed


def test_the_table_in_the_docs_has_every_switch_with_its_default():
    rows = re.findall(r"^(\w+) {2,}(\S.*?)  +\S", (state.__doc__ or "").split("=====\n", 2)[2], re.MULTILINE)
    assert [(name, json.loads(default)) for name, default in rows] == [
        (field.name, field.default) for field in fields(Settings)
    ]


@pytest.mark.parametrize(
    ("switches", "sentence"),
    [
        ({"quota": "many"}, "quota must be a whole number; it is 'many'."),
        ({"quota": True}, "quota must be a whole number; it is True."),
        ({"quota": -1}, "quota must be 0 or more; it is -1."),
        ({"hour_seconds": 0}, "hour_seconds must be more than 0; it is 0."),
        ({"max_text_length": 0}, "max_text_length must be 1 or more, or null; it is 0."),
        ({"rate_headers": 1}, "rate_headers must be true or false; it is 1."),
        ({"unknown_agent": "maybe"}, 'unknown_agent must be "accept" or "reject"; it is \'maybe\'.'),
        ({"second_delete": 200}, "second_delete must be 404 or 204; it is 200."),
        ({"not_found_code": 5}, "not_found_code must be a text or null; it is 5."),
        ({"hour_seconds": "1h"}, "hour_seconds must be a number; it is '1h'."),
    ],
)
def test_a_wrong_value_is_refused_by_name(switches, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Settings().changed(switches)


def test_an_unknown_switch_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"no switch speed; it has quota, hour_seconds, "):
        Settings().changed({"speed": 5})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("quota", "7", 7),
        ("hour_seconds", "2.5", 2.5),
        ("rate_headers", "false", False),
        ("max_text_length", "null", None),
        ("not_found_code", "null", None),
        ("unknown_agent", "accept", "accept"),
        ("second_delete", "204", 204),
        ("api_key", "12345", "12345"),
        ("too_many_requests_body", '{"message": "slow"}', {"message": "slow"}),
        ("seconds", "0.5", 0.5),
        ("operation", "get_account", "get_account"),
    ],
)
def test_values_are_read_from_a_command_line(name, text, value):
    assert parsed(name, text) == value
    if name in hints():
        Settings().changed({name: value})
