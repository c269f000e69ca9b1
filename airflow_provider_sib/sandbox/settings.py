"""The sandbox's switches: their names, defaults and allowed values. The table is in the docstring of `state`."""

from __future__ import annotations

import json
import types
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Verdict = Literal["accept", "reject"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Hold the quota, the keys and every switch.

    Each field is a row of the table in the docstring of `airflow_provider_sib.sandbox.state`.

    :raises ValueError: when a value is not one of those allowed, in one sentence that names the switch.
    """

    quota: int = 100
    hour_seconds: float = 3600.0
    bucket: Literal["shared", "per_route"] = "shared"
    rate_headers: bool = True
    too_many_requests_body: Any = None
    api_key: str = "xkeysib-sandbox"
    restricted_key: str | None = None
    restricted_level: Literal["read", "read_write", "all"] = "all"
    unknown_visitor: Verdict = "accept"
    unknown_visitor_for_agent: Verdict = "reject"
    unknown_agent: Verdict = "reject"
    unknown_group: Verdict = "reject"
    agent_and_group: Verdict = "reject"
    agent_id_and_email: Verdict = "reject"
    visitor_group_key: Literal["visitorId", "none"] = "visitorId"
    visitor_message_change: Literal[400, 404] = 400
    second_delete: Literal[404, 204] = 404
    pushed_under_messages: bool = False
    max_text_length: int | None = None
    html_escaping: bool = True
    id_style: Literal["documented", "long"] = "documented"
    agent_online_seconds: float = 150.0
    error_key_order: Literal["code_first", "message_first"] = "code_first"
    missing_message: str = "{field} is missing"
    invalid_message: str = "{field} is invalid"
    not_found_code: str | None = "document_not_found"
    not_found_message: str = "Document not found"

    def __post_init__(self) -> None:
        for name, hint in hints().items():
            _check(name, hint, getattr(self, name))
        if self.quota < 0:
            raise ValueError(f"quota must be 0 or more; it is {self.quota}.")
        if not 0 < self.hour_seconds < float("inf"):
            raise ValueError(f"hour_seconds must be more than 0; it is {self.hour_seconds}.")
        if self.max_text_length is not None and self.max_text_length < 1:
            raise ValueError(f"max_text_length must be 1 or more, or null; it is {self.max_text_length}.")

    def changed(self, values: dict[str, Any]) -> Settings:
        """Give the settings with some of them changed.

        :param values: by name; what isn't named stays.
        :raises ValueError: when a name or a value is not allowed.
        """
        unknown = values.keys() - hints().keys()
        if unknown:
            names = ", ".join(sorted(map(str, unknown)))
            raise ValueError(f"The sandbox has no switch {names}; it has {', '.join(hints())}.")
        return replace(self, **values)

    def as_json(self) -> dict[str, Any]:
        """Give all but the keys as plain JSON values; of a key only whether there is one."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"api_key": "***", "restricted_key": self.restricted_key and "***"}


@cache
def hints() -> dict[str, Any]:
    """Give the type of each switch, by name, in the order of the table."""
    return get_type_hints(Settings)


def parsed(name: str, text: str) -> Any:
    """Read the value of a switch, or of a fault's parameter, as it is typed on a command line.

    :param name: the switch, with underscores.
    :param text: a word, or JSON for a number, true, false, null or an object.
    """
    if hints().get(name) in (str, str | None) and text != "null":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check(name: str, hint: Any, value: Any) -> None:
    if hint is Any:
        return
    if get_origin(hint) is Literal:
        if value not in get_args(hint) or isinstance(value, bool):
            choices = " or ".join(json.dumps(choice) for choice in get_args(hint))
            raise ValueError(f"{name} must be {choices}; it is {value!r}.")
        return
    allowed = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    if float in allowed:
        allowed = (*allowed, int)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        words = {
            int: "a whole number",
            float: "a number",
            str: "a text",
            bool: "true or false",
            type(None): "null",
        }
        kinds = " or ".join(words[kind] for kind in allowed if not (kind is int and float in allowed))
        raise ValueError(f"{name} must be {kinds}; it is {value!r}.")
