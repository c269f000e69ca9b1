"""The triggers: what they see, how they wait, and that Airflow can carry them."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from airflow.models.trigger import Trigger

from airflow_provider_sib import triggers
from airflow_provider_sib.campaign.announcement import Announcement
from airflow_provider_sib.campaign.engine import open_campaign
from airflow_provider_sib.campaign.ledger import CampaignStatus
from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from airflow_provider_sib.hooks import SibConversationsHook
from airflow_provider_sib.hooks.campaign import LedgerPlace, open_ledger
from airflow_provider_sib.triggers import AgentOnlineTrigger, CampaignTrigger, MessageTrigger

from .campaign.conftest import make_database

AGENT = "d9nKoegKSjmCtyK78"
VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"
CONN = "sib_conversations_default"
BEHIND_SECONDS = 2


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
        CampaignTrigger("release", ledger_conn_id=None, ledger_id="l", until=None),
        CampaignTrigger("release", ledger_conn_id="ledger", ledger_id="l", until=1_795_000_000.5, edits=True),
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
        sib_sandbox.configure(quota=1, hour_seconds=5)
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

    def trigger(self, seconds=2.05, agent=None):
        until = datetime.now(UTC) + timedelta(seconds=seconds)
        return AgentOnlineTrigger(agent or {"agent_id": AGENT}, until=until.isoformat(), sib_conn_id=CONN)

    async def test_pings_at_the_interval_until_the_moment(self, sib_sandbox):
        event = await event_of(self.trigger())
        assert event["status"] == "success"
        assert 2 <= event["pings"] <= 20
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


class TestCampaignTrigger:
    @pytest.fixture(autouse=True)
    def _look_often(self, monkeypatch):
        monkeypatch.setattr(triggers, "STATUS_INTERVAL_SECONDS", 0.02)

    @pytest.fixture
    def ledger_id(self, campaigns):
        """A ledger with a running campaign, as the task that waits has left it."""
        ledger = open_ledger(LedgerPlace(None), to_send=True)
        open_campaign(ledger, "release", binding={}, announcement=Announcement("Hi!"))
        ledger_id = ledger.identity().ledger_id
        ledger.close()
        return ledger_id

    @pytest.fixture
    def behind(self, monkeypatch):
        """The same on a PostgreSQL whose clock is behind this machine's."""
        database, engine, drop = make_database("postgresql")
        place = drop.split()[2]
        # A function of its own is found before that of the server.
        url = database.url.update_query_dict({"options": f"-csearch_path={place},pg_catalog"})
        with engine.connect() as conn:
            conn.exec_driver_sql(
                f"CREATE FUNCTION {place}.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS"
                f" $$ SELECT pg_catalog.clock_timestamp() - interval '{BEHIND_SECONDS} seconds' $$"
            )
        monkeypatch.setenv(
            "AIRFLOW_CONN_LEDGER", url.set(drivername="postgres").render_as_string(hide_password=False)
        )
        ledger = SqlLedger(url)
        open_campaign(ledger, "release", binding={}, announcement=Announcement("Hi!"))
        yield ledger.identity().ledger_id
        ledger.close()
        with engine.connect() as conn:
            conn.exec_driver_sql(drop)
        engine.dispose()

    def trigger(self, ledger_id, seconds=None, ledger_conn_id=None, **arguments):
        until = None if seconds is None else datetime.now(UTC).timestamp() + seconds
        return CampaignTrigger(
            "release", ledger_conn_id=ledger_conn_id, ledger_id=ledger_id, until=until, **arguments
        )

    async def test_wakes_at_its_moment(self, ledger_id):
        trigger = self.trigger(ledger_id, seconds=0.2)
        assert await event_of(trigger) == {"woken_by": "moment"}
        assert datetime.now(UTC).timestamp() >= trigger.until

    @pytest.mark.parametrize("watched", [True, False])
    async def test_a_moment_that_has_passed_wakes_it_but_not_at_once(self, ledger_id, watched, monkeypatch):
        """Airflow fails a task that goes on while the supervisor of its last slice still lingers."""
        monkeypatch.setattr(triggers, "STATUS_INTERVAL_SECONDS", 0.5)
        trigger = self.trigger(ledger_id if watched else "another", seconds=-5)
        began = time.monotonic()
        assert await event_of(trigger) == {"woken_by": "moment"}
        assert time.monotonic() - began >= 0.5

    async def test_its_moment_is_one_of_the_ledgers_clock(self, behind):
        trigger = self.trigger(behind, seconds=0.2, ledger_conn_id="ledger")
        assert await event_of(trigger) == {"woken_by": "moment"}
        assert datetime.now(UTC).timestamp() - BEHIND_SECONDS >= trigger.until

    @pytest.mark.parametrize("seconds", [None, 3600])
    async def test_wakes_when_the_campaign_is_aborted(self, ledger_id, campaigns, seconds):
        campaigns.pause("release")
        waiting = asyncio.create_task(event_of(self.trigger(ledger_id, seconds)))
        # Ten times its interval: while the campaign is paused it waits.
        await asyncio.sleep(0.2)
        assert not waiting.done()
        campaigns.abort("release")
        assert await waiting == {"woken_by": "status"}

    @pytest.mark.parametrize("status", ["finished", "aborted"])
    async def test_of_an_edit_wakes_at_its_moment_whatever_the_status(self, ledger_id, campaigns, status):
        """What is finished or aborted is corrected and withdrawn all the same, at the pace of the quota."""
        campaigns.ledger.set_status("release", CampaignStatus(status))
        trigger = self.trigger(ledger_id, seconds=0.5, edits=True)
        assert await event_of(trigger) == {"woken_by": "moment"}
        assert datetime.now(UTC).timestamp() >= trigger.until

    async def test_wakes_when_the_campaign_is_purged(self, ledger_id, campaigns):
        waiting = asyncio.create_task(event_of(self.trigger(ledger_id, seconds=3600)))
        campaigns.abort("release")
        campaigns.purge("release")
        assert await waiting == {"woken_by": "status"}

    async def test_of_a_paused_campaign_wakes_when_it_is_resumed(self, ledger_id, campaigns):
        campaigns.pause("release")
        waiting = asyncio.create_task(event_of(self.trigger(ledger_id)))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        campaigns.resume("release")
        assert await waiting == {"woken_by": "status"}

    async def test_a_pause_that_is_over_before_the_moment_changes_nothing(self, ledger_id, campaigns):
        waiting = asyncio.create_task(event_of(self.trigger(ledger_id, seconds=0.5)))
        campaigns.pause("release")
        await asyncio.sleep(0.1)
        campaigns.resume("release")
        assert await waiting == {"woken_by": "moment"}

    async def test_a_ledger_it_cannot_see_is_not_made_and_the_moment_counts(self, campaigns, logged):
        assert await event_of(self.trigger("of-another-machine", seconds=0.1)) == {"woken_by": "moment"}
        assert "is not watched for pause and abort" in logged()
        assert list(Path(campaigns.place.url().database).parent.glob("sib_ledger*")) == []

    async def test_another_ledger_is_not_read(self, ledger_id, campaigns):
        campaigns.abort("release")
        assert await event_of(self.trigger("another", seconds=0.1)) == {"woken_by": "moment"}

    async def test_paused_and_blind_it_lets_the_task_look_now_and_then(self, campaigns, monkeypatch):
        monkeypatch.setattr(triggers, "BLIND_WAIT_SECONDS", 0.1)
        assert await event_of(self.trigger("of-another-machine")) == {"woken_by": "moment"}

    async def test_cancelled_it_closes_the_ledger(self, ledger_id, campaigns):
        """As Airflow does when the task is cleared or marked while it waits."""
        file = campaigns.place.url().database

        def is_open():
            return file in {opened.path for opened in psutil.Process().open_files()}

        waiting = asyncio.create_task(event_of(self.trigger(ledger_id, seconds=3600)))
        async with asyncio.timeout(20):
            while not is_open():
                await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not is_open()
