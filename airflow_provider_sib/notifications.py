"""A notifier: tell a visitor from a callback or a deadline alert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseNotifier

from airflow_provider_sib.hooks import SibConversationsHook
from airflow_provider_sib.provider_info import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context


class SibNotifier(BaseNotifier):
    """Send a visitor a pushed message when a DAG or task succeeds, fails or misses its deadline.

    Airflow runs a callback once and does not try it again; so this sends at most once, and what fails is told in
    the log of the process that ran the callback. It waits a few seconds at most for an exhausted quota, since
    callbacks must be short.

    :param visitor_id: the visitor's id (templated); for several visitors give a list of notifiers.
    :param text: the message (templated).
    :param agent_id: the agent who writes (templated), else as the connection says.
    :param group_id: a group of which a random agent writes (templated).
    :param sib_conn_id: the connection (templated).
    """

    template_fields: Sequence[str] = ("visitor_id", "text", "agent_id", "group_id", "sib_conn_id")

    def __init__(
        self,
        *,
        visitor_id: str,
        text: str,
        agent_id: str | None = None,
        group_id: str | None = None,
        sib_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.visitor_id = visitor_id
        self.text = text
        self.agent_id = agent_id
        self.group_id = group_id
        self.sib_conn_id = sib_conn_id

    def notify(self, context: Context) -> None:  # noqa: ARG002 - the signature is Airflow's
        """Send the message; for callbacks of DAGs and tasks.

        :raises ConversationsError: when it was not sent, or nobody knows.
        """
        with SibConversationsHook(self.sib_conn_id, rate_limit_wait_seconds=5) as hook:
            message = hook.send_pushed_message(
                self.visitor_id, self.text, agent_id=self.agent_id, group_id=self.group_id
            )
        self.log.info("Sent pushed message %s.", message.id)

    async def async_notify(self, context: Context) -> None:  # noqa: ARG002 - the signature is Airflow's
        """Send the message without blocking; for deadline alerts in the triggerer.

        :raises ConversationsError: when it was not sent, or nobody knows.
        """
        settings = await SibConversationsHook(self.sib_conn_id).aget_settings()
        call = settings.send_pushed_message(
            self.visitor_id, self.text, agent_id=self.agent_id, group_id=self.group_id
        )
        async with settings.async_client(rate_limit_wait_seconds=5) as client:
            message = (await client.perform(call)).value
        self.log.info("Sent pushed message %s.", message.id)
