"""The notifier, as Airflow calls it: by a callback, and from a deadline alert."""

from __future__ import annotations

import json

import pytest

from airflow_provider_sib.api.errors import InvalidRequest, TransportError
from airflow_provider_sib.hooks import VisitorNotAllowed
from airflow_provider_sib.notifications import SibNotifier

VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"


def texts(sandbox):
    return [(message["visitorId"], message["text"]) for message in sandbox.messages()]


def test_a_callback_sends_what_its_templates_give(sib_sandbox):
    SibNotifier(visitor_id="{{ who }}", text="{{ run_id }} failed.")({"who": VISITOR, "run_id": "manual__1"})
    assert texts(sib_sandbox) == [(VISITOR, "manual__1 failed.")]


async def test_a_deadline_alert_sends_without_blocking(sib_sandbox):
    await SibNotifier(visitor_id=VISITOR, text="Too late.").async_notify({})
    assert texts(sib_sandbox) == [(VISITOR, "Too late.")]


def test_it_is_sent_once_even_if_the_answer_is_lost(sib_sandbox):
    sib_sandbox.fault("hang_up_after")
    with pytest.raises(TransportError):
        SibNotifier(visitor_id=VISITOR, text="Hello").notify({})
    assert len(texts(sib_sandbox)) == 1


async def test_what_is_wrong_is_raised_by_both(sib_sandbox):
    notifier = SibNotifier(visitor_id=VISITOR, text=" ")
    with pytest.raises(InvalidRequest, match="text"):
        notifier.notify({})
    with pytest.raises(InvalidRequest, match="text"):
        await notifier.async_notify({})


async def test_staging_is_guarded_in_both(monkeypatch, sib_sandbox):
    monkeypatch.setenv(
        "AIRFLOW_CONN_SIB_CONVERSATIONS_DEFAULT", json.dumps(sib_sandbox.connection(allowed_visitors="qa-*"))
    )
    notifier = SibNotifier(visitor_id=VISITOR, text="Hello")
    with pytest.raises(VisitorNotAllowed):
        notifier.notify({})
    with pytest.raises(VisitorNotAllowed):
        await notifier.async_notify({})
    assert texts(sib_sandbox) == []


async def test_the_log_names_the_message_not_the_visitor(sib_sandbox, logged):
    SibNotifier(visitor_id=VISITOR, text="A private text").notify({})
    await SibNotifier(visitor_id=VISITOR, text="A private text").async_notify({})
    log = logged()
    assert log.count("Sent pushed message") == 2
    assert VISITOR not in log
    assert "private" not in log
