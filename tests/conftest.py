"""An Airflow of its own for the tests: a fresh home, made before Airflow is imported anywhere."""

from __future__ import annotations

import atexit
import base64
import json
import logging
import os
import runpy
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow.sdk import DAG

    from airflow_provider_sib.hooks.campaign import CampaignHook

REPOSITORY = Path(__file__).parent.parent
BUNDLES = {"dags-folder": REPOSITORY / "dags", "tests": REPOSITORY / "tests" / "dags"}

_home = tempfile.mkdtemp(prefix="airflow-home-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
os.environ.update(
    AIRFLOW_HOME=_home,
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    # The same for processes that tests start, whatever home they are given: they read what is encrypted here.
    AIRFLOW__CORE__FERNET_KEY=base64.urlsafe_b64encode(os.urandom(32)).decode(),
    AIRFLOW__CORE__DAGS_FOLDER=str(BUNDLES["dags-folder"]),
    AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{_home}/airflow.db",
    # dag.test() finds a DAG only in a configured bundle.
    AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST=json.dumps(
        [
            {
                "name": name,
                "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                "kwargs": {"path": str(path)},
            }
            for name, path in BUNDLES.items()
        ]
    ),
)


@pytest.fixture(scope="session")
def airflow_db() -> Path:
    """Give Airflow's own database, with tables; once for all tests that run DAGs."""
    from airflow.utils.db import initdb

    initdb()
    return Path(_home) / "airflow.db"


@pytest.fixture(autouse=True)
def _leave_no_pins(request: pytest.FixtureRequest) -> Iterator[None]:
    """Forget after each test which ledgers are the right ones: the next one begins as a new Airflow does."""
    yield
    if "airflow_db" in request.fixturenames:
        from airflow.models import Variable
        from airflow.utils.session import create_session

        with create_session() as session:
            session.query(Variable).filter(
                Variable.key.like("airflow\\_provider\\_sib\\_ledger\\_%", "\\")
            ).delete(False)


@pytest.fixture
def campaigns(airflow_db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CampaignHook]:
    """Give a ledger of the test's own, as an Airflow that has never sent has it, and the hook that looks at it."""
    from airflow.models import Variable

    from airflow_provider_sib.hooks.campaign import CampaignHook, LedgerPlace

    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    Variable.delete(LedgerPlace(None).pin_key)
    with CampaignHook() as hook:
        yield hook


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Give the address of an empty ledger, of each kind that processes can share, for processes of their own."""
    from .campaign.conftest import make_database

    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger.db"
        return
    database, engine, drop = make_database(request.param)
    yield database.url.render_as_string(hide_password=False)
    with engine.connect() as conn:
        conn.exec_driver_sql(drop)
    engine.dispose()


def _forget_bundles() -> None:
    """Let Airflow read anew which bundles there are; from 3.4 on it reads that once in a process."""
    from airflow.dag_processing.bundles import manager

    if (read := getattr(manager, "_load_bundle_config_snapshot", None)) is not None:
        read.cache_clear()


@pytest.fixture
def dag_of(
    airflow_db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], DAG]]:
    """Make the source of a DAG file, as the documents show it, the one file of a bundle, and give its DAG.

    A run reads the whole bundle, so one that grew would slow it. Beside the file is `include/visitors.csv`.
    """
    from airflow.sdk import DAG

    bundle = tmp_path / "my_dags"
    shutil.copytree(BUNDLES["dags-folder"] / "include", bundle / "include")
    name = "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"
    mine = {
        "name": "documents",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(bundle)},
    }
    monkeypatch.setenv(name, json.dumps([mine]))
    _forget_bundles()

    def _dag_of(stem: str, source: str) -> DAG:
        for earlier in bundle.glob("*.py"):
            earlier.unlink()
        (bundle / f"{stem}.py").write_text(source)
        values = runpy.run_path(str(bundle / f"{stem}.py")).values()
        (dag,) = {value for value in values if isinstance(value, DAG)}
        return dag

    yield _dag_of
    _forget_bundles()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Fail what is skipped in CI: there, everything the tests need is at hand."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, which has what it needs: {report.longrepr}"
    return report


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Give all that was logged at INFO and above: Airflow prints it, other libraries use `logging`."""
    caplog.set_level(logging.INFO)

    def _logged() -> str:
        printed = capsys.readouterr()
        return printed.out + printed.err + caplog.text

    return _logged
