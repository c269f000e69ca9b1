"""The sensor in its three modes, and its trigger, against the sandbox."""

from __future__ import annotations

import pytest

from airflow_provider_sib._compat import AirflowFailException
from airflow_provider_sib.hooks import SibConversationsHook
from airflow_provider_sib.sensors import MessageSensor

try:
    from airflow.sdk.exceptions import AirflowRescheduleException, AirflowSensorTimeout, TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import AirflowRescheduleException, AirflowSensorTimeout, TaskDeferred

AGENT = "d9nKoegKSjmCtyK78"
VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"


@pytest.fixture
def message(sib_sandbox):
    with SibConversationsHook() as hook:
        return hook.send_pushed_message(VISITOR, "Hello")


def sensor(message_id, **arguments):
    return MessageSensor(task_id="wait", message_id=message_id, **arguments)


def poke(message_id, **arguments):
    result = sensor(message_id, **arguments).poke({})
    return result.is_done, result.xcom_value


def test_its_default_leaves_most_of_the_quota():
    assert 3600 / sensor("m").poke_interval <= 12


@pytest.mark.parametrize(
    ("until", "done"),
    [
        ("exists", True),
        ("gone", False),
        ({"isMissed": False}, True),
        ({"isMissed": True}, False),
        ({"isMissed": False, "text": "Hello"}, True),
        ({"isMissed": False, "text": "Bye"}, False),
        ({"noSuchField": None}, False),
    ],
)
def test_looks_at_a_message_that_is_there(message, until, done):
    assert poke(message.id, until=until) == (done, message.as_dict())


@pytest.mark.parametrize(("until", "done"), [("exists", False), ("gone", True), ({"isMissed": False}, False)])
def test_looks_at_a_message_that_is_not_there(sib_sandbox, until, done):
    assert poke("no-such-id", until=until) == (done, None)


def test_an_agents_message_is_of_the_other_kind(sib_sandbox):
    with SibConversationsHook() as hook:
        said = hook.send_message(VISITOR, "Hello", agent_id=AGENT)
    assert poke(said.id, kind="agent")[0]
    assert not poke(said.id, kind="pushed")[0]


@pytest.mark.parametrize("until", ["here", {}, ["exists"], None, 5])
def test_a_wrong_until_fails_by_name(sib_sandbox, until):
    """At run time, since it is templated."""
    with pytest.raises(AirflowFailException, match="until must be"):
        poke("m", until=until)


def test_a_wrong_kind_is_refused_when_the_dag_is_parsed():
    with pytest.raises(ValueError, match="'pushd'"):
        sensor("m", kind="pushd")


def test_a_deferrable_one_must_not_look_too_often():
    with pytest.raises(ValueError, match="10 or more"):
        sensor("m", deferrable=True, poke_interval=5)


def test_an_exhausted_quota_is_not_yet(message, sib_sandbox):
    sib_sandbox.configure(quota=1)
    assert poke(message.id) == (False, None)


def test_a_wrong_key_fails_for_good(monkeypatch, sib_sandbox):
    monkeypatch.setenv(
        "AIRFLOW_CONN_SIB_CONVERSATIONS_DEFAULT",
        sib_sandbox.connection_json().replace(sib_sandbox.api_key, "xkeysib-wrong"),
    )
    with pytest.raises(AirflowFailException, match="Key not found"):
        poke("m")


class TestModes:
    def test_poke(self, message):
        assert sensor(message.id).execute({}) == message.as_dict()

    def test_poke_times_out(self, sib_sandbox):
        with pytest.raises(AirflowSensorTimeout):
            sensor("no-such-id", poke_interval=0.01, timeout=0.02).execute({})

    def test_deferrable_is_done_at_once_where_there_is_nothing_to_wait_for(self, message):
        assert sensor(message.id, deferrable=True).execute({}) == message.as_dict()

    def test_deferrable_leaves_the_worker_and_carries_its_question(self, sib_sandbox):
        with pytest.raises(TaskDeferred) as deferred:
            sensor("no-such-id", deferrable=True, timeout=3600).execute({})
        _, kwargs = deferred.value.trigger.serialize()
        assert kwargs == {
            "message_id": "no-such-id",
            "kind": "pushed",
            "until": "exists",
            "sib_conn_id": "sib_conversations_default",
            "poke_interval": 300,
        }
        assert deferred.value.timeout.total_seconds() == 3600

    def test_deferrable_gives_what_the_trigger_saw(self):
        event = {"status": "success", "message": {"id": "m"}}
        assert sensor("m", deferrable=True).execute({}, event) == {"id": "m"}

    def test_deferrable_fails_with_what_the_trigger_says(self):
        with pytest.raises(AirflowFailException, match="Key not found"):
            sensor("m", deferrable=True).execute(
                {}, {"status": "error", "error": "Unauthorized: Key not found"}
            )

    def test_reschedule_gives_the_slot_back(self, sib_sandbox):
        waiting = sensor("no-such-id", mode="reschedule")

        class FirstLook:
            def get_first_reschedule_date(self, context):
                return None

        with pytest.raises(AirflowRescheduleException):
            waiting.execute({"ti": FirstLook()})
