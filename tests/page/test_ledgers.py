"""The ledger as an API server meets it: missing, another one, an older copy, unreachable; and never made or pinned."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from contextlib import ExitStack, closing

import pytest

from airflow_provider_sib.campaign.ledger import Text
from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from airflow_provider_sib.hooks.campaign import LedgerPlace, Pin
from airflow_provider_sib.page.ledgers import (
    FAILED_SECONDS,
    KEEP_SECONDS,
    OPENING_SECONDS,
    Shelf,
    UnknownLedger,
    Unreachable,
)
from tests.campaign.conftest import make_database

HERE = LedgerPlace(None)


class Clock:
    seconds = 100.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def shelf(campaigns, clock):
    """Give a shelf in an Airflow that has never sent."""
    made = Shelf(clock=clock)
    yield made
    for held in made._held.values():
        if held.hook is not None:
            held.hook.close()


@pytest.fixture
def file(shelf, tmp_path):
    return tmp_path / "sib_ledger.db"


def opened(shelf, conn_id=None):
    with shelf.opened(conn_id) as hook:
        return hook.ledger.identity()


def refusal(shelf, conn_id=None):
    with pytest.raises(Unreachable) as caught, shelf.opened(conn_id):
        pass
    return caught.value


def make(file):
    ledger = SqlLedger(f"sqlite:///{file}")
    identity = ledger.identity()
    ledger.close()
    return identity


def test_a_ledger_that_is_not_there_is_said_to_be_missing_and_is_not_made(shelf, file):
    problem = refusal(shelf)
    assert problem.title == "There is no ledger here yet"
    assert str(file) in problem.detail
    assert socket.gethostname() in problem.detail
    assert not file.exists()


def test_looking_pins_nothing(shelf, file):
    make(file)
    opened(shelf)
    assert Pin.read(HERE) is None


def test_a_ledger_that_was_missing_is_found_when_it_comes(shelf, file, clock):
    refusal(shelf)
    identity = make(file)
    clock.seconds += FAILED_SECONDS
    assert opened(shelf).ledger_id == identity.ledger_id


def test_another_file_in_its_place_is_noticed_at_once(shelf, file):
    first = make(file)
    assert opened(shelf).ledger_id == first.ledger_id
    for old in file.parent.glob("sib_ledger.db*"):
        old.rename(old.with_name(f"old-{old.name}"))
    second = make(file)
    assert opened(shelf).ledger_id == second.ledger_id != first.ledger_id


def test_another_ledger_than_the_tasks_is_refused_with_the_way_out(shelf, file):
    make(file)
    Pin("00000000-0000-0000-0000-000000000000", 0).write(HERE)
    problem = refusal(shelf)
    assert problem.title == "This ledger can't be used"
    assert "ledger adopt" in problem.detail


def test_an_older_copy_is_noticed_when_the_ledger_is_opened_anew(shelf, file, clock):
    identity = make(file)
    opened(shelf)
    Pin(identity.ledger_id, 7).write(HERE)
    clock.seconds += KEEP_SECONDS
    assert "older copy" in refusal(shelf).detail


def test_a_database_that_is_down_is_told_by_its_connection(shelf, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv(
            "AIRFLOW_CONN_LEDGER", f"postgres://ann:s3cret@127.0.0.1:{nobody.getsockname()[1]}/l"
        )
        monkeypatch.setenv("AIRFLOW__SIB__LEDGER_CONN_ID", "ledger")
        problem = refusal(shelf)
    assert problem.title == "The ledger's database does not answer"
    assert any("'ledger'" in remedy for remedy in problem.remedies)
    assert "s3cret" not in problem.detail


@pytest.fixture
def lead_to(shelf, monkeypatch):
    """Let a connection lead to a ledger on a database server, in some way that is not the right one."""
    with ExitStack() as made:

        def _lead_to(kind, *, rights=None, **changed):
            """Make a ledger and the connection.

            :param rights: in the ledger's database, of a login that is made for this; None: the right login.
            :param changed: fields of the connection that differ from the right ones.
            """
            database, engine, drop = make_database(kind)
            made.callback(engine.dispose)
            conn = made.enter_context(engine.connect())
            made.callback(conn.exec_driver_sql, drop)
            SqlLedger(database.url).close()
            connection = {
                "conn_type": "postgres" if kind == "postgresql" else "mysql",
                "host": database.url.host,
                "port": database.url.port,
                "login": database.url.username,
                "password": database.url.password,
                "schema": database.url.database,
                "extra": json.dumps(dict(database.url.query)),
            }
            if rights is not None:
                name = f"sib_stranger_{os.getpid()}"
                if kind == "postgresql":
                    place = f"SCHEMA {database.url.query['options'].partition('=')[2]}"
                    conn.exec_driver_sql(f"CREATE ROLE {name} LOGIN")
                    made.callback(conn.exec_driver_sql, f"DROP OWNED BY {name}; DROP ROLE {name}")
                else:
                    place = f"{database.url.database}.*"
                    conn.exec_driver_sql(f"CREATE USER {name} IDENTIFIED BY 's3cret'")
                    made.callback(conn.exec_driver_sql, f"DROP USER {name}")
                for right in rights:
                    conn.exec_driver_sql(f"GRANT {right} ON {place} TO {name}")
                changed = {"login": name, "password": "s3cret"}
            monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps(connection | changed))
            monkeypatch.setenv("AIRFLOW__SIB__LEDGER_CONN_ID", "ledger")

        yield _lead_to


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("postgresql", {"login": "nobody_here"}),
        ("postgresql", {"schema": "nothing_here"}),
        ("postgresql", {"rights": ["USAGE"]}),
        ("mariadb", {"login": "nobody_here"}),
        ("mariadb", {"login": "nobody_here", "password": "s3cret"}),
        ("mariadb", {"password": "s3cret"}),
        ("mariadb", {"schema": "nothing_here"}),
        ("mariadb", {"rights": []}),
        ("mariadb", {"rights": ["DELETE"]}),
    ],
    ids=str,
)
def test_a_database_that_refuses_is_told_with_what_to_mend_in_its_connection(shelf, lead_to, kind, wrong):
    lead_to(kind, **wrong)
    problem = refusal(shelf)
    assert problem.title == "The ledger's database refuses the connection"
    assert "login, password and schema of connection 'ledger'" in problem.remedies[0]
    assert "s3cret" not in problem.detail


def test_a_missing_driver_is_told_with_what_to_install(shelf, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", "postgres://ann@db.example/ledgers")
    monkeypatch.setenv("AIRFLOW__SIB__LEDGER_CONN_ID", "ledger")
    assert "install airflow-provider-sib[postgres]" in refusal(shelf).detail


def test_a_connection_that_is_not_defined_is_told_by_its_name(shelf, monkeypatch):
    monkeypatch.setenv("AIRFLOW__SIB__LEDGER_CONN_ID", "nowhere")
    problem = refusal(shelf)
    assert problem.title == "The ledger's connection can't be read"
    assert any("'nowhere'" in remedy for remedy in problem.remedies)


def test_a_server_without_a_ledger_gets_no_tables(shelf, monkeypatch, tmp_path):
    database = tmp_path / "other.db"
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps({"conn_type": "sqlite", "host": str(database)}))
    monkeypatch.setenv("AIRFLOW__SIB__LEDGER_CONN_ID", "ledger")
    assert refusal(shelf).title == "There is no ledger in this database yet"
    assert not database.exists()


def test_of_other_connections_only_those_that_tasks_have_sent_with_are_opened(shelf, monkeypatch, tmp_path):
    monkeypatch.setenv(
        "AIRFLOW_CONN_LEDGER", json.dumps({"conn_type": "sqlite", "host": f"{tmp_path}/other.db"})
    )
    identity = make(tmp_path / "other.db")
    with pytest.raises(UnknownLedger), shelf.opened("ledger"):
        pass
    Pin(identity.ledger_id, 0).write(LedgerPlace("ledger"))
    assert opened(shelf, "ledger").ledger_id == identity.ledger_id


def test_campaigns_are_shown_from_the_ledger_that_is_held_open(shelf, file):
    ledger = SqlLedger(f"sqlite:///{file}")
    ledger.open_campaign("c", binding={}, each_run=False, text=Text("t", {}), settings={})
    ledger.close()
    with shelf.opened(None) as hook:
        assert [campaign.campaign_id for campaign in hook.list()] == ["c"]


def test_a_database_that_is_silent_stops_no_other_ledgers_page_and_its_own_only_briefly(
    shelf, file, monkeypatch
):
    identity = make(file)
    Pin(identity.ledger_id, 0).write(LedgerPlace("silent"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AIRFLOW_CONN_SILENT", f"postgres://ann@127.0.0.1:{silent.getsockname()[1]}/l")
        first = threading.Thread(target=refusal, args=(shelf, "silent"))
        first.start()
        with closing(silent.accept()[0]):
            began = time.monotonic()
            assert opened(shelf).ledger_id == identity.ledger_id
            assert refusal(shelf, "silent").title == "The ledger's database does not answer"
            assert time.monotonic() - began < 5 * OPENING_SECONDS
    first.join()


def test_a_ledger_whose_connections_all_wait_is_said_not_to_answer(shelf, file):
    make(file)

    def ask_with_all_of_them():
        with shelf.opened(None) as hook, ExitStack() as held:
            engine = hook.ledger._database.engine
            engine.pool._timeout = 0.01
            while True:
                held.enter_context(engine.connect())

    with pytest.raises(Unreachable) as caught:
        ask_with_all_of_them()
    assert caught.value.title == "The ledger's database does not answer"
    assert opened(shelf)
