"""Calls: what goes to Brevo, as values, and what is refused before anything is sent."""

from __future__ import annotations

import string
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sib.api import calls
from airflow_provider_sib.api.errors import InvalidRequest

AGENT = {"agent_email": "liz@getwear.com", "agent_name": "Liz", "received_from": "Desk"}
AGENT_FIELDS = {"agentEmail": "liz@getwear.com", "agentName": "Liz", "receivedFrom": "Desk"}
M, P = "/conversations/messages", "/conversations/pushedMessages"
PING, GROUP = "/conversations/agentOnlinePing", "/conversations/visitorGroup"

TABLE = [
    (calls.send_message("v", "t", agent_id="a"), "POST", M, {"visitorId": "v", "text": "t", "agentId": "a"}, False),
    (
        calls.send_message("v", "t", agent_id="a", received_from="Desk"),
        "POST", M, {"visitorId": "v", "text": "t", "agentId": "a", "receivedFrom": "Desk"}, False,
    ),
    (calls.send_message("v", "t", **AGENT), "POST", M, {"visitorId": "v", "text": "t", **AGENT_FIELDS}, False),
    (calls.get_message("i"), "GET", f"{M}/i", None, True),
    (calls.update_message("i", "t"), "PUT", f"{M}/i", {"text": "t"}, True),
    (calls.delete_message("i"), "DELETE", f"{M}/i", None, True),
    (calls.send_pushed_message("v", "t"), "POST", P, {"visitorId": "v", "text": "t"}, False),
    (
        calls.send_pushed_message("v", "t", agent_id="a"),
        "POST", P, {"visitorId": "v", "text": "t", "agentId": "a"}, False,
    ),
    (
        calls.send_pushed_message("v", "t", group_id="g"),
        "POST", P, {"visitorId": "v", "text": "t", "groupId": "g"}, False,
    ),
    (calls.get_pushed_message("i"), "GET", f"{P}/i", None, True),
    (calls.update_pushed_message("i", "t"), "PUT", f"{P}/i", {"text": "t"}, True),
    (calls.delete_pushed_message("i"), "DELETE", f"{P}/i", None, True),
    (calls.ping_agent_online(agent_id="a"), "POST", PING, {"agentId": "a"}, True),
    (calls.ping_agent_online(**AGENT), "POST", PING, AGENT_FIELDS, True),
    (calls.set_visitor_group("v", "g"), "PUT", GROUP, {"groupId": "g", "visitorId": "v"}, True),
    (calls.set_visitor_group("v", None), "PUT", GROUP, {"groupId": None, "visitorId": "v"}, True),
    (calls.get_account(), "GET", "/account", None, True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "method", "path", "body", "repeatable"), TABLE, ids=lambda value: str(value)[:40]
)
def test_a_call_holds_what_was_given_and_nothing_else(call, method, path, body, repeatable):
    assert (call.method, call.path, call.body, call.repeatable) == (method, path, body, repeatable)


def test_only_the_creation_of_messages_must_not_be_repeated():
    assert {call.name for call, *_ in TABLE if not call.repeatable} == {
        "send a message",
        "send a pushed message",
    }


OTHER = st.text(min_size=1).filter(lambda value: not value.isspace() and value not in (".", ".."))


@given(OTHER)
def test_an_id_is_one_segment_of_the_path_and_comes_back_unchanged(message_id):
    try:
        path = calls.get_message(message_id).path
    except InvalidRequest:
        with pytest.raises(UnicodeEncodeError):
            message_id.encode()
        return
    segment = path.removeprefix(f"{M}/")
    assert set(segment) <= set(string.ascii_letters + string.digits + "-._~%")
    assert segment not in (".", "..")
    assert unquote(segment, errors="strict") == message_id


REFUSED = [
    (lambda: calls.send_message("", "t", agent_id="a"), ["send a message", "visitor_id", "an empty string"]),
    (lambda: calls.send_message(" \n", "t", agent_id="a"), ["visitor_id", "blank", "webhook"]),
    (lambda: calls.send_message("v", "", agent_id="a"), ["text", "an empty string"]),
    (lambda: calls.send_message("v", "\t ", agent_id="a"), ["text is blank"]),
    (lambda: calls.send_message(7, "t", agent_id="a"), ["visitor_id", "type int"]),
    (lambda: calls.send_message(None, "t", agent_id="a"), ["visitor_id", "NoneType"]),
    (lambda: calls.send_message("v", b"secret text", agent_id="a"), ["text", "type bytes"]),
    (lambda: calls.send_message("v", "secret \ud83d", agent_id="a"), ["text", "surrogate"]),
    (lambda: calls.send_message("v\ud800", "t", agent_id="a"), ["visitor_id", "surrogate"]),
    (
        lambda: calls.send_message("v", "t"),
        ["no agent", "agent_id", "agent_email", "agent_name", "received_from"],
    ),
    (lambda: calls.send_message("v", "t", agent_email="e", agent_name="n"), ["received_from is missing"]),
    (lambda: calls.send_message("v", "t", agent_name="n"), ["agent_email and received_from are missing"]),
    (lambda: calls.send_message("v", "t", received_from="n"), ["agent_email and agent_name are missing"]),
    (lambda: calls.send_message("v", "t", agent_id="a", agent_email="e"), ["agent_id is given together"]),
    (lambda: calls.send_message("v", "t", agent_id="a", **AGENT), ["agent_id is given together"]),
    (lambda: calls.send_message("v", "t", agent_id=""), ["agent_id is an empty string"]),
    (lambda: calls.send_message("v", "t", agent_id="a", received_from=" "), ["received_from is blank"]),
    (lambda: calls.send_message("v", "t", **(AGENT | {"agent_name": ""})), ["agent_name is an empty string"]),
    (
        lambda: calls.send_pushed_message("v", "t", agent_id="a", group_id="g"),
        ["agent_id and group_id", "both"],
    ),
    (lambda: calls.send_pushed_message("v", "t", group_id=" "), ["group_id is blank"]),
    (lambda: calls.send_pushed_message("v", "t", agent_id=3), ["agent_id", "type int"]),
    (lambda: calls.update_message("i", " "), ["update a message", "text is blank"]),
    (lambda: calls.update_pushed_message("", "t"), ["update a pushed message", "message_id"]),
    (lambda: calls.get_message(""), ["get a message", "message_id is an empty string"]),
    (lambda: calls.get_pushed_message("."), ['message_id is "."']),
    (lambda: calls.delete_message(".."), ['message_id is ".."']),
    (lambda: calls.delete_pushed_message(None), ["message_id", "NoneType"]),
    (calls.ping_agent_online, ["set an agent online", "no agent"]),
    (lambda: calls.ping_agent_online(agent_id="a", agent_name="n"), ["agent_id is given together"]),
    (lambda: calls.set_visitor_group("", "g"), ["visitor_id is an empty string"]),
    (lambda: calls.set_visitor_group("v", ""), ["group_id is an empty string", "None"]),
]


@pytest.mark.parametrize(("make", "parts"), REFUSED, ids=[parts[-1] for _, parts in REFUSED])
def test_a_broken_rule_is_named_before_anything_is_sent(make, parts):
    """The sentence names the field, the kind of value and the way out, and never the text."""
    with pytest.raises(InvalidRequest) as caught:
        make()
    assert caught.value.status is None
    for part in parts:
        assert part in str(caught.value)
    assert "secret" not in str(caught.value)
    str(caught.value).encode()
