"""Whatever it is asked, the sandbox answers within Brevo's own OpenAPI description."""

from __future__ import annotations

import json
from random import Random
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from airflow_provider_sib.sandbox.settings import Settings
from airflow_provider_sib.sandbox.state import Received, State

VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"
AGENT = "d9nKoegKSjmCtyK78"
GROUP = "PjRBMhWGen6aRHjif"
#: Statuses that Brevo's gateway gives on any route; their body is the general error model.
GATEWAY = {401, 403, 405, 429}

ROUTES = [
    ("POST", "/conversations/messages"),
    ("GET", "/conversations/messages/{id}"),
    ("PUT", "/conversations/messages/{id}"),
    ("DELETE", "/conversations/messages/{id}"),
    ("POST", "/conversations/pushedMessages"),
    ("GET", "/conversations/pushedMessages/{id}"),
    ("PUT", "/conversations/pushedMessages/{id}"),
    ("DELETE", "/conversations/pushedMessages/{id}"),
    ("POST", "/conversations/agentOnlinePing"),
    ("PUT", "/conversations/visitorGroup"),
]


def state_with_messages() -> tuple[State, dict[str, str]]:
    state = State(Settings(quota=10**9), Random(7))
    ids = {}
    for path in ("/conversations/messages", "/conversations/pushedMessages"):
        _, body = ask(state, "POST", path, {"visitorId": VISITOR, "text": "Hello", "agentId": AGENT})
        ids[path] = body["id"]
    return state, ids


def ask(
    state: State, method: str, path: str, body: Any = None, *, raw: bytes | None = None
) -> tuple[int, Any]:
    received = Received(
        method=method,
        path=f"/v3{path}",
        api_key="xkeysib-sandbox",
        content_type="application/json",
        body=json.dumps(body).encode() if raw is None else raw,
    )
    answer = state.receive(received, 1_000.0)
    return answer.status, None if answer.body is None else json.loads(answer.body)


def check(contract: dict[str, Any], method: str, template: str, status: int, body: Any) -> None:
    """Check an answer against the description of its operation."""
    declared = contract["paths"][template][method.lower()]["responses"]
    if str(status) in declared:
        content = declared[str(status)].get("content")
        if content is None:
            assert body is None, f"{method} {template} has no body on {status}"
            return
        schema = content["application/json"]["schema"]
    else:
        assert status in GATEWAY, f"{method} {template} does not declare {status}"
        schema = {"$ref": "#/components/schemas/errorModel"}
    Draft202012Validator({**schema, "components": contract["components"]}).validate(body)


def test_the_routes_tried_here_are_those_of_the_description(contract):
    described = {(method.upper(), path) for path, methods in contract["paths"].items() for method in methods}
    assert described == set(ROUTES)


@pytest.mark.parametrize(("method", "template"), ROUTES)
def test_every_example_of_the_description_is_taken(contract, method, template):
    state, ids = state_with_messages()
    operation = contract["paths"][template][method.lower()]
    examples = [None]
    if "requestBody" in operation:
        found = operation["requestBody"]["content"]["application/json"]["examples"]
        examples = [example["value"] for example in found.values()]
    for given_example in examples:
        # how Brevo is told the visitor is in no description; without a body there is none to tell
        told = {"visitorId": VISITOR} if template.endswith("visitorGroup") else {}
        example = told | given_example if given_example else None
        path = template.replace("{id}", ids.get(template.removesuffix("/{id}"), ""))
        status, body = ask(state, method, path, example)
        assert status in (200, 201, 204), body
        check(contract, method, template, status, body)
        if template.endswith("essages") and method == "POST":
            sent = operation["responses"]["200"]["content"]["application/json"]["examples"]["response"][
                "value"
            ]
            optional = set() if "receivedFrom" in example else {"receivedFrom"}
            assert body.keys() == sent.keys() - optional, "exactly the fields of Brevo's example answer"


@pytest.mark.parametrize(("method", "template"), ROUTES)
@pytest.mark.parametrize(
    ("why", "switches", "key", "status"),
    [
        ("no key", {}, None, 401),
        ("unknown key", {}, "xkeysib-other", 401),
        ("used up", {"quota": 0}, "xkeysib-sandbox", 429),
        (
            "read only",
            {"restricted_key": "xkeysib-restricted", "restricted_level": "read"},
            "xkeysib-restricted",
            403,
        ),
    ],
)
def test_gateway_errors_have_the_general_error_model(contract, method, template, why, switches, key, status):
    if why == "read only" and method == "GET":
        status = 404
    state = State(Settings(**switches), Random(7))
    received = Received(
        method=method, path=f"/v3{template}", api_key=key, content_type="application/json", body=b"{}"
    )
    answer = state.receive(received, 1.0)
    assert answer.status == status
    check(contract, method, template, answer.status, json.loads(answer.body or b"null"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=6,
)
KNOWN = st.sampled_from([VISITOR, AGENT, GROUP, "Hello", "liz@getwear.com", "", "  "])
BODY = st.dictionaries(
    st.sampled_from(["visitorId", "text", "agentId", "groupId", "agentEmail", "agentName", "receivedFrom"]),
    KNOWN | JSON,
)


@given(route=st.sampled_from(ROUTES), body=BODY | JSON, switches=st.booleans())
def test_any_json_gets_an_answer_that_is_described(contract, route, body, switches):
    method, template = route
    state, ids = state_with_messages()
    if switches:
        state.configure({"unknown_agent": "accept", "unknown_group": "accept", "agent_and_group": "accept"})
    path = template.replace("{id}", ids.get(template.removesuffix("/{id}"), ""))
    status, answer = ask(state, method, path, body)
    assert status not in GATEWAY
    check(contract, method, template, status, answer)


@given(route=st.sampled_from(ROUTES), body=st.binary())
def test_any_bytes_get_an_answer_that_is_described(contract, route, body):
    method, template = route
    state, ids = state_with_messages()
    path = template.replace("{id}", ids.get(template.removesuffix("/{id}"), ""))
    check(contract, method, template, *ask(state, method, path, raw=body))


def described_bodies(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Make bodies by their description, right and wrong ones: fields missing, of other types, and unknown."""
    fields = {name: KNOWN | st.text(max_size=8) | JSON for name in schema["properties"]}
    required = {name: fields[name] for name in schema.get("required", ())}
    right = st.fixed_dictionaries(required, optional=dict.fromkeys(fields.keys() - required, KNOWN))
    return right | st.fixed_dictionaries({}, optional={**fields, "unknown": JSON}) | JSON


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_over_http_too_every_request_gets_an_answer_that_is_described(contract, call, data):
    """Ids, bodies, content types and keys as nobody would send them: described answers, and never a 500."""
    call.sandbox.configure(quota=10**9)
    method, template = data.draw(st.sampled_from(ROUTES))
    operation = contract["paths"][template][method.lower()]
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    body = data.draw(described_bodies(content["schema"]) if content else st.none() | JSON)
    message_id = quote(data.draw(st.text(min_size=1, max_size=8)), safe="", errors="surrogatepass")
    headers = {
        "api-key": data.draw(st.sampled_from([call.sandbox.api_key] * 9 + ["xkeysib-other"])),
        "content-type": data.draw(
            st.sampled_from(["application/json"] * 3 + ["application/json; charset=utf-8", "text/plain"])
        ),
    }
    raw = json.dumps(body).encode()
    raw = raw[: data.draw(st.sampled_from([len(raw)] * 5 + [len(raw) // 2]))]
    reply = call.raw(method, "/v3" + template.replace("{id}", message_id), raw, headers)
    assert reply.status < 500
    check(contract, method, template, reply.status, json.loads(reply.body) if reply.body else None)


@given(message_id=st.text(min_size=1))
def test_an_id_is_opaque_whatever_is_in_it(message_id):
    state, _ = state_with_messages()
    path = f"/conversations/messages/{quote(message_id, safe='', errors='surrogatepass')}"
    status, _ = ask(state, "GET", path)
    assert status == 404
    assert state.summary(0.0)["requests"]["log"][-1]["operation"] == "get_message"


@given(text=st.text(min_size=1).filter(str.strip), visitor_id=st.text(min_size=1).filter(str.strip))
def test_texts_and_visitor_ids_come_back_as_they_were_sent(text, visitor_id):
    state, _ = state_with_messages()
    status, sent = ask(
        state, "POST", "/conversations/pushedMessages", {"visitorId": visitor_id, "text": text}
    )
    assert (status, sent["text"], sent["visitorId"]) == (200, text, visitor_id)
    assert ask(state, "GET", f"/conversations/pushedMessages/{sent['id']}") == (200, sent)


def test_an_endlessly_nested_body_is_a_400():
    state, _ = state_with_messages()
    for body in (b"[" * 100_000, b'{"text": ' + b"1" * 10_000 + b"}", b"\xff\xfe"):
        status, answer = ask(state, "POST", "/conversations/messages", raw=body)
        assert (status, answer["code"]) == (400, "bad_request")
