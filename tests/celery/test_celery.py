"""A campaign of 2,000 on CeleryExecutor, whose worker, triggerer and ledger fail while it is sent, reaches everybody.

What `scripts/on_celery.py` starts is real: Airflow with PostgreSQL, Redis and two workers, the sandbox, and a server
for the ledger. What the sandbox received is counted here anew.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parent.parent.parent
SCRIPT = REPOSITORY / "scripts" / "on_celery.py"
HOME = REPOSITORY / ".celery"
VISITORS = {f"visitor-{number:04}" for number in range(2000)}
IN_FLIGHT = 8
KILLED_SENDERS = 1


def left():
    """List the processes that carry the mark of one of the script's machines: a variable that names a place there."""
    mark = f"={HOME}/".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes():
                found.append((folder.name, (folder / "cmdline").read_bytes()))
        except OSError:  # it has ended, or is another user's
            continue
    return found


@pytest.fixture(scope="module")
def ended():
    """Run the script to its end; its output is shown, for it takes minutes."""
    with subprocess.Popen([sys.executable, str(SCRIPT)], start_new_session=True) as script:
        try:
            yield script.wait(3600)
        finally:
            script.terminate()


@pytest.fixture(scope="module")
def got(ended):
    """Count the messages that each visitor got, by the sandbox."""
    assert ended == 0
    return Counter(message["visitorId"] for message in json.loads((HOME / "messages.json").read_text()))


@pytest.fixture(scope="module")
def deliveries(ended):
    """Read the state of each delivery, by the ledger."""
    with (HOME / "deliveries.csv").open(newline="") as file:
        return {row["visitor_id"]: row["state"] for row in csv.DictReader(file)}


def test_nobody_is_written_to_twice(got):
    assert set(got.values()) == {1}


def test_nobody_is_lost(got, deliveries):
    doubts = {visitor for visitor, state in deliveries.items() if state == "in_doubt"}
    assert deliveries.keys() == VISITORS
    assert set(deliveries.values()) <= {"sent", "in_doubt"}
    assert got.keys() | doubts == VISITORS


def test_a_kill_leaves_no_more_doubts_than_were_in_flight(deliveries):
    assert Counter(deliveries.values())["in_doubt"] <= KILLED_SENDERS * IN_FLIGHT


def test_what_was_to_fail_did_and_the_run_was_retried_and_deferred(ended):
    table = json.loads((HOME / "table.json").read_text())
    assert table["kills"] == 3
    assert table["retries"] >= 1
    assert table["deferrals"] >= 1


def test_no_process_is_left(ended):
    assert left() == []


def test_told_to_end_it_leaves_no_process(ended):
    with subprocess.Popen([sys.executable, str(SCRIPT)], start_new_session=True) as script:
        until = time.monotonic() + 600
        while b"worker" not in b"".join(command for _, command in left()):
            assert script.poll() is None
            assert time.monotonic() < until
            time.sleep(0.5)  # between two looks
        os.kill(script.pid, signal.SIGINT)
        assert script.wait(120) == 128 + signal.SIGINT
    assert left() == []
