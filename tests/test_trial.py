"""The parts of a trial: its visitors, its ports, its configuration, and that it leaves no process behind.

As a whole it is run by `make demo ONCE=1` and by the tests in the browser.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import sys
import time
from configparser import ConfigParser
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

import demo
import trial
from airflow_provider_sib.api.client import ConversationsClient

# A process that doesn't heed SIGTERM, and starts one in a session of its own that doesn't either.
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def visitors():
    return trial.visitors()


@pytest.fixture
def processes(tmp_path):
    started = trial.Processes(str(tmp_path), tmp_path)
    yield started
    started.end(grace_seconds=0)


def runs(pid):
    """Tell whether a process runs; one that is dead and waits for its parent doesn't."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_for(condition):
    ended_at = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < ended_at
        time.sleep(0.01)
    return found


class TestVisitors:
    def test_are_sixty_people_at_least_each_with_an_id_of_their_own(self, visitors):
        ids = [visitor["visitor_id"] for visitor in visitors]
        assert len(ids) >= 60
        assert len(set(ids)) == len(ids)
        assert [one for one in ids if not re.fullmatch("[A-Za-z0-9]{32}", one)] == []

    def test_have_a_name_a_plan_and_a_time_zone_that_is_known(self, visitors):
        for visitor in visitors:
            assert visitor["first_name"].strip()
            assert visitor["plan"] in ("free", "pro", "team")
            ZoneInfo(visitor["timezone"])
        assert len({visitor["timezone"] for visitor in visitors}) >= 40

    def test_speak_many_languages_some_with_a_region(self, visitors):
        locales = {visitor["locale"] for visitor in visitors}
        assert {"en", "fr", "fr-CA", "de", "es", "pt-BR", "ja"} <= locales
        assert [one for one in locales if not re.fullmatch("[a-z]{2}(-[A-Z]{2})?", one)] == []


def test_free_ports_are_different_and_can_be_had():
    ports = trial.free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        with socket.socket() as one:
            one.bind(("127.0.0.1", port))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc")
class TestEnding:
    def start(self, processes, tmp_path):
        parent = processes.start("stubborn", [sys.executable, "-c", STUBBORN], dict(os.environ))
        log = tmp_path / "stubborn.log"
        return parent, int(wait_for(lambda: log.read_text().endswith("\n") and log.read_text()))

    def test_ends_what_heeds_no_sigterm_and_what_left_its_process_group(self, processes, tmp_path):
        parent, child = self.start(processes, tmp_path)
        assert {parent.pid, child} <= processes.left()
        processes.end(grace_seconds=0.1)
        assert processes.left() == set()
        assert not runs(parent.pid)
        assert not runs(child)

    def test_ends_what_has_lost_its_parent(self, processes, tmp_path):
        parent, child = self.start(processes, tmp_path)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert processes.left() == {child}
        processes.end(grace_seconds=0.1)
        assert not runs(child)

    def test_ends_what_an_earlier_one_left_in_the_same_folder_and_no_other(self, processes, tmp_path):
        parent, child = self.start(processes, tmp_path)
        trial.Processes(f"{tmp_path}-other", tmp_path).end(grace_seconds=0)
        assert runs(child)
        trial.Processes(str(tmp_path), tmp_path).end(grace_seconds=0)
        parent.wait()
        assert not runs(child)

    def test_waits_no_longer_than_needed(self, processes):
        processes.start("quick", [sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ))
        began = time.monotonic()
        processes.end(grace_seconds=30)
        assert time.monotonic() - began < 25


def test_configuration_is_for_its_owner_only_and_survives_a_percent_sign_in_the_path(tmp_path):
    home = tmp_path / "100%"
    home.mkdir()
    trial.write_configuration(home=home, airflow=1, log_servers=(2, 3))
    assert stat.S_IMODE((home / "airflow.cfg").stat().st_mode) == 0o600
    read = ConfigParser()
    read.read(home / "airflow.cfg")
    assert read["database"]["sql_alchemy_conn"] == f"sqlite:///{home}/airflow.db"
    assert read["api"]["port"] == "1"


def test_the_callers_own_airflow_settings_and_proxies_do_not_reach_the_trial(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW_CONN_SIB_CONVERSATIONS_DEFAULT", "http://elsewhere")
    monkeypatch.setenv("No_Proxy", "elsewhere")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("LANG", "C.UTF-8")
    given = trial.environment(tmp_path)
    assert {name for name in given if name.startswith("AIRFLOW")} == {"AIRFLOW_HOME"}
    assert {"No_Proxy", "PYTHONDONTWRITEBYTECODE"} & given.keys() == set()
    assert given["no_proxy"] == given["NO_PROXY"] == "127.0.0.1,localhost"
    assert given["LANG"] == "C.UTF-8"


def task_line(level, event, **more):
    return json.dumps({"level": level, "event": event, **more})


FAILED = task_line(
    "error", "Task failed", error_detail=[{"exc_type": "Unauthorized", "exc_value": "Key not found"}]
)


@pytest.mark.parametrize(
    ("lines", "shown", "not_shown"),
    [
        pytest.param([f"line {n}" for n in range(99)], "line 98", "line 5", id="no error: the last lines"),
        pytest.param(
            ["x"] * 50 + ["sqlite3.OperationalError: locked"] + ["y"] * 50, "locked", "z", id="the error"
        ),
        pytest.param(
            [task_line("info", "hello"), FAILED],
            "error: Task failed Unauthorized: Key not found",
            "{",
            id="json",
        ),
        pytest.param([], "", "x", id="nothing"),
    ],
)
def test_of_a_log_the_lines_that_tell_what_went_wrong_are_shown(tmp_path, lines, shown, not_shown):
    log = tmp_path / "a.log"
    log.write_text("\n".join(lines))
    text = trial.last_lines(log)
    assert shown in text
    assert not_shown not in text
    assert len(text.splitlines()) <= trial.ERROR_LINES


def test_a_demo_without_a_deferral_fails(tmp_path, monkeypatch):
    """The one process it needs for that is the sandbox, to which everybody's message is sent without an Airflow."""
    monkeypatch.setattr(demo, "HOME", tmp_path)
    shown = demo.Demo(quota=1000, hour_seconds=3600)
    with shown.trial:
        shown.trial.start("sandbox")
        shown.trial.wait("sandbox", 60, lambda: trial.reached(shown.sandbox.summary) is not None)
        with ConversationsClient(api_key=trial.API_KEY, base_url=f"{shown.sandbox.page}v3") as client:
            for visitor in trial.visitors():
                client.send_pushed_message(visitor["visitor_id"], "Hi!")
        with pytest.raises(trial.TrialError, match="never deferred"):
            shown.show_what_was_sent()
        log = tmp_path / "logs" / f"dag_id={demo.DAG_ID}" / "run_id=r" / "task_id=announce" / "attempt=1.log"
        log.parent.mkdir(parents=True)
        event = "Campaign release-2.0 waits for quota: deferring until 2026-11-29T09:54:39+00:00."
        log.write_text(task_line("info", event) + "\n")
        shown.show_what_was_sent()
