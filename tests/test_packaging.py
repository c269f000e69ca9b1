"""What the wheel and the source archive hold, and that both work with nothing but what they declare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def build(kind: str, tree: Path, folder: Path) -> Path:
    """Build a ``wheel`` or an ``sdist`` of a tree; give its file."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)],
        cwd=tree,
        check=True,
        capture_output=True,
    )
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory) -> Path:
    return build("wheel", REPOSITORY, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist_file(tmp_path_factory) -> Path:
    return build("sdist", REPOSITORY, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(wheel_file) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel_file)


def tracked(under: str) -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", under], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return set(listed.stdout.split())


def test_it_holds_the_package_whole_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert tracked("airflow_provider_sib") <= names
    assert {name.split("/")[0] for name in names} == {"airflow_provider_sib"}


def test_it_is_typed_and_licensed(wheel):
    names = wheel.namelist()
    assert "airflow_provider_sib/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_airflow_and_pytest_find_their_entry_points(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    text = wheel.read(name).decode()
    assert "provider_info = airflow_provider_sib.provider_info:get_provider_info" in text
    assert "sib_sandbox = airflow_provider_sib.pytest_plugin" in text


def test_what_the_source_archive_builds_is_the_same_wheel(wheel, sdist_file, tmp_path):
    with tarfile.open(sdist_file) as archive:
        archive.extractall(tmp_path / "tree", filter="data")
    (tree,) = (tmp_path / "tree").iterdir()
    again = zipfile.ZipFile(build("wheel", tree, tmp_path / "wheel"))
    assert {file.filename: file.CRC for file in again.infolist()} == {
        file.filename: file.CRC for file in wheel.infolist()
    }


@dataclass(frozen=True)
class Bare:
    """An environment of its own, and the extras that were asked for in it."""

    python: Path
    extras: str


@pytest.fixture(
    scope="module",
    params=[("wheel_file", ""), ("sdist_file", ""), ("wheel_file", "postgres,mysql")],
    ids=["wheel", "sdist", "wheel with extras"],
)
def bare(request, tmp_path_factory) -> Bare:
    """Install one archive alone, beside the Airflow that is here, with its dependencies as they are here."""
    archive, extras = request.param
    folder = tmp_path_factory.mktemp("bare")
    uv = [sys.executable, "-m", "uv", "--quiet"]
    known = subprocess.run(
        [*uv, "pip", "freeze", "--python", sys.executable, "--exclude-editable"],
        capture_output=True,
        text=True,
        check=True,
    )
    constraints = folder / "constraints.txt"
    constraints.write_text(known.stdout)
    subprocess.run([*uv, "venv", "--python", sys.executable, str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    wanted = f"airflow-provider-sib[{extras}] @ {request.getfixturevalue(archive).as_uri()}"
    given = [wanted, "--constraint", str(constraints), "--build-constraint", str(constraints)]
    subprocess.run([*uv, "pip", "install", "--python", str(python), *given], check=True)
    return Bare(python, extras)


def said(python: Path, *words: str) -> str:
    """Run a Python that is not told of this repository; give what it prints."""
    unwanted = ("AIRFLOW__", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    done = subprocess.run(
        [str(python), *words],
        cwd=python.parent,
        env={name: value for name, value in os.environ.items() if not name.startswith(unwanted)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


INSPECT = """
import importlib, importlib.util, json, pkgutil
import airflow_provider_sib as ours
from airflow.providers_manager import ProvidersManager
from airflow_provider_sib.campaign.sql_ledger import SqlLedger

there = [name for name in ("pytest", "psycopg2", "pymysql", "hypothesis") if importlib.util.find_spec(name)]
# For tests of one's own DAGs: pytest itself loads it.
not_ours_to_import = {"airflow_provider_sib.pytest_plugin"}
names = {module.name for module in pkgutil.walk_packages(ours.__path__, "airflow_provider_sib.")}
for name in names - not_ours_to_import:
    importlib.import_module(name)
hook = ProvidersManager().hooks["sib_conversations"]
ledgers = []
for driver in ("postgresql+psycopg2", "mysql+pymysql"):
    try:
        SqlLedger(f"{driver}://127.0.0.1:1/nobody_listens")
    except Exception as error:
        ledgers.append(type(error).__name__)
told = {"there": there, "modules": len(names), "file": ours.__file__, "hook": hook.hook_class_name, "ledgers": ledgers}
print(json.dumps(told))
"""


def test_with_nothing_but_what_it_declares_every_module_is_imported_and_airflow_knows_it(bare):
    told = json.loads(said(bare.python, "-c", INSPECT).splitlines()[-1])
    assert told["there"] == (["psycopg2", "pymysql"] if bare.extras else [])
    assert told["ledgers"] == 2 * ["LedgerUnavailable" if bare.extras else "ModuleNotFoundError"]
    assert told["modules"] > 50
    assert Path(told["file"]).is_relative_to(bare.python.parent.parent)
    assert told["hook"] == "airflow_provider_sib.hooks.SibConversationsHook"


def test_with_nothing_but_what_it_declares_its_commands_and_airflows_work(bare):
    assert "campaigns" in said(bare.python, "-m", "airflow_provider_sib", "--help")
    assert "airflow-provider-sib" in said(bare.python, "-m", "airflow", "providers", "list")


def test_no_file_names_the_host_of_a_registry():
    """Pins go into constraints.txt, by version: where packages come from is each machine's own business."""
    hosts = ("pypi" + ".org", "files.python" + "hosted.org", "registry.npm" + "js.org")
    for name in tracked("."):
        text = (REPOSITORY / name).read_bytes().decode(errors="replace")
        assert not [host for host in hosts if host in text], name
