"""Every DAG of dags/ is run as a user would run it, with dag.test(), against the sandbox."""

from __future__ import annotations

import csv
import json
import re
import runpy
import shutil
import sqlite3
import threading
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.models import TaskInstance
from airflow.models.trigger import handle_event_submit
from airflow.sdk import DAG, TaskInstanceState
from airflow.sdk.execution_time import macros
from airflow.triggers.base import TriggerEvent
from airflow.utils.session import create_session
from sqlalchemy import select

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferred

DAGS = Path(__file__).parent.parent / "dags"
FILES = sorted(path.stem for path in DAGS.glob("*.py"))


def load(name: str) -> DAG:
    (dag,) = [value for value in runpy.run_path(str(DAGS / f"{name}.py")).values() if isinstance(value, DAG)]
    return dag


@pytest.fixture
def run(campaigns, sib_sandbox):
    """Run a DAG of dags/ with a plentiful quota, and give the states of its tasks."""
    sib_sandbox.configure(quota=10_000)

    def _run(name, *, conf=None):
        dag_run = load(name).test(run_conf=conf)
        return {ti.task_id: ti.state for ti in dag_run.get_task_instances()}

    return _run


@pytest.fixture(scope="module")
def visitors():
    with (DAGS / "include" / "visitors.csv").open(encoding="utf-8-sig", newline="") as file:
        return {row["visitor_id"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("name", FILES)
def test_a_dag_is_named_like_its_file_described_and_catches_nothing_up(name):
    dag = load(name)
    assert dag.dag_id == name
    assert dag.doc_md
    assert dag.catchup is False


def test_announce_release_tells_every_visitor_once_in_their_language(run, sib_sandbox, visitors):
    for _ in range(2):
        assert run("announce_release") == {"announce": TaskInstanceState.SUCCESS}
    messages = sib_sandbox.messages()
    assert Counter(message["visitorId"] for message in messages) == Counter(visitors.keys())
    starts = {"fr": "Bonjour", "fr-CH": "Bonjour", "de-AT": "Hallo", "pt": "Olá", "pt-BR": "Oi", "da": "Hi"}
    for message in messages:
        visitor = visitors[message["visitorId"]]
        assert visitor["first_name"] in message["text"]
        assert message["text"].startswith(starts.get(visitor["locale"], ""))


def test_fix_a_typo_edits_the_french_messages_and_no_others(run, sib_sandbox, visitors):
    run("announce_release")
    calls = sib_sandbox.state()["requests"]["total"]
    before = {message["id"]: message["text"] for message in sib_sandbox.messages()}
    assert run("fix_a_typo") == {"correct": TaskInstanceState.SUCCESS}
    changed = [message for message in sib_sandbox.messages() if message["text"] != before[message["id"]]]
    assert {visitors[message["visitorId"]]["locale"] for message in changed} == {"fr", "fr-CH"}
    assert all("exports" in message["text"] for message in changed)
    assert not [message for message in sib_sandbox.messages() if "exprots" in message["text"]]
    assert sib_sandbox.state()["requests"]["total"] - calls == len(changed)


def test_after_fix_a_typo_announce_release_goes_on_with_the_corrected_text(run, sib_sandbox):
    run("announce_release")
    run("fix_a_typo")
    calls = sib_sandbox.state()["requests"]["total"]
    assert run("announce_release") == {"announce": TaskInstanceState.SUCCESS}
    assert sib_sandbox.state()["requests"]["total"] == calls


def test_withdraw_expired_leaves_no_message(run, sib_sandbox, visitors):
    run("announce_release")
    assert run("withdraw_expired") == {"withdraw": TaskInstanceState.SUCCESS}
    messages = sib_sandbox.messages()
    assert len(messages) == len(visitors)
    assert all(message["deleted"] for message in messages)


def test_withdraw_expired_can_leave_what_was_sent_after_a_moment(run, sib_sandbox):
    run("announce_release")
    moment = {"sent_before": "2020-01-01T00:00:00+00:00"}
    assert run("withdraw_expired", conf=moment) == {"withdraw": TaskInstanceState.SUCCESS}
    assert not [message for message in sib_sandbox.messages() if message["deleted"]]


@pytest.fixture
def warehouse(monkeypatch, tmp_path):
    """A database under Airflow's connection `warehouse`, and a way to fill it."""
    pytest.importorskip("airflow.providers.sqlite")
    database = tmp_path / "warehouse.db"
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "sqlite", "host": str(database)}))

    def fill(rows):
        columns = ", ".join(rows[0])
        places = ", ".join("?" * len(rows[0]))
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute(f"CREATE TABLE IF NOT EXISTS visitors ({columns})")
            connection.executemany(
                f"INSERT INTO visitors ({columns}) VALUES ({places})", [tuple(row.values()) for row in rows]
            )

    return fill


def texts(sandbox):
    return {message["visitorId"]: message["text"] for message in sandbox.messages()}


class TestAnnounceFromWarehouse:
    @pytest.fixture(autouse=True)
    def rows(self, warehouse):
        plans = ("free", "pro", "team")
        rows = [
            {"visitor_id": f"visitor-{n}", "first_name": f"Name {n}", "plan": plans[n % 3], "exports": n}
            for n in range(60)
        ]
        warehouse(rows)

    def test_writes_to_those_with_a_plan_less_a_tenth_in_two_wordings(self, run, sib_sandbox, campaigns):
        assert run("announce_from_warehouse") == {"announce": TaskInstanceState.SUCCESS}
        sent = texts(sib_sandbox)
        assert not [visitor for visitor in sent if int(visitor.partition("-")[2]) % 3 == 0]
        report = campaigns.report("scheduled-exports")
        assert report.total == 40
        assert report.skipped_by == {"holdout": 40 - len(sent)}
        assert 0 < 40 - len(sent) < 12
        personal = [visitor for visitor, text in sent.items() if "exports this month" in text]
        assert 0 < len(personal) < len(sent)
        for visitor in personal:
            number = visitor.partition("-")[2]
            assert sent[visitor].startswith(f"Hi Name {number}, you have run {number} exports")

    def test_a_rehearsal_sends_nothing_and_leaves_nothing_behind(self, run, sib_sandbox, campaigns):
        assert run("announce_from_warehouse", conf={"dry_run": True}) == {
            "announce": TaskInstanceState.SUCCESS
        }
        assert sib_sandbox.state()["requests"]["total"] == 0
        assert campaigns.list() == []


class TestWelcomeNewcomers:
    def zones(self):
        """A zone where it is noon, and one where it is midnight; those of Etc have their sign reversed."""
        noon = 12 - datetime.now(UTC).hour
        midnight = noon + 12 if noon <= 0 else noon - 12
        return tuple(f"Etc/GMT{-offset:+d}" for offset in (noon, midnight))

    def rows(self, *visitors, days_ago=0, zone=None):
        day = (datetime.now(UTC) - timedelta(days=days_ago)).date().isoformat()
        return [
            {"visitor_id": one, "first_name": None, "timezone": zone or self.zones()[0], "signed_up_on": day}
            for one in visitors
        ]

    def test_welcomes_at_each_run_who_is_new(self, run, sib_sandbox, warehouse):
        warehouse(self.rows("ann", "bob") + self.rows("old", days_ago=8))
        run("welcome_newcomers")
        assert set(texts(sib_sandbox)) == {"ann", "bob"}
        warehouse(self.rows("cid"))
        assert run("welcome_newcomers") == {"welcome": TaskInstanceState.SUCCESS}
        assert Counter(message["visitorId"] for message in sib_sandbox.messages()) == Counter(
            ("ann", "bob", "cid")
        )

    def test_lets_sleep_those_for_whom_it_is_night(self, airflow_db, campaigns, sib_sandbox, warehouse):
        warehouse(self.rows("ann") + self.rows("bob", zone=self.zones()[1]))
        context = {"dag_run": SimpleNamespace(run_after=datetime.now(UTC)), "macros": macros}
        task = load("welcome_newcomers").task_dict["welcome"]
        task.render_template_fields(context)
        with pytest.raises(TaskDeferred) as deferred:
            task.execute(context)
        assert set(texts(sib_sandbox)) == {"ann"}
        hours = (deferred.value.trigger.until - datetime.now(UTC).timestamp()) / 3600
        assert 7 < hours < 10


class TestOrderStatusUpdates:
    def test_tells_of_each_order_and_status_once_and_of_news_later(self, run, sib_sandbox, tmp_path):
        orders = tmp_path / "orders.jsonl"
        shutil.copy(DAGS / "include" / "orders.jsonl", orders)
        for _ in range(2):
            assert run("order_status_updates", conf={"orders": str(orders)}) == {
                "tell": TaskInstanceState.SUCCESS
            }
        sent = sorted(message["text"] for message in sib_sandbox.messages())
        assert sent == [
            "Your order A-1041 is on its way.",
            "Your order A-1041 is packed.",
            "Your order A-1042 is packed.",
            "Your order A-1043 is packed.",
            "Your order A-1044 is delivered.",
        ]
        news = {"visitor_id": "32T1mrBDwpYlJYjuxr42heKFc12IflZQ", "order_id": "A-1042"}
        with orders.open("a") as file:
            file.write(json.dumps(news) + "\n" + json.dumps(news | {"status": "on its way"}) + "\n")
        run("order_status_updates", conf={"orders": str(orders)})
        told = sorted(message["text"] for message in sib_sandbox.messages())
        assert told == sorted([*sent, "Your order A-1042 is on its way."])


class TestCanaryWithApproval:
    def run(self, option):
        """Run it, and answer its question as a colleague would, from another thread."""
        dag = load("canary_with_approval")
        if not hasattr(TaskInstanceState, "AWAITING_INPUT"):
            # Before Airflow 3.3 a question waits in a trigger that dag.test() cannot run.
            ask = dag.task_dict["ask"]
            ask.execute = lambda context: ask.execute_complete(context, answered(option))
            dag_run = dag.test()
            return {ti.task_id: ti.state for ti in dag_run.get_task_instances()}
        over = threading.Event()
        colleague = threading.Thread(target=answer, args=(dag.dag_id, "ask", option, over))
        colleague.start()
        try:
            dag_run = dag.test()
        finally:
            over.set()
            colleague.join()
        return {ti.task_id: ti.state for ti in dag_run.get_task_instances()}

    def test_an_approval_sends_to_the_rest_and_to_nobody_twice(self, campaigns, sib_sandbox, visitors):
        sib_sandbox.configure(quota=10_000)
        assert self.run("Send to the rest") == {
            "canary": TaskInstanceState.SUCCESS,
            "ask": TaskInstanceState.SUCCESS,
            "rest": TaskInstanceState.SUCCESS,
            "abort": TaskInstanceState.SKIPPED,
            "withdraw": TaskInstanceState.SKIPPED,
        }
        messages = sib_sandbox.messages()
        assert Counter(message["visitorId"] for message in messages) == Counter(visitors.keys())

    def test_a_rejection_aborts_it_and_takes_back_what_the_first_have(self, campaigns, sib_sandbox):
        sib_sandbox.configure(quota=10_000)
        assert self.run("Take it back") == {
            "canary": TaskInstanceState.SUCCESS,
            "ask": TaskInstanceState.SUCCESS,
            "rest": TaskInstanceState.SKIPPED,
            "abort": TaskInstanceState.SUCCESS,
            "withdraw": TaskInstanceState.SUCCESS,
        }
        messages = sib_sandbox.messages()
        assert 1 <= len(messages) <= 4
        assert all(message["deleted"] for message in messages)
        assert campaigns.report("new-prices").status == "aborted"


def answered(option):
    """Give the event with which a task that has asked goes on."""
    colleague = {"id": "ada", "name": "Ada"}
    return {
        "chosen_options": [option],
        "params_input": {},
        "responded_at": datetime.now(UTC),
        "responded_by_user": colleague,
    }


def answer(dag_id, task_id, option, over):
    """Answer a task that asks, as Airflow's API does, until it goes on."""
    while not over.wait(0.05):
        with create_session() as session:
            # dag.test() may write the waiting state once more after the answer; so look again until the end.
            asking = session.scalars(
                select(TaskInstance).where(
                    TaskInstance.dag_id == dag_id,
                    TaskInstance.task_id == task_id,
                    TaskInstance.state == "awaiting_input",
                )
            )
            for task in asking.all():
                handle_event_submit(TriggerEvent(answered(option)), task_instance=task, session=session)


class TestDripOfTwo:
    def test_the_hint_comes_three_days_after_the_greeting(self, run, sib_sandbox, campaigns, visitors):
        for _ in range(2):
            assert set(run("drip_of_two").values()) == {TaskInstanceState.SUCCESS}
        assert len(sib_sandbox.messages()) == len(visitors)
        with closing(sqlite3.connect(campaigns.place.url().database)) as ledger, ledger:
            ledger.execute("UPDATE sib_delivery SET at_ms = at_ms - 3 * 24 * 3600 * 1000")
        for _ in range(2):
            assert set(run("drip_of_two").values()) == {TaskInstanceState.SUCCESS}
        counts = Counter(message["visitorId"] for message in sib_sandbox.messages())
        assert counts == Counter(dict.fromkeys(visitors, 2))
        hint = sib_sandbox.messages("2aOtT7GVdPhCueUfpfPscbnFabPGithr")[-1]
        assert hint["text"].startswith("Chloé, did you know?")


def test_keep_agent_online_pings_the_agent(run, sib_sandbox):
    assert run("keep_agent_online", conf={"minutes": 1}) == {"keep_online": TaskInstanceState.SUCCESS}
    assert sib_sandbox.state()["requests"]["by_operation"] == {"ping_agent_online": 1}


class TestTellVisitorsAboutAnOutage:
    def test_tells_each_reader_when_the_load_has_failed(self, run, sib_sandbox):
        assert run("tell_visitors_about_an_outage") == {"load": TaskInstanceState.FAILED}
        assert len(texts(sib_sandbox)) == len(sib_sandbox.messages()) == 2
        today = datetime.now(UTC).date()
        for text in texts(sib_sandbox).values():
            assert re.match(rf"The numbers of ({today}|{today - timedelta(days=1)}) are late", text)

    def test_says_nothing_when_it_has_not(self, run, sib_sandbox, tmp_path):
        (tmp_path / "numbers.csv").write_text("1\n2\n")
        conf = {"export": str(tmp_path / "numbers.csv")}
        assert run("tell_visitors_about_an_outage", conf=conf) == {"load": TaskInstanceState.SUCCESS}
        assert sib_sandbox.messages() == []
