"""What a release leaves behind, in a folder named like it: written once, at its release, and kept for ever.

``left.json``: what Airflow keeps of the deferred tasks and of the pin, and the ledger's rows; ``sqlite.sql``,
``postgresql.sql``, ``mariadb.sql``: the ledger's tables as that release made them; ``commit``: the release's code.

``python -m tests.upgrades.left`` writes the folder of the version at hand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

import tests.conftest  # noqa: F401  gives this process an Airflow of its own, before anything imports it
from tests.campaign.conftest import make_database

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
RELEASES = sorted(path.parent.name for path in HERE.glob("*/left.json"))
KINDS = ("sqlite", "postgresql", "mariadb")
BASE_URL = "https://sandbox.example/v3"
"""Stands in the files for the sandbox's address, which is another one each time."""


def connections(url: sa.engine.URL, sandboxes: Mapping[str, Any]) -> dict[str, str]:
    """Give the environment in which the ledger and the sandboxes are Airflow connections."""
    kind = url.get_backend_name()
    ledger = {
        "conn_type": {"postgresql": "postgres"}.get(kind, kind),
        "host": url.database if kind == "sqlite" else url.host,
        "login": url.username,
        "password": url.password,
        "port": url.port,
        "schema": None if kind == "sqlite" else url.database,
        "extra": dict(url.query),
    }
    told = {"ledger": json.dumps({name: value for name, value in ledger.items() if value})}
    told |= {name: sandbox.connection_json() for name, sandbox in sandboxes.items()}
    return {f"AIRFLOW_CONN_{name.upper()}": value for name, value in told.items()}


def dumped(url: sa.engine.URL) -> dict[str, list[dict[str, Any]]]:
    """Read all rows of a ledger."""
    engine = sa.create_engine(url, future=True)
    tables = {}
    with engine.connect() as conn:
        for table in sorted(sa.inspect(conn).get_table_names()):
            key = ", ".join(sa.inspect(conn).get_pk_constraint(table)["constrained_columns"])
            found = conn.exec_driver_sql(f"SELECT * FROM {table} ORDER BY {key}").mappings()
            tables[table] = [dict(row) for row in found]
    engine.dispose()
    return tables


def load(url: sa.engine.URL, statements: str, tables: Mapping[str, list[dict[str, Any]]]) -> None:
    """Make a ledger of a release's statements and rows."""
    engine = sa.create_engine(url, future=True)
    with engine.begin() as conn:
        for statement in statements.split(";\n"):
            if statement.strip():
                conn.exec_driver_sql(statement)
        for table, found in tables.items():
            if found:
                names = ", ".join(found[0])
                values = ", ".join(f":{name}" for name in found[0])
                conn.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({values})"), found)
    engine.dispose()


def made(url: sa.engine.URL) -> str:
    """Make a ledger's tables with the code at hand; give its statements."""
    from airflow_provider_sib.campaign.sql_ledger import SqlLedger

    statements: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("CREATE "):
            statements.append("\n".join(line.strip() for line in statement.splitlines()))

    sa.event.listen(sa.engine.Engine, "before_cursor_execute", note)
    try:
        SqlLedger(url).close()
    finally:
        sa.event.remove(sa.engine.Engine, "before_cursor_execute", note)
    return "".join(f"{statement};\n" for statement in statements)


def earlier(value: Any, ms: int) -> Any:
    """Move all moments of a ledger's rows back in time, as if it had been left so long ago."""
    match value:
        case dict():
            return {name: earlier(one, ms) for name, one in value.items()}
        case list():
            return [earlier(one, ms) for one in value]
        case str() if (read := _read(value)) is not None:
            return json.dumps(earlier(read, ms))
        case int() if 1_600_000_000_000 < value < 4_000_000_000_000:  # ranks and tokens are far beyond
            return value - ms
    return value


def form(value: Any) -> Any:
    """Give the form of a value: its names and kinds, whatever it holds; texts that are JSON are read."""
    match value:
        case dict():
            return {name: form(one) for name, one in sorted(value.items())}
        case list():
            forms = {json.dumps(form(one)) for one in value}
            return [json.loads(one) for one in sorted(forms)]
        case str() if (read := _read(value)) is not None:
            return {"JSON": form(read)}
    return type(value).__name__


def _read(text: str) -> Any:
    """Read a text that is a JSON object or list; else None."""
    try:
        return json.loads(text) if text[:1] in ("{", "[") else None
    except ValueError:
        return None


def left_now(url: sa.engine.URL, sandboxes: Mapping[str, Any]) -> dict[str, Any]:
    """Bring campaigns under way with the code at hand; give all that stays of them."""
    from . import campaigns

    kept = campaigns.leave(sandboxes) | {"ledger": dumped(url)}
    text = json.dumps(kept)
    for sandbox in sandboxes.values():
        text = text.replace(sandbox.base_url, BASE_URL)
    return json.loads(text)


def main() -> None:
    """Write the folder of the version at hand."""
    from airflow.utils.db import initdb

    from airflow_provider_sib import __version__
    from airflow_provider_sib.sandbox import Sandbox

    from . import campaigns

    initdb()
    folder = HERE / __version__
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = sa.engine.make_url(f"sqlite:///{place}/ledger.db")
        sandboxes = {name: stack.enter_context(Sandbox()) for name in campaigns.CAMPAIGNS}
        os.environ.update(connections(url, sandboxes))
        kept = left_now(url, sandboxes)
        (folder / "left.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        (folder / "sqlite.sql").write_text(made(sa.engine.make_url(f"sqlite:///{place}/empty.db")))
    for kind in ("postgresql", "mariadb"):
        database, engine, drop = make_database(kind)
        (folder / f"{kind}.sql").write_text(made(database.url))
        with engine.connect() as conn:
            conn.exec_driver_sql(drop)
        engine.dispose()
    log = ["git", "log", "-1", "--format=%H", "--", "airflow_provider_sib"]
    commit = subprocess.run(log, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    (folder / "commit").write_text(commit.stdout)


if __name__ == "__main__":
    sys.exit(main())
