"""What the wheel holds: what users install."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file)


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


def test_no_file_names_the_host_of_a_registry():
    """Pins go into constraints.txt, by version: where packages come from is each machine's own business."""
    hosts = ("pypi" + ".org", "files.python" + "hosted.org", "registry.npm" + "js.org")
    for name in tracked("."):
        text = (REPOSITORY / name).read_bytes().decode(errors="replace")
        assert not [host for host in hosts if host in text], name
