"""What the README shows is true: its links lead somewhere, its code runs, its figures follow from Brevo's quota."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from airflow.sdk import Connection

from airflow_provider_sib import hooks, notifications, operators, sensors

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()


def anchors(markdown: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def block(part: str, language: str = "python") -> str:
    (found,) = [source for source in blocks(language) if part in source]
    return found


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)]+)\)", README))
def test_links_lead_somewhere(target):
    if target.startswith("https://"):
        return  # another's page: CI reaches no network
    path, _, anchor = target.partition("#")
    file = REPOSITORY / path if path else REPOSITORY / "README.md"
    assert file.exists()
    assert not anchor or anchor in anchors(file.read_text())


def test_the_environment_variable_makes_a_connection(monkeypatch):
    (line,) = [line for block in blocks("bash") for line in block.splitlines() if "AIRFLOW_CONN" in line]
    name, value = line.removeprefix("export AIRFLOW_CONN_").split("=", 1)
    monkeypatch.setenv(f"AIRFLOW_CONN_{name}", ast.literal_eval(value))
    connection = Connection.get(name.lower())
    assert (connection.conn_type, connection.password) == ("sib_conversations", "xkeysib-…")


def run(dag):
    """Run a DAG to its good end, and give what its tasks returned, by task."""
    instances = dag.test().get_task_instances()
    assert {ti.state for ti in instances} == {"success"}
    return {ti.task_id: ti.xcom_pull(task_ids=ti.task_id) for ti in instances}


def test_the_campaign_is_sent_once_returned_as_shown_corrected_and_withdrawn(campaigns, sib_sandbox, dag_of):
    announce = dag_of("announce_release", block("SendCampaignOperator("))
    shown = json.loads(block('"campaign_id"', "json"))
    returned = run(announce)["announce"]
    of_this_run = {"ledger_id", "seconds"}
    assert without(returned, of_this_run) == without(shown, of_this_run)
    assert returned.keys() == shown.keys()
    run(announce)
    written_to = Counter(message["visitorId"] for message in sib_sandbox.messages())
    assert (len(written_to), set(written_to.values())) == (shown["totals"]["sent"], {1})

    sib_sandbox.configure(quota=1000)
    source = block("UpdateCampaignOperator(")
    head, correct, withdraw = re.split(r"(?=^with DAG)", source, flags=re.MULTILINE)
    run(dag_of("correct_release", head + correct))
    assert {message["text"] for message in sib_sandbox.messages()} == {"Version 2.0 is here: dark mode."}
    run(dag_of("withdraw_release", head + withdraw))
    assert all(message["deleted"] for message in sib_sandbox.messages())


def without(value, names):
    """Give a result without what differs from run to run."""
    if not isinstance(value, dict):
        return value
    return {name: without(part, names) for name, part in value.items() if name not in names}


def test_the_single_message_is_returned_as_shown_and_the_users_own_test_passes(
    airflow_db, sib_sandbox, dag_of, tmp_path, monkeypatch
):
    returned = run(dag_of("order_shipped", block('"order_shipped"')))
    shown = json.loads(block('"visitorId"', "json"))
    assert shown.keys() <= returned["tell"].keys()
    same = ("type", "text", "visitorId", "agentId", "isPushed", "isMissed")
    assert {name: returned["tell"][name] for name in same} == {name: shown[name] for name in same}

    sib_sandbox.reset()
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict = {}
    exec(compile(block("def test_"), "README.md", "exec"), namespace)
    namespace["test_the_visitor_is_told"](sib_sandbox)
    for module in [name for name in sys.modules if name.startswith("my_dags")]:
        monkeypatch.delitem(sys.modules, module)


def test_every_block_of_code_is_run():
    """By the tests above, which find their blocks by these parts."""
    parts = ("audience=", "UpdateCampaignOperator(", "order_shipped", "def test_")
    assert all(any(part in source for part in parts) for source in blocks("python"))


def test_the_table_of_what_there_is_names_all_operators_sensors_hooks_and_notifiers():
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.+?) \|", README, re.MULTILINE))))
    there = {
        name
        for module in (operators, sensors, hooks, notifications)
        for name in getattr(module, "__all__", vars(module))
        if name.endswith(("Operator", "Sensor", "Hook", "Notifier")) and not name.startswith(("_", "Base"))
    }
    assert there <= named


@pytest.mark.parametrize(
    "row", re.findall(r"^\| ([\d,]+) \| (.+?) h \| (.+?) h \| (.+?) h \|$", README, re.MULTILINE)
)
def test_the_hours_table_is_arithmetic(row):
    visitors = int(row[0].replace(",", ""))
    assert [float(hours) for hours in row[1:]] == [round(visitors / quota, 1) for quota in (100, 200, 600)]


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (REPOSITORY / "Makefile").read_text()
    commands = {line for block in blocks("bash") for line in block.splitlines() if line.startswith("make ")}
    assert commands == {"make demo", "make test"}
    for command in commands:
        assert re.search(rf"^{command.removeprefix('make ')}:", makefile, re.MULTILINE)
