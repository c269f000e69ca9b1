"""The ledgers every test of the suite runs on: memory, SQLite, and the database servers that answer."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from airflow_provider_sib.campaign.ledger import Ledger, MemoryLedger
from airflow_provider_sib.campaign.sql_ledger import SqlLedger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVERS = {
    "postgresql": ("SIB_TEST_POSTGRES_URL", "postgresql+psycopg2://root@127.0.0.1:5432/test"),
    "mariadb": ("SIB_TEST_MYSQL_URL", "mysql+pymysql://root@127.0.0.1:3306/test"),
}
TABLES = ("campaign", "text", "part", "delivery", "message", "suppress", "touch", "quota")


class Clock:
    """A clock that tests set; it shows whole milliseconds."""

    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0

    def __call__(self) -> float:
        return self.seconds

    @property
    def ms(self) -> int:
        return round(self.seconds * 1000)


@dataclass
class House:
    """One place where a ledger lies, to be opened once or several times, as several processes would."""

    kind: str
    url: sa.engine.URL | None = None
    clock: Clock = field(default_factory=Clock)
    opened: list[Ledger] = field(default_factory=list)

    def open(self, *, own_clock: bool = False) -> Ledger:
        if self.url is None:
            if not self.opened:
                self.opened.append(MemoryLedger(clock=self.clock))
            return self.opened[0]
        ledger = SqlLedger(self.url, clock=None if own_clock else self.clock)
        self.opened.append(ledger)
        return ledger

    def close(self) -> None:
        for ledger in self.opened:
            ledger.close()


@dataclass(frozen=True)
class Database:
    """A schema of PostgreSQL's or a database of MariaDB's, made for one test run and dropped after it."""

    kind: str
    url: sa.engine.URL

    def clear(self) -> None:
        engine = sa.create_engine(self.url, future=True)
        with engine.begin() as conn:
            there = sa.inspect(conn).get_table_names()
            for table in TABLES:
                if f"sib_{table}" in there:
                    conn.exec_driver_sql(f"DELETE FROM sib_{table}")
            if "sib_meta" in there:
                conn.exec_driver_sql("UPDATE sib_meta SET v = '0' WHERE k = 'purged_claims'")
        engine.dispose()


def server_url(kind: str) -> sa.engine.URL:
    variable, default = SERVERS[kind]
    return sa.engine.make_url(os.environ.get(variable, default))


def make_database(kind: str) -> tuple[Database, sa.engine.Engine, str]:
    """Create a place of one's own on a server, or skip by its name."""
    url = server_url(kind)
    name = f"sib_{os.getpid()}_{secrets.token_hex(3)}"
    engine = sa.create_engine(
        url, future=True, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 5}
    )
    try:
        with engine.connect() as conn:
            conn.exec_driver_sql(f"CREATE {'SCHEMA' if kind == 'postgresql' else 'DATABASE'} {name}")
    except sa.exc.OperationalError:
        engine.dispose()
        # In CI a failure, by tests/conftest.py, as every skip.
        pytest.skip(f"no {kind} server answers at {url.render_as_string()}")
    place = (
        url.update_query_dict({"options": f"-csearch_path={name}"})
        if kind == "postgresql"
        else url.set(database=name)
    )
    drop = f"DROP SCHEMA {name} CASCADE" if kind == "postgresql" else f"DROP DATABASE {name}"
    return Database(kind, place), engine, drop


@pytest.fixture(scope="session")
def databases() -> Iterator[dict[str, Database]]:
    """Databases made so far, by kind."""
    made: dict[str, tuple[Database, sa.engine.Engine, str]] = {}

    class Lazily(dict):
        def __missing__(self, kind: str) -> Database:
            made[kind] = make_database(kind)
            self[kind] = made[kind][0]
            return self[kind]

    yield Lazily()
    for _, engine, drop in made.values():
        with engine.connect() as conn:
            conn.exec_driver_sql(drop)
        engine.dispose()


def _house(kind: str, tmp_path: Path, databases: dict[str, Database]) -> House:
    if kind == "memory":
        return House(kind)
    if kind == "sqlite":
        return House(kind, sa.engine.make_url(f"sqlite:///{tmp_path}/ledger.db"))
    databases[kind].clear()
    return House(kind, databases[kind].url)


@pytest.fixture(params=["memory", "sqlite", "postgresql", "mariadb"])
def house(request: pytest.FixtureRequest, tmp_path: Path, databases: dict[str, Database]) -> Iterator[House]:
    """Each kind of ledger in turn."""
    made = _house(request.param, tmp_path, databases)
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def sql_house(
    request: pytest.FixtureRequest, tmp_path: Path, databases: dict[str, Database]
) -> Iterator[House]:
    """Each kind of ledger that several processes share."""
    made = _house(request.param, tmp_path, databases)
    yield made
    made.close()


@pytest.fixture(params=["postgresql", "mariadb"])
def server_house(
    request: pytest.FixtureRequest, tmp_path: Path, databases: dict[str, Database]
) -> Iterator[House]:
    """Each kind of ledger that lies on a server."""
    made = _house(request.param, tmp_path, databases)
    yield made
    made.close()


@pytest.fixture(params=["postgresql", "mariadb"])
def empty_house(request: pytest.FixtureRequest) -> Iterator[House]:
    """A database server's ledger whose tables are not there yet."""
    database, engine, drop = make_database(request.param)
    made = House(request.param, database.url)
    yield made
    made.close()
    with suppress(sa.exc.OperationalError), engine.connect() as conn:
        conn.exec_driver_sql(drop)
    engine.dispose()


@pytest.fixture
def ledger(house: House) -> Ledger:
    """A fresh ledger of each kind, on a clock the test sets."""
    return house.open()


@pytest.fixture
def clock(house: House) -> Clock:
    """The clock of ``house`` and ``ledger``."""
    return house.clock
