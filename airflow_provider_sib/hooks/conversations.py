"""The hook: every operation of Brevo Conversations through an Airflow connection."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeVar

from airflow.sdk import BaseHook

from airflow_provider_sib._compat import AirflowFailException, conf
from airflow_provider_sib.api.errors import (
    ConversationsError,
    InvalidRequest,
    NotFound,
    TransportError,
    Unauthorized,
)
from airflow_provider_sib.hooks.connection import ConnectionSettings
from airflow_provider_sib.provider_info import (
    CONN_FIELDS,
    CONN_TYPE,
    DEFAULT_CONN_ID,
    HOOK_NAME,
    UI_FIELD_BEHAVIOUR,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from airflow.sdk import Connection

    from airflow_provider_sib.api.aio import AsyncConversationsClient
    from airflow_provider_sib.api.calls import Call
    from airflow_provider_sib.api.client import ConversationsClient
    from airflow_provider_sib.api.models import Account, Message, VisitorGroup
    from airflow_provider_sib.hooks.quota import SharedQuota

T = TypeVar("T")

# An id no message can have, for the connection test: a key limited to Conversations may not read /account.
PROBE_MESSAGE_ID = "airflow-provider-sib-connection-test"


def defer_after_seconds() -> float:
    """Read ``[sib] defer_after_seconds``: how long a task waits in place before it is deferred.

    :return: seconds, 10 or more.
    :raises ValueError: for less than 10: a deferral that ends within seconds gets its task failed, since
        Airflow's supervisor of the deferred task has not left yet.
    """
    seconds: float = conf.getfloat("sib", "defer_after_seconds", fallback=60.0)
    if seconds < 10:
        raise ValueError(
            f"[sib] defer_after_seconds is {seconds:g}; set it to 10 or more. A task that comes back from a "
            "deferral within seconds is failed by Airflow."
        )
    return seconds


@contextmanager
def failing_for_good() -> Iterator[None]:
    """Turn the errors that no retry can mend into Airflow's own, so that the task fails at once.

    :raises AirflowFailException: for :class:`Unauthorized` (mend the connection) and :class:`InvalidRequest`
        (mend the task).
    """
    try:
        yield
    except (Unauthorized, InvalidRequest) as error:
        raise AirflowFailException(str(error)) from error


class SibConversationsHook(BaseHook):
    """Talk to Brevo Conversations through an Airflow connection.

    The methods raise the errors of :mod:`airflow_provider_sib.api.errors`. A message is never sent twice by a
    call: what surely did not reach Brevo is tried again, an unknown outcome is raised as
    :class:`~airflow_provider_sib.api.errors.TransportError` with ``maybe_delivered``, or as ``ServerError``.
    A refusal for quota (429) is waited out in place when it passes within ``[sib] defer_after_seconds``, and
    raised as ``RateLimited`` otherwise. Where a ledger of campaigns is configured, calls share its account of the
    quota. Use it as a context manager where the open connection to Brevo should
    be closed at once.

    :param sib_conn_id: id of a connection of type ``sib_conversations``.
    :param rate_limit_wait_seconds: another bound for waiting out a 429 in place; 0 raises at once.
    """

    conn_name_attr = "sib_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = CONN_TYPE
    hook_name = HOOK_NAME

    def __init__(
        self,
        sib_conn_id: str = DEFAULT_CONN_ID,
        *,
        rate_limit_wait_seconds: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sib_conn_id = sib_conn_id
        self.rate_limit_wait_seconds = rate_limit_wait_seconds

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Draw the form's own fields on Airflow 3.1 and 3.2; later ones read ``provider_info`` alone."""
        from wtforms import BooleanField, IntegerField, StringField

        kinds = {
            "boolean": BooleanField,
            "integer": IntegerField,
            "number": IntegerField,
            "string": StringField,
        }
        return {
            name: kinds[spec["schema"]["type"][0]](
                spec["label"], description=spec["description"], default=spec["schema"].get("default")
            )
            for name, spec in CONN_FIELDS.items()
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Label the form's standard fields on Airflow 3.1 and 3.2; later ones read ``provider_info`` alone."""
        return {name.replace("-", "_"): value for name, value in UI_FIELD_BEHAVIOUR.items()}

    @cached_property
    def settings(self) -> ConnectionSettings:
        """The connection, typed; warns of what is wrong with it."""
        return self._checked(self.get_connection(self.sib_conn_id))

    async def aget_settings(self) -> ConnectionSettings:
        """Read the connection where waiting must not block: in a trigger or an asynchronous callback."""
        return self._checked(await self.aget_connection(self.sib_conn_id))

    def _checked(self, connection: Connection) -> ConnectionSettings:
        settings = ConnectionSettings.from_connection(connection)
        for problem in settings.problems:
            self.log.warning("Connection %s: %s", self.sib_conn_id, problem)
        return settings

    @cached_property
    def _wait_seconds(self) -> float:
        wait = self.rate_limit_wait_seconds
        return defer_after_seconds() if wait is None else wait

    @cached_property
    def _client(self) -> ConversationsClient:
        return self.settings.client(rate_limit_wait_seconds=self._wait_seconds)

    @cached_property
    def _quota(self) -> SharedQuota | None:
        from airflow_provider_sib.hooks.quota import SharedQuota

        return SharedQuota.configured(self.settings)

    def get_conn(self) -> ConversationsClient:
        """Give the typed client behind this hook, without the connection's defaults and ``allowed_visitors``."""
        return self._client

    @asynccontextmanager
    async def async_client(self) -> AsyncIterator[AsyncConversationsClient]:
        """Open the asynchronous client, for triggers: it never waits for a 429 but raises ``RateLimited``."""
        async with (await self.aget_settings()).async_client() as client:
            yield client

    def close(self) -> None:
        """Close the connections to Brevo and the ledger; the next call opens them again."""
        for name in ("_client", "_quota"):
            if (opened := self.__dict__.pop(name, None)) is not None:
                opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self, call: Call[T]) -> Callable[[], T]:
        """Open the connection and the quota for a call, so that what is wrong with them shows before it is sent.

        :param call: what to do, as :class:`ConnectionSettings` and :mod:`airflow_provider_sib.api.calls` describe it.
        :return: carries the call out and gives its result; raises the errors described at the class.
        """
        client, quota, wait_seconds = self._client, self._quota, self._wait_seconds
        if quota is None:
            return lambda: client.perform(call).value
        return lambda: quota.perform(client.perform, call, wait_seconds=wait_seconds).value

    def _perform(self, call: Call[T]) -> T:
        return self.prepare(call)()

    def send_pushed_message(
        self, visitor_id: str, text: str, *, agent_id: str | None = None, group_id: str | None = None
    ) -> Message:
        """Send an automated message to a visitor.

        Without agent and group the connection's own are taken; without those Brevo picks a random agent.
        https://developers.brevo.com/reference/send-an-automated-message-to-a-visitor

        :param visitor_id: the visitor's id.
        :param text: the message, plain text.
        :param agent_id: the agent who writes; not together with ``group_id``.
        :param group_id: a group of which a random agent writes.
        :return: the message as Brevo answers it, with its ``id``.
        :raises VisitorNotAllowed: when the connection's ``allowed_visitors`` leaves the visitor out.
        :raises ConversationsError: as described at the class.
        """
        return self._perform(
            self.settings.send_pushed_message(visitor_id, text, agent_id=agent_id, group_id=group_id)
        )

    def get_pushed_message(self, message_id: str) -> Message:
        """Get a pushed message.

        :raises NotFound: when there is none of this id.
        """
        from airflow_provider_sib.api import calls

        return self._perform(calls.get_pushed_message(message_id))

    def update_pushed_message(self, message_id: str, text: str) -> Message:
        """Replace a pushed message's text.

        :return: the message as Brevo answers it.
        :raises NotFound: when there is none of this id.
        """
        from airflow_provider_sib.api import calls

        return self._perform(calls.update_pushed_message(message_id, text))

    def delete_pushed_message(self, message_id: str) -> None:
        """Delete a pushed message.

        :raises NotFound: when there is none of this id.
        """
        from airflow_provider_sib.api import calls

        self._perform(calls.delete_pushed_message(message_id))

    def send_message(
        self,
        visitor_id: str,
        text: str,
        *,
        agent_id: str | None = None,
        agent_email: str | None = None,
        agent_name: str | None = None,
        received_from: str | None = None,
    ) -> Message:
        """Send a message as an agent, into an existing visitor's conversation.

        The agent is named by ``agent_id``, or by ``agent_email``, ``agent_name`` and ``received_from`` together;
        else the connection's own agent is taken.
        https://developers.brevo.com/reference/send-a-message-as-an-agent

        :param visitor_id: the visitor's id.
        :param text: the message, plain text.
        :param received_from: your mark, by which a webhook's receiver knows your own messages.
        :return: the message as Brevo answers it, with its ``id``.
        :raises VisitorNotAllowed: when the connection's ``allowed_visitors`` leaves the visitor out.
        :raises ConversationsError: as described at the class.
        """
        return self._perform(
            self.settings.send_message(
                visitor_id,
                text,
                agent_id=agent_id,
                agent_email=agent_email,
                agent_name=agent_name,
                received_from=received_from,
            )
        )

    def get_message(self, message_id: str) -> Message:
        """Get a message of a conversation, an agent's or a visitor's.

        :raises NotFound: when there is none of this id.
        """
        from airflow_provider_sib.api import calls

        return self._perform(calls.get_message(message_id))

    def update_message(self, message_id: str, text: str) -> Message:
        """Replace the text of an agent's message.

        :return: the message as Brevo answers it.
        :raises NotFound: when there is none of this id.
        """
        from airflow_provider_sib.api import calls

        return self._perform(calls.update_message(message_id, text))

    def delete_message(self, message_id: str) -> None:
        """Delete an agent's message.

        :raises NotFound: when there is none of this id.
        """
        from airflow_provider_sib.api import calls

        self._perform(calls.delete_message(message_id))

    def ping_agent_online(
        self,
        *,
        agent_id: str | None = None,
        agent_email: str | None = None,
        agent_name: str | None = None,
        received_from: str | None = None,
    ) -> None:
        """Set an agent online for the next two to three minutes; the agent is named as in :meth:`send_message`.

        https://developers.brevo.com/reference/sets-agents-status-to-online-for-23-minutes
        """
        self._perform(
            self.settings.ping_agent_online(
                agent_id=agent_id, agent_email=agent_email, agent_name=agent_name, received_from=received_from
            )
        )

    def set_visitor_group(self, visitor_id: str, group_id: str | None) -> VisitorGroup:
        """Assign a visitor to a group, or with None to no group.

        Brevo documents no way to say which visitor is meant; ``visitorId`` in the body is a guess
        (https://developers.brevo.com/reference/set-visitor-group-assignment).

        :raises NotFound: when Brevo does not know the visitor.
        """
        from airflow_provider_sib.api import calls

        return self._perform(calls.set_visitor_group(visitor_id, group_id))

    def get_account(self) -> Account:
        """Get the Brevo account of the key; a key limited to Conversations may be refused.

        :raises Unauthorized: when the key may not read the account.
        """
        from airflow_provider_sib.api import calls

        return self._perform(calls.get_account())

    def test_connection(self) -> tuple[bool, str]:
        """Ask Brevo for a message that cannot exist: "not found" proves that the key works.

        The call also works for a key that is restricted to Conversations, which ``GET /account`` would refuse.

        :return: whether the connection works, and a sentence for people; it names the machine that asked,
            since Brevo blocks by address.
        """
        machine = f"Asked from {socket.gethostname()}."
        try:
            settings = ConnectionSettings.from_connection(self.get_connection(self.sib_conn_id))
            with settings.client(rate_limit_wait_seconds=0) as client:
                client.get_message(PROBE_MESSAGE_ID)
        except NotFound as error:
            if not (error.request_id or error.code):
                return False, (
                    f"{settings.base_url} answered, but not as Brevo's API does: is the base URL right? {machine}"
                )
        except TransportError as error:
            return False, f"No answer from {settings.base_url}: {error} {machine}"
        except Unauthorized as error:
            return False, f"Refused: {error} {machine}"
        except (ConversationsError, AirflowFailException, ValueError) as error:
            return False, f"{error} {machine}"
        if settings.problems:
            return False, f"Brevo accepts the key, but: {' '.join(settings.problems)} {machine}"
        return True, f"Brevo accepts the key for Conversations at {settings.base_url}. {machine}"
