"""Describe each call to Brevo as a value; nothing is sent here.

What Brevo's documents demand is checked before anything is sent, and a broken rule is an
:class:`~airflow_provider_sib.api.errors.InvalidRequest` with status None that names the field, never its contents.
https://developers.brevo.com/reference/send-a-message-as-an-agent
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar
from urllib.parse import quote

from airflow_provider_sib.api.errors import InvalidRequest
from airflow_provider_sib.api.models import Account, Message, VisitorGroup, reader

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """Describe one call.

    :param name: what it does, such as ``send a pushed message``; for error texts.
    :param method: HTTP method.
    :param path: path below the base URL, percent-encoded.
    :param body: JSON object to send; None sends no body.
    :param read: reads the body of a good answer; a ValueError says that it can't.
    :param repeatable: True if doing it twice is the same as doing it once.
    """

    name: str
    method: str
    path: str
    body: Mapping[str, str | None] | None
    read: Callable[[bytes], T]
    repeatable: bool


_MESSAGES = "/conversations/messages"
_PUSHED_MESSAGES = "/conversations/pushedMessages"

_read_message = reader(Message)
_read_group = reader(VisitorGroup)
_read_account = reader(Account)


def _read_nothing(body: bytes) -> None:  # noqa: ARG001  (a reader like the others; Brevo documents an empty body)
    return None


def send_message(
    visitor_id: str,
    text: str,
    *,
    agent_id: str | None = None,
    agent_email: str | None = None,
    agent_name: str | None = None,
    received_from: str | None = None,
) -> Call[Message]:
    """Send a message to a visitor in an agent's name.

    https://developers.brevo.com/reference/send-a-message-as-an-agent: the agent is named by ``agent_id``, or by
    ``agent_email``, ``agent_name`` and ``received_from``, all three; an unknown e-mail makes a dummy agent.

    :param visitor_id: from a webhook (``visitor.id``), or what your page gave the widget.
    :param text: what to say.
    :param agent_id: the agent, first way.
    :param agent_email: the agent, second way.
    :param agent_name: the agent's name, second way.
    :param received_from: your mark, by which you know your own messages again in a webhook.
    :return: the call; its result is the message.
    :raises InvalidRequest: if a rule is broken.
    """
    name = "send a message"
    body = _fields(name, visitorId=visitor_id, text=text)
    body |= _agent(name, agent_id, agent_email, agent_name, received_from)
    return Call(name, "POST", _MESSAGES, body, _read_message, repeatable=False)


def get_message(message_id: str) -> Call[Message]:
    """Read a message.

    :param message_id: the id that sending returned.
    :return: the call; its result is the message.
    :raises InvalidRequest: if a rule is broken.
    """
    return _get("get a message", _MESSAGES, message_id)


def update_message(message_id: str, text: str) -> Call[Message]:
    """Replace the text of an agent's message.

    :param message_id: the id that sending returned.
    :param text: the new text.
    :return: the call; its result is the message.
    :raises InvalidRequest: if a rule is broken.
    """
    return _update("update a message", _MESSAGES, message_id, text)


def delete_message(message_id: str) -> Call[None]:
    """Delete an agent's message.

    :param message_id: the id that sending returned.
    :return: the call; it has no result.
    :raises InvalidRequest: if a rule is broken.
    """
    return _delete("delete a message", _MESSAGES, message_id)


def send_pushed_message(
    visitor_id: str, text: str, *, agent_id: str | None = None, group_id: str | None = None
) -> Call[Message]:
    """Send an automated message to a visitor.

    https://developers.brevo.com/reference/send-an-automated-message-to-a-visitor: an agent writes, or a random
    agent of a group, or, without either, a random agent. What both together mean is not documented.

    :param visitor_id: from a webhook (``visitor.id``), or what your page gave the widget.
    :param text: what to say.
    :param agent_id: the agent in whose name it goes.
    :param group_id: the group of which a random agent writes.
    :return: the call; its result is the message.
    :raises InvalidRequest: if a rule is broken.
    """
    name = "send a pushed message"
    body = _fields(name, visitorId=visitor_id, text=text)
    if agent_id is not None and group_id is not None:
        _refuse(name, "agent_id and group_id are both given; give one of them, or neither for a random agent")
    if agent_id is not None:
        body["agentId"] = _given(name, "agent_id", agent_id)
    if group_id is not None:
        body["groupId"] = _given(name, "group_id", group_id)
    return Call(name, "POST", _PUSHED_MESSAGES, body, _read_message, repeatable=False)


def get_pushed_message(message_id: str) -> Call[Message]:
    """Read an automated message.

    :param message_id: the id that sending returned.
    :return: the call; its result is the message.
    :raises InvalidRequest: if a rule is broken.
    """
    return _get("get a pushed message", _PUSHED_MESSAGES, message_id)


def update_pushed_message(message_id: str, text: str) -> Call[Message]:
    """Replace the text of an automated message.

    :param message_id: the id that sending returned.
    :param text: the new text.
    :return: the call; its result is the message.
    :raises InvalidRequest: if a rule is broken.
    """
    return _update("update a pushed message", _PUSHED_MESSAGES, message_id, text)


def delete_pushed_message(message_id: str) -> Call[None]:
    """Delete an automated message.

    :param message_id: the id that sending returned.
    :return: the call; it has no result.
    :raises InvalidRequest: if a rule is broken.
    """
    return _delete("delete a pushed message", _PUSHED_MESSAGES, message_id)


def ping_agent_online(
    *,
    agent_id: str | None = None,
    agent_email: str | None = None,
    agent_name: str | None = None,
    received_from: str | None = None,
) -> Call[None]:
    """Set an agent online for two to three minutes; there is no call that sets one offline.

    https://developers.brevo.com/reference/sets-agents-status-to-online-for-23-minutes: ping once a minute as long
    as the agent shall count as online. The agent is named as for :func:`send_message`.

    :param agent_id: the agent, first way.
    :param agent_email: the agent, second way.
    :param agent_name: the agent's name, second way.
    :param received_from: your mark, second way.
    :return: the call; it has no result.
    :raises InvalidRequest: if a rule is broken.
    """
    name = "set an agent online"
    body = _agent(name, agent_id, agent_email, agent_name, received_from)
    return Call(name, "POST", "/conversations/agentOnlinePing", body, _read_nothing, repeatable=True)


def set_visitor_group(visitor_id: str, group_id: str | None) -> Call[VisitorGroup]:
    """Assign a visitor to a group of agents, or take the visitor out of its group.

    https://developers.brevo.com/reference/set-visitor-group-assignment documents ``groupId`` only, and no way to
    say which visitor is meant, although a visitor can be "not found". The visitor goes into the body as
    ``visitorId``, by analogy with the other calls: this has not been tried on a live account.

    :param visitor_id: the visitor.
    :param group_id: the group; None takes the visitor out.
    :return: the call; its result is the assignment.
    :raises InvalidRequest: if a rule is broken.
    """
    name = "set a visitor's group"
    body: dict[str, str | None] = {
        "groupId": None if group_id is None else _given(name, "group_id", group_id),
        "visitorId": _given(name, "visitor_id", visitor_id),
    }
    return Call(name, "PUT", "/conversations/visitorGroup", body, _read_group, repeatable=True)


def get_account() -> Call[Account]:
    """Read the account the key belongs to. https://developers.brevo.com/reference/get-account.

    A key restricted to conversations may be refused here although it works there.

    :return: the call; its result is the account.
    """
    return Call("get the account", "GET", "/account", None, _read_account, repeatable=True)


def _get(name: str, route: str, message_id: str) -> Call[Message]:
    return Call(name, "GET", _path(name, route, message_id), None, _read_message, repeatable=True)


def _update(name: str, route: str, message_id: str, text: str) -> Call[Message]:
    path = _path(name, route, message_id)
    return Call(name, "PUT", path, _fields(name, text=text), _read_message, repeatable=True)


def _delete(name: str, route: str, message_id: str) -> Call[None]:
    return Call(name, "DELETE", _path(name, route, message_id), None, _read_nothing, repeatable=True)


def _path(name: str, route: str, message_id: str) -> str:
    message_id = _given(name, "message_id", message_id)
    if message_id in (".", ".."):
        # RFC 3986, 6.2.2: "%2E" means ".", so any proxy or gateway may resolve it as a step in the path,
        # and the call would reach another route.
        _refuse(
            name, f'message_id is "{message_id}", which no URL can carry as an id; give the id of a message'
        )
    return f"{route}/{quote(message_id, safe='')}"


def _fields(name: str, **fields: str) -> dict[str, str | None]:
    argument = {"visitorId": "visitor_id", "text": "text"}
    return {field: _given(name, argument[field], value) for field, value in fields.items()}


def _agent(
    name: str,
    agent_id: str | None,
    agent_email: str | None,
    agent_name: str | None,
    received_from: str | None,
) -> dict[str, str | None]:
    way_out = "name the agent by agent_id, or by agent_email, agent_name and received_from, all three"
    by_email = {"agent_email": agent_email, "agent_name": agent_name}
    body: dict[str, str | None] = {}
    if agent_id is not None:
        if any(value is not None for value in by_email.values()):
            _refuse(name, f"agent_id is given together with agent_email or agent_name; {way_out}")
        body["agentId"] = _given(name, "agent_id", agent_id)
        if received_from is not None:
            body["receivedFrom"] = _given(name, "received_from", received_from)
        return body
    missing = [key for key, value in {**by_email, "received_from": received_from}.items() if value is None]
    if len(missing) == 3:
        _refuse(name, f"no agent is given; {way_out}")
    if missing:
        _refuse(name, f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; {way_out}")
    return {
        "agentEmail": _given(name, "agent_email", agent_email),
        "agentName": _given(name, "agent_name", agent_name),
        "receivedFrom": _given(name, "received_from", received_from),
    }


_WAYS_OUT = {
    "visitor_id": "give the visitor's id, from a webhook or as your page gave it to the widget",
    "text": "give the text to show",
    "message_id": "give the id that sending the message returned",
    "agent_id": "give the agent's id, or leave it out",
    "group_id": "give the group's id, or None",
    "agent_email": "give the agent's e-mail address",
    "agent_name": "give the agent's name",
    "received_from": "give your mark, or leave it out where agent_id names the agent",
}


def _given(name: str, field: str, value: object) -> str:
    if not isinstance(value, str):
        _refuse(name, f"{field} is of type {type(value).__name__}, not a string; {_WAYS_OUT[field]}")
    if not value or value.isspace():
        kind = "blank" if value else "an empty string"
        _refuse(name, f"{field} is {kind}; {_WAYS_OUT[field]}")
    try:
        value.encode()
    except UnicodeEncodeError:
        _refuse(
            name,
            f"{field} holds half of a surrogate pair, which is no character and has no form in UTF-8; "
            "decode its source with the right encoding",
        )
    return value


def _refuse(name: str, rule: str) -> NoReturn:
    raise InvalidRequest(f"{rule}.", call=name)


def dressed(method: F, call: Callable[..., Call[Any]]) -> F:
    """Give a client's method the name, the description and the signature of the call it performs.

    :param method: a function whose first argument is the client.
    :param call: a function of this module.
    :return: the method.
    """
    signature = inspect.signature(call)
    client = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__name__ = method.__qualname__ = call.__name__
    method.__doc__ = call.__doc__
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]  # this is where inspect looks
        parameters=[client, *signature.parameters.values()], return_annotation=signature.empty
    )
    return method
