"""The operators, through a real hook, against the sandbox; and in a running Airflow by dag.test()."""

from __future__ import annotations

import json
import runpy
from datetime import UTC, datetime, timedelta
from pathlib import Path

import airflow.sdk
import pytest
from airflow.sdk import DAG, TaskInstanceState

from airflow_provider_sib._compat import AirflowFailException, AirflowSkipException
from airflow_provider_sib.api.errors import NotFound, ServerError, TransportError, UnexpectedResponse
from airflow_provider_sib.operators import (
    AgentOnlineOperator,
    DeleteMessageOperator,
    GetMessageOperator,
    SendMessageOperator,
    SendPushedMessageOperator,
    UpdateMessageOperator,
    UpdatePushedMessageOperator,
    messages,
)

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferred

AGENT = "d9nKoegKSjmCtyK78"
VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"

HAS_STATE_STORE = hasattr(airflow.sdk, "NEVER_EXPIRE")  # came with it, in 3.3

ALL = [
    AgentOnlineOperator,
    DeleteMessageOperator,
    GetMessageOperator,
    SendMessageOperator,
    SendPushedMessageOperator,
    UpdateMessageOperator,
    UpdatePushedMessageOperator,
]


def run(operator, event=None):
    """Execute an operator outside of a DAG run, where there is no state store (as on Airflow 3.1)."""
    return operator.execute({}, event)


def send(**arguments):
    return run(
        SendPushedMessageOperator(task_id="send", **{"visitor_id": VISITOR, "text": "Hello"} | arguments)
    )


def texts(sandbox):
    return [message["text"] for message in sandbox.messages() if not message["deleted"]]


class TestEachOperator:
    def test_sends_a_pushed_message_and_returns_brevos_fields(self, sib_sandbox):
        result = send(text="Version 2 is out.")
        (stored,) = sib_sandbox.messages()
        assert result == {key: stored[key] for key in result}
        assert {"id", "text", "html", "createdAt", "visitorId", "isPushed", "agentId"} <= result.keys()
        assert json.loads(json.dumps(result)) == result

    def test_sends_an_agents_message(self, sib_sandbox):
        result = run(
            SendMessageOperator(
                task_id="send", visitor_id=VISITOR, text="Hello", agent_id=AGENT, received_from="airflow"
            )
        )
        assert (result["agentId"], result["receivedFrom"]) == (AGENT, "airflow")

    def test_updates(self, sib_sandbox):
        message_id = send()["id"]
        result = run(UpdatePushedMessageOperator(task_id="edit", message_id=message_id, text="Bye"))
        assert (result["id"], result["text"]) == (message_id, "Bye")
        assert texts(sib_sandbox) == ["Bye"]

    def test_gets(self, sib_sandbox):
        sent = send()
        assert run(GetMessageOperator(task_id="get", message_id=sent["id"])) == sent

    def test_deletes_and_is_content_with_what_is_gone(self, sib_sandbox):
        message_id = send()["id"]
        delete = DeleteMessageOperator(task_id="withdraw", message_id=message_id)
        assert run(delete) == {"id": message_id, "deleted": True}
        assert run(delete) == {"id": message_id, "deleted": False}
        assert texts(sib_sandbox) == []

    def test_deleting_what_is_gone_fails_where_it_must_not(self, sib_sandbox):
        delete = DeleteMessageOperator(task_id="withdraw", message_id="gone", missing_ok=False)
        with pytest.raises(NotFound):
            run(delete)

    @pytest.mark.parametrize("operator", ALL)
    def test_templates_its_ids_and_texts(self, operator):
        fields = set(operator.template_fields)
        assert "sib_conn_id" in fields
        assert fields & {"message_id", "visitor_id", "agent_id"}

    @pytest.mark.parametrize("operator", [GetMessageOperator, DeleteMessageOperator])
    def test_a_wrong_kind_is_refused_when_the_dag_is_parsed(self, operator):
        with pytest.raises(ValueError, match="'pushd'"):
            operator(task_id="t", message_id="m", kind="pushd")

    def test_a_wrong_on_doubt_is_refused_when_the_dag_is_parsed(self):
        with pytest.raises(ValueError, match="'retry'"):
            send(on_doubt="retry")


class TestAgentOnline:
    def test_pings_at_once_and_leaves_the_rest_to_the_triggerer(self, sib_sandbox):
        with pytest.raises(TaskDeferred) as deferred:
            run(AgentOnlineOperator(task_id="online", duration=timedelta(hours=8), agent_id=AGENT))
        classpath, kwargs = deferred.value.trigger.serialize()
        assert classpath == "airflow_provider_sib.triggers.AgentOnlineTrigger"
        assert kwargs["agent"] == {"agent_id": AGENT}
        left = datetime.fromisoformat(kwargs["until"]) - datetime.now(UTC)
        assert timedelta(hours=7, minutes=59) < left <= timedelta(hours=8)
        assert sib_sandbox.state()["requests"]["by_operation"] == {"ping_agent_online": 1}

    def test_counts_its_own_ping_when_it_comes_back(self):
        operator = AgentOnlineOperator(task_id="online", duration=3600, agent_id=AGENT)
        event = {"status": "success", "pings": 58, "failed": 1}
        assert run(operator, event) == {"pings": 59, "failed": 1}

    def test_fails_with_what_the_trigger_says(self):
        operator = AgentOnlineOperator(task_id="online", duration=3600, agent_id=AGENT)
        with pytest.raises(AirflowFailException, match="Key not found"):
            run(operator, {"status": "error", "error": "Unauthorized: Key not found"})

    def test_a_stay_shorter_than_a_pings_effect_needs_no_deferral(self, sib_sandbox):
        operator = AgentOnlineOperator(task_id="online", duration=60, agent_id=AGENT)
        assert run(operator) == {"pings": 1, "failed": 0}

    def test_a_moment_that_has_passed_pings_nobody(self, sib_sandbox):
        operator = AgentOnlineOperator(task_id="online", until="2020-01-01T00:00:00Z", agent_id=AGENT)
        assert run(operator) == {"pings": 0, "failed": 0}
        assert sib_sandbox.state()["requests"]["total"] == 0

    @pytest.mark.parametrize("until", ["tomorrow", "2026-11-23T18:00:00", datetime(2026, 1, 1)])  # noqa: DTZ001 - the mistake under test
    def test_a_moment_without_zone_is_refused(self, sib_sandbox, until):
        with pytest.raises(AirflowFailException, match="time zone"):
            run(AgentOnlineOperator(task_id="online", until=until, agent_id=AGENT))

    @pytest.mark.parametrize("arguments", [{}, {"duration": 60, "until": "2026-11-23T18:00:00Z"}])
    def test_needs_either_a_duration_or_a_moment(self, arguments):
        with pytest.raises(ValueError, match="duration or until"):
            AgentOnlineOperator(task_id="online", agent_id=AGENT, **arguments)


class TestRefusals:
    """An error is Airflow's "fail" where no retry helps, a skip where staging is guarded, a deferral for quota."""

    @pytest.mark.parametrize(
        ("connection", "arguments", "said"),
        [
            ({"password": "xkeysib-wrong"}, {}, "Key not found"),
            ({"password": ""}, {}, "no API key"),
            ({}, {"text": ""}, "text"),
            ({}, {"text": 5}, "text"),
            ({}, {"visitor_id": " "}, "visitor_id"),
            ({}, {"agent_id": "a", "group_id": "g"}, "group_id"),
            ({}, {"agent_id": "nobody"}, "agentId"),
        ],
    )
    def test_what_no_retry_mends_fails_for_good(self, monkeypatch, sib_sandbox, connection, arguments, said):
        monkeypatch.setenv(
            "AIRFLOW_CONN_SIB_CONVERSATIONS_DEFAULT", json.dumps(sib_sandbox.connection() | connection)
        )
        with pytest.raises(AirflowFailException, match=said):
            send(**arguments)
        assert texts(sib_sandbox) == []

    def test_a_visitor_outside_staging_is_skipped(self, monkeypatch, sib_sandbox):
        monkeypatch.setenv(
            "AIRFLOW_CONN_SIB_CONVERSATIONS_DEFAULT", sib_sandbox.connection_json(allowed_visitors="qa-*")
        )
        with pytest.raises(AirflowSkipException, match="allowed_visitors"):
            send()
        assert send(visitor_id="qa-1")["visitorId"] == "qa-1"

    def test_an_exhausted_quota_defers_to_its_reset(self, sib_sandbox):
        sib_sandbox.configure(quota=1)
        send()
        with pytest.raises(TaskDeferred) as deferred:
            send()
        assert deferred.value.method_name == "execute"
        wait = (deferred.value.trigger.moment - datetime.now(UTC)).total_seconds()
        assert 3590 < wait <= 3602

    def test_a_refusal_without_reset_defers_for_a_twelfth_of_an_hour(self, sib_sandbox):
        sib_sandbox.fault("too_many_requests_without_headers")
        with pytest.raises(TaskDeferred) as deferred:
            send()
        wait = (deferred.value.trigger.moment - datetime.now(UTC)).total_seconds()
        assert 295 < wait <= messages.WAIT_WITHOUT_RESET_SECONDS

    def test_after_the_reset_it_starts_again_with_the_moment_as_event(self, sib_sandbox):
        operator = SendPushedMessageOperator(task_id="send", visitor_id=VISITOR, text="Hello")
        assert run(operator, datetime.now(UTC))["text"] == "Hello"
        online = AgentOnlineOperator(task_id="online", duration=60, agent_id=AGENT)
        assert run(online, datetime.now(UTC)) == {"pings": 1, "failed": 0}

    @pytest.mark.parametrize(
        ("fault", "error"),
        [({"kind": "hang_up_after"}, TransportError), ({"kind": "error_html", "status": 502}, ServerError)],
    )
    def test_an_unknown_outcome_is_raised_after_one_call(self, sib_sandbox, fault, error):
        sib_sandbox.fault(**fault)
        with pytest.raises(error):
            send()
        assert sib_sandbox.state()["requests"]["total"] == 1


@pytest.fixture
def run_dag(airflow_db, sib_sandbox):
    """Run one of the DAGs of tests/dags/operators_under_test.py."""
    dags = runpy.run_path(str(Path(__file__).parent / "dags" / "operators_under_test.py"))
    by_id = {dag.dag_id: dag for dag in dags.values() if isinstance(dag, DAG)}
    return lambda dag_id: by_id[dag_id].test()


def states(dag_run):
    return {(ti.task_id, ti.map_index): ti.state for ti in dag_run.get_task_instances()}


class TestInAirflow:
    def test_a_pushed_message_is_sent_seen_edited_read_and_withdrawn(self, run_dag, sib_sandbox):
        dag_run = run_dag("a_pushed_messages_life")
        assert set(states(dag_run).values()) == {TaskInstanceState.SUCCESS}
        (message,) = sib_sandbox.messages()
        assert message["text"] == "Bye, Ada!"
        assert message["deleted"]

    def test_an_agents_message_too(self, run_dag, sib_sandbox):
        dag_run = run_dag("an_agents_messages_life")
        assert set(states(dag_run).values()) == {TaskInstanceState.SUCCESS}
        (message,) = sib_sandbox.messages()
        assert (message["text"], message["deleted"]) == ("Hi", True)

    def test_mapped_over_visitors_and_over_the_messages_sent(self, run_dag, sib_sandbox):
        dag_run = run_dag("mapped")
        assert set(states(dag_run).values()) == {TaskInstanceState.SUCCESS}
        assert {(m["visitorId"], m["text"], m["deleted"]) for m in sib_sandbox.messages()} == {
            ("ann", "Hello 0", True),
            ("bob", "Hello 1", True),
            ("cid", "Hello 2", True),
        }

    def test_where_the_connections_guard_cannot_be_read_nobody_is_written_to(
        self, monkeypatch, run_dag, sib_sandbox
    ):
        connection = sib_sandbox.connection() | {"extra": '{"allowed_visitors": "qa-*",}'}
        monkeypatch.setenv("AIRFLOW_CONN_SIB_CONVERSATIONS_DEFAULT", json.dumps(connection))
        dag_run = run_dag("retried")
        assert states(dag_run) == {("send", -1): TaskInstanceState.FAILED}
        assert texts(sib_sandbox) == []

    def test_a_callback_notifies(self, run_dag, sib_sandbox):
        run_dag("notifying")
        assert texts(sib_sandbox) == ["nothing is through."]


class TestRetries:
    """What a retry does when an earlier try may have sent the message."""

    def test_a_lost_answer_is_never_sent_again_by_itself_where_airflow_keeps_task_state(
        self, run_dag, sib_sandbox
    ):
        sib_sandbox.fault("hang_up_after", times=1)
        dag_run = run_dag("retried")
        (task,) = dag_run.get_task_instances()
        assert task.try_number == 2
        if HAS_STATE_STORE:
            assert task.state == TaskInstanceState.FAILED
            assert texts(sib_sandbox) == ["Try 1"]
        else:  # as the operator's docstring says of Airflow 3.1 and 3.2
            assert task.state == TaskInstanceState.SUCCESS
            assert texts(sib_sandbox) == ["Try 1", "Try 2"]

    def test_unless_the_author_says_so(self, run_dag, sib_sandbox):
        sib_sandbox.fault("hang_up_after", times=1)
        dag_run = run_dag("retried_with_resend")
        assert set(states(dag_run).values()) == {TaskInstanceState.SUCCESS}
        assert texts(sib_sandbox) == ["Try 1", "Try 2"]

    def test_what_was_sent_is_kept_as_long_as_the_run_and_past_airflows_retention(self, run_dag, sib_sandbox):
        dag_run = run_dag("retried")
        if HAS_STATE_STORE:
            from airflow.models.task_state_store import TaskStateStoreModel
            from airflow.utils.session import create_session

            with create_session() as session:
                kept = session.query(TaskStateStoreModel).filter_by(run_id=dag_run.run_id).all()
                assert [(row.task_id, row.expires_at) for row in kept] == [("send", None)]


class Store(dict):
    """Airflow's task state store, as one task instance sees it."""

    def set(self, key, value, *, retention=None):
        self[key] = json.loads(json.dumps(value))

    def delete(self, key):
        self.pop(key, None)


class TestAttempts:
    """What is kept of an attempt, at each place where a worker may die."""

    @pytest.fixture
    def store(self):
        return Store()

    @pytest.fixture
    def execute(self, sib_sandbox, store):
        def _execute(**arguments):
            arguments = {"task_id": "send", "visitor_id": VISITOR, "text": "Hello"} | arguments
            return SendPushedMessageOperator(**arguments).execute({"task_state_store": store})

        return _execute

    @pytest.mark.parametrize("on_doubt", ["fail", "resend"])
    def test_killed_after_the_result_was_kept_the_retry_gives_it_again(self, execute, sib_sandbox, on_doubt):
        first = execute(on_doubt=on_doubt)
        assert execute(on_doubt=on_doubt, text="Another rendering of the template") == first
        assert texts(sib_sandbox) == ["Hello"]

    def test_killed_before_the_result_was_kept_the_retry_sends_nothing(self, execute, sib_sandbox, store):
        execute()
        for attempt in store.values():
            del attempt["message"]
        with pytest.raises(AirflowFailException, match="on_doubt='resend'"):
            execute()
        assert texts(sib_sandbox) == ["Hello"]
        execute(on_doubt="resend")
        assert texts(sib_sandbox) == ["Hello", "Hello"]

    @pytest.mark.parametrize(
        ("fault", "raised"),
        [
            ({"kind": "too_many_requests_without_headers", "times": 1}, TaskDeferred),
            ({"kind": "ip_blocked", "times": 1}, AirflowFailException),
            ({"kind": "permission", "times": 1}, AirflowFailException),
        ],
    )
    def test_what_surely_was_not_sent_leaves_nothing_and_is_sent_later(
        self, execute, sib_sandbox, store, fault, raised
    ):
        sib_sandbox.fault(**fault)
        with pytest.raises(raised):
            execute()
        assert store == {}
        execute()
        assert texts(sib_sandbox) == ["Hello"]

    @pytest.mark.parametrize(
        ("connection", "defer_after", "said"),
        [
            (None, "60", "isn't defined"),
            ({"password": ""}, "60", "no API key"),
            ({"extra": {"allowed_visitor": "qa-*"}}, "60", "'allowed_visitor' is unknown"),
            ({"host": "http://api.brevo.com/v3"}, "60", "allow_insecure_http"),
            ({}, "5", "10 or more"),
        ],
    )
    def test_what_could_not_begin_leaves_nothing_and_is_sent_once_that_is_mended(
        self, execute, monkeypatch, sib_sandbox, store, connection, defer_after, said
    ):
        with monkeypatch.context() as wrong:
            wrong.setenv(
                "AIRFLOW_CONN_SIB_CONVERSATIONS_DEFAULT",
                "" if connection is None else json.dumps(sib_sandbox.connection() | connection),
            )
            wrong.setenv("AIRFLOW__SIB__DEFER_AFTER_SECONDS", defer_after)
            with pytest.raises(Exception, match=said):
                execute()
        assert store == {}
        execute()
        assert texts(sib_sandbox) == ["Hello"]

    def test_what_was_sent_is_given_back_whatever_became_of_the_connection(self, execute, monkeypatch):
        first = execute()
        monkeypatch.delenv("AIRFLOW_CONN_SIB_CONVERSATIONS_DEFAULT")
        assert execute() == first

    @pytest.mark.parametrize(
        "fault",
        [
            {"kind": "hang_up_before"},
            {"kind": "hang_up_after"},
            {"kind": "hang_up_during"},
            {"kind": "error_json"},
        ],
    )
    def test_what_may_have_been_sent_stays_in_doubt(self, execute, sib_sandbox, fault):
        sib_sandbox.fault(**fault)
        with pytest.raises((TransportError, ServerError, UnexpectedResponse)):
            execute()
        sib_sandbox.clear_faults()
        with pytest.raises(AirflowFailException, match="never learnt"):
            execute()
        assert len(texts(sib_sandbox)) <= 1

    def test_another_visitor_is_another_message(self, execute, sib_sandbox):
        execute()
        execute(visitor_id="somebody-else")
        assert len(texts(sib_sandbox)) == 2

    def test_the_store_keeps_no_visitor_id_beside_the_message_itself(self, execute, sib_sandbox, store):
        sib_sandbox.fault("hang_up_after")
        with pytest.raises(TransportError):
            execute()
        assert VISITOR not in json.dumps(store)
