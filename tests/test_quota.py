"""Single calls and campaigns keep to one quota together, through the ledger."""

from __future__ import annotations

import pytest

from airflow_provider_sib.api.errors import InvalidRequest, RateLimited, TransportError
from airflow_provider_sib.campaign.announcement import Announcement, Enroller
from airflow_provider_sib.campaign.audience import Row
from airflow_provider_sib.campaign.engine import Rules, SendEngine, enrol, open_campaign
from airflow_provider_sib.campaign.pacing import Rate
from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from airflow_provider_sib.delivery import Courier
from airflow_provider_sib.hooks import SibConversationsHook

VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"
CONN = "sib_conversations_default"


@pytest.fixture
def ledger(monkeypatch, tmp_path, sib_sandbox):
    """Give the ledger that a campaign has left in this Airflow's home."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    ledger = SqlLedger(f"sqlite:///{tmp_path}/sib_ledger.db")
    yield ledger
    ledger.close()


def call(times=1, wait=0.0):
    with SibConversationsHook(rate_limit_wait_seconds=wait) as hook:
        for _ in range(times):
            hook.send_pushed_message(VISITOR, "Hello")


def deliver(ledger, *, visitors, reserve, defer_after_seconds=0.0):
    """Run a campaign until it has to wait."""
    announcement = Announcement("Hi")
    open_campaign(ledger, "c", binding={}, announcement=announcement)
    rows = (Row(f"visitor-{number}", {}) for number in range(visitors))
    enrol(ledger, "c", rows, Enroller("c", announcement))
    engine = SendEngine(ledger, "c", Rules(account=CONN, rate=Rate(reserve=reserve)))
    engine.begin(resumed=False)
    settings = SibConversationsHook().settings
    return Courier(
        engine, settings.async_client, max_in_flight=8, defer_after_seconds=defer_after_seconds
    ).run()


def test_what_others_have_used_is_not_asked_for(ledger, sib_sandbox):
    """The last call is refused here, without a request that Brevo would have to refuse."""
    sib_sandbox.configure(quota=3)
    call(times=3)
    with pytest.raises(RateLimited) as refused:
        call()
    assert 3590 < refused.value.reset_in <= 3603
    assert sib_sandbox.state()["requests"]["total"] == 3


def test_a_short_wait_is_waited_out_in_place(ledger, sib_sandbox):
    sib_sandbox.configure(quota=2, hour_seconds=1)
    call(times=3, wait=10)
    assert sib_sandbox.state()["quota"]["refused"] == 0
    assert len(sib_sandbox.messages()) == 3


def test_a_campaign_leaves_its_reserve_to_single_calls_and_counts_them(ledger, sib_sandbox):
    sib_sandbox.configure(quota=20)
    call(times=2)
    deliver(ledger, visitors=50, reserve=5)
    assert len(sib_sandbox.messages()) == 15
    call(times=5)
    with pytest.raises(RateLimited):
        call()
    assert sib_sandbox.state()["quota"]["refused"] == 0


def test_a_refused_call_closes_the_window_for_all(ledger, sib_sandbox):
    sib_sandbox.fault("too_many_requests_without_headers", times=1)
    with pytest.raises(RateLimited):
        call()
    with pytest.raises(RateLimited, match="there is room in"):
        call()
    assert sib_sandbox.state()["requests"]["total"] == 1


@pytest.mark.parametrize(
    ("text", "fault", "error"),
    [(" ", None, InvalidRequest), ("Hello", "hang_up_after", TransportError)],
)
def test_a_call_that_fails_gives_its_place_back(ledger, sib_sandbox, text, fault, error):
    if fault:
        sib_sandbox.fault(fault, times=1)
    with SibConversationsHook(rate_limit_wait_seconds=0) as hook, pytest.raises(error):
        hook.send_pushed_message(VISITOR, text)
    call()


def test_without_a_ledger_nothing_is_made(monkeypatch, tmp_path, sib_sandbox):
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    call()
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_does_not_answer_keeps_no_call_back(monkeypatch, sib_sandbox, logged):
    monkeypatch.setenv("AIRFLOW__SIB__LEDGER_CONN_ID", "ledger")
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", "postgres://nobody:secret-word@127.0.0.1:1/none")
    call()
    assert len(sib_sandbox.messages()) == 1
    log = logged()
    assert "the ledger does not answer" in log
    assert "secret-word" not in log
