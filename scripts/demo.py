"""Shows a campaign: starts the sandbox and a real Airflow, and runs the DAG ``announce_release``.

Its hour is short, and its quota smaller than the audience, so that the task is deferred and resumed.

Everything it makes is below ``.demo/`` in the repository, made anew each time: Airflow's home, with its
configuration, and the logs. However it ends, it leaves no process behind, except when it is itself ended by
SIGKILL: then the next demo ends what is left. Where there is no ``/proc``, a task that outlives its Airflow is
not found.
"""

from __future__ import annotations

import argparse
import base64
import csv
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from configparser import ConfigParser
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote as quote_url

from airflow_provider_sib.campaign.ledger import LedgerError
from airflow_provider_sib.campaign.report import report
from airflow_provider_sib.campaign.sql_ledger import SqlLedger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

    from airflow_provider_sib.campaign.report import Report

REPOSITORY = Path(__file__).resolve().parent.parent
VISITORS = REPOSITORY / "dags" / "include" / "visitors.csv"
HOME = REPOSITORY / ".demo"
DAG_ID = "announce_release"
CAMPAIGN_ID = "release-2.0"
INVITED_DAG_IDS = ("fix_a_typo", "withdraw_expired")
API_KEY = "xkeysib-sandbox"  # the sandbox's own default
MARKER = "SIB_DEMO"

SANDBOX_START_SECONDS = 20
AIRFLOW_START_SECONDS = 180
RUN_SECONDS = 900
POLL_SECONDS = 0.5
UNDER_WAY = ("scheduled", "queued", "running", "deferred", "up_for_retry", "restarting")
# Airflow has nothing to save: its home is made anew.
GRACE_SECONDS = 5.0
ERROR_LINES = 20

# A local address never goes through a proxy, whatever the environment says.
_http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class DemoError(Exception):
    """The demo can't go on: a sentence for people."""


def free_ports(count: int) -> list[int]:
    """Find TCP ports that nobody uses on any address of this machine.

    :param count: how many.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


# -- processes -----------------------------------------------------------------------------------------------


class Processes:
    """Start processes, and end them with all that they started.

    Each is a session of its own, so that a terminal's Ctrl-C reaches the demo alone. Airflow's tasks leave their
    process groups and outlive it: they are known by a variable of the environment that all of them inherit.

    :param mark: value of that variable; unique to this demo, the same in the next one.
    :param logs: folder that gets the output of each.
    """

    def __init__(self, mark: str, logs: Path) -> None:
        self._mark = mark
        self._logs = logs
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, command: list[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start one.

        :param name: of its log file, to which its output is added.
        :param command: the program and its arguments.
        :param env: its environment, to which the mark is added.
        """
        with (self._logs / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(  # noqa: S603  the commands are this file's own
                command,
                env={**env, MARKER: self._mark},
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def left(self) -> set[int]:
        """List the ids of the processes that still run."""
        ids = {process.pid for process in self._started if process.poll() is None}
        entry = f"{MARKER}={self._mark}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                # of a dead process that waits for its parent this is empty
                if entry in (folder / "environ").read_bytes().split(b"\0"):
                    ids.add(int(folder.name))
            except OSError:  # it has ended, or is another user's
                continue
        return ids - {os.getpid()}

    def end(self, *, grace_seconds: float = GRACE_SECONDS) -> None:
        """End all that was started: first by SIGTERM, then by SIGKILL.

        :param grace_seconds: how long to wait in between.
        :raises DemoError: when something still runs after that.
        """
        self._send(signal.SIGTERM)
        ended_at = time.monotonic() + grace_seconds
        while (left := self.left()) and time.monotonic() < ended_at + GRACE_SECONDS:
            if time.monotonic() >= ended_at:
                self._send(
                    signal.SIGKILL
                )  # again and again: a process may start others while it is looked for
            time.sleep(0.05)
        for process in self._started:
            process.poll()
        if left:
            raise DemoError(f"These processes could not be ended: {', '.join(map(str, sorted(left)))}.")

    def _send(self, number: signal.Signals) -> None:
        for process in self._started:
            end_group(process, number)
        for pid in self.left():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


def end_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to the process group that a process leads, or led."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # macOS says "not permitted" of a group of dead processes
        return


# -- the terminal --------------------------------------------------------------------------------------------


class Screen:
    """Write lines for people, and below them one that is written over; plain lines where there is no terminal."""

    def __init__(self) -> None:
        self._in_place = sys.stdout.isatty()
        self._shown = ""
        self._written_at = time.monotonic()

    def say(self, text: str = "") -> None:
        """Write lines that stay."""
        print(f"\r\x1b[2K{text}" if self._in_place and self._shown else text, flush=True)
        self._shown = ""

    def progress(self, text: str) -> None:
        """Write over the last such line; where there is no terminal a new line, at most every five seconds."""
        if text == self._shown:
            return
        if self._in_place:
            self._shown = text[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[2K{self._shown}", end="", flush=True)
        elif time.monotonic() - self._written_at >= 5:
            self._shown, self._written_at = text, time.monotonic()
            print(text, flush=True)

    def phase(self, name: str, began: float, note: str = "") -> None:
        """Write that a phase is over.

        :param began: `time.monotonic()` at its beginning.
        """
        self.say(f"  {name:<34}{time.monotonic() - began:6.1f} s  {note}".rstrip())


# -- the sandbox and Airflow ---------------------------------------------------------------------------------


def call(method: str, url: str, body: Any = None, *, token: str | None = None) -> Any:
    """Ask a server of the demo, JSON in and out.

    :param body: None for a request without one.
    :param token: a bearer token, or None.
    :raises OSError: when it can't be reached, or answers with an error (then it is an `HTTPError`).
    """
    headers = {"content-type": "application/json", "accept": "application/json"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310  the demo's own addresses
    with _http.open(request, timeout=20) as response:
        content = response.read()
    return json.loads(content) if content else None


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The sandbox of Brevo's API.

    :param port: where it listens.
    """

    port: int

    @property
    def page(self) -> str:
        """The address of the page that shows what visitors see."""
        return f"http://127.0.0.1:{self.port}/"

    def command(self, quota: int, hour_seconds: float) -> list[str]:
        """Give the command line that starts it."""
        options = {"--port": self.port, "--quota": quota, "--hour-seconds": hour_seconds}
        words = [str(word) for option in options.items() for word in option]
        return [sys.executable, "-m", "airflow_provider_sib.sandbox", *words]

    def greet(self, visitors: list[dict[str, str]]) -> None:
        """Make the visitors known by their names, so that the page shows them from the beginning."""
        known = [{"id": visitor["visitor_id"], "name": visitor["first_name"]} for visitor in visitors]
        call("POST", f"{self.page}_sandbox/visitors", known)

    def summary(self) -> dict[str, Any]:
        """Give the counts and the quota as they are now."""
        found: dict[str, Any] = call("GET", f"{self.page}_sandbox/state?messages=0&log=0")
        return found

    def messages(self) -> list[dict[str, Any]]:
        """Give what was written to visitors, in the order it came, deleted messages too."""
        found: list[dict[str, Any]] = call("GET", f"{self.page}_sandbox/messages")
        return [message for message in found if message["kind"] != "visitor"]


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a DAG."""

    dag_id: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task under way.

    :param campaign_id: the campaign it is about; None before it has begun.
    :param state: one of `UNDER_WAY`.
    :param pid: id of the process that it has, or had last.
    """

    run: Run
    campaign_id: str | None
    state: str
    pid: int | None


class Airflow:
    """A real Airflow, asked through its REST API. https://airflow.apache.org/docs/apache-airflow/stable/stable-rest-api-ref.html

    :param port: of its API server.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._token: str | None = None

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Call the API, with a token of the administrator that everybody is.

        :param path: below ``/api/v2``.
        """
        if self._token is None:
            self._token = call("GET", f"{self.url}/auth/token")["access_token"]
        try:
            return call(method, f"{self.url}/api/v2{path}", body, token=self._token)
        except urllib.error.HTTPError as error:
            if error.code == 401:  # expired: the demo may stay up for days
                self._token = None
            raise

    def is_healthy(self) -> bool:
        """Tell whether every part of it is up."""
        parts = ("metadatabase", "scheduler", "dag_processor", "triggerer")
        try:
            health = self.ask("GET", "/monitor/health")
        except OSError:
            return False
        return all((health[part] or {}).get("status") == "healthy" for part in parts)

    def connect(self, sandbox: Sandbox) -> None:
        """Create the connection to the sandbox."""
        connection = {
            "connection_id": "sib_conversations_default",
            "conn_type": "sib_conversations",
            "description": "The demo's sandbox of Brevo Conversations",
            "host": "http://127.0.0.1",
            "port": sandbox.port,
            "password": API_KEY,
            # The results of a killed task's requests are waited for twice as long.
            "extra": json.dumps({"timeout_seconds": 10}),
        }
        self.ask("POST", "/connections", connection)

    def knows_dag(self, dag_id: str) -> bool:
        """Tell whether a DAG was read.

        :raises DemoError: when it was read and is broken.
        """
        for error in self.ask("GET", "/importErrors")["import_errors"]:
            if Path(error["filename"]).stem == dag_id:
                raise DemoError(f"{error['filename']} can't be imported:\n{error['stack_trace'].rstrip()}")
        try:
            self.ask("GET", f"/dags/{dag_id}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise
        return True

    def unpause(self, dag_id: str) -> None:
        """Let a DAG's runs begin; at first they may not."""
        self.ask("PATCH", f"/dags/{dag_id}", {"is_paused": False})

    def trigger(self, dag_id: str) -> Run:
        """Start a run of a DAG."""
        started = self.ask("POST", f"/dags/{dag_id}/dagRuns", {"logical_date": None})
        return Run(dag_id, started["dag_run_id"])

    def state(self, run: Run) -> str:
        """Give the state of a run, such as "running"."""
        state: str = self.ask("GET", f"/dags/{run.dag_id}/dagRuns/{quote_url(run.run_id, safe='')}")["state"]
        return state

    def tasks(self) -> list[Task]:
        """List the tasks that are under way, the one begun last first."""
        query = "&".join(f"state={state}" for state in UNDER_WAY)
        found = self.ask("GET", f"/dags/~/dagRuns/~/taskInstances?{query}&order_by=-start_date")
        return [
            Task(
                run=Run(task["dag_id"], task["dag_run_id"]),
                campaign_id=(task["rendered_fields"] or {}).get("campaign_id"),
                state=task["state"],
                pid=task["pid"],
            )
            for task in found["task_instances"]
        ]


def write_configuration(*, home: Path, airflow: int, log_servers: tuple[int, int]) -> None:
    """Write ``airflow.cfg``, so that any ``airflow`` command with this home finds the demo's Airflow.

    :param home: Airflow's home.
    :param airflow: port of its API server.
    :param log_servers: ports of the log servers of the workers and of the triggerer.
    """
    sections: dict[str, dict[str, object]] = {
        "core": {
            "executor": "LocalExecutor",
            "dags_folder": REPOSITORY / "dags",
            "load_examples": False,
            "test_connection": "Enabled",
            "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            # It listens on the loopback address only, and there are just the sandbox's visitors to be seen.
            "simple_auth_manager_all_admins": True,
        },
        "database": {"sql_alchemy_conn": f"sqlite:///{home}/airflow.db"},
        "api": {
            "host": "127.0.0.1",
            "port": airflow,
            "base_url": f"http://127.0.0.1:{airflow}",
            "secret_key": secrets.token_hex(16),
        },
        "api_auth": {"jwt_secret": secrets.token_hex(32)},
        "logging": {
            "base_log_folder": home / "logs",
            "worker_log_server_port": log_servers[0],
            "trigger_log_server_port": log_servers[1],
        },
        "dag_processor": {"min_file_process_interval": 5, "refresh_interval": 10},
        # What a crash left behind is noticed within seconds instead of minutes: on one machine that is safe.
        "scheduler": {
            "orphaned_tasks_check_interval": 10,
            "scheduler_health_check_threshold": 15,
            "task_instance_heartbeat_timeout": 30,
        },
        "usage_data_collection": {"enabled": False},
        "sib": {"defer_after_seconds": 15},
    }
    configuration = ConfigParser(interpolation=None)
    for section, options in sections.items():
        # Airflow's reader expands "%".
        configuration[section] = {name: str(value).replace("%", "%%") for name, value in options.items()}
    path = home / "airflow.cfg"
    path.touch(mode=0o600)
    with path.open("w", encoding="utf-8") as file:
        configuration.write(file)


def environment(home: Path) -> dict[str, str]:
    """Give the environment of the demo's processes: the caller's, without what would change this Airflow."""
    # Without bytecode each of Airflow's processes compiles all of it anew, which takes as long as all the rest.
    unwanted = re.compile(r"AIRFLOW|FORCE_COLOR$|PYTHONDONTWRITEBYTECODE$|(?i:no_proxy)$")
    kept = {name: value for name, value in os.environ.items() if not unwanted.match(name)}
    return kept | {
        "AIRFLOW_HOME": str(home),
        # `standalone` starts its parts as "airflow".
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "NO_COLOR": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        # Without it, setproctitle writes over the environment by which `Processes` knows a process.
        "SPT_NOENV": "1",
    }


# -- what went wrong -----------------------------------------------------------------------------------------


def last_lines(log: Path) -> str:
    """Give the lines of a log that most likely tell what went wrong: those of the last error, or the last."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "(no log)"
    lines = [readable(line) for line in lines if line.strip()]
    signs = re.compile(r"Traceback|\b(?:error|critical|exception)\b|Error:", re.IGNORECASE)
    last = next((n for n in range(len(lines) - 1, -1, -1) if signs.search(lines[n])), len(lines) - 1)
    return "\n".join(
        f"    {line[:200]}" for line in lines[max(0, last + 1 - ERROR_LINES // 2) :][:ERROR_LINES]
    )


def readable(line: str) -> str:
    """Shorten a line of a task's log, which is JSON, to what it says; give any other as it is."""
    try:
        entry = json.loads(line)
        raised = "".join(f" {one['exc_type']}: {one['exc_value']}" for one in entry.get("error_detail") or ())
        return f"{entry['level']}: {entry['event']}{raised}"
    except (ValueError, TypeError, KeyError, AttributeError):
        return line


def task_log(home: Path) -> Path:
    """Find the log of the task that wrote last."""
    logs = (home / "logs").glob(f"dag_id={DAG_ID}/**/*.log")
    return max(logs, key=lambda log: log.stat().st_mtime, default=home / "logs" / "airflow.log")


# -- the demo ------------------------------------------------------------------------------------------------


class Demo:
    """One demo: its processes, what they are asked, and what is shown of it.

    :param quota: calls the sandbox allows in an hour.
    :param hour_seconds: how long that hour lasts.
    """

    def __init__(self, *, quota: int, hour_seconds: float) -> None:
        sandbox, airflow, *log_servers = free_ports(4)
        self.screen = Screen()
        self.sandbox = Sandbox(sandbox)
        self.airflow = Airflow(airflow)
        self._commands = {
            "sandbox": self.sandbox.command(quota, hour_seconds),
            "airflow": [str(Path(sys.executable).with_name("airflow")), "standalone"],
        }
        with VISITORS.open(encoding="utf-8", newline="") as rows:
            self._visitors = list(csv.DictReader(rows))
        self._processes = Processes(str(HOME), HOME / "logs")
        self._env = environment(HOME)
        self._ports = (airflow, (log_servers[0], log_servers[1]))
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ledger: SqlLedger | None = None
        # When each run was first seen, and its task as seen last.
        self._under_way: dict[Run, tuple[float, Task]] = {}
        self._deferrals = 0

    def __enter__(self) -> Self:
        HOME.mkdir(exist_ok=True)
        self._lock = (HOME / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DemoError("A demo already runs in this folder: stop it with Ctrl-C first.") from None
        self._processes.end()  # of a demo that was killed
        for path in HOME.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        (HOME / "logs").mkdir()
        airflow, log_servers = self._ports
        write_configuration(home=HOME, airflow=airflow, log_servers=log_servers)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            ignore_signals()
            self.screen.say("\n  Ending all processes.")
        finally:  # also when the terminal is gone
            if self._ledger is not None:
                self._ledger.close()
            self._processes.end()
            self._lock.close()

    def start(self) -> None:
        """Start the sandbox and Airflow, and connect them."""
        began = time.monotonic()
        self._start("airflow")
        self._start("sandbox")
        self._wait("sandbox", SANDBOX_START_SECONDS, lambda: reached(self.sandbox.summary) is not None)
        self.sandbox.greet(self._visitors)
        self.screen.phase("sandbox", began, self.sandbox.page)
        self._wait("airflow", AIRFLOW_START_SECONDS, self.airflow.is_healthy)
        self.airflow.connect(self.sandbox)
        self._wait("airflow", AIRFLOW_START_SECONDS, partial(self.airflow.knows_dag, DAG_ID))
        self.screen.phase("airflow standalone", began, self.airflow.url)

    def run(self) -> None:
        """Run the DAG to its end.

        :raises DemoError: when it fails, or doesn't end.
        """
        began = time.monotonic()
        self.airflow.unpause(DAG_ID)
        run = self.airflow.trigger(DAG_ID)
        while (state := reached(partial(self.airflow.state, run))) != "success":
            waited = time.monotonic() - began
            if state == "failed" or waited > RUN_SECONDS:
                log = task_log(HOME)
                raise DemoError(
                    f"After {waited:.0f} s the run of {DAG_ID} is {state or 'out of reach'}. {log} says:\n"
                    f"{last_lines(log)}"
                )
            self.follow()
            time.sleep(POLL_SECONDS)
        self.follow()

    def follow(self) -> None:
        """Look once at what is under way, show it, and keep Airflow up.

        :raises DemoError: when Airflow or the sandbox ended of itself.
        """
        self.keep_up()
        tasks = reached(self.airflow.tasks)
        if tasks is None:  # it is being started again
            return
        for task in tasks:
            began, before = self._under_way.get(task.run, (time.monotonic(), task))
            self._deferrals += task.state == "deferred" and (before is task or before.state != "deferred")
            self._under_way[task.run] = began, task
        for run in self._under_way.keys() - {task.run for task in tasks}:
            if (state := reached(partial(self.airflow.state, run))) in ("success", "failed"):
                began, task = self._under_way.pop(run)
                self.screen.phase(f"run of {run.dag_id}: {state}", began, self._standing(task))
        if tasks:
            self.screen.progress(self._progress(tasks[0]))

    def keep_up(self) -> None:
        """Start Airflow again if it was killed.

        :raises DemoError: when it, or the sandbox, ended otherwise.
        """
        for name, process in list(self._running.items()):
            status = process.poll()
            if status is None:
                continue
            if name == "sandbox" or status >= 0:
                raise DemoError(self._ended(name, status))
            self.screen.say(f"  Airflow was killed (signal {-status}); starting it again.")
            # What is left of it holds its ports. Its tasks are in groups of their own and stay.
            end_group(process, signal.SIGKILL)
            self._start(name)

    def show_what_was_sent(self) -> None:
        """Write some of the messages and the closing table.

        :raises DemoError: when a visitor has got two, or none.
        """
        messages = self.sandbox.messages()
        by_id = {visitor["visitor_id"]: visitor for visitor in self._visitors}
        samples: dict[str, str] = {}
        for message in messages:
            if (visitor := by_id.get(message["visitorId"])) and visitor["locale"] in ("en-GB", "fr-CA", "ja"):
                line = f"  {visitor['first_name']}, {visitor['locale']}, {visitor['timezone']}: {message['text']}"
                samples.setdefault(visitor["locale"], line)
        reached = len({message["visitorId"] for message in messages})
        standing = self._report(CAMPAIGN_ID)
        table = {
            "visitors": reached,
            "messages": len(messages),
            "twice": len(messages) - reached,
            "in doubt": 0 if standing is None else standing.in_doubt,
            "calls": self.sandbox.summary()["counts"]["requests"],
            "deferrals": self._deferrals,
        }
        self.screen.say("\n" + "\n".join(samples.values()))
        self.screen.say("\n  " + "".join(f"{name:>11}" for name in table))
        self.screen.say("  " + "".join(f"{number:>11}" for number in table.values()))
        if table["twice"]:
            raise DemoError(f"{table['twice']} messages went to visitors who had got one before.")
        if (missed := len(self._visitors) - reached) > table["in doubt"]:
            raise DemoError(f"{missed} visitors got no message.")

    def invite(self) -> None:
        """Write where to look while the demo stays up, and what to try."""
        for dag_id in INVITED_DAG_IDS:
            knows_it = partial(reached, partial(self.airflow.knows_dag, dag_id))
            self._wait("airflow", AIRFLOW_START_SECONDS, knows_it)
            self.airflow.unpause(dag_id)
        airflow = f"AIRFLOW_HOME={quote(str(HOME))} {quote(self._commands['airflow'][0])}"
        latency = json.dumps({"kind": "latency", "seconds": 3})
        self.screen.say(f"""
  Airflow            {self.airflow.url}  (no password)
  What visitors see  {self.sandbox.page}
  Logs               {HOME / "logs"}

  To try, in another terminal, with an eye on what visitors see. What happens is told below.

  1. Kill a task while it sends: everybody still gets the message once. First let Brevo answer slowly and announce
     another release; the task's process id is shown below while it sends. It is tried again after half a minute.
       curl -H content-type:application/json -d {quote(latency)} {self.sandbox.page}_sandbox/faults
       {airflow} dags trigger {DAG_ID} --conf {quote('{"version": "2.1"}')}
       kill -9 PROCESS
       curl -X DELETE {self.sandbox.page}_sandbox/faults
  2. Correct the French typo "exprots", in the messages that have it.
       {airflow} dags trigger {INVITED_DAG_IDS[0]}
  3. Take the announcement back.
       {airflow} dags trigger {INVITED_DAG_IDS[1]}

  Ctrl-C ends it.
""")

    def _start(self, name: str) -> None:
        self._running[name] = self._processes.start(name, self._commands[name], self._env)

    def _ended(self, name: str, status: int) -> str:
        how = f"was killed (signal {-status})" if status < 0 else f"ended with status {status}"
        return f"{name.capitalize()} {how}. {self._log_says(name)}"

    def _log_says(self, name: str) -> str:
        log = HOME / "logs" / f"{name}.log"
        return f"{log} says:\n{last_lines(log)}"

    def _wait(self, name: str, most_seconds: float, is_there: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not is_there():
            if (status := self._running[name].poll()) is not None:
                raise DemoError(self._ended(name, status))
            waited = time.monotonic() - began
            if waited > most_seconds:
                raise DemoError(f"{name.capitalize()} is not up after {waited:.0f} s. {self._log_says(name)}")
            self.screen.progress(f"  {name}: starting, {waited:.0f} s")
            time.sleep(0.1 if name == "sandbox" else POLL_SECONDS)

    def _progress(self, task: Task) -> str:
        text = f"  {task.run.dag_id}: {self._standing(task) or 'starting'}; {task.state}"
        if task.state == "running" and task.pid:
            text += f", process {task.pid}"
        if task.state == "deferred":
            text += ", no worker held"
            summary = reached(self.sandbox.summary)
            if summary and summary["quota"]["is_open"]:
                text += f", next window in {summary['quota']['reset_in_seconds']:.0f} s"
        return text

    def _standing(self, task: Task) -> str:
        """Tell how the campaign of a task stands; nothing where none is known."""
        standing = self._report(task.campaign_id)
        if standing is None:
            return ""
        counts = {"in doubt": standing.in_doubt, "withdrawn": standing.withdrawn}
        more = "".join(f", {count} {name}" for name, count in counts.items() if count)
        left = standing.due + standing.sending
        return f"{standing.campaign_id}: {standing.sent} sent, {left} left{more}"

    def _report(self, campaign_id: str | None) -> Report | None:
        """Find how a campaign stands, by the ledger; None before it is there."""
        path = HOME / "sib_ledger.db"
        if campaign_id is None or not path.exists():
            return None
        try:
            if self._ledger is None:
                self._ledger = SqlLedger(f"sqlite:///{path}")
            return report(self._ledger, campaign_id)
        except LedgerError:
            return None


def reached(ask: Callable[[], Any]) -> Any:
    """Ask a server that may not be up yet; give None then."""
    try:
        return ask()
    except OSError:
        return None


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ignore_signals() -> None:
    """Let no signal that tells the demo to end reach it any more."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo.

    :param arguments: the command line without the program's name; None for this process's own.
    :return: the exit status: 0 when the announcement was sent, 1 when not, 128 + the signal when told to end
        before.
    """
    parser = argparse.ArgumentParser(description="Starts a sandbox and an Airflow, and runs an announcement.")
    parser.add_argument("--once", action="store_true", help="end when the DAG run has ended")
    parser.add_argument("--quota", type=int, default=50, help="calls an hour (default: %(default)s)")
    parser.add_argument(
        "--hour-seconds", type=float, default=30, help="how long an hour lasts (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every terminal can show every language

    def stop(number: int, _: FrameType | None) -> None:
        ignore_signals()  # it ends already
        raise SystemExit(128 + number)

    for number in SIGNALS:
        signal.signal(number, stop)
    sent = False
    try:
        with Demo(quota=options.quota, hour_seconds=options.hour_seconds) as demo:
            demo.start()
            demo.run()
            demo.show_what_was_sent()
            sent = True
            if not options.once:
                demo.invite()
                while True:
                    demo.follow()
                    time.sleep(POLL_SECONDS)
    except DemoError as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        return 1
    except SystemExit as told:
        return 0 if sent else int(str(told.code))
    return 0


if __name__ == "__main__":
    sys.exit(main())
