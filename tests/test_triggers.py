"""The triggers: what they see, how they wait, and that Airflow can carry them."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from airflow.models.trigger import Trigger

from airflow_provider_sib import triggers
from airflow_provider_sib.hooks import SibConversationsHook
from airflow_provider_sib.triggers import AgentOnlineTrigger, MessageTrigger

AGENT = "d9nKoegKSjmCtyK78"
VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"
CONN = "sib_conversations_default"


def message_trigger(message_id, until="exists", interval=0.01, kind="pushed"):
    return MessageTrigger(message_id, kind=kind, until=until, sib_conn_id=CONN, poke_interval=interval)


async def event_of(trigger):
    """Run a trigger to its only event."""
    async with asyncio.timeout(20):
        events = [event.payload async for event in trigger.run()]
    assert len(events) == 1
    return events[0]


@pytest.fixture
def message(sib_sandbox):
    with SibConversationsHook() as hook:
        return hook.send_pushed_message(VISITOR, "Hello")


@pytest.mark.parametrize(
    "trigger",
    [
        message_trigger("m", {"isMissed": False, "to": [{"email": "a@b.example"}]}),
        AgentOnlineTrigger({"agent_id": AGENT}, until="2026-11-23T18:00:00+00:00", sib_conn_id=CONN),
    ],
)
class TestCarried:
    def test_through_airflows_encryption(self, trigger):
        """A keyword argument that Airflow cannot carry kills the whole triggerer, again after each restart."""
        classpath, kwargs = trigger.serialize()
        stored = Trigger(classpath=classpath, kwargs=kwargs)
        again = getattr(triggers, classpath.rsplit(".", 1)[1])(**stored.kwargs)
        assert again.serialize() == (classpath, kwargs)
        assert stored.classpath == f"{type(trigger).__module__}.{type(trigger).__name__}"

    def test_as_plain_json(self, trigger):
        _, kwargs = trigger.serialize()
        assert json.loads(json.dumps(kwargs)) == kwargs


class TestMessageTrigger:
    async def test_sees_what_is_there(self, message):
        assert await event_of(message_trigger(message.id)) == {
            "status": "success",
            "message": message.as_dict(),
        }

    async def test_sees_what_is_gone(self, sib_sandbox):
        assert await event_of(message_trigger("m", "gone")) == {"status": "success", "message": None}

    async def test_sees_an_agents_message(self, sib_sandbox):
        with SibConversationsHook() as hook:
            said = hook.send_message(VISITOR, "Hello", agent_id=AGENT)
        assert (await event_of(message_trigger(said.id, kind="agent")))["message"]["id"] == said.id

    async def test_waits_until_the_field_has_come(self, message, sib_sandbox):
        waiting = asyncio.create_task(event_of(message_trigger(message.id, {"text": "Bye"})))
        await _looked_at(sib_sandbox, times=2)
        assert not waiting.done()
        with SibConversationsHook() as hook:
            hook.update_pushed_message(message.id, "Bye")
        assert (await waiting)["message"]["text"] == "Bye"

    @pytest.mark.parametrize(
        "fault", [{"kind": "error_html"}, {"kind": "hang_up_before"}, {"kind": "garbage"}]
    )
    async def test_waits_out_an_outage(self, message, sib_sandbox, fault):
        sib_sandbox.fault(**fault, times=4)
        assert (await event_of(message_trigger(message.id)))["status"] == "success"

    async def test_waits_for_the_quota_without_asking_again(self, sib_sandbox):
        sib_sandbox.configure(quota=1, hour_seconds=2)
        with SibConversationsHook() as hook:
            message = hook.send_pushed_message(VISITOR, "Hello")
        assert (await event_of(message_trigger(message.id)))["status"] == "success"
        assert sib_sandbox.state()["quota"]["refused"] == 1

    async def test_says_what_waiting_cannot_mend(self, monkeypatch, sib_sandbox):
        monkeypatch.setenv(
            "AIRFLOW_CONN_SIB_CONVERSATIONS_DEFAULT",
            sib_sandbox.connection_json().replace(sib_sandbox.api_key, "xkeysib-wrong"),
        )
        event = await event_of(message_trigger("m"))
        assert event["status"] == "error"
        assert "Key not found" in event["error"]
        assert "xkeysib" not in event["error"]

    async def test_says_that_its_connection_is_missing(self, monkeypatch):
        monkeypatch.delenv("AIRFLOW_CONN_SIB_CONVERSATIONS_DEFAULT", raising=False)
        event = await event_of(message_trigger("m"))
        assert event["status"] == "error"
        assert CONN in event["error"]


class TestAgentOnlineTrigger:
    @pytest.fixture(autouse=True)
    def _a_short_minute(self, monkeypatch):
        monkeypatch.setattr(triggers, "PING_INTERVAL_SECONDS", 0.1)

    def trigger(self, seconds=0.55, agent=None):
        until = datetime.now(UTC) + timedelta(seconds=seconds)
        return AgentOnlineTrigger(agent or {"agent_id": AGENT}, until=until.isoformat(), sib_conn_id=CONN)

    async def test_pings_at_the_interval_until_the_moment(self, sib_sandbox):
        event = await event_of(self.trigger())
        assert event["status"] == "success"
        assert 2 <= event["pings"] <= 5
        assert sib_sandbox.state()["requests"]["by_operation"] == {"ping_agent_online": event["pings"]}

    async def test_after_the_moment_it_is_over(self, sib_sandbox):
        assert await event_of(self.trigger(seconds=-5)) == {"status": "success", "pings": 0, "failed": 0}

    async def test_a_ping_that_fails_is_counted_and_the_next_one_comes(self, sib_sandbox):
        sib_sandbox.fault("too_many_requests_without_headers", times=1)
        event = await event_of(self.trigger())
        assert event["failed"] == 1
        assert event["pings"] >= 1

    async def test_an_unknown_agent_ends_it_with_brevos_words(self, sib_sandbox):
        event = await event_of(self.trigger(agent={"agent_id": "nobody"}))
        assert event["status"] == "error"
        assert "agentId" in event["error"]


async def _looked_at(sandbox, times):
    async with asyncio.timeout(20):
        while sandbox.state()["requests"]["total"] < times + 1:
            await asyncio.sleep(0.01)
