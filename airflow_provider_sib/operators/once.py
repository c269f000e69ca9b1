"""A single message that is sent once over all runs: the ledger remembers its once key.

It is a delivery like those of a campaign, in a campaign of the task's own that newcomers join: so it shares the
quota, survives a kill between any two lines, and can be looked at, settled and withdrawn like any other.
"""

from __future__ import annotations

import hashlib
from itertools import chain
from typing import TYPE_CHECKING, Any

from airflow_provider_sib._compat import AirflowFailException, AirflowSkipException
from airflow_provider_sib.campaign.announcement import Announcement, Enroller
from airflow_provider_sib.campaign.audience import Row
from airflow_provider_sib.campaign.engine import SendEngine, enrol, open_campaign
from airflow_provider_sib.campaign.ledger import Delivery, Ledger, State
from airflow_provider_sib.operators.campaign import opened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_sib.operators.campaign import CampaignTask
    from airflow_provider_sib.operators.messages import SendPushedMessageOperator

# The text is a variable of the one recipient: data, never a template.
ANNOUNCEMENT = Announcement("[[ visitor.text ]]")


def send_once(
    operator: SendPushedMessageOperator, once_key: str, *, resumed: bool, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Send the operator's message, unless its once key was sent before by any run of the same task.

    :param resumed: whether this goes on after a deferral.
    :param before: what was counted until then.
    :return: what is known of the message, also of one that an earlier run sent.
    :raises AirflowSkipException: when the ledger's list says that this visitor must not be written to.
    :raises AirflowFailException: when it failed, or its outcome is in doubt.
    """
    if not once_key.strip():
        raise AirflowFailException(
            "once_key is blank: name what the message is once per, such as 'order-17-shipped', or leave it out."
        )
    campaign_id = _campaign_of(operator)
    with opened(
        operator,
        campaign_id,
        sib_conn_id=operator.sib_conn_id,
        ledger_conn_id=operator.ledger_conn_id,
        deferrable=True,
    ) as task:
        ledger, settings = task.ledger, task.settings
        # Wrong arguments, and a visitor outside of staging, are refused before anybody is enrolled.
        call = settings.send_pushed_message(
            operator.visitor_id, operator.text, agent_id=operator.agent_id, group_id=operator.group_id
        )
        sender = (
            {"agent_id": call.body.get("agentId"), "group_id": call.body.get("groupId")} if call.body else {}
        )
        open_campaign(
            ledger,
            campaign_id,
            binding={"host": settings.base_url, "connection": settings.conn_id},
            announcement=ANNOUNCEMENT,
            each_run=True,
            settings={"dag_id": operator.dag_id, "task_id": operator.task_id},
        )
        enroller = Enroller(campaign_id, ANNOUNCEMENT, once_per="once_key")
        row = Row(operator.visitor_id, {"once_key": once_key, "text": operator.text, **sender})
        enrol(ledger, campaign_id, [row], enroller)
        rules = task.rules(
            reserve=0, max_in_flight=1, max_failure_share=1.0, resend_doubts=operator.on_doubt == "resend"
        )
        engine = SendEngine(ledger, campaign_id, rules)
        engine.begin(resumed=resumed)
        if before is not None:
            engine.go_on(before)
        task.drive(engine)
        return _result(_found(ledger, campaign_id, once_key, enroller.draw(once_key)[0]), task, once_key)


def _campaign_of(operator: SendPushedMessageOperator) -> str:
    """Name the task's campaign, in a way that no other task's name makes; by a hash where the names are long."""
    name = f"{operator.dag_id}/{operator.task_id}"
    if len(name) > 200:
        name = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    return f"once:{name}"


def _found(ledger: Ledger, campaign_id: str, once_key: str, rank: int) -> Delivery:
    def is_it(delivery: Delivery) -> bool:
        # A forgotten visitor's has lost its key, and is known by its rank.
        return delivery.key == once_key or (delivery.rank == rank and delivery.visitor_id is None)

    unsent = ledger.deliveries(campaign_id, states=set(State) - {State.SENT})
    return next(filter(is_it, chain(ledger.sent(campaign_id, after=rank - 1, limit=1), unsent)))


def _result(delivery: Delivery, task: CampaignTask, once_key: str) -> dict[str, Any]:
    told = {"onceKey": once_key, "visitorId": delivery.visitor_id, "isPushed": True}
    match delivery.state:
        case State.SENT | State.WITHDRAWN:
            return {"id": delivery.message_ids[0] if delivery.message_ids else None, **told}
        case State.SKIPPED:
            raise AirflowSkipException(
                f"Not sent: {delivery.reason}. This once key stays skipped. To write after all, take another "
                "once_key; where the visitor is on the ledger's list, first take them off: "
                f"`{task.place.command('campaigns', 'unsuppress', 'VISITOR')}`."
            )
        case State.IN_DOUBT:
            raise AirflowFailException(
                f"Nobody knows whether the message of this once key was delivered ({delivery.reason}), so it is not "
                "sent again. Look into the visitor's chat in Brevo; then say what you found: "
                f"`{task.place.command('campaigns', 'settle', task.campaign_id, 'ONCE_KEY', '--sent')}` "
                "(or --not-sent), and clear this task."
            )
        case _:
            raise AirflowFailException(
                f"The message of this once key was refused: {delivery.reason}. Its text and sender stay those of the "
                "first try: to change them, take another once_key. If Brevo or the account was at fault, run "
                f"`{task.place.command('campaigns', 'retry', task.campaign_id)}` and clear this task."
            )
