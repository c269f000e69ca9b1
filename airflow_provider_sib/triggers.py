"""Triggers: they wait and read. The one thing they send is an agent's ping, whose repetition is harmless.

A trigger lives in the triggerer, is made anew from its keyword arguments after a restart (JSON scalars, lists
and dicts only) and may run twice for a moment; so it never creates a message.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_sib.api.errors import (
    ConversationsError,
    InvalidRequest,
    NotFound,
    RateLimited,
    Unauthorized,
)
from airflow_provider_sib.hooks import SibConversationsHook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from airflow_provider_sib.api.models import Message
    from airflow_provider_sib.campaign.ledger import Ledger

Kind = Literal["pushed", "agent"]
Until = Literal["exists", "gone"] | dict[str, Any]

# Brevo: "2-3 minutes" online after a ping, "once a minute as long as the agent is supposed to be online"
# (https://developers.brevo.com/reference/sets-agents-status-to-online-for-23-minutes).
PING_INTERVAL_SECONDS = 60.0

# How soon a pause, a resume or an abort is seen: a read of one row and of the clock. No deferral ends earlier either,
# for Airflow's supervisor of the deferred task lingers for seconds, and a task that goes on meanwhile is failed.
STATUS_INTERVAL_SECONDS = 10.0
# How often a task looks after a paused campaign whose ledger the triggerer cannot read.
BLIND_WAIT_SECONDS = 600.0


def has_come(until: Until, message: Message | None) -> bool:
    """Tell whether a message is as a sensor waits for it.

    :param until: ``"exists"``, ``"gone"``, or fields by Brevo's names with the values they must have.
    :param message: the message, or None where there is none.
    """
    if until == "gone":
        return message is None
    if message is None:
        return False
    if until == "exists":
        return True
    fields = message.as_dict()
    return all(name in fields and fields[name] == value for name, value in until.items())


class MessageTrigger(BaseTrigger):
    """Look at a message at an interval until it is as wanted.

    Yields ``{"status": "success", "message": dict | None}``, or ``{"status": "error", "error": str}`` for what
    waiting cannot mend. An outage is waited out, and so is an exhausted quota: to its reset.

    :param message_id: the message.
    :param kind: ``"pushed"`` or ``"agent"``.
    :param until: as of :class:`~airflow_provider_sib.sensors.MessageSensor`.
    :param sib_conn_id: the connection.
    :param poke_interval: seconds between two looks; one look is one call of the quota.
    """

    def __init__(
        self,
        message_id: str,
        kind: Kind,
        until: Until,
        sib_conn_id: str,
        poke_interval: float,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Airflow
        self.message_id = message_id
        self.kind = kind
        self.until = until
        self.sib_conn_id = sib_conn_id
        self.poke_interval = poke_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Give what makes this trigger anew elsewhere."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "message_id": self.message_id,
                "kind": self.kind,
                "until": self.until,
                "sib_conn_id": self.sib_conn_id,
                "poke_interval": self.poke_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait an interval, look, and so on; the sensor has looked once before it deferred."""
        try:
            async with SibConversationsHook(self.sib_conn_id).async_client() as client:
                get = client.get_pushed_message if self.kind == "pushed" else client.get_message
                wait = self.poke_interval
                while True:
                    await asyncio.sleep(wait)
                    wait = self.poke_interval
                    try:
                        message = await get(self.message_id)
                    except NotFound:
                        message = None
                    except RateLimited as error:
                        wait = max(wait, error.reset_in or 0.0)
                        self.log.info("The quota is used up; looking again in %.0f s.", wait)
                        continue
                    except (Unauthorized, InvalidRequest):
                        raise
                    except ConversationsError as error:
                        self.log.warning("Looking again in %.0f s: %s", wait, error)
                        continue
                    if has_come(self.until, message):
                        yield TriggerEvent(
                            {"status": "success", "message": None if message is None else message.as_dict()}
                        )
                        return
        except Exception as error:  # noqa: BLE001 - the task says it; an exception here would only say "trigger failed"
            yield TriggerEvent({"status": "error", "error": f"{type(error).__name__}: {error}"})


class AgentOnlineTrigger(BaseTrigger):
    """Ping an agent online once a minute until a moment.

    Yields ``{"status": "success", "pings": int, "failed": int}``, or ``{"status": "error", "error": str}`` for
    what waiting cannot mend. A ping that fails otherwise is counted and the next one comes a minute later, or
    when the quota is back.

    :param agent: the agent as of :meth:`~airflow_provider_sib.hooks.SibConversationsHook.ping_agent_online`.
    :param until: moment of the last ping, ISO 8601 with offset.
    :param sib_conn_id: the connection.
    """

    def __init__(self, agent: Mapping[str, str], until: str, sib_conn_id: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Airflow
        self.agent = dict(agent)
        self.until = until
        self.sib_conn_id = sib_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Give what makes this trigger anew elsewhere."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {"agent": self.agent, "until": self.until, "sib_conn_id": self.sib_conn_id},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait a minute, ping, and so on; the operator has pinged once before it deferred."""
        until = datetime.fromisoformat(self.until)
        pings = failed = 0
        try:
            settings = await SibConversationsHook(self.sib_conn_id).aget_settings()
            ping = settings.ping_agent_online(**self.agent)
            async with settings.async_client() as client:
                wait = PING_INTERVAL_SECONDS
                while (left := (until - datetime.now(UTC)).total_seconds()) > 0:
                    await asyncio.sleep(min(wait, left))
                    if datetime.now(UTC) >= until:
                        break
                    wait = PING_INTERVAL_SECONDS
                    try:
                        await client.perform(ping)
                        pings += 1
                    except (Unauthorized, InvalidRequest):
                        raise
                    except ConversationsError as error:
                        failed += 1
                        if isinstance(error, RateLimited):
                            wait = max(wait, error.reset_in or 0.0)
                        self.log.warning("The agent was not pinged; next try in %.0f s: %s", wait, error)
        except Exception as error:  # noqa: BLE001 - the task says it; an exception here would only say "trigger failed"
            yield TriggerEvent({"status": "error", "error": f"{type(error).__name__}: {error}"})
            return
        yield TriggerEvent({"status": "success", "pings": pings, "failed": failed})


class CampaignTrigger(BaseTrigger):
    """Wait for a moment, for a campaign to be resumed, aborted or purged: whichever comes first.

    Yields ``{"woken_by": "moment" | "status"}``, never at once. It reads the campaign's status and the clock in the
    ledger, and sends nothing. While those cannot be read from here (a file on the workers' machine, a database that
    is down) the moment counts, or for a paused campaign a look by the task itself now and then.

    :param campaign_id: the campaign.
    :param ledger_conn_id: Airflow connection of the ledger's database; None: the file in ``AIRFLOW_HOME``.
    :param ledger_id: id of the ledger the task has; another one is not read.
    :param until: seconds since 1970 on the ledger's clock; None: until the campaign is resumed.
    :param edits: whether the task changes what was sent, which it does whatever the campaign's status is.
    """

    def __init__(
        self,
        campaign_id: str,
        ledger_conn_id: str | None,
        ledger_id: str,
        until: float | None,
        edits: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Airflow
        self.campaign_id = campaign_id
        self.ledger_conn_id = ledger_conn_id
        self.ledger_id = ledger_id
        self.until = until
        self.edits = edits
        self._may_answer_later = False
        # Seconds by which this machine's clock was ahead of the ledger's when that was last read.
        self._ahead = 0.0

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Give what makes this trigger anew elsewhere."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "campaign_id": self.campaign_id,
                "ledger_conn_id": self.ledger_conn_id,
                "ledger_id": self.ledger_id,
                "until": self.until,
                "edits": self.edits,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch until it is time."""
        until = self.until
        ledger = await self._ledger()
        if until is None and ledger is None:
            until = time.time() + BLIND_WAIT_SECONDS
        try:
            wait = STATUS_INTERVAL_SECONDS
            while True:
                await asyncio.sleep(wait)
                if ledger is None and self._may_answer_later:
                    ledger = await self._ledger()
                if ledger is not None and await self._woken_by_status(ledger):
                    yield TriggerEvent({"woken_by": "status"})
                    return
                if until is not None:
                    left = until - (time.time() - self._ahead)
                    if left <= 0:
                        yield TriggerEvent({"woken_by": "moment"})
                        return
                    wait = min(STATUS_INTERVAL_SECONDS, left)
        finally:
            if ledger is not None:
                await asyncio.to_thread(ledger.close)

    async def _ledger(self) -> Ledger | None:
        from airflow_provider_sib.campaign.ledger import LedgerUnavailable
        from airflow_provider_sib.hooks.campaign import LedgerPlace, open_to_watch

        try:
            place = LedgerPlace(self.ledger_conn_id)
            url = await place.aurl()
            opening = asyncio.create_task(asyncio.to_thread(open_to_watch, url, self.ledger_id))
            try:
                return await asyncio.shield(opening)
            except asyncio.CancelledError:
                # Its thread goes on, and nobody else would close what it opens.
                with suppress(Exception):
                    await asyncio.to_thread((await opening).close)
                raise
        except Exception as error:  # noqa: BLE001 - whatever it is, waiting for the moment still works
            self._may_answer_later = isinstance(error, LedgerUnavailable)
            self.log.warning(
                "Campaign %s is not watched for pause and abort: %s: %s",
                self.campaign_id,
                type(error).__name__,
                error,
            )
            return None

    async def _woken_by_status(self, ledger: Ledger) -> bool:
        from airflow_provider_sib.campaign.ledger import CampaignStatus, LedgerError, UnknownCampaign

        try:
            status = (await asyncio.to_thread(ledger.campaign, self.campaign_id)).status
            now_ms = await asyncio.to_thread(ledger.now_ms)
        except UnknownCampaign:
            # Purged: that is for the task to say.
            return True
        except LedgerError as error:
            self.log.warning("Campaign %s: %s", self.campaign_id, error)
            return False
        self._ahead = time.time() - now_ms / 1000
        if status is CampaignStatus.PAUSED or self.edits:
            return False
        return status is not CampaignStatus.RUNNING or self.until is None
