"""A sender is suspended for longer than its lease while another one finishes, and wakes: nobody twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from airflow_provider_sib.campaign.ledger import CampaignStatus, State
from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from airflow_provider_sib.sandbox import Sandbox

from .sender import CAMPAIGN, MAX_IN_FLIGHT

pytestmark = pytest.mark.slow

VISITORS = 2_000


def test_a_sender_that_wakes_after_its_lease_writes_to_nobody_again(ledger_url):
    script = Path(__file__).with_name("sender.py")
    with Sandbox(quota=10_000_000) as sandbox:
        # Slow enough to be hit with requests in flight.
        sandbox.fault("latency", seconds=0.05)
        arguments = [
            sys.executable,
            str(script),
            sandbox.base_url,
            sandbox.api_key,
            ledger_url,
            str(VISITORS),
        ]
        with subprocess.Popen(arguments) as suspended:
            deadline = time.monotonic() + 300
            while sandbox.counts()["messages"] < VISITORS / 10:
                assert time.monotonic() < deadline
                time.sleep(0.003)  # between two looks
            suspended.send_signal(signal.SIGSTOP)
            try:
                sandbox.clear_faults()
                # It waits for the other's lease, and reports what was in flight as doubts.
                assert subprocess.run(arguments, timeout=600, check=False).returncode == 0
                ledger = SqlLedger(ledger_url)
                before = ledger.counts(CAMPAIGN).by_state
            finally:
                suspended.send_signal(signal.SIGCONT)
            assert suspended.wait(300) == 0
        reached = Counter(message["visitorId"] for message in sandbox.messages())
    deliveries = list(ledger.deliveries(CAMPAIGN))
    status = ledger.campaign(CAMPAIGN).status
    ledger.close()
    assert 0 < before[State.IN_DOUBT] <= MAX_IN_FLIGHT
    assert before[State.SENT] + before[State.IN_DOUBT] == VISITORS
    assert max(reached.values()) == 1
    doubts = {delivery.visitor_id for delivery in deliveries if delivery.state is State.IN_DOUBT}
    assert {delivery.state for delivery in deliveries} <= {State.SENT, State.IN_DOUBT}
    assert len(doubts) <= before[State.IN_DOUBT]
    assert reached.keys() | doubts == {delivery.visitor_id for delivery in deliveries}
    assert status is CampaignStatus.FINISHED
