"""The sensors in their modes, against the sandbox and a ledger."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_provider_sib._compat import AirflowFailException
from airflow_provider_sib.campaign.ledger import LedgerMissing
from airflow_provider_sib.hooks import CampaignHook, SibConversationsHook
from airflow_provider_sib.operators import SendCampaignOperator
from airflow_provider_sib.sensors import CampaignSensor, MessageSensor

try:
    from airflow.sdk.exceptions import AirflowRescheduleException, AirflowSensorTimeout, TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import AirflowRescheduleException, AirflowSensorTimeout, TaskDeferred

AGENT = "d9nKoegKSjmCtyK78"
VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"


class FirstLook:
    """A task that has not been rescheduled yet."""

    def get_first_reschedule_date(self, context):
        return None

    def xcom_push(self, key, value):
        """Take the link to the campaign's page."""


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

        with pytest.raises(AirflowRescheduleException):
            waiting.execute({"ti": FirstLook()})


class TestCampaignSensor:
    @pytest.fixture(autouse=True)
    def _campaigns(self, campaigns, sib_sandbox):
        sib_sandbox.configure(quota=10_000)

    def send(self, **arguments):
        """Send to ten visitors, as far as it goes."""
        operator = SendCampaignOperator(
            task_id="send",
            campaign_id="release",
            audience=[{"visitor_id": f"visitor-{number}"} for number in range(10)],
            text="Hi!",
            reserve=0,
            **arguments,
        )
        now = datetime.now(UTC)
        return operator.execute(
            {"dag_run": SimpleNamespace(run_type="manual", logical_date=now, run_after=now)}
        )

    def send_six_of_ten(self, sib_sandbox):
        sib_sandbox.configure(quota=6)
        with pytest.raises(TaskDeferred):
            self.send()

    def poke(self, **arguments):
        result = CampaignSensor(task_id="wait", campaign_id="release", **arguments).poke({})
        return result.is_done, result.xcom_value

    def test_one_that_is_not_there_yet_is_waited_for_and_nothing_is_made(self, campaigns):
        assert self.poke() == (False, None)
        with CampaignHook(create=False) as hook, pytest.raises(LedgerMissing):
            hook.list()
        assert campaigns.list() == []  # an empty ledger, made by who asked
        assert self.poke() == (False, None)

    def test_a_ledger_that_was_pinned_and_is_gone_fails_it(self, campaigns):
        self.send()
        Path(campaigns.place.url().database).unlink()
        with pytest.raises(AirflowFailException, match=r"There is no ledger at .* pinned.* ledger adopt`\.$"):
            self.poke()

    def test_a_file_is_refused_where_tasks_may_run_on_another_machine(self, campaigns, monkeypatch):
        """Each worker would look into a file of its own, and wait for days."""
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
        with pytest.raises(AirflowFailException, match=r"executor is CeleryExecutor.*ledger_conn_id"):
            self.poke()
        assert not Path(campaigns.place.url().database).exists()

    def test_one_that_is_through_is_done_and_gives_its_report(self, campaigns, sib_sandbox):
        self.send()
        calls = sib_sandbox.state()["requests"]["total"]
        done, report = self.poke()
        assert done
        assert (report["status"], report["sent"], report["total"]) == ("finished", 10, 10)
        assert report.keys() == campaigns.report("release").as_dict().keys()
        assert sib_sandbox.state()["requests"]["total"] == calls

    @pytest.mark.parametrize(("share", "done"), [(0.5, True), (0.6, True), (0.61, False), (1.0, False)])
    def test_a_share_of_those_who_may_be_sent_to_is_enough(self, sib_sandbox, share, done):
        self.send_six_of_ten(sib_sandbox)
        assert self.poke(settled_share=share)[0] is done

    def test_a_fraction_counts_only_those_it_lets_through(self):
        self.send(fraction=0.3)
        assert self.poke()[0]

    def test_failures_doubts_and_skips_are_outcomes_too(self, sib_sandbox):
        sib_sandbox.fault("error_json", status=400, times=1)
        sib_sandbox.fault("hang_up_after", times=1, after=3, operation="send_pushed_message")
        self.send(suppress=[{"visitor_id": "visitor-3"}], max_failure_share=1)
        done, report = self.poke()
        assert done
        assert (report["failed"], report["in_doubt"], report["skipped"]) == (1, 1, 1)

    def test_a_paused_one_is_waited_for(self, campaigns, sib_sandbox):
        self.send_six_of_ten(sib_sandbox)
        campaigns.pause("release")
        assert self.poke()[0] is False

    def test_a_paused_one_is_waited_for_although_enough_are_settled(self, campaigns, sib_sandbox):
        self.send_six_of_ten(sib_sandbox)
        campaigns.pause("release")
        assert self.poke(settled_share=0.5)[0] is False
        campaigns.resume("release")
        assert self.poke(settled_share=0.5)[0] is True

    def test_an_aborted_one_fails_it(self, campaigns, sib_sandbox):
        self.send_six_of_ten(sib_sandbox)
        campaigns.abort("release")
        with pytest.raises(AirflowFailException, match=r"'release' was aborted.*campaigns resume release"):
            self.poke()

    def test_it_gives_the_slot_back_unless_told_not_to(self):
        with pytest.raises(AirflowRescheduleException):
            CampaignSensor(task_id="wait", campaign_id="release").execute({"ti": FirstLook()})
        with pytest.raises(AirflowSensorTimeout):
            CampaignSensor(
                task_id="wait", campaign_id="release", mode="poke", poke_interval=0.01, timeout=0.02
            ).execute({})

    @pytest.mark.parametrize("share", [0, -0.1, 1.1])
    def test_a_share_that_cannot_be_is_refused_when_the_dag_is_parsed(self, share):
        with pytest.raises(ValueError, match="settled_share"):
            CampaignSensor(task_id="wait", campaign_id="release", settled_share=share)
