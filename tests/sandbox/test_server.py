"""The sandbox over a socket: faults, its own API, the page."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import aiohttp
import pytest

from airflow_provider_sib.sandbox import Sandbox

VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"
AGENT = "d9nKoegKSjmCtyK78"
PUSHED = "/conversations/pushedMessages"
HELLO = {"visitorId": VISITOR, "text": "Hello"}


def stored(sandbox) -> int:
    return len(sandbox.messages())


def remaining(sandbox) -> int:
    return sandbox.state()["quota"]["remaining"]


# -- the API over HTTP


def test_all_ten_operations_and_the_account_answer(call):
    sent = call("POST", "/conversations/messages", HELLO | {"agentId": AGENT}).json()
    pushed = call("POST", PUSHED, HELLO).json()
    replies = [
        call("GET", f"/conversations/messages/{sent['id']}"),
        call("PUT", f"/conversations/messages/{sent['id']}", {"text": "Hi"}),
        call("DELETE", f"/conversations/messages/{sent['id']}"),
        call("GET", f"{PUSHED}/{pushed['id']}"),
        call("PUT", f"{PUSHED}/{pushed['id']}", {"text": "Hi"}),
        call("DELETE", f"{PUSHED}/{pushed['id']}"),
        call("POST", "/conversations/agentOnlinePing", {"agentId": AGENT}),
        call("PUT", "/conversations/visitorGroup", {"visitorId": VISITOR, "groupId": None}),
        call("GET", "/account"),
    ]
    assert [reply.status for reply in replies] == [200, 200, 204, 200, 200, 204, 201, 200, 200]
    assert [len(reply.body) for reply in replies if reply.status in (201, 204)] == [0, 0, 0]
    for reply in replies:
        assert reply.headers.keys() >= {"sib-request-id", "x-sib-ratelimit-limit", "x-sib-ratelimit-reset"}
    assert [reply.headers["x-sib-ratelimit-remaining"] for reply in replies] == [
        str(n) for n in range(97, 88, -1)
    ]


def test_an_id_with_slashes_dots_and_a_question_mark_reaches_its_own_route(call, sandbox):
    reply = call("GET", "/conversations/messages/..%2FvisitorGroup%3Fx%3D1")
    assert reply.status == 404
    (entry,) = sandbox.state()["requests"]["log"]
    assert entry["operation"] == "get_message"


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_called_json_is_a_400(call, sandbox, content_type):
    headers = {"api-key": sandbox.api_key} | ({"content-type": content_type} if content_type else {})
    reply = call.raw("POST", f"/v3{PUSHED}", json.dumps(HELLO).encode(), headers)
    assert (reply.status, reply.json()["code"]) == (400, "bad_request")


def test_a_text_of_two_million_characters_is_taken(call):
    text = "ü" * 2_000_000
    assert call("POST", PUSHED, HELLO | {"text": text}).json()["text"] == text


def test_an_hour_of_a_second_begins_anew_after_a_second():
    from_outside = []
    with Sandbox(quota=2, hour_seconds=1) as sandbox:
        port = int(sandbox.base_url.split(":")[2].split("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        deadline = time.monotonic() + 20
        while from_outside[-1:] != [200] or 429 not in from_outside:
            assert time.monotonic() < deadline, from_outside
            connection.request("GET", "/v3/account", headers={"api-key": sandbox.api_key})
            reply = connection.getresponse()
            reply.read()
            from_outside.append(reply.status)
        connection.close()
        assert from_outside[:3] == [200, 200, 429]
        assert sandbox.state()["quota"]["windows_opened"] == 2


# -- faults


@pytest.mark.parametrize(
    ("kind", "error", "is_stored", "calls_used"),
    [
        ("hang_up_before", http.client.RemoteDisconnected, False, 0),
        ("hang_up_during", http.client.IncompleteRead, True, 1),
        ("hang_up_after", http.client.RemoteDisconnected, True, 1),
    ],
)
def test_it_hangs_up_before_during_and_after(call, sandbox, kind, error, is_stored, calls_used):
    sandbox.fault(kind, times=1)
    # a connection may close with a reset, which the client's library reports in its own words
    with pytest.raises((error, ConnectionResetError)):
        call("POST", PUSHED, HELLO)
    assert (stored(sandbox), 100 - remaining(sandbox)) == (is_stored, calls_used)
    assert sandbox.state()["requests"]["log"][-1]["fault"] == kind
    assert call("POST", PUSHED, HELLO).status == 200, "once only"


def test_an_answer_without_a_body_is_cut_within_its_first_line(call, sandbox):
    sandbox.fault("hang_up_during", operation="ping_agent_online")
    with pytest.raises((http.client.BadStatusLine, ConnectionResetError)):
        call("POST", "/conversations/agentOnlinePing", {"agentId": AGENT})
    assert sandbox.state()["agents"][AGENT]["isOnline"] is True


@pytest.mark.parametrize("store", [True, False])
def test_it_never_answers_and_still_stops_at_once(call, sandbox, store):
    sandbox.fault("never_answer", store=store)
    with pytest.raises(TimeoutError):
        call("POST", PUSHED, HELLO, timeout=1)
    assert stored(sandbox) == store
    assert sandbox.state()["requests"]["by_status"] == {"none": 1}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(call, "POST", PUSHED, HELLO)
        deadline = time.monotonic() + 5
        while sandbox.counts()["requests"] < 2:
            assert time.monotonic() < deadline
        began = time.monotonic()
        sandbox.stop()
        assert time.monotonic() - began < 10
        assert isinstance(waiting.exception(timeout=5), http.client.HTTPException | OSError)


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize(
    ("kind", "status", "start"),
    [("error_json", 500, b'{"code"'), ("error_html", 502, b"<html>"), ("garbage", 200, b"\x1f\x8b{oops")],
)
def test_errors_come_with_or_without_the_work_done(call, sandbox, kind, status, start, store):
    sandbox.fault(kind, store=store)
    reply = call("POST", PUSHED, HELLO)
    assert (reply.status, reply.body[: len(start)]) == (status, start)
    assert "x-sib-ratelimit-remaining" in reply.headers
    assert stored(sandbox) == store


def test_an_error_may_have_any_status_and_body(call, sandbox):
    sandbox.fault("error_json", status=503, body=["not", "an", "object"])
    reply = call("GET", "/account")
    assert (reply.status, reply.json()) == (503, ["not", "an", "object"])


def test_a_429_may_come_without_headers_and_uses_no_quota(call, sandbox):
    sandbox.fault("too_many_requests_without_headers", times=1)
    reply = call("POST", PUSHED, HELLO)
    assert reply.status == 429
    assert not [name for name in reply.headers if "ratelimit" in name or name == "retry-after"]
    assert (stored(sandbox), remaining(sandbox)) == (0, 100)


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        (
            "ip_blocked",
            401,
            "We have detected you are using an unrecognised IP address 127.0.0.1. If you performed",
        ),
        ("permission", 403, 'Access denied for resource "conversations". The API key does not include'),
    ],
)
def test_refusals_of_the_key_come_in_brevos_words(call, sandbox, kind, status, words):
    sandbox.fault(kind)
    reply = call("POST", PUSHED, HELLO)
    assert (reply.status, reply.json()["message"][: len(words)]) == (status, words)
    assert stored(sandbox) == 0


def test_unknown_fields_and_both_namings_of_files_come_on_demand(call, sandbox):
    sandbox.fault("extra_fields")
    message = call("POST", PUSHED, HELLO).json()
    assert message["isFromTheFuture"] is True
    assert message["file"]["name"] == "receipt.png"
    assert message["attachments"][0]["fileName"] == "terms.pdf"
    assert message["text"] == "Hello"


def test_an_answer_may_lack_the_quota_headers(call, sandbox):
    sandbox.fault("no_rate_headers", times=1)
    assert [("x-sib-ratelimit-limit" in call("GET", "/account").headers) for _ in range(2)] == [False, True]


def test_a_late_answer_was_stored_at_once_and_others_do_not_wait(call, sandbox):
    sandbox.fault("latency", seconds=2, operation="send_pushed_message")
    began = time.monotonic()
    with ThreadPoolExecutor(5) as pool:
        late = [pool.submit(call, "POST", PUSHED, HELLO) for _ in range(5)]
        assert call("GET", "/account").status == 200
        assert {reply.result().status for reply in late} == {200}
    assert 2 <= time.monotonic() - began < 8  # one after the other they would take ten
    with pytest.raises(TimeoutError):
        call("POST", PUSHED, HELLO, timeout=1)
    assert stored(sandbox) == 6


@pytest.mark.parametrize("kind", ["hang_up_before", "hang_up_during", "hang_up_after"])
def test_what_would_have_been_refused_meets_faults_too(call, sandbox, kind):
    sandbox.fault(kind)
    with pytest.raises((http.client.HTTPException, ConnectionResetError)):
        call("GET", f"{PUSHED}/nothing")
    sandbox.clear_faults()
    sandbox.fault("error_html", store=True)
    assert call("GET", f"{PUSHED}/nothing").status == 502


def test_faults_can_be_ended(call, sandbox):
    sandbox.fault("error_html")
    sandbox.clear_faults()
    assert call("GET", "/account").status == 200


# -- its own API


def test_the_state_is_the_same_over_http_and_in_python(call, sandbox):
    call("POST", PUSHED, HELLO)
    told = call.own("GET", "/_sandbox/state").json()
    assert told == sandbox.state() | {"quota": told["quota"]}
    assert told["visitors"][VISITOR]["messageIds"] == list(told["messages"])
    assert told["requests"]["total"] == 1, "its own API is not counted"
    summary = call.own("GET", "/_sandbox/state?messages=0&log=0").json()
    assert told.keys() - summary.keys() == {"visitors", "messages"}
    assert summary["requests"]["log"] == []
    assert summary["counts"] == call.own("GET", "/_sandbox/counts").json() == sandbox.counts()


def test_thousands_of_messages_are_told_in_pieces_and_whole(call, sandbox):
    sandbox.add_visitors(*({"id": f"v{n}", "text": f"text {n}"} for n in range(2_500)))
    messages = call.own("GET", "/_sandbox/messages").json()
    assert [message["text"] for message in messages] == [f"text {n}" for n in range(2_500)]
    assert messages == sandbox.messages()
    assert len(call.own("GET", "/_sandbox/state").json()["visitors"]) == 2_501
    assert [m["text"] for m in call.own("GET", "/_sandbox/messages?visitor_id=v7").json()] == ["text 7"]
    assert call.own("GET", "/_sandbox/messages?visitor_id=nobody").json() == []


def test_switches_faults_and_visitors_are_set_over_http(call, sandbox):
    settings = call.own("PUT", "/_sandbox/settings", {"unknown_visitor": "reject"}).json()
    assert (settings["unknown_visitor"], settings["quota"]) == ("reject", 100)
    assert call("POST", PUSHED, HELLO | {"visitorId": "ana"}).status == 400
    assert call.own("POST", "/_sandbox/visitors", [{"id": "ana", "name": "Ana"}, {"id": "bo"}]).status == 201
    assert call("POST", PUSHED, HELLO | {"visitorId": "ana"}).status == 200
    assert call.own("POST", "/_sandbox/visitors", {"id": "bo", "text": "Help"}).json() == {"visitors": 3}
    added = call.own("POST", "/_sandbox/faults", {"kind": "error_html", "times": 3})
    assert (added.status, added.json()[0]["times"]) == (201, 3)
    assert call("GET", "/account").status == 502
    assert sandbox.state()["faults"][0]["struck"] == 1
    assert call.own("DELETE", "/_sandbox/faults").status == 204
    assert call.own("POST", "/_sandbox/reset").status == 204
    assert sandbox.state()["requests"]["total"] == 0
    assert sandbox.state()["settings"]["unknown_visitor"] == "accept"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("PUT", "/_sandbox/settings", {"speed": 1}, 400, "The sandbox has no switch speed"),
        ("PUT", "/_sandbox/settings", [], 400, "The body must be a JSON object."),
        ("POST", "/_sandbox/faults", {"kind": "fire"}, 400, "kind must be one of"),
        ("POST", "/_sandbox/visitors", {"name": "Ana"}, 400, "id, name and text of a visitor must be texts"),
        ("GET", "/_sandbox/chats?limit=all", None, 400, "limit must be a whole number"),
        ("GET", "/_sandbox/nothing", None, 404, "The sandbox answers at /"),
        ("POST", "/", {}, 404, "The sandbox answers at /"),
        ("GET", "/v2/account", None, 404, "The sandbox answers at /"),
    ],
)
def test_wrong_use_of_its_own_api_is_answered_by_one_sentence(call, method, path, body, status, words):
    reply = call.own(method, path, body)
    assert (reply.status, reply.json()["message"][: len(words)]) == (status, words)


def test_pages_of_other_origins_can_change_and_read_nothing(call, sandbox):
    for origin in ("https://evil.example", "null", "http://["):
        assert call.own("POST", "/_sandbox/visitors", {"id": "ana"}, origin=origin).status == 403
        assert call.own("GET", "/_sandbox/state", origin=origin).status == 403
    form = call.raw("POST", "/_sandbox/visitors", b'{"id": "ana"}', {"content-type": "text/plain"})
    assert form.status == 400, "what a form can send without asking is not JSON"
    own = call.own("POST", "/_sandbox/visitors", {"id": "bo"}, origin=sandbox.page_url.rstrip("/"))
    assert own.status == 201


# -- the page


class Sources(HTMLParser):
    """Collects what a page loads, and the scripts written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.types: list[str | None] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.loaded += [value for name, value in attrs if name in ("src", "href") and value]
        if tag == "script":
            self.types.append(values.get("type"))


def test_the_page_loads_nothing_from_elsewhere_and_is_allowed_nothing_else(call):
    page = call.own("GET", "/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    sources = Sources()
    sources.feed(page.body.decode())
    local = [source for source in sources.loaded if not source.startswith("data:")]
    assert local == ["_sandbox/page.css", "_sandbox/page.js"]
    for source in local:
        asset = call.own("GET", f"/{source}")
        assert (asset.status, asset.headers["x-content-type-options"]) == (200, "nosniff")
        assert b"http://" not in asset.body
        assert b"https://" not in asset.body


def test_the_pages_script_never_writes_markup(call):
    script = call.own("GET", "/_sandbox/page.js").body.decode()
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert forbidden not in script


def test_no_text_gets_out_of_the_data_the_page_comes_with(call):
    text = "</script><script>alert(1)</script><!--"
    call("POST", PUSHED, HELLO | {"text": text})
    page = call.own("GET", "/").body.decode()
    sources = Sources()
    sources.feed(page)
    assert sources.types == ["module", "application/json"]
    data = page.split('type="application/json">')[1].split("</script>")[0]
    assert json.loads(data)["chats"]["chats"][0]["messages"][0]["text"] == text


async def test_the_page_hears_of_every_change(sandbox):
    seen = []
    async with aiohttp.ClientSession() as session:

        async def figures() -> dict:
            line = b""
            while not line.startswith(b"data: "):
                line = await events.content.readline()
            seen.append(json.loads(line[6:]))
            return seen[-1]

        async with session.get(f"{sandbox.page_url}_sandbox/events") as events:
            assert events.content_type == "text/event-stream"
            first = await figures()
            for change in (
                lambda: sandbox.add_visitors({"id": "ana", "text": "Help"}),
                lambda: sandbox.fault("garbage"),
                sandbox.reset,
            ):
                before = seen[-1]["version"]
                change()
                while (await figures())["version"] == before:
                    pass
    assert (first["visitors"], first["messages"], first["faults"]) == (1, 0, 0)
    assert {(one["visitors"], one["messages"], one["faults"]) for one in seen} == {
        (1, 0, 0),
        (2, 1, 0),
        (2, 1, 1),
    }
    assert seen[-1]["quota"]["remaining"] == 100


async def test_a_page_that_looks_on_does_not_keep_it_from_stopping():
    sandbox = Sandbox().start()
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{sandbox.page_url}_sandbox/events") as events,
    ):
        await events.content.readline()
        began = time.monotonic()
        sandbox.stop()
        assert time.monotonic() - began < 10


# -- the class


def test_it_is_a_connection_for_airflow(sandbox):
    connection = json.loads(sandbox.connection_json(reserve_calls=0))
    assert connection == {
        "conn_type": "sib_conversations",
        "host": sandbox.base_url,
        "password": "xkeysib-sandbox",
        "extra": {"reserve_calls": 0},
    }
    assert sandbox.base_url.endswith("/v3")


def test_several_run_at_once_and_know_nothing_of_each_other():
    with Sandbox(quota=5) as one, Sandbox(quota=6, api_key="xkeysib-mine") as other:
        one.configure(quota=7)
        assert (one.state()["settings"]["quota"], other.state()["settings"]["quota"]) == (7, 6)
        assert (one.api_key, other.api_key) == ("xkeysib-sandbox", "xkeysib-mine")


def test_wrong_switches_are_refused_before_it_starts_and_while_it_runs(sandbox):
    with pytest.raises(ValueError, match="no switch speed"):
        Sandbox(speed=1)
    with pytest.raises(ValueError, match="quota must be"):
        sandbox.configure(quota="x")
    with pytest.raises(ValueError, match="kind must be"):
        sandbox.fault("fire")


def test_a_sandbox_that_does_not_run_says_so():
    with pytest.raises(RuntimeError, match="not running"):
        Sandbox().state()


def test_nothing_is_left_when_it_has_stopped():
    before = threading.active_count()
    with Sandbox() as sandbox:
        port = int(sandbox.base_url.split(":")[2].split("/")[0])
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass
    sandbox.stop()
