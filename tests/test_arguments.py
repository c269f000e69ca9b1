"""Operators and sensors read truth values and numbers strictly, also where they are texts."""

from __future__ import annotations

import math

import pytest

from airflow_provider_sib.arguments import boolean, number, whole
from airflow_provider_sib.operators import (
    DeleteMessageOperator,
    SendCampaignOperator,
    UpdateCampaignOperator,
    WithdrawCampaignOperator,
)
from airflow_provider_sib.sensors import CampaignSensor, MessageSensor

CAMPAIGN = {"task_id": "t", "campaign_id": "release"}
SEND = CAMPAIGN | {"audience": "visitors.csv", "text": "Hi"}
MESSAGE = {"task_id": "t", "message_id": "m"}


@pytest.mark.parametrize(
    ("kind", "given", "name"),
    [
        (SendCampaignOperator, SEND, "deferrable"),
        (UpdateCampaignOperator, CAMPAIGN | {"text": "Hi"}, "deferrable"),
        (WithdrawCampaignOperator, CAMPAIGN, "deferrable"),
        (WithdrawCampaignOperator, CAMPAIGN, "verify"),
        (MessageSensor, MESSAGE, "deferrable"),
        (DeleteMessageOperator, MESSAGE, "missing_ok"),
    ],
)
def test_the_text_false_is_false_and_another_is_refused(kind, given, name):
    assert getattr(kind(**given, **{name: "False"}), name) is False
    with pytest.raises(ValueError, match=f"{name} must be True or False, not 'no'"):
        kind(**given, **{name: "no"})


@pytest.mark.parametrize(
    ("kind", "given", "name", "text", "read", "wrong"),
    [
        (SendCampaignOperator, SEND, "max_bad_rows", "2", 2, "1.9"),
        (SendCampaignOperator, SEND, "max_failure_share", "0.5", 0.5, "1.1"),
        (CampaignSensor, CAMPAIGN, "settled_share", "0.9", 0.9, "0"),
    ],
)
def test_a_number_is_read_from_a_text_and_a_wrong_one_is_refused(kind, given, name, text, read, wrong):
    assert getattr(kind(**given, **{name: text}), name) == read
    with pytest.raises(ValueError, match=f"{name} must be a "):
        kind(**given, **{name: wrong})


@pytest.mark.parametrize("wrong", [None, True, "many", "", math.nan, math.inf, 1.5, -1])
def test_what_is_no_whole_number_is_named_as_it_was_given(wrong):
    with pytest.raises(ValueError, match=r"calls must be a .*, not "):
        whole("calls", wrong, least=0)


def test_bounds_are_told():
    assert (boolean("on", " TRUE "), number("share", "1", above=0, most=1), whole("n", 3.0, least=3)) == (
        True,
        1,
        3,
    )
    with pytest.raises(ValueError, match="share must be a number above 0 and at most 1, not 0"):
        number("share", 0, above=0, most=1)
