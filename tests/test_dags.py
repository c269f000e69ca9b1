"""Every DAG of dags/ is run as a user would run it, with dag.test(), against the sandbox."""

from __future__ import annotations

import csv
import runpy
from collections import Counter
from pathlib import Path

import pytest
from airflow.sdk import DAG, TaskInstanceState

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
