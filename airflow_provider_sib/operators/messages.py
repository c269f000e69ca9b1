"""Operators for single messages: one operation of the API each, as a task.

All of them template their texts and ids, can be mapped with ``.expand()``, return plain dicts whose keys are
XComs of their own (``send.output["id"]``), and defer when Brevo's quota is used up: a refused call (429) was
not executed, so calling again later risks nothing, and no retry is used up.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

from airflow.sdk import BaseOperator

from airflow_provider_sib._compat import (
    AirflowFailException,
    AirflowSkipException,
    as_long_as_the_run,
    task_state_store,
)
from airflow_provider_sib.api.errors import (
    ConversationsError,
    NotFound,
    RateLimited,
    ServerError,
    TransportError,
    UnexpectedResponse,
)
from airflow_provider_sib.arguments import boolean
from airflow_provider_sib.hooks import SibConversationsHook, VisitorNotAllowed, failing_for_good
from airflow_provider_sib.provider_info import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from airflow.sdk import Context

    from airflow_provider_sib.api.calls import Call
    from airflow_provider_sib.api.models import Message
    from airflow_provider_sib.hooks import ConnectionSettings

OnDoubt = Literal["fail", "resend"]

# How long to wait for a refused quota whose reset Brevo does not tell. Brevo documents hourly quotas
# (https://developers.brevo.com/docs/api-limits), so a twelfth of an hour wastes little and asks rarely.
WAIT_WITHOUT_RESET_SECONDS = 300.0

# One ping keeps an agent online for two minutes at least
# (https://developers.brevo.com/reference/sets-agents-status-to-online-for-23-minutes).
ONLINE_AFTER_PING_SECONDS = 120.0

_ATTEMPT_KEY = "airflow_provider_sib_attempt"


class _ConversationsOperator(BaseOperator):
    """Run one operation through the hook; what all operators of this module share.

    :param sib_conn_id: the connection (templated).
    """

    # Only texts kept in files of their own kind: Airflow applies these endings to every template field.
    template_ext: Sequence[str] = (".md.j2", ".txt.j2")
    template_fields_renderers: ClassVar[dict[str, str]] = {"text": "md"}
    ui_color = "#d8f0e3"

    def __init__(
        self, *, sib_conn_id: str = DEFAULT_CONN_ID, multiple_outputs: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(multiple_outputs=multiple_outputs, **kwargs)
        self.sib_conn_id = sib_conn_id

    def execute(self, context: Context, event: Any = None) -> dict[str, Any]:  # noqa: ARG002 - a deferral's event
        """Run the operation, after a deferral again from the start."""
        with failing_for_good(), SibConversationsHook(self.sib_conn_id) as hook:
            try:
                return self._run(hook, context)
            except RateLimited as error:
                self._defer_until_reset(error)
            except VisitorNotAllowed as error:
                raise AirflowSkipException(str(error)) from error

    @abstractmethod
    def _run(self, hook: SibConversationsHook, context: Context) -> dict[str, Any]:
        """Do the operation itself and give the task's result."""

    def _defer_until_reset(self, error: RateLimited) -> NoReturn:
        from airflow.providers.standard.triggers.temporal import DateTimeTrigger

        # A second more than Brevo says: its seconds are whole ones.
        wait = WAIT_WITHOUT_RESET_SECONDS if error.reset_in is None else error.reset_in + 1
        moment = datetime.now(UTC) + timedelta(seconds=max(wait, 10))
        self.log.info("The quota is used up; deferring until %s. %s", moment.isoformat("T", "seconds"), error)
        self.defer(trigger=DateTimeTrigger(moment=moment), method_name="execute")


class _SendOperator(_ConversationsOperator):
    """Send one message at most once: the intent to send is kept before the call, its result after it."""

    visitor_id: str

    def __init__(self, *, on_doubt: OnDoubt = "fail", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if on_doubt not in ("fail", "resend"):
            raise ValueError(f'on_doubt must be "fail" or "resend", not {on_doubt!r}.')
        self.on_doubt = on_doubt

    @abstractmethod
    def _call(self, settings: ConnectionSettings) -> Call[Message]:
        """Describe the message."""

    def _run(self, hook: SibConversationsHook, context: Context) -> dict[str, Any]:
        """Send, unless an earlier try of this task already did or may have.

        The text is not compared: a template may render to another one at every try. One task instance sends one
        message to a visitor.
        """
        store = task_state_store(context)
        if store is None:
            return self._sent(hook.prepare(self._call(hook.settings)))
        visitor = hashlib.sha256(str(self.visitor_id).encode(errors="surrogatepass")).hexdigest()
        earlier = store.get(_ATTEMPT_KEY)
        if earlier and earlier["visitor"] == visitor:
            if message := earlier.get("message"):
                self.log.info(
                    "Not sent again: this task sent message %s at %s. To change it, use an update operator; to "
                    "send another, trigger a new DAG run.",
                    message["id"],
                    earlier["at"],
                )
                return dict(message)
            if self.on_doubt == "fail":
                raise AirflowFailException(
                    f"An earlier try of this task began to send this message at {earlier['at']} and never learnt "
                    "whether Brevo took it, so it is not sent again. Look into the visitor's chat in Brevo. If the "
                    "message is missing, trigger a new DAG run, or run this task again with on_doubt='resend'; if "
                    "it is there, mark this task as success."
                )
        # Before the attempt is kept: what fails here has surely sent nothing, and must leave no doubt.
        send = hook.prepare(self._call(hook.settings))
        attempt = {"visitor": visitor, "at": datetime.now(UTC).isoformat("T", "seconds")}
        retention = as_long_as_the_run()
        store.set(_ATTEMPT_KEY, attempt, retention=retention)
        try:
            result = self._sent(send)
        except ConversationsError as error:
            if not _maybe_sent(error):
                store.delete(_ATTEMPT_KEY)
            raise
        store.set(_ATTEMPT_KEY, attempt | {"message": result}, retention=retention)
        return result

    def _sent(self, send: Callable[[], Message]) -> dict[str, Any]:
        try:
            message = send()
        except UnexpectedResponse as error:
            if error.message_id is None:
                raise
            # Brevo took the message: failing here would make a retry send it again.
            self.log.warning("Sent, but Brevo's answer could only be read in part: %s", error)
            return {"id": error.message_id}
        self.log.info("Sent message %s.", message.id)
        return message.as_dict()


def _maybe_sent(error: ConversationsError) -> bool:
    if isinstance(error, TransportError):
        return error.maybe_delivered
    return isinstance(error, ServerError | UnexpectedResponse)


class SendPushedMessageOperator(_SendOperator):
    """Send an automated message to one visitor: an order status, a new feature.

    Without agent and group the connection's own are taken; without those Brevo picks a random agent. To write to
    many visitors use a campaign: a mapped task per visitor spends the quota on refused calls.
    https://developers.brevo.com/reference/send-an-automated-message-to-a-visitor

    On Airflow 3.3 and later a retry or clear of the task never repeats a message by itself: the attempt is kept
    in the task's state store, as long as the DAG run. With ``[state_store] clear_on_success`` Airflow forgets it when
    the task succeeds, and a clear then sends again. Airflow 3.1 and 3.2 have no such store: there a retry after a lost
    answer sends again, so leave ``retries`` at 0 where a second message would be worse than none.

    :param visitor_id: the visitor's id (templated).
    :param text: the message (templated; also a file ``.md.j2`` or ``.txt.j2``).
    :param agent_id: the agent who writes (templated); not together with ``group_id``.
    :param group_id: a group of which a random agent writes (templated).
    :param once_key: what this message is once per, such as ``"order-17-shipped"`` (templated). With it, the campaigns'
        ledger remembers, on every version of Airflow and over all runs of this task: a key that was sent is not
        sent again, and the earlier message's id is returned.
    :param ledger_conn_id: with ``once_key``: Airflow connection of the ledger's database (templated); None: ``[sib]
        ledger_conn_id``, else a file on this machine.
    :param on_doubt: what a retry does when nobody knows whether the earlier try was delivered: ``"fail"`` fails
        the task and says so, ``"resend"`` sends again.
    :param sib_conn_id: the connection (templated).
    :return: (XCom) the message as a dict of Brevo's fields, each field an XCom of its own; with ``once_key`` its
        ``id``, ``visitorId``, ``isPushed`` and ``onceKey``.
    :raises AirflowSkipException: when the connection's ``allowed_visitors`` leaves the visitor out.
    :raises AirflowFailException: when the connection or the request is wrong, or the outcome is in doubt.
    """

    template_fields: Sequence[str] = (
        "visitor_id",
        "text",
        "agent_id",
        "group_id",
        "once_key",
        "ledger_conn_id",
        "sib_conn_id",
    )

    def __init__(
        self,
        *,
        visitor_id: str,
        text: str,
        agent_id: str | None = None,
        group_id: str | None = None,
        once_key: str | None = None,
        ledger_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.visitor_id = visitor_id
        self.text = text
        self.agent_id = agent_id
        self.group_id = group_id
        self.once_key = once_key
        self.ledger_conn_id = ledger_conn_id

    def execute(
        self, context: Context, event: Any = None, before: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Send; after a deferral go on, or, without a once key, again from the start."""
        if self.once_key is None:
            return super().execute(context, event)
        from airflow_provider_sib.operators.once import send_once

        try:
            return send_once(self, self.once_key, resumed=event is not None, before=before)
        except VisitorNotAllowed as error:
            raise AirflowSkipException(str(error)) from error

    def _call(self, settings: ConnectionSettings) -> Call[Message]:
        return settings.send_pushed_message(
            self.visitor_id, self.text, agent_id=self.agent_id, group_id=self.group_id
        )


class SendMessageOperator(_SendOperator):
    """Send a message as an agent, into a visitor's existing conversation.

    The agent is named by ``agent_id``, or by ``agent_email``, ``agent_name`` and ``received_from`` together;
    else the connection's own agent is taken. Retries behave as of :class:`SendPushedMessageOperator`.
    https://developers.brevo.com/reference/send-a-message-as-an-agent

    :param visitor_id: the visitor's id (templated).
    :param text: the message (templated; also a file ``.md.j2`` or ``.txt.j2``).
    :param agent_id: the agent's id (templated).
    :param agent_email: the agent's e-mail address (templated); Brevo makes a dummy agent for an unknown one.
    :param agent_name: the agent's name (templated).
    :param received_from: your mark, by which a webhook's receiver knows your own messages (templated).
    :param on_doubt: as of :class:`SendPushedMessageOperator`.
    :param sib_conn_id: the connection (templated).
    :return: (XCom) the message as a dict of Brevo's fields, each field an XCom of its own.
    :raises AirflowSkipException: when the connection's ``allowed_visitors`` leaves the visitor out.
    :raises AirflowFailException: when the connection or the request is wrong, or the outcome is in doubt.
    """

    template_fields: Sequence[str] = (
        "visitor_id",
        "text",
        "agent_id",
        "agent_email",
        "agent_name",
        "received_from",
        "sib_conn_id",
    )

    def __init__(
        self,
        *,
        visitor_id: str,
        text: str,
        agent_id: str | None = None,
        agent_email: str | None = None,
        agent_name: str | None = None,
        received_from: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.visitor_id = visitor_id
        self.text = text
        self.agent_id = agent_id
        self.agent_email = agent_email
        self.agent_name = agent_name
        self.received_from = received_from

    def _call(self, settings: ConnectionSettings) -> Call[Message]:
        return settings.send_message(
            self.visitor_id,
            self.text,
            agent_id=self.agent_id,
            agent_email=self.agent_email,
            agent_name=self.agent_name,
            received_from=self.received_from,
        )


class UpdatePushedMessageOperator(_ConversationsOperator):
    """Replace the text of a pushed message; repeating it is harmless.

    https://developers.brevo.com/reference/update-an-automated-message

    :param message_id: the message's id, as the sending task returned it (templated).
    :param text: the new text (templated; also a file ``.md.j2`` or ``.txt.j2``).
    :param sib_conn_id: the connection (templated).
    :return: (XCom) the message as a dict of Brevo's fields, each field an XCom of its own.
    :raises NotFound: when there is no such message.
    :raises AirflowFailException: when the connection or the request is wrong.
    """

    template_fields: Sequence[str] = ("message_id", "text", "sib_conn_id")

    def __init__(self, *, message_id: str, text: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.message_id = message_id
        self.text = text

    def _run(self, hook: SibConversationsHook, context: Context) -> dict[str, Any]:  # noqa: ARG002 - shared signature
        return hook.update_pushed_message(self.message_id, self.text).as_dict()


class UpdateMessageOperator(UpdatePushedMessageOperator):
    """Replace the text of an agent's message; parameters as of :class:`UpdatePushedMessageOperator`.

    https://developers.brevo.com/reference/update-a-message-sent-by-an-agent
    """

    def _run(self, hook: SibConversationsHook, context: Context) -> dict[str, Any]:  # noqa: ARG002 - shared signature
        return hook.update_message(self.message_id, self.text).as_dict()


class _OfKindOperator(_ConversationsOperator):
    """Do something with a message of a kind."""

    template_fields: Sequence[str] = ("message_id", "sib_conn_id")

    def __init__(
        self, *, message_id: str, kind: Literal["pushed", "agent"] = "pushed", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if kind not in ("pushed", "agent"):
            raise ValueError(f'kind must be "pushed" or "agent", not {kind!r}.')
        self.message_id = message_id
        self.kind = kind


class DeleteMessageOperator(_OfKindOperator):
    """Delete a message from the conversation; repeating it is harmless.

    The API key needs the permission "All": Brevo counts deleting apart from reading and writing.
    https://developers.brevo.com/reference/delete-an-automated-message

    :param message_id: the message's id, as the sending task returned it (templated).
    :param kind: ``"pushed"`` for a pushed message, ``"agent"`` for an agent's message.
    :param missing_ok: whether a message that is already gone is a success.
    :param sib_conn_id: the connection (templated).
    :return: (XCom) ``{"id": str, "deleted": bool}``; ``deleted`` is False when it was already gone.
    :raises NotFound: when there is no such message and ``missing_ok`` is False.
    :raises AirflowFailException: when the connection or the request is wrong.
    """

    def __init__(self, *, missing_ok: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.missing_ok = boolean("missing_ok", missing_ok)

    def _run(self, hook: SibConversationsHook, context: Context) -> dict[str, Any]:  # noqa: ARG002 - shared signature
        delete = hook.delete_pushed_message if self.kind == "pushed" else hook.delete_message
        try:
            delete(self.message_id)
        except NotFound:
            if not self.missing_ok:
                raise
            self.log.info("Message %s is already gone.", self.message_id)
            return {"id": self.message_id, "deleted": False}
        self.log.info("Deleted message %s.", self.message_id)
        return {"id": self.message_id, "deleted": True}


class GetMessageOperator(_OfKindOperator):
    """Get a message.

    https://developers.brevo.com/reference/get-an-automated-message

    :param message_id: the message's id (templated).
    :param kind: ``"pushed"`` for a pushed message, ``"agent"`` for a message of a conversation.
    :param sib_conn_id: the connection (templated).
    :return: (XCom) the message as a dict of Brevo's fields, each field an XCom of its own.
    :raises NotFound: when there is no such message.
    :raises AirflowFailException: when the connection or the request is wrong.
    """

    def _run(self, hook: SibConversationsHook, context: Context) -> dict[str, Any]:  # noqa: ARG002 - shared signature
        get = hook.get_pushed_message if self.kind == "pushed" else hook.get_message
        return get(self.message_id).as_dict()


class AgentOnlineOperator(_ConversationsOperator):
    """Keep an agent online for a while, or until a moment: one ping a minute.

    The pings are sent by the triggerer, no worker slot is held. An hour costs 60 calls of the account's quota,
    which most plans limit to 100 an hour. The agent goes offline two to three minutes after the last ping; Brevo
    has no call for it. A retry, a clear, and a deferral until the quota is renewed count ``duration`` anew.
    https://developers.brevo.com/reference/sets-agents-status-to-online-for-23-minutes

    :param duration: how long, as a timedelta or seconds; this or ``until``.
    :param until: until when, as an aware datetime or ISO 8601 with offset (templated).
    :param agent_id: the agent's id (templated); or the next three together.
    :param agent_email: the agent's e-mail address (templated); Brevo makes a dummy agent for an unknown one.
    :param agent_name: the agent's name (templated).
    :param received_from: your mark (templated).
    :param sib_conn_id: the connection (templated).
    :return: (XCom) ``{"pings": int, "failed": int}``: pings that Brevo took, and pings that it did not.
    :raises AirflowFailException: when the connection, the agent or the moment is wrong.
    """

    template_fields: Sequence[str] = (
        "until",
        "agent_id",
        "agent_email",
        "agent_name",
        "received_from",
        "sib_conn_id",
    )

    def __init__(
        self,
        *,
        duration: timedelta | float | None = None,
        until: datetime | str | None = None,
        agent_id: str | None = None,
        agent_email: str | None = None,
        agent_name: str | None = None,
        received_from: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (duration is None) == (until is None):
            raise ValueError("Give duration or until, one of them: how long the agent is kept online.")
        self.duration = duration
        self.until = until
        self.agent_id = agent_id
        self.agent_email = agent_email
        self.agent_name = agent_name
        self.received_from = received_from

    def execute(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Ping once here, so that a wrong agent fails at once, and then in the triggerer."""
        if isinstance(event, dict):  # of our trigger; a wait for the quota comes back with a moment
            if event["status"] == "error":
                raise AirflowFailException(event["error"])
            return {"pings": event["pings"] + 1, "failed": event["failed"]}
        return super().execute(context, event)

    def _run(self, hook: SibConversationsHook, context: Context) -> dict[str, Any]:  # noqa: ARG002 - shared signature
        from airflow_provider_sib.triggers import AgentOnlineTrigger

        until = self._until()
        if until <= datetime.now(UTC):
            self.log.info("The moment %s has passed; nobody is pinged.", until.isoformat())
            return {"pings": 0, "failed": 0}
        agent = {
            name: value
            for name in ("agent_id", "agent_email", "agent_name", "received_from")
            if (value := getattr(self, name)) is not None
        }
        hook.ping_agent_online(**agent)
        if (until - datetime.now(UTC)).total_seconds() < ONLINE_AFTER_PING_SECONDS:
            return {"pings": 1, "failed": 0}
        self.defer(
            trigger=AgentOnlineTrigger(agent=agent, until=until.isoformat(), sib_conn_id=self.sib_conn_id),
            method_name="execute",
        )

    def _until(self) -> datetime:
        if self.duration is not None:
            length = (
                self.duration if isinstance(self.duration, timedelta) else timedelta(seconds=self.duration)
            )
            return datetime.now(UTC) + length
        try:
            until = (
                self.until if isinstance(self.until, datetime) else datetime.fromisoformat(str(self.until))
            )
        except ValueError:
            until = None
        if until is None or until.tzinfo is None:
            raise AirflowFailException(
                f"until must be a moment with a time zone, such as 2026-11-23T18:00:00+01:00, not {self.until!r}."
            )
        return until
