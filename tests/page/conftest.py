"""A real API server of Airflow's, with users of every role, below a base URL with a path; and a ledger it looks at."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
import requests

from airflow_provider_sib.campaign.announcement import Announcement, Enroller
from airflow_provider_sib.campaign.audience import Row
from airflow_provider_sib.campaign.engine import BUCKET, enrol, open_campaign
from airflow_provider_sib.campaign.ledger import CampaignStatus, Cycle, Quota, QuotaUse, Result, State
from airflow_provider_sib.campaign.sql_ledger import SqlLedger

if TYPE_CHECKING:
    from pathlib import Path

START_SECONDS = 240
EVIL = "<img src=x onerror=\"alert('visitor')\">"
USERS = {"vera": "viewer", "uma": "user", "opal": "op", "adam": "admin"}
TEXTS = {"en": "Hi [[ visitor.first_name ]]! <script>alert('text')</script>", "fr": "Bonjour !"}


@dataclass
class Server:
    """A running API server.

    :param root: its address, without the path of its base URL.
    :param home: its AIRFLOW_HOME.
    """

    root: str
    home: Path

    @property
    def page(self) -> str:
        return f"{self.root}/air/sib"

    @property
    def ledger_file(self) -> Path:
        return self.home / "sib_ledger.db"

    def token(self, user: str) -> str:
        answer = requests.post(
            f"{self.root}/air/auth/token", json={"username": user, "password": user}, timeout=60
        )
        assert answer.status_code == 201, answer.text
        return answer.json()["access_token"]

    def browser(self, user: str) -> requests.Session:
        """Give what a logged-in browser has: the cookie."""
        session = requests.Session()
        session.cookies.set("_token", self.token(user))
        return session


@pytest.fixture(scope="session")
def server(airflow_db, tmp_path_factory):
    home = tmp_path_factory.mktemp("api-server")
    with (
        closing(sqlite3.connect(airflow_db)) as source,
        closing(sqlite3.connect(home / "airflow.db")) as copy,
    ):
        source.backup(copy)
        copy.execute("DELETE FROM variable")
        copy.commit()
    (home / "passwords.json").write_text(json.dumps({name: name for name in USERS}))
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    root = f"http://127.0.0.1:{port}"
    env = os.environ | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__API__BASE_URL": f"{root}/air",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(
            f"{name}:{role}" for name, role in USERS.items()
        ),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__API_AUTH__JWT_SECRET": "0123456789abcdef" * 8,
    }
    command = [sys.executable, "-m", "airflow", "api-server", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--workers", "1"], env=env, stdout=log, stderr=log)
    try:
        started = Server(root, home)
        ended_at = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < ended_at, (home / "log").read_text()
            try:
                if requests.get(f"{started.page}/", timeout=30).ok:
                    break
            except requests.ConnectionError:
                time.sleep(0.2)  # between two looks
        yield started
    finally:
        process.terminate()
        process.wait(30)


def known(quota: Quota, now_ms: int) -> tuple[Quota, int]:
    """Pace as if Brevo had told a quota of 100 an hour."""
    return Quota(limit=100, remaining=37, reset_at_ms=now_ms + 1_500_000, holders=quota.holders), 1000


def make(
    ledger,
    campaign_id,
    *,
    visitors=12,
    sent=8,
    failed=1,
    doubts=1,
    dag_id="announce",
    status=None,
    connection="sib",
    reserve=10,
):
    """Make a campaign that has come so far."""
    announcement = Announcement(variants={"short": "Hi!", "long": TEXTS})
    open_campaign(
        ledger,
        campaign_id,
        binding={"host": "https://api.brevo.com/v3", "connection": connection},
        announcement=announcement,
        each_run=False,
        settings={"dag_id": dag_id, "task_id": "send", "reserve": reserve} if dag_id else {},
    )
    enroller = Enroller(campaign_id, announcement, once_per="visitor_id")
    ids = [EVIL, *(f"visitor-{number}" for number in range(1, visitors))]
    enrol(ledger, campaign_id, [Row(one, {"first_name": "Ada"}) for one in ids], enroller)

    def use(wanted):
        return QuotaUse(connection, BUCKET, "w", 0, wanted, 60, known)

    claimed = ledger.cycle(Cycle(campaign_id, use(sent + failed + doubts), 60)).claimed
    states = [State.SENT] * sent + [State.FAILED] * failed + [State.IN_DOUBT] * doubts
    reasons = {State.FAILED: "http_404", State.IN_DOUBT: "no_answer"}
    results = [
        Result(
            row.rank,
            row.claim,
            state,
            f"m{row.rank}" if state is State.SENT else None,
            reason=reasons.get(state),
        )
        for row, state in zip(claimed, states, strict=True)
    ]
    ledger.cycle(Cycle(campaign_id, use(0), 60, results=results))
    if status is not None:
        ledger.set_status(campaign_id, CampaignStatus(status))


@pytest.fixture
def evil():
    """Give the id of a visitor who is up to something."""
    return EVIL


@pytest.fixture
def make_campaign(ledger):
    """Make a further campaign."""
    return partial(make, ledger)


@pytest.fixture
def sent_over_time(server, ledger):
    """Make a campaign of 1,000 whose messages were sent in the past, with a quota of 100 an hour of its own."""

    def _sent(campaign_id, messages, *, reset_in):
        """Send so many messages at each of some moments.

        :param messages: their number by the minutes since they were sent.
        :param reset_in: minutes until the quota's window ends; None: Brevo has not told.
        """
        began = time.time()
        clock = [began - 60 * max(messages)]

        def told(quota, now_ms):
            reset_at_ms = None if reset_in is None else round((began + 60 * reset_in) * 1000)
            return Quota(limit=100, remaining=10, reset_at_ms=reset_at_ms, holders=quota.holders), 100

        with closing(SqlLedger(f"sqlite:///{server.ledger_file}", clock=lambda: clock[0])) as past:
            make(past, campaign_id, visitors=1000, sent=0, failed=0, doubts=0, connection=campaign_id)
            for minutes_ago, count in messages.items():
                clock[0] = began - 60 * minutes_ago
                use = QuotaUse(campaign_id, BUCKET, "w", 0, count, 60, told)
                claimed = past.cycle(Cycle(campaign_id, use, 60)).claimed
                assert len(claimed) == count
                results = [Result(row.rank, row.claim, State.SENT, f"m{row.rank}") for row in claimed]
                past.cycle(Cycle(campaign_id, replace(use, wanted=0), 60, results=results))

    return _sent


@pytest.fixture
def ledger(server):
    """The server's ledger: ``release`` under way, ``paused``, ``done``, and one that tells of no DAG."""
    for file in server.home.glob("sib_ledger.db*"):
        file.unlink()
    made = SqlLedger(f"sqlite:///{server.ledger_file}")
    make(made, "no-dag", dag_id=None)
    make(made, "done", visitors=3, sent=3, failed=0, doubts=0, dag_id="other")
    assert made.finish("done")
    make(made, "paused", status="paused")
    make(made, "release")
    yield made
    made.close()
