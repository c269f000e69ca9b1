"""Shows a campaign on CeleryExecutor: a worker, the triggerer and the ledger's database fail while it is sent.

What there is: PostgreSQL (127.0.0.1:5432) with Airflow's metadata, Redis (127.0.0.1:6379) as Celery's broker, each
part of Airflow in processes of its own with two workers, the sandbox, and the ledger in a PostgreSQL server of its
own. The DAG is the example ``announce_release``, for 2,000 visitors. A part that fails does so as a machine without
power: all its processes are killed at once.

Everything it makes is below ``.celery/`` in the repository, made anew each time, but for the files of the ledger's
server, which lie in a temporary folder since no server runs as root; a database on PostgreSQL and one of Redis, and
those three are removed at the end. What was sent (``messages.json``), who got it by the ledger (``deliveries.csv``)
and the logs stay. However it ends, it leaves no process behind, except when it is itself ended by SIGKILL: then the
next one ends what is left.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy as sa

from airflow_provider_sib.campaign.ledger import LedgerError
from airflow_provider_sib.campaign.report import report
from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from demo import CAMPAIGN_ID, DAG_ID, SIGNALS, Screen, ignore_signals, task_log
from trial import (
    AIRFLOW_START_SECONDS,
    REPOSITORY,
    SANDBOX_START_SECONDS,
    VISITORS,
    Airflow,
    Processes,
    Run,
    Sandbox,
    TrialError,
    call,
    environment,
    free_ports,
    last_lines,
    reached,
    write_configuration,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from airflow_provider_sib.campaign.report import Report

HOME = REPOSITORY / ".celery"
METADATA_SERVER = os.environ.get("SIB_TEST_POSTGRES_URL", "postgresql+psycopg2://root@127.0.0.1:5432/test")
BROKER = "redis://127.0.0.1:6379"
BROKER_DATABASES = range(1, 16)
BROKER_CLAIM = "airflow-provider-sib"
LEDGER_CONN_ID = "campaigns_ledger"
LEDGER_USER = "ledger"
WORKERS = ("worker-1", "worker-2")

COUNT = 2000
IN_FLIGHT = 8  # the operator's default: so many doubts each kill of a sender may leave
QUOTA = 900
HOUR_SECONDS = 75.0
ANSWER_SECONDS = 0.15  # a window's messages then take a quarter of a minute: long enough to be hit
OUTAGE_SECONDS = 20.0
POLL_SECONDS = 0.1
LOOK_SECONDS = 1.0
MOST_SECONDS = 1200.0
"""What a step may take, on a machine that has other things to do."""


class LedgerServer:
    """A PostgreSQL server for the ledger alone.

    :param processes: starts it, and nothing else.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._folder: Path | None = None
        self._server: subprocess.Popen[bytes] | None = None
        (self.port,) = free_ports(1)
        found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
        found += [Path(path).parent for path in [shutil.which("initdb")] if path]
        if not found:
            raise TrialError(
                "PostgreSQL's programs are not here: initdb is neither in PATH nor in Debian's place."
            )
        self._bin = max(found, key=lambda path: path.parent.name.zfill(4))
        # PostgreSQL refuses to run as root.
        self._as_user = (
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.getuid() == 0 else []
        )

    def url(self, user: str = LEDGER_USER) -> sa.engine.URL:
        """Give the address of the ledger's database.

        :param user: as whom; the ledger's own user may do no more than a ledger needs.
        """
        return sa.engine.URL.create(
            "postgresql+psycopg2", username=user, host="127.0.0.1", port=self.port, database="ledger"
        )

    def create(self) -> None:
        """Make the server, its user and an empty database, and start it."""
        self._folder = Path(tempfile.mkdtemp(prefix="sib-ledger-"))
        if self._as_user:
            postgres = pwd.getpwnam("postgres")
            os.chown(self._folder, postgres.pw_uid, postgres.pw_gid)
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]
        initdb = [*self._as_user, str(self._bin / "initdb"), *options, str(self._folder / "data")]
        done = subprocess.run(initdb, capture_output=True, text=True, check=False, cwd="/")  # noqa: S603
        if done.returncode:
            raise TrialError(f"initdb failed: {done.stderr.strip()}")
        self.start()
        with administration(self.url("postgres").set(database="postgres")) as server:
            server.exec_driver_sql(f"CREATE ROLE {LEDGER_USER} LOGIN")
            server.exec_driver_sql("CREATE DATABASE ledger")
        # All that the ledger's user needs: to make tables and indexes, which it then owns.
        with administration(self.url("postgres")) as database:
            database.exec_driver_sql(f"GRANT CREATE ON SCHEMA public TO {LEDGER_USER}")

    def start(self) -> None:
        """Start it, also after it was stopped, and wait until it answers."""
        where = ["-D", str(self._folder / "data"), "-k", str(self._folder)] if self._folder else []
        options = ["-h", "127.0.0.1", "-p", str(self.port)]
        command = [*self._as_user, str(self._bin / "postgres"), *where, *options]
        self._server = self._processes.start("ledger", command, dict(os.environ))
        began = time.monotonic()
        while not answers(self.url("postgres").set(database="postgres")):
            if self._server.poll() is not None or time.monotonic() - began > MOST_SECONDS:
                raise TrialError(
                    f"The ledger's server did not start:\n{last_lines(HOME / 'logs' / 'ledger.log')}"
                )
            time.sleep(0.1)  # between two looks

    def crash(self) -> None:
        """Stop it at once, without a checkpoint: it has to recover at its next start."""
        self._stop(signal.SIGQUIT)

    def end(self) -> None:
        """Stop it and remove its files."""
        self._stop(signal.SIGINT)
        self._processes.end()
        if self._folder is not None:
            shutil.rmtree(self._folder)

    def _stop(self, how: signal.Signals) -> None:
        # https://www.postgresql.org/docs/current/server-shutdown.html
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(how)
            try:
                self._server.wait(60)
            except subprocess.TimeoutExpired:
                self._server.kill()


def administration(url: sa.engine.URL) -> Any:
    """Connect to a server outside of transactions, as a context manager.

    :raises TrialError: when it does not answer.
    """
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
    try:
        return closing(engine.connect())
    except sa.exc.OperationalError as error:
        raise TrialError(f"No PostgreSQL answers at {url.render_as_string()}: {error.orig}") from error


def answers(url: sa.engine.URL) -> bool:
    """Tell whether a server answers."""
    try:
        with administration(url):
            return True
    except TrialError:
        return False


class Broker:
    """A database of Redis that was empty, claimed for one folder."""

    def __init__(self) -> None:
        # Of the dependency group "celery", which the tests that only look at this file don't have.
        import redis

        self.url = ""
        try:
            for number in BROKER_DATABASES:
                database = redis.Redis.from_url(f"{BROKER}/{number}")
                is_empty = database.dbsize() == 0
                if (is_empty and database.setnx(BROKER_CLAIM, str(HOME))) or (
                    database.get(BROKER_CLAIM) == str(HOME).encode()  # of one that was killed
                ):
                    self._database, self.url = database, f"{BROKER}/{number}"
                    return
        except redis.ConnectionError as error:
            raise TrialError(f"No Redis answers at {BROKER}: {error}") from error
        raise TrialError(f"No database of {BROKER} is empty.")

    def end(self) -> None:
        """Leave it empty."""
        self._database.flushdb()
        self._database.close()


class OnCelery:
    """One run: its machines, what is done to them, and what came of it."""

    def __init__(self) -> None:
        sandbox, airflow, *log_servers = free_ports(4)
        self.screen = Screen()
        self.sandbox = Sandbox(sandbox)
        self.airflow = Airflow(airflow)
        self._ports = (airflow, (log_servers[0], log_servers[1]))
        program = str(Path(sys.executable).with_name("airflow"))
        self._commands = {
            "sandbox": self.sandbox.command(QUOTA, HOUR_SECONDS),
            "api-server": [program, "api-server", "--workers", "1"],
            "scheduler": [program, "scheduler"],
            "dag-processor": [program, "dag-processor"],
            "triggerer": [program, "triggerer"],
        } | {
            # Their log servers would want the same port.
            name: [program, "celery", "worker", "--skip-serve-logs", "--celery-hostname", f"{name}@%h"]
            for name in WORKERS
        }
        # A machine each: what was started on it is found by its own mark.
        self._machines = {name: Processes(f"{HOME}/{name}", HOME / "logs") for name in self._commands}
        self._ledger_processes = Processes(f"{HOME}/ledger", HOME / "logs")
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._env = environment(HOME)
        name = f"airflow_celery_{hashlib.sha256(str(HOME).encode()).hexdigest()[:12]}"
        self._metadata = sa.engine.make_url(METADATA_SERVER).set(database=name)
        self._broker: Broker | None = None
        self._ledger_server: LedgerServer | None = None
        self._ledger: SqlLedger | None = None
        self._run: Run | None = None
        self._state = "queued"
        self._looked_at = 0.0
        self.deferrals = 0
        self.kills = 0
        self.seconds = 0.0

    # what there is

    def __enter__(self) -> Self:
        HOME.mkdir(exist_ok=True)
        self._lock = (HOME / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrialError("One already runs in this folder: stop it with Ctrl-C first.") from None
        self._end_processes()  # of one that was killed
        for path in HOME.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        (HOME / "logs").mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        ignore_signals()
        # The last one first, and each of them whatever becomes of the others.
        with ExitStack() as end:
            end.callback(self._lock.close)
            if self._broker is not None:
                end.callback(self._drop_metadata)
                end.callback(self._broker.end)
            if self._ledger_server is not None:
                end.callback(self._ledger_server.end)
            end.callback(self._end_processes)
            if self._ledger is not None:
                end.callback(self._ledger.close)
            self.screen.say("\n  Ending all processes.")

    def _end_processes(self) -> None:
        """End all at once, since each has some seconds to go; the ledger's server is stopped in its own way."""
        with ThreadPoolExecutor() as all_at_once:
            for ended in [all_at_once.submit(machine.end) for machine in self._machines.values()]:
                ended.result()
        if self._ledger_server is None:
            self._ledger_processes.end()

    def _drop_metadata(self) -> None:
        with administration(sa.engine.make_url(METADATA_SERVER)) as server:
            server.exec_driver_sql(f'DROP DATABASE IF EXISTS "{self._metadata.database}" WITH (FORCE)')

    def start(self) -> None:
        """Start everything, and connect Airflow with the sandbox and the ledger."""
        began = time.monotonic()
        self._broker = Broker()
        self._drop_metadata()
        with administration(sa.engine.make_url(METADATA_SERVER)) as server:
            server.exec_driver_sql(f'CREATE DATABASE "{self._metadata.database}"')
        self._ledger_server = LedgerServer(self._ledger_processes)
        self._ledger_server.create()
        self.screen.phase("the ledger's PostgreSQL", began, f"port {self._ledger_server.port}")
        self._configure()
        self._write_dag()
        migrate = [str(Path(sys.executable).with_name("airflow")), "db", "migrate"]
        if self._machines["scheduler"].start("migrate", migrate, self._env).wait():
            raise TrialError(
                f"Airflow's database can't be made:\n{last_lines(HOME / 'logs' / 'migrate.log')}"
            )
        self.screen.phase("Airflow's database", began, f"{self._metadata.database}, {self._broker.url}")
        for name in self._commands:
            self._start(name)
        self._until("the sandbox", SANDBOX_START_SECONDS, lambda: reached(self.sandbox.summary) is not None)
        self.screen.phase("sandbox", began, self.sandbox.page)
        self._until("Airflow", AIRFLOW_START_SECONDS * 3, self.airflow.is_healthy)
        self.airflow.connect(self.sandbox)
        self.airflow.ask(
            "POST",
            "/connections",
            {
                "connection_id": LEDGER_CONN_ID,
                "conn_type": "postgres",
                "host": "127.0.0.1",
                "port": self._ledger_server.port,
                "login": LEDGER_USER,
                "schema": "ledger",
            },
        )
        self._until("the DAG", AIRFLOW_START_SECONDS, partial(self.airflow.knows_dag, DAG_ID))
        for name in WORKERS:
            self._until(name, AIRFLOW_START_SECONDS, partial(is_ready, HOME / "logs" / f"{name}.log"))
        self.screen.phase("Airflow with two Celery workers", began, self.airflow.url)

    def _configure(self) -> None:
        assert self._broker is not None  # noqa: S101  claimed before
        airflow, log_servers = self._ports
        write_configuration(home=HOME, airflow=airflow, log_servers=log_servers)
        options = {
            "core": {"executor": "CeleryExecutor", "dags_folder": HOME / "dags"},
            "database": {"sql_alchemy_conn": self._metadata.render_as_string(hide_password=False)},
            "celery": {"broker_url": self._broker.url, "worker_concurrency": 2, "sync_parallelism": 1},
            # What a machine took with it is noticed within seconds instead of minutes.
            "scheduler": {"task_queued_timeout": 60, "task_queued_timeout_check_interval": 10},
            "workers": {"execution_api_timeout": 30},
            "triggerer": {"triggerer_health_check_threshold": 15},
            "sib": {"ledger_conn_id": LEDGER_CONN_ID},
        }
        configuration = ConfigParser(interpolation=None)
        path = HOME / "airflow.cfg"
        configuration.read(path, encoding="utf-8")
        for section, values in options.items():
            if not configuration.has_section(section):
                configuration.add_section(section)
            for name, value in values.items():
                configuration.set(section, name, str(value).replace("%", "%%"))
        with path.open("w", encoding="utf-8") as file:
            configuration.write(file)

    def _write_dag(self) -> None:
        """Copy the example, and give it 2,000 visitors."""
        (HOME / "dags" / "include").mkdir(parents=True)
        shutil.copy(REPOSITORY / "dags" / f"{DAG_ID}.py", HOME / "dags")
        with VISITORS.open(encoding="utf-8", newline="") as rows:
            known = list(csv.DictReader(rows))
        with (HOME / "dags" / "include" / VISITORS.name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, known[0].keys())
            writer.writeheader()
            for number in range(COUNT):
                writer.writerow(known[number % len(known)] | {"visitor_id": f"visitor-{number:04}"})

    # what is done

    def run(self) -> None:
        """Run the DAG to its end, and let one machine after the other fail in the worst moment.

        :raises TrialError: when the run fails, or doesn't end.
        """
        call("POST", f"{self.sandbox.page}_sandbox/faults", {"kind": "latency", "seconds": ANSWER_SECONDS})
        began = time.monotonic()
        self.airflow.unpause(DAG_ID)
        self._run = self.airflow.trigger(DAG_ID)

        self._until("the first messages", MOST_SECONDS, lambda: self._is_sending(COUNT // 10))
        worker = self._until("the task's worker", MOST_SECONDS, self._busy_worker)
        self._kill(worker)
        self.screen.phase(f"{worker} killed, sending", began, self._standing())

        self._until("a deferral", MOST_SECONDS, lambda: self._state == "deferred")
        self._kill("triggerer")
        self._start("triggerer")
        self.screen.phase("triggerer killed, task deferred", began, self._standing())

        sent = self._sent()
        self._until("further messages", MOST_SECONDS, lambda: self._is_sending(sent + COUNT // 20))
        assert self._ledger_server is not None  # noqa: S101  started before
        self._ledger_server.crash()
        self.kills += 1
        self.screen.phase("ledger's database stopped, sending", began, self._standing())
        back_at = time.monotonic() + OUTAGE_SECONDS
        self._until("the end of the outage", MOST_SECONDS, lambda: time.monotonic() > back_at)
        self._ledger_server.start()
        self.screen.phase("ledger's database started", began, self._standing())

        self._until("the end of the run", MOST_SECONDS, lambda: self._state == "success")
        self.seconds = time.monotonic() - began
        self.screen.phase("run: success", began, self._standing())

    def _busy_worker(self) -> str | None:
        """Find the worker on which the task runs."""
        for task in reached(self.airflow.tasks) or ():
            for name in WORKERS:
                if task.state == "running" and task.pid in self._machines[name].left():
                    return name
        return None

    def _kill(self, name: str) -> None:
        """Kill all that runs on a machine: first what would start others anew."""
        self._running.pop(name).kill()
        while left := self._machines[name].left():
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self.kills += 1

    # what came of it

    def show(self) -> dict[str, float]:
        """Keep and show what the sandbox received, and what the ledger says of it.

        :raises TrialError: when somebody got two messages or is lost, or more are in doubt than may be.
        """
        messages = self.sandbox.messages()
        (HOME / "messages.json").write_text(json.dumps(messages), encoding="utf-8")
        ledger = self._open_ledger()
        deliveries = list(ledger.deliveries(CAMPAIGN_ID))
        with (HOME / "deliveries.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("visitor_id", "once_key", "state", "reason"))
            writer.writerows(
                (one.visitor_id, one.key, one.state.name.lower(), one.reason) for one in deliveries
            )
        got = {message["visitorId"] for message in messages}
        doubts = {one.visitor_id for one in deliveries if one.state.name == "IN_DOUBT"}
        enrolled = {f"visitor-{number:04}" for number in range(COUNT)}
        table = {
            "visitors": len(enrolled),
            "messages": len(messages),
            "twice": len(messages) - len(got),
            "lost": len(enrolled - got - doubts),
            "in doubt": len(doubts),
            "kills": self.kills,
            "retries": self._tries() - 1,
            "deferrals": self.deferrals,
            "seconds": round(self.seconds),
        }
        (HOME / "table.json").write_text(json.dumps(table), encoding="utf-8")
        if doubts:
            named = ", ".join(f"{one} ({'got it' if one in got else 'did not'})" for one in sorted(doubts))
            self.screen.say(f"\n  In doubt, and not written to again: {named}.")
        self.screen.say("\n  " + "".join(f"{name:>11}" for name in table))
        self.screen.say("  " + "".join(f"{number:>11,}" for number in table.values()))
        if table["twice"] or table["lost"] or table["in doubt"] > IN_FLIGHT:
            raise TrialError(
                "Nobody may be written to twice or be lost, and a killed sender leaves eight doubts at most."
            )
        return table

    def _tries(self) -> int:
        assert self._run is not None  # noqa: S101  it has ended
        found = self.airflow.ask("GET", f"/dags/{DAG_ID}/dagRuns/~/taskInstances")
        return max(int(task["try_number"]) for task in found["task_instances"])

    def _open_ledger(self) -> SqlLedger:
        if self._ledger is None:
            assert self._ledger_server is not None  # noqa: S101  started before
            self._ledger = SqlLedger(self._ledger_server.url())
        return self._ledger

    def _report(self) -> Report | None:
        """Find how the campaign stands; None where the ledger does not tell."""
        try:
            return report(self._open_ledger(), CAMPAIGN_ID)
        except LedgerError:
            return None

    def _sent(self) -> int:
        found = self._report()
        return 0 if found is None else found.sent

    def _is_sending(self, least: int) -> bool:
        """Tell whether so many were sent, and some are in flight."""
        found = self._report()
        return found is not None and found.sent >= least and found.sending > 0

    def _standing(self) -> str:
        found = self._report()
        if found is None:
            return f"{self._state}; the ledger is silent"
        doubts = f", {found.in_doubt} in doubt" if found.in_doubt else ""
        return f"{found.sent:,} sent, {found.due + found.sending:,} left{doubts}; {self._state}"

    def _start(self, name: str) -> None:
        self._running[name] = self._machines[name].start(name, self._commands[name], self._env)

    def _until(self, what: str, most_seconds: float, is_so: Callable[[], Any]) -> Any:
        """Wait for something, and watch meanwhile.

        :raises TrialError: when it does not come, the run failed, or a process ended of itself.
        """
        began = time.monotonic()
        while not (found := is_so()):
            for name, process in self._running.items():
                if process.poll() is not None:
                    log = HOME / "logs" / f"{name}.log"
                    raise TrialError(
                        f"{name} ended with {process.returncode}. {log} says:\n{last_lines(log)}"
                    )
            # Not more often: on two cores the API server would do nothing else.
            if self._run is not None and time.monotonic() - self._looked_at >= LOOK_SECONDS:
                self._look(self._run)
            if self._state == "success" and not is_so():
                raise TrialError(f"The run ended before {what}: this machine is too fast, or too slow.")
            waited = time.monotonic() - began
            if waited > most_seconds:
                raise TrialError(f"{what}: not within {most_seconds:.0f} s. {self._task_says()}")
            self.screen.progress(f"  waiting for {what}: {self._standing() if self._run else 'starting'}")
            time.sleep(POLL_SECONDS)  # between two looks
        return found

    def _look(self, run: Run) -> None:
        """See where the run's task is."""
        if reached(partial(self.airflow.state, run)) == "failed":
            raise TrialError(f"The run failed. {self._task_says()}")
        before = self._state
        tasks = reached(self.airflow.tasks)
        if tasks:
            self._state = tasks[0].state
        elif reached(partial(self.airflow.state, run)) == "success":
            self._state = "success"
        if self._state != before:
            self.deferrals += self._state == "deferred"
        self._looked_at = time.monotonic()

    def _task_says(self) -> str:
        log = task_log(HOME)
        return f"{log} says:\n{last_lines(log)}"


def is_ready(log: Path) -> bool:
    """Tell whether a worker's log says that it takes tasks."""
    return log.exists() and " ready." in log.read_text(encoding="utf-8", errors="replace")


def main() -> int:
    """Run it all.

    :return: the exit status: 0 when everybody was reached once or is in doubt by name, 1 when not, 128 + the
        signal when told to end before.
    """

    def stop(number: int, _: FrameType | None) -> None:
        ignore_signals()  # it ends already
        raise SystemExit(128 + number)

    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        with OnCelery() as celery:
            celery.start()
            celery.run()
            celery.show()
    except TrialError as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        return 1
    except SystemExit as told:
        return int(str(told.code))
    return 0


if __name__ == "__main__":
    sys.exit(main())
