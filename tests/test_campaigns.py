"""The campaign operators against the sandbox, in Airflow's own processes of a task: what a ledger and a DAG show."""

from __future__ import annotations

import json
import logging
import re
import shlex
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from inspect import cleandoc
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.models import TaskInstance
from airflow.models.asset import AssetEvent, AssetModel
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.xcom import XComModel
from airflow.sdk import DAG, ObjectStoragePath, TaskInstanceState, task
from airflow.serialization.serialized_objects import LazyDeserializedDAG
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_sib import triggers
from airflow_provider_sib._compat import AirflowFailException, AirflowSkipException
from airflow_provider_sib.campaign import (
    CampaignAudience,
    CsvAudience,
    FrequencyCap,
    RowsAudience,
    SendWindow,
    SqlAudience,
    Variant,
)
from airflow_provider_sib.hooks.campaign import Pin
from airflow_provider_sib.operators import (
    SendCampaignOperator,
    UpdateCampaignOperator,
    WithdrawCampaignOperator,
)
from airflow_provider_sib.operators.campaign import opened
from airflow_provider_sib.sandbox import Sandbox
from airflow_provider_sib.sandbox.state import AGENT_ID, GROUP_ID
from airflow_provider_sib.sensors import CampaignSensor, MessageSensor

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferred

SUCCESS, FAILED = TaskInstanceState.SUCCESS, TaskInstanceState.FAILED
HERE = Path(__file__).parent
CONNECTION = "AIRFLOW_CONN_SIB_CONVERSATIONS_DEFAULT"


def rows(count, start=0):
    return [{"visitor_id": f"visitor-{n}", "first_name": f"Name {n}"} for n in range(start, start + count)]


def send(count=10, **arguments):
    """Make the task of a campaign; the audience is `count` visitors."""
    given = {
        "task_id": "send",
        "campaign_id": "release",
        "audience": rows(count),
        "text": "Hi [[ visitor.first_name ]]!",
        "reserve": 0,
        "retry_delay": timedelta(0),
    }
    return SendCampaignOperator(**given | arguments)


def a_context(run_type="manual", run_after=None):
    """Give a run of a day's data: its logical date is the day's beginning, a day before it can run."""
    moment = run_after or datetime.now(UTC)
    logical_date = moment - timedelta(days=1)
    return {"dag_run": SimpleNamespace(run_type=run_type, logical_date=logical_date, run_after=moment)}


def told(sandbox):
    """Count the messages of each visitor."""
    return Counter(message["visitorId"] for message in sandbox.messages())


def once_each(count):
    return Counter(row["visitor_id"] for row in rows(count))


@pytest.fixture(autouse=True)
def sandbox(campaigns, sib_sandbox):
    sib_sandbox.configure(quota=10_000)
    return sib_sandbox


@pytest.fixture
def run():
    """Run tasks with dag.test(); give their states, or the state of the only one."""

    def _run(*make, conf=None, **arguments):
        with DAG("campaign", schedule=None, **arguments) as dag:
            for one in make or [send]:
                one()
        dag_run = dag.test(run_conf=conf)
        states = {(ti.task_id, ti.map_index): ti.state for ti in dag_run.get_task_instances()}
        _run.run_id = dag_run.run_id
        return states if len(states) > 1 else next(iter(states.values()))

    return _run


def execute(operator, context=None, event=None):
    """Run a task without an Airflow around it, for what needs none."""
    return operator.execute(context or a_context(), event)


class TestOnce:
    def test_running_it_twice_writes_to_nobody_twice(self, run, sandbox):
        assert [run(), run()] == [SUCCESS, SUCCESS]
        assert told(sandbox) == once_each(10)

    def test_what_got_no_answer_is_in_doubt_and_not_sent_again(self, run, sandbox, campaigns, logged):
        sandbox.fault("hang_up_after", times=2, after=10, operation="send_pushed_message")
        assert [run(lambda: send(40)), run(lambda: send(40))] == [SUCCESS, SUCCESS]
        assert told(sandbox) == once_each(40)
        report = campaigns.report("release")
        assert (report.sent, report.in_doubt) == (38, 2)
        assert "2 messages are in doubt" in logged()

    def test_on_doubt_resend_sends_them_again(self, sandbox, campaigns):
        sandbox.fault("hang_up_before", times=2, after=10, operation="send_pushed_message")
        execute(send(40))
        assert campaigns.report("release").in_doubt == 2
        assert execute(send(40, on_doubt="resend"))["run"]["sent"] == 2
        assert told(sandbox) == once_each(40)

    def test_a_refused_connection_fails_at_once_and_mended_goes_on(self, run, sandbox, logged):
        sandbox.fault("ip_blocked", after=4)
        assert run() == FAILED
        said = logged()
        assert "refuses the connection 'sib_conversations_default'; nobody is lost" in said
        assert "try_number=2" not in said
        assert 0 < len(sandbox.messages()) < 10
        sandbox.clear_faults()
        assert run() == SUCCESS
        assert told(sandbox) == once_each(10)

    def test_a_task_whose_ledger_fails_is_tried_again_and_goes_on(self, run, sandbox, campaigns, tmp_path):
        """The first try meets a folder where the file should be, as of a disk that is mounted late."""
        ledger = Path(campaigns.place.url().database)
        ledger.mkdir()

        def mend(context):
            ledger.rmdir()

        assert run(lambda: send(on_retry_callback=mend)) == SUCCESS
        assert told(sandbox) == once_each(10)

    def test_newcomers_join_at_each_run(self, run, sandbox):
        for count in (3, 5):
            assert run(lambda: send(count, enrol="each_run")) == SUCCESS  # noqa: B023  run at once
        assert told(sandbox) == once_each(5)

    def test_a_snapshot_is_taken_once(self, sandbox):
        for count in (3, 5):
            execute(send(count))
        assert told(sandbox) == once_each(3)

    def test_once_may_be_counted_by_columns(self, sandbox):
        orders = [
            {"visitor_id": "ann", "order_id": number, "first_name": "Ann"} for number in ("A1", "A2", "A1")
        ]
        result = execute(send(audience=orders, once_per="order_id"))
        assert told(sandbox) == {"ann": 2}
        assert result["totals"]["total"] == 2

    def test_mapped_over_campaigns_each_goes_its_own_way(self, run, sandbox):
        def mapped():
            SendCampaignOperator.partial(
                task_id="send",
                audience=RowsAudience(rows(3)),
                text="{{ ti.map_index }} [[ visitor.first_name ]]",
            ).expand(campaign_id=["one", "two"])

        for _ in range(2):
            assert run(mapped) == {("send", 0): SUCCESS, ("send", 1): SUCCESS}
        assert told(sandbox) == dict.fromkeys(once_each(3), 2)
        assert {message["text"][0] for message in sandbox.messages()} == {"0", "1"}


@contextmanager
def as_soon_as_deferred(action):
    """Do something from another thread once the task that is run meanwhile has been deferred."""
    over = threading.Event()

    def wait():
        with create_session() as session:
            known = set(session.scalars(select(TaskInstance.id)))
        while not over.wait(0.05):
            with create_session() as session:
                deferred = session.scalars(
                    select(TaskInstance.id).where(TaskInstance.next_method == "execute")
                ).all()
            if set(deferred) - known:
                action()
                return

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class TestWaiting:
    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch):
        monkeypatch.setenv("AIRFLOW__SIB__DEFER_AFTER_SECONDS", "10")
        monkeypatch.setattr(triggers, "STATUS_INTERVAL_SECONDS", 0.05)

    def test_defers_when_the_quota_is_used_up_and_goes_on_in_the_next_hour(self, run, sandbox, logged):
        sandbox.configure(quota=6, hour_seconds=12)
        assert run() == SUCCESS
        said = logged()
        assert "waits for quota: deferring until" in said
        assert "Campaign release is finished: total 10, sent 10." in said
        assert told(sandbox) == once_each(10)
        refused = sandbox.state()["requests"]["by_status"].get("429", 0)
        assert refused == 0

    def test_it_leaves_the_connection_s_reserve_to_others(self, sandbox, monkeypatch):
        sandbox.configure(quota=20)
        monkeypatch.setenv(CONNECTION, sandbox.connection_json(reserve_calls=5))
        with pytest.raises(TaskDeferred):
            execute(send(30, reserve=None))
        assert len(sandbox.messages()) == 15

    def test_a_paused_campaign_waits_deferred_until_it_is_resumed(self, run, sandbox, campaigns, logged):
        run(lambda: send(fraction=0.5))
        campaigns.pause("release")
        with as_soon_as_deferred(lambda: campaigns.resume("release")):
            assert run() == SUCCESS
        assert "waits for paused: deferring until it is resumed" in logged()
        assert told(sandbox) == once_each(10)

    def test_an_aborted_campaign_fails_and_says_how_to_go_on(self, run, sandbox, campaigns, logged):
        run(lambda: send(fraction=0.5))
        campaigns.abort("release")
        assert run() == FAILED
        assert "Campaign 'release' was aborted. To go on, resume it" in logged()
        assert len(sandbox.messages()) == 5
        campaigns.resume("release")
        assert run() == SUCCESS
        assert told(sandbox) == once_each(10)

    def test_aborted_while_it_waits_it_fails_too(self, run, sandbox, campaigns, logged):
        run(lambda: send(fraction=0.5))
        campaigns.pause("release")
        with as_soon_as_deferred(lambda: campaigns.abort("release")):
            assert run() == FAILED
        assert "was aborted" in logged()

    def test_after_a_deferral_it_goes_on_with_the_text_the_ledger_has(self, sandbox):
        """Templates are rendered anew at each resume, to another text perhaps."""
        sandbox.configure(quota=4, hour_seconds=3600)
        with pytest.raises(TaskDeferred):
            execute(send(text="First, [[ visitor.first_name ]]"))
        sandbox.configure(quota=10_000)
        with pytest.raises(TaskDeferred):
            execute(send(text="Second, [[ visitor.first_name ]]"), event={"woken_by": "moment"})
        assert {message["text"].split(",")[0] for message in sandbox.messages()} == {"First"}

    def test_after_a_deferral_it_leaves_out_whom_suppress_names_by_then(self, sandbox, campaigns, tmp_path):
        path = tmp_path / "suppressed.csv"
        path.write_text("visitor_id\n")
        execute(send(fraction=0.5, suppress=str(path)))
        campaigns.pause("release")
        with pytest.raises(TaskDeferred):
            execute(send(suppress=str(path)))
        campaigns.resume("release")
        kept, *left_out = once_each(10).keys() - told(sandbox).keys()
        path.write_text("\n".join(["visitor_id", *left_out]))
        resumed = execute(send(suppress=str(path)), event={"woken_by": "resumed"})
        assert resumed["skipped_by"] == {"excluded": 4}
        assert told(sandbox) == once_each(10) - Counter(left_out)
        assert kept in told(sandbox)

    def test_a_quota_that_the_last_one_used_up_keeps_nobody_waiting(self, sandbox):
        sandbox.configure(quota=10, hour_seconds=3600)
        assert execute(send())["status"] == "finished"
        assert told(sandbox) == once_each(10)

    def test_a_shut_window_defers_to_its_opening(self, sandbox):
        hour = (datetime.now(UTC) + timedelta(hours=3)).replace(minute=0, second=0, microsecond=0)
        window = SendWindow(
            hour.strftime("%H:%M"), (hour + timedelta(hours=1)).strftime("%H:%M"), default_timezone="UTC"
        )
        with pytest.raises(TaskDeferred) as deferred:
            execute(send(send_window=window))
        assert datetime.fromtimestamp(deferred.value.trigger.until, UTC) - hour < timedelta(seconds=5)
        assert sandbox.messages() == []

    def test_not_deferrable_it_waits_in_the_worker(self, sandbox):
        sandbox.configure(quota=6, hour_seconds=2)
        execute(send(deferrable=False))
        assert told(sandbox) == once_each(10)

    def test_on_kill_ends_it_within_seconds_and_loses_nobody(self, sandbox, campaigns):
        sandbox.fault("latency", seconds=0.2)
        operator = send(400)
        errors = []

        def work():
            try:
                execute(operator)
            except RuntimeError as error:
                errors.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        deadline = time.monotonic() + 20
        while not sandbox.messages():
            assert time.monotonic() < deadline
            time.sleep(0.01)  # between two looks
        began = time.monotonic()
        operator.on_kill()
        thread.join(20)
        assert time.monotonic() - began < 20
        assert errors == ["Campaign 'release' was interrupted; the next try goes on with it."]
        sandbox.clear_faults()
        execute(send(400))
        assert told(sandbox) == once_each(400)
        assert campaigns.report("release").in_doubt == 0

    def test_an_execution_timeout_ends_it_within_seconds_and_loses_nobody(self, run, sandbox, campaigns):
        sandbox.fault("latency", seconds=0.2)
        began = time.monotonic()
        timeout = timedelta(seconds=3)
        assert run(lambda: send(1000, deferrable=False, retries=0, execution_timeout=timeout)) == FAILED
        assert time.monotonic() - began < 15
        assert sandbox.messages()
        sandbox.clear_faults()
        execute(send(1000))
        assert told(sandbox) == once_each(1000)
        assert campaigns.report("release").in_doubt == 0

    def test_a_task_whose_supervisor_is_killed_while_it_enrols_sends_nothing(self, sandbox, campaigns):
        command = f"{sys.executable} -c {shlex.quote(ORPHANED)}; true"
        supervisor = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = supervisor.communicate(timeout=120)  # until the task has ended too
        assert supervisor.returncode == -signal.SIGKILL
        assert "Campaign 'release' was interrupted; the next try goes on with it." in said.decode()
        assert sandbox.messages() == []
        assert campaigns.report("release").pending == 1


ORPHANED = """
import os, signal
from collections import UserDict
from datetime import UTC, datetime
from types import SimpleNamespace

from airflow_provider_sib.operators import SendCampaignOperator

SUPERVISOR = os.getppid()

class Row(UserDict):
    def __getitem__(self, column):
        if os.getppid() == SUPERVISOR:
            os.kill(SUPERVISOR, signal.SIGKILL)
            while os.getppid() == SUPERVISOR:
                pass
        return super().__getitem__(column)

operator = SendCampaignOperator(
    task_id="send", campaign_id="release", audience=[Row(visitor_id="ann")], text="Hi!"
)
now = datetime.now(UTC)
operator.execute({"dag_run": SimpleNamespace(run_type="manual", logical_date=now, run_after=now)})
"""
"""A task whose supervisor is killed as soon as its audience is read."""


class TestRules:
    """Each skip has its reason, and who is left out is not written to."""

    @pytest.mark.parametrize(
        ("arguments", "skipped_by"),
        [
            pytest.param({"not_after": "2020-01-01T00:00:00Z"}, {"not_after": 10}, id="not_after"),
            pytest.param({"not_after": timedelta(hours=-1)}, {"not_after": 10}, id="not_after of the run"),
            pytest.param({"not_after": timedelta(hours=1)}, {}, id="not_after to come"),
            pytest.param({"suppress": rows(3)}, {"excluded": 3}, id="suppress"),
            pytest.param(
                {"send_window": SendWindow("00:00", "24:00", default_timezone=None)},
                {"timezone_unknown": 10},
                id="send_window without zone",
            ),
        ],
    )
    def test_leave_visitors_out(self, sandbox, campaigns, arguments, skipped_by):
        result = execute(send(**arguments))
        assert result["skipped_by"] == skipped_by
        assert len(sandbox.messages()) == 10 - sum(skipped_by.values())
        assert result["status"] == "finished"

    def test_who_is_suppressed_no_longer_is_sent_to(self, sandbox):
        """Whom an earlier run has skipped stays skipped: that is an outcome."""
        first = execute(send(enrol="each_run", fraction=0.5, suppress=rows(12)))
        assert 0 < first["totals"]["skipped"] < 10
        second = execute(send(12, enrol="each_run"))
        assert second["skipped_by"] == first["skipped_by"] == {"excluded": first["totals"]["skipped"]}
        assert len(sandbox.messages()) == 12 - first["totals"]["skipped"]

    def test_the_ledgers_own_list_of_the_suppressed(self, sandbox, campaigns):
        execute(send(1, campaign_id="first"))
        campaigns.suppress(["visitor-4"])
        assert execute(send())["skipped_by"] == {"suppressed": 1}
        assert "visitor-4" not in told(sandbox)

    def test_a_cap_counts_the_campaigns_of_its_group(self, sandbox):
        cap = FrequencyCap(1, timedelta(days=1))
        execute(send(4, campaign_id="first", frequency_cap=cap))
        assert execute(send(10, frequency_cap=cap))["skipped_by"] == {"frequency_cap": 4}
        assert told(sandbox) == once_each(10)

    def test_a_connection_for_staging_writes_to_its_own_people(self, monkeypatch, sandbox):
        monkeypatch.setenv(
            CONNECTION,
            sandbox.connection_json(allowed_visitors="visitor-1, nobody-*"),
        )
        assert execute(send())["skipped_by"] == {"allowed_visitors": 9}
        assert told(sandbox) == {"visitor-1": 1}

    def test_a_holdout_is_never_sent_to_and_always_the_same(self, sandbox):
        kept = execute(send(100, holdout="0.3"))["skipped_by"]["holdout"]
        assert 15 < kept < 45
        assert len(sandbox.messages()) == 100 - kept
        execute(send(100, holdout="0.3"))
        assert len(sandbox.messages()) == 100 - kept

    def test_a_fraction_leaves_the_campaign_running(self, run, sandbox):
        first = execute(send(fraction="0.3"))
        assert (first["status"], first["totals"]["sent"], first["totals"]["pending"]) == ("running", 3, 7)
        assert run() == SUCCESS
        assert told(sandbox) == once_each(10)

    def test_a_backfill_writes_to_nobody_unless_told_to(self, sandbox):
        backfill = a_context(run_type="backfill")
        with pytest.raises(AirflowSkipException, match="send_in_backfill=True"):
            execute(send(), backfill)
        assert sandbox.messages() == []
        execute(send(send_in_backfill=True), backfill)
        assert told(sandbox) == once_each(10)

    def test_variants_share_the_audience(self, sandbox):
        variants = {"a": "A, {{ 1 + 1 }}", "b": Variant({"en": "B, {{ 1 + 2 }}", "fr": "C"}, 3.0)}
        with DAG("campaign", schedule=None):
            operator = send(100, text=None, variants=variants)
        operator.render_template_fields(a_context())
        execute(operator)
        texts = Counter(message["text"] for message in sandbox.messages())
        assert set(texts) == {"A, 2", "B, 3"}
        assert texts["B, 3"] > texts["A, 2"]

    @pytest.mark.parametrize(
        ("extra", "arguments", "writer"),
        [
            ({"agent_id": "ann"}, {}, "ann"),
            ({"group_id": GROUP_ID}, {}, AGENT_ID),
            ({"agent_id": "ann"}, {"agent_id": "{{ params.agent }}"}, "bob"),
            ({"group_id": GROUP_ID}, {"agent_id": "{{ params.agent }}"}, "bob"),
            ({"agent_id": "ann"}, {"group_id": "{{ params.group }}"}, AGENT_ID),
        ],
    )
    def test_who_writes_is_chosen_by_the_task_else_by_the_connection(
        self, sandbox, monkeypatch, extra, arguments, writer
    ):
        """The group's one agent is one of three that a message without a sender might come from."""
        sandbox.configure(unknown_agent="accept")
        for agent in ("ann", "bob"):
            execute(send(1, campaign_id=f"of {agent}", agent_id=agent))
        monkeypatch.setenv(CONNECTION, sandbox.connection_json(**extra))
        with DAG("campaign", schedule=None):
            operator = send(**arguments)
        operator.render_template_fields(a_context() | {"params": {"agent": "bob", "group": GROUP_ID}})
        execute(operator)
        assert [message["agentId"] for message in sandbox.messages()[2:]] == [writer] * 10

    def test_failed_ones_are_tried_again_when_asked_to(self, sandbox):
        sandbox.fault("error_json", status=400, times=1)
        assert execute(send(max_failure_share=1))["totals"]["failed"] == 1
        assert execute(send())["run"]["sent"] == 0
        assert execute(send(retry_failed=True))["run"]["sent"] == 1
        assert told(sandbox) == once_each(10)

    def test_too_many_failures_stop_it(self, run, sandbox, logged):
        sandbox.fault("error_json", status=400)
        assert run(lambda: send(100)) == FAILED
        assert "too many messages failed" in logged()
        assert sandbox.state()["requests"]["total"] < 60


class TestRefused:
    """What no retry mends fails for good, with the way out, and sends nothing."""

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"text": None}, "text"),
            ({"text": 5}, "text"),
            ({"text": "Hi [[ visitor.nickname ]]"}, "10 rows of the audience can't be used"),
            ({"text": "Hi [[ os.system('x') ]]"}, "placeholder"),
            ({"fraction": 0}, "fraction must be a number above 0"),
            ({"fraction": "5 %"}, "fraction must be a number"),
            ({"holdout": 1}, "holdout"),
            ({"max_in_flight": "0"}, "max_in_flight must be a number at least 1"),
            ({"max_in_flight": 2.5}, "max_in_flight must be a whole number"),
            ({"reserve": "many"}, "reserve"),
            ({"dry_run": "perhaps"}, "dry_run must be True or False"),
            ({"not_after": "2026-11-24T10:00:00"}, "time zone"),
            ({"audience": "visitors.txt"}, "audience is a string that doesn't end in .csv"),
            ({"suppress": "visitors.txt"}, "suppress is a string that doesn't end in .csv"),
            ({"suppress": 5}, "suppress is of type int"),
            ({"campaign_id": ""}, "campaign_id"),
            ({"campaign_id": "x" * 256}, "campaign_id"),
        ],
    )
    def test_a_wrong_argument(self, sandbox, arguments, said):
        with pytest.raises(AirflowFailException, match=re.escape(said)):
            execute(send(**arguments))
        assert sandbox.messages() == []

    def test_bad_rows_by_line_without_their_data(self, run, sandbox, campaigns, tmp_path, logged):
        audience = tmp_path / "visitors.csv"
        audience.write_text("visitor_id,first_name\nann,Ann\n,Bob\ncid,Cid\n")
        bad = lambda **arguments: send(audience=str(audience), **arguments)  # noqa: E731
        assert run(bad) == FAILED
        said = logged()
        assert (
            "1 row of the audience can't be used, and max_bad_rows is 0, so nothing is sent: line 3" in said
        )
        assert "Bob" not in said
        assert sandbox.messages() == []
        assert run(lambda: bad(max_bad_rows=1)) == SUCCESS
        assert told(sandbox) == {"ann": 1, "cid": 1}
        assert campaigns.report("release").bad_rows == 1
        said = logged()
        assert "Line 3 has no visitor id in column 'visitor_id'; it is left out." in said
        assert "Bob" not in said

    def test_of_many_bad_rows_left_out_the_first_twenty_are_named(self, logged):
        audience = [*rows(1), *({"visitor_id": ""} for _ in range(30))]
        execute(send(audience=audience, max_bad_rows=30))
        said = logged()
        assert [int(line) for line in re.findall(r"Line (\d+) has", said)] == [*range(2, 22)]
        assert "30 unusable rows left out" in said

    def test_a_list_of_the_suppressed_that_can_not_be_read_whole(self, sandbox):
        """The broken line may name somebody who has asked not to be written to."""
        suppressed = [*rows(2), {"visitor_id": " "}]
        with pytest.raises(AirflowFailException, match=r"1 row of `suppress` can't be used.*line 3"):
            execute(send(suppress=suppressed))
        assert sandbox.messages() == []
        assert execute(send(suppress=suppressed, max_bad_rows=1))["skipped_by"] == {"excluded": 2}

    def test_an_audience_by_a_connection_without_sql(self, sandbox):
        audience = SqlAudience("SELECT visitor_id FROM visitors", "sib_conversations_default")
        with pytest.raises(AirflowFailException, match="'sib_conversations', which answers no SQL queries"):
            execute(send(audience=audience))
        assert sandbox.messages() == []

    def test_a_connection_that_no_client_can_be_made_of(self, monkeypatch, sandbox):
        wrong = sandbox.connection(proxy="socks5://proxy.example:1080")
        monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps(wrong))
        with pytest.raises(AirflowFailException, match="no HTTP proxy"):
            execute(send(sib_conn_id="wrong"))

    def test_what_ended_a_task_is_told_although_its_ledger_is_gone_too(self, campaigns, tmp_path, logged):
        def fail_without_a_ledger():
            conn_id = "sib_conversations_default"
            with opened(send(), "release", sib_conn_id=conn_id, ledger_conn_id=None, deferrable=True):
                with closing(sqlite3.connect(tmp_path / "sib_ledger.db")) as conn:
                    conn.execute("DROP TABLE sib_campaign")
                raise ValueError("the author has to choose")

        with pytest.raises(AirflowFailException, match="the author has to choose"):
            fail_without_a_ledger()
        assert "no such table" in logged()

    def test_a_text_the_campaign_never_had(self, run, sandbox, logged):
        run()
        assert run(lambda: send(text="Bye!")) == FAILED
        said = logged()
        assert "UpdateCampaignOperator" in said
        assert "choose a new campaign_id" in said
        assert len(sandbox.messages()) == 10

    def test_another_connection(self, monkeypatch, sandbox):
        execute(send())
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", sandbox.connection_json())
        with pytest.raises(AirflowFailException, match="began with connection 'sib_conversations_default'"):
            execute(send(sib_conn_id="other"))

    def test_another_host(self, monkeypatch, sandbox):
        execute(send())
        with Sandbox() as production:
            monkeypatch.setenv(CONNECTION, production.connection_json())
            with pytest.raises(AirflowFailException, match=r"began with host .*choose a new campaign_id"):
                execute(send())
            assert production.messages() == []

    def test_another_meaning_of_once(self, sandbox):
        execute(send())
        with pytest.raises(AirflowFailException, match="once_per"):
            execute(send(once_per="first_name"))

    def test_a_campaign_that_is_not_there_cannot_be_changed(self, sandbox):
        for operator in (
            UpdateCampaignOperator(task_id="update", campaign_id="none", text="Hi"),
            WithdrawCampaignOperator(task_id="withdraw", campaign_id="none"),
        ):
            with pytest.raises(AirflowFailException, match="no campaign 'none'"):
                execute(operator)

    @pytest.mark.parametrize("arguments", [{"enrol": "always"}, {"on_doubt": "guess"}, {"max_bad_rows": -1}])
    def test_some_already_when_the_dag_is_parsed(self, arguments):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            send(**arguments)

    def test_rows_of_a_task_inside_an_object(self):
        with DAG("campaign", schedule=None), pytest.raises(TypeError, match=r"audience=task\.output"):
            RowsAudience(task(lambda: rows(3)).override(task_id="visitors")())


def rendered_fields(run_id, task_id="send"):
    with create_session() as session:
        chosen = select(TaskInstance).where(TaskInstance.run_id == run_id, TaskInstance.task_id == task_id)
        return [
            RenderedTaskInstanceFields.get_templated_fields(ti, session=session)
            for ti in session.scalars(chosen)
        ]


class TestTemplates:
    def test_ids_numbers_and_truth_values(self, run, sandbox, campaigns):
        params = {
            "name": "spring",
            "share": 0.5,
            "dry": False,
            "most": 4,
            "conn": "sib_conversations_default",
        }
        templated = lambda: send(  # noqa: E731
            campaign_id="{{ params.name }}-2026",
            fraction="{{ params.share }}",
            dry_run="{{ params.dry }}",
            reserve="{{ params.most }}",
            max_in_flight="{{ params.most }}",
            sib_conn_id="{{ params.conn }}",
            not_after="{{ '2020-01-01T00:00:00Z' if params.dry else '' }}",
        )
        assert run(templated, params=params) == SUCCESS
        assert campaigns.report("spring-2026").sent == 5
        assert run(templated, params=params | {"share": 1.0}, render_template_as_native_obj=True) == SUCCESS
        assert campaigns.report("spring-2026").sent == 10

    @pytest.mark.parametrize("native", [False, True])
    def test_a_text_of_two_brackets(self, run, sandbox, native):
        text = "{{ params.version }}: 100 % for [[ visitor.first_name ]]"
        assert run(
            lambda: send(1, text=text), params={"version": "2.0"}, render_template_as_native_obj=native
        ) == (SUCCESS)
        assert [message["text"] for message in sandbox.messages()] == ["2.0: 100 % for Name 0"]

    def test_a_text_that_is_a_file(self, run, sandbox):
        folder = str(HERE / "dags")
        assert run(
            lambda: send(1, text={"en": "news.md.j2"}),
            template_searchpath=folder,
            params={"version": "2.0"},
        ) == (SUCCESS)
        assert [message["text"] for message in sandbox.messages()] == ["Version 2.0 is out, Name 0."]

    @pytest.mark.parametrize("native", [False, True])
    def test_literal_rows_are_neither_rendered_nor_kept(self, run, sandbox, native):
        odd = [{"visitor_id": "ann", "first_name": "{{ 7*7 }}[[ 7*7 ]]"}]
        assert run(lambda: send(audience=odd), render_template_as_native_obj=native) == SUCCESS
        assert [message["text"] for message in sandbox.messages()] == ["Hi {{ 7*7 }}[[ 7*7 ]]!"]
        (fields,) = rendered_fields(run.run_id)
        assert fields["audience"] == "RowsAudience(1 rows: visitor_id, first_name)"

    @pytest.mark.parametrize("native", [False, True])
    def test_the_rows_of_a_task_neither(self, run, sandbox, native):
        def flow():
            visitors = task(lambda: [*rows(2), {"visitor_id": "ann", "first_name": "{{ 7*7 }}"}])
            send(audience=visitors.override(task_id="visitors")(), suppress=rows(1))

        assert set(run(flow, render_template_as_native_obj=native).values()) == {SUCCESS}
        assert sorted(message["text"] for message in sandbox.messages()) == ["Hi Name 1!", "Hi {{ 7*7 }}!"]
        (fields,) = rendered_fields(run.run_id)
        assert fields["audience"] == "RowsAudience(3 rows: visitor_id, first_name)"
        assert fields["suppress"] == "RowsAudience(1 rows: visitor_id, first_name)"
        assert "visitor-0" not in json.dumps(fields)

    @pytest.mark.parametrize("native", [False, True])
    @pytest.mark.parametrize("name", ["audience", "suppress"])
    @pytest.mark.parametrize("wrong", [[["ann", "Ann"]], [{"visitor_id": "ann"}, None], ["ann"]])
    def test_what_a_task_returns_that_is_no_rows_neither(self, run, campaigns, logged, name, wrong, native):
        def flow():
            visitors = task(lambda: wrong).override(task_id="visitors")()
            send(**{name: visitors})

        states = run(flow, render_template_as_native_obj=native)
        assert states["send", -1] == FAILED
        assert "ann" not in json.dumps(rendered_fields(run.run_id))
        assert "must be a mapping" in logged()
        assert campaigns.list() == []

    def test_rows_of_a_mapped_task_neither(self, run, sandbox):
        def flow():
            visitors = task(lambda: [[row] for row in rows(2)]).override(task_id="visitors")()
            SendCampaignOperator.partial(
                task_id="send", text="Hi!", campaign_id="c-{{ ti.map_index }}"
            ).expand(audience=visitors)

        assert set(run(flow).values()) == {SUCCESS}
        assert told(sandbox) == once_each(2)
        kept = rendered_fields(run.run_id)
        assert [fields["audience"] for fields in kept] == ["RowsAudience(1 rows: visitor_id, first_name)"] * 2

    @pytest.mark.parametrize("name", ["audience", "suppress"])
    @pytest.mark.parametrize("how", ["partial", "expand", "expand_kwargs"])
    def test_literal_rows_of_a_mapped_task_neither(self, run, sandbox, how, name):
        """Airflow keeps with the DAG what a mapped task is given; the operator itself is made when it runs."""

        def flow():
            given = {
                "campaign_id": "c",
                "audience": RowsAudience(rows(1)),
                "text": "Hi [[ visitor.first_name ]]!",
            }
            literal = [{"visitor_id": "ann", "first_name": "{{ 7*7 }}"}]
            expanded = "campaign_id" if how == "partial" else name
            given[name] = literal
            value = given.pop(expanded)
            partial = SendCampaignOperator.partial(task_id="send", **given)
            if how == "expand_kwargs":
                partial.expand_kwargs([{expanded: value}])
            else:
                partial.expand(**{expanded: [value]})

        with DAG("campaign", schedule=None) as dag:
            flow()
        serialized = json.dumps(LazyDeserializedDAG.from_dag(dag).data)
        assert "RowsAudience(1 rows: visitor_id, first_name)" in serialized
        assert '"ann"' not in serialized
        assert run(flow) == SUCCESS
        text = "Hi {{ 7*7 }}!" if name == "audience" else "Hi Name 0!"
        assert [message["text"] for message in sandbox.messages()] == [text]
        (fields,) = rendered_fields(run.run_id)
        assert fields[name] == "RowsAudience(1 rows: visitor_id, first_name)"

    @pytest.mark.parametrize("name", ["audience", "suppress"])
    @pytest.mark.parametrize("wrong", [["ann"], [7], {"visitor_id": "ann"}, {"ann"}])
    def test_what_is_no_row_is_refused_before_it_is_kept(self, name, wrong):
        """When the DAG is parsed, without visitors' ids in the error."""
        given = {"task_id": "send", "campaign_id": "c", "text": "Hi!", "audience": RowsAudience(rows(1))}
        partial = SendCampaignOperator.partial(**{key: given[key] for key in given.keys() - {name}})
        for refusing in (
            lambda: SendCampaignOperator(**given | {name: wrong}),
            lambda: SendCampaignOperator.partial(**given | {name: wrong}),
            lambda: partial.expand(**{name: [wrong]}),
            lambda: partial.expand_kwargs([{name: wrong}]),
        ):
            with pytest.raises(TypeError, match="must be") as refused:
                refusing()
            assert "ann" not in str(refused.value)
        partial.expand(**{name: [rows(1)]})

    def test_the_path_of_an_audience(self, run, sandbox, tmp_path):
        (tmp_path / "v.csv").write_text("who,first_name\nann,Ann\n")
        conf = {"folder": str(tmp_path)}
        audience = CsvAudience("{{ dag_run.conf['folder'] }}/v.csv", visitor_id="who")
        assert run(lambda: send(audience=audience), conf=conf) == SUCCESS
        assert run(
            lambda: send(audience="{{ dag_run.conf['folder'] }}/v.csv", campaign_id="b"), conf=conf
        ) == (FAILED)
        assert told(sandbox) == {"ann": 1}

    @pytest.mark.parametrize("kind", [str, ObjectStoragePath])
    def test_an_audience_in_object_storage(self, run, sandbox, tmp_path, kind):
        (tmp_path / "v.csv").write_text("visitor_id,first_name\nann,Ann\n")
        assert run(lambda: send(audience=kind(f"file://{tmp_path}/v.csv"))) == SUCCESS
        assert [message["text"] for message in sandbox.messages()] == ["Hi Ann!"]

    @pytest.mark.parametrize(
        "operator",
        [
            SendCampaignOperator,
            UpdateCampaignOperator,
            WithdrawCampaignOperator,
            CampaignSensor,
            MessageSensor,
        ],
    )
    def test_what_is_templated_is_documented_so(self, operator):
        documented = re.split(r"^:param (\w+):", cleandoc(operator.__doc__), flags=re.MULTILINE)
        templated = [
            name
            for name, said in zip(documented[1::2], documented[2::2], strict=True)
            if "(templated" in said
        ]
        assert list(operator.template_fields) == templated


class TestResult:
    def test_a_plain_dict_split_into_xcoms(self, run, sandbox, campaigns):
        sandbox.fault("error_json", status=400, times=1)
        assert run(lambda: send(20)) == SUCCESS
        with create_session() as session:
            kept = session.scalars(select(XComModel).where(XComModel.run_id == run.run_id)).all()
            values = {row.key: XComModel.deserialize_value(row) for row in kept}
        assert values.pop("_link_CampaignLink").endswith("/sib/?campaign=release")
        result = values.pop("return_value")
        assert values == result
        assert json.loads(json.dumps(result)) == result
        assert result["totals"] == {
            "total": 20,
            "pending": 0,
            "sending": 0,
            "sent": 19,
            "failed": 1,
            "in_doubt": 0,
            "skipped": 0,
            "withdrawn": 0,
        }
        assert {"sent": 19, "failed": 1, "in_doubt": 0, "skipped": 0, "calls": 20}.items() <= result[
            "run"
        ].items()
        assert sum(result["failed_by"].values()) == 1
        assert result["quota_left"] == result["quota_limit"] - 20
        assert (result["status"], result["revision"]) == ("finished", 1)
        assert result["ledger_id"] == campaigns.ledger.identity().ledger_id

    def test_counts_of_this_run_apart_from_the_campaigns(self, sandbox):
        execute(send(fraction=0.5))
        result = execute(send())
        assert (result["run"]["sent"], result["totals"]["sent"]) == (5, 10)

    def test_counts_of_a_run_are_what_it_did_itself_through_its_deferrals(
        self, sandbox, campaigns, monkeypatch
    ):
        monkeypatch.setenv("AIRFLOW__SIB__DEFER_AFTER_SECONDS", "10")
        sandbox.configure(quota=6, hour_seconds=15)
        with pytest.raises(TaskDeferred) as deferred:
            execute(send(suppress=[{"visitor_id": "visitor-9"}]))
        monkeypatch.setenv("AIRFLOW__SIB__DEFER_AFTER_SECONDS", "60")
        sandbox.configure(quota=10_000)
        # What others do meanwhile is not this run's doing.
        soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        execute(
            WithdrawCampaignOperator(task_id="withdraw", campaign_id="release", sent_before=soon, reserve=0)
        )
        resumed = send(suppress=[{"visitor_id": "visitor-9"}])
        run = resumed.execute(a_context(), {"woken_by": "moment"}, **deferred.value.kwargs)["run"]
        assert (run["sent"], run["skipped"], run["calls"]) == (9, 1, 9)
        assert campaigns.report("release").withdrawn == 6

    def test_an_asset_of_its_own_under_a_common_alias(self, run):
        assert run(lambda: send(campaign_id="Été 2026/1")) == SUCCESS
        with create_session() as session:
            (event, asset) = session.execute(
                select(AssetEvent, AssetModel)
                .join(AssetModel, AssetModel.id == AssetEvent.asset_id)
                .where(AssetEvent.source_run_id == run.run_id)
            ).one()
            aliases = [alias.name for alias in event.source_aliases]
        assert asset.name == "sib-campaign-Été 2026/1"
        assert asset.uri.startswith("sib-campaign://")
        assert aliases == ["sib-campaigns"]
        assert {"status": "finished", "sent": 10, "failed": 0}.items() <= event.extra.items()

    @pytest.mark.parametrize(("metadata", "campaign_id"), [("mysql://", "Été"), ("sqlite://", "の" * 255)])
    def test_a_campaign_that_can_have_no_asset_ends_green(
        self, sandbox, logged, monkeypatch, metadata, campaign_id
    ):
        """An asset's name must be ASCII where Airflow's own database is MySQL, and its URI isn't endless."""
        monkeypatch.setattr("airflow.sdk.definitions.asset.SQL_ALCHEMY_CONN", metadata)
        context = a_context() | {"outlet_events": {}}
        result = execute(send(campaign_id=campaign_id), context)
        assert result["totals"]["sent"] == 10
        assert "has no asset of its own" in logged()

    def test_it_has_retries_of_its_own_which_default_args_and_the_author_override(self):
        with DAG("campaign", schedule=None, default_args={"retries": 1}):
            given = send()
            own = send(task_id="own", retries=0)
        with DAG("campaign", schedule=None):
            default = send()
        assert (default.retries, given.retries, own.retries) == (3, 1, 0)

    def test_a_rehearsal_changes_nothing_and_tells_everything(self, run, sandbox, campaigns, logged):
        audience = [*rows(9), {"visitor_id": "", "first_name": "Eve"}, {"visitor_id": "zoe"}]
        rehearsal = {"dry_run": "True", "holdout": 0.2, "suppress": rows(4), "max_bad_rows": 2}
        assert run(lambda: send(audience=audience, **rehearsal)) == SUCCESS
        said = logged()
        assert "Line 10" in said
        assert "Line 11" in said
        assert "11 rows: 9 usable" in said
        assert "2 unusable" in said
        assert "hours at 100 calls an hour" in said
        assert "`suppress` leaves out up to 4 of them" in said
        assert sandbox.state()["requests"]["total"] == 0
        assert campaigns.list() == []

    def test_a_rehearsal_makes_no_ledger_and_pins_none(self, campaigns):
        execute(send(dry_run=True))
        assert not Path(campaigns.place.url().database).exists()
        assert Pin.read(campaigns.place) is None

    def test_a_rehearsal_reads_whom_an_earlier_campaign_reached(self, campaigns, logged):
        follow_up = send(campaign_id="next", audience=CampaignAudience("release"), dry_run=True)
        with pytest.raises(AirflowFailException, match="no campaign 'release'"):
            execute(follow_up)
        execute(send(3))
        assert execute(follow_up)["usable"] == 3
        assert [campaign.campaign_id for campaign in campaigns.list()] == ["release"]

    def test_a_rehearsal_counts_with_the_reserve_of_the_task(self, logged):
        execute(send(100, dry_run=True, reserve="90"))
        assert "9 hours at 100 calls an hour" in logged()

    @pytest.mark.parametrize(
        "wrong",
        [
            {"fraction": "nonsense"},
            {"reserve": "many"},
            {"max_in_flight": 0},
            {"not_after": "tomorrow"},
            {"holdout": 1},
            {"suppress": [*rows(2), {"visitor_id": ""}]},
            {"suppress": "visitors.txt"},
            {"audience": [*rows(2), {"visitor_id": ""}]},
        ],
    )
    def test_a_rehearsal_refuses_what_a_real_run_does(self, wrong):
        with pytest.raises(AirflowFailException, match=next(iter(wrong))):
            execute(send(dry_run=True, **wrong))

    def test_nothing_of_a_visitor_and_no_key_is_logged(self, run, sandbox, logged, caplog):
        caplog.set_level(logging.INFO)
        sandbox.fault("error_json", status=400, times=1)
        sandbox.fault("hang_up_after", times=1, after=5, operation="send_pushed_message")

        def flow():
            update = UpdateCampaignOperator(
                task_id="update", campaign_id="release", text="Bye [[ visitor.first_name ]]!", reserve=0
            )
            withdraw = WithdrawCampaignOperator(task_id="withdraw", campaign_id="release", reserve=0)
            send(40) >> update >> withdraw

        assert set(run(flow).values()) == {SUCCESS}
        said = logged()
        assert "Campaign release: 40 enrolled now" in said
        for secret in ("visitor-", "Name ", "Hi ", "Bye ", sandbox.api_key):
            assert secret not in said

    def test_the_ledger_is_a_file_for_its_owner_only(self, campaigns):
        execute(send())
        files = list(Path(campaigns.place.url().database).parent.glob("sib_ledger.db*"))
        assert files
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


class TestUpdate:
    def update(self, **arguments):
        given = {"task_id": "update", "campaign_id": "release", "reserve": 0}
        return UpdateCampaignOperator(**given | arguments)

    def test_edits_what_was_sent_and_switches_what_is_pending(self, run, sandbox, campaigns):
        run(lambda: send(fraction=0.5))
        assert run(lambda: self.update(text="Hello {{ 1 + 1 }} [[ visitor.first_name ]]")) == SUCCESS
        assert run() == SUCCESS
        texts = {message["visitorId"]: message["text"] for message in sandbox.messages()}
        assert texts == {row["visitor_id"]: f"Hello 2 {row['first_name']}" for row in rows(10)}
        assert told(sandbox) == once_each(10)
        assert campaigns.report("release").revisions == {"2": 10}

    def test_costs_only_those_whose_text_changes(self, sandbox, logged):
        audience = [row | {"locale": "fr" if number < 3 else "en"} for number, row in enumerate(rows(10))]
        execute(send(audience=audience, text={"en": "Hi", "fr": "Bnojour"}))
        result = execute(self.update(text={"en": "Hi", "fr": "Bonjour"}))
        assert result["run"]["calls"] == 3
        assert Counter(message["text"] for message in sandbox.messages()) == {"Hi": 7, "Bonjour": 3}
        said = logged()
        assert "3 calls" in said

    def test_says_its_price_before_its_first_call(self, sandbox, logged):
        execute(send())
        with pytest.raises(TaskDeferred):  # what is left of this hour's quota is left to others
            execute(self.update(text="Bye", reserve=9_990))
        assert "Campaign release: 10 calls, about 1 hours at the account's quota" in logged()
        assert sandbox.state()["requests"]["by_operation"] == {"send_pushed_message": 10}

    def test_twice_costs_nothing_more(self, sandbox):
        execute(send())
        execute(self.update(text="Bye"))
        assert execute(self.update(text="Bye"))["run"]["calls"] == 0

    def test_names_how_many_doubts_it_could_not_change(self, sandbox, logged):
        sandbox.fault("hang_up_after", times=1)
        execute(send(20))
        execute(self.update(text="Bye"))
        assert "1 messages in doubt could not be changed" in logged()

    def test_a_retry_after_somebody_elses_newer_text_leaves_that_one(self, sandbox, logged):
        execute(send())
        names = {"dag_id": "d", "run_id": "r", "task_id": "update", "map_index": -1}
        first = a_context() | {"ti": SimpleNamespace(**names, xcom_push=lambda **_: None)}
        execute(self.update(text="Bye"), first)
        execute(self.update(text="Farewell"))
        assert execute(self.update(text="Bye"), first)["run"]["calls"] == 0
        assert {message["text"] for message in sandbox.messages()} == {"Farewell"}
        assert "has got a newer text since this task gave it its own" in logged()

    def test_few_that_brevo_refuses_are_warned_of_by_reason(self, sandbox, logged):
        execute(send())
        sandbox.fault("error_json", status=400, times=1, operation="update_pushed_message")
        result = execute(self.update(text="Bye"))
        assert sum(result["run"]["failed"].values()) == 1
        assert "1 messages could not be changed and stay as they are" in logged()
        assert sum(message["text"] == "Bye" for message in sandbox.messages()) == 9

    def test_what_was_deleted_in_brevo_is_no_failure(self, sandbox):
        execute(send())
        execute(WithdrawCampaignOperator(task_id="w", campaign_id="release"))
        result = execute(self.update(text="Bye"))
        assert result["run"]["calls"] == 0


class TestWithdraw:
    def withdraw(self, **arguments):
        return WithdrawCampaignOperator(task_id="withdraw", campaign_id="release", reserve=0, **arguments)

    def test_deletes_what_was_sent_and_sends_nothing_more(self, run, sandbox, campaigns):
        run(lambda: send(fraction=0.5))
        assert run(self.withdraw) == SUCCESS
        assert all(message["deleted"] for message in sandbox.messages())
        report = campaigns.report("release")
        assert (report.withdrawn, report.skipped_by) == (5, {"withdrawn": 5})
        run()
        assert len(sandbox.messages()) == 5

    def test_only_what_is_older_leaves_the_pending(self, sandbox, campaigns):
        execute(send(fraction=0.5))
        assert execute(self.withdraw(sent_before=timedelta(days=1)))["run"]["calls"] == 0
        assert execute(self.withdraw(sent_before="2020-01-01T00:00:00Z"))["run"]["calls"] == 0
        assert campaigns.report("release").pending == 5
        moment = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
        assert execute(self.withdraw(sent_before=moment))["run"]["changed"] == 5
        assert campaigns.report("release").pending == 5

    def test_verified_costs_a_call_more_each(self, sandbox):
        execute(send())
        assert execute(self.withdraw(verify=True))["run"]["calls"] == 20

    def test_twice_costs_nothing_more(self, sandbox):
        execute(send())
        execute(self.withdraw())
        assert execute(self.withdraw())["run"]["calls"] == 0

    def test_names_the_doubts_it_could_not_withdraw(self, sandbox, logged):
        sandbox.fault("hang_up_after", times=1)
        execute(send(20))
        assert execute(self.withdraw())["run"]["changed"] == 19
        said = logged()
        assert "1 messages in doubt could not be changed, their ids being unknown." in said
        assert "campaigns deliveries release --state in_doubt` names them" in said

    def test_defers_like_sending_and_counts_the_whole_run(self, sandbox, monkeypatch):
        monkeypatch.setenv("AIRFLOW__SIB__DEFER_AFTER_SECONDS", "10")
        sandbox.configure(quota=15, hour_seconds=20)
        execute(send())
        with pytest.raises(TaskDeferred) as deferred:
            execute(self.withdraw())
        assert sum(message["deleted"] for message in sandbox.messages()) == 5
        assert deferred.value.trigger.edits
        monkeypatch.setenv("AIRFLOW__SIB__DEFER_AFTER_SECONDS", "60")
        result = self.withdraw().execute(a_context(), {"status": "running"}, **deferred.value.kwargs)
        assert (result["run"]["changed"], result["run"]["calls"]) == (10, 10)

    def test_refused_for_all_fails_early_and_says_why(self, sandbox):
        execute(send(100))
        sandbox.fault("error_json", status=400, operation="delete_pushed_message")
        with pytest.raises(AirflowFailException, match="too many messages could not be changed"):
            execute(self.withdraw())
        assert not any(message["deleted"] for message in sandbox.messages())
        assert sandbox.state()["requests"]["total"] < 150

    def test_told_to_stop_before_it_begins_it_sends_nothing(self, sandbox, campaigns):
        operator = send()
        operator.on_kill()
        with pytest.raises(RuntimeError, match="interrupted"):
            execute(operator)
        assert sandbox.messages() == []
        assert campaigns.report("release").pending == 10
