"""The door to the ledger: pins, places, addresses and control, on real ledgers filled by real campaigns."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import socket
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import airflow.sdk
import pytest
from airflow.models.team import Team
from airflow.sdk import Connection
from airflow.utils.session import create_session
from sqlalchemy import delete

from airflow_provider_sib import _compat
from airflow_provider_sib._compat import AirflowFailException
from airflow_provider_sib.api.wire import Retries
from airflow_provider_sib.campaign import CampaignAudience, SqlAudience
from airflow_provider_sib.campaign.announcement import Announcement, Enroller
from airflow_provider_sib.campaign.audience import Row, read
from airflow_provider_sib.campaign.engine import (
    Done,
    Fate,
    Outcome,
    Rules,
    Send,
    SendEngine,
    Stopped,
    Wait,
    enrol,
    open_campaign,
    uptime,
)
from airflow_provider_sib.campaign.ledger import LedgerUnavailable, State, UnknownCampaign
from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from airflow_provider_sib.delivery import Courier
from airflow_provider_sib.hooks import CampaignHook, SibConversationsHook
from airflow_provider_sib.hooks.campaign import (
    EXPORT_COLUMNS,
    LedgerPlace,
    Pin,
    _url,
    connect,
    look,
    open_ledger,
    open_path,
    open_to_watch,
    pin_progress,
    tasks_run_elsewhere,
)

from .api.conftest import Peer, passed_on, self_signed, speaking_tls
from .campaign.conftest import make_database

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from airflow_provider_sib.campaign.ledger import Ledger

FILE = LedgerPlace(None)
VISITORS = [f"visitor-{number}" for number in range(12)]
TOLD, UNKNOWN, SUPPRESSED = VISITORS[:10], VISITORS[10], VISITORS[11]


def deliver(
    ledger: Ledger,
    campaign_id: str = "release",
    *,
    visitors: list[str] = VISITORS,
    resumed: bool = False,
    fraction: float = 1.0,
) -> Done | Wait | Stopped:
    """Run a campaign against the sandbox, as a task does, until it is done or has to wait."""
    settings = SibConversationsHook().settings
    announcement = Announcement("Version 2 is out, [[ visitor.name ]]!")
    open_campaign(
        ledger,
        campaign_id,
        binding={"host": settings.base_url, "connection": settings.conn_id, "once_per": '["visitor_id"]'},
        announcement=None if resumed else announcement,
        settings={"dag_id": "announce_release", "task_id": "announce"},
    )
    rows = (Row(visitor, {"name": visitor}, line=line) for line, visitor in enumerate(visitors, 1))
    enrol(ledger, campaign_id, rows, Enroller(campaign_id, announcement))
    engine = SendEngine(
        ledger, campaign_id, Rules(account=settings.conn_id, max_in_flight=1, max_failure_share=1.0)
    )
    engine.begin(resumed=resumed, fraction=fraction)
    return Courier(
        engine,
        lambda: settings.async_client(retries=Retries(attempts=1)),
        max_in_flight=1,
        defer_after_seconds=1.0,
    ).run()


@pytest.fixture
def home(airflow_db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a machine without a ledger yet, and an Airflow that has pinned none."""
    from airflow.models import Variable

    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    Variable.delete(FILE.pin_key)
    return tmp_path


@pytest.fixture
def hook(home: Path) -> Iterator[CampaignHook]:
    with CampaignHook() as opened:
        yield opened


@pytest.fixture
def campaign(hook: CampaignHook, sib_sandbox) -> CampaignHook:
    """Deliver to twelve: nine are reached, one is in doubt, one is refused, one is suppressed."""
    sib_sandbox.configure(unknown_visitor="reject")
    sib_sandbox.add_visitors(*({"id": visitor} for visitor in TOLD))
    sib_sandbox.fault("hang_up_after", times=1, operation="send_pushed_message")
    hook.suppress([SUPPRESSED])
    assert isinstance(deliver(hook.ledger), Done)
    return hook


def states_of(hook: CampaignHook, campaign_id: str = "release") -> dict[str, str]:
    return {row.key: row.state.name.lower() for row in hook.deliveries(campaign_id)}


def doubt_of(hook: CampaignHook) -> str:
    return next(row.key for row in hook.deliveries("release", states=["in_doubt"]))


# which ledger


def test_looking_pins_nothing_and_sending_pins_at_once(home):
    open_ledger(FILE, to_send=False).close()
    assert Pin.read(FILE) is None
    ledger = open_ledger(FILE, to_send=True)
    assert Pin.read(FILE) == Pin(ledger.identity().ledger_id, 0)
    ledger.close()


def test_a_first_use_that_airflow_does_not_keep_is_refused(home, monkeypatch):
    """Where a secrets backend hides what tasks write, the next empty ledger would be taken for a first use."""
    monkeypatch.setenv(
        f"AIRFLOW_VAR_{FILE.pin_key.upper()}", json.dumps({"ledger_id": "another", "claims": 0})
    )
    with pytest.raises(AirflowFailException, match="not the one this Airflow has used before"):
        open_ledger(FILE, to_send=True)
    with CampaignHook() as hook, pytest.raises(RuntimeError, match="secrets backend"):
        hook.adopt()


# Airflow 3.1 has no teams yet, and in 3.2 a Variable is the team's that wrote it last. What came with 3.3 tells.
if hasattr(airflow.sdk, "NEVER_EXPIRE"):

    def test_a_pin_of_another_team_is_refused_with_a_way_out_for_all_teams(home, hook, monkeypatch):
        """Airflow keeps one Variable of a name, and shows a team's to that team only."""
        from airflow.models import Variable

        monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
        teams = ["ours", "theirs"]
        with create_session() as session:
            session.add_all([Team(name=team) for team in teams])
        try:
            Variable.set(FILE.pin_key, "pinned by their task", team_name="theirs")
            with pytest.raises(
                RuntimeError,
                match=r"multi_team, does it belong to another team\? .* delete the Variable .* ledger adopt`",
            ):
                open_ledger(FILE, to_send=True)
            Variable.delete(FILE.pin_key, team_name="theirs")
            hook.adopt()
            for team in teams:
                Variable.set(FILE.pin_key, f"pinned by a task of {team}", team_name=team)
                assert {Variable.get(FILE.pin_key, team_name=reader) for reader in [None, *teams]} == {
                    f"pinned by a task of {team}"
                }
        finally:
            with create_session() as session:
                session.execute(delete(Team))


@pytest.mark.parametrize("to_send", [True, False])
def test_a_machine_that_lost_its_ledger_is_refused_until_it_is_adopted(home, hook, sib_sandbox, to_send):
    open_ledger(FILE, to_send=True).close()
    for file in home.glob("sib_ledger.db*"):
        file.unlink()
    with pytest.raises(AirflowFailException, match=r"ledger adopt`\.$") as refused:
        open_ledger(FILE, to_send=to_send)
    assert "not the one this Airflow has used before" in str(refused.value)
    adopted = hook.adopt()
    assert adopted == Pin.read(FILE)
    open_ledger(FILE, to_send=to_send).close()


def test_an_older_copy_is_refused_until_it_is_adopted(home, hook, sib_sandbox):
    """What was sent after the copy was made is not in it, though its id is right."""
    file = home / "sib_ledger.db"
    ledger = open_ledger(FILE, to_send=True)
    deliver(ledger, "first", visitors=TOLD)
    ledger.close()
    shutil.copy(file, home / "copy")

    ledger = open_ledger(FILE, to_send=True)
    deliver(ledger, "second", visitors=TOLD)
    pin_progress(ledger, FILE)
    ledger.close()
    open_ledger(FILE, to_send=True).close()

    for name in ("", "-wal", "-shm"):
        (home / f"sib_ledger.db{name}").unlink(missing_ok=True)
    shutil.copy(home / "copy", file)
    with pytest.raises(AirflowFailException, match="older copy: it has begun 10 messages, and had begun 20"):
        open_ledger(FILE, to_send=True)
    assert hook.adopt().claims == 10
    open_ledger(FILE, to_send=True).close()


def test_the_pin_never_goes_back(home, sib_sandbox):
    ledger = open_ledger(FILE, to_send=True)
    ahead = Pin(ledger.identity().ledger_id, 5)
    ahead.write(FILE)
    pin_progress(ledger, FILE)
    assert Pin.read(FILE) == ahead
    ledger.close()


def test_a_task_leaves_the_pin_to_the_ledger_that_was_adopted_while_it_ran(home, sib_sandbox, logged):
    old = open_ledger(FILE, to_send=True)
    deliver(old, visitors=TOLD)
    adopted = Pin("another", 3)
    adopted.write(FILE)
    pin_progress(old, FILE)
    assert Pin.read(FILE) == adopted
    assert f"not {old.identity().ledger_id}, with which this task goes on" in logged()
    old.close()


def test_a_database_that_knows_nobody_is_refused_where_a_file_has_sent(home, monkeypatch, sib_sandbox):
    """An Airflow that grows: its campaigns would begin anew in the database."""
    from airflow.models import Variable

    monkeypatch.setenv(
        "AIRFLOW_CONN_GROWN", json.dumps({"conn_type": "sqlite", "host": str(home / "grown.db")})
    )
    grown = LedgerPlace("grown")
    open_ledger(FILE, to_send=True).close()
    open_ledger(grown, to_send=True).close()  # nothing was sent yet, so nothing is forgotten
    Variable.delete(grown.pin_key)

    ledger = open_ledger(FILE, to_send=True)
    deliver(ledger, visitors=TOLD)
    pin_progress(ledger, FILE)
    ledger.close()
    with pytest.raises(AirflowFailException, match=r"begun 10 messages .* `.* ledger adopt .*grown`\.$"):
        open_ledger(grown, to_send=True)
    open_ledger(grown, to_send=False).close()
    with CampaignHook("grown") as hook:
        hook.adopt()
    open_ledger(grown, to_send=True).close()


def test_each_place_has_a_pin_of_its_own():
    assert LedgerPlace("a").pin_key != LedgerPlace("b").pin_key != FILE.pin_key


@pytest.mark.parametrize(
    "value", ["", "yes", "[]", "7", "{}", '{"ledger_id": "x"}', '{"ledger_id": "x", "claims": "many"}']
)
def test_a_pin_that_cannot_be_read_is_a_refusal_and_never_a_first_use(home, hook, monkeypatch, value):
    _compat.set_variable(FILE.pin_key, value, "")
    with pytest.raises(AirflowFailException, match=r"cannot be read .* nothing is sent"):
        open_ledger(FILE, to_send=True)
    assert not (home / "sib_ledger.db").exists()
    hook.adopt()
    open_ledger(FILE, to_send=True).close()


# where it may be


@pytest.mark.parametrize(
    ("executor", "culprit"),
    [
        ("LocalExecutor", None),
        ("airflow.executors.local_executor.LocalExecutor", None),
        ("LocalExecutor,LocalExecutor", None),
        ("here:LocalExecutor", None),
        ("here:airflow.executors.local_executor.LocalExecutor", None),
        ("LocalExecutor;team=LocalExecutor", None),
        ("CeleryExecutor", "CeleryExecutor"),
        ("KubernetesExecutor", "KubernetesExecutor"),
        ("far:CeleryExecutor", "CeleryExecutor"),
        ("LocalExecutor,CeleryExecutor", "CeleryExecutor"),
        ("LocalExecutor, CeleryExecutor", "CeleryExecutor"),
        ("LocalExecutor;team=CeleryExecutor", "CeleryExecutor"),
        ("=LocalExecutor;team=LocalExecutor,KubernetesExecutor", "KubernetesExecutor"),
        ("far:our.executors.FarExecutor", "FarExecutor"),
        ("LocalExecutor,far:our.executors.FarExecutor", "FarExecutor"),
        ("team=far:our.executors.FarExecutor", "FarExecutor"),
    ],
)
def test_a_file_is_refused_where_tasks_may_run_on_another_machine(home, monkeypatch, executor, culprit):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
    if culprit is None:
        assert tasks_run_elsewhere() is None
        open_ledger(FILE, to_send=True).close()
        return
    with pytest.raises(
        AirflowFailException, match=f"executor is {culprit},.*ledger_conn_id.*Nothing was sent"
    ):
        open_ledger(FILE, to_send=True)
    assert not (home / "sib_ledger.db").exists()
    open_ledger(FILE, to_send=False).close()


@pytest.mark.parametrize("place", [FILE, LedgerPlace("ledger")])
def test_a_file_is_refused_on_kubernetes_also_as_a_connection(home, monkeypatch, place):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", f"sqlite://{quote(str(home / 'ledger.db'), safe='')}")
    with pytest.raises(AirflowFailException, match=r"a file on one machine: .* Kubernetes"):
        open_ledger(place, to_send=True)


def test_a_database_is_right_wherever_tasks_run(airflow_db, tmp_path, monkeypatch):
    from airflow.models import Variable

    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    place = server_place("postgresql", monkeypatch)
    ledger = open_ledger(next(place), to_send=True)
    ledger.close()
    Variable.delete(LedgerPlace("ledger").pin_key)
    place.close()


def test_the_place_is_the_operators_else_the_configured_one_else_the_file(monkeypatch):
    assert LedgerPlace.configured(None) == FILE
    monkeypatch.setenv("AIRFLOW__SIB__LEDGER_CONN_ID", "")
    assert LedgerPlace.configured(None) == FILE
    monkeypatch.setenv("AIRFLOW__SIB__LEDGER_CONN_ID", "shared")
    assert LedgerPlace.configured(None) == LedgerPlace("shared")
    assert LedgerPlace.configured("mine") == LedgerPlace("mine")


@pytest.mark.parametrize(
    ("place", "command"),
    [
        (FILE, "python -m airflow_provider_sib campaigns show 'a b'"),
        (
            LedgerPlace("shared"),
            "python -m airflow_provider_sib campaigns show 'a b' --ledger-conn-id shared",
        ),
    ],
)
def test_a_command_in_a_message_can_be_copied_into_a_shell(place, command):
    assert place.command("campaigns", "show", "a b") == command


# addresses

SECRET = "p@ss:w/ö?r#d%20&=+ '\""


def connection_json(**fields: Any) -> str:
    return json.dumps(fields)


LIBPQ_SECURITY = (
    "sslmode", "sslcompression", "sslcert", "sslkey", "sslpassword", "sslcertmode", "sslrootcert", "sslcrl",
    "sslcrldir", "sslsni", "ssl_min_protocol_version", "ssl_max_protocol_version", "requirepeer", "require_auth",
    "channel_binding", "gssencmode", "gsslib", "gssdelegation", "krbsrvname",
)  # fmt: skip
POSTGRES = {"login": "ann", "password": SECRET, "host": "db.example", "port": 5433, "schema": "ledgers"}


@pytest.mark.parametrize(
    ("connection", "driver", "query"),
    [
        (connection_json(conn_type="postgres", **POSTGRES), "postgresql+psycopg2", {}),
        (
            f"postgres://ann:{quote(SECRET, safe='')}@db.example:5433/ledgers?sslmode=verify-full",
            "postgresql+psycopg2",
            {"sslmode": "verify-full"},
        ),
        (
            f"postgresql://ann:{quote(SECRET, safe='')}@db.example:5433/ledgers",
            "postgresql+psycopg2",
            {},
        ),
        (
            connection_json(
                conn_type="postgres",
                **POSTGRES,
                extra={
                    "sslmode": "require",
                    "sslrootcert": "/ca.pem",
                    "cursor": "dictcursor",
                    "keepalives": 1,
                    "tcp_user_timeout": 90000,
                },
            ),
            "postgresql+psycopg2",
            {"sslmode": "require", "sslrootcert": "/ca.pem", "keepalives": "1", "tcp_user_timeout": "90000"},
        ),
        (
            f"mysql://ann:{quote(SECRET, safe='')}@db.example:5433/ledgers?charset=latin1",
            "mysql+pymysql",
            {"charset": "utf8mb4"},
        ),
        (
            connection_json(
                conn_type="mysql",
                **POSTGRES,
                extra={
                    "ssl": {"ca": "/ca.pem", "cert": "/c.pem", "key": "/k.pem"},
                    "local_infile": True,
                    "read_timeout": 300,
                },
            ),
            "mysql+pymysql",
            {
                "charset": "utf8mb4",
                "ssl_ca": "/ca.pem",
                "ssl_cert": "/c.pem",
                "ssl_key": "/k.pem",
                "read_timeout": "300",
            },
        ),
        (
            connection_json(
                conn_type="postgres",
                **POSTGRES,
                extra=dict.fromkeys(LIBPQ_SECURITY, "x") | {"sslnegotiation": ""},
            ),
            "postgresql+psycopg2",
            dict.fromkeys(LIBPQ_SECURITY, "x"),
        ),
    ],
)
def test_an_airflow_connection_becomes_the_databases_address(monkeypatch, connection, driver, query):
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", connection)
    url = LedgerPlace("ledger").url()
    assert (url.drivername, dict(url.query)) == (driver, query)
    assert (url.username, url.password, url.host, url.port, url.database) == (
        "ann", SECRET, "db.example", 5433, "ledgers",
    )  # fmt: skip
    assert SECRET not in str(url)


CA = {"ssl_ca": "/ca.pem"}
UNCOMPARED, COMPARED = {"ssl_check_hostname": "false"}, {"ssl_check_hostname": "true"}


@pytest.mark.parametrize(
    ("extra", "query"),
    [
        ({"ssl": '{"ca": "/ca.pem", "cipher": "AES256-SHA"}'}, CA | {"ssl_cipher": "AES256-SHA"}),
        ({"ssl": {"ca": "/ca.pem", "capath": None, "check_hostname": False}}, CA | UNCOMPARED),
        ({"ssl": ""}, {}),
        ({"ssl_mode": "DISABLED"}, {"ssl_disabled": "true"}),
        ({"ssl_mode": "required"}, UNCOMPARED),
        ({"ssl_mode": "VERIFY_CA"} | CA, CA | UNCOMPARED),
        ({"ssl_mode": "VERIFY_IDENTITY", "ssl": {"ca": "/ca.pem"}}, CA | COMPARED),
        ({"ssl_mode": "VERIFY_IDENTITY", "ssl_check_hostname": "false"} | CA, CA | COMPARED),
        ({"ssl_verify_cert": True} | CA, CA | UNCOMPARED),
        ({"ssl_verify_cert": "true", "ssl_verify_identity": "true"} | CA, CA | COMPARED),
        ({"ssl_check_hostname": True, "ssl_capath": "/certs"}, {"ssl_capath": "/certs"} | COMPARED),
    ],
    ids=str,
)
@pytest.mark.parametrize("as_uri", [False, True])
def test_what_a_mysql_connection_says_of_tls_reaches_the_driver(monkeypatch, extra, query, as_uri):
    connection = connection_json(conn_type="mysql", **POSTGRES, extra=extra)
    if as_uri:
        texts = {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in extra.items()
        }
        connection = f"mysql://ann@db.example/ledgers?{urlencode(texts)}"
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", connection)
    assert dict(LedgerPlace("ledger").url().query) == query | {"charset": "utf8mb4"}


@pytest.mark.parametrize(
    ("kind", "extra", "named", "use"),
    [
        ("mysql", {"ssl": "ca.pem"}, "ssl", r"\{\"ca\": "),
        ("mysql", {"ssl": True}, "ssl", r"\{\"ca\": "),
        ("mysql", {"ssl_mode": "PREFERRED"}, "ssl_mode", "DISABLED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY"),
        ("mysql", {"ssl_mode": "VERIFY_CA"}, "ssl_mode", "ssl_ca"),
        ("mysql", {"ssl_verify_identity": True}, "ssl_verify_identity", "ssl_ca"),
        ("mysql", {"ssl_check_hostname": True}, "ssl_check_hostname", "ssl_ca"),
        ("mysql", {"ssl_check_hostname": "1"} | CA, "ssl_check_hostname", "ssl_mode"),
        ("mysql", {"ssl_verify_cert": False} | CA, "ssl_verify_cert", "ssl_mode"),
        ("mysql", {"ssl": {"ca": "/ca.pem", "verify_mode": "required"}}, "ssl_verify_mode", "ssl_mode"),
        ("mysql", {"ssl": {"password": SECRET}}, "ssl_password", "ssl_mode"),
        ("mysql", {"ssl_disabled": False}, "ssl_disabled", "ssl_mode"),
        ("mysql", {"sslmode": "verify-full"}, "sslmode", "ssl_mode"),
        ("mysql", {"tls_versions": ["TLSv1.3"]}, "tls_versions", "ssl_mode"),
        ("postgres", {"ssl_mode": "VERIFY_CA"}, "ssl_mode", "sslmode, sslrootcert"),
        ("postgres", {"ssl": {"ca": "/ca.pem"}}, "ssl", "sslmode, sslrootcert"),
    ],
    ids=str,
)
def test_what_would_not_reach_the_driver_of_tls_is_refused_by_name(monkeypatch, kind, extra, named, use):
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", connection_json(conn_type=kind, **POSTGRES, extra=extra))
    with pytest.raises(AirflowFailException, match=rf"'{named}' of connection 'ledger'.*{use}") as refused:
        LedgerPlace("ledger").url()
    assert SECRET not in str(refused.value)


async def test_a_trigger_gets_the_same_address_without_blocking(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", connection_json(conn_type="postgres", **POSTGRES))
    assert await LedgerPlace("ledger").aurl() == LedgerPlace("ledger").url()


@pytest.mark.parametrize("connection", ["sqlite://{path}", '{{"conn_type": "sqlite", "host": "{path}"}}'])
def test_a_sqlite_connection_is_its_file(airflow_db, tmp_path, monkeypatch, connection):
    path = tmp_path / "ledger.db"
    quoted = quote(str(path), safe="") if "://" in connection else str(path)
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", connection.format(path=quoted))
    with CampaignHook("ledger") as hook:
        assert hook.list() == []
    assert path.exists()


@pytest.mark.parametrize(
    ("connection", "sentence"),
    [
        ("http://example.com", "'ledger' is of type 'http', in which no ledger can be kept"),
        ('{"conn_type": "", "host": "x"}', "in which no ledger can be kept"),
        ("mysql://ann:{secret}@127.0.0.1", "names no database"),
    ],
)
def test_a_connection_that_holds_no_ledger_is_refused(monkeypatch, connection, sentence):
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", connection.replace("{secret}", quote(SECRET, safe="")))
    with pytest.raises(AirflowFailException, match=sentence) as refused:
        LedgerPlace("ledger").url()
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("conn_type", ["postgres", "mysql"])
def test_an_extra_that_is_no_json_object_is_refused_since_its_certificates_would_be_lost(conn_type):
    connection = Connection(
        conn_id="ledger", conn_type=conn_type, schema="ledgers", extra=f'{{"sslkey": "{SECRET}",}}'
    )
    with pytest.raises(AirflowFailException, match="'ledger': its extra is no JSON object") as refused:
        _url(connection)
    assert SECRET not in str(refused.value)


def server_place(kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[LedgerPlace]:
    """Make a place on a real server, and the Airflow connection ``ledger`` to it."""
    pytest.importorskip("psycopg2" if kind == "postgresql" else "pymysql")
    database, engine, drop = make_database(kind)
    url = database.url
    monkeypatch.setenv(
        "AIRFLOW_CONN_LEDGER",
        connection_json(
            conn_type="postgres" if kind == "postgresql" else "mysql",
            login=url.username,
            password=url.password,
            host=url.host,
            port=url.port,
            schema=url.database,
            extra=dict(url.query),
        ),
    )
    try:
        yield LedgerPlace("ledger")
    finally:
        with engine.connect() as conn:
            conn.exec_driver_sql(drop)
        engine.dispose()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_ledger_on_a_server_is_pinned_under_its_connection(airflow_db, monkeypatch, sib_sandbox, kind):
    from airflow.models import Variable

    places = server_place(kind, monkeypatch)
    place = next(places)
    try:
        ledger = open_ledger(place, to_send=True)
        assert isinstance(deliver(ledger, visitors=TOLD), Done)
        pin_progress(ledger, place)
        assert Pin.read(place) == Pin(look(place).ledger_id, len(TOLD))
        ledger.close()
        with CampaignHook("ledger") as hook:
            assert hook.report("release").sent == len(TOLD)
            Pin("another", 0).write(place)
            hook.close()
            with pytest.raises(
                AirflowFailException, match=r"of connection 'ledger'.*adopt --ledger-conn-id ledger`"
            ):
                hook.list()
    finally:
        Variable.delete(place.pin_key)
        places.close()


@pytest.mark.parametrize(
    "connection",
    [
        "postgres://nobody:{secret}@127.0.0.1:1/test",
        "mysql://nobody:{secret}@127.0.0.1:1/test",
        "postgres://nobody:{secret}@127.0.0.1:5432/test",
        "mysql://nobody:{secret}@127.0.0.1:3306/test",
        "postgres://nobody:{secret}@127.0.0.1:5432/test?sslmode=often",
    ],
)
def test_a_database_that_says_no_is_told_of_without_the_password(airflow_db, monkeypatch, connection):
    pytest.importorskip("psycopg2" if connection.startswith("postgres") else "pymysql")
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", connection.replace("{secret}", quote(SECRET, safe="")))
    with CampaignHook("ledger") as hook, pytest.raises(LedgerUnavailable) as refused:
        hook.list()
    shown, causes = "", refused.value
    while causes is not None:
        shown, causes = shown + str(causes) + repr(causes), causes.__cause__ or causes.__context__
    assert SECRET not in shown
    assert quote(SECRET, safe="") not in shown


def before_mysql(server: Any, tls: ssl.SSLContext | None):
    """Stand before a MySQL server and speak TLS for it or, without a context, keep it from doing so."""
    TLS = 0x08  # noqa: N806  (CLIENT_SSL, in the second byte of either side's flags)

    def packet(sock: socket.socket) -> bytearray:
        line = sock.makefile("rb", buffering=0)
        if not (head := line.read(4)):
            raise ConnectionError
        return bytearray(head + line.read(int.from_bytes(head[:3], "little")))

    def behave(peer, sock):
        with socket.create_connection((server.host, server.port or 3306)) as onward, ExitStack() as stack:
            # https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_connection_phase.html
            greeting = packet(onward)
            flags = greeting.index(0, 5) + 1 + 4 + 8 + 1 + 1
            greeting[flags] = greeting[flags] | TLS if tls else greeting[flags] & ~TLS
            sock.sendall(greeting)
            if tls:
                assert packet(sock)[5] & TLS
                sock = stack.enter_context(tls.wrap_socket(sock, server_side=True))
            while greeting[4] not in (0, 0xFF):  # until the server has let in or refused
                answer = packet(sock)
                answer[3] -= bool(tls)
                if answer[3] == 1:
                    answer[5] &= ~TLS
                onward.sendall(answer)
                greeting = packet(onward)
                greeting[3] += bool(tls)
                sock.sendall(greeting)
            passed_on(sock, onward)

    return behave


@pytest.mark.parametrize(
    ("extra", "host", "trouble"),
    [
        ({"ssl": '{{"ca": "{own}"}}'}, "127.0.0.1", None),
        ({"ssl": '{{"ca": "{own}"}}'}, "localhost", "certificate"),
        ({"ssl": '{{"ca": "{other}"}}'}, "127.0.0.1", "certificate"),
        ({"ssl_mode": "REQUIRED"}, "localhost", None),
        ({"ssl_mode": "VERIFY_CA", "ssl_ca": "{own}"}, "localhost", None),
        ({"ssl_mode": "VERIFY_CA", "ssl_ca": "{other}"}, "localhost", "certificate"),
        ({"ssl_mode": "VERIFY_IDENTITY", "ssl_ca": "{own}"}, "127.0.0.1", None),
        ({"ssl_mode": "VERIFY_IDENTITY", "ssl_ca": "{own}"}, "localhost", "certificate"),
        ({"ssl": '{{"ca": "{own}"}}'}, None, "SSL|TLS"),
        ({"ssl_mode": "REQUIRED"}, None, "SSL|TLS"),
        ({"ssl_mode": "DISABLED"}, None, None),
    ],
    ids=str,
)
def test_a_ledger_on_mysql_has_the_tls_that_its_connection_asks_for(
    airflow_db, monkeypatch, tmp_path, extra, host, trouble
):
    """A host of None: a server, or somebody before it, that offers no TLS."""
    paths = {name: tmp_path / name for name in ("own", "other")}
    for path in paths.values():
        path.mkdir()
    certificates = {name: self_signed(path) for name, path in paths.items()}
    database, engine, drop = make_database("mariadb")
    peer = Peer(before_mysql(database.url, speaking_tls(certificates["own"]) if host else None))
    connection = connection_json(
        conn_type="mysql",
        login=database.url.username,
        password=database.url.password,
        host=host or "127.0.0.1",
        port=peer.port,
        schema=database.url.database,
        extra={name: value.format(**certificates) for name, value in extra.items()},
    )
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", connection)
    try:
        if trouble is None:
            look(LedgerPlace("ledger"))
        else:
            with pytest.raises(LedgerUnavailable, match=f"(?i){trouble}"):
                look(LedgerPlace("ledger"))
    finally:
        peer.close()
        with engine.connect() as conn:
            conn.exec_driver_sql(drop)
        engine.dispose()


def test_a_ledger_on_postgresql_has_the_channel_binding_that_its_connection_asks_for(airflow_db, monkeypatch):
    """No server can bind what has no password to it, or no TLS."""
    places = server_place("postgresql", monkeypatch)
    place = next(places)
    asked = json.loads(os.environ["AIRFLOW_CONN_LEDGER"])
    asked["extra"]["channel_binding"] = "require"
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps(asked | {"password": None}))
    try:
        with pytest.raises(LedgerUnavailable, match="channel binding"):
            look(place)
    finally:
        places.close()


@pytest.mark.parametrize("password", ["Schlüssel", "5 € 🔑"], ids=["latin-1", "beyond"])
async def test_a_password_on_mysql_may_have_any_characters(airflow_db, monkeypatch, password):
    database, engine, drop = make_database("mariadb")
    login = database.url.database
    connection = connection_json(
        conn_type="mysql",
        login=login,
        password=password,
        host=database.url.host,
        port=database.url.port,
        schema=database.url.database,
    )
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", connection)
    with engine.connect() as conn:
        try:
            conn.exec_driver_sql(f"CREATE USER '{login}'@'%%' IDENTIFIED BY '{password}'")
            conn.exec_driver_sql(f"GRANT ALL ON {login}.* TO '{login}'@'%%'")
            made = look(LedgerPlace("ledger"))
            open_to_watch(await LedgerPlace("ledger").aurl(), made.ledger_id).close()
        finally:
            conn.exec_driver_sql(f"DROP USER IF EXISTS '{login}'@'%%'")
            conn.exec_driver_sql(drop)
    engine.dispose()


@pytest.mark.parametrize(("kind", "driver"), [("postgres", "psycopg2"), ("mysql", "pymysql")])
def test_a_missing_driver_is_told_how_to_be_had(airflow_db, monkeypatch, kind, driver):
    monkeypatch.setitem(sys.modules, driver, None)  # what the import system takes for "not there"
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", f"{kind}://ann@db.example/ledgers")
    with pytest.raises(AirflowFailException, match=rf"install airflow-provider-sib\[{kind}\]"):
        open_ledger(LedgerPlace("ledger"), to_send=True)


# control


def test_a_campaign_is_listed_and_reported(campaign):
    [listed] = campaign.list()
    assert (listed.campaign_id, listed.status, listed.total) == ("release", "finished", 12)
    report = campaign.report("release")
    assert (report.sent, report.in_doubt, report.failed, report.skipped) == (9, 1, 1, 1)
    assert report.skipped_by == {"suppressed": 1}
    quota = campaign.quota("release")
    assert quota.limit == 100
    assert campaign.quota("release") == quota


def test_pausing_resuming_and_aborting_take_effect_on_a_campaign_that_is_under_way(hook, sib_sandbox):
    sib_sandbox.configure(quota=13)
    assert isinstance(deliver(hook.ledger), Wait)
    assert hook.report("release").sent == 3
    assert hook.pause("release").status == "paused"
    sib_sandbox.configure(quota=100)
    assert deliver(hook.ledger, resumed=True).reason == "paused"
    assert hook.resume("release").status == "running"
    assert hook.abort("release").status == "aborted"
    assert deliver(hook.ledger, resumed=True) == Stopped("aborted")
    assert hook.report("release").sent == 3
    with pytest.raises(
        ValueError, match=r"'release' is aborted and cannot be set to paused.*until it is resumed"
    ):
        hook.pause("release")
    for change in (hook.pause, hook.resume, hook.abort):
        with pytest.raises(ValueError, match="'release' is aborted by now, not paused as it was seen"):
            change("release", seen="paused")
    assert hook.resume("release", seen="aborted").status == "running"


def test_retrying_sets_those_that_failed_to_pending_and_no_others(campaign, sib_sandbox):
    [code] = campaign.report("release").failed_by
    assert campaign.retry("release", reasons=["no_such_reason"]) == 0
    assert campaign.retry("release", reasons=[code]) == 1
    assert states_of(campaign)[UNKNOWN] == "pending"
    sib_sandbox.configure(unknown_visitor="accept")
    assert isinstance(deliver(campaign.ledger), Done)
    assert states_of(campaign)[UNKNOWN] == "sent"
    assert campaign.retry("release") == 0


def test_a_doubt_is_settled_as_sent_with_its_messages_id(campaign):
    doubt = doubt_of(campaign)
    campaign.settle("release", doubt, sent=True, message_id="m-1")
    [row] = [row for row in campaign.deliveries("release", states=["sent"]) if row.key == doubt]
    assert row.message_ids == ("m-1",)
    with pytest.raises(ValueError, match="no delivery in doubt") as refused:
        campaign.settle("release", doubt, sent=True)
    assert doubt not in str(refused.value)


def test_a_doubt_that_is_settled_as_not_sent_is_sent_again(campaign, sib_sandbox):
    doubt = doubt_of(campaign)
    before = len(sib_sandbox.messages(doubt))
    campaign.settle("release", doubt, sent=False)
    assert isinstance(deliver(campaign.ledger), Done)
    assert len(sib_sandbox.messages(doubt)) == before + 1


def test_deliveries_are_chosen_by_state_and_reason(campaign):
    assert {row.state for row in campaign.deliveries("release", states=["sent", "failed"])} == {
        State.SENT,
        State.FAILED,
    }
    assert [row.key for row in campaign.deliveries("release", reasons=["suppressed"])] == [SUPPRESSED]


def test_an_export_is_csv_with_every_delivery(campaign):
    file = io.StringIO()
    assert campaign.export("release", file) == 12
    rows = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert tuple(rows[0]) == EXPORT_COLUMNS
    assert {row["once_key"]: row["state"] for row in rows} == states_of(campaign)
    assert all(bool(row["message_ids"]) == (row["state"] == "sent") for row in rows)
    file = io.StringIO()
    assert campaign.export("release", file, states=["failed"]) == 1
    with pytest.raises(ValueError, match=r"no state 'done'; states are pending, .*withdrawn"):
        campaign.export("release", file, states=["SENT", "done"])


def test_suppressed_visitors_are_listed_and_taken_off(hook):
    assert hook.suppress(["ann", "bob"]) == 2
    assert hook.suppress(["bob", "cid"]) == 1
    assert {one.visitor_id for one in hook.suppressed()} == {"ann", "bob", "cid"}
    assert hook.unsuppress(["ann", "nobody"]) == 1
    assert {one.visitor_id for one in hook.suppressed()} == {"bob", "cid"}


def test_a_forgotten_visitor_is_nowhere_and_is_not_written_to_again(campaign, sib_sandbox):
    reached = next(row.key for row in campaign.deliveries("release", states=["sent"]))
    assert campaign.forget_visitor(reached) == 1
    assert reached not in states_of(campaign)
    assert reached not in {one.visitor_id for one in campaign.suppressed()}
    before = len(sib_sandbox.messages(reached))
    assert isinstance(deliver(campaign.ledger, "second", visitors=[reached]), Done)
    assert len(sib_sandbox.messages(reached)) == before


@pytest.fixture
def long_ago(hook: CampaignHook) -> Iterator[Ledger]:
    """Give the hook's ledger as it was 40 days ago."""
    ledger = SqlLedger(hook.place.url(), clock=lambda: time.time() - timedelta(days=40).total_seconds())
    yield ledger
    ledger.close()


def test_variables_are_erased_of_what_ended_long_ago_and_of_nothing_that_is_still_to_be_sent(
    hook, long_ago, sib_sandbox
):
    sib_sandbox.configure(quota=13)
    assert isinstance(deliver(long_ago), Wait)
    assert hook.scrub_variables(timedelta(days=41)) == 0
    assert hook.scrub_variables(timedelta(days=30)) == 3
    assert hook.scrub_variables(timedelta(days=30)) == 0
    assert {row.state for row in hook.deliveries("release") if row.variables is None} == {State.SENT}
    sib_sandbox.configure(quota=100)
    assert isinstance(deliver(hook.ledger, resumed=True), Done)
    assert {m["visitorId"]: m["text"] for m in sib_sandbox.messages()} == {
        visitor: f"Version 2 is out, {visitor}!" for visitor in VISITORS
    }
    with pytest.raises(ValueError, match="is negative"):
        hook.scrub_variables(timedelta(days=-1))


def test_what_failed_and_was_scrubbed_has_no_variables_for_another_try(hook, long_ago, sib_sandbox):
    sib_sandbox.configure(unknown_visitor="reject")
    deliver(long_ago, visitors=[UNKNOWN])
    assert hook.scrub_variables(timedelta(days=30)) == hook.retry("release") == 1
    sib_sandbox.configure(unknown_visitor="accept")
    deliver(hook.ledger)
    assert hook.report("release").failed_by == {"text_not_rendered": 1}
    assert sib_sandbox.messages() == []


def test_a_follow_up_is_given_what_was_scrubbed_without_variables(hook, long_ago, sib_sandbox):
    deliver(long_ago, visitors=TOLD[:1])
    hook.scrub_variables(timedelta(days=30))
    rows = read(CampaignAudience("release"), open_path=open_path, connect=connect, ledger=hook.ledger)
    assert list(rows) == [Row(TOLD[0], {}, line=1)]


def test_only_a_campaign_at_rest_is_purged(hook, sib_sandbox):
    sib_sandbox.configure(quota=12)
    deliver(hook.ledger)
    with pytest.raises(ValueError, match="'release' is running: abort it before"):
        hook.purge("release")
    engine = SendEngine(hook.ledger, "release", Rules(account="another", max_in_flight=1))
    engine.begin(resumed=True)
    step = engine.next()
    assert isinstance(step, Send)
    hook.abort("release")
    with pytest.raises(ValueError, match=r"'release' has messages on their way.*`.* campaigns show release`"):
        hook.purge("release")
    engine.take(
        Outcome(request=post, fate=Fate.UNBEGUN, began_at=uptime(), ended_at=uptime())
        for post in step.requests
    )
    engine.leave()
    hook.purge("release")
    assert hook.list() == []


@pytest.mark.parametrize(
    "act",
    [
        lambda hook: hook.report("nope"),
        lambda hook: hook.quota("nope"),
        lambda hook: hook.pause("nope"),
        lambda hook: hook.resume("nope"),
        lambda hook: hook.abort("nope"),
        lambda hook: hook.retry("nope"),
        lambda hook: hook.settle("nope", "key", sent=True),
        lambda hook: list(hook.deliveries("nope")),
        lambda hook: hook.export("nope", io.StringIO()),
        lambda hook: hook.purge("nope"),
    ],
)
def test_an_unknown_campaign_is_said_by_name(hook, act: Callable[[CampaignHook], object]):
    with pytest.raises(UnknownCampaign, match="'nope'"):
        act(hook)


def test_a_closed_hook_opens_its_ledger_again(campaign):
    campaign.close()
    campaign.close()
    assert len(campaign.list()) == 1


# audiences


def test_a_google_connection_is_asked_in_standard_sql_by_the_hook_of_bigquery(monkeypatch):
    """With a stand-in for Google's provider, which only keeps what it is given: the real one needs an account."""

    class BigQueryHook:
        def __init__(self, **given):
            self.given = given

        def get_conn(self):
            return self.given

    package = "airflow.providers.google"
    for name in (package, f"{package}.cloud", f"{package}.cloud.hooks", f"{package}.cloud.hooks.bigquery"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[name].BigQueryHook = BigQueryHook
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", '{"conn_type": "google_cloud_platform"}')
    audience = SqlAudience("SELECT 1 AS visitor_id", "warehouse", hook_params={"location": "EU"})
    assert connect(audience) == {"gcp_conn_id": "warehouse", "use_legacy_sql": False, "location": "EU"}
