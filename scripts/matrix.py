"""Run the tests on every supported Airflow and Python: a venv and a copy of its own for each pair, a table, and JSON.

It promises that each pair was resolved anew as its table says, and nothing about packages that appear later. A Python
that is not on this machine is named and left out.
"""

# ruff: noqa: S603, S607 - it runs uv, git, and the interpreters it has found or made

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
WORKPLACE = REPOSITORY / ".matrix"
PYTHONS = ("3.11", "3.12", "3.13")
NEWEST = "newest"
"""Row of the newest Airflow there is, pre-releases included."""
ABSENT = "not on this machine"
LINES_SHOWN = 40
"""Of a failed pair's log; at its end pytest names what failed."""


@dataclass(frozen=True, slots=True)
class Row:
    """How an Airflow and what it stands on are chosen.

    :param requirements: what is asked for beside this package.
    :param options: how uv resolves it.
    :param lowest: whether everything this package declares is taken in the lowest version it declares.
    :param pythons: the Pythons it runs on.
    """

    requirements: tuple[str, ...]
    options: tuple[str, ...] = ()
    lowest: bool = False
    pythons: tuple[str, ...] = PYTHONS


# An old Airflow gets what there was on the day after its release: with younger packages some do not even start.
AS_OF_3_1_8 = ("--exclude-newer", "2026-03-12")
ROWS = {
    "lowest": Row((), AS_OF_3_1_8, lowest=True, pythons=PYTHONS[:1]),
    # Airflow's own constraints of 3.1.8 pin this SQLAlchemy.
    "3.1.8": Row(("apache-airflow==3.1.8", "SQLAlchemy==1.4.54"), AS_OF_3_1_8),
    "3.2.2": Row(("apache-airflow==3.2.2",), ("--exclude-newer", "2026-05-30")),
    "3.3.2": Row(("apache-airflow==3.3.2",), ("--constraint", "constraints.txt")),
    NEWEST: Row(()),
}


@dataclass(slots=True)
class Outcome:
    """What became of one pair; the fields of the table, and where its log is."""

    row: str
    python: str
    airflow: str = ""
    sqlalchemy: str = ""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: int = 0
    said: str = ""
    log: str = ""

    @property
    def bad(self) -> bool:
        """Whether it makes the whole fail."""
        return self.said not in ("passed", ABSENT)


def interpreter(version: str) -> str | None:
    """Find a Python of this version that has what Airflow needs of it: on the path, or pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    beside = sorted((pyenv / "versions").glob(f"{version}.*/bin/python"))
    for candidate in (sys.executable, shutil.which(f"python{version}"), *map(str, reversed(beside))):
        if candidate is None:
            continue
        code = "import ctypes, sqlite3, ssl, sys; print('{}.{}'.format(*sys.version_info))"
        asked = subprocess.run([candidate, "-c", code], check=False, capture_output=True, text=True)
        if asked.returncode == 0 and asked.stdout.strip() == version:
            return candidate
    return None


def uv(*words: str) -> list[str]:
    """Give the command line of the uv beside this Python."""
    return [sys.executable, "-m", "uv", "--quiet", *words]


def copied(folder: Path) -> Path:
    """Copy the repository as it stands, with its history: pairs that run side by side share no file."""

    def git(*words: str | Path) -> str:
        return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout

    shutil.rmtree(folder, ignore_errors=True)
    git("clone", "--quiet", "--no-checkout", REPOSITORY, folder)
    git("-C", folder, "reset", "--quiet")
    files = git("-C", REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in files.split("\0")[:-1]:
        if (REPOSITORY / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    return folder


def install(name: str, tree: Path, folder: Path, python: str, log: Path) -> str:
    """Make the venv of a pair anew; return its Python.

    :param tree: the copy that is tested.

    :raises subprocess.CalledProcessError: when nothing fits, or an installation fails; the log says why.
    """
    mine = str(folder / "bin" / "python")
    row = ROWS[name]
    asked = [*(newest() if name == NEWEST else row.requirements), *row.options]
    with log.open("w") as out:

        def run(command: list[str]) -> None:
            print("$", *command, file=out, flush=True)
            subprocess.run(command, cwd=tree, stdout=out, stderr=subprocess.STDOUT, check=True)

        run(uv("venv", "--clear", "--python", python, str(folder)))
        if row.lowest:
            pins = str(folder / "lowest.txt")
            resolve = uv(
                "pip", "compile", "pyproject.toml", "--python", mine, "--resolution", "lowest-direct"
            )
            run([*resolve, "--all-extras", "--no-header", "-o", pins, *row.options])
            asked += ["--constraint", pins]
        # Compiled now, and not by each of the hundred interpreters that the tests start.
        get = uv("pip", "install", "--python", mine, "--compile-bytecode", "--group", "test")
        run([*get, "-e", ".[postgres,mysql]", *asked])
    return mine


def newest() -> list[str]:
    """Ask the package index for the newest Airflow; give what lets uv choose it, and no other pre-releases."""
    command = [sys.executable, "-m", "pip", "index", "versions", "--pre", "apache-airflow"]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    version = told.stdout.partition("(")[2].partition(")")[0]
    return [f"apache-airflow=={version}", f"apache-airflow-core=={version}", "apache-airflow-task-sdk>=1.3a0"]


def versions(python: str) -> tuple[str, str]:
    """Give the versions of Airflow and SQLAlchemy that a venv has."""
    code = "from importlib.metadata import version as v; print(v('apache-airflow'), v('SQLAlchemy'))"
    told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    airflow, sqlalchemy = told.stdout.split()
    return airflow, sqlalchemy


def tried(name: str, version: str, arguments: list[str]) -> Outcome:
    """Run the tests on one pair."""
    outcome = Outcome(name, version)
    if (python := interpreter(version)) is None:
        outcome.said = ABSENT
        return outcome
    pair = f"{name}-py{version}"
    log, told = WORKPLACE / f"{pair}.log", WORKPLACE / f"{pair}.xml"
    outcome.log = str(log.relative_to(REPOSITORY))
    told.unlink(missing_ok=True)
    tree = copied(WORKPLACE / pair / "tree")
    try:
        mine = install(name, tree, WORKPLACE / pair / "venv", python, log)
    except subprocess.CalledProcessError:
        outcome.said = "not installed"
        return outcome
    outcome.airflow, outcome.sqlalchemy = versions(mine)
    began = time.monotonic()
    with log.open("a") as out:
        command = [mine, "-m", "pytest", "-p", "no:cacheprovider", f"--junit-xml={told}", *arguments]
        print("$", *command, file=out, flush=True)
        ended = subprocess.run(
            command,
            check=False,
            cwd=tree,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    outcome.seconds = round(time.monotonic() - began)
    if told.exists():
        (suite,) = ET.parse(told).getroot()  # noqa: S314 - written by the run above
        counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        outcome.failed = counts["failures"] + counts["errors"]
        outcome.skipped = counts["skipped"]
        outcome.passed = counts["tests"] - outcome.failed - outcome.skipped
    outcome.said = "passed" if ended.returncode == 0 else f"failed (exit {ended.returncode})"
    return outcome


def table(outcomes: list[Outcome]) -> str:
    """Draw the outcomes as a table in Markdown."""
    head = ("row", "Airflow", "Python", "SQLAlchemy", "passed", "failed", "skipped", "seconds", "")
    lines = [head, tuple("---" for _ in head)]
    for one in outcomes:
        facts = (one.row, one.airflow, one.python, one.sqlalchemy)
        lines.append((*facts, *map(str, (one.passed, one.failed, one.skipped, one.seconds)), one.said))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Run the chosen pairs; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=ROWS, action="append", help="an Airflow; may be repeated; default: all"
    )
    parser.add_argument("--python", choices=PYTHONS, action="append", help="a Python; likewise")
    parser.add_argument("--jobs", type=int, default=1, help="pairs that run side by side; default: 1")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --; default: the whole suite")
    asked = parser.parse_args()
    # A shell lets what it starts in the background ignore Ctrl-C, and some tests press it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    WORKPLACE.mkdir(exist_ok=True)
    pairs = [
        (name, version)
        for name in asked.only or ROWS
        for version in ROWS[name].pythons
        if version in (asked.python or PYTHONS)
    ]

    def tell(pair: tuple[str, str]) -> Outcome:
        name, version = pair
        print(f"{name} on Python {version} ...", flush=True)
        outcome = tried(name, version, asked.pytest)
        if outcome.bad:
            print(*(REPOSITORY / outcome.log).read_text().splitlines()[-LINES_SHOWN:], sep="\n")
        see = f": see {outcome.log}" if outcome.bad else ""
        print(f"    {name} on Python {version}: {outcome.said}{see}", flush=True)
        return outcome

    with ThreadPoolExecutor(asked.jobs) as runner:
        outcomes = list(runner.map(tell, pairs))
    print(table(outcomes))
    report = {
        "at": datetime.now(UTC).isoformat("T", "seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "pairs": [asdict(outcome) for outcome in outcomes],
    }
    (WORKPLACE / "matrix.json").write_text(json.dumps(report, indent=2) + "\n")
    return int(any(outcome.bad for outcome in outcomes) or all(o.said == ABSENT for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
