"""Campaigns and single tasks under way, as one release leaves them behind, and how another goes on with them.

Run by the tests with the code at hand, and as a program with an older release's code: so it uses only what both have.
Each campaign has a connection of its own, named as the campaign is, and so a quota of its own.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.models import Variable

from airflow_provider_sib import triggers
from airflow_provider_sib.campaign import FrequencyCap, SendWindow, Variant
from airflow_provider_sib.campaign.engine import BUCKET
from airflow_provider_sib.campaign.ledger import Cycle, QuotaUse, Result, State
from airflow_provider_sib.hooks import CampaignHook
from airflow_provider_sib.operators import (
    AgentOnlineOperator,
    SendCampaignOperator,
    SendPushedMessageOperator,
    UpdateCampaignOperator,
)
from airflow_provider_sib.sensors import MessageSensor

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferred

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_sib.sandbox import Sandbox

LEDGER = "ledger"
CAMPAIGNS = ("release", "orders", "outage")
FORGOTTEN = "visitor-19"


def rows(count: int) -> list[dict[str, Any]]:
    """Make an audience with all a row may have, and letters that databases like to change."""
    return [
        {
            "visitor_id": f"visitor-{n}",
            "order_id": f"A-{n}",
            "first_name": ['Zoë \\ "Zed" O\'Neil', "100 % Ann", "李 😀"][n % 3],
            "locale": ["en", "fr-CA", None][n % 3],
            "timezone": ["Europe/Paris", "America/New_York", None][n % 3],
        }
        for n in range(count)
    ]


def _operator(kind: type, campaign: str, **arguments: Any) -> Any:
    places = {"sib_conn_id": campaign, "ledger_conn_id": LEDGER}
    return kind(task_id=campaign, campaign_id=campaign, reserve=0, max_in_flight=1, **places, **arguments)


def release() -> SendCampaignOperator:
    """Announce a release with everything a campaign can have."""
    return _operator(
        SendCampaignOperator,
        "release",
        audience=rows(24),
        variants={
            "plain": "Version 2 is out.",
            "warm": Variant(
                {"en": "Hi [[ visitor.first_name ]]!", "fr": "Salut [[ visitor.first_name ]] !"}, 2
            ),
        },
        holdout=0.2,
        send_window=SendWindow("00:00", "24:00", default_timezone="UTC"),
        frequency_cap=FrequencyCap(3, timedelta(days=7), group="news"),
        not_after="2100-01-01T00:00:00+00:00",
        max_failure_share=1.0,
    )


def orders(fraction: float = 1.0) -> SendCampaignOperator:
    """Tell of orders: a stream, once per order."""
    return _operator(
        SendCampaignOperator,
        "orders",
        audience=rows(8),
        text="Order [[ visitor.order_id ]] is packed.",
        enrol="each_run",
        once_per=["visitor_id", "order_id"],
        fraction=fraction,
    )


def outage() -> SendCampaignOperator:
    """Announce an outage."""
    return _operator(SendCampaignOperator, "outage", audience=rows(6), text="We are down on Fryday.")


def correction() -> UpdateCampaignOperator:
    """Mend its text."""
    return _operator(UpdateCampaignOperator, "outage", text="We are down on Friday.")


TASKS = {"release": release, "orders": orders, "outage": correction}
"""What each campaign's deferred task is."""


class Store(dict):
    """Airflow's task state store, as one task instance sees it."""

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        """Keep what JSON keeps."""
        self[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        """Forget."""
        self.pop(key, None)


def message() -> SendPushedMessageOperator:
    """Send one message."""
    return SendPushedMessageOperator(
        task_id="message", visitor_id="single", text="Hello", sib_conn_id="orders"
    )


def sensor() -> MessageSensor:
    """Wait for a message that is not there."""
    return MessageSensor(task_id="sensor", message_id="m", deferrable=True, sib_conn_id="orders")


def online() -> AgentOnlineOperator:
    """Keep an agent online."""
    return AgentOnlineOperator(
        task_id="online", agent_id="d9nKoegKSjmCtyK78", duration=3600, sib_conn_id="orders"
    )


def execute(
    operator: Any, event: Any = None, arguments: Mapping[str, Any] | None = None, **context: Any
) -> dict[str, Any]:
    """Run a task without an Airflow around it."""
    now = datetime.now(UTC)
    run = {"dag_run": SimpleNamespace(run_type="manual", logical_date=now, run_after=now)}
    return operator.execute(run | context, event, **(arguments or {}))


def deferral(operator: Any) -> dict[str, Any]:
    """Run a task until it is deferred, and give what Airflow keeps of it."""
    with pytest.raises(TaskDeferred) as deferred:
        execute(operator)
    classpath, kwargs = deferred.value.trigger.serialize()
    return {
        "classpath": classpath,
        "kwargs": kwargs,
        "method": deferred.value.method_name,
        "arguments": deferred.value.kwargs,
    }


def leave(sandboxes: Mapping[str, Sandbox]) -> dict[str, Any]:
    """Bring the campaigns under way, each in another state, and stop there.

    ``release`` waits for its quota, with a doubt, a failure, and a worker that was killed with three rows in hand.
    ``orders`` is half through, and paused. ``outage`` was sent, and its correction waits for the quota.

    :return: what Airflow keeps of each deferred task, and of the ledger.
    """
    with CampaignHook(LEDGER) as hook:
        hook.suppress(["visitor-18"])
        hook.suppress([FORGOTTEN], "left")
        sandboxes["release"].configure(quota=9, unknown_visitor="reject")
        known = (row["visitor_id"] for row in rows(24) if row["visitor_id"] not in ("visitor-2", "visitor-4"))
        sandboxes["release"].add_visitors(*({"id": visitor} for visitor in known))
        sandboxes["release"].fault("hang_up_after", times=1, after=3, operation="send_pushed_message")
        left = {"release": deferral(release())}
        _killed_in_mid_sending(hook.ledger)
        hook.forget_visitor(FORGOTTEN)

        sandboxes["orders"].configure(quota=10_000)
        execute(orders(fraction=0.5))
        hook.pause("orders")
        left["orders"] = deferral(orders())

        sandboxes["outage"].configure(quota=8)
        execute(outage())
        left["outage"] = deferral(correction())
        store = Store()
        execute(message(), task_state_store=store)
        return {
            "deferred": left,
            "pin": Variable.get(hook.place.pin_key, deserialize_json=True),
            "single": {"attempts": store, "sensor": deferral(sensor()), "online": deferral(online())},
        }


def _killed_in_mid_sending(ledger: Any) -> None:
    """Claim as another worker would; of one row learn, late, that it was sent twice by hand."""
    wish = QuotaUse("release", BUCKET, "killed", 0, 3, 60, lambda quota, _: (quota, 3))
    claimed = ledger.cycle(Cycle("release", wish, 60)).claimed
    assert len(claimed) == 3
    first = (claimed[0].rank, claimed[0].claim, State.SENT)
    told = [Result(*first, message_id="one", text_hash="h"), Result(*first, message_id="two", text_hash="h")]
    no_more = QuotaUse(
        "release", wish.bucket, "killed", 2, 0, 60, lambda quota, _: (quota, 0)
    )  # two are in flight, for ever
    ledger.cycle(Cycle("release", no_more, 60, results=told))


def go_on(deferred: Mapping[str, Any]) -> dict[str, Any]:
    """Let each deferred task wake as Airflow does, from what it has kept, and come to its end.

    :return: each task's result.
    """
    triggers.STATUS_INTERVAL_SECONDS = 0.05
    with CampaignHook(LEDGER) as hook:
        hook.resume("orders")
    results = {}
    for campaign, kept in deferred.items():
        event = asyncio.run(_event(trigger_of(kept)))
        operator = TASKS[campaign]()
        assert kept["method"] == "execute"
        results[campaign] = execute(operator, event, kept["arguments"])
    return results


def trigger_of(kept: Mapping[str, Any]) -> Any:
    """Make a trigger anew, as the triggerer does."""
    module, _, name = kept["classpath"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**kept["kwargs"])


def go_on_with_single_tasks(single: Mapping[str, Any]) -> dict[str, Any]:
    """Retry a message that was sent; wake those who wait, the moment until which the agent is online being past.

    :return: each task's result.
    """
    look = trigger_of(single["sensor"])
    look.until, look.poke_interval = "gone", 0.01
    pings = trigger_of(single["online"])
    pings.until = datetime.now(UTC).isoformat()
    return {
        "message": execute(message(), task_state_store=Store(single["attempts"])),
        "sensor": execute(sensor(), asyncio.run(_event(look))),
        "online": execute(online(), asyncio.run(_event(pings))),
    }


async def _event(trigger: Any) -> Any:
    async with asyncio.timeout(60):
        async for event in trigger.run():
            return event.payload


if __name__ == "__main__":  # with an older release's code
    print(json.dumps(go_on(json.loads(sys.stdin.read()))))
