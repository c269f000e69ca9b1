"""The rules of the sandbox, with values only: no socket, no clock."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from airflow_provider_sib.sandbox.settings import Settings
from airflow_provider_sib.sandbox.state import Answer, Received, State

VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"
AGENT = "d9nKoegKSjmCtyK78"
GROUP = "PjRBMhWGen6aRHjif"
PUSHED = "/conversations/pushedMessages"
MESSAGES = "/conversations/messages"
PING = "/conversations/agentOnlinePing"
TO_GROUP = "/conversations/visitorGroup"
LIMIT, LEFT, RESET = "x-sib-ratelimit-limit", "x-sib-ratelimit-remaining", "x-sib-ratelimit-reset"


class Asked:
    """Ask a state, at a time of one's own."""

    def __init__(self, **switches: Any) -> None:
        self.state = State(Settings().changed(switches), Random(1))
        self.now = 1_000.0

    def answer(
        self, method: str, path: str, body: Any = None, *, key: str | None = "xkeysib-sandbox"
    ) -> Answer:
        received = Received(
            method=method,
            path=f"/v3{path}",
            api_key=key,
            content_type="application/json; charset=utf-8",
            body=b"" if body is None else json.dumps(body).encode(),
            remote="203.0.113.7",
        )
        return self.state.receive(received, self.now)

    def __call__(self, method: str, path: str, body: Any = None, **given: Any) -> tuple[int, Any]:
        answer = self.answer(method, path, body, **given)
        return answer.status, json.loads(answer.body) if answer.body else None

    def sent(self, path: str = PUSHED, **body: Any) -> dict[str, Any]:
        if path == MESSAGES:
            body = {"agentId": AGENT} | body
        status, message = self("POST", path, {"visitorId": VISITOR, "text": "Hello"} | body)
        assert status == 200, message
        return message


# -- messages


@pytest.mark.parametrize("path", [MESSAGES, PUSHED])
def test_a_message_can_be_sent_read_edited_and_deleted_once(path):
    ask = Asked()
    sent = ask.sent(path)
    assert sent["isPushed"] is (path == PUSHED)
    assert sent["createdAt"] == 1_000_000, "milliseconds since the epoch"
    assert ask("GET", f"{path}/{sent['id']}") == (200, sent)
    assert ask("PUT", f"{path}/{sent['id']}", {"text": "a < b &\nc"}) == (
        200,
        sent | {"text": "a < b &\nc", "html": "a &lt; b &amp;<br>c"},
    )
    assert ask("DELETE", f"{path}/{sent['id']}") == (204, None)
    for method, body in (("GET", None), ("PUT", {"text": "again"}), ("DELETE", None)):
        assert ask(method, f"{path}/{sent['id']}", body)[0] == 404
    recorded = ask.state.snapshot(ask.now)["messages"][sent["id"]]
    assert (recorded["kind"], recorded["revisions"], recorded["history"], recorded["deleted"]) == (
        "pushed" if path == PUSHED else "agent",
        1,
        ["Hello"],
        True,
    )


def test_each_kind_of_message_has_its_own_route_unless_the_switch_says_otherwise():
    ask = Asked()
    pushed, written = ask.sent(PUSHED)["id"], ask.sent(MESSAGES)["id"]
    assert ask("GET", f"{MESSAGES}/{pushed}")[0] == 404
    assert ask("GET", f"{PUSHED}/{written}")[0] == 404
    ask.state.configure({"pushed_under_messages": True})
    assert ask("GET", f"{MESSAGES}/{pushed}")[0] == 200
    assert ask("GET", f"{PUSHED}/{written}")[0] == 404


def test_a_mark_is_echoed_on_agents_messages_only():
    ask = Asked()
    assert ask.sent(MESSAGES, receivedFrom="app:1")["receivedFrom"] == "app:1"
    assert "receivedFrom" not in ask.sent(MESSAGES)
    assert "receivedFrom" not in ask.sent(PUSHED, receivedFrom="app:1")


THREE = {"agentEmail": "liz@getwear.com", "agentName": "Liz", "receivedFrom": "Helpdesk"}


@pytest.mark.parametrize(
    ("path", "body", "code", "field"),
    [
        (MESSAGES, {"text": "Hi", "agentId": AGENT}, "missing_parameter", "visitorId"),
        (MESSAGES, {"visitorId": VISITOR, "agentId": AGENT}, "missing_parameter", "text"),
        (MESSAGES, {"visitorId": VISITOR, "text": "Hi"}, "missing_parameter", "agentId"),
        (MESSAGES, {"visitorId": "nobody", "text": "Hi", "agentId": AGENT}, "invalid_parameter", "visitorId"),
        (MESSAGES, {"visitorId": VISITOR, "text": "Hi", "agentId": "no"}, "invalid_parameter", "agentId"),
        (
            MESSAGES,
            {"visitorId": VISITOR, "text": "Hi", "agentId": AGENT, **THREE},
            "invalid_parameter",
            "agentEmail",
        ),
        (MESSAGES, {"visitorId": VISITOR, "text": 5, "agentId": AGENT}, "invalid_parameter", "text"),
        (MESSAGES, {"visitorId": VISITOR, "text": " \n", "agentId": AGENT}, "invalid_parameter", "text"),
        (PUSHED, {"text": "Hi"}, "missing_parameter", "visitorId"),
        (PUSHED, {"visitorId": VISITOR, "text": ""}, "missing_parameter", "text"),
        (PUSHED, {"visitorId": VISITOR, "text": "Hi", "groupId": "no"}, "invalid_parameter", "groupId"),
        (
            PUSHED,
            {"visitorId": VISITOR, "text": "Hi", "agentId": AGENT, "groupId": GROUP},
            "invalid_parameter",
            "groupId",
        ),
        (PING, {}, "missing_parameter", "agentId"),
        (PING, THREE | {"agentName": None}, "missing_parameter", "agentName"),
        (PING, THREE | {"receivedFrom": ""}, "missing_parameter", "receivedFrom"),
        (PING, THREE | {"agentEmail": "liz"}, "invalid_parameter", "agentEmail"),
    ],
)
def test_what_is_missing_or_wrong_is_a_400_that_names_it_and_stores_nothing(path, body, code, field):
    ask = Asked()
    status, error = ask("POST", path, body)
    assert (status, error["code"]) == (400, code)
    assert error["message"].startswith(field)
    assert ask.state.counts()["messages"] == 0
    assert list(ask.state.visitors) == [VISITOR]


def test_an_unknown_visitor_appears_with_a_pushed_message():
    ask = Asked()
    ask.sent(visitorId="new")
    assert list(ask.state.visitors) == [VISITOR, "new"]
    ask.sent(MESSAGES, visitorId="new")


def test_a_pushed_message_goes_out_in_the_name_of_the_agent_one_of_the_group_or_anyone():
    ask = Asked(unknown_agent="accept")
    assert ask.sent(agentId="a_b")["agentId"] == "a_b"
    assert {ask.sent(groupId=GROUP)["agentId"] for _ in range(20)} == {AGENT}
    assert {ask.sent()["agentId"] for _ in range(50)} == {AGENT, "a_b"}


def test_an_unknown_email_makes_one_dummy_agent():
    ask = Asked()
    first, second = ask.sent(MESSAGES, agentId=None, **THREE), ask.sent(MESSAGES, agentId=None, **THREE)
    assert first["agentId"] == second["agentId"] != AGENT
    dummy = ask.state.snapshot(ask.now)["agents"][first["agentId"]]
    assert (dummy["name"], dummy["email"], dummy["isDummy"]) == ("Liz", "liz@getwear.com", True)


def test_a_ping_keeps_an_agent_online_for_two_to_three_minutes():
    ask = Asked()
    assert ask("POST", PING, {"agentId": AGENT}) == (201, None)
    online = [ask.state.summary(ask.now + later)["agents"][AGENT]["isOnline"] for later in (0, 149, 151)]
    assert online == [True, True, False]


def test_a_visitor_is_put_into_a_group_and_taken_out():
    ask = Asked()
    for group_id in (GROUP, None):
        body = {"visitorId": VISITOR, "groupId": group_id}
        assert ask("PUT", TO_GROUP, body) == (200, {"groupId": group_id, "visitorId": VISITOR})
        assert ask.state.visitors[VISITOR].group_id == group_id
    assert ask("PUT", TO_GROUP, {"visitorId": "nobody", "groupId": GROUP})[0] == 404
    assert ask("PUT", TO_GROUP, {"visitorId": VISITOR})[0] == 400
    assert ask("PUT", TO_GROUP, {"groupId": GROUP})[0] == 400
    assert ask("PUT", TO_GROUP, {"visitorId": VISITOR, "groupId": "no"})[0] == 400


# -- switches


@pytest.mark.parametrize(
    ("switches", "method", "path", "body", "status"),
    [
        ({"unknown_visitor": "reject"}, "POST", PUSHED, {"visitorId": "nobody", "text": "Hi"}, 400),
        (
            {"unknown_visitor_for_agent": "accept"},
            "POST",
            MESSAGES,
            {"visitorId": "nobody", "text": "Hi", "agentId": AGENT},
            200,
        ),
        ({"unknown_agent": "accept"}, "POST", PING, {"agentId": "new"}, 201),
        (
            {"unknown_group": "accept"},
            "POST",
            PUSHED,
            {"visitorId": VISITOR, "text": "Hi", "groupId": "new"},
            200,
        ),
        ({"unknown_group": "accept"}, "PUT", TO_GROUP, {"visitorId": VISITOR, "groupId": "new"}, 200),
        (
            {"agent_and_group": "accept"},
            "POST",
            PUSHED,
            {"visitorId": VISITOR, "text": "Hi", "agentId": AGENT, "groupId": GROUP},
            200,
        ),
        ({"agent_id_and_email": "accept"}, "POST", PING, {"agentId": AGENT, **THREE}, 201),
        ({"visitor_group_key": "none"}, "PUT", TO_GROUP, {"visitorId": VISITOR, "groupId": GROUP}, 404),
        ({"max_text_length": 3}, "POST", PUSHED, {"visitorId": VISITOR, "text": "four"}, 400),
        ({"max_text_length": 3}, "POST", PUSHED, {"visitorId": VISITOR, "text": "thr"}, 200),
    ],
)
def test_a_switch_decides_what_nobody_knows(switches, method, path, body, status):
    assert Asked(**switches)(method, path, body)[0] == status


@pytest.mark.parametrize("status", [400, 404])
@pytest.mark.parametrize(("method", "body"), [("PUT", {"text": "mine"}), ("DELETE", None)])
def test_what_a_visitor_wrote_can_be_read_but_not_changed(status, method, body):
    ask = Asked(visitor_message_change=status)
    ask.state.add_visitors([{"id": VISITOR, "text": "Help"}], ask.now)
    (written,) = ask.state.messages.values()
    assert ask("GET", f"{MESSAGES}/{written.id}")[1]["type"] == "visitor"
    assert ask(method, f"{MESSAGES}/{written.id}", body)[0] == status
    assert (written.text, written.deleted) == ("Help", False)


def test_deleting_twice_may_be_a_204():
    ask = Asked(second_delete=204)
    sent = ask.sent()
    assert [ask("DELETE", f"{PUSHED}/{sent['id']}")[0] for _ in range(2)] == [204, 204]
    assert ask("GET", f"{PUSHED}/{sent['id']}")[0] == 404


def test_html_may_come_unescaped():
    assert Asked(html_escaping=False).sent(text="<b>a</b>\n&")["html"] == "<b>a</b><br>&"


def test_ids_may_be_long_with_an_underscore():
    assert len(Asked().sent()["id"]) == 17
    assert [len(part) for part in Asked(id_style="long").sent()["id"].split("_")] == [24, 24]


def test_errors_may_be_worded_and_ordered_in_other_ways():
    ask = Asked(
        not_found_code=None,
        not_found_message="Item not found",
        missing_message="Missing: {field}",
        error_key_order="message_first",
        too_many_requests_body=["slow", "down"],
        quota=2,
    )
    assert ask("GET", f"{MESSAGES}/x") == (404, {"message": "Item not found"})
    status, error = ask("POST", PUSHED, {})
    assert (status, list(error.items())) == (
        400,
        [("message", "Missing: visitorId"), ("code", "missing_parameter")],
    )
    assert ask("POST", PUSHED, {}) == (429, ["slow", "down"])


# -- who may


def test_the_two_401_bodies_are_brevos_own_and_carry_no_quota_headers():
    ask = Asked()
    missing, unknown = (
        ask.answer("GET", "/account", key=None),
        ask.answer("GET", "/account", key="xkeysib-other"),
    )
    assert missing.body == b'{"message": "authentication not found in headers", "code": "unauthorized"}'
    assert unknown.body == b'{"code": "unauthorized", "message": "Key not found"}'
    assert ask.answer("GET", "/account", key="").body == missing.body, "an empty key is no key"
    for answer in (missing, unknown):
        assert answer.status == 401
        assert answer.headers.keys() == {"content-type", "sib-request-id"}
    assert ask.state.quota(ask.now)["windows_opened"] == 0, "a 401 is not counted"


@pytest.mark.parametrize(
    ("level", "allowed"),
    [("read", {"GET"}), ("read_write", {"GET", "POST", "PUT"}), ("all", {"GET", "POST", "PUT", "DELETE"})],
)
def test_a_restricted_key_may_use_conversations_as_far_as_its_level_goes_and_not_the_account(level, allowed):
    ask = Asked(restricted_key="xkeysib-restricted", restricted_level=level)
    calls = {
        "GET": (f"{PUSHED}/x", None),
        "POST": (PUSHED, {"visitorId": VISITOR, "text": "Hi"}),
        "PUT": (f"{PUSHED}/x", {"text": "Hi"}),
        "DELETE": (f"{PUSHED}/x", None),
    }
    statuses = {m: ask(m, path, body, key="xkeysib-restricted")[0] for m, (path, body) in calls.items()}
    assert {method for method, status in statuses.items() if status != 403} == allowed
    status, error = ask("GET", "/account", key="xkeysib-restricted")
    assert status == 403
    assert error["message"].startswith('Access denied for resource "account". The API key does not include')
    assert ask("GET", "/account")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/account", 405, "POST Method is not allowed on this path"),
        ("GET", PUSHED, 405, "GET Method is not allowed on this path"),
        ("PATCH", f"{MESSAGES}/x", 405, "PATCH Method is not allowed on this path"),
        ("GET", "/contacts", 404, "Document not found"),
        ("GET", f"{MESSAGES}/", 404, "Document not found"),
        ("GET", f"{MESSAGES}/x/y", 404, "Document not found"),
    ],
)
def test_unknown_paths_and_methods_are_json_errors_and_use_no_quota(method, path, status, message):
    ask = Asked()
    answer = ask.answer(method, path)
    assert (answer.status, json.loads(answer.body)["message"]) == (status, message)
    assert answer.headers[LEFT] == "100"


# -- the quota


def test_the_quotas_hour_begins_with_its_first_request_and_the_reset_is_the_time_left_in_seconds():
    ask = Asked(quota=2, hour_seconds=20)
    seen = []
    for now in (1_000.0, 1_004.5, 1_019.9, 1_020.0, 1_039.99, 1_050.0):
        ask.now = now
        answer = ask.answer("GET", "/account")
        seen.append((answer.status, answer.headers[LIMIT], answer.headers[LEFT], answer.headers[RESET]))
    assert seen == [
        (200, "2", "1", "20"),
        (200, "2", "0", "16"),
        (429, "2", "0", "1"),
        (200, "2", "1", "20"),
        (200, "2", "0", "1"),
        (200, "2", "1", "20"),
    ]
    assert ask.state.quota(ask.now) == {
        "limit": 2,
        "remaining": 1,
        "reset_in_seconds": 20,
        "is_open": True,
        "windows_opened": 3,
        "refused": 1,
    }


def test_a_refused_request_changes_nothing():
    ask = Asked(quota=1)
    ask.sent()
    assert ask("POST", PUSHED, {"visitorId": VISITOR, "text": "Hello"})[0] == 429
    assert ask.state.counts() == {"visitors": 1, "messages": 1, "duplicates": 0, "requests": 2}


def test_each_route_may_have_a_quota_of_its_own():
    ask = Asked(quota=1, bucket="per_route")
    assert [ask("GET", "/account")[0], ask("POST", PING, {"agentId": AGENT})[0]] == [200, 201]
    assert [ask("GET", "/account")[0], ask("POST", PING, {"agentId": AGENT})[0]] == [429, 429]


def test_quota_headers_can_be_switched_off():
    headers = Asked(rate_headers=False).answer("GET", "/account").headers
    assert headers.keys() == {"content-type", "sib-request-id"}


# -- what it tells


def test_every_request_is_counted_and_logged():
    ask = Asked(quota=1)
    ask("GET", "/account", key=None)
    ask.sent()
    ask("GET", f"{PUSHED}/x%2Fy")
    ask("GET", "/nothing")
    requests = ask.state.summary(ask.now)["requests"]
    assert requests["total"] == 4
    assert requests["by_operation"] == {
        "get_account": 1,
        "send_pushed_message": 1,
        "get_pushed_message": 1,
        "none": 1,
    }
    assert requests["by_status"] == {"401": 1, "200": 1, "429": 1, "404": 1}
    assert [(entry["method"], entry["path"], entry["status"]) for entry in requests["log"]] == [
        ("GET", "/v3/account", 401),
        ("POST", "/v3/conversations/pushedMessages", 200),
        ("GET", "/v3/conversations/pushedMessages/x%2Fy", 429),
        ("GET", "/v3/nothing", 404),
    ]
    assert len({entry["request_id"] for entry in requests["log"]}) == 4
    assert len(ask.state.summary(ask.now, log=1)["requests"]["log"]) == 1


def test_a_duplicate_is_a_text_its_visitor_has_had_before_whatever_became_of_it():
    ask = Asked()
    first = ask.sent()
    ask("PUT", f"{PUSHED}/{first['id']}", {"text": "Hello!"})
    ask.sent()
    third = ask.sent()
    ask("DELETE", f"{PUSHED}/{third['id']}")
    ask.sent(visitorId="another")
    ask.sent(text="Something else")
    ask.state.add_visitors([{"id": VISITOR, "text": "Hello"}], ask.now)
    assert ask.state.counts()["duplicates"] == 2


def test_all_it_tells_is_json_and_holds_no_key():
    ask = Asked(api_key="xkeysib-secret", restricted_key="xkeysib-other-secret")
    ask("POST", PUSHED, {"visitorId": VISITOR, "text": "Hi"}, key="xkeysib-secret")
    told = json.dumps(ask.state.snapshot(ask.now))
    assert "secret" not in told


def test_reset_goes_back_to_the_start():
    ask = Asked(quota=5)
    begun = ask.state.snapshot(ask.now)
    ask.sent(visitorId="new")
    ask.state.configure({"quota": 7})
    ask.state.add_fault({"kind": "garbage"})
    ask.state.reset()
    assert ask.state.snapshot(ask.now) == begun


def test_the_page_gets_what_the_visitor_sees():
    ask = Asked()
    gone, edited = ask.sent(), ask.sent()
    ask("DELETE", f"{PUSHED}/{gone['id']}")
    ask("PUT", f"{PUSHED}/{edited['id']}", {"text": "Better"})
    ask.state.add_visitors([{"id": "ana", "name": "Ana Silva"}, {"id": "bo", "text": "Help"}], ask.now)
    chats = ask.state.chats(offset=0, limit=10)
    assert [chat["id"] for chat in chats["chats"]] == [VISITOR, "ana", "bo"]
    (message,) = chats["chats"][0]["messages"]
    assert (message["text"], message["revisions"], message["agent"]) == ("Better", 1, "Liz")
    assert chats["chats"][2]["messages"][0]["kind"] == "visitor"
    found = ask.state.chats(offset=0, limit=10, search="SILVA")
    assert (found["total"], found["chats"][0]["id"]) == (1, "ana")
    newest = ask.state.chats(offset=1, limit=1, newest_first=True)
    assert (newest["total"], [chat["id"] for chat in newest["chats"]]) == (3, ["ana"])


def test_the_page_gets_the_newest_fifty_messages_of_a_chat():
    ask = Asked()
    for number in range(60):
        ask.sent(text=str(number))
    (chat,) = ask.state.chats(offset=0, limit=10)["chats"]
    assert (chat["earlier"], chat["messages"][0]["text"], len(chat["messages"])) == (10, "10", 50)


@pytest.mark.parametrize("wrong", [5, {}, {"id": " "}, {"id": "a", "text": 5}, {"id": "a", "color": "red"}])
def test_a_wrong_visitor_is_refused_and_none_is_added(wrong):
    ask = Asked()
    with pytest.raises(ValueError, match="visitor"):
        ask.state.add_visitors([{"id": "fine"}, wrong], ask.now)
    assert list(ask.state.visitors) == [VISITOR]
