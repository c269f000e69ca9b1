"""The trial finds the sandbox's switches in ten calls, leaves nothing behind, and says so when it can't."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import threading
import time
from random import Random

import pytest
from airflow.sdk import Connection

from airflow_provider_sib.__main__ import main
from airflow_provider_sib.api.errors import Quota
from airflow_provider_sib.check import MOST_CALLS, Reply, ask, bucket, reset_unit
from airflow_provider_sib.hooks import ConnectionSettings
from airflow_provider_sib.sandbox import Sandbox
from airflow_provider_sib.sandbox.settings import Settings, parsed

VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"
GROUP = "PjRBMhWGen6aRHjif"

# The switches an account's answers tell, and another value of each.
OTHERS = {
    "quota": 200,
    "hour_seconds": 1800.0,
    "bucket": "per_route",
    "unknown_visitor": "reject",
    "visitor_group_key": "none",
    "second_delete": 204,
    "pushed_under_messages": True,
    "max_text_length": 5000,
    "html_escaping": False,
    "id_style": "long",
    "missing_message": "Where is {field}?",
    "not_found_code": None,
    "not_found_message": "No such thing",
}


@pytest.fixture
def sandbox():
    with Sandbox() as running:
        yield running


def settings(sandbox, password=None, **extra) -> ConnectionSettings:
    fields = sandbox.connection() | {"extra": json.dumps(extra)}
    fields["password"] = password or fields["password"]
    return ConnectionSettings.from_connection(Connection(conn_id="live", **fields))


def trial(sandbox, *, password=None, group_id=None, tell=lambda line: None, extra=None):
    return ask(
        settings(sandbox, password, **(extra or {})),
        VISITOR,
        group_id=group_id,
        tell=tell,
        sleep=lambda seconds: None,
        random=Random(7),
    )


def undeleted(sandbox):
    return [message["id"] for message in sandbox.messages() if not message["deleted"]]


def requests(sandbox):
    return sandbox.counts()["requests"]


class TestFindings:
    @pytest.mark.parametrize(
        ("switch", "value"),
        [
            *((name, getattr(Settings(), name)) for name in OTHERS),
            *OTHERS.items(),
            ("max_text_length", 500),
        ],
    )
    def test_it_finds_each_switch_and_leaves_nothing_behind(self, switch, value):
        with Sandbox(**{switch: value}) as sandbox:
            report = trial(sandbox, group_id=GROUP)
            assert report.switches[switch] == value
            assert requests(sandbox) == len(report.replies) <= MOST_CALLS
            assert undeleted(sandbox) == []
            assert sandbox.state()["visitors"][VISITOR].get("groupId") is None
            assert report.left_behind == []
            assert report.ended is None

    def test_it_finds_how_a_wrong_parameter_is_worded_where_one_is_refused(self):
        with Sandbox(unknown_visitor="reject", invalid_message="Bad {field}!") as sandbox:
            assert trial(sandbox).switches["invalid_message"] == "Bad {field}!"

    def test_it_finds_that_there_are_no_quota_headers(self):
        with Sandbox(rate_headers=False) as sandbox:
            report = trial(sandbox)
        assert report.switches["rate_headers"] is False
        assert "quota" not in report.switches
        assert report.extras == {}

    def test_without_a_refused_text_the_limit_is_none_and_with_one_the_longest_that_passed(self):
        with Sandbox(max_text_length=4999) as sandbox:
            report = trial(sandbox)
        assert report.switches["max_text_length"] == 500

    def test_without_group_all_ten_calls_are_used_and_all_is_answered(self, sandbox):
        report = trial(sandbox)
        assert report.complete
        assert requests(sandbox) == MOST_CALLS
        assert sandbox.state()["requests"]["by_operation"].get("set_visitor_group") is None
        assert "visitor_group_key" not in report.switches

        assert report.left_out == []

    def test_with_the_group_tried_all_is_answered_but_what_matters_least(self, sandbox):
        report = trial(sandbox, group_id=GROUP)
        assert report.complete
        assert len(report.left_out) == 2

    def test_the_command_it_prints_starts_a_sandbox_that_answers_alike(self):
        with Sandbox(**OTHERS) as sandbox:
            first = trial(sandbox, group_id=GROUP)
        words = shlex.split(first.sandbox_command())[3:]
        names = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
        switches = {name: parsed(name, value) for name, value in zip(names, words[1::2], strict=True)}
        with Sandbox(**switches) as sandbox:
            again = trial(sandbox, group_id=GROUP)
        assert again.switches == first.switches
        assert again.findings == first.findings

    def test_the_limit_that_was_seen_becomes_the_connections_extra(self):
        with Sandbox(quota=600) as sandbox:
            assert trial(sandbox).extras == {"requests_per_hour": 600}

    def test_messages_are_marked_as_tests_and_go_to_the_visitor_and_one_that_is_made_up(self, sandbox):
        trial(sandbox)
        sent = sandbox.messages()
        assert all(message["text"].startswith("Test of airflow-provider-sib") for message in sent)
        others = {message["visitorId"] for message in sent} - {VISITOR}
        assert len(others) == 1
        assert others.pop().startswith("airflowprovidersib")

    def test_the_staging_guard_holds_here_too(self, sandbox):
        report = trial(sandbox, extra={"allowed_visitors": VISITOR})
        assert {message["visitorId"] for message in sandbox.messages()} == {VISITOR}
        assert any("allowed_visitors" in reason for reason in report.not_asked.values())
        assert not report.complete


class TestTrouble:
    def test_a_wrong_key_ends_it_at_the_first_call_and_is_not_shown(self, sandbox):
        lines = []
        report = trial(sandbox, password="xkeysib-wrong", tell=lines.append)
        assert requests(sandbox) == 1
        assert "Check the connection's API key" in report.ended
        assert "xkeysib-wrong" not in "".join(lines) + json.dumps(report.as_json())
        assert not report.complete

    @pytest.mark.parametrize("level", ["read", "read_write"])
    def test_a_key_that_may_not_delete_sends_nothing(self, level):
        with Sandbox(restricted_key="xkeysib-less", restricted_level=level) as sandbox:
            report = trial(sandbox, password="xkeysib-less")
            assert sandbox.messages() == []
        assert "All to delete" in report.ended

    def test_a_key_for_conversations_alone_is_enough(self):
        with Sandbox(restricted_key="xkeysib-less") as sandbox:
            assert trial(sandbox, password="xkeysib-less").complete

    @pytest.mark.parametrize("quota", range(1, 10))
    def test_where_the_quota_says_it_is_too_small_nothing_is_sent(self, quota):
        with Sandbox(quota=quota) as sandbox:
            report = trial(sandbox)
            assert requests(sandbox) == 1
            assert sandbox.messages() == []
        assert f"The quota leaves {quota - 1} calls" in report.ended

    @pytest.mark.parametrize("quota", range(1, 10))
    def test_where_the_quota_ends_unannounced_it_names_what_it_could_not_delete(self, quota):
        with Sandbox(quota=quota, rate_headers=False) as sandbox:
            report = trial(sandbox)
            assert "The quota is used up" in report.ended
            assert requests(sandbox) <= MOST_CALLS
            left = undeleted(sandbox)
        assert len(report.left_behind) == len(left)
        assert all(any(f"the message {one}" in line for line in report.left_behind) for one in left)
        assert not report.complete

    @pytest.mark.parametrize("calls", range(10))
    @pytest.mark.parametrize(
        "kind", ["hang_up_before", "hang_up_after", "hang_up_during", "error_html", "garbage"]
    )
    def test_one_fault_at_any_call_leaves_nothing_unsaid(self, sandbox, kind, calls):
        """What is there afterwards was named, or said to be possibly there."""
        sandbox.fault(kind, times=1, after=calls)
        report = trial(sandbox, group_id=GROUP)
        assert requests(sandbox) <= MOST_CALLS
        left = undeleted(sandbox)
        named = [one for one in left if any(one in line for line in report.left_behind)]
        possibly = [line for line in report.left_behind if "is not known" in line]
        assert len(left) - len(named) <= len(possibly)
        assert len(left) <= 1
        assert not (left and report.complete)

    def test_a_server_that_dies_midway_is_said_in_clear_words(self, sandbox):
        def dies(line):
            if line.startswith("4. "):
                sandbox.stop()

        report = trial(sandbox, tell=dies)
        assert "Could not" in report.ended
        assert len(report.left_behind) == 2
        assert all(line.startswith("Could not take back the message ") for line in report.left_behind)

    def test_what_is_not_brevo_is_told_from_brevo(self, sandbox):
        sandbox.fault("error_html", status=404, times=1)
        fields = sandbox.connection() | {"host": sandbox.page_url + "elsewhere"}
        elsewhere = ConnectionSettings.from_connection(Connection(conn_id="live", **fields | {"extra": None}))
        report = ask(elsewhere, VISITOR, tell=lambda line: None, sleep=lambda seconds: None)
        assert "is the connection's host right?" in report.ended
        assert sandbox.messages() == []


class TestInterrupt:
    @pytest.mark.parametrize("number", range(1, 11))
    def test_ctrl_c_after_any_call_cleans_up(self, sandbox, number):
        def interrupt(line):
            if line.startswith(f"{number}. "):
                signal.raise_signal(signal.SIGINT)

        report = trial(sandbox, tell=interrupt)
        assert report.ended == "It was interrupted."
        assert undeleted(sandbox) == []
        assert report.left_behind == []
        assert requests(sandbox) <= MOST_CALLS

    def test_ctrl_c_while_a_message_is_on_its_way_says_that_it_may_be_there(self, sandbox):
        sandbox.fault("never_answer", operation="send_pushed_message", after=2)

        def interrupt_when_stored():
            deadline = time.monotonic() + 60
            while len(sandbox.messages()) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)  # between two looks
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt_when_stored, daemon=True).start()
        report = trial(sandbox)
        assert report.ended == "It was interrupted."
        assert len(report.left_behind) == 1
        assert "is not known" in report.left_behind[0]
        assert len(undeleted(sandbox)) == 1

    def test_a_second_ctrl_c_ends_the_cleaning_and_names_what_is_left(self, sandbox):
        def interrupt(line):
            if line.startswith(("4. ", "5. ")):
                signal.raise_signal(signal.SIGINT)

        report = trial(sandbox, tell=interrupt)
        assert report.ended == "It was interrupted while it cleaned up."
        left = undeleted(sandbox)
        assert len(left) == 1
        assert left[0] in report.left_behind[0]


def replies(*rows):
    return [
        Reply("?", f"{route} x", answered, None, None, None, None, Quota(limit, remaining, reset), at)
        for route, answered, limit, remaining, reset, at in rows
    ]


class TestInferences:
    @pytest.mark.parametrize(
        ("rows", "kind"),
        [
            ([], None),
            ([("A", "refused", 100, 99, 3600, 0), ("A", "accepted", 100, 98, 3600, 1)], None),
            ([("A", "refused", 100, 99, 3600, 0), ("B", "accepted", 100, 98, 3600, 1)], None),
            (
                [
                    ("A", "refused", 9, 8, 99, 0),
                    ("B", "accepted", 9, 7, 99, 1),
                    ("A", "accepted", 9, 6, 99, 2),
                ],
                "shared",
            ),
            (  # a colleague's calls in between
                [
                    ("A", "refused", 9, 8, 99, 0),
                    ("B", "accepted", 9, 5, 99, 1),
                    ("A", "accepted", 9, 2, 99, 2),
                ],
                "shared",
            ),
            (  # each has been used to another degree
                [
                    ("A", "refused", 9, 8, 99, 0),
                    ("B", "accepted", 9, 2, 99, 1),
                    ("A", "accepted", 9, 7, 99, 2),
                ],
                "per_route",
            ),
            ([("A", "refused", 100, 99, 3600, 0), ("B", "accepted", 200, 9, 3600, 1)], "per_route"),
            ([("A", "refused", 9, 1, 2, 0), ("B", "accepted", 9, 8, 3600, 5)], None),  # renewed in between
        ],
    )
    def test_one_quota_or_one_for_each_route(self, rows, kind):
        assert bucket(replies(*rows)) == kind

    @pytest.mark.parametrize(
        ("rows", "words"),
        [
            ([], "no answer"),
            ([("A", "refused", 9, 8, 3600, 0), ("A", "accepted", 9, 7, 3597, 3.2)], "it fell by 3 in 3.2"),
            ([("A", "refused", 9, 8, 1800, 0), ("A", "accepted", 9, 7, 1800, 0.1)], "in no other unit"),
            ([("A", "refused", 9, 8, 60, 0), ("A", "accepted", 9, 7, 60, 4.0)], "not told"),
            ([("A", "refused", 9, 8, 3600, 0), ("A", "accepted", 9, 7, 3600, 4.0)], "not told"),
        ],
    )
    def test_the_unit_of_the_reset(self, rows, words):
        assert words in reset_unit(replies(*rows))


class TestCommand:
    @pytest.fixture
    def command(self, sandbox, monkeypatch):
        """Run the command against the sandbox, without the pause."""

        def _command(*words, conn_id="live"):
            monkeypatch.setenv("AIRFLOW_CONN_LIVE", sandbox.connection_json())
            return main(["check", "--conn-id", conn_id, *words])

        return _command

    def test_the_report_for_an_issue_has_neither_key_nor_visitor(self, sandbox, command, tmp_path, capsys):
        sandbox.configure(
            missing_message=f"{{field}} for {VISITOR}, key xkeysib-sandbox", not_found_message=f"in {GROUP}"
        )
        file = tmp_path / "report.json"
        assert command("--visitor", VISITOR, "--group", GROUP, "--yes", "--json", str(file)) == 0
        text = file.read_text()
        printed = capsys.readouterr().out
        for private in (VISITOR, GROUP, "xkeysib-sandbox"):
            assert private not in text
            assert private not in printed
        assert json.loads(text)["complete"] is True
        assert "seconds: it fell by 3" in text
        assert "Nothing is left behind." in printed

    @pytest.mark.parametrize("answer", ["n", "", "maybe"])
    def test_it_asks_before_it_begins(self, sandbox, command, monkeypatch, answer):
        monkeypatch.setattr("builtins.input", lambda prompt: answer)
        assert command("--visitor", VISITOR) == 1
        assert requests(sandbox) == 0

    def test_without_a_terminal_it_begins_only_when_told_to(self, sandbox, command, monkeypatch, capsys):
        monkeypatch.setattr("sys.stdin", io.StringIO())
        assert command("--visitor", VISITOR) == 1
        assert "Nothing was sent." in capsys.readouterr().out
        assert requests(sandbox) == 0

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (("--visitor", " ", "--yes"), "--visitor is blank"),
            (("--visitor", VISITOR, "--yes", "--json", "/nowhere/report.json"), "/nowhere/report.json"),
        ],
    )
    def test_what_is_wrong_with_the_command_is_said_before_anything_is_sent(
        self, sandbox, command, capsys, words, sentence
    ):
        assert command(*words) == 1
        assert sentence in capsys.readouterr().out
        assert requests(sandbox) == 0

    def test_an_unknown_connection_is_named(self, command, capsys, airflow_db):
        assert command("--visitor", VISITOR, "--yes", conn_id="nobody") == 1
        assert "nobody" in capsys.readouterr().out
