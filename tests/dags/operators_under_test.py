"""DAGs that the tests run with dag.test(): what only a running Airflow shows of the operators."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, task

from airflow_provider_sib.notifications import SibNotifier
from airflow_provider_sib.operators import (
    DeleteMessageOperator,
    GetMessageOperator,
    SendMessageOperator,
    SendPushedMessageOperator,
    UpdateMessageOperator,
    UpdatePushedMessageOperator,
)
from airflow_provider_sib.sensors import MessageSensor

VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"
AGENT = "d9nKoegKSjmCtyK78"

with DAG("a_pushed_messages_life", schedule=None, params={"name": "Ada"}) as a_pushed_messages_life:
    send = SendPushedMessageOperator(task_id="send", visitor_id=VISITOR, text="greeting.md.j2")
    seen = MessageSensor(task_id="seen", message_id=send.output["id"], poke_interval=1, timeout=5)
    edit = UpdatePushedMessageOperator(
        task_id="edit", message_id="{{ ti.xcom_pull('send')['id'] }}", text="Bye, {{ params.name }}!"
    )
    get = GetMessageOperator(task_id="get", message_id=send.output["id"])
    withdraw = DeleteMessageOperator(task_id="withdraw", message_id=send.output["id"])
    gone = MessageSensor(task_id="gone", message_id=send.output["id"], until="gone", timeout=5)
    seen >> edit >> get >> withdraw >> gone

with DAG("an_agents_messages_life", schedule=None) as an_agents_messages_life:
    said = SendMessageOperator(task_id="send", visitor_id=VISITOR, text="Hello", agent_id=AGENT)
    reworded = UpdateMessageOperator(task_id="edit", message_id=said.output["id"], text="Hi")
    got = GetMessageOperator(task_id="get", message_id=reworded.output["id"], kind="agent")
    DeleteMessageOperator(task_id="withdraw", message_id=got.output["id"], kind="agent")

with DAG("mapped", schedule=None) as mapped:
    sends = SendPushedMessageOperator.partial(task_id="send", text="Hello {{ ti.map_index }}").expand(
        visitor_id=["ann", "bob", "cid"]
    )

    @task
    def ids(messages):
        return [message["id"] for message in messages]

    DeleteMessageOperator.partial(task_id="withdraw").expand(message_id=ids(sends.output))

with DAG("retried", schedule=None) as retried:
    SendPushedMessageOperator(
        task_id="send",
        visitor_id=VISITOR,
        # Another text at every try: what is sent once is the message, not its wording.
        text="Try {{ ti.try_number }}",
        retries=2,
        retry_delay=timedelta(0),
    )

with DAG("retried_with_resend", schedule=None) as retried_with_resend:
    SendPushedMessageOperator(
        task_id="send",
        visitor_id=VISITOR,
        text="Try {{ ti.try_number }}",
        on_doubt="resend",
        retries=2,
        retry_delay=timedelta(0),
    )

with DAG("notifying", schedule=None) as notifying:

    @task(on_success_callback=SibNotifier(visitor_id=VISITOR, text="{{ ti.task_id }} is through."))
    def nothing():
        pass

    nothing()
