"""A ledger whose database goes away, or its pin: what a task does that begins, ends or is deferred just then."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
import threading
import time
from contextlib import closing, suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_sib import _compat, triggers
from airflow_provider_sib._compat import AirflowFailException
from airflow_provider_sib.campaign.engine import Wait
from airflow_provider_sib.campaign.ledger import LedgerUnavailable
from airflow_provider_sib.campaign.sql_ledger import database
from airflow_provider_sib.delivery import LEDGER_PATIENCE_SECONDS
from airflow_provider_sib.hooks import CampaignHook
from airflow_provider_sib.hooks.campaign import LedgerPlace, open_ledger
from airflow_provider_sib.operators import SendCampaignOperator
from airflow_provider_sib.operators.campaign import opened
from airflow_provider_sib.triggers import CampaignTrigger

from .campaign.conftest import make_database

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferred

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLACE = LedgerPlace("ledger")


class Gate:
    """A port that leads to a server while it is open.

    Shut, it drops who is in and refuses who comes. Hushed, it keeps everybody waiting: as a server does that is
    frozen, or a proxy that has lost it.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._ends: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self._carries = threading.Event()
        self._carries.set()
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._admit, args=(self._listener,), daemon=True).start()

    def hush(self) -> None:
        self._carries.clear()

    def shut(self) -> None:
        self._carries.set()
        if self._listener is not None:
            # Only this wakes the thread that accepts.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    def _admit(self, listener: socket.socket) -> None:
        while True:
            try:
                inside, _ = listener.accept()
            except OSError:
                return
            outside = socket.create_connection(self._server)
            self._ends += [inside, outside]
            for source, target in ((inside, outside), (outside, inside)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._carries.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture(params=["postgresql", "mariadb"])
def gate(request: pytest.FixtureRequest, airflow_db: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Give the gate to an empty ledger on a real server, the Airflow connection `ledger` to it, and no pin."""
    from airflow.models import Variable

    made_database, engine, drop = make_database(request.param)
    url = made_database.url
    made = Gate(url.host or "", url.port or 0)
    connection = {
        "conn_type": {"postgresql": "postgres", "mariadb": "mysql"}[request.param],
        "login": url.username,
        "password": url.password,
        "host": "127.0.0.1",
        "port": made.port,
        "schema": url.database,
        "extra": dict(url.query),
    }
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps(connection))
    monkeypatch.setenv("AIRFLOW__SIB__LEDGER_CONN_ID", "ledger")
    made.open()
    yield made
    made.shut()
    Variable.delete(PLACE.pin_key)
    with engine.connect() as conn:
        conn.exec_driver_sql(drop)
    engine.dispose()


def send(**arguments: Any) -> SendCampaignOperator:
    rows = [{"visitor_id": f"visitor-{n}"} for n in range(10)]
    given = {"task_id": "send", "campaign_id": "release", "audience": rows, "text": "Hi!", "reserve": 0}
    return SendCampaignOperator(**given | arguments)


def execute(operator: SendCampaignOperator) -> dict[str, Any]:
    now = datetime.now(UTC)
    return operator.execute({"dag_run": SimpleNamespace(run_type="manual", logical_date=now, run_after=now)})


def without_variables(airflow_db: Path, *, there: bool = False) -> None:
    """Let Airflow fail where it is asked for a Variable, until they are there again."""
    names = ("variable", "variable_away")
    before, after = reversed(names) if there else names
    with closing(sqlite3.connect(airflow_db, timeout=30)) as conn:
        conn.execute(f"ALTER TABLE {before} RENAME TO {after}")


class TestAtItsEnd:
    @pytest.fixture(params=["its ledger", "Airflow's Variables", "a pin that can be read"])
    def come_to_an_end(self, request, gate, airflow_db, sib_sandbox):
        """Open a task of a campaign, and let it end as told once the pin can't be brought forward."""

        def _come_to_an_end(end=lambda task: None):
            with opened(
                send(),
                "release",
                sib_conn_id="sib_conversations_default",
                ledger_conn_id=None,
                deferrable=True,
            ) as task:
                match request.param:
                    case "its ledger":
                        gate.shut()
                    case "Airflow's Variables":
                        without_variables(airflow_db)
                    case _:
                        _compat.set_variable(PLACE.pin_key, "unreadable", "")
                end(task)

        yield _come_to_an_end
        if request.param == "Airflow's Variables":
            without_variables(airflow_db, there=True)

    def test_a_task_keeps_its_result_and_says_that_the_pin_stays_behind(self, come_to_an_end, logged):
        come_to_an_end()
        assert "an older copy" in logged()

    def test_a_task_fails_for_its_own_reason(self, come_to_an_end):
        def fail(_):
            raise ValueError("its own reason")

        with pytest.raises(AirflowFailException, match="its own reason"):
            come_to_an_end(fail)

    def test_a_task_is_deferred_as_it_meant_to_be(self, come_to_an_end):
        with pytest.raises(TaskDeferred) as deferred:
            come_to_an_end(lambda task: task._defer(Wait("quota", 100.0, 1_900_000_000_000), before={}))
        assert deferred.value.trigger.until == 1_900_000_000


class TestAtItsBegin:
    def test_a_known_ledger_is_waited_for(self, gate, sib_sandbox):
        assert execute(send())["totals"]["sent"] == 10
        gate.shut()
        waits = []

        def sleep(seconds):
            waits.append(seconds)
            if len(waits) == 3:
                gate.open()

        open_ledger(PLACE, to_send=True, sleep=sleep).close()
        assert len(waits) == 3

    def test_it_is_waited_for_five_minutes_and_no_longer(self, gate, sib_sandbox):
        assert execute(send())["totals"]["sent"] == 10
        gate.shut()
        waits = []
        with pytest.raises(LedgerUnavailable):
            open_ledger(PLACE, to_send=True, sleep=waits.append, clock=lambda: sum(waits))
        assert LEDGER_PATIENCE_SECONDS <= sum(waits) <= LEDGER_PATIENCE_SECONDS + 10

    def test_a_ledger_that_never_answered_is_a_mistake_and_told_at_once(self, gate, sib_sandbox):
        gate.shut()
        with pytest.raises(LedgerUnavailable):
            open_ledger(PLACE, to_send=True, sleep=pytest.fail)

    def test_who_only_looks_does_not_wait(self, gate, sib_sandbox):
        assert execute(send())["totals"]["sent"] == 10
        gate.shut()
        with pytest.raises(LedgerUnavailable):
            open_ledger(PLACE, to_send=False, sleep=pytest.fail)


class TestWhenItFallsSilent:
    """For two seconds in place of a minute; without a limit it would be for hours."""

    @pytest.fixture(autouse=True)
    def _short_limits(self, gate, monkeypatch):
        connection = json.loads(os.environ["AIRFLOW_CONN_LEDGER"])
        connection["extra"] |= {"connect_timeout": 2, "read_timeout": 2}
        monkeypatch.setattr(database, "SILENCE_SECONDS", 2.0)
        monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps(connection))

    @pytest.mark.parametrize(
        "look", [lambda ledger: ledger.now_ms(), lambda ledger: ledger.suppress(["v"], "asked")]
    )
    def test_it_counts_as_unavailable_in_time_and_is_there_again_afterwards(self, gate, airflow_db, look):
        ledger = open_ledger(PLACE, to_send=False)
        look(ledger)
        gate.hush()
        began = time.monotonic()
        for _ in range(2):  # with the connection there was, and with a new one
            with pytest.raises(LedgerUnavailable):
                look(ledger)
        assert time.monotonic() - began < 30
        gate.shut()
        gate.open()
        look(ledger)
        ledger.close()

    def test_it_is_not_waited_for_longer_to_be_opened(self, gate, airflow_db):
        open_ledger(PLACE, to_send=False).close()
        gate.hush()
        began = time.monotonic()
        with pytest.raises(LedgerUnavailable):
            open_ledger(PLACE, to_send=False)
        assert time.monotonic() - began < 30


class TestWhileItIsDeferred:
    async def test_a_trigger_that_began_in_an_outage_sees_the_status_afterwards(
        self, gate, sib_sandbox, monkeypatch
    ):
        monkeypatch.setattr(triggers, "STATUS_INTERVAL_SECONDS", 0.05)
        assert (await asyncio.to_thread(execute, send()))["totals"]["sent"] == 10
        with CampaignHook() as campaigns:
            ledger_id = campaigns.ledger.identity().ledger_id
            gate.shut()
            trigger = CampaignTrigger("release", "ledger", ledger_id, until=time.time() + 3600)
            waiting = asyncio.create_task(anext(trigger.run()))
            await asyncio.sleep(1)
            assert not waiting.done()
            gate.open()
            # Finished, which is no reason to go on waiting either.
            assert (await asyncio.wait_for(waiting, 60)).payload == {"woken_by": "status"}
