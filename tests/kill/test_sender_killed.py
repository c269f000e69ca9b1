"""A sender is hit by SIGKILL in mid-sending, again and again: nobody twice, nobody lost, each doubt by name."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_provider_sib.campaign.ledger import State
from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from airflow_provider_sib.sandbox import Sandbox

from .sender import CAMPAIGN, MAX_IN_FLIGHT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("SIB_KILLS", "20"))
VISITORS = 20_000


@contextmanager
def killed(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Kill a process at the end, whatever happened."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_killed_at_random_times_in_mid_sending(ledger_url):
    choose = random.Random(KILLS)
    with Sandbox(quota=10_000_000) as sandbox:

        def start() -> subprocess.Popen[bytes]:
            script = Path(__file__).with_name("sender.py")
            arguments = [sandbox.base_url, sandbox.api_key, ledger_url, str(VISITORS)]
            return subprocess.Popen([sys.executable, str(script), *arguments])

        def sent() -> int:
            return sandbox.counts()["messages"]

        # Spread over the campaign, so that each kill finds a sender at work.
        kills = 0
        for kill in range(KILLS):
            goal = (kill + choose.random()) * VISITORS * 0.95 / KILLS
            with killed(start()) as process:
                before, deadline = sent(), time.monotonic() + 600
                while process.poll() is None and (sent() <= before or sent() < goal):
                    assert time.monotonic() < deadline
                    time.sleep(
                        choose.random() / 200
                    )  # between two looks; at random, so that no step is spared
            kills += process.returncode < 0
        with killed(start()) as last:
            assert last.wait(900) == 0
        reached = Counter(message["visitorId"] for message in sandbox.messages())

    ledger = SqlLedger(ledger_url)
    deliveries = {delivery.visitor_id: delivery for delivery in ledger.deliveries(CAMPAIGN)}
    ledger.close()
    doubts = {visitor for visitor, delivery in deliveries.items() if delivery.state is State.IN_DOUBT}
    assert kills >= KILLS * 0.9
    assert max(reached.values()) == 1
    assert len(deliveries) == VISITORS
    assert {delivery.state for delivery in deliveries.values()} <= {State.SENT, State.IN_DOUBT}
    assert reached.keys() | doubts == deliveries.keys()
    assert len(doubts) <= kills * MAX_IN_FLIGHT
    print(f"{kills} kills, {len(reached):,} of {VISITORS:,} reached, {len(doubts)} in doubt, 0 twice, 0 lost")
