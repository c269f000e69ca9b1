"""What the README shows is true: its links lead somewhere, its code runs, its figures follow from Brevo's quota."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from airflow.sdk import DAG, Connection

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()


def anchors(markdown: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


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


def test_the_dag_does_what_it_says(airflow_db, sib_sandbox, monkeypatch):
    source = next(block for block in blocks("python") if "with DAG" in block)
    namespace: dict = {}
    exec(compile(source, "README.md", "exec"), namespace)
    assert "dag" not in namespace
    tasks = {value.task_id: value for value in namespace.values() if hasattr(value, "task_id")}
    dag = tasks["tell"].dag
    assert isinstance(dag, DAG)
    assert set(dag.task_ids) == {"tell", "correct"}
    shown = json.loads(blocks("json")[0])
    tasks["tell"].render_template_fields({"params": dag.params.dump()})
    sent = tasks["tell"].execute({})
    assert shown.keys() <= sent.keys()
    assert (sent["text"], sent["visitorId"]) == (shown["text"], shown["visitorId"])


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
