"""What each fault comes to, one row a fault: for both clients, a single message's operator, and a campaign.

The rows are also the table of docs/faults.md; `SIB_WRITE_FAULTS=1 pytest tests/test_faults.py` writes it anew.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import sqlalchemy as sa

from airflow_provider_sib import triggers
from airflow_provider_sib._compat import AirflowFailException
from airflow_provider_sib.api.aio import AsyncConversationsClient
from airflow_provider_sib.api.client import ConversationsClient
from airflow_provider_sib.api.errors import (
    ConversationsError,
    InvalidRequest,
    NotFound,
    RateLimited,
    ServerError,
    TransportError,
    Unauthorized,
    UnexpectedResponse,
)
from airflow_provider_sib.api.wire import BODY_LIMIT_BYTES, Retries
from airflow_provider_sib.campaign.announcement import Announcement, Enroller
from airflow_provider_sib.campaign.audience import Row
from airflow_provider_sib.campaign.engine import (
    Done,
    Rules,
    SendEngine,
    Stopped,
    Wait,
    enrol,
    open_campaign,
    uptime,
)
from airflow_provider_sib.campaign.ledger import LedgerUnavailable, State
from airflow_provider_sib.campaign.pacing import Rate
from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from airflow_provider_sib.delivery import Courier, OutcomesLost
from airflow_provider_sib.operators import SendPushedMessageOperator
from airflow_provider_sib.sandbox import Sandbox

from .api.conftest import MESSAGE, Peer, answering, reset_at_once, self_signed, speaking_tls, tunnel
from .campaign.conftest import make_database
from .test_operators import Store
from .test_triggers import event_of

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferred

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_sib.campaign.engine import Step

# A text of megabytes, which only a test sends: aiohttp would have it sent from a file.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")

F = TypeVar("F", bound=Callable[..., None])
PAGE = Path(__file__).parent.parent / "docs" / "faults.md"
KEY = "xkeysib-0123456789abcdef-secret"
PASSWORD = "hush-4711"
HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


# What may come of a fault


@dataclass(frozen=True)
class Outcome:
    """What a fault comes to, everywhere.

    :param error: what the clients and the hook raise; None: nothing.
    :param tries: how often a client tries to send the message.
    :param state: the campaign's row afterwards.
    :param reason: and why.
    :param end: how the campaign goes on.
    :param operator: how a single message's task ends.
    :param maybe_delivered: what the error says of it, where it says something.
    """

    error: type[ConversationsError] | None
    tries: int
    state: State
    reason: str | None
    end: str
    operator: str
    maybe_delivered: bool | None = None


NOT_REACHED = Outcome(
    TransportError, 3, State.PENDING, None, "waits: outage", "retried", maybe_delivered=False
)
NO_ANSWER = Outcome(
    TransportError, 1, State.IN_DOUBT, "no_answer", "goes on", "retried", maybe_delivered=True
)
GOES_WELL = Outcome(None, 1, State.SENT, None, "goes on", "succeeds")
BUT_SENT = Outcome(UnexpectedResponse, 1, State.SENT, None, "goes on", "succeeds")
QUOTA = Outcome(RateLimited, 1, State.PENDING, None, "waits: quota", "deferred")


def unreadable(status: int | str = 200) -> Outcome:
    return Outcome(UnexpectedResponse, 1, State.IN_DOUBT, f"unreadable_{status}", "goes on", "retried")


def server_error(status: int | str) -> Outcome:
    return Outcome(ServerError, 1, State.IN_DOUBT, f"http_{status}", "goes on", "retried")


def refused(error: type[ConversationsError], reason: str, operator: str = "fails") -> Outcome:
    return Outcome(error, 1, State.FAILED, reason, "goes on", operator)


UNAUTHORIZED = Outcome(Unauthorized, 1, State.PENDING, None, "stops: unauthorized", "fails")


# What may happen


@dataclass
class Place:
    """Where the connection leads, and what was seen there.

    :param url: base URL.
    :param seen: requests that a server read there, or where they must not come; other rows' may be among them.
    :param proxy: the connection's own.
    :param text: what is sent.
    """

    url: str
    seen: list[bytes]
    proxy: str | None = None
    text: str = "Hello"


class House:
    """What rows share: certificates, one of which is trusted, and two proxies, each to a server of Brevo's name.

    The environment's proxy leads to one, a connection's own to the other: where a message comes tells its way.

    :param folder: where to put certificates.
    :param stack: closes what it opens.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.certificate = self_signed(folder)
        (folder / "other").mkdir()
        self.unknown = speaking_tls(self_signed(folder / "other"))
        self.brevo, self.own_brevo = (Peer(answering(), speaking_tls(self.certificate)) for _ in range(2))
        self.proxy, self.own_proxy = (Peer(tunnel(brevo.port)) for brevo in (self.brevo, self.own_brevo))
        for peer in (self.brevo, self.own_brevo, self.proxy, self.own_proxy):
            stack.callback(peer.close)


Scene = Callable[[ExitStack, House], Place]


def served(behave: Callable[[Peer, socket.socket], None], **more: Any) -> Scene:
    """A server that answers in its own way."""

    def at(stack: ExitStack, house: House) -> Place:
        peer = Peer(behave)
        stack.callback(peer.close)
        return Place(peer.url, peer.requests, **more)

    return at


def answered(status: str, body: bytes = b"", head: str = "", content_type: str = "application/json") -> Scene:
    def behave(peer: Peer, sock: socket.socket) -> None:
        while peer.read(sock):
            sock.sendall(
                f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\ncontent-type: {content_type}\r\n"
                f"{head}\r\n".encode()
                + body
            )

    return served(behave)


def error(status: str, code: str) -> Scene:
    return answered(status, json.dumps({"code": code, "message": "no"}).encode())


def no_such_host(stack: ExitStack, house: House) -> Place:
    return Place("https://nowhere.invalid/v3", [])


def nobody_listens(stack: ExitStack, house: House) -> Place:
    return Place(f"http://127.0.0.1:{_free_port()}/v3", [])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as once:
        port: int = once.getsockname()[1]
    return port


def unsigned(stack: ExitStack, house: House) -> Place:
    peer = Peer(answering(), house.unknown)
    stack.callback(peer.close)
    return Place(peer.url, peer.requests)


def full_backlog(stack: ExitStack, house: House) -> Place:
    """A host that lets nobody in: on Linux the handshake of TCP hangs while a listener's queue is full."""
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    for _ in range(4):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        with suppress(BlockingIOError):
            waiting.connect(listener.getsockname())
    return Place(f"http://127.0.0.1:{listener.getsockname()[1]}/v3", [])


def silent(peer: Peer, sock: socket.socket) -> None:
    while peer.read(sock):
        peer.over.wait(30)


def deaf(stack: ExitStack, house: House) -> Place:
    """A server that accepts and never reads, and a text larger than what the kernels in between hold."""

    def behave(peer: Peer, sock: socket.socket) -> None:
        while not peer.over.wait(0.01):
            # It only looks: what is read makes room for more.
            if b'"text"' in (begun := sock.recv(4096, socket.MSG_PEEK)):
                peer.requests.append(begun)
                peer.over.wait(30)

    peer = Peer(behave)
    peer._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stack.callback(peer.close)
    return Place(peer.url, peer.requests, text="x" * 12_000_000)


def speaks_no_http(peer: Peer, sock: socket.socket) -> None:
    peer.read(sock)
    sock.sendall(b"SSH-2.0-x\r\n")


def hangs_up(peer: Peer, sock: socket.socket) -> None:
    peer.read(sock)


def resets(peer: Peer, sock: socket.socket) -> None:
    peer.read(sock)
    reset_at_once(peer, sock)


def cut(body: bytes) -> Scene:
    def behave(peer: Peer, sock: socket.socket) -> None:
        peer.read(sock)
        sock.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n" + body
        )

    return served(behave)


def through_https_proxy(stack: ExitStack, house: House) -> Place:
    """A server that only the environment's proxy leads to."""
    return Place("https://brevo.invalid/v3", house.brevo.requests)


def through_its_own_proxy(stack: ExitStack, house: House) -> Place:
    """A server that only the connection's own proxy leads to."""
    return Place(
        "https://brevo.invalid/v3",
        house.own_brevo.requests,
        proxy=f"http://user:{PASSWORD}@127.0.0.1:{house.own_proxy.port}",
    )


def refused_by_its_proxy(status: str) -> Scene:
    def at(stack: ExitStack, house: House) -> Place:
        peer = Peer(answering("", b"", status))
        stack.callback(peer.close)
        proxy = f"http://user:{PASSWORD}@127.0.0.1:{peer.port}"
        return Place("https://brevo.invalid/v3", house.brevo.requests, proxy=proxy)

    return at


def proxy_is_gone(stack: ExitStack, house: House) -> Place:
    proxy = f"http://127.0.0.1:{_free_port()}"
    return Place("https://brevo.invalid/v3", house.brevo.requests, proxy=proxy)


# The table


@dataclass(frozen=True)
class Case:
    """One row.

    :param fault: in words.
    :param scene: makes it happen.
    :param outcome: what it comes to.
    :param timeout_seconds: the connection's.
    """

    fault: str
    scene: Scene
    outcome: Outcome
    timeout_seconds: float = 10.0


NAMED = [
    Case("The host has no address (DNS)", no_such_host, NOT_REACHED),
    Case("The connection is refused", nobody_listens, NOT_REACHED),
    Case("TLS: a certificate that nobody vouches for", unsigned, NOT_REACHED),
    Case("Time is up while connecting", full_backlog, NOT_REACHED, timeout_seconds=1),
    Case("Time is up while sending", deaf, NO_ANSWER, timeout_seconds=1),
    Case("Time is up while waiting for the answer", served(silent), NO_ANSWER, timeout_seconds=1),
    Case("The server hangs up without an answer", served(hangs_up), NO_ANSWER),
    Case("The connection is reset", served(resets), NO_ANSWER),
    Case("The answer is no HTTP", served(speaks_no_http), NO_ANSWER),
    Case("200, cut off after its headers", cut(b""), unreadable()),
    Case("200, cut off in its body", cut(b'{"id": "m", "te'), unreadable()),
    Case("200 without a body", answered("200 OK"), unreadable()),
    Case("200 with a page of HTML", answered("200 OK", HTML, content_type="text/html"), unreadable()),
    Case(
        "200 with a message under another content type",
        answered("200 OK", MESSAGE, content_type="text/plain"),
        BUT_SENT,
    ),
    Case("200 with broken JSON", answered("200 OK", b'{"id": "m",'), unreadable()),
    Case("200 with JSON that is no message", answered("200 OK", b'{"ok": true}'), unreadable()),
    Case(
        "200 with a message one of whose fields is of a wrong type",
        answered("200 OK", b'{"id": "m", "isPushed": []}'),
        BUT_SENT,
    ),
    Case("200 with fields nobody documented", answered("200 OK", b'{"id": "m", "new": {}}'), GOES_WELL),
    Case(
        "200 with more than 4 MiB",
        answered("200 OK", b'{"id": "m", "text": "' + b"x" * BODY_LIMIT_BYTES + b'"}'),
        unreadable(),
    ),
    Case(
        "200 with a gzip bomb: more than 4 MiB once unpacked",
        answered(
            "200 OK",
            gzip.compress(b'{"id": "m", "text": "' + b" " * 50_000_000, 9),
            "content-encoding: gzip\r\n",
        ),
        unreadable(),
    ),
    *(
        Case(
            f"{status}, to another host",
            answered(status, b"", "location: https://nowhere.invalid/\r\n"),
            unreadable(int(status[:3])),
        )
        for status in (
            "301 Moved Permanently",
            "302 Found",
            "303 See Other",
            "307 Temporary Redirect",
            "308 Permanent Redirect",
        )
    ),
    Case(
        "400 Bad Request",
        error("400 Bad Request", "invalid_parameter"),
        refused(InvalidRequest, "invalid_parameter"),
    ),
    Case("401 Unauthorized", error("401 Unauthorized", "unauthorized"), UNAUTHORIZED),
    Case("402 Payment Required", error("402 Payment Required", "not_enough_credits"), UNAUTHORIZED),
    Case("403 Forbidden", error("403 Forbidden", "permission_denied"), UNAUTHORIZED),
    Case(
        "404 Not Found",
        error("404 Not Found", "document_not_found"),
        refused(NotFound, "document_not_found", "retried"),
    ),
    Case(
        "405 Method Not Allowed",
        error("405 Method Not Allowed", "method_not_allowed"),
        refused(InvalidRequest, "method_not_allowed"),
    ),
    Case(
        "406 Not Acceptable",
        error("406 Not Acceptable", "not_acceptable"),
        refused(InvalidRequest, "not_acceptable"),
    ),
    Case(
        "407 Proxy Authentication Required, from Brevo",
        error("407 Proxy Authentication Required", "unauthorized"),
        UNAUTHORIZED,
    ),
    Case(
        "409 Conflict",
        error("409 Conflict", "duplicate_request"),
        refused(InvalidRequest, "duplicate_request"),
    ),
    Case(
        "422 Unprocessable Entity",
        error("422 Unprocessable Entity", "unprocessable_entity"),
        refused(InvalidRequest, "unprocessable_entity"),
    ),
    Case("429 Too Many Requests", error("429 Too Many Requests", "too_many_requests"), QUOTA),
    Case(
        "500 Internal Server Error", error("500 Internal Server Error", "internal_error"), server_error(500)
    ),
    Case(
        "502 Bad Gateway, a page of HTML",
        answered("502 Bad Gateway", HTML, content_type="text/html"),
        server_error(502),
    ),
    Case("503 Service Unavailable", error("503 Service Unavailable", "unavailable"), server_error(503)),
    Case("504 Gateway Timeout", error("504 Gateway Timeout", "timeout"), server_error(504)),
]

# What the statuses come to that have no row of their own.
RULES = {
    "Any other 3xx": unreadable("3xx"),
    "Any other 4xx": refused(InvalidRequest, "http_4xx"),
    "Any other 5xx": server_error("5xx"),
}


def by_rule(status: int) -> Case:
    """A status with headers for which a library might go on by itself."""
    kind = f"{status // 100}xx"
    outcome = RULES[f"Any other {kind}"]
    return Case(
        f"{status}, by rule",
        answered(
            f"{status} Status",
            b"" if status == 304 else HTML,
            "location: https://nowhere.invalid/\r\nretry-after: 0\r\n",
            "text/html",
        ),
        replace(outcome, reason=f"{outcome.reason}".replace(kind, f"{status}")),
    )


# 520 and above are Cloudflare's, behind which Brevo's API is.
STATUSES = {status.value for status in HTTPStatus if status >= 300} | set(range(520, 531))
OTHERS = [
    by_rule(status)
    for status in sorted(STATUSES)
    if not any(case.fault.startswith(f"{status} ") for case in NAMED)
]

PROXIED = [
    Case("No fault: through the proxy of `https_proxy`", through_https_proxy, GOES_WELL),
    Case("No fault: through the connection's own proxy", through_its_own_proxy, GOES_WELL),
    Case("The proxy is not there", proxy_is_gone, NOT_REACHED),
    Case(
        "The proxy wants another password (407)",
        refused_by_its_proxy("407 Proxy Authentication Required"),
        NOT_REACHED,
    ),
    Case("The proxy can't reach Brevo (502)", refused_by_its_proxy("502 Bad Gateway"), NOT_REACHED),
]

CASES = [*NAMED, *OTHERS, *PROXIED]


# What is seen


@dataclass
class Seen:
    """What was observed of one row in one place.

    :param error: what was raised, or what the task's end was raised from.
    :param tries: how often it tried to send.
    :param posts: how many messages came to where they must come, or must not.
    :param row: the campaign's, in the end.
    :param end: how the campaign or the task ends.
    :param retry: what a retry of the task came to, where the first try left something for it to find.
    """

    error: BaseException | None
    tries: int | None = None
    posts: int = 0
    row: tuple[State, str | None] | None = None
    end: str = ""
    retry: Seen | None = None


def posts(place: Place, visitor: str) -> int:
    return sum(
        request.startswith(b"POST ") and f'"{visitor}"'.encode() in request for request in list(place.seen)
    )


def by_client(case: Case, place: Place, visitor: str) -> Seen:
    slept: list[float] = []
    client = ConversationsClient(
        api_key=KEY,
        base_url=place.url,
        proxy=place.proxy,
        timeout_seconds=case.timeout_seconds,
        sleep=slept.append,
    )
    try:
        with client:
            client.send_pushed_message(visitor, place.text)
    except ConversationsError as raised:
        return Seen(raised, len(slept) + 1)
    return Seen(None, len(slept) + 1)


def by_async_client(case: Case, place: Place, visitor: str) -> Seen:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def send() -> None:
        client = AsyncConversationsClient(
            api_key=KEY,
            base_url=place.url,
            proxy=place.proxy,
            timeout_seconds=case.timeout_seconds,
            sleep=sleep,
        )
        async with client:
            await client.send_pushed_message(visitor, place.text)

    try:
        asyncio.run(send())
    except ConversationsError as raised:
        return Seen(raised, len(slept) + 1)
    return Seen(None, len(slept) + 1)


class LookUps(threading.local):
    """The host names that this thread had looked up: `requests` does it once for each connection it tries to open."""

    def __init__(self) -> None:
        self.hosts: list[object] = []

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo":
            self.hosts.append(args[0])


look_ups = LookUps()


def by_operator(case: Case, place: Place, visitor: str) -> Seen:
    conn_id = f"fault_{CASES.index(case)}"
    extra = {"timeout_seconds": case.timeout_seconds, "proxy": place.proxy}
    os.environ[f"AIRFLOW_CONN_{conn_id.upper()}"] = json.dumps(
        {"conn_type": "sib_conversations", "host": place.url, "password": KEY, "extra": extra}
    )
    operator = SendPushedMessageOperator(
        task_id="t", visitor_id=visitor, text=place.text, sib_conn_id=conn_id
    )
    store = Store()
    try:
        seen = executed(operator, store)
        if store:
            seen.retry = executed(operator, store)
    finally:
        del os.environ[f"AIRFLOW_CONN_{conn_id.upper()}"]
    return seen


def executed(operator: SendPushedMessageOperator, store: Store) -> Seen:
    look_ups.hosts.clear()
    try:
        operator.execute({"task_state_store": store})
    except TaskDeferred as raised:
        seen = Seen(raised.__context__, end="deferred")
    except AirflowFailException as raised:
        seen = Seen(raised.__cause__, end="fails")
    except ConversationsError as raised:
        seen = Seen(raised, end="retried")
    else:
        seen = Seen(None, end="succeeds")
    seen.tries = len(look_ups.hosts)
    return seen


def by_campaign(case: Case, place: Place, visitor: str, folder: Path) -> Seen:
    with ExitStack() as stack:
        ledger = SqlLedger(f"sqlite:///{folder}/{CASES.index(case)}.db")
        stack.callback(ledger.close)
        announcement = Announcement(place.text)
        open_campaign(ledger, "c", binding={}, announcement=announcement)
        enrol(ledger, "c", [Row(visitor, {}, line=2)], Enroller("c", announcement))
        engine = SendEngine(
            ledger, "c", Rules(account="a", timeout_seconds=case.timeout_seconds, max_failure_share=1.0)
        )
        engine.begin(resumed=False)
        client = lambda: AsyncConversationsClient(  # noqa: E731
            api_key=KEY,
            base_url=place.url,
            proxy=place.proxy,
            timeout_seconds=case.timeout_seconds,
            retries=Retries(attempts=1),
        )
        end = Courier(engine, client, max_in_flight=8, defer_after_seconds=5).run()
        [row] = ledger.deliveries("c")
        return Seen(None, row=(row.state, row.reason), end=described(end))


def described(end: Step) -> str:
    match end:
        case Done():
            return "goes on"
        case Stopped(reason):
            return f"stops: {reason}"
        case Wait(reason):
            return f"waits: {reason}"
    raise AssertionError(end)


@pytest.fixture(scope="module")
def observed(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[tuple[str, str], Seen | BaseException]]:
    """All rows in all places, several at a time, since most of them wait."""
    folder = tmp_path_factory.mktemp("faults")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        house = House(folder, stack)
        # A hook can't be given a sleep that counts its tries. Python has no way to take an audit hook back.
        sys.addaudithook(look_ups.note)
        patch.setenv("AIRFLOW_HOME", str(folder))
        patch.setenv("REQUESTS_CA_BUNDLE", str(house.certificate))
        for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY", "HTTPS_PROXY", "NO_PROXY"):
            patch.delenv(name, raising=False)
        patch.setenv("https_proxy", f"http://127.0.0.1:{house.proxy.port}")
        patch.setenv("no_proxy", "nowhere.invalid")

        def look(case: Case, where: str) -> Seen | BaseException:
            try:
                with ExitStack() as mine:
                    place = case.scene(mine, house)
                    visitor = f"{where}-{CASES.index(case)}"
                    match where:
                        case "client":
                            seen = by_client(case, place, visitor)
                        case "async client":
                            seen = by_async_client(case, place, visitor)
                        case "operator":
                            seen = by_operator(case, place, visitor)
                        case _:
                            seen = by_campaign(case, place, visitor, folder)
                    seen.posts = posts(place, visitor)
                    return seen
            except BaseException as error:  # noqa: BLE001  (raised in the row's own test)
                return error

        with ThreadPoolExecutor(12) as pool:
            looks = {
                (case.fault, where): pool.submit(look, case, where) for where in PLACES for case in CASES
            }
            yield {key: one.result() for key, one in looks.items()}


# How a retry of the task ends that sends nothing; where there is no such end, it begins anew.
RETRY = {State.IN_DOUBT: ("fails", 0, None), State.SENT: ("succeeds", 0, None)}

PLACES = ("operator", "client", "async client", "campaign")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.fault)
@pytest.mark.parametrize("where", PLACES)
def test_a_fault_comes_to_what_its_row_says(observed, case, where):
    seen = observed[case.fault, where]
    if isinstance(seen, BaseException):
        raise seen
    expected = case.outcome
    assert seen.posts == (0 if expected.maybe_delivered is False else 1)
    match where:
        case "campaign":
            assert (seen.row, seen.end) == ((expected.state, expected.reason), expected.end)
            return
        case "operator":
            assert (seen.end, seen.tries) == (expected.operator, expected.tries)
            assert (seen.retry and (seen.retry.end, seen.retry.tries, seen.retry.error)) == RETRY.get(
                expected.state
            )
            if expected.operator == "succeeds":
                return
        case _:
            assert seen.tries == expected.tries
    assert type(seen.error) is (expected.error or type(None))
    assert KEY not in str(seen.error)
    assert PASSWORD not in str(seen.error)
    if isinstance(seen.error, TransportError):
        assert seen.error.maybe_delivered is expected.maybe_delivered


# Faults around it: the ledger and the clocks


AROUND: list[tuple[str, str]] = []


def fault(what: str, then: str) -> Callable[[F], F]:
    """Put a test's fault, and what it shows to come of it, on the page."""

    def note(test: F) -> F:
        AROUND.append((what, then))
        return test

    return note


@dataclass
class Campaigning:
    """A campaign of 200 on a sandbox, its ledger, and clocks that leap.

    :param ledger: where it is kept.
    :param sandbox: where it is sent.
    :param leap: seconds by which the engine's clock is ahead.
    """

    ledger: SqlLedger
    sandbox: Sandbox
    leap: float = 0.0

    def begin(self, people: int = 200) -> None:
        announcement = Announcement("Hello [[ visitor.name ]]")
        open_campaign(self.ledger, "c", binding={}, announcement=announcement)
        rows = (Row(f"v{n}", {"name": f"n{n}"}, line=n) for n in range(people))
        enrol(self.ledger, "c", rows, Enroller("c", announcement))

    def engine(self) -> SendEngine:
        rules = Rules(account="a", rate=Rate(reserve=0), max_in_flight=4)
        engine = SendEngine(self.ledger, "c", rules, clock=self.clock)
        engine.begin(resumed=False)
        return engine

    def clock(self) -> float:
        return uptime() + self.leap

    def run(self, engine: SendEngine | None = None, *, defer_after_seconds: float = 60.0) -> Step:
        client = lambda: AsyncConversationsClient(  # noqa: E731
            api_key=self.sandbox.api_key, base_url=self.sandbox.base_url, retries=Retries(attempts=1)
        )
        return Courier(
            engine or self.engine(),
            client,
            max_in_flight=4,
            defer_after_seconds=defer_after_seconds,
            clock=self.clock,
        ).run()

    def sent(self) -> int:
        return self.sandbox.counts()["messages"]

    def states(self) -> Counter[State]:
        return Counter(row.state for row in self.ledger.deliveries("c"))

    def everybody_once(self) -> None:
        written_to = Counter(message["visitorId"] for message in self.sandbox.messages())
        assert set(written_to.values()) == {1}
        assert self.states() == {State.SENT: len(written_to)} == {State.SENT: 200}

    def beside(self, act: Callable[[], None], *, after: int = 40) -> threading.Thread:
        """Do something in mid-campaign."""

        def wait_and_act() -> None:
            until = uptime() + 60
            while self.sent() < after:
                assert uptime() < until
                time.sleep(0.002)  # between two looks
            act()

        thread = threading.Thread(target=wait_and_act)
        thread.start()
        return thread


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(quota=100_000) as running:
        # Slow enough that what is done beside it is done in its midst.
        running.fault("latency", seconds=0.01)
        yield running


@pytest.fixture
def wall() -> list[float]:
    """Seconds by which the ledger's clock is ahead."""
    return [0.0]


@pytest.fixture
def campaigning(sandbox: Sandbox, tmp_path: Path, wall: list[float]) -> Iterator[Campaigning]:
    ledger = SqlLedger(f"sqlite:///{tmp_path}/ledger.db", clock=lambda: time.time() + wall[0])
    yield Campaigning(ledger, sandbox)
    ledger.close()


@fault(
    "The certificates that `REQUESTS_CA_BUNDLE` names are not there, or broken",
    "nothing is begun, nobody is in doubt; the task fails for good and names the file and the variable",
)
def test_certificates_that_are_not_there_leave_nobody_in_doubt(campaigning, monkeypatch):
    campaigning.begin()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/not-there.pem")
    client = lambda: AsyncConversationsClient(api_key=KEY, base_url="https://brevo.invalid/v3")  # noqa: E731
    with pytest.raises(InvalidRequest, match=r"REQUESTS_CA_BUNDLE names /not-there\.pem"):
        Courier(campaigning.engine(), client, max_in_flight=4).run()
    assert campaigning.states() == {State.PENDING: 200}


@fault(
    "The clock of the ledger (on SQLite, of the machine) jumps back by an hour while a campaign sends",
    "nobody notices: everybody is reached once, none in doubt",
)
def test_a_clock_that_jumps_back_in_mid_campaign_harms_nobody(campaigning, wall):
    campaigning.begin()

    def back() -> None:
        wall[0] -= 3600

    beside = campaigning.beside(back)
    assert campaigning.run() == Done()
    beside.join()
    campaigning.everybody_once()


@pytest.fixture
def server_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[SqlLedger, Callable[[int], None]]]:
    """Give a ledger on PostgreSQL, to which a connection leads, and what sets its clock back by so many seconds."""
    database, admin, drop = make_database("postgresql")
    schema = drop.split()[2]

    def set_back(seconds: int) -> None:
        # Found before the server's own, which is named last.
        with admin.connect() as conn:
            conn.exec_driver_sql(
                f"CREATE OR REPLACE FUNCTION {schema}.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS"
                f" $$ SELECT pg_catalog.clock_timestamp() - interval '{seconds} seconds' $$"
            )

    set_back(0)
    url = database.url.update_query_dict({"options": f"-csearch_path={schema},pg_catalog"})
    monkeypatch.setenv(
        "AIRFLOW_CONN_LEDGER", url.set(drivername="postgres").render_as_string(hide_password=False)
    )
    ledger = SqlLedger(url)
    yield ledger, set_back
    ledger.close()
    with admin.connect() as conn:
        conn.exec_driver_sql(drop)
    admin.dispose()


@fault(
    "The same while its task is deferred",
    "it comes back an hour late, since it waits for a moment of that clock; everybody is reached once, none in doubt",
)
async def test_a_clock_that_jumps_back_while_a_campaign_is_deferred_puts_it_off(
    server_clock, sandbox, monkeypatch
):
    ledger, set_back = server_clock
    campaigning = Campaigning(ledger, sandbox)
    sandbox.configure(quota=8, hour_seconds=5)
    campaigning.begin()
    wait = await asyncio.to_thread(campaigning.run, defer_after_seconds=0.5)
    assert isinstance(wait, Wait)
    assert (wait.reason, campaigning.sent()) == ("quota", 8)

    monkeypatch.setattr(triggers, "STATUS_INTERVAL_SECONDS", 0.02)
    until = wait.until_ms / 1000
    trigger = triggers.CampaignTrigger("c", "ledger", ledger.identity().ledger_id, until)
    set_back(3600)
    deferred = asyncio.create_task(event_of(trigger))
    await asyncio.sleep(until + 0.5 - time.time())  # past the moment at which it would have woken
    assert not deferred.done()
    set_back(0)  # as if the hour had passed
    assert await deferred == {"woken_by": "moment"}

    sandbox.configure(quota=100_000)
    assert await asyncio.to_thread(campaigning.run) == Done()
    campaigning.everybody_once()


def doubts_in_mid_flight(campaigning: Campaigning, wall: list[float], seconds: float) -> int:
    """Run a campaign in which four answers are slow, and the ledger's clock leaps before they are there.

    :return: how many are in doubt between the leap and their answers, as another worker sees it.
    """
    campaigning.begin()
    campaigning.sandbox.fault("latency", seconds=1.5, after=40)
    doubts: list[int] = []

    def sweep() -> None:
        wall[0] += seconds
        other = campaigning.engine()
        other.leave()
        doubts.append(campaigning.states()[State.IN_DOUBT])
        campaigning.sandbox.clear_faults()

    beside = campaigning.beside(sweep, after=44)
    assert campaigning.run() == Done()
    beside.join()
    return doubts[0]


@fault(
    "The clock of the ledger jumps ahead by an hour",
    "what is in flight is in doubt until its answer is there, then sent; everybody is reached once",
)
def test_a_clock_that_jumps_ahead_in_mid_campaign_harms_nobody(campaigning, wall):
    assert doubts_in_mid_flight(campaigning, wall, 3600) == 4
    campaigning.everybody_once()


@fault(
    "An answer that comes later than the lease of its row",
    "another worker reports it in doubt; when it comes the message is sent, and was sent once",
)
def test_a_lease_shorter_than_a_slow_answer_loses_no_result(campaigning, wall):
    assert doubts_in_mid_flight(campaigning, wall, 200) == 4
    campaigning.everybody_once()


def pages(ledger: SqlLedger, spare: int | None) -> None:
    """Let a SQLite file grow by so many pages more, or again without bound: beyond it, its disk is full."""

    def bound(dbapi: Any, *_: object) -> None:
        (now,) = dbapi.execute("PRAGMA page_count").fetchone()
        dbapi.execute(f"PRAGMA max_page_count = {4294967294 if spare is None else now + spare}")

    engine = ledger._database.engine
    sa.event.listen(engine, "checkout", bound)


@fault(
    "The disk of the ledger's file is full for a while",
    "results are held and recorded afterwards; none in doubt",
)
def test_a_full_disk_that_is_cleared_in_time_costs_nothing(campaigning):
    campaigning.begin()
    full: list[str] = []

    def fill() -> None:
        pages(campaigning.ledger, 0)
        seen = campaigning.sent()
        until = uptime() + 30
        while uptime() < until and campaigning.sent() != seen:
            seen = campaigning.sent()
            time.sleep(0.5)  # sending has stopped for the full disk when nothing was sent meanwhile
        try:
            campaigning.ledger.suppress([f"x{n}" for n in range(2000)], "asked")
        except LedgerUnavailable as error:
            full.append(str(error))
        pages(campaigning.ledger, None)

    beside = campaigning.beside(fill)
    assert campaigning.run() == Done()
    beside.join()
    assert "disk is full" in full[0]
    campaigning.everybody_once()


@fault(
    "The disk of the ledger's file stays full",
    "after five minutes the task fails; its log names the rows and message ids that could not be recorded",
)
def test_a_disk_that_stays_full_loses_no_message_id(campaigning):
    campaigning.begin()
    beside = campaigning.beside(
        lambda: (pages(campaigning.ledger, 0), fill_up(campaigning), leave_no_patience(campaigning))
    )
    with pytest.raises(OutcomesLost) as caught:
        campaigning.run()
    beside.join()
    recorded = {row.message_ids[0] for row in campaigning.ledger.deliveries("c") if row.message_ids}
    nobody_is_lost(campaigning, caught.value, recorded)


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
class TestServers:
    """A ledger on a database server that goes away."""

    @pytest.fixture
    def at(self, kind: str, sandbox: Sandbox) -> Iterator[tuple[Campaigning, sa.engine.Engine, str]]:
        """Give a campaign, a connection of the database's administrator, and what drops the ledger."""
        database, admin, drop = make_database(kind)
        url = database.url
        if kind == "postgresql":
            url = url.update_query_dict({"application_name": "sib-faults"})
        ledger = SqlLedger(url)
        yield Campaigning(ledger, sandbox), admin, drop
        ledger.close()
        with admin.connect() as conn, suppress(sa.exc.OperationalError, sa.exc.ProgrammingError):
            conn.exec_driver_sql(drop)
        admin.dispose()

    @fault(
        "The ledger's connections are killed at the server, six times",
        "each transaction is tried again, or its rows are found by their claim; everybody is reached once",
    )
    def test_connections_that_are_killed_harm_nobody(self, at, kind):
        campaigning, admin, _ = at
        campaigning.begin()

        def kill() -> None:
            for _ in range(6):
                time.sleep(0.1)
                with admin.connect() as conn, suppress(sa.exc.OperationalError):
                    if kind == "postgresql":
                        conn.exec_driver_sql(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                            " WHERE application_name = 'sib-faults'"
                        )
                    else:
                        name = campaigning.ledger._database.engine.url.database
                        for (one,) in conn.exec_driver_sql(
                            "SELECT id FROM information_schema.processlist WHERE db = %s", (name,)
                        ).all():
                            with suppress(sa.exc.OperationalError, sa.exc.InternalError):
                                conn.exec_driver_sql(f"KILL {one}")

        beside = campaigning.beside(kill)
        assert campaigning.run() == Done()
        beside.join()
        campaigning.everybody_once()

    @fault(
        "The ledger's tables are dropped in mid-campaign",
        "nothing more is begun; after five minutes the task fails and names what could not be recorded",
    )
    def test_a_ledger_that_is_dropped_loses_no_message_id(self, at, kind):
        campaigning, admin, drop = at
        campaigning.begin()
        recorded: set[str] = set()
        place = drop.split()[2]
        begin, end = {
            "postgresql": ("BEGIN; LOCK TABLE {0}.sib_campaign, {0}.sib_delivery", "COMMIT"),
            "mariadb": ("LOCK TABLES {0}.sib_campaign WRITE, {0}.sib_delivery WRITE", "UNLOCK TABLES"),
        }[kind]

        def gone() -> None:
            with admin.connect() as conn:
                # Between the look and the drop nothing can be recorded.
                conn.exec_driver_sql(begin.format(place))
                recorded.update(
                    conn.exec_driver_sql(
                        f"SELECT message FROM {place}.sib_delivery WHERE message IS NOT NULL"
                    )
                    .scalars()
                    .all()
                )
                conn.exec_driver_sql(f"DROP TABLE {place}.sib_campaign, {place}.sib_delivery")
                conn.exec_driver_sql(end)
                conn.exec_driver_sql(drop)
            leave_no_patience(campaigning)

        beside = campaigning.beside(gone)
        with pytest.raises(OutcomesLost) as caught:
            campaigning.run()
        beside.join()
        nobody_is_lost(campaigning, caught.value, recorded)


def fill_up(campaigning: Campaigning) -> None:
    """Use what room the file has left within its pages."""
    number = 0
    with suppress(LedgerUnavailable):
        while True:
            campaigning.ledger.suppress([f"x{number}-{n}" for n in range(200)], "asked")
            number += 1


def leave_no_patience(campaigning: Campaigning) -> None:
    """Let the minutes pass for which outcomes are held."""
    until = uptime() + 60
    seen = -1
    while campaigning.sent() != seen and uptime() < until:
        seen = campaigning.sent()
        time.sleep(0.5)
    campaigning.leap += 400


def nobody_is_lost(campaigning: Campaigning, lost: OutcomesLost, recorded: set[str]) -> None:
    """Each message of Brevo's is known: the ledger has recorded its id, or the error names it."""
    messages = {message["id"]: message["visitorId"] for message in campaigning.sandbox.messages()}
    assert set(Counter(messages.values()).values()) == {1}
    named = {message_id for _, message_id in lost.rows if message_id}
    assert named
    assert all(message_id in str(lost) for message_id in named)
    assert recorded
    assert recorded | named == messages.keys()


# The page


OUTCOMES = {
    "in doubt": "fails; a retry does not send again",
    "retried": "fails, and is tried again if it has retries",
    "fails": "fails for good",
    "deferred": "is deferred, and calls again",
    "succeeds": "succeeds",
    "goes on": "",
    "waits: outage": "; waits and looks, a minute at first",
    "waits: quota": "; waits for the next hour",
    "stops: unauthorized": "; the campaign stops, its task fails for good",
}


def page() -> str:
    """Write the page from the rows above."""
    lines = [
        "# Faults",
        "",
        "What may go wrong, and what comes of it. This page is made from the table of",
        "[`tests/test_faults.py`](../tests/test_faults.py), each row of which is tried over real sockets: with both",
        "clients, with the operator for a single message and a retry of it, and with a campaign. In no row is",
        "anything sent twice, and in none is anybody dropped silently.",
        "",
        "## On the way to Brevo",
        "",
        "*Tried again* is what clients and hook do by themselves with a call that creates a message. Calls that",
        "may be repeated (get, edit, delete, ping) are tried up to three times after any error of the network and",
        "any 5xx.",
        "Where nobody knows whether a single message was sent, its task does not send again when it is retried, on",
        "Airflow 3.3 and newer or with a `once_key`: see [delivery guarantees](delivery-guarantees.md).",
        "",
        "| fault | error | did Brevo get it? | tried again | the task of a single message | its row in a campaign |",
        "|---|---|---|---|---|---|",
    ]
    named, proxied = ({case.fault: case.outcome for case in cases} for cases in (NAMED, PROXIED))
    for fault, come in (named | RULES | proxied).items():
        reason = f" (`{come.reason}`)" if come.reason else ""
        task = OUTCOMES["in doubt" if come.state is State.IN_DOUBT else come.operator]
        lines.append(
            f"| {fault} | {f'`{come.error.__name__}`' if come.error else 'none'} | {_got_it(come)} | "
            f"{'twice, after waits' if come.tries > 1 else 'no'} | {task} | "
            f"{come.state.name.lower().replace('_', ' ')}{reason}{OUTCOMES[come.end]} |"
        )
    lines += ["", "## Around a campaign", "", "| fault | what comes of it |", "|---|---|"]
    lines += [f"| {what} | {then} |" for what, then in AROUND]
    return "\n".join(lines) + "\n"


def _got_it(come: Outcome) -> str:
    match come.state:
        case State.SENT:
            return "yes"
        case State.IN_DOUBT:
            return "nobody knows"
        case State.FAILED:
            return "it refused it"
        case _ if come.error is TransportError:
            return "no"
        case _:
            return "it refused it"


def test_the_page_is_what_these_tests_prove():
    if os.environ.get("SIB_WRITE_FAULTS"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page(), "write it anew: SIB_WRITE_FAULTS=1 make test ARGS='-k the_page_is'"
