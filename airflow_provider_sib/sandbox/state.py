"""What the sandbox holds and how it answers a request. Pure: bytes in, an answer out, time and chance are given.

It promises the routes, statuses, bodies and headers that Brevo documents for Conversations. Where no source says
what Brevo does, a switch decides (``PUT /_sandbox/settings``, ``Sandbox.configure``, or at start the option of the
same name, with dashes):

=========================  ====================  =============================================================
switch                     default               meaning
=========================  ====================  =============================================================
quota                      100                   requests an hour; 401 and 429 use none up
hour_seconds               3600.0                how long the quota's hour lasts; it begins with its first
                                                 request
bucket                     "shared"              one quota for all routes, or "per_route": one for each
rate_headers               true                  whether answers carry x-sib-ratelimit headers (a 401 never
                                                 does)
too_many_requests_body     null                  JSON body of a 429; null is a code and a message made up here
api_key                    "xkeysib-sandbox"     the key with full access
restricted_key             null                  a second key, for Conversations but not for the account
restricted_level           "all"                 what that key may: "read" is GET, "read_write" POST and PUT
                                                 too, "all" DELETE too
unknown_visitor            "accept"              pushed message to an unknown visitor: "accept" makes them
                                                 appear, "reject" is 400
unknown_visitor_for_agent  "reject"              the same for an agent's message
unknown_agent              "reject"              agentId nobody has: 400, or "accept" makes it appear
unknown_group              "reject"              groupId nobody has: 400, or "accept" makes it appear
agent_and_group            "reject"              pushed message with both ids: 400, or "accept", and the agent
                                                 writes
agent_id_and_email         "reject"              both agentId and agentEmail: 400, or "accept", and agentId
                                                 counts
visitor_group_key          "visitorId"           the field of PUT visitorGroup that names the visitor; with
                                                 "none" there is none and every answer is 404
visitor_message_change     400                   status on editing or deleting what a visitor wrote: 400 or
                                                 404
second_delete              404                   status on deleting a deleted message: 404 or 204
pushed_under_messages      false                 whether a pushed message's id also works under /messages
max_text_length            null                  longest text, in characters; longer is 400; null is no limit
html_escaping              true                  whether html has <, > and & escaped; a newline always becomes
                                                 <br>
id_style                   "documented"          17 letters and digits, or "long": <24 hex>_<24 hex>
agent_online_seconds       150.0                 how long a ping keeps an agent online
error_key_order            "code_first"          order of code and message in an error, or "message_first"
missing_message            "{field} is missing"  message of a 400 with code missing_parameter
invalid_message            "{field} is invalid"  message of a 400 with code invalid_parameter
not_found_code             "document_not_found"  code of a 404; null leaves it out
not_found_message          "Document not found"  message of a 404
=========================  ====================  =============================================================

Not simulated: webhooks, OAuth tokens, ``partner-key``, a second limit per second.
"""

from __future__ import annotations

import json
import math
import string
from collections import Counter, deque
from dataclasses import dataclass, field
from html import escape
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from airflow_provider_sib.sandbox.faults import NOTHING, Fault, Struck, fault_from, strike

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from airflow_provider_sib.sandbox.settings import Settings

#: Path and method of each operation, by the path without ``/v3`` and without a message's id.
_WITHOUT_ID = {
    "/conversations/messages": {"POST": "send_message"},
    "/conversations/pushedMessages": {"POST": "send_pushed_message"},
    "/conversations/agentOnlinePing": {"POST": "ping_agent_online"},
    "/conversations/visitorGroup": {"PUT": "set_visitor_group"},
    "/account": {"GET": "get_account"},
}
_WITH_ID = {
    "/conversations/messages": {"GET": "get_message", "PUT": "update_message", "DELETE": "delete_message"},
    "/conversations/pushedMessages": {
        "GET": "get_pushed_message",
        "PUT": "update_pushed_message",
        "DELETE": "delete_pushed_message",
    },
}
#: The names of all operations, as faults, counts and the log have them.
OPERATIONS = frozenset(
    name for routes in (_WITHOUT_ID, _WITH_ID) for methods in routes.values() for name in methods.values()
)

AGENT_ID, AGENT_NAME = "d9nKoegKSjmCtyK78", "Liz"
GROUP_ID = "PjRBMhWGen6aRHjif"
VISITOR_ID = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"
#: How many of the newest requests the log keeps; the counts know them all.
LOG_LENGTH = 100_000

# https://developers.brevo.com/reference/get-account
_ACCOUNT = {
    "organization_id": "5f1e7a1c9d3b2a0012345678",
    "user_id": 1,
    "enterprise": False,
    "companyName": "Sandbox",
    "email": "sandbox@example.com",
    "firstName": "Sandy",
    "lastName": "Box",
    "address": {"city": "Paris", "country": "France", "street": "1 rue du Bac à sable", "zipCode": "75001"},
    "plan": [{"type": "free", "credits": 300, "creditsType": "sendLimit"}],
    "relay": {
        "enabled": False,
        "data": {"userName": "sandbox@example.com", "relay": "smtp-relay.example.com", "port": 587},
    },
    "marketingAutomation": {"enabled": False},
}
_LEVELS = {
    "read": {"GET"},
    "read_write": {"GET", "POST", "PUT"},
    "all": {"GET", "POST", "PUT", "DELETE"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """Hold one request to the API as it came in.

    `path` is raw: percent-encoded, with ``/v3``, without the query. `api_key` and `content_type` are the
    headers' values or None. `remote` is the caller's IP address.
    """

    method: str
    path: str
    api_key: str | None = None
    content_type: str | None = None
    body: bytes = b""
    remote: str = "127.0.0.1"


@dataclass(slots=True, kw_only=True)
class Answer:
    """Say what to send back, and how badly.

    `hang_up` is None, "before" (nothing was done), "during" (half of the answer is sent), "after" (nothing is
    sent, the work was done) or "never" (the connection is kept open without an answer).
    """

    status: int
    body: bytes | None
    headers: dict[str, str]
    delay_seconds: float = 0.0
    hang_up: str | None = None


@dataclass(slots=True)
class Visitor:
    """Keep a visitor: the name is the page's, Brevo's API has none."""

    id: str
    name: str | None = None
    group_id: str | None = None
    messages: list[Message] = field(default_factory=list)


@dataclass(slots=True)
class Agent:
    """Keep an agent; `is_dummy` when made for an e-mail address nobody had."""

    id: str
    name: str | None = None
    email: str | None = None
    group_ids: tuple[str, ...] = ()
    is_dummy: bool = False
    online_until: float | None = None


@dataclass(slots=True, kw_only=True)
class Message:
    """Keep a message; `kind` is "agent", "pushed" or "visitor", `history` has its earlier texts."""

    id: str
    kind: str
    visitor_id: str
    text: str
    created_at_ms: int
    agent_id: str | None = None
    received_from: str | None = None
    history: tuple[str, ...] = ()
    deleted: bool = False


@dataclass(slots=True)
class _Window:
    """Keep one hour of the quota."""

    ends_at: float = -math.inf
    used: int = 0


class Refusal(Exception):
    """Carry an answer with an error body out of an operation."""

    def __init__(self, status: int, code: str | None, message: str, *, message_first: bool = False) -> None:
        super().__init__(message)
        self.message_first = message_first
        self.status = status
        self.code = code
        self.message = message


class State:
    """Hold visitors, agents, groups, messages, the quota, faults and counts, and answer requests.

    :param settings: the switches to begin with, and to come back to on :meth:`reset`.
    :param random: the source of ids and of the choice among agents.
    :param faults: faults in force from the start, as given to `fault_from`.
    """

    def __init__(
        self, settings: Settings, random: Random, *, faults: list[dict[str, Any]] | None = None
    ) -> None:
        self._first_settings = settings
        self._first_faults = faults or []
        self._random = random
        self.reset()

    def reset(self) -> None:
        """Forget everything and begin anew, with the settings and faults of the start."""
        self.settings = self._first_settings
        self.faults: list[Fault] = [fault_from(values, OPERATIONS) for values in self._first_faults]
        self.visitors: dict[str, Visitor] = {VISITOR_ID: Visitor(VISITOR_ID)}
        self.agents: dict[str, Agent] = {AGENT_ID: Agent(AGENT_ID, AGENT_NAME, group_ids=(GROUP_ID,))}
        self.groups: set[str] = {GROUP_ID}
        self.messages: dict[str, Message] = {}
        self._newest_first: dict[str, None] = {VISITOR_ID: None}
        self._windows: dict[str, _Window] = {}
        self._windows_opened = 0
        self._refused = 0
        self._total = 0
        self._by_operation: Counter[str] = Counter()
        self._by_status: Counter[str] = Counter()
        self._log: deque[tuple[float, str, str, str | None, int | None, str | None, str]] = deque(
            maxlen=LOG_LENGTH
        )

    # -- the API ---------------------------------------------------------------------------------------------

    def receive(self, request: Received, now: float) -> Answer:
        """Answer a request to the API, and count it.

        :param request: any request below ``/v3``.
        :param now: seconds since the epoch.
        """
        request_id = f"{self._random.getrandbits(128):032x}"
        operation, message_id, is_known_path = _route(request.method, request.path)
        answer, struck = self._answer(request, operation, message_id, is_known_path, now)
        answer.headers["sib-request-id"] = request_id
        status = None if answer.hang_up in ("before", "after", "never") else answer.status
        self._total += 1
        self._by_operation[operation or "none"] += 1
        self._by_status[str(status or "none")] += 1
        self._log.append((now, request.method, request.path, operation, status, struck.kind, request_id))
        return answer

    def _answer(
        self, request: Received, operation: str | None, message_id: str, is_known_path: bool, now: float
    ) -> tuple[Answer, Struck]:
        refusal = self._unauthorized(request)
        if refusal:
            return self._error(refusal), NOTHING
        if operation is None:
            if is_known_path:
                message = f"{request.method} Method is not allowed on this path"
                refusal = Refusal(405, "method_not_allowed", message)
            else:
                refusal = Refusal(404, self.settings.not_found_code, self.settings.not_found_message)
            answer = self._error(refusal)
            self._add_rate_headers(answer, "none", now)
            return answer, NOTHING
        if not self._has_quota(operation, now):
            self._refused += 1
            answer = self._too_many_requests()
            self._add_rate_headers(answer, operation, now)
            return answer, NOTHING
        struck = strike(self.faults, operation)
        answer = self._struck_answer(request, operation, message_id, struck, now)
        answer.delay_seconds = struck.latency_seconds
        return answer, struck

    def _struck_answer(
        self, request: Received, operation: str, message_id: str, struck: Struck, now: float
    ) -> Answer:
        match struck.kind:
            case "hang_up_before":
                return Answer(status=0, body=None, headers={}, hang_up="before")
            case "ip_blocked":
                message = (
                    f"We have detected you are using an unrecognised IP address {request.remote}. If you "
                    "performed this action make sure to add the new IP address in this link: "
                    "https://app.brevo.com/security/authorised_ips"
                )
                return self._error(Refusal(401, "unauthorized", message))
            case "too_many_requests_without_headers":
                self._refused += 1
                return self._too_many_requests()
        self._use_quota(operation, now)
        answer = self._operated(request, operation, message_id, struck, now)
        if not struck.no_rate_headers:
            self._add_rate_headers(answer, operation, now)
        return answer

    def _operated(
        self, request: Received, operation: str, message_id: str, struck: Struck, now: float
    ) -> Answer:
        params = struck.params
        answer = Answer(status=200, body=None, headers={})
        try:
            if struck.kind == "permission":
                raise _access_denied(operation)
            self._require_permission(request, operation)
            if params.get("store", True):
                answer = self._perform(request, operation, message_id, struck.extra_fields, now)
        except Refusal as refusal:
            answer = self._error(refusal)
        match struck.kind:
            case "error_json":
                body = params["body"]
                if body is None:
                    body = {"code": "internal_error", "message": "The sandbox was told to fail."}
                return _json_answer(params["status"], body)
            case "error_html":
                return Answer(
                    status=params["status"], body=_BAD_GATEWAY, headers={"content-type": "text/html"}
                )
            case "garbage":
                return Answer(status=200, body=b"\x1f\x8b{oops", headers={"content-type": "application/json"})
            case "hang_up_during":
                answer.hang_up = "during"
            case "hang_up_after":
                answer.hang_up = "after"
            case "never_answer":
                answer.hang_up = "never"
        return answer

    def _perform(
        self, request: Received, operation: str, message_id: str, extra_fields: bool, now: float
    ) -> Answer:
        match operation:
            case "send_message":
                message = self._send(_body(request), now)
            case "send_pushed_message":
                message = self._push(_body(request), now)
            case "get_message" | "get_pushed_message":
                message = self._found(operation, message_id)
            case "update_message" | "update_pushed_message":
                body = _body(request)
                message = self._changeable(operation, message_id)
                text = self._text(body)
                message.history = (*message.history, message.text)
                message.text = text
                self._touch(message.visitor_id)
            case "delete_message" | "delete_pushed_message":
                return self._delete(operation, message_id)
            case "ping_agent_online":
                agent_id, _ = self._sender(_body(request))
                self.agents[agent_id].online_until = now + self.settings.agent_online_seconds
                return Answer(status=201, body=None, headers={})
            case "set_visitor_group":
                return self._set_group(_body(request))
            case _:
                return _json_answer(200, _ACCOUNT)
        return _json_answer(200, self._message_json(message, extra_fields=extra_fields))

    def _send(self, body: dict[str, Any], now: float) -> Message:
        # https://developers.brevo.com/reference/send-a-message-as-an-agent
        visitor_id = self._string(body, "visitorId", required=True)
        text = self._text(body)
        self._require_known(visitor_id, self.visitors, "visitorId", self.settings.unknown_visitor_for_agent)
        agent_id, received_from = self._sender(body)
        return self._add_message(
            "agent", visitor_id, text, now, agent_id=agent_id, received_from=received_from
        )

    def _push(self, body: dict[str, Any], now: float) -> Message:
        # https://developers.brevo.com/reference/send-an-automated-message-to-a-visitor
        visitor_id = self._string(body, "visitorId", required=True)
        text = self._text(body)
        agent_id, group_id = self._string(body, "agentId"), self._string(body, "groupId")
        if agent_id and group_id and self.settings.agent_and_group == "reject":
            raise self._invalid("groupId")
        self._require_known(visitor_id, self.visitors, "visitorId", self.settings.unknown_visitor)
        if group_id:
            self._require_known(group_id, self.groups, "groupId", self.settings.unknown_group)
        if agent_id:
            self._require_agent(agent_id)
        if group_id:
            self.groups.add(group_id)
        if not agent_id:
            members = [agent.id for agent in self.agents.values() if group_id in agent.group_ids]
            agent_id = self._random.choice(members or list(self.agents))
        return self._add_message("pushed", visitor_id, text, now, agent_id=agent_id)

    def _delete(self, operation: str, message_id: str) -> Answer:
        message = self._message(operation, message_id)
        if message and message.deleted and self.settings.second_delete == 204:
            return Answer(status=204, body=None, headers={})
        message = self._changeable(operation, message_id)
        message.deleted = True
        self._touch(message.visitor_id)
        return Answer(status=204, body=None, headers={})

    def _set_group(self, body: dict[str, Any]) -> Answer:
        # https://developers.brevo.com/reference/set-visitor-group-assignment
        if "groupId" not in body:
            raise self._missing("groupId")
        group_id = self._string(body, "groupId") or None
        if self.settings.visitor_group_key == "none":
            raise self._not_found()
        visitor = self.visitors.get(self._string(body, "visitorId", required=True))
        if visitor is None:
            raise self._not_found()
        if group_id is not None:
            self._require_known(group_id, self.groups, "groupId", self.settings.unknown_group)
            self.groups.add(group_id)
        visitor.group_id = group_id
        self._touch(visitor.id)
        return _json_answer(200, {"groupId": group_id, "visitorId": visitor.id})

    def _sender(self, body: dict[str, Any]) -> tuple[str, str | None]:
        agent_id = self._string(body, "agentId")
        email = self._string(body, "agentEmail")
        received_from = self._string(body, "receivedFrom")
        if agent_id:
            if email and self.settings.agent_id_and_email == "reject":
                raise self._invalid("agentEmail")
            self._require_agent(agent_id)
            return agent_id, received_from or None
        if not email:
            raise self._missing("agentId")
        name = self._string(body, "agentName", required=True)
        if not received_from:
            raise self._missing("receivedFrom")
        if "@" not in email:
            raise self._invalid("agentEmail")
        for agent in self.agents.values():
            if agent.email == email:
                return agent.id, received_from
        dummy = Agent(self._new_id(self.agents), name, email, is_dummy=True)
        self.agents[dummy.id] = dummy
        return dummy.id, received_from

    def _require_agent(self, agent_id: str) -> None:
        self._require_known(agent_id, self.agents, "agentId", self.settings.unknown_agent)
        if agent_id not in self.agents:
            self.agents[agent_id] = Agent(agent_id)

    def _require_known(self, value: str, known: Any, name: str, verdict: str) -> None:
        if value not in known and verdict == "reject":
            raise self._invalid(name)

    def _string(self, body: dict[str, Any], name: str, *, required: bool = False) -> str:
        value = body.get(name)
        if value is None or value == "":
            if required:
                raise self._missing(name)
            return ""
        if not isinstance(value, str) or not value.strip():
            raise self._invalid(name)
        return value

    def _text(self, body: dict[str, Any]) -> str:
        text = self._string(body, "text", required=True)
        if self.settings.max_text_length is not None and len(text) > self.settings.max_text_length:
            raise self._invalid("text")
        return text

    def _message(self, operation: str, message_id: str) -> Message | None:
        message = self.messages.get(message_id)
        if message is None:
            return None
        is_pushed = message.kind == "pushed"
        if operation.endswith("_pushed_message"):
            return message if is_pushed else None
        return message if not is_pushed or self.settings.pushed_under_messages else None

    def _found(self, operation: str, message_id: str) -> Message:
        message = self._message(operation, message_id)
        if message is None or message.deleted:
            raise self._not_found()
        return message

    def _changeable(self, operation: str, message_id: str) -> Message:
        message = self._found(operation, message_id)
        if message.kind == "visitor":
            raise self._not_found() if self.settings.visitor_message_change == 404 else self._invalid("id")
        return message

    def _add_message(
        self,
        kind: str,
        visitor_id: str,
        text: str,
        now: float,
        *,
        agent_id: str | None = None,
        received_from: str | None = None,
    ) -> Message:
        message = Message(
            id=self._new_id(self.messages),
            kind=kind,
            visitor_id=visitor_id,
            text=text,
            created_at_ms=int(now * 1000),
            agent_id=agent_id,
            received_from=received_from,
        )
        visitor = self.visitors.get(visitor_id)
        if visitor is None:
            visitor = self.visitors[visitor_id] = Visitor(visitor_id)
        visitor.messages.append(message)
        self.messages[message.id] = message
        self._touch(visitor_id)
        return message

    def _touch(self, visitor_id: str) -> None:
        self._newest_first.pop(visitor_id, None)
        self._newest_first[visitor_id] = None

    def _new_id(self, taken: Any) -> str:
        while True:
            if self.settings.id_style == "long":
                new = f"{self._random.getrandbits(96):024x}_{self._random.getrandbits(96):024x}"
            else:
                new = "".join(self._random.choices(string.ascii_letters + string.digits, k=17))
            if new not in taken:
                return new

    def _message_json(self, message: Message, *, extra_fields: bool = False) -> dict[str, Any]:
        markup = escape(message.text, quote=False) if self.settings.html_escaping else message.text
        value: dict[str, Any] = {
            "id": message.id,
            "type": "visitor" if message.kind == "visitor" else "agent",
            "text": message.text,
            "html": markup.replace("\n", "<br>"),
            "visitorId": message.visitor_id,
        }
        if message.agent_id is not None:
            value["agentId"] = message.agent_id
        value |= {
            "createdAt": message.created_at_ms,
            "isPushed": message.kind == "pushed",
            "isTrigger": False,
            "isMissed": False,
            "isMissedByVisitor": False,
        }
        if message.received_from is not None:
            value["receivedFrom"] = message.received_from
        return value | _EXTRA_FIELDS if extra_fields else value

    # -- who may, and how often ------------------------------------------------------------------------------

    def _unauthorized(self, request: Received) -> Refusal | None:
        if not request.api_key:
            # the order of the live sample: https://github.com/getbrevo/brevo-python/issues/13
            return Refusal(401, "unauthorized", "authentication not found in headers", message_first=True)
        if request.api_key not in (self.settings.api_key, self.settings.restricted_key):
            return Refusal(401, "unauthorized", "Key not found")
        return None

    def _require_permission(self, request: Received, operation: str) -> None:
        # https://help.brevo.com/hc/en-us/articles/40158277171474
        if request.api_key == self.settings.api_key:
            return
        if operation == "get_account" or request.method not in _LEVELS[self.settings.restricted_level]:
            raise _access_denied(operation)

    def _window(self, operation: str) -> _Window:
        key = "all" if self.settings.bucket == "shared" else operation
        return self._windows.setdefault(key, _Window())

    def _has_quota(self, operation: str, now: float) -> bool:
        window = self._window(operation)
        return self.settings.quota > (window.used if now < window.ends_at else 0)

    def _use_quota(self, operation: str, now: float) -> None:
        window = self._window(operation)
        if now >= window.ends_at:
            window.ends_at = now + self.settings.hour_seconds
            window.used = 0
            self._windows_opened += 1
        window.used += 1

    def _quota(self, operation: str, now: float) -> tuple[int, int]:
        window = self._window(operation)
        if now >= window.ends_at:
            return self.settings.quota, math.ceil(self.settings.hour_seconds)
        return max(0, self.settings.quota - window.used), math.ceil(window.ends_at - now)

    def _add_rate_headers(self, answer: Answer, operation: str, now: float) -> None:
        # https://developers.brevo.com/docs/limit-headers: the reset is the time left, in seconds
        if not self.settings.rate_headers:
            return
        remaining, reset_in_seconds = self._quota(operation, now)
        answer.headers["x-sib-ratelimit-limit"] = str(self.settings.quota)
        answer.headers["x-sib-ratelimit-remaining"] = str(remaining)
        answer.headers["x-sib-ratelimit-reset"] = str(reset_in_seconds)

    # -- errors ----------------------------------------------------------------------------------------------

    def _missing(self, name: str) -> Refusal:
        return Refusal(400, "missing_parameter", self.settings.missing_message.replace("{field}", name))

    def _invalid(self, name: str) -> Refusal:
        return Refusal(400, "invalid_parameter", self.settings.invalid_message.replace("{field}", name))

    def _not_found(self) -> Refusal:
        return Refusal(404, self.settings.not_found_code, self.settings.not_found_message)

    def _too_many_requests(self) -> Answer:
        body = self.settings.too_many_requests_body
        if body is None:
            return self._error(Refusal(429, "too_many_requests", "The quota of this hour is used up."))
        return _json_answer(429, body)

    def _error(self, refusal: Refusal) -> Answer:
        body = {"code": refusal.code, "message": refusal.message}
        if refusal.code is None:
            del body["code"]
        elif refusal.message_first or self.settings.error_key_order == "message_first":
            body = dict(reversed(body.items()))
        return _json_answer(refusal.status, body)

    # -- the sandbox's own API -------------------------------------------------------------------------------

    def configure(self, values: dict[str, Any]) -> None:
        """Change some switches.

        :raises ValueError: when a name or a value is not allowed; nothing is changed then.
        """
        self.settings = self.settings.changed(values)

    def add_fault(self, values: dict[str, Any]) -> None:
        """Put a fault in force.

        :raises ValueError: when a name or a value is not allowed.
        """
        self.faults.append(fault_from(values, OPERATIONS))

    def add_visitors(self, visitors: list[Any], now: float) -> None:
        """Make visitors known, name them, and let them write.

        :param visitors: objects with ``id`` and, optional, ``name`` (how the page calls them) and ``text`` (what
            they write).
        :param now: seconds since the epoch.
        :raises ValueError: when one isn't such an object; none is added then.
        """
        for visitor in visitors:
            if not isinstance(visitor, dict) or visitor.keys() - {"id", "name", "text"}:
                raise ValueError("A visitor is an object with id and, optional, name and text.")
            values = [visitor.get(key, "-") for key in ("id", "name", "text")]
            if "id" not in visitor or not all(isinstance(value, str) and value.strip() for value in values):
                raise ValueError("id, name and text of a visitor must be texts that aren't blank.")
        for given in visitors:
            visitor = self.visitors.setdefault(given["id"], Visitor(given["id"]))
            visitor.name = given.get("name", visitor.name)
            self._touch(visitor.id)
            if "text" in given:
                self._add_message("visitor", visitor.id, given["text"], now)

    def recorded(self, message: Message) -> dict[str, Any]:
        """Give a message as the API does, with ``kind``, ``revisions``, ``history`` and ``deleted`` of our own."""
        return self._message_json(message) | {
            "kind": message.kind,
            "revisions": len(message.history),
            "history": list(message.history),
            "deleted": message.deleted,
        }

    def messages_of(self, visitor_id: str | None) -> Iterator[Message]:
        """Go through a visitor's messages, or all, deleted ones too, in the order they were written."""
        if visitor_id is None:
            return iter(self.messages.values())
        visitor = self.visitors.get(visitor_id)
        return iter(visitor.messages if visitor else ())

    def summary(self, now: float, *, log: int = 1000) -> dict[str, Any]:
        """Give all but visitors and messages as plain JSON values: its size doesn't grow with the audience.

        :param now: seconds since the epoch.
        :param log: how many of the newest requests to list.
        """
        return {
            "settings": self.settings.as_json(),
            "agents": {
                agent.id: {
                    "id": agent.id,
                    "name": agent.name,
                    "email": agent.email,
                    "groupIds": list(agent.group_ids),
                    "isDummy": agent.is_dummy,
                    "isOnline": agent.online_until is not None and now < agent.online_until,
                }
                for agent in self.agents.values()
            },
            "groups": sorted(self.groups),
            "requests": {
                "total": self._total,
                "by_operation": dict(self._by_operation),
                "by_status": dict(self._by_status),
                "log": [
                    dict(zip(_LOG_FIELDS, entry, strict=True))
                    for entry in islice(self._log, max(0, len(self._log) - log), None)
                ],
            },
            "quota": self.quota(now),
            "faults": [fault.as_json() for fault in self.faults],
            "counts": self.counts(),
        }

    def snapshot(self, now: float, *, log: int = LOG_LENGTH) -> dict[str, Any]:
        """Give everything as plain JSON values.

        :param now: seconds since the epoch.
        :param log: how many of the newest requests to list.
        """
        return self.summary(now, log=log) | {
            "visitors": {visitor.id: self.described(visitor) for visitor in self.visitors.values()},
            "messages": {message.id: self.recorded(message) for message in self.messages.values()},
        }

    def described(self, visitor: Visitor) -> dict[str, Any]:
        """Give a visitor as plain JSON values."""
        return {
            "id": visitor.id,
            "name": visitor.name,
            "groupId": visitor.group_id,
            "messageIds": [message.id for message in visitor.messages],
        }

    def quota(self, now: float) -> dict[str, Any]:
        """Give limit, remaining and reset of the bucket with least left; hours opened and refusals of all."""
        keys = [key for key in self._windows if key != "none"] or ["all"]
        remaining, reset_in_seconds = min(self._quota(key, now) for key in keys)
        return {
            "limit": self.settings.quota,
            "remaining": remaining,
            "reset_in_seconds": reset_in_seconds,
            "is_open": any(now < window.ends_at for window in self._windows.values()),
            "windows_opened": self._windows_opened,
            "refused": self._refused,
        }

    def counts(self) -> dict[str, int]:
        """Count visitors, messages, requests, and ``duplicates``: messages with a text, as it was when sent, that
        their visitor had had before."""
        sent = Counter(
            (message.visitor_id, message.history[0] if message.history else message.text)
            for message in self.messages.values()
            if message.kind != "visitor"
        )
        return {
            "visitors": len(self.visitors),
            "messages": len(self.messages),
            "duplicates": sent.total() - len(sent),
            "requests": self._total,
        }

    # -- the page --------------------------------------------------------------------------------------------

    def figures(self, now: float) -> dict[str, Any]:
        """Give what the page's head shows; costs the same with one visitor and with a million."""
        return {
            "visitors": len(self.visitors),
            "messages": len(self.messages),
            "requests": self._total,
            "faults": len(self.faults),
            "quota": self.quota(now),
        }

    def chats(
        self, *, offset: int, limit: int, search: str = "", newest_first: bool = False
    ) -> dict[str, Any]:
        """Give a stretch of the visitors with what each sees: deleted messages are not there.

        :param offset: how many visitors to pass over.
        :param limit: how many to give.
        :param search: part of an id or a name, in any case of letters; empty for all.
        :param newest_first: those with the newest change first, instead of those known longest.
        """
        ids: Any = reversed(self._newest_first) if newest_first else self.visitors
        total = len(self.visitors)
        if search:
            wanted = search.casefold()
            ids = [
                visitor_id
                for visitor_id in ids
                if wanted in visitor_id.casefold()
                or wanted in (self.visitors[visitor_id].name or "").casefold()
            ]
            total = len(ids)
        return {
            "total": total,
            "offset": offset,
            "chats": [
                self._chat(self.visitors[visitor_id]) for visitor_id in islice(ids, offset, offset + limit)
            ],
        }

    def _chat(self, visitor: Visitor) -> dict[str, Any]:
        seen = [message for message in visitor.messages if not message.deleted]
        return {
            "id": visitor.id,
            "name": visitor.name,
            "groupId": visitor.group_id,
            "earlier": max(0, len(seen) - _CHAT_LENGTH),
            "messages": [
                {
                    "id": message.id,
                    "kind": message.kind,
                    "text": message.text,
                    "agent": self._agent_name(message),
                    "createdAt": message.created_at_ms,
                    "revisions": len(message.history),
                }
                for message in seen[-_CHAT_LENGTH:]
            ],
        }

    def _agent_name(self, message: Message) -> str | None:
        return self.agents[message.agent_id].name or message.agent_id if message.agent_id else None


#: How many of a visitor's messages the page gets.
_CHAT_LENGTH = 50
_LOG_FIELDS = ("at", "method", "path", "operation", "status", "fault", "request_id")
_EXTRA_FIELDS = {
    "isFromTheFuture": True,
    "sandboxExtra": {"nested": [1, None, {"deep": "yes"}]},
    "messageType": "text",
    "source": {"name": "widget"},
    "file": {
        "name": "receipt.png",
        "link": "https://files.example.com/receipt.png",
        "mimeType": "image/png",
        "isImage": True,
        "size": 1024,
        "imageInfo": {"width": 10, "height": 20, "previewLink": "https://files.example.com/preview.png"},
        "isAllowedFileType": True,
        "virusScan": "clean",
    },
    "attachments": [
        {
            "fileName": "terms.pdf",
            "url": "https://files.example.com/terms.pdf",
            "isImage": False,
            "size": 2048,
        }
    ],
}
_BAD_GATEWAY = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1>"
    b"</center>\r\n<hr><center>sandbox</center>\r\n</body>\r\n</html>\r\n"
)


def _route(method: str, path: str) -> tuple[str | None, str, bool]:
    """Find the operation, the message's id, and whether the path is known at all."""
    path = path.removeprefix("/v3")
    methods = _WITHOUT_ID.get(path)
    if methods is not None:
        return methods.get(method), "", True
    head, _, last = path.rpartition("/")
    methods = _WITH_ID.get(head)
    if methods is None or not last:
        return None, "", False
    return methods.get(method), unquote(last), True


def _body(request: Received) -> dict[str, Any]:
    media_type = (request.content_type or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Refusal(400, "bad_request", "The content type is not application/json")
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        raise Refusal(400, "bad_request", "The body is not valid JSON") from None
    if not isinstance(body, dict):
        raise Refusal(400, "bad_request", "The body is not a JSON object")
    return body


def _access_denied(operation: str) -> Refusal:
    # https://help.brevo.com/hc/en-us/articles/40154686262546; neither status nor code is documented
    name = "account" if operation == "get_account" else "conversations"
    return Refusal(
        403,
        "permission_denied",
        f'Access denied for resource "{name}". The API key does not include the required permission. '
        "Update the key permissions or send the request with a different key",
    )


def _json_answer(status: int, body: Any) -> Answer:
    return Answer(status=status, body=json.dumps(body).encode(), headers={"content-type": "application/json"})
