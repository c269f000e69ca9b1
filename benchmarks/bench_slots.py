"""How long a campaign holds a worker: a real Airflow, 1,000 visitors, 100 calls an hour, and a short hour.

A worker counts as held from the start of its process for the task until that process is free again, starting up and
the supervisor's lingering included. The sum is set against the hours that the same number of windows takes at Brevo.
It runs for about five minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from trial import Processes, Trial, call

VISITORS = 1000
QUOTA = 100
HOUR_SECONDS = 20
DAG = """
from airflow.sdk import DAG
from airflow_provider_sib.operators import SendCampaignOperator

with DAG("thousand", schedule=None) as dag:
    SendCampaignOperator(task_id="announce", campaign_id="thousand", audience="{audience}", text="Hello")
"""
BUSY = re.compile(rb"airflow worker -- [0-9a-f]{8}-")


class Holding:
    """Add up the time in which workers of one Airflow are held, and count the slices."""

    def __init__(self, processes: Processes) -> None:
        self.seconds = 0.0
        self.slices = 0
        self._processes = processes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Holding:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        held: set[bytes] = set()
        last = time.monotonic()
        while not self._over.wait(0.1):
            now = time.monotonic()
            self.seconds += len(held) * (now - last)
            last, before = now, held
            held = set()
            for pid in self._processes.left():
                try:
                    title = Path(f"/proc/{pid}/cmdline").read_bytes()
                except OSError:
                    continue
                if BUSY.match(title):
                    held.add(title)
            self.slices += len(held - before)


def until(what: str, seconds: float, there: object) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not there():  # type: ignore[operator]  # a function
        if time.monotonic() > end:
            raise SystemExit(f"{what} within {seconds:g} s: no")
        time.sleep(0.5)  # between two looks


def measure(home: Path) -> dict[str, float]:
    """Run the campaign and give the figures."""
    dags = home / "dags"
    dags.mkdir()
    audience = home / "visitors.csv"
    audience.write_text("visitor_id\n" + "".join(f"visitor-{number}\n" for number in range(VISITORS)))
    (dags / "thousand.py").write_text(DAG.format(audience=audience))
    with Trial(home / "airflow", quota=QUOTA, hour_seconds=HOUR_SECONDS, dags=dags) as trial:
        sandbox, airflow = trial.sandbox, trial.airflow
        trial.start_all()
        airflow.connect(sandbox)
        trial.wait_for_dag("thousand")
        airflow.unpause("thousand")
        with Holding(trial.processes) as holding:
            began = time.monotonic()
            run = airflow.trigger("thousand")
            until("the run ends", 900, lambda: airflow.state(run) in ("success", "failed"))
            lasted = time.monotonic() - began
        if airflow.state(run) != "success":
            raise SystemExit(f"the run failed; see {trial.logs}")
        state = sandbox.summary()
        messages = call("GET", f"{sandbox.page}_sandbox/counts")["messages"]
    windows = state["quota"]["windows_opened"]
    # The first window's messages go at once, so the last window opens so many hours after the first.
    hours = windows - 1
    return {
        "visitors": VISITORS,
        "messages": messages,
        "windows": windows,
        "refused": state["quota"]["refused"],
        "run_seconds": round(lasted, 1),
        "slices": holding.slices,
        "held_seconds": round(holding.seconds, 1),
        "hours_at_brevo": hours,
        "share_of_a_worker": round(holding.seconds / (hours * 3600), 5),
    }


def main() -> None:
    """Print the figures, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="sib-slots-"))
    try:
        figures = measure(home)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    for name, value in figures.items():
        print(f"  {name:<20} {value:,}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
