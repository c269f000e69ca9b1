"""What docs/ shows is true: its links lead somewhere, its code runs as shown, in the order of the page."""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
from airflow.cli.cli_parser import get_parser as airflow_commands

from airflow_provider_sib.__main__ import commands
from airflow_provider_sib.campaign.ledger import State
from airflow_provider_sib.campaign.report import hours_table
from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from airflow_provider_sib.hooks import SibConversationsHook
from airflow_provider_sib.hooks.campaign import LedgerPlace
from airflow_provider_sib.sandbox.__main__ import commands as sandbox_commands

from .test_campaign_hook import deliver

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk import DAG

    from airflow_provider_sib.hooks import CampaignHook
    from airflow_provider_sib.sandbox import Sandbox

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
GUIDES = [
    f"{page}.md"
    for page in re.findall(r"^guides/.+$", (DOCS / "index.md").read_text(), re.MULTILINE)
    if page != "guides/test-your-dags"  # its tests want a sandbox that nobody has written to
]
"""The how-to guides, in the order in which the site has them."""

VISITORS = 64
"""Rows of the file beside the DAGs."""

WAITS = {"Send windows and last moments"}
"""Sections whose DAG waits for nine o'clock: it is parsed, and what it does is tested with the engine."""

OTHERS = {"tutorial.md"}
"""Pages whose code has tests of its own: test_tutorial.py."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page, and the section it is in."""

    section: str
    language: str
    source: str


def blocks(page: str) -> list[Block]:
    found, section = [], ""
    for heading, language, source in re.findall(
        r"^#+ ([^\n]+)$|^ *```(\w+)\n(.*?)^ *```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL
    ):
        section = heading or section
        if language:
            found.append(Block(section, language, dedent(source)))
    return found


def headings(file: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", file.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize(
    ("page", "target"),
    [
        (page, target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", (DOCS / page).read_text()))
        if not target.startswith("https://")  # another's page: CI reaches no network
    ],
)
def test_links_lead_somewhere(page, target):
    path, _, anchor = target.partition("#")
    file = ((DOCS / page).parent / path).resolve() if path else DOCS / page
    assert file.exists()
    assert not anchor or anchor in headings(file)


@pytest.mark.parametrize("page", PAGES)
def test_the_index_leads_to_every_page(page):
    assert page == "index.md" or f"({page})" in (DOCS / "index.md").read_text()


@pytest.mark.parametrize(
    "line",
    [
        line
        for page in sorted({*PAGES} - OTHERS)
        for block in blocks(page)
        for line in block.source.splitlines()
        if line.startswith("export AIRFLOW_CONN_")
    ],
)
def test_a_connection_that_is_shown_is_one(monkeypatch, line):
    name, value = line.removeprefix("export ").split("=", 1)
    monkeypatch.setenv(name, value.strip("'"))
    conn_id = name.removeprefix("AIRFLOW_CONN_").lower()
    if conn_id == "campaigns_ledger":
        assert LedgerPlace(conn_id).url().get_backend_name() == "postgresql"
    else:
        assert SibConversationsHook(conn_id).settings.problems == ()


@pytest.mark.parametrize(
    "row",
    re.findall(
        r"^\| ([\d,]+) \| ([\d.]+) h \| ([\d.]+) h \| ([\d.]+) h \|$",
        (DOCS / "quota.md").read_text(),
        re.MULTILINE,
    ),
)
def test_the_hours_of_the_quota_page_are_arithmetic(row):
    assert [float(hours) for hours in row[1:]] == [
        hours for _, hours in hours_table(int(row[0].replace(",", "")))
    ]


COMMANDS = commands()
SHELL = sorted(
    {
        line.partition("  #")[0].strip().removesuffix(" &")
        for page in sorted({*PAGES} - OTHERS)
        for block in blocks(page)
        if block.language in ("bash", "sh")
        for line in block.source.splitlines()
    }
)


@pytest.mark.parametrize("line", SHELL)
def test_a_line_for_the_shell_is_one_that_works(line):
    """By the parsers of the programs that it calls; what they do has tests of its own."""
    if " | " in line:
        assert line.endswith((" > reached.csv", " > suppressed.txt")), (
            "test_cli.py runs these two to their end"
        )
    words = shlex.split(line.partition(" | ")[0].partition(" > ")[0])
    match words:
        case ["export", assignment] if re.match(r"AIRFLOW_(CONN_\w+|_SIB__LEDGER_CONN_ID)=", assignment):
            return  # a connection: see above
        case ["python", "-m", "airflow_provider_sib", *arguments]:
            assert COMMANDS.parse_args(arguments)
        case ["python", "-m", "airflow_provider_sib.sandbox", *arguments]:
            assert sandbox_commands().parse_args(arguments)
        case ["python", program, *arguments] if program.startswith("benchmarks/"):
            shown = subprocess.run(
                [sys.executable, program, "--help"],
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            assert {word for word in arguments if word.startswith("--")} <= set(re.findall(r"--\w+", shown))
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        case ["airflow", *arguments]:
            assert airflow_commands().parse_args(arguments)
        case ["pip", "install", *arguments]:
            (distribution,) = [word for word in arguments if word.startswith("airflow-provider-sib")]
            assert set(re.findall(r"\[(\w+)\]", distribution)) <= {"postgres", "mysql"}
        case _:
            pytest.fail(f"no test knows what {line!r} does")


@pytest.mark.parametrize(
    "command",
    sorted(
        {
            command
            for file in [REPOSITORY / "README.md", *DOCS.rglob("*.md")]
            for command in re.findall(
                r"(?:python -m airflow_provider_sib |`)((?:campaigns|ledger) [a-z]+)\b", file.read_text()
            )
        }
    ),
)
def test_a_command_that_is_named_is_there(capsys, command):
    with pytest.raises(SystemExit) as ended:
        COMMANDS.parse_args([*command.split(), "--help"])
    assert ended.value.code == 0
    assert f"airflow_provider_sib {command}" in capsys.readouterr().out


def test_every_command_has_its_section_on_the_page_of_the_command_line():
    (there,) = [
        action.choices for action in COMMANDS._actions if isinstance(action, argparse._SubParsersAction)
    ]
    page = (DOCS / "reference" / "command-line.md").read_text()
    assert set(re.findall(r"^## (\w+)$", page, re.MULTILINE)) == set(there)


def texts_of_the_package():
    """Give every text of the package's code, with a mark where a value comes in."""
    for file in (REPOSITORY / "airflow_provider_sib").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_messages_and_reasons_that_are_explained_are_the_package_s_own():
    page = (DOCS / "guides" / "when-it-fails.md").read_text()
    said, reasons = page.partition("## What the log says")[2].split("## Reasons")
    quoted = re.findall(r"^\| `([^`]+)` \|", said, re.MULTILINE)
    named = re.findall(r"^\| `(\w+)` \|", reasons, re.MULTILINE)
    everything = "\n".join(texts_of_the_package())
    assert len(quoted) > 15
    assert len(named) > 12
    assert [text for text in quoted if text not in everything] == []
    assert [name for name in named if not re.search(rf"^{name}$", everything, re.MULTILINE)] == []


@dataclass(slots=True)
class Reader:
    """Somebody who tries out a page, block by block, on a sandbox and a ledger of their own."""

    sandbox: Sandbox
    campaigns: CampaignHook
    dag_of: Callable[[str, str], DAG]
    last: DAG | None = None
    message_id: str = ""  # of the message that a page calls "the id"

    def do(self, block: Block) -> None:
        if "with DAG(" in block.source:
            name = re.search(r'DAG\("(\w+)"', block.source)[1]
            self.last = self.dag_of(name, block.source)
            if block.section not in WAITS:
                self.run()
            return
        namespace: dict[str, Any] = {}
        source = block.source.replace('"the id"', repr(self.message_id))
        exec(compile(source, block.section, "exec"), namespace)
        for name, value in namespace.items():
            if name.startswith("test_"):
                self.sandbox.reset()  # a test has one of its own
                value(self.sandbox)

    def run(self, conf=None):
        """Run the last DAG that was shown; all its tasks end well."""
        states = {ti.task_id: ti.state for ti in self.last.test(run_conf=conf).get_task_instances()}
        assert set(states.values()) == {"success"}, states

    def said(self, start: str) -> list[dict[str, Any]]:
        """Give the messages that begin like this and are still there."""
        return [m for m in self.sandbox.messages() if m["text"].startswith(start) and not m["deleted"]]


def nothing(reader):
    """Where there is nothing to see, running is enough."""


def lose_an_answer(reader):
    reader.sandbox.fault("hang_up_after", times=1)


def leave_a_message_behind(reader):
    with SibConversationsHook() as hook:
        reader.message_id = hook.send_pushed_message("kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg", "Test").id


def send_to_some_of_them_long_ago(reader):
    reader.sandbox.configure(quota=13)
    clock = lambda: time.time() - timedelta(days=40).total_seconds()  # noqa: E731
    with closing(SqlLedger(reader.campaigns.place.url(), clock=clock)) as ledger:
        deliver(ledger)


def show_the_dag_that_is_tested(reader):
    (source,) = [b.source for b in blocks("guides/single-messages.md") if 'DAG("tell_once"' in b.source]
    reader.dag_of("tell_once", source)


def left_nothing_behind(reader):
    assert [m["deleted"] for m in reader.sandbox.messages()] == [True]


def scrubbed(reader):
    rows = list(reader.campaigns.deliveries("release"))
    assert Counter((row.state, row.variables is None) for row in rows) == {
        (State.SENT, True): 3,
        (State.PENDING, False): 9,
    }


def announced_once(reader):
    reader.run()
    assert set(Counter(message["visitorId"] for message in reader.said("Version 2.0")).values()) == {1}
    assert len(reader.said("Version 2.0")) == VISITORS


def personalised(reader):
    report = reader.campaigns.report("release-2.1")
    assert (report.status, report.in_doubt, report.sent + 1 + report.skipped) == ("finished", 1, VISITORS)
    assert report.skipped_by.keys() == {"holdout"}
    assert report.variants.keys() == {"short", "with_offer"}
    texts = {message["text"] for message in reader.sandbox.messages()}
    assert "Version 2.1 is out, and half price until Friday." in texts
    assert "Version 2.1 is out." in texts
    assert any(text.startswith("Bonjour") for text in texts)


def told_from_rows(reader):
    assert [m["text"] for m in reader.said("Ann")] == ["Ann, your trial ends in 3 days."]


def rehearsed(reader):
    assert {campaign.campaign_id for campaign in reader.campaigns.list()}.isdisjoint({"release-2.2"})
    reader.run({"rehearse": False})
    assert reader.campaigns.report("release-2.2").sent == VISITORS


def a_twentieth(reader):
    report = reader.campaigns.report("new-editor")
    assert (report.status, report.sent) == ("running", 4)  # of 64, rounded up


def suppressed(reader):
    assert "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg" not in {m["visitorId"] for m in reader.said("Did you know")}


def running_again(reader):
    assert reader.campaigns.report("new-editor").status == "running"


def settled(reader):
    (doubt,) = reader.campaigns.deliveries("release-2.1", states=["in_doubt"])
    reader.campaigns.settle("release-2.1", doubt.key, sent=True)
    assert reader.campaigns.report("release-2.1").in_doubt == 0


def corrected(reader):
    assert len(reader.said("Version 2.0 is out: dark mode, and exports without limit.")) == VISITORS


def withdrawn(reader):
    assert reader.said("Version 2.0") == []


def told_per_order(reader):
    reader.run()
    assert sorted(m["text"] for m in reader.said("Your order")) == [
        "Your order A-17 is shipped.",
        "Your order A-18 is packed.",
    ]


def told_once(reader):
    reader.run()
    assert len(reader.said("The parcel of order A-17")) == 1
    assert [c.campaign_id for c in reader.campaigns.list() if c.campaign_id == "once:tell_once/tell"]


def packed_and_on_its_way(reader):
    assert [m["text"] for m in reader.said("Your order A-17 is on")] == ["Your order A-17 is on its way."]


def taken_back(reader):
    assert [m["deleted"] for m in reader.sandbox.messages() if m["text"] == "The lift is out of order."] == [
        True
    ]


def asked_nobody_yet(reader):
    assert reader.campaigns.report("release-2.1-question").total == 0


BEFORE = {
    "A trial on a live account": leave_a_message_behind,
    "Erase": send_to_some_of_them_long_ago,
    "Texts that differ": lose_an_answer,
    "Test your own DAGs": show_the_dag_that_is_tested,
}
AFTER = {
    "A trial on a live account": left_nothing_behind,
    "Erase": scrubbed,
    "Send, then edit": packed_and_on_its_way,
    "Wait for something": taken_back,
    "Announce": announced_once,
    "Texts that differ": personalised,
    "Choose the audience": told_from_rows,
    "Rehearse": rehearsed,
    "Begin with a canary": a_twentieth,
    "Caps and suppression": suppressed,
    "Watch, pause, resume, abort": running_again,
    "Settle doubts": settled,
    "Correct the text": corrected,
    "Withdraw": withdrawn,
    "Two kinds of audience": told_per_order,
    "A second message to the same people": asked_nobody_yet,
    "A single message, once": told_once,
}


@pytest.fixture
def reader(campaigns, sib_sandbox, dag_of, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    yield Reader(sib_sandbox, campaigns, dag_of)
    for module in [name for name in sys.modules if name.startswith("my_dags")]:
        del sys.modules[module]


def read(pages, reader):
    """Do what the pages show, one after the other."""
    reader.sandbox.configure(quota=10_000)
    shown = [block for page in pages for block in blocks(page) if block.language == "python"]
    for section, of_section in groupby(shown, key=attrgetter("section")):
        BEFORE.get(section, nothing)(reader)
        for block in of_section:
            reader.do(block)
        AFTER.get(section, nothing)(reader)


@pytest.mark.parametrize(
    "page",
    sorted(
        page for page in {*PAGES} - OTHERS - {*GUIDES} if any(b.language == "python" for b in blocks(page))
    ),
)
def test_the_code_of_a_page_does_what_the_page_says(page, reader):
    read([page], reader)


def test_the_code_of_the_guides_does_what_they_say_one_after_the_other(reader):
    read(GUIDES, reader)


def test_a_campaign_goes_on_in_another_ledger_without_those_whom_the_old_one_has_reached(
    reader, tmp_path, monkeypatch
):
    """As the page on Celery and Kubernetes has it; without leaving them out, they are written to again."""
    (source,) = [b.source for b in blocks("guides/announce.md") if 'DAG("announce_release"' in b.source]
    reader.sandbox.configure(quota=10_000)
    reader.last = reader.dag_of("announce_release", source.replace("audience=", "fraction=0.5, audience="))
    reader.run()
    reached = tmp_path / "reached.csv"
    with reached.open("w", newline="") as file:
        assert reader.campaigns.export("release-2.0", file, states=["sent", "in_doubt"]) == VISITORS / 2

    monkeypatch.setenv(
        "AIRFLOW_CONN_NEW_LEDGER", json.dumps({"conn_type": "sqlite", "host": f"{tmp_path}/other.db"})
    )
    with type(reader.campaigns)("new_ledger") as new:
        new.adopt()
    elsewhere = f'ledger_conn_id="new_ledger", suppress="{reached}", audience='
    reader.last = reader.dag_of("announce_release", source.replace("audience=", elsewhere))
    reader.run()
    assert set(Counter(m["visitorId"] for m in reader.sandbox.messages()).values()) == {1}
    assert len(reader.sandbox.messages()) == VISITORS


def test_every_check_belongs_to_a_section():
    sections = {block.section for page in PAGES for block in blocks(page)}
    assert {*BEFORE, *AFTER, *WAITS} <= sections
