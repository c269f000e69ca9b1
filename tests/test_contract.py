"""Models and calls against Brevo's own OpenAPI description: all that it allows is read, nothing else is sent."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from airflow_provider_sib.api import calls
from airflow_provider_sib.api.errors import ApiError, InvalidRequest, NotFound
from airflow_provider_sib.api.models import Message, VisitorGroup, reader
from airflow_provider_sib.api.wire import Response, Retries, exchange

from .sandbox.conftest import CONTRACT

if TYPE_CHECKING:
    from airflow_provider_sib.api.calls import Call

SCHEMAS = deepcopy(CONTRACT["components"]["schemas"])
MESSAGE = SCHEMAS["ConversationsMessage"]
# What we ask of a message although the description doesn't: an id, and a time before the year 10000.
MESSAGE["required"] = ["id"]
MESSAGE["properties"]["id"]["minLength"] = 1
MESSAGE["properties"]["createdAt"]["maximum"] = 253402300799999


# Values by their schema


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
LINE = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
# Never the name that a field has, or had before: those are read.
UNKNOWN = st.dictionaries(TEXT.map("new {}".format), JSON, max_size=2)


def values(
    schema: dict[str, Any], *, text: st.SearchStrategy[str] = TEXT, nulls: bool = False
) -> st.SearchStrategy[Any]:
    """Make any value that a schema allows: what is optional missing or there, and unknown properties beside it.

    :param text: makes strings.
    :param nulls: has null in place of optional properties too, which the description does not allow.
    """

    def made(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        return values(schema, text=text, nulls=nulls)

    match schema:
        case {"$ref": ref}:
            return made(SCHEMAS[ref.rpartition("/")[2]])
        case {"enum": allowed}:
            return st.sampled_from(allowed)
        case {"type": "boolean"}:
            return st.booleans()
        case {"type": "integer"}:
            least, most = schema.get("minimum", -(2**63)), schema.get("maximum", 2**63 - 1)
            # To a JSON schema 1.0 is an integer as well.
            exact = st.integers(max(least, -(2**53)), min(most, 2**53)).map(float)
            return st.integers(least, most) | exact
        case {"type": "string"}:
            return text.filter(lambda value: len(value) >= schema.get("minLength", 0))
        case {"type": "array"}:
            return st.lists(made(schema["items"]), max_size=2)
        case {"type": "object"}:
            fields = {name: made(one) for name, one in schema.get("properties", {}).items()}
            required = {name: fields.pop(name) for name in schema.get("required", ())}
            optional = {name: one | st.none() if nulls else one for name, one in fields.items()}
            known = st.fixed_dictionaries(required, optional=optional)
            return st.builds(lambda unknown, known: unknown | known, UNKNOWN, known)
    # A visitor's group, and who is in it, have no type there; the examples have ids, and null for no group.
    return text | st.none()


def names(schema: dict[str, Any], defined: dict[str, Any]) -> dict[str, Any]:
    """Give the names of an object's properties, to each those of the objects in it."""
    if "$ref" in schema:
        return names(defined[schema["$ref"].rpartition("/")[2]], defined)
    inside = [schema["items"]] if "items" in schema else schema.get("anyOf", [])
    found = {name: names(one, defined) for name, one in schema.get("properties", {}).items()}
    return found | {name: one for part in inside for name, one in names(part, defined).items()}


# Calls by their operation


WORD = TEXT.filter(lambda text: text and not text.isspace())
ID = WORD.filter(lambda text: text not in (".", ".."))
AGENT = st.fixed_dictionaries({"agent_id": WORD}, optional={"received_from": WORD}) | st.fixed_dictionaries(
    dict.fromkeys(("agent_email", "agent_name", "received_from"), WORD)
)
SENDER = st.sampled_from(["agent_id", "group_id"]).flatmap(
    lambda name: st.fixed_dictionaries({}, optional={name: WORD})
)

OPERATIONS: dict[tuple[str, str], st.SearchStrategy[Call[Any]]] = {
    ("POST", "/conversations/messages"): st.builds(
        lambda visitor, text, agent: calls.send_message(visitor, text, **agent), WORD, WORD, AGENT
    ),
    ("GET", "/conversations/messages/{id}"): st.builds(calls.get_message, ID),
    ("PUT", "/conversations/messages/{id}"): st.builds(calls.update_message, ID, WORD),
    ("DELETE", "/conversations/messages/{id}"): st.builds(calls.delete_message, ID),
    ("POST", "/conversations/pushedMessages"): st.builds(
        lambda visitor, text, sender: calls.send_pushed_message(visitor, text, **sender), WORD, WORD, SENDER
    ),
    ("GET", "/conversations/pushedMessages/{id}"): st.builds(calls.get_pushed_message, ID),
    ("PUT", "/conversations/pushedMessages/{id}"): st.builds(calls.update_pushed_message, ID, WORD),
    ("DELETE", "/conversations/pushedMessages/{id}"): st.builds(calls.delete_pushed_message, ID),
    ("POST", "/conversations/agentOnlinePing"): AGENT.map(lambda agent: calls.ping_agent_online(**agent)),
    ("PUT", "/conversations/visitorGroup"): st.builds(calls.set_visitor_group, WORD, WORD | st.none()),
}
# How Brevo is told which visitor is meant is in no description.
UNDESCRIBED = {("PUT", "/conversations/visitorGroup"): {"visitorId"}}


def schema_of(content: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if content is None else content["application/json"]["schema"]


def answers(schema: dict[str, Any] | None, status: int) -> st.SearchStrategy[Any]:
    if schema is None:
        return st.none()
    # An error is one line for people: white space and what can't be printed do not come out as they were.
    body = values(schema, text=TEXT if status < 300 else LINE)
    return body.filter(Draft202012Validator({**schema, "components": CONTRACT["components"]}).is_valid)


ANSWERS = {
    f"{method} {template} {status}": (
        call,
        int(status),
        answers(schema_of(described.get("content")), int(status)),
    )
    for (method, template), call in OPERATIONS.items()
    for status, described in CONTRACT["paths"][template][method.lower()]["responses"].items()
}


def answered(call: Call[Any], status: int, body: Any) -> Any:
    """Give a call's result if Brevo answers so."""
    steps = exchange(call, secrets=("xkeysib-1",), retries=Retries(), rate_limit_wait_seconds=0)
    next(steps)
    try:
        steps.send(Response(status, {}, b"" if body is None else json.dumps(body).encode()))
    except StopIteration as done:
        return done.value.value
    raise AssertionError("it wants to go on")


def test_the_operations_tried_here_are_those_of_the_description():
    described = {(method.upper(), path) for path, methods in CONTRACT["paths"].items() for method in methods}
    assert described == OPERATIONS.keys()


@pytest.mark.parametrize("operation", OPERATIONS, ids=" ".join)
@given(data=st.data())
def test_every_call_is_as_its_operation_is_described(operation, data):
    call = data.draw(OPERATIONS[operation])
    method, template = operation
    assert call.method == method
    assert re.fullmatch(template.replace("{id}", "[^/?#]+"), call.path)
    content = CONTRACT["paths"][template][method.lower()].get("requestBody", {}).get("content")
    if (schema := schema_of(content)) is None:
        assert call.body is None
        return
    Draft202012Validator(schema).validate(call.body)
    # A name that is not described would be valid, and do nothing.
    assert call.body.keys() - UNDESCRIBED.get(operation, set()) <= schema["properties"].keys()


@pytest.mark.parametrize(("call", "status", "body"), ANSWERS.values(), ids=ANSWERS)
@given(data=st.data())
@settings(deadline=None)  # large values, and maybe a busy machine
def test_every_answer_that_is_described_is_read(call, status, body, data):
    call, body = data.draw(call), data.draw(body)
    if status < 300:
        result = answered(call, status, body)
        assert body == (result and result.model_dump(mode="json", by_alias=True, exclude_unset=True))
        return
    with pytest.raises(ApiError) as caught:
        answered(call, status, body)
    assert type(caught.value) is (NotFound if status == 404 else InvalidRequest)
    assert (caught.value.code, caught.value.message) == (body.get("code"), body["message"])


@given(values(MESSAGE, nulls=True))
@settings(deadline=None)
def test_nothing_is_lost_between_brevos_json_and_ours(value):
    """Unknown fields, explicit nulls, absences and milliseconds all come back as they came."""
    back = reader(Message)(json.dumps(value).encode()).as_dict()
    assert back == value
    assert json.loads(json.dumps(back)) == value


GROUP = CONTRACT["paths"]["/conversations/visitorGroup"]["put"]["responses"]["200"]["content"]


@pytest.mark.parametrize("mode", ["validation", "serialization"])
@pytest.mark.parametrize(
    ("model", "schema"), [(Message, MESSAGE), (VisitorGroup, schema_of(GROUP))], ids=["message", "group"]
)
def test_fields_have_the_names_of_the_description_and_there_are_no_others(model, schema, mode):
    ours = model.model_json_schema(by_alias=True, mode=mode)
    assert names(ours, ours.get("$defs", {})) == names(schema, SCHEMAS)
