"""``python -m airflow_provider_sib.sandbox``, as one starts and ends it; and the pytest fixture."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import pytest

from airflow_provider_sib.sandbox import Sandbox

COMMAND = [sys.executable, "-W", "error", "-m", "airflow_provider_sib.sandbox"]


@contextmanager
def running(*options: str):
    with subprocess.Popen(
        [*COMMAND, "--port", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address, page = process.stdout.readline(), process.stdout.readline()
            yield process, address, page
        finally:
            process.kill()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_it_says_its_address_and_ends_cleanly(ending):
    with running() as (process, address, page):
        assert re.fullmatch(
            r"Sandbox of Brevo Conversations: http://127\.0\.0\.1:\d+/v3 \(api-key xkeysib-sandbox\)\n",
            address,
        )
        url = page.removeprefix("What visitors see: ").strip()
        with urllib.request.urlopen(url) as reply:
            assert b"Conversations sandbox" in reply.read()
        process.send_signal(ending)
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == ""


def test_switches_and_faults_are_set_at_its_start():
    options = [
        "--quota",
        "7",
        "--hour-seconds",
        "20",
        "--unknown-visitor",
        "reject",
        "--api-key",
        "xkeysib-mine",
    ]
    options += [
        "--restricted-key",
        "--fault",
        "latency,seconds=0.5,times=2,operation=get_account",
        "--fault=garbage",
    ]
    with running(*options) as (_, address, page):
        assert "xkeysib-mine" not in address + page
        url = page.removeprefix("What visitors see: ").strip()
        with urllib.request.urlopen(f"{url}_sandbox/state") as reply:
            state = json.load(reply)
    settings = state["settings"]
    assert (settings["quota"], settings["hour_seconds"], settings["unknown_visitor"]) == (7, 20, "reject")
    assert settings["restricted_key"] == "***"
    assert [(fault["kind"], fault["times"]) for fault in state["faults"]] == [
        ("latency", 2),
        ("garbage", None),
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--quota", "many"], "quota must be a whole number; it is 'many'."),
        (["--fault", "fire"], "kind must be one of "),
        (
            ["--fault", "latency,seconds"],
            "--fault latency,seconds: seconds has no value; write it as NAME=VALUE.",
        ),
    ],
)
def test_a_wrong_option_is_answered_by_one_sentence(options, sentence):
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1


def test_a_taken_port_is_said_at_once_in_one_sentence():
    with Sandbox() as sandbox:
        port = sandbox.page_url.split(":")[2].strip("/")
        done = subprocess.run(
            [*COMMAND, "--port", port], capture_output=True, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == f"Port {port} of 127.0.0.1 is taken: choose another with --port, or 0 for a free one.\n"
    )


@pytest.mark.parametrize("options", [["--port", "70000"], ["--host", "192.0.2.1", "--port", "0"]])
def test_an_address_that_cannot_be_had_is_said_in_one_sentence(options):
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"The sandbox can't listen on port \d+ of [\d.]+: .+\n", done.stderr)


def modules_after(statement: str) -> set[str]:
    """Name the top-level packages that a fresh interpreter has after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    return set(done.stdout.split())


def test_the_server_imports_nothing_of_airflow_nor_of_the_other_rooms():
    heavy = {"airflow", "pydantic", "sqlalchemy", "requests", "pendulum"}
    # Some releases of yarl, which aiohttp stands on, import pydantic where it is installed.
    added = modules_after("import airflow_provider_sib.sandbox.__main__") - modules_after(
        "import aiohttp.web"
    )
    assert not heavy & added


@pytest.mark.parametrize("module", ["airflow_provider_sib.sandbox", "airflow_provider_sib.pytest_plugin"])
def test_what_pytest_loads_in_every_run_imports_nothing_heavy(module):
    assert not {"aiohttp", "airflow", "asyncio"} & modules_after(f"import {module}") - modules_after(
        "import pytest"
    )


def test_the_fixture_is_a_sandbox_that_airflows_default_connection_leads_to(sib_sandbox):
    assert isinstance(sib_sandbox, Sandbox)
    assert json.loads(os.environ["AIRFLOW_CONN_SIB_CONVERSATIONS_DEFAULT"]) == sib_sandbox.connection()
    assert sib_sandbox.messages() == []
