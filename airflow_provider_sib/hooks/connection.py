"""An Airflow connection of type ``sib_conversations``, typed: from it come clients and calls."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

from airflow_provider_sib._compat import AirflowFailException
from airflow_provider_sib.api.errors import ConversationsError
from airflow_provider_sib.provider_info import CONN_FIELDS, DEFAULT_BASE_URL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Connection

    from airflow_provider_sib.api.aio import AsyncConversationsClient
    from airflow_provider_sib.api.calls import Call
    from airflow_provider_sib.api.client import ConversationsClient
    from airflow_provider_sib.api.models import Message
    from airflow_provider_sib.api.wire import Retries


GUARDS = ("allowed_visitors", "proxy", "agent_id", "group_id")
"""Extras that choose who is written to, in whose name and by which way; sending without one would do harm."""


class VisitorNotAllowed(ConversationsError):
    """A message was not sent since the connection's extra ``allowed_visitors`` leaves its visitor out."""


def extra_of(connection: Connection) -> dict[str, Any]:
    """Read a connection's extra; for what is no JSON, Airflow's own ``extra_dejson`` gives {}, as if there were none.

    :raises AirflowFailException: when it is neither blank nor a JSON object; the message shows nothing of it.
    """
    text = connection.extra or ""
    if not text.strip():
        return {}
    extra, where = None, ""
    try:
        extra = json.loads(text)
    except json.JSONDecodeError as error:
        where = f" ({error.msg}: line {error.lineno}, column {error.colno})"
    if not isinstance(extra, dict):
        raise AirflowFailException(
            f"Connection {connection.conn_id!r}: its extra is no JSON object{where}, so what it says cannot be "
            'followed. Write it as {"name": "value"}, or leave it empty.'
        )
    return connection.extra_dejson  # which masks its secrets


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """What an Airflow connection of type ``sib_conversations`` says, typed.

    :param conn_id: the connection's id.
    :param base_url: such as ``https://api.brevo.com/v3``.
    :param api_key: Brevo's API key; in no repr and no message.
    :param timeout_seconds: bound of one whole request.
    :param requests_per_hour: the known quota, or None.
    :param reserve_calls: calls of each hour that campaigns leave to others.
    :param proxy: URL of a proxy, or None.
    :param agent_id: the agent that sends where a task names none, or None.
    :param group_id: the group that sends where a task names none, or None.
    :param allowed_visitors: shell patterns of visitor ids; empty: everybody.
    :param allow_insecure_http: whether the key may go to another machine unencrypted.
    :param problems: what is wrong with the connection, a sentence each.
    """

    conn_id: str
    base_url: str
    api_key: str = field(repr=False)
    timeout_seconds: float
    requests_per_hour: int | None
    reserve_calls: int
    proxy: str | None = field(repr=False)  # may hold a password
    agent_id: str | None
    group_id: str | None
    allowed_visitors: tuple[str, ...]
    allow_insecure_http: bool
    problems: tuple[str, ...]

    @classmethod
    def from_connection(cls, connection: Connection) -> Self:
        """Read a connection; what is wrong is listed in ``problems`` and takes the default meanwhile.

        :param connection: of type ``sib_conversations``.
        :raises AirflowFailException: when it has no API key, its extra is no JSON object, or an extra that guards it
            (``GUARDS``) cannot be read or is misspelt.
        """
        extras, problems = _read_extras(extra_of(connection))
        api_key = (connection.password or "").strip()
        if not api_key:
            raise AirflowFailException(
                f"Connection {connection.conn_id!r} has no API key: put Brevo's API key (such as "
                "xkeysib-…) into its password field."
            )
        if harmful := [problem for name, problem in problems if name in GUARDS]:
            raise AirflowFailException(f"Connection {connection.conn_id!r}: {' '.join(harmful)}")
        patterns = extras["allowed_visitors"] or ""
        return cls(
            conn_id=connection.conn_id,
            base_url=_base_url(connection),
            api_key=api_key,
            timeout_seconds=float(extras["timeout_seconds"]),
            requests_per_hour=extras["requests_per_hour"],
            reserve_calls=extras["reserve_calls"],
            proxy=extras["proxy"],
            agent_id=extras["agent_id"],
            group_id=extras["group_id"],
            allowed_visitors=tuple(p for p in (part.strip() for part in patterns.split(",")) if p),
            allow_insecure_http=extras["allow_insecure_http"],
            problems=tuple(problem for _, problem in problems),
        )

    def allows(self, visitor_id: str) -> bool:
        """Tell whether this connection may write to a visitor (``allowed_visitors``)."""
        return not self.allowed_visitors or any(fnmatchcase(visitor_id, p) for p in self.allowed_visitors)

    def send_pushed_message(
        self, visitor_id: str, text: str, *, agent_id: str | None = None, group_id: str | None = None
    ) -> Call[Message]:
        """Describe a pushed message with this connection's defaults.

        Parameters and errors are those of :meth:`SibConversationsHook.send_pushed_message`.
        """
        from airflow_provider_sib.api import calls

        if agent_id is None and group_id is None:
            agent_id, group_id = self.agent_id, self.group_id
        call = calls.send_pushed_message(visitor_id, text, agent_id=agent_id, group_id=group_id)
        self._guard(visitor_id)
        return call

    def send_message(
        self,
        visitor_id: str,
        text: str,
        *,
        agent_id: str | None = None,
        agent_email: str | None = None,
        agent_name: str | None = None,
        received_from: str | None = None,
    ) -> Call[Message]:
        """Describe an agent's message with this connection's defaults.

        Parameters and errors are those of :meth:`SibConversationsHook.send_message`.
        """
        from airflow_provider_sib.api import calls

        if agent_id is None and agent_email is None and agent_name is None:
            agent_id = self.agent_id
        call = calls.send_message(
            visitor_id,
            text,
            agent_id=agent_id,
            agent_email=agent_email,
            agent_name=agent_name,
            received_from=received_from,
        )
        self._guard(visitor_id)
        return call

    def ping_agent_online(
        self,
        *,
        agent_id: str | None = None,
        agent_email: str | None = None,
        agent_name: str | None = None,
        received_from: str | None = None,
    ) -> Call[None]:
        """Describe a ping with this connection's default agent.

        Parameters and errors are those of :meth:`SibConversationsHook.ping_agent_online`.
        """
        from airflow_provider_sib.api import calls

        if agent_id is None and agent_email is None and agent_name is None:
            agent_id = self.agent_id
        return calls.ping_agent_online(
            agent_id=agent_id, agent_email=agent_email, agent_name=agent_name, received_from=received_from
        )

    def _guard(self, visitor_id: str) -> None:
        if not self.allows(visitor_id):
            raise VisitorNotAllowed(
                f"Not sent: connection {self.conn_id!r} writes only to the visitors of its extra "
                "allowed_visitors, and this one is not among them. Add the visitor there, or empty the extra."
            )

    def client(
        self, *, rate_limit_wait_seconds: float, retries: Retries | None = None
    ) -> ConversationsClient:
        """Open a client on this connection.

        :param rate_limit_wait_seconds: how long a call may wait in place for a 429 to pass; 0 raises at once.
        :param retries: another way than the client's own of repeating what may be repeated.
        """
        from airflow_provider_sib.api.client import ConversationsClient
        from airflow_provider_sib.api.wire import Retries

        return ConversationsClient(
            api_key=self.api_key,
            base_url=self.base_url,
            timeout_seconds=self.timeout_seconds,
            proxy=self.proxy,
            allow_insecure_http=self.allow_insecure_http,
            rate_limit_wait_seconds=rate_limit_wait_seconds,
            retries=Retries() if retries is None else retries,
        )

    def async_client(
        self,
        *,
        rate_limit_wait_seconds: float = 0.0,
        retries: Retries | None = None,
        max_connections: int = 100,
    ) -> AsyncConversationsClient:
        """Open an asynchronous client on this connection; parameters as of :meth:`client`.

        :param max_connections: how many it opens to Brevo at most.
        """
        from airflow_provider_sib.api.aio import AsyncConversationsClient
        from airflow_provider_sib.api.wire import Retries

        return AsyncConversationsClient(
            api_key=self.api_key,
            base_url=self.base_url,
            timeout_seconds=self.timeout_seconds,
            proxy=self.proxy,
            allow_insecure_http=self.allow_insecure_http,
            rate_limit_wait_seconds=rate_limit_wait_seconds,
            retries=Retries() if retries is None else retries,
            max_connections=max_connections,
        )


def _base_url(connection: Connection) -> str:
    """Put a connection's host, port and schema together, as the form and as a connection URI give them."""
    host = unquote((connection.host or "").strip()).rstrip("/")
    if not host:
        return DEFAULT_BASE_URL
    url = urlsplit(host if "://" in host else f"https://{host}")
    netloc = url.netloc
    # Airflow 3.3's form posts 0 for a blank port.
    if connection.port and not re.search(r":\d+$", netloc):
        netloc = f"{netloc}:{connection.port}"
    path = url.path or "/" + (connection.schema or "").strip("/")
    return f"{url.scheme}://{netloc}{'/v3' if path == '/' else path}"


def _read_extras(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Coerce a connection's extras by the table of the form; a URI connection gives all of them as strings.

    :return: the extras; and what is wrong, with the extra that it concerns.
    """
    extras = {name: spec["schema"].get("default") for name, spec in CONN_FIELDS.items()}
    problems = []
    for name, value in given.items():
        if name not in CONN_FIELDS:
            near = difflib.get_close_matches(name.lower(), CONN_FIELDS, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(CONN_FIELDS)}."
            problems.append((near[0] if near else name, f"The extra {name!r} is unknown; {known}"))
        elif value is not None and value != "":
            try:
                extras[name] = _coerce(CONN_FIELDS[name]["schema"], value)
            except (TypeError, ValueError) as error:
                wrong = f"The extra {name!r} must be {error}, not a {type(value).__name__} of that form."
                problems.append((name, wrong))
    if extras["agent_id"] and extras["group_id"]:
        both = "The extras 'agent_id' and 'group_id' exclude each other: give one of them."
        problems.append(("group_id", both))
    return extras, problems


def _coerce(schema: Mapping[str, Any], value: Any) -> Any:
    """Make one extra's value of its type; a ValueError says what it must be."""
    match schema["type"][0]:
        case "boolean":
            words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
            if (known := words.get(str(value).strip().lower())) is None:
                raise ValueError("true or false")
            return known
        case "string":
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                return ",".join(value)
            if isinstance(value, str | int) and not isinstance(value, bool):
                return str(value).strip() or None
            raise ValueError("a text")
        case kind:
            least, most = schema["minimum"], schema.get("maximum")
            wanted = f"{'a whole number' if kind == 'integer' else 'a number'} of at least {least}"
            wanted += f" and at most {most}" if most else ""
            try:
                number = int(str(value)) if kind == "integer" else float(str(value))
            except ValueError:
                raise ValueError(wanted) from None
            if not least <= number <= (most or float("inf")):
                raise ValueError(wanted)
            return number
