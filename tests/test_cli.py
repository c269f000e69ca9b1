"""The command line, on real ledgers that real campaigns have filled: what it prints, changes, asks and refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from airflow_provider_sib.__main__ import main
from airflow_provider_sib.campaign.engine import Rules, Send, SendEngine
from airflow_provider_sib.cli import follow
from airflow_provider_sib.hooks import CampaignHook
from airflow_provider_sib.hooks.campaign import LedgerPlace, Pin, open_ledger

from .conftest import REPOSITORY
from .test_campaign_hook import SUPPRESSED, TOLD, UNKNOWN, deliver, doubt_of, states_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE = LedgerPlace(None)
# What Airflow's OpenTelemetry does is not ours to mend: one of May 2026 does so on Python 3.11.
OTHERS = "ignore:SelectableGroups dict interface is deprecated:DeprecationWarning"
COMMAND = [sys.executable, "-W", "error", "-W", OTHERS, "-m", "airflow_provider_sib"]


@pytest.fixture
def hook(airflow_db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CampaignHook]:
    """Give a machine of its own, and nothing pinned."""
    from airflow.models import Variable

    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    Variable.delete(FILE.pin_key)
    with CampaignHook() as opened:
        yield opened


@pytest.fixture
def campaign(hook: CampaignHook, sib_sandbox) -> CampaignHook:
    """Deliver `release` to twelve: nine are reached, one is in doubt, one is refused, one is suppressed."""
    sib_sandbox.configure(unknown_visitor="reject")
    sib_sandbox.add_visitors(*({"id": visitor} for visitor in TOLD))
    sib_sandbox.fault("hang_up_after", times=1, operation="send_pushed_message")
    hook.suppress([SUPPRESSED])
    deliver(hook.ledger)
    return hook


@pytest.fixture
def waiting(hook: CampaignHook, sib_sandbox) -> CampaignHook:
    """Deliver `release` to three of twelve, as far as the quota goes."""
    sib_sandbox.configure(quota=13)
    deliver(hook.ledger)
    return hook


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run a command in this process, and give its exit status and what it printed."""

    def _ran(*arguments: str, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        capsys.readouterr()
        try:
            status = main(list(arguments))
        except SystemExit as ended:
            status = int(ended.code or 0)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return status, printed.out, printed.err

    return _ran


def only_sentence(printed: str) -> str:
    assert printed.count("\n") == 1
    assert printed.endswith((".\n", "`\n", ".)\n"))
    return printed.strip()


# looking


def test_a_ledger_without_campaigns_says_which_one_it_is(hook, ran, tmp_path):
    assert ran("campaigns", "list") == (0, f"No campaigns in the ledger: {tmp_path}/sib_ledger.db.\n", "")
    assert ran("campaigns", "list", "--json") == (0, "[]\n", "")


def test_campaigns_are_listed_the_newest_first(campaign, ran):
    deliver(campaign.ledger, "zweite Ankündigung", visitors=TOLD)
    status, out, err = ran("campaigns", "list")
    assert (status, err) == (0, "")
    heading, newest, oldest = out.splitlines()
    assert heading.split() == ["CAMPAIGN", "STATUS", "TOTAL", "BEGAN", "LAST", "SEEN", "GOES", "ON", "TASK"]
    assert newest.startswith("zweite Ankündigung  finished")
    assert oldest.split()[:3] == ["release", "finished", "12"]
    assert oldest.endswith("announce_release.announce")
    _, out, _ = ran("campaigns", "list", "--json")
    assert [(one["campaign_id"], one["status"], one["total"]) for one in json.loads(out)] == [
        ("zweite Ankündigung", "finished", 10),
        ("release", "finished", 12),
    ]


def test_a_finished_campaign_is_shown_with_its_reasons(campaign, ran):
    status, out, err = ran("campaigns", "show", "release")
    assert (status, err) == (0, "")
    lines = {line.split("  ")[1].strip(): line for line in out.splitlines() if line.startswith("  ")}
    [code] = campaign.report("release").failed_by
    [doubt] = campaign.report("release").in_doubt_by
    assert out.startswith("Campaign release: finished, revision 1 of its text\n")
    assert lines["sent"].split()[:2] == ["sent", "9"]
    assert lines["failed"].endswith(f"1  {code} 1")
    assert lines["in doubt"].endswith(f"1  {doubt} 1")
    assert lines["skipped"].endswith("1  suppressed 1")
    assert "Quota: 89 of 100 until " in out
    assert "left" not in out.replace("  left ", "")  # nothing is left, so no time is


def test_a_campaign_that_waits_is_shown_with_the_time_left(waiting, ran):
    """Nine are left at three an hour (thirteen less the ten left to others): this hour's end, and two more."""
    status, out, _ = ran("campaigns", "show", "release")
    assert status == 0
    assert "Quota: 10 of 13 until " in out
    assert "Time: at least 3 h 0 min left" in out
    _, out, _ = ran("campaigns", "show", "release", "--json")
    shown = json.loads(out)
    assert (shown["sent"], shown["pending"], shown["status"]) == (3, 9, "running")
    assert shown["task"] == "announce_release.announce"
    assert shown["quota"]["remaining"] == 10
    assert 3 * 3600 - 60 < shown["seconds_left"] <= 3 * 3600


def test_deliveries_are_printed_with_what_settle_needs(campaign, ran):
    """`campaigns deliveries ID --state in_doubt` is what a task's warning says."""
    status, out, err = ran("campaigns", "deliveries", "release", "--state", "in_doubt")
    assert (status, err) == (0, "")
    heading, row = out.splitlines()
    assert heading.split("\t") == ["once_key", "visitor_id", "state", "reason", "at", "message_ids"]
    assert row.split("\t")[:3] == [doubt_of(campaign), doubt_of(campaign), "in_doubt"]


def test_deliveries_are_json_lines_on_demand(campaign, ran):
    _, out, _ = ran("campaigns", "deliveries", "release", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert {row["once_key"]: row["state"] for row in rows} == states_of(campaign)
    _, out, _ = ran("campaigns", "deliveries", "release", "--json", "--reason", "suppressed")
    assert [json.loads(line)["visitor_id"] for line in out.splitlines()] == [SUPPRESSED]


def test_what_would_move_the_terminals_cursor_is_escaped(hook, ran, sib_sandbox):
    deliver(hook.ledger, visitors=["ann\x1b[2J"])
    _, out, _ = ran("campaigns", "deliveries", "release")
    assert r"ann\x1b[2J" in out
    assert "\x1b" not in out


def test_an_export_is_csv_on_standard_output_or_in_a_file(campaign, ran, tmp_path):
    status, out, err = ran("campaigns", "export", "release")
    assert (status, err) == (0, "")
    assert {row["once_key"]: row["state"] for row in csv.DictReader(io.StringIO(out))} == states_of(campaign)
    file = tmp_path / "release.csv"
    status, said, _ = ran("campaigns", "export", "release", "--file", str(file), "--state", "sent")
    assert (status, said) == (0, f"9 deliveries written to {file}.\n")
    with file.open(encoding="utf-8", newline="") as rows:
        assert [row["state"] for row in csv.DictReader(rows)] == ["sent"] * 9


def test_a_file_is_not_emptied_for_a_campaign_that_is_not_there(hook, ran, tmp_path):
    file = tmp_path / "kept.csv"
    file.write_text("kept")
    assert ran("campaigns", "export", "relase", "--file", str(file))[0] == 1
    assert file.read_text() == "kept"


# following


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_following_draws_a_bar_until_the_campaign_is_finished(campaign, monkeypatch):
    """The refused one is tried again meanwhile, and refused again."""
    monkeypatch.setenv("COLUMNS", "160")
    campaign.retry("release")
    terminal = Terminal()
    assert follow(campaign, "release", terminal, sleep=lambda _: deliver(campaign.ledger)) == 0
    first, last = terminal.getvalue().split("\r")[1:]
    assert first == f"[{'#' * 22}..]  92% sent 9, in doubt 1, skipped 1, left 1, quota 89 of 100\x1b[K"
    assert last == (
        f"[{'#' * 24}] 100% finished, sent 9, failed 1, in doubt 1, skipped 1, left 0, quota 88 of 100\x1b[K\n"
        "Campaign 'release' is finished.\n"
    )


def test_a_bar_never_breaks_the_terminals_line(waiting, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()

    def abort(_: float) -> None:
        waiting.abort("release")

    follow(waiting, "release", terminal, sleep=abort)
    bars = [bar.partition("\x1b[K")[0] for bar in terminal.getvalue().split("\r")[1:]]
    assert [len(bar) for bar in bars] == [39, 39]


def test_following_without_a_terminal_prints_a_line_only_when_something_changed(waiting):
    steps = iter([lambda: None, lambda: waiting.pause("release"), lambda: waiting.abort("release")])
    out = io.StringIO()
    assert follow(waiting, "release", out, sleep=lambda _: next(steps)()) == 0
    running, paused, aborted, end = out.getvalue().splitlines()
    assert running.startswith(" 25% sent 3, ")
    assert paused.startswith(" 25% paused, sent 3, ")
    assert aborted.startswith(" 25% aborted, sent 3, ")
    assert end == "Campaign 'release' is aborted."


def test_following_ends_when_only_a_larger_fraction_would_send_more(hook, sib_sandbox):
    deliver(hook.ledger, fraction=0.25)
    out = io.StringIO()
    assert follow(hook, "release", out, sleep=lambda _: pytest.fail("it would go on for ever")) == 0
    assert out.getvalue().endswith("All it may send to have an outcome; 9 wait for a larger fraction.\n")


# changing


def test_a_campaign_is_paused_and_resumed(waiting, ran):
    status, out, err = ran("campaigns", "pause", "release")
    assert (status, err) == (0, "")
    assert "is paused" in only_sentence(out)
    assert waiting.report("release").status == "paused"
    assert ran("campaigns", "resume", "release")[0] == 0
    assert waiting.report("release").status == "running"


@pytest.mark.parametrize(
    ("arguments", "done"),
    [
        (["campaigns", "abort", "release"], lambda hook: hook.report("release").status == "aborted"),
        (["campaigns", "forget", TOLD[0]], lambda hook: TOLD[0] not in states_of(hook)),
        (
            ["campaigns", "scrub", "--older-than-days", "0"],
            lambda hook: sum(row.variables is None for row in hook.deliveries("release")) == 3,
        ),
        (["ledger", "adopt"], lambda hook: Pin.read(FILE) is not None),
    ],
)
@pytest.mark.parametrize(
    ("typed", "agreed"), [("y\n", True), ("yes\n", True), ("\n", False), ("no\n", False), ("", False)]
)
def test_what_is_hard_to_take_back_is_asked_first(waiting, ran, arguments, done, typed, agreed):
    status, out, err = ran(*arguments, typed=typed)
    assert "Go on? [y/N]" in err
    assert (status, done(waiting)) == (0 if agreed else 1, agreed)
    if not agreed:
        assert out == ""
        assert err.endswith("Nothing was changed. (--yes answers the question.)\n")


def test_a_purge_is_asked_first_and_only_for_what_is_at_rest(campaign, ran):
    assert ran("campaigns", "purge", "release", typed="n\n")[0] == 1
    assert len(campaign.list()) == 1
    status, out, err = ran("campaigns", "purge", "release", "--yes")
    assert (status, out, err) == (0, "Campaign 'release' is deleted.\n", "")
    assert campaign.list() == []


def test_a_purge_waits_for_what_is_on_its_way(waiting, ran):
    engine = SendEngine(waiting.ledger, "release", Rules(account="another", max_in_flight=1))
    engine.begin(resumed=True)
    assert isinstance(engine.next(), Send)  # and is killed
    ran("campaigns", "abort", "release", "--yes")
    status, _, err = ran("campaigns", "purge", "release", "--yes")
    assert status == 1
    assert "messages on their way" in only_sentence(err)
    assert "sending     1" in ran("campaigns", "show", "release")[1]


def test_failed_deliveries_are_retried_by_reason(campaign, ran):
    assert ran("campaigns", "retry", "release", "--reason", "other")[1] == (
        "No delivery has failed for this reason.\n"
    )
    [code] = campaign.report("release").failed_by
    status, out, _ = ran("campaigns", "retry", "release", "--reason", code)
    assert (status, out) == (0, "1 delivery pending again, for its DAG's next run.\n")
    assert states_of(campaign)[UNKNOWN] == "pending"


@pytest.mark.parametrize(
    ("options", "state"),
    [(["--sent"], "sent"), (["--sent", "--message-id", "m-1"], "sent"), (["--not-sent"], "pending")],
)
def test_a_doubt_is_settled(campaign, ran, options, state):
    doubt = doubt_of(campaign)
    assert ran("campaigns", "settle", "release", doubt, *options)[0] == 0
    assert states_of(campaign)[doubt] == state
    status, _, err = ran("campaigns", "settle", "release", doubt, *options)
    assert (status, doubt in err) == (1, False)
    assert "no delivery in doubt" in only_sentence(err)


def test_visitors_are_suppressed_by_name_and_from_a_file(hook, ran, tmp_path):
    file = tmp_path / "opted-out.txt"
    file.write_text("\ufeffann\n\n bob \ncid", encoding="utf-8")
    assert ran("campaigns", "suppress", "dan", "--file", str(file))[1].startswith("4 visitors new")
    assert ran("campaigns", "suppress", "ann")[1].startswith("0 visitors new")
    assert ran("campaigns", "unsuppress", "bob")[1].startswith("1 visitor taken off")
    ran("campaigns", "forget", "eve", "--yes")
    _, out, _ = ran("campaigns", "suppressed")
    heading, *rows = (line.split("\t") for line in out.splitlines())
    assert heading == ["visitor_id", "reason", "since"]
    assert sorted(row[:2] for row in rows) == [
        ["-", "forgotten"],
        ["ann", "asked"],
        ["cid", "asked"],
        ["dan", "asked"],
    ]
    _, out, _ = ran("campaigns", "suppressed", "--json")
    assert {one["visitor_id"] for one in json.loads(out)} == {None, "ann", "cid", "dan"}


def test_variables_are_erased_of_what_ended_so_many_days_ago(waiting, ran):
    for days, erased in (("1", "0 deliveries"), ("0", "3 deliveries"), ("0", "0 deliveries")):
        scrubbed = ran("campaigns", "scrub", "--older-than-days", days, "--yes")
        assert scrubbed == (0, f"Variables erased of {erased}.\n", "")


# the ledger


def test_the_ledger_says_whether_it_is_the_right_one(campaign, ran, tmp_path):
    identity = campaign.ledger.identity()
    status, out, err = ran("ledger", "show")
    assert (status, err) == (0, "")
    assert f"Ledger: {tmp_path}/sib_ledger.db\nId: {identity.ledger_id} (schema 1)\n" in out
    assert "Messages begun: 11\nPinned: none yet" in out
    open_ledger(FILE, to_send=True).close()
    _, out, _ = ran("ledger", "show")
    assert f"Pinned: {identity.ledger_id}, with 11 messages begun\nTasks send with it.\n" in out


@pytest.mark.parametrize("pin", [("another", 0), ("the same", 12)])
def test_a_wrong_ledger_is_refused_by_all_commands_until_it_is_adopted(campaign, ran, pin):
    ledger_id = campaign.ledger.identity().ledger_id
    Pin(ledger_id if pin[0] == "the same" else pin[0], pin[1]).write(FILE)
    status, out, err = ran("campaigns", "list")
    assert (status, out) == (1, "")
    assert "python -m airflow_provider_sib ledger adopt`" in only_sentence(err)
    status, out, err = ran("ledger", "show")
    assert (status, f"Id: {ledger_id}" in out) == (1, True)
    assert "Nothing is sent." in err
    status, out, _ = ran("ledger", "show", "--json")
    assert (status, json.loads(out)["claims"], "ledger adopt" in json.loads(out)["trouble"]) == (1, 11, True)
    status, out, _ = ran("ledger", "adopt", typed="y\n")
    assert (status, out) == (0, f"Adopted: {ledger_id}, with 11 messages begun.\n")
    assert ran("campaigns", "list")[0] == 0
    assert ran("ledger", "show")[0] == 0


def test_a_file_that_not_all_tasks_share_is_trouble(campaign, ran, tmp_path, monkeypatch):
    open_ledger(FILE, to_send=True).close()
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    status, out, err = ran("ledger", "show")
    assert (status, "Tasks" in out) == (1, False)
    assert "needs a ledger that all tasks share" in only_sentence(err)
    status, out, _ = ran("ledger", "show", "--json")
    assert (status, "executor is CeleryExecutor" in json.loads(out)["trouble"]) == (1, True)
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "new"))
    assert "needs a ledger that all tasks share" in only_sentence(ran("ledger", "show")[2])


def test_an_empty_database_beside_a_file_that_has_sent_is_trouble(hook, ran, tmp_path, monkeypatch):
    fields = {"conn_type": "sqlite", "host": str(tmp_path / "other.db")}
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps(fields))
    open_ledger(LedgerPlace("other"), to_send=False).close()
    Pin("of the file", 7).write(FILE)
    status, out, err = ran("ledger", "show", "--ledger-conn-id", "other")
    assert (status, "Tasks" in out) == (1, False)
    assert "has begun 7 messages with the one in a file" in only_sentence(err)
    assert ran("ledger", "show", "--ledger-conn-id", "other", "--json")[0] == 1


def test_adopting_says_what_is_here_and_what_was_pinned(campaign, ran):
    Pin("another", 1234).write(FILE)
    _, _, err = ran("ledger", "adopt", typed="n\n")
    assert f"{campaign.ledger.identity().ledger_id}, with 11 messages begun" in err
    assert "Pinned until now: another, with 1,234 messages begun." in err
    assert "visitors may be written to twice" in err


def test_a_lost_ledger_is_told_of_and_an_empty_one_may_be_adopted(hook, ran, tmp_path):
    """Looking at a ledger that is not there makes none."""
    assert "The first task that sends makes it" in only_sentence(ran("ledger", "show")[2])
    Pin("lost", 7).write(FILE)
    status, _, err = ran("ledger", "show")
    assert (status, "There was one, and it is pinned" in only_sentence(err)) == (1, True)
    assert not (tmp_path / "sib_ledger.db").exists()
    status, out, err = ran("ledger", "adopt", "--yes")
    assert (status, "with 0 messages begun" in out) == (0, True)
    assert ran("ledger", "show")[0] == 0


def test_the_forgotten_are_taken_out_of_lists_as_the_guide_does_it(campaign, tmp_path):
    """Their rows have no visitor's id, with which no audience and no list could be read."""
    guide = (REPOSITORY / "docs/guides/celery-and-kubernetes.md").read_text()
    lines = [line for line in guide.splitlines() if line.endswith((" > reached.csv", " > suppressed.txt"))]
    forgotten = next(row.visitor_id for row in campaign.deliveries("release", states=["sent"]))
    campaign.forget_visitor(forgotten)
    campaign.close()
    for line in lines:
        command = line.replace("python", sys.executable, 1).replace("release-2.0", "release")
        subprocess.run(
            ["bash", "-c", command],
            check=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
    with (tmp_path / "reached.csv").open(newline="") as file:
        reached = [row["visitor_id"] for row in csv.DictReader(file)]
    assert (len(reached), all(reached)) == (9, True)
    assert (tmp_path / "suppressed.txt").read_text().splitlines() == [SUPPRESSED]


def test_another_ledger_is_chosen_by_its_connection(campaign, ran, tmp_path, monkeypatch):
    path = tmp_path / "other.db"
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({"conn_type": "sqlite", "host": str(path)}))
    status, out, _ = ran("campaigns", "list", "--ledger-conn-id", "other")
    assert (status, out) == (0, f"No campaigns in the ledger: {path} (connection other).\n")


# refusals

UNKNOWN_CAMPAIGN = "This ledger has no campaign 'relase': `campaigns list` names those it has"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        *(
            (["campaigns", *action.split()], UNKNOWN_CAMPAIGN)
            for action in (
                "show relase",
                "show relase --follow",
                "pause relase",
                "resume relase",
                "abort relase --yes",
                "retry relase",
                "settle relase ann --sent",
                "deliveries relase",
                "export relase",
                "purge relase --yes",
            )
        ),
        (
            ["campaigns", "pause", "release"],
            "Campaign 'release' is finished and cannot be set to paused. To keep it",
        ),
        (["campaigns", "suppress", "--file", "no-such-file"], "No such file"),
        (["campaigns", "scrub", "--older-than-days", "-1", "--yes"], "-1 day, 0:00:00 is negative"),
        (["campaigns", "suppress", "x" * 256], "A visitor's id has more than 255 characters"),
        (["campaigns", "list", "--ledger-conn-id", "nowhere"], "The conn_id `nowhere` isn't defined"),
    ],
)
def test_a_refusal_is_one_sentence_on_standard_error(campaign, ran, arguments, sentence):
    status, out, err = ran(*arguments)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert sentence in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["campaigns"],
        ["campaigns", "lst"],
        ["campaigns", "show"],
        ["campaigns", "show", "release", "--follow", "--json"],
        ["campaigns", "settle", "release", "ann"],
        ["campaigns", "settle", "release", "ann", "--sent", "--not-sent"],
        ["campaigns", "settle", "release", "ann", "--not-sent", "--message-id", "m-1"],
        ["campaigns", "deliveries", "release", "--state", "lost"],
        ["campaigns", "suppress"],
        ["campaigns", "unsuppress"],
        ["campaigns", "scrub"],
        ["campaigns", "scrub", "--older-than-days", "many"],
        ["campaigns", "scrub", "--older-than-days", "1000000000"],
        ["ledger"],
        ["sandbox", "--prt", "1"],
    ],
)
def test_a_wrong_command_line_is_told_how_it_is_right(hook, ran, arguments):
    status, out, err = ran(*arguments)
    assert (status, out, err[:7]) == (2, "", "usage: ")


def test_a_database_that_does_not_answer_is_one_sentence_without_its_password(hook, ran, monkeypatch):
    pytest.importorskip("psycopg2")
    monkeypatch.setenv("AIRFLOW_CONN_FAR", "postgres://ann:geheim@127.0.0.1:1/ledgers")
    for command in (["campaigns", "list"], ["ledger", "show"], ["ledger", "adopt", "--yes"]):
        status, out, err = ran(*command, "--ledger-conn-id", "far")
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "The ledger's database did not do it" in err
        assert "geheim" not in err


def test_the_sandbox_takes_its_own_options(ran):
    status, out, _ = ran("sandbox", "--help")
    assert (status, "--quota VALUE" in out) == (0, True)
    assert ran("sandbox", "--port", "70000")[0] == 1


# as a process of its own


def process(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def test_a_process_without_airflows_database_is_refused_since_it_cannot_read_the_pin(hook, tmp_path):
    """Airflow's own `Variable.get` would answer as if nothing were pinned yet."""
    empty = f"sqlite:///{tmp_path}/empty.db"
    with process("campaigns", "list", AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=empty) as ended:
        out, err = ended.communicate(timeout=60)
    assert (ended.returncode, out) == (1, "")
    assert "could not be read by MetastoreBackend (OperationalError: no such table: variable)" in err
    assert "Traceback" not in err


def test_standard_output_holds_only_what_was_asked_for(campaign):
    with process("campaigns", "list", "--json") as ended:
        out, err = ended.communicate(timeout=60)
    assert (ended.returncode, [one["campaign_id"] for one in json.loads(out)]) == (0, ["release"])
    assert "Traceback" not in err


def test_a_reader_who_has_had_enough_sees_no_traceback(hook, sib_sandbox):
    sib_sandbox.configure(quota=13)
    deliver(hook.ledger, visitors=[f"visitor-{number}" for number in range(5000)])
    with process("campaigns", "export", "release") as ended:
        assert ended.stdout is not None
        assert ended.stderr is not None
        assert ended.stdout.readline().startswith("visitor_id,once_key,")
        ended.stdout.close()
        assert ended.wait(timeout=60) == 1
        assert "Traceback" not in ended.stderr.read()


def test_following_is_ended_by_ctrl_c_and_the_campaign_goes_on(waiting):
    with process("campaigns", "show", "release", "--follow") as following:
        assert following.stdout is not None
        assert following.stdout.readline().startswith(" 25% sent 3, ")
        following.send_signal(signal.SIGINT)
        out, err = following.communicate(timeout=60)
    assert (following.returncode, out) == (0, "")
    assert "Traceback" not in err
    assert waiting.report("release").status == "running"
