"""Clients: one suite over both, against the sandbox through every fault, and against raw sockets for the rest."""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import inspect
import socket
import subprocess
import sys
import threading
import time
import tracemalloc

import pytest

from airflow_provider_sib import __version__
from airflow_provider_sib.api import calls
from airflow_provider_sib.api.aio import AsyncConversationsClient
from airflow_provider_sib.api.client import ConversationsClient
from airflow_provider_sib.api.errors import (
    InvalidRequest,
    NotFound,
    RateLimited,
    ServerError,
    TransportError,
    Unauthorized,
    UnexpectedResponse,
)
from airflow_provider_sib.api.models import Account, Message, VisitorGroup
from airflow_provider_sib.sandbox import Sandbox

from .conftest import MESSAGE, answering, reset_at_once, self_signed, tunnel

KEY = "xkeysib-0123456789abcdef-secret"
VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"
AGENT = "d9nKoegKSjmCtyK78"
GROUP = "PjRBMhWGen6aRHjif"
SEND = calls.send_pushed_message(VISITOR, "Grüße 🎉 <b>")
GET = calls.get_pushed_message("m")


@pytest.fixture(scope="module")
def running():
    with Sandbox(quota=1_000_000) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running):
    running.reset()
    running.clear_faults()
    return running


@pytest.fixture
def client(connect, sandbox):
    return connect(api_key=sandbox.api_key, base_url=sandbox.base_url, timeout_seconds=10)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def stored(sandbox):
    return [message for message in sandbox.messages() if message.get("text") == SEND.body["text"]]


def requested(sandbox):
    return sandbox.state()["requests"]["total"]


# Against the sandbox: every operation, every fault


def test_every_operation_does_what_it_says(client, sandbox):
    sent = client.method("send_pushed_message", VISITOR, "one", agent_id=AGENT)
    assert isinstance(sent, Message)
    assert (sent.text, sent.is_pushed, sent.visitor_id, sent.agent_id) == ("one", True, VISITOR, AGENT)
    assert abs(sent.created_at - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)
    assert client.method("get_pushed_message", sent.id) == sent
    assert client.method("update_pushed_message", sent.id, "two").text == "two"
    assert client.method("delete_pushed_message", sent.id) is None
    with pytest.raises(NotFound):
        client.method("get_pushed_message", sent.id)

    said = client.method("send_message", VISITOR, "one", agent_id=AGENT, received_from="Desk")
    assert (said.is_pushed, said.received_from) == (False, "Desk")
    by_mail = {"agent_email": "new@example.com", "agent_name": "New", "received_from": "Desk"}
    assert client.method("send_message", VISITOR, "two", **by_mail).received_from == "Desk"
    assert client.method("get_message", said.id).text == "one"
    assert client.method("update_message", said.id, "three").text == "three"
    assert client.method("delete_message", said.id) is None

    assert client.method("ping_agent_online", agent_id=AGENT) is None
    assert client.method("ping_agent_online", **by_mail) is None
    group = client.method("set_visitor_group", VISITOR, GROUP)
    assert isinstance(group, VisitorGroup)
    assert (group.group_id, group.visitor_id) == (GROUP, VISITOR)
    assert client.method("set_visitor_group", VISITOR, None).group_id is None
    assert isinstance(client.method("get_account"), Account)


def test_a_text_arrives_as_it_was_given(client, sandbox):
    text = 'Grüße\n\t🎉 “quoted” <b>&amp;</b> \\ " \x00 \u2028 [[ x ]]'
    sent = client.method("send_pushed_message", VISITOR, text)
    assert sent.text == text
    assert sandbox.messages()[-1]["text"] == text


def test_the_answer_tells_the_quota_and_the_request_id(client, sandbox):
    answer = client.perform(SEND)
    assert answer.requests == 1
    assert answer.request_id == sandbox.state()["requests"]["log"][-1]["request_id"]
    assert answer.quota.limit == 1_000_000
    assert 0 <= answer.quota.remaining < 1_000_000
    assert 0 < answer.quota.reset_in_seconds <= 3600


@pytest.mark.parametrize(
    ("message_id", "segment"),
    [
        ("../visitorGroup?x=1", "..%2FvisitorGroup%3Fx%3D1"),
        ("a/b", "a%2Fb"),
        ("%2e%2e", "%252e%252e"),
        ("%2F", "%252F"),
        ("...", "..."),
        (".a", ".a"),
        ("d9_n-K~.0", "d9_n-K~.0"),
        ("a b+c#d;e&f=g", "a%20b%2Bc%23d%3Be%26f%3Dg"),
        ("Grüße🎉", "Gr%C3%BC%C3%9Fe%F0%9F%8E%89"),
        ("\r\nx: y", "%0D%0Ax%3A%20y"),
        ("\\..\\", "%5C..%5C"),
    ],
)
def test_an_id_reaches_its_own_route_as_an_id(client, sandbox, message_id, segment):
    for call in (
        calls.get_message(message_id),
        calls.update_message(message_id, "t"),
        calls.delete_pushed_message(message_id),
    ):
        with pytest.raises(NotFound):
            client.perform(call)
        logged = sandbox.state()["requests"]["log"][-1]
        assert logged["path"].endswith(f"essages/{segment}")
        assert logged["operation"] == call.name.replace("a ", "").replace(" ", "_")


def test_long_ids_work(connect, running):
    with Sandbox(id_style="long") as sandbox:
        client = connect(api_key=sandbox.api_key, base_url=sandbox.base_url)
        sent = client.method("send_pushed_message", VISITOR, "x")
        assert "_" in sent.id
        assert client.method("get_pushed_message", sent.id).id == sent.id


@pytest.mark.parametrize(
    ("fault", "kind", "arrived"),
    [
        ({"kind": "hang_up_before"}, TransportError, 0),
        ({"kind": "hang_up_during"}, UnexpectedResponse, 1),
        ({"kind": "hang_up_after"}, TransportError, 1),
        ({"kind": "never_answer"}, TransportError, 1),
        ({"kind": "never_answer", "store": False}, TransportError, 0),
        ({"kind": "garbage"}, UnexpectedResponse, 1),
        ({"kind": "error_html"}, ServerError, 0),
        ({"kind": "error_html", "status": 504, "store": True}, ServerError, 1),
        ({"kind": "error_json"}, ServerError, 0),
        ({"kind": "error_json", "status": 503, "store": True}, ServerError, 1),
        ({"kind": "error_json", "status": 400}, InvalidRequest, 0),
        ({"kind": "error_json", "status": 422, "body": {"message": "no code"}}, InvalidRequest, 0),
        ({"kind": "error_json", "status": 402}, Unauthorized, 0),
        ({"kind": "too_many_requests_without_headers"}, RateLimited, 0),
        ({"kind": "ip_blocked"}, Unauthorized, 0),
        ({"kind": "permission"}, Unauthorized, 0),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_a_send_that_fails_is_sent_once(connect, sandbox, fault, kind, arrived):
    """Nothing is repeated, whatever the sandbox did with it; and the error says that it isn't known, or is."""
    # Short only where it is what ends the request.
    timeout_seconds = 1.0 if fault["kind"] == "never_answer" else 10.0
    client = connect(api_key=sandbox.api_key, base_url=sandbox.base_url, timeout_seconds=timeout_seconds)
    sandbox.fault(**fault, times=1)
    with pytest.raises(kind) as caught:
        client.perform(SEND)
    assert type(caught.value) is kind
    assert len(stored(sandbox)) == arrived
    assert requested(sandbox) == 1
    assert client.slept == []
    assert sandbox.api_key not in str(caught.value)
    if isinstance(caught.value, TransportError):
        assert caught.value.maybe_delivered
        assert caught.value.call == "send a pushed message"


@pytest.mark.parametrize("fault", ["extra_fields", "no_rate_headers"])
def test_what_is_merely_unusual_does_no_harm(client, sandbox, fault):
    sandbox.fault(fault)
    answer = client.perform(SEND)
    if fault == "extra_fields":
        assert answer.value.model_extra
    else:
        assert answer.quota is None


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "hang_up_before"},
        {"kind": "hang_up_during"},
        {"kind": "hang_up_after"},
        {"kind": "never_answer"},
        {"kind": "error_html"},
        {"kind": "error_json", "status": 503},
    ],
    ids=lambda fault: fault["kind"],
)
def test_what_may_be_done_twice_survives_a_fault(connect, sandbox, fault):
    timeout_seconds = 1.0 if fault["kind"] == "never_answer" else 10.0
    client = connect(api_key=sandbox.api_key, base_url=sandbox.base_url, timeout_seconds=timeout_seconds)
    message_id = client.perform(SEND).value.id
    for call in (
        calls.get_pushed_message(message_id),
        calls.update_pushed_message(message_id, "new"),
        calls.ping_agent_online(agent_id=AGENT),
        calls.set_visitor_group(VISITOR, GROUP),
        calls.delete_pushed_message(message_id),
    ):
        sandbox.fault(**fault, times=1)
        client.perform(call)
    assert [message["deleted"] for message in sandbox.state()["messages"].values()] == [True]


def test_a_lasting_failure_costs_three_requests_with_growing_waits(client, sandbox):
    sandbox.fault("error_html")
    with pytest.raises(ServerError):
        client.perform(GET)
    assert requested(sandbox) == 3
    assert client.slept == [1.0, 2.0]


def test_429_is_raised_at_once_with_its_reset_by_default(connect):
    with Sandbox(quota=1) as sandbox:
        client = connect(api_key=sandbox.api_key, base_url=sandbox.base_url)
        assert client.perform(SEND).quota.remaining == 0
        with pytest.raises(RateLimited) as caught:
            client.perform(SEND)
        assert 3590 <= caught.value.reset_in <= 3600
        assert caught.value.quota.remaining == 0
        assert len(stored(sandbox)) == 1
        assert client.slept == []


def test_429_is_waited_for_where_that_was_allowed(connect):
    with Sandbox(quota=1) as sandbox:
        client = connect(
            api_key=sandbox.api_key,
            base_url=sandbox.base_url,
            rate_limit_wait_seconds=3600,
            pause=lambda: sandbox.configure(quota=2),
        )
        client.perform(SEND)
        answer = client.perform(SEND)
        assert answer.requests == 2
        assert len(stored(sandbox)) == 2
        assert 3591 <= client.slept[0] <= 3601


def test_a_wrong_key_is_the_connections_fault(connect, sandbox):
    client = connect(api_key=KEY, base_url=sandbox.base_url)
    with pytest.raises(Unauthorized, match="Key not found") as caught:
        client.perform(SEND)
    assert KEY not in str(caught.value)


# Against raw sockets: what the sandbox does not do


def waiting(peer, sock):
    """Read requests, answer none."""
    while peer.read(sock):
        peer.over.wait(20)


def at(peer, connect, **settings):
    return connect(**({"api_key": KEY, "base_url": peer.url, "timeout_seconds": 5} | settings))


def failed(client, call=SEND):
    with pytest.raises(TransportError) as caught:
        client.perform(call)
    assert KEY not in str(caught.value)
    return caught.value


def headers_of(request: bytes) -> dict[str, str]:
    lines = request.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    pairs = [line.split(": ", 1) for line in lines]
    assert len({name.lower() for name, _ in pairs}) == len(pairs)
    return {name.lower(): value for name, value in pairs}


def test_every_request_carries_the_documented_headers_and_nobody_elses(connect, peer, environment, tmp_path):
    """In particular no Authorization from ~/.netrc, and no cookie that an earlier answer set."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\ndefault login me password secret\n")
    netrc.chmod(0o600)
    environment.setenv("NETRC", str(netrc))
    server = peer(answering("set-cookie: __cf_bm=tracked; path=/\r\n"))
    client = at(server, connect)
    for call in (SEND, GET, calls.delete_message("m"), calls.get_message("m")):
        client.perform(call)
        headers = headers_of(server.requests[-1])
        assert headers.pop("host") == f"127.0.0.1:{server.port}"
        length = headers.pop("content-length", None)
        headers.pop("connection", None)
        assert headers == {
            "api-key": KEY,
            "accept": "application/json",
            "content-type": "application/json",
            "accept-encoding": "identity",
            "user-agent": f"airflow-provider-sib/{__version__}",
        }
        body = server.requests[-1].partition(b"\r\n\r\n")[2]
        assert length in ((None, "0") if call.body is None else (str(len(body)),))
    assert server.requests[0].startswith(b"POST /v3/conversations/pushedMessages HTTP/1.1\r\n")
    assert server.requests[0].endswith(
        '{"visitorId":"%s","text":"Grüße 🎉 <b>"}'.replace("%s", VISITOR).encode()
    )
    assert server.connections == 1


def test_a_refused_connection_surely_delivered_nothing_and_is_tried_again(connect):
    with socket.create_server(("127.0.0.1", 0)) as once:
        url = f"http://127.0.0.1:{once.getsockname()[1]}/v3"
    client = connect(api_key=KEY, base_url=url)
    for call in (SEND, GET):
        error = failed(client, call)
        assert not error.maybe_delivered
        assert "refused" in str(error).lower()
    assert client.slept == [1.0, 2.0] * 2


def test_a_host_without_address_surely_got_nothing(connect):
    client = connect(api_key=KEY, base_url="https://sib.invalid/v3")
    error = failed(client)
    assert not error.maybe_delivered
    assert error.reason


def test_a_company_certificate_is_trusted_by_both_clients_through_one_variable(
    connect, peer, environment, certificate, tls
):
    environment.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    server = peer(answering(), tls)
    assert at(server, connect).perform(SEND).value.id == "m"


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates_that_a_variable_names_are_trusted_instead_of_the_systems(
    connect, peer, environment, certificate, tls, tmp_path, variable
):
    environment.setenv("SSL_CERT_FILE", str(certificate))
    environment.setenv(variable, str(self_signed(tmp_path)))
    server = peer(answering(), tls)
    assert "certificate" in failed(at(server, connect)).reason.lower()
    assert server.requests == []


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize("content", [None, b"", b"no certificate"], ids=["gone", "empty", "broken"])
def test_certificates_that_cannot_be_read_are_refused_by_both_clients(
    connect, environment, tmp_path, variable, content
):
    bundle = tmp_path / "company.pem"
    if content is not None:
        bundle.write_bytes(content)
    environment.setenv(variable, str(bundle))
    with pytest.raises(InvalidRequest) as caught:
        connect(api_key=KEY, base_url="https://sib.invalid/v3")
    for part in (variable, str(bundle), "unset it"):
        assert part in str(caught.value)
    assert "None" not in str(caught.value)


def test_certificates_that_cannot_be_read_do_not_matter_without_tls(connect, peer, environment):
    environment.setenv("REQUESTS_CA_BUNDLE", "/not-there.pem")
    assert at(peer(answering()), connect).perform(SEND).value.id == "m"


def reset_in_the_handshake(peer, sock):
    sock.recv(1)
    reset_at_once(peer, sock)


def nonsense(peer, sock):
    sock.sendall(b"HTTP/1.1 400 this is no TLS\r\n\r\n")
    sock.recv(65536)


def silent(peer, sock):
    peer.over.wait(20)


@pytest.mark.parametrize(
    "behave", [None, nonsense, reset_in_the_handshake, silent], ids=lambda b: b and b.__name__
)
def test_a_failed_handshake_surely_delivered_nothing(connect, peer, tls, behave):
    """A certificate nobody vouches for, a server that speaks no TLS, hangs up, or says nothing."""
    server = peer(answering(), tls) if behave is None else peer(behave)
    client = at(server, connect, base_url=f"https://127.0.0.1:{server.port}/v3", timeout_seconds=0.3)
    for call in (SEND, GET):
        assert not failed(client, call).maybe_delivered
    assert len(client.slept) == 4
    assert server.requests == []


def test_a_connection_that_breaks_after_the_request_was_read_leaves_doubt(connect, peer):
    def behave(peer, sock):
        peer.read(sock)
        reset_at_once(peer, sock)

    server = peer(behave)
    client = at(server, connect)
    assert failed(client).maybe_delivered
    assert len(server.requests) == 1
    assert failed(client, GET).maybe_delivered


def test_no_library_below_repeats_a_creation_on_a_kept_connection(connect, peer):
    """The server answers once, reads the second request on the same connection, and hangs up."""

    def behave(peer, sock):
        peer.read(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(MESSAGE) + MESSAGE)
        peer.read(sock)

    server = peer(behave)
    client = at(server, connect)
    client.perform(SEND)
    assert failed(client).maybe_delivered
    assert len(server.requests) == 2
    assert server.connections == 1


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]
)
def test_redirects_are_not_followed_so_the_key_goes_to_no_other_host(connect, peer, status):
    elsewhere = peer(answering())
    server = peer(answering(f"location: {elsewhere.url}/x\r\n", b"", status))
    client = at(server, connect)
    for call in (SEND, GET):
        with pytest.raises(UnexpectedResponse, match="redirect") as caught:
            client.perform(call)
        assert caught.value.status == int(status[:3])
    assert elsewhere.connections == 0
    assert len(server.requests) == 2


def test_a_compressed_answer_is_read(connect, peer):
    server = peer(answering("content-encoding: gzip\r\n", gzip.compress(MESSAGE)))
    assert at(server, connect).perform(SEND).value.id == "m"


def test_a_gzip_bomb_does_not_go_off(connect, peer):
    bomb = gzip.compress(b'{"id": "m", "text": "' + b" " * 200_000_000, 9)
    server = peer(answering("content-encoding: gzip\r\n", bomb))
    client = at(server, connect)
    tracemalloc.start()
    with pytest.raises(UnexpectedResponse, match="longer than"):
        client.perform(SEND)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_an_endless_answer_is_read_no_further_than_the_limit(connect, peer, chunked):
    def behave(peer, sock):
        peer.read(sock)
        framing = b"transfer-encoding: chunked" if chunked else b"connection: close"
        sock.sendall(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        piece = b"x" * 65536
        while True:
            sock.sendall(b"10000\r\n" + piece + b"\r\n" if chunked else piece)

    client = at(peer(behave), connect)
    with pytest.raises(UnexpectedResponse, match="longer than"):
        client.perform(SEND)


def drip(start: bytes):
    def behave(peer, sock):
        peer.read(sock)
        sock.sendall(start)
        while True:
            sock.sendall(b"y")
            if peer.over.wait(0.05):
                return

    return behave


@pytest.mark.parametrize(
    ("behave", "kind"),
    [
        (waiting, TransportError),
        (drip(b"HTTP/1.1 200 OK\r\nx: "), TransportError),
        (drip(b"HTTP/1.1 200 OK\r\n\r\n"), UnexpectedResponse),
    ],
    ids=["no byte", "headers byte by byte", "body byte by byte"],
)
def test_the_time_limit_bounds_the_request_as_a_whole(connect, peer, behave, kind):
    client = at(peer(behave), connect, timeout_seconds=1.0)
    began = time.monotonic()
    with pytest.raises(kind, match=r"no complete answer within [\d.]+ seconds"):
        client.perform(SEND)
    assert time.monotonic() - began < 10


def test_a_cut_refusal_is_a_refusal(connect, peer):
    def behave(peer, sock):
        peer.read(sock)
        sock.sendall(b'HTTP/1.1 400 Bad\r\ncontent-length: 99\r\n\r\n{"message": "no')

    server = peer(behave)
    with pytest.raises(InvalidRequest):
        at(server, connect).perform(SEND)


def test_a_server_that_sends_the_key_back_finds_it_in_no_error(connect, peer):
    def behave(peer, sock):
        request = peer.read(sock)
        body = b"<html>" + request.replace(b"<", b"&lt;")
        sock.sendall(
            b"HTTP/1.1 400 Bad\r\nsib-request-id: "
            + KEY.encode()
            + b"\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )

    with pytest.raises(InvalidRequest) as caught:
        at(peer(behave), connect).perform(SEND)
    assert "secret" not in str(caught.value) + repr(vars(caught.value))


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 banana\r\n\r\n", b"\x00" * 99_999], ids=repr
)
def test_what_is_no_http_leaves_doubt(connect, peer, data):
    def behave(peer, sock):
        peer.read(sock)
        sock.sendall(data)

    assert failed(at(peer(behave), connect)).maybe_delivered


def test_an_error_being_handled_is_no_reason(connect, peer):
    def behave(peer, sock):
        peer.read(sock)

    client = at(peer(behave), connect)
    try:
        raise LookupError("private")
    except LookupError:
        error = failed(client)
    assert "private" not in str(error)


# Proxies

PROXIED = {"base_url": "http://brevo.invalid/v3", "allow_insecure_http": True}


def test_a_proxy_from_the_environment_is_used(connect, peer, environment):
    server = peer(answering())
    environment.setenv("HTTP_PROXY", f"http://user:p%40ss@127.0.0.1:{server.port}")
    environment.setenv("http_proxy", f"http://user:p%40ss@127.0.0.1:{server.port}")
    assert at(server, connect, **PROXIED).perform(SEND).value.id == "m"
    assert server.requests[0].startswith(
        b"POST http://brevo.invalid/v3/conversations/pushedMessages HTTP/1.1\r\n"
    )
    headers = headers_of(server.requests[0])
    assert headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"
    assert "authorization" not in headers


def test_the_proxy_argument_wins_over_the_environment(connect, peer, environment):
    server, other = peer(answering()), peer(answering())
    environment.setenv("http_proxy", f"http://127.0.0.1:{other.port}")
    at(server, connect, **PROXIED, proxy=f"http://127.0.0.1:{server.port}").perform(SEND)
    assert len(server.requests) == 1
    assert other.connections == 0


def test_this_machine_is_reached_without_the_environments_proxy(connect, peer, environment):
    server, other = peer(answering()), peer(answering())
    environment.setenv("http_proxy", f"http://127.0.0.1:{other.port}")
    at(server, connect).perform(SEND)
    assert other.connections == 0


def test_https_goes_through_a_tunnel_that_never_sees_the_key(connect, peer, environment, certificate, tls):
    environment.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    server = peer(answering(), tls)
    proxy = peer(tunnel(server.port))
    client = connect(
        api_key=KEY,
        base_url=f"https://brevo.invalid:{server.port}/v3",
        proxy=f"http://user:pw@127.0.0.1:{proxy.port}",
    )
    assert client.perform(SEND).value.id == "m"
    assert proxy.requests[0].startswith(f"CONNECT brevo.invalid:{server.port} HTTP/1.".encode())
    assert headers_of(proxy.requests[0])["proxy-authorization"] == "Basic dXNlcjpwdw=="
    assert KEY.encode() not in proxy.requests[0]
    assert headers_of(server.requests[0])["api-key"] == KEY
    assert "proxy-authorization" not in headers_of(server.requests[0])


@pytest.mark.parametrize("status", ["403 Forbidden", "407 Proxy Authentication Required", "502 Bad Gateway"])
def test_a_proxy_that_refuses_the_tunnel_let_nothing_through(connect, peer, status):
    proxy = peer(answering("", b"", status))
    client = connect(
        api_key=KEY, base_url="https://brevo.invalid/v3", proxy=f"http://user:password@127.0.0.1:{proxy.port}"
    )
    error = failed(client)
    assert not error.maybe_delivered
    assert "password" not in str(error)
    assert status[:3] in str(error)


def test_a_proxy_that_is_not_there_let_nothing_through(connect):
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    client = connect(api_key=KEY, **PROXIED, proxy=f"http://user:password@127.0.0.1:{port}")
    error = failed(client)
    assert not error.maybe_delivered
    assert "password" not in str(error)


# What is said of both, and of each


def test_a_wrong_setting_is_refused_before_anything_happens(connect):
    with pytest.raises(InvalidRequest, match="plain http"):
        connect(api_key=KEY, base_url="http://api.brevo.com/v3")


def test_a_broken_rule_costs_no_request(client, sandbox):
    with pytest.raises(InvalidRequest):
        client.method("send_pushed_message", VISITOR, " ")
    assert requested(sandbox) == 0


@pytest.mark.parametrize("kind", [ConversationsClient, AsyncConversationsClient])
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in vars(calls)
        if name.startswith(("send_", "get_", "update_", "delete_", "ping_", "set_"))
    ],
)
def test_every_call_is_a_method_with_its_arguments_and_its_description(kind, name):
    call = getattr(calls, name)
    method = getattr(kind, name)
    assert list(inspect.signature(method).parameters) == ["self", *inspect.signature(call).parameters]
    assert (method.__name__, method.__doc__) == (name, call.__doc__)
    assert inspect.iscoroutinefunction(method) == (kind is AsyncConversationsClient)


def test_threads_with_a_client_each_do_not_disturb_each_other(sandbox):
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with ConversationsClient(api_key=sandbox.api_key, base_url=sandbox.base_url) as client:
                for turn in range(10):
                    text = f"{number} {turn}"
                    assert client.send_pushed_message(VISITOR, text).text == text
        except BaseException as error:  # noqa: BLE001  (carried to the test's own thread)
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert requested(sandbox) == 60


async def test_many_calls_share_few_connections(peer):
    server = peer(answering())
    async with AsyncConversationsClient(api_key=KEY, base_url=server.url, max_connections=4) as client:
        answers = await asyncio.gather(*(client.perform(SEND) for _ in range(40)))
    assert [answer.value.id for answer in answers] == ["m"] * 40
    assert server.connections <= 4


async def test_a_cancelled_call_is_cancelled_and_harms_no_other(peer):
    server = peer(waiting)
    async with AsyncConversationsClient(api_key=KEY, base_url=server.url) as client:
        task = asyncio.create_task(client.perform(SEND))
        while not server.requests:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.behave = answering()
        assert (await client.perform(SEND)).requests == 1


def test_a_client_may_be_made_outside_a_loop(peer):
    """Connections belong to the loop that runs, so none is made before the first call."""
    client = AsyncConversationsClient(api_key=KEY, base_url=peer(answering()).url)

    async def call():
        async with client:
            return await client.perform(SEND)

    assert asyncio.run(call()).value.id == "m"


def test_importing_the_package_imports_neither_library():
    code = (
        "import sys, airflow_provider_sib.api; "
        "print([m for m in ('requests', 'pydantic', 'aiohttp', 'airflow') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
