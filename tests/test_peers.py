"""What other providers and clients get wrong, and ours must not: each fact found by running them.

Elsewhere is proved already, of the same kind:

- a send that fails is sent once, whatever the fault, by both clients; ids are percent-encoded into one segment; no
  library below repeats a POST (telegram, slack, http, brevo-python): `tests/api/test_clients.py`
- answers are validated (brevo-python): `tests/api/test_models.py`, `tests/api/test_wire.py`
- a 429 without its header is no KeyError (fivetran): `tests/test_operators.py`, `tests/api/test_wire.py`
- operators run through a real hook and return what they did (telegram's TypeError, hightouch's None):
  `tests/test_operators.py`
- a text kept and a retry refused after a lost answer (slack): `TestRetries` of `tests/test_operators.py`
- the provider is discovered by its distribution's name (kakao), registers its connection type (hightouch), has the
  kebab-case keys (great-expectations), and the form is in the provider's description (many):
  `tests/test_provider_info.py`
- keyword arguments of triggers are plain JSON and survive Airflow's encryption (many): `tests/test_triggers.py`
- importing the operators imports no client: `tests/test_parsing.py`
"""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections import Counter
from datetime import UTC, datetime

import pytest
from airflow.triggers.base import BaseTrigger

from airflow_provider_sib import triggers
from airflow_provider_sib._compat import AirflowFailException
from airflow_provider_sib.api.errors import ServerError, TransportError
from airflow_provider_sib.hooks import SibConversationsHook
from airflow_provider_sib.operators import (
    AgentOnlineOperator,
    DeleteMessageOperator,
    GetMessageOperator,
    SendCampaignOperator,
    SendMessageOperator,
    SendPushedMessageOperator,
    UpdateCampaignOperator,
    UpdatePushedMessageOperator,
    WithdrawCampaignOperator,
)
from airflow_provider_sib.provider_info import CONN_FIELDS
from airflow_provider_sib.sensors import CampaignSensor, MessageSensor

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferred

AGENT = "d9nKoegKSjmCtyK78"
VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"
CONN = "sib_conversations_default"

PEOPLE = [{"visitor_id": f"secret-visitor-{n}", "name": f"Secretname{n}"} for n in range(8)]


def operator(**arguments):
    return SendPushedMessageOperator(
        task_id="send", **{"visitor_id": VISITOR, "text": "Secret words"} | arguments
    )


def campaign(cls=SendCampaignOperator, **arguments):
    return cls(task_id="campaign", **{"campaign_id": "c"} | arguments)


def announcement(**arguments):
    return campaign(audience=PEOPLE, text="Secret words, [[ visitor.name ]]", **arguments)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"kind": "latency", "seconds": 3}, TransportError),
        ({"kind": "hang_up_after"}, TransportError),
        ({"kind": "error_json", "status": 500}, ServerError),
        ({"kind": "error_json", "status": 503}, ServerError),
        ({"kind": "error_json", "status": 400}, AirflowFailException),
    ],
    ids=["later than the timeout", "dropped", "500", "503", "400"],
)
def test_one_post_per_try_and_the_task_fails(monkeypatch, sib_sandbox, fault, error):
    """Telegram's made 5, hightouch's 4; apprise's left the task green."""
    monkeypatch.setenv(f"AIRFLOW_CONN_{CONN.upper()}", sib_sandbox.connection_json(timeout_seconds=1))
    sib_sandbox.fault(**fault)
    with pytest.raises(error):
        operator().execute({})
    assert sib_sandbox.state()["requests"]["by_operation"] == {"send_pushed_message": 1}


def test_a_refusal_that_says_half_an_hour_is_waited_for_half_an_hour(sib_sandbox):
    """Slack's fails at once; brevo-python comes back after one second, and after two."""
    sib_sandbox.configure(quota=1, hour_seconds=1800)
    operator().execute({})
    with pytest.raises(TaskDeferred) as deferred:
        operator().execute({})
    left = (deferred.value.trigger.moment - datetime.now(UTC)).total_seconds()
    assert 1790 < left <= 1802
    assert sib_sandbox.state()["quota"]["refused"] == 1


@pytest.mark.parametrize(
    "fault",
    [{"kind": "ip_blocked"}, {"kind": "permission"}, {"kind": "hang_up_after"}, {"kind": "error_html"}],
    ids=lambda fault: fault["kind"],
)
def test_a_batch_that_fails_in_the_middle_and_is_run_again_writes_to_nobody_twice(
    campaigns, sib_sandbox, fault
):
    """Kakao's made 13 deliveries to 8 people."""
    sib_sandbox.fault(**fault, after=3, times=1)
    once = announcement(max_in_flight=1, max_failure_share=0)
    with pytest.raises(AirflowFailException):
        once.execute({})
    assert announcement(max_in_flight=1).execute({})["status"] == "finished"
    deliveries = Counter(message["visitorId"] for message in sib_sandbox.messages())
    assert set(deliveries.values()) == {1}
    in_doubt = {delivery.visitor_id for delivery in campaigns.deliveries("c", states=["in_doubt"])}
    assert {row["visitor_id"] for row in PEOPLE} - deliveries.keys() <= in_doubt
    assert len(in_doubt) == (fault["kind"] in ("hang_up_after", "error_html"))


async def test_a_trigger_that_waits_for_the_quota_leaves_the_triggerer_to_others(sib_sandbox):
    """Fivetran's sleeps in the loop, and with it every other trigger of the process."""
    sib_sandbox.configure(quota=1, hour_seconds=5)
    with SibConversationsHook() as hook:
        message = hook.send_pushed_message(VISITOR, "Hello")
    trigger = triggers.MessageTrigger(
        message.id, kind="pushed", until="exists", sib_conn_id=CONN, poke_interval=0.01
    )
    gaps = []

    async def others() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            gaps.append(time.monotonic() - began)

    beside = asyncio.create_task(others())
    async with asyncio.timeout(20):
        (event,) = [event.payload async for event in trigger.run()]
    beside.cancel()
    assert event["status"] == "success"
    assert sib_sandbox.state()["quota"]["refused"] == 1
    assert sum(gaps) > 3
    assert max(gaps) < 2


def test_a_sensor_made_anew_for_each_look_sees_the_change(campaigns, sib_sandbox):
    """Unirate's keeps its baseline on itself; in reschedule mode each look has a new object, and it never fires."""

    def look(sensor):
        return sensor.poke({}).is_done

    def of_the_message():
        return MessageSensor(task_id="s", message_id=sent["id"], until={"text": "Bye"}, mode="reschedule")

    def of_the_campaign():
        return CampaignSensor(task_id="s", campaign_id="c")

    sent = operator().execute({})
    assert not look(of_the_message())
    UpdatePushedMessageOperator(task_id="edit", message_id=sent["id"], text="Bye").execute({})
    assert look(of_the_message())
    assert not look(of_the_campaign())
    announcement().execute({})
    assert look(of_the_campaign())


@pytest.fixture
def everything_done(campaigns, sib_sandbox, logged):
    """Do all there is with visitors and texts that are secret, errors included, and give the log."""
    for name in ("Secret words", "Other secret words"):
        sent = operator(text=name).execute({})
    UpdatePushedMessageOperator(task_id="t", message_id=sent["id"], text="Secret edit").execute({})
    GetMessageOperator(task_id="t", message_id=sent["id"]).execute({})
    MessageSensor(task_id="t", message_id=sent["id"]).poke({})
    DeleteMessageOperator(task_id="t", message_id=sent["id"]).execute({})
    SendMessageOperator(task_id="t", visitor_id=VISITOR, text="Secret reply", agent_id=AGENT).execute({})
    AgentOnlineOperator(task_id="t", duration=60, agent_id=AGENT).execute({})
    rehearsal = announcement(dry_run=True, max_bad_rows=1)
    rehearsal.audience = type(rehearsal.audience)([*PEOPLE, {"visitor_id": "", "name": "Secretname"}])
    rehearsal.execute({})
    sib_sandbox.fault("hang_up_after", times=1)
    announcement(max_failure_share=1).execute({})
    campaign(UpdateCampaignOperator, text="Secret correction, [[ visitor.name ]]").execute({})
    CampaignSensor(task_id="t", campaign_id="c").poke({})
    campaign(WithdrawCampaignOperator).execute({})
    campaigns.suppress([PEOPLE[0]["visitor_id"]])
    campaigns.forget_visitor(PEOPLE[1]["visitor_id"])
    return logged()


def test_no_visitor_no_text_and_no_key_is_in_the_log(everything_done, sib_sandbox):
    """Sendgrid's, slack's and opsgenie's log recipients, texts or payloads."""
    assert "Campaign c" in everything_done
    assert "Sent message" in everything_done
    said = everything_done.lower()
    for secret in ("secret", VISITOR.lower(), sib_sandbox.api_key):
        assert secret not in said


def test_a_key_in_the_wrong_field_is_refused_by_name_and_not_repeated(monkeypatch, logged):
    """Airflow shows extras with innocent names in clear; the key has one place, which is masked."""
    assert not [name for name in CONN_FIELDS if "key" in name or "token" in name or "password" in name]
    misplaced = {"conn_type": "sib_conversations", "extra": {"api_key": "xkeysib-misplaced"}}
    monkeypatch.setenv("AIRFLOW_CONN_MISPLACED", json.dumps(misplaced))
    with pytest.raises(AirflowFailException, match="password field") as refused:
        operator(sib_conn_id="misplaced").execute({})
    assert "xkeysib-misplaced" not in f"{refused.value} {logged()}"
    monkeypatch.setenv("AIRFLOW_CONN_MISPLACED", json.dumps(misplaced | {"password": "xkeysib-1"}))
    problems = SibConversationsHook("misplaced").settings.problems
    assert "'api_key' is unknown" in problems[0]
    assert "xkeysib-misplaced" not in f"{problems} {logged()}"


TRIGGERS = [
    triggers.MessageTrigger("m", "pushed", {"isMissed": False, "to": [{"email": None}]}, CONN, 300.0),
    triggers.AgentOnlineTrigger({"agent_id": AGENT}, until="2026-11-23T18:00:00+00:00", sib_conn_id=CONN),
    triggers.CampaignTrigger("c", ledger_conn_id=None, ledger_id="l", until=1.5, edits=True),
]


def test_every_trigger_is_carried_by_json_and_nothing_else():
    """A model of pydantic among its arguments kills a triggerer, again after each restart."""
    there = {
        value
        for value in vars(triggers).values()
        if inspect.isclass(value) and issubclass(value, BaseTrigger) and value.__module__ == triggers.__name__
    }
    assert {type(trigger) for trigger in TRIGGERS} == there
    for trigger in TRIGGERS:
        _, kwargs = trigger.serialize()
        again = type(trigger)(**json.loads(json.dumps(kwargs)))
        assert again.serialize() == trigger.serialize()
