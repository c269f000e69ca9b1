"""A sandbox and a real Airflow of their own, on free ports of this machine, below one folder.

The demo, the tests in a browser and the pictures of the documentation stand on it. However it ends, it leaves no
process behind, except when it is itself ended by SIGKILL: then the next one in the same folder ends what is left.
Where there is no ``/proc``, a task that outlives its Airflow is not found.
"""

from __future__ import annotations

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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote as quote_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

REPOSITORY = Path(__file__).resolve().parent.parent
DAGS = REPOSITORY / "dags"
VISITORS = DAGS / "include" / "visitors.csv"
API_KEY = "xkeysib-sandbox"  # the sandbox's own default
MARKER = "SIB_TRIAL"

SANDBOX_START_SECONDS = 20
AIRFLOW_START_SECONDS = 300
POLL_SECONDS = 0.5
UNDER_WAY = ("scheduled", "queued", "running", "deferred", "up_for_retry", "restarting")
# Airflow has nothing to save: its home is made anew.
GRACE_SECONDS = 5.0
ERROR_LINES = 20

# A local address never goes through a proxy, whatever the environment says.
_http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class TrialError(Exception):
    """The trial can't go on: a sentence for people."""


def visitors() -> list[dict[str, str]]:
    """Read the visitors of the example DAGs: invented people."""
    with VISITORS.open(encoding="utf-8", newline="") as rows:
        return list(csv.DictReader(rows))


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

    Each is a session of its own, so that a terminal's Ctrl-C reaches this program alone. Airflow's tasks leave their
    process groups and outlive it: they are known by a variable of the environment that all of them inherit.

    :param mark: value of that variable; unique to this trial, the same in the next one.
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
        :raises TrialError: when something still runs after that.
        """
        self._send(signal.SIGTERM)
        ended_at = time.monotonic() + grace_seconds
        while (left := self.left()) and time.monotonic() < ended_at + GRACE_SECONDS:
            if time.monotonic() >= ended_at:
                self._send(
                    signal.SIGKILL
                )  # again and again: a process may start others while it is looked for
            time.sleep(0.05)  # between two looks
        for process in self._started:
            process.poll()
        if left:
            raise TrialError(f"These processes could not be ended: {', '.join(map(str, sorted(left)))}.")

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


# -- the sandbox and Airflow ---------------------------------------------------------------------------------


def call(method: str, url: str, body: Any = None, *, token: str | None = None) -> Any:
    """Ask a server of the trial, JSON in and out.

    :param body: None for a request without one.
    :param token: a bearer token, or None.
    :raises OSError: when it can't be reached, or answers with an error (then it is an `HTTPError`).
    """
    headers = {"content-type": "application/json", "accept": "application/json"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310  the trial's own addresses
    with _http.open(request, timeout=60) as response:
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
            if error.code == 401:  # expired: it may stay up for days
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
            "description": "A sandbox of Brevo Conversations",
            "host": "http://127.0.0.1",
            "port": sandbox.port,
            "password": API_KEY,
            # The results of a killed task's requests are waited for twice as long.
            "extra": json.dumps({"timeout_seconds": 10}),
        }
        self.ask("POST", "/connections", connection)

    def knows_dag(self, dag_id: str) -> bool:
        """Tell whether a DAG was read.

        :raises TrialError: when it was read and is broken.
        """
        for error in self.ask("GET", "/importErrors")["import_errors"]:
            if Path(error["filename"]).stem == dag_id:
                raise TrialError(f"{error['filename']} can't be imported:\n{error['stack_trace'].rstrip()}")
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


def write_configuration(*, home: Path, airflow: int, log_servers: tuple[int, int], dags: Path = DAGS) -> None:
    """Write ``airflow.cfg``, so that any ``airflow`` command with this home finds the trial's Airflow.

    :param home: Airflow's home.
    :param airflow: port of its API server.
    :param log_servers: ports of the log servers of the workers and of the triggerer.
    :param dags: the folder with the DAGs.
    """
    sections: dict[str, dict[str, object]] = {
        "core": {
            "executor": "LocalExecutor",
            "dags_folder": dags,
            "load_examples": False,
            "test_connection": "Enabled",
            "parallelism": 4,  # a process each
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
        # A file that changes is read again at once; to read all others again and again would cost half a core.
        "dag_processor": {"min_file_process_interval": 3600, "refresh_interval": 10},
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


def environment(home: Path, python: Path = Path(sys.executable)) -> dict[str, str]:
    """Give the environment of the trial's processes: the caller's, without what would change this Airflow.

    :param home: Airflow's home.
    :param python: of the environment that Airflow is installed in.
    """
    # Without bytecode each of Airflow's processes compiles all of it anew, which takes as long as all the rest.
    unwanted = re.compile(r"AIRFLOW|FORCE_COLOR$|PYTHONDONTWRITEBYTECODE$|(?i:no_proxy)$")
    kept = {name: value for name, value in os.environ.items() if not unwanted.match(name)}
    return kept | {
        "AIRFLOW_HOME": str(home),
        # `standalone` starts its parts as "airflow".
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "NO_COLOR": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        # Without it, setproctitle writes over the environment by which `Processes` knows a process.
        "SPT_NOENV": "1",
    }


def reached(ask: Callable[[], Any]) -> Any:
    """Ask a server that may not be up yet; give None then."""
    try:
        return ask()
    except OSError:
        return None


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


# -- both of them --------------------------------------------------------------------------------------------


class Trial:
    """A sandbox and an Airflow, not yet started, in a folder that is made anew.

    :param home: that folder: Airflow's home, with its configuration and the logs.
    :param quota: calls the sandbox allows in an hour.
    :param hour_seconds: how long that hour lasts.
    :param python: of the environment whose Airflow is started; this package is installed there too.
    :param dags: the folder with Airflow's DAGs.
    :param tell: gets a line, again and again, while something is waited for.
    """

    def __init__(
        self,
        home: Path,
        *,
        quota: int,
        hour_seconds: float,
        python: Path = Path(sys.executable),
        dags: Path = DAGS,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        sandbox, airflow, *log_servers = free_ports(4)
        self.home = home
        self.logs = home / "logs"
        self.sandbox = Sandbox(sandbox)
        self.airflow = Airflow(airflow)
        self.processes = Processes(str(home), self.logs)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.commands = {
            "sandbox": self.sandbox.command(quota, hour_seconds),
            "airflow": [str(python.with_name("airflow")), "standalone"],
        }
        self._env = environment(home, python)
        self._write_configuration = partial(
            write_configuration,
            home=home,
            airflow=airflow,
            log_servers=(log_servers[0], log_servers[1]),
            dags=dags,
        )
        self._tell = tell

    def __enter__(self) -> Self:
        self.home.mkdir(exist_ok=True, parents=True)
        self._lock = (self.home / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrialError(f"An Airflow already runs in {self.home}: stop it with Ctrl-C first.") from None
        self.processes.end()  # of one that was killed
        for path in self.home.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        self.logs.mkdir()
        self._write_configuration()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.processes.end()
        finally:
            self._lock.close()

    def start_all(self, *, started: Callable[[str, str], None] = lambda *_: None) -> None:
        """Start the sandbox and Airflow, and wait until both can be used.

        :param started: is told the name and the address of each that is.
        :raises TrialError: when one does not start.
        """
        self.start("airflow")
        self.start("sandbox")
        self.wait("sandbox", SANDBOX_START_SECONDS, lambda: reached(self.sandbox.summary) is not None)
        started("sandbox", self.sandbox.page)
        self.wait("airflow", AIRFLOW_START_SECONDS, self.airflow.is_healthy)
        started("airflow", self.airflow.url)

    def start(self, name: str) -> None:
        """Start one of the two, or start it again.

        :param name: "sandbox" or "airflow".
        """
        self.running[name] = self.processes.start(name, self.commands[name], self._env)

    def wait(self, name: str, most_seconds: float, is_there: Callable[[], bool]) -> None:
        """Wait for a condition that one of the two brings about.

        :raises TrialError: when it takes too long, or the one has ended.
        """
        began = time.monotonic()
        while not is_there():
            if (status := self.running[name].poll()) is not None:
                raise TrialError(self.ended(name, status))
            waited = time.monotonic() - began
            if waited > most_seconds:
                raise TrialError(
                    f"{name.capitalize()} is not up after {waited:.0f} s. {self._log_says(name)}"
                )
            self._tell(f"  {name}: starting, {waited:.0f} s")
            time.sleep(0.1 if name == "sandbox" else POLL_SECONDS)  # between two looks

    def wait_for_dag(self, dag_id: str) -> None:
        """Wait until Airflow has read a DAG.

        :raises TrialError: when it can't be read.
        """
        knows_it = partial(reached, partial(self.airflow.knows_dag, dag_id))
        self.wait("airflow", AIRFLOW_START_SECONDS, knows_it)

    def ended(self, name: str, status: int) -> str:
        """Tell how one of the two ended of itself, with the end of its log.

        :param status: as of :attr:`subprocess.Popen.returncode`.
        """
        how = f"was killed (signal {-status})" if status < 0 else f"ended with status {status}"
        return f"{name.capitalize()} {how}. {self._log_says(name)}"

    def _log_says(self, name: str) -> str:
        log = self.logs / f"{name}.log"
        return f"{log} says:\n{last_lines(log)}"
