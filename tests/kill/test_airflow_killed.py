"""An Airflow that is killed in the middle of a campaign and started again ends it as if nothing had happened.

It is the demo's: a real one, in processes of its own, against the sandbox; the demo starts it again.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from airflow_provider_sib.campaign.ledger import LedgerError
from airflow_provider_sib.campaign.report import report
from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from demo import CAMPAIGN_ID, HOME
from trial import REPOSITORY, Processes, call

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc"),
]

VISITORS = 64
IN_FLIGHT = 8


def wait_for(condition, *, seconds, demo):
    ended_at = time.monotonic() + seconds
    while not (found := condition()):
        assert demo.poll() is None, "the demo has ended"
        assert time.monotonic() < ended_at, f"not within {seconds} s"
        time.sleep(0.02)  # between two looks
    return found


@contextmanager
def running_demo(log):
    """Run the demo to its end, and leave none of its processes."""
    with log.open("w") as output:
        demo = subprocess.Popen(
            [sys.executable, REPOSITORY / "scripts" / "demo.py", "--once"],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield demo
    finally:
        demo.terminate()
        demo.wait(60)


def answer_slowly(log, demo):
    """Let the sandbox take a second for each answer, so that sending takes long enough to be hit."""
    address = re.compile(r"sandbox .*(http://\S+/)$", re.MULTILINE)
    found = wait_for(lambda: address.search(log.read_text()), seconds=60, demo=demo)
    call("POST", f"{found[1]}_sandbox/faults", {"kind": "latency", "seconds": 1})


def is_sending():
    """Tell whether some messages were sent and some are in flight."""
    if not (HOME / "sib_ledger.db").exists():
        return False
    try:
        with closing(SqlLedger(f"sqlite:///{HOME / 'sib_ledger.db'}")) as ledger:
            found = report(ledger, CAMPAIGN_ID)
    except LedgerError:
        return False
    return found.sent >= IN_FLIGHT and found.sending > 0


def is_deferred():
    """Tell whether Airflow has deferred the task."""
    try:
        with closing(sqlite3.connect(f"file:{HOME / 'airflow.db'}?mode=ro", uri=True)) as database:
            states = database.execute("SELECT state FROM task_instance").fetchall()
    except sqlite3.Error:
        return False
    return states == [("deferred",)]


def command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def airflow_alone(demo):
    """Find the process that is Airflow as it was started; the demo ends its group, and the task is in another."""
    children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if b"standalone" in command_of(pid)]


def all_but_the_sandbox(demo):
    """Find all that a machine without power takes down: Airflow and its tasks, first what would start others."""
    pids = Processes(str(HOME), HOME / "logs").left()
    mine = [pid for pid in pids if b"airflow_provider_sib.sandbox" not in command_of(pid)]
    return sorted(mine, key=lambda pid: pid not in airflow_alone(demo))


@pytest.mark.parametrize(
    ("moment", "hit", "most_doubts"),
    [
        pytest.param(is_deferred, airflow_alone, 0, id="Airflow, while the task is deferred"),
        pytest.param(is_sending, airflow_alone, 0, id="Airflow, while the task sends"),
        pytest.param(is_sending, all_but_the_sandbox, IN_FLIGHT, id="Airflow and the task that sends"),
    ],
)
def test_everybody_is_reached_once_and_the_run_is_green_when(moment, hit, most_doubts, tmp_path):
    log = tmp_path / "demo.log"
    with running_demo(log) as demo:
        answer_slowly(log, demo)
        wait_for(moment, seconds=300, demo=demo)
        for pid in hit(demo):
            os.kill(pid, signal.SIGKILL)
        status = demo.wait(600)
    shown = log.read_text()
    assert status == 0, shown
    assert shown.count("Airflow was killed (signal 9); starting it again.") == 1
    names, numbers = shown.split("\n\n")[-2].splitlines()
    table = dict(zip(re.split(r"\s{2,}", names.strip()), map(int, numbers.split()), strict=True))
    assert (table["visitors"], table["messages"], table["twice"]) == (VISITORS, VISITORS, 0), shown
    assert table["in doubt"] <= most_doubts, shown
