"""Shows a campaign: starts the sandbox and a real Airflow, and runs the DAG ``announce_release``.

Its hour is short, and its quota smaller than the audience, so that the task is deferred and resumed.

Everything it makes is below ``.demo/`` in the repository, made anew each time: Airflow's home, with its
configuration, and the logs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from functools import partial
from io import TextIOWrapper
from shlex import quote
from typing import TYPE_CHECKING, Self

from airflow_provider_sib.campaign.ledger import LedgerError
from airflow_provider_sib.campaign.report import report
from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from trial import POLL_SECONDS, REPOSITORY, Trial, TrialError, end_group, last_lines, reached, visitors

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    from airflow_provider_sib.campaign.report import Report
    from trial import Run, Task

HOME = REPOSITORY / ".demo"
DAG_ID = "announce_release"
CAMPAIGN_ID = "release-2.0"
INVITED_DAG_IDS = ("fix_a_typo", "withdraw_expired")
RUN_SECONDS = 900


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


# -- the demo ------------------------------------------------------------------------------------------------


def task_log(home: Path) -> Path:
    """Find the log of the task that wrote last."""
    logs = (home / "logs").glob(f"dag_id={DAG_ID}/**/*.log")
    return max(logs, key=lambda log: log.stat().st_mtime, default=home / "logs" / "airflow.log")


def deferrals(home: Path) -> int:
    """Count how often the tasks were deferred, by their logs: a look now and then may miss one."""
    logs = (home / "logs").glob(f"dag_id={DAG_ID}/**/*.log")
    return sum(log.read_text(encoding="utf-8").count(": deferring until ") for log in logs)


class Demo:
    """One demo: its processes, what they are asked, and what is shown of it.

    :param quota: calls the sandbox allows in an hour.
    :param hour_seconds: how long that hour lasts.
    """

    def __init__(self, *, quota: int, hour_seconds: float) -> None:
        self.screen = Screen()
        self.trial = Trial(HOME, quota=quota, hour_seconds=hour_seconds, tell=self.screen.progress)
        self.sandbox, self.airflow = self.trial.sandbox, self.trial.airflow
        self._visitors = visitors()
        self._ledger: SqlLedger | None = None
        # When each run was first seen, and its task as seen last.
        self._under_way: dict[Run, tuple[float, Task]] = {}
        self._was_killed = False

    def __enter__(self) -> Self:
        self.trial.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            ignore_signals()
            self.screen.say("\n  Ending all processes.")
        finally:  # also when the terminal is gone
            if self._ledger is not None:
                self._ledger.close()
            self.trial.__exit__()

    def start(self) -> None:
        """Start the sandbox and Airflow, and connect them."""
        began = time.monotonic()

        def started(name: str, address: str) -> None:
            if name == "sandbox":
                self.sandbox.greet(self._visitors)
            self.screen.phase(name, began, address)

        self.trial.start_all(started=started)
        self.airflow.connect(self.sandbox)
        self.trial.wait_for_dag(DAG_ID)

    def run(self) -> None:
        """Run the DAG to its end.

        :raises TrialError: when it fails, or doesn't end.
        """
        began = time.monotonic()
        self.airflow.unpause(DAG_ID)
        run = self.airflow.trigger(DAG_ID)
        while (state := reached(partial(self.airflow.state, run))) != "success":
            waited = time.monotonic() - began
            if state == "failed" or waited > RUN_SECONDS:
                log = task_log(HOME)
                raise TrialError(
                    f"After {waited:.0f} s the run of {DAG_ID} is {state or 'out of reach'}. {log} says:\n"
                    f"{last_lines(log)}"
                )
            self.follow()
            time.sleep(POLL_SECONDS)  # between two looks
        self.follow()

    def follow(self) -> None:
        """Look once at what is under way, show it, and keep Airflow up.

        :raises TrialError: when Airflow or the sandbox ended of itself.
        """
        self.keep_up()
        tasks = reached(self.airflow.tasks)
        if tasks is None:  # it is being started again
            return
        for task in tasks:
            began, _ = self._under_way.get(task.run, (time.monotonic(), task))
            self._under_way[task.run] = began, task
        for run in self._under_way.keys() - {task.run for task in tasks}:
            if (state := reached(partial(self.airflow.state, run))) in ("success", "failed"):
                began, task = self._under_way.pop(run)
                self.screen.phase(f"run of {run.dag_id}: {state}", began, self._standing(task))
        if tasks:
            self.screen.progress(self._progress(tasks[0]))

    def keep_up(self) -> None:
        """Start Airflow again if it was killed.

        :raises TrialError: when it, or the sandbox, ended otherwise.
        """
        for name, process in list(self.trial.running.items()):
            status = process.poll()
            if status is None:
                continue
            if name == "sandbox" or status >= 0:
                raise TrialError(self.trial.ended(name, status))
            self.screen.say(f"  Airflow was killed (signal {-status}); starting it again.")
            self._was_killed = True
            # What is left of it holds its ports. Its tasks are in groups of their own and stay.
            end_group(process, signal.SIGKILL)
            self.trial.start(name)

    def show_what_was_sent(self) -> None:
        """Write some of the messages and the closing table.

        :raises TrialError: when a visitor has got two, or none, or, undisturbed, the task was never deferred.
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
            "deferrals": deferrals(HOME),
        }
        self.screen.say("\n" + "\n".join(samples.values()))
        self.screen.say("\n  " + "".join(f"{name:>11}" for name in table))
        self.screen.say("  " + "".join(f"{number:>11}" for number in table.values()))
        if table["twice"]:
            raise TrialError(f"{table['twice']} messages went to visitors who had got one before.")
        if (missed := len(self._visitors) - reached) > table["in doubt"]:
            raise TrialError(f"{missed} visitors got no message.")
        # Where it was killed, the hour may be over before there is anything left to wait for.
        if not (table["deferrals"] or self._was_killed):
            raise TrialError("The task was never deferred: the quota must be smaller than the audience.")

    def invite(self) -> None:
        """Write where to look while the demo stays up, and what to try."""
        for dag_id in INVITED_DAG_IDS:
            self.trial.wait_for_dag(dag_id)
            self.airflow.unpause(dag_id)
        airflow = f"AIRFLOW_HOME={quote(str(HOME))} {quote(self.trial.commands['airflow'][0])}"
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


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ignore_signals() -> None:
    """Let no signal that tells the demo to end reach it any more."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo.

    :param arguments: the command line without the program's name; None for this process's own.
    :return: the exit status: 0 when the announcement was sent as promised, 1 when not, 128 + the signal when told to
        end before.
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
                    time.sleep(POLL_SECONDS)  # between two looks
    except TrialError as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        return 1
    except SystemExit as told:
        return 0 if sent else int(str(told.code))
    return 0


if __name__ == "__main__":
    sys.exit(main())
