"""Wire: every rule of reading and repeating, by values alone; no socket, no clock."""

from __future__ import annotations

import gzip
import json
import pickle
import ssl
import zlib
from typing import Any

import pytest
import requests.certs
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sib.api import calls
from airflow_provider_sib.api.errors import (
    ApiError,
    ConversationsError,
    InvalidRequest,
    NotFound,
    Quota,
    RateLimited,
    ServerError,
    TransportError,
    Unauthorized,
    UnexpectedResponse,
)
from airflow_provider_sib.api.wire import (
    BODY_LIMIT_BYTES,
    Answer,
    Request,
    Response,
    Retries,
    Sleep,
    destination,
    exchange,
    reason,
)

KEY = "xkeysib-0123456789abcdef-secret"
SEND = calls.send_pushed_message("v", "Grüße")
GET = calls.get_message("m")
DELETE = calls.delete_message("m")
PING = calls.ping_agent_online(agent_id="a")
JSON = {"content-type": "application/json", "sib-request-id": "r-1"}
MESSAGE = b'{"id": "m", "text": "hi"}'
YES = Response(200, JSON, MESSAGE)
NOT_DELIVERED = TransportError("refused", maybe_delivered=False)
MAYBE_DELIVERED = TransportError("reset", maybe_delivered=True)


def run(call, outcomes, *, rate_limit_wait_seconds=0.0, random=lambda: 1.0) -> Any:
    """Drive one exchange: give each request the next outcome, note each effect.

    :return: the answer or the error, and the effects: requests as their method, sleeps as seconds.
    """
    steps = exchange(
        call,
        secrets=(KEY,),
        retries=Retries(),
        rate_limit_wait_seconds=rate_limit_wait_seconds,
        random=random,
    )
    effects: list[str | float] = []
    left = list(outcomes)
    try:
        step = next(steps)
        while True:
            if isinstance(step, Sleep):
                effects.append(step.seconds)
                step = steps.send(None)
                continue
            effects.append(step.method)
            outcome = left.pop(0)
            step = steps.throw(outcome) if isinstance(outcome, Exception) else steps.send(outcome)
    except StopIteration as done:
        assert not left
        return done.value, effects
    except (ApiError, TransportError, UnexpectedResponse) as error:
        assert not left
        return error, effects


def refusal(status: int, code: str = "c", message: str = "no", **headers: str) -> Response:
    body = json.dumps({"message": message, "code": code}).encode()
    return Response(status, {**JSON, **{k.replace("_", "-"): v for k, v in headers.items()}}, body)


def too_many(reset: str | None) -> Response:
    headers = {} if reset is None else {"x_sib_ratelimit_reset": reset}
    return refusal(429, **headers)


def test_a_request_is_the_call_in_bytes():
    steps = exchange(SEND, secrets=(KEY,), retries=Retries(), rate_limit_wait_seconds=0)
    assert next(steps) == Request(
        "POST", "/conversations/pushedMessages", '{"visitorId":"v","text":"Grüße"}'.encode()
    )
    steps.close()


def test_an_answer_holds_value_quota_request_id_and_the_number_of_requests():
    headers = {**JSON, "x-sib-ratelimit-limit": "100", "x-sib-ratelimit-remaining": "9"}
    answer, effects = run(GET, [MAYBE_DELIVERED, Response(200, headers, MESSAGE)])
    assert isinstance(answer, Answer)
    assert answer.value.id == "m"
    assert (answer.quota, answer.request_id, answer.requests) == (Quota(100, 9, None), "r-1", 2)
    assert effects == ["GET", 1.0, "GET"]


@pytest.mark.parametrize(
    ("call", "response"),
    [
        (PING, Response(201, {}, b"")),
        (DELETE, Response(204, {}, b"")),
        (DELETE, Response(200, JSON, b"{}")),
        (SEND, Response(201, {}, MESSAGE)),
        (SEND, Response(200, {"content-type": "application/problem+json; charset=utf-8"}, MESSAGE)),
        (SEND, Response(200, {**JSON, "content-encoding": "gzip"}, gzip.compress(MESSAGE))),
        (SEND, Response(200, {**JSON, "content-encoding": "Deflate"}, zlib.compress(MESSAGE))),
        (SEND, Response(200, {**JSON, "content-encoding": "identity"}, MESSAGE)),
    ],
    ids=str,
)
def test_every_form_of_yes_is_read(call, response):
    answer, effects = run(call, [response])
    assert isinstance(answer, Answer)
    assert answer.quota is None
    assert len(effects) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest), (401, Unauthorized), (402, Unauthorized), (403, Unauthorized), (404, NotFound),
        (405, InvalidRequest), (406, InvalidRequest), (407, Unauthorized), (408, InvalidRequest),
        (409, InvalidRequest), (413, InvalidRequest), (422, InvalidRequest), (425, InvalidRequest),
        (429, RateLimited), (451, InvalidRequest), (499, InvalidRequest), (500, ServerError),
        (502, ServerError), (503, ServerError), (599, ServerError),
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", [SEND, GET, DELETE], ids=lambda call: call.name)
def test_each_status_has_its_error_and_no_refusal_is_repeated(status, kind, call):
    times = 3 if status >= 500 and call is not SEND else 1
    error, effects = run(call, [refusal(status, "the_code", "the words")] * times)
    assert type(error) is kind
    assert (error.status, error.code, error.message, error.request_id) == (
        status,
        "the_code",
        "the words",
        "r-1",
    )
    assert error.call == call.name
    assert len([effect for effect in effects if isinstance(effect, str)]) == times


@pytest.mark.parametrize("status", [100, 199, 300, 301, 302, 304, 307, 308, 600, 999])
def test_neither_yes_nor_no_is_unexpected(status):
    error, effects = run(SEND, [Response(status, {**JSON, "location": "https://elsewhere"}, b"")])
    assert type(error) is UnexpectedResponse
    assert (error.status, error.message_id, error.request_id) == (status, None, "r-1")
    assert ("redirect" in str(error)) == (300 <= status < 400)
    assert effects == ["POST"]


ODD = b'{"id": "m7", "createdAt": "yesterday", "text": "private"}'


@pytest.mark.parametrize(
    ("headers", "body", "message_id", "part"),
    [
        (JSON, b"", None, "JSON"),
        (JSON, b"OK", None, "JSON"),
        (JSON, b"[1]", None, "object"),
        (JSON, b'"m"', None, "object"),
        (JSON, b"{}", None, "id"),
        (JSON, b'{"id": ""}', None, "id"),
        (JSON, b'{"id": 5}', None, "id"),
        (JSON, b"\xff" + MESSAGE, None, "JSON"),
        (JSON, b'{"id": "m', None, "JSON"),
        (JSON, b'{"a":' * 100_000, None, "JSON"),
        (JSON, ODD, "m7", "createdAt"),
        (JSON, b'{"id": "m7", "text": "\\ud800"}', "m7", "JSON"),
        (JSON, b"\xef\xbb\xbf" + MESSAGE, "m", "JSON"),
        ({"content-type": "text/html"}, b"<html>Log in</html>", None, "content type"),
        ({"content-type": "text/html"}, MESSAGE, "m", "content type"),
        ({**JSON, "content-encoding": "br"}, MESSAGE, None, "compressed"),
        ({**JSON, "content-encoding": "gzip"}, MESSAGE, None, "compression is broken"),
        ({**JSON, "content-encoding": "gzip"}, gzip.compress(MESSAGE)[:-9], None, "too early"),
        (
            {**JSON, "content-encoding": "gzip"},
            gzip.compress(b" " * (BODY_LIMIT_BYTES + 1)),
            None,
            "inflated",
        ),
        (JSON, b" " * (BODY_LIMIT_BYTES + 1), None, "longer"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_yes_that_can_not_be_read_says_so_with_the_id_where_that_can_be_read(
    headers, body, message_id, part
):
    """A message known to be sent is not put in doubt, and the contents stay out of the error."""
    error, effects = run(SEND, [Response(200, headers, body)])
    assert type(error) is UnexpectedResponse
    assert error.message_id == message_id
    assert part in str(error)
    assert "private" not in str(error)
    assert effects == ["POST"]


def test_a_login_page_is_no_deletion():
    error, _ = run(DELETE, [Response(200, {"content-type": "text/html"}, b"<html>Log in</html>")])
    assert type(error) is UnexpectedResponse


def test_a_creation_is_repeated_only_if_it_surely_did_not_reach_brevo():
    answer, effects = run(SEND, [NOT_DELIVERED, NOT_DELIVERED, YES])
    assert answer.requests == 3
    assert effects == ["POST", 1.0, "POST", 2.0, "POST"]
    for outcome, kind in ((MAYBE_DELIVERED, TransportError), (refusal(503), ServerError)):
        error, effects = run(SEND, [outcome])
        assert type(error) is kind
        assert effects == ["POST"]
    error, effects = run(SEND, [NOT_DELIVERED, MAYBE_DELIVERED])
    assert error.maybe_delivered
    assert effects == ["POST", 1.0, "POST"]


@pytest.mark.parametrize(
    "call", [GET, calls.update_message("m", "t"), DELETE, PING], ids=lambda call: call.name
)
@pytest.mark.parametrize(
    "outcome", [NOT_DELIVERED, MAYBE_DELIVERED, refusal(500)], ids=["not", "maybe", "500"]
)
def test_what_may_be_done_twice_is_repeated_until_the_attempts_are_used_up(call, outcome):
    answer, effects = run(call, [outcome, outcome, YES])
    assert answer.requests == 3
    assert effects == [call.method, 1.0, call.method, 2.0, call.method]
    error, effects = run(call, [outcome] * 3)
    assert type(error) is (ServerError if isinstance(outcome, Response) else TransportError)
    assert effects.count(call.method) == 3


def test_the_last_error_tells_of_every_attempt():
    error, _ = run(GET, [MAYBE_DELIVERED, NOT_DELIVERED, NOT_DELIVERED])
    assert error.maybe_delivered
    assert error.call == "get a message"
    error, _ = run(GET, [NOT_DELIVERED] * 3)
    assert not error.maybe_delivered


def test_a_deletion_whose_answer_was_lost_has_succeeded_when_its_repetition_finds_nothing():
    for lost in (MAYBE_DELIVERED, refusal(502)):
        answer, _ = run(DELETE, [lost, refusal(404)])
        assert answer.value is None
    for first in ([], [NOT_DELIVERED]):
        error, _ = run(DELETE, [*first, refusal(404)])
        assert type(error) is NotFound
    error, _ = run(GET, [MAYBE_DELIVERED, refusal(404)])
    assert type(error) is NotFound


CUT = "ConnectionResetError: reset"


def test_a_cut_answer_counts_by_its_status():
    error, effects = run(SEND, [Response(200, JSON, b'{"id": "m', CUT)])
    assert type(error) is UnexpectedResponse
    assert "cut off" in str(error)
    assert effects == ["POST"]
    error, effects = run(SEND, [Response(400, JSON, b'{"code": "x", "me', CUT)])
    assert type(error) is InvalidRequest
    assert effects == ["POST"]
    answer, effects = run(GET, [Response(200, JSON, b"{", CUT), YES])
    assert answer.requests == 2
    error, _ = run(GET, [Response(200, JSON, b"{", CUT)] * 3)
    assert type(error) is TransportError
    assert error.maybe_delivered


def test_429_is_raised_at_once_unless_waiting_was_allowed():
    for reset in ("45", "0"):
        error, effects = run(SEND, [too_many(reset)])
        assert type(error) is RateLimited
        assert error.reset_in == float(reset)
        assert effects == ["POST"]


def test_429_is_waited_for_as_long_as_allowed_and_the_call_repeated_whatever_it_is():
    answer, effects = run(SEND, [too_many("45"), YES], rate_limit_wait_seconds=45)
    assert answer.requests == 2
    assert effects == ["POST", 46.0, "POST"]
    error, effects = run(SEND, [too_many("46")], rate_limit_wait_seconds=45)
    assert error.reset_in == 46
    assert effects == ["POST"]


def test_429_without_its_header_is_raised():
    error, effects = run(GET, [too_many(None)], rate_limit_wait_seconds=1e9)
    assert error.reset_in is None
    assert effects == ["GET"]
    error, _ = run(GET, [too_many("soon")], rate_limit_wait_seconds=1e9)
    assert error.reset_in is None


def test_waiting_for_429_ends():
    """The allowance is one for the whole call, and a reset of 0 still costs a second."""
    error, effects = run(GET, [too_many("0")] * 4, rate_limit_wait_seconds=2.5, random=lambda: 0.0)
    assert type(error) is RateLimited
    assert effects == ["GET", 1.0, "GET", 1.0, "GET", 1.0, "GET"]


def test_waiting_for_the_quota_uses_up_no_attempt():
    answer, effects = run(
        GET,
        [MAYBE_DELIVERED, too_many("1"), MAYBE_DELIVERED, YES],
        rate_limit_wait_seconds=60,
        random=lambda: 0.0,
    )
    assert answer.requests == 4
    assert effects == ["GET", 0.5, "GET", 1.0, "GET", 1.0, "GET"]


def test_waits_double_up_to_their_bound_and_are_spread():
    policy = Retries(attempts=9, first_wait_seconds=1.0, max_wait_seconds=5.0)
    assert [policy.wait(n, lambda: 1.0) for n in range(1, 6)] == [1, 2, 4, 5, 5]
    assert [policy.wait(n, lambda: 0.0) for n in range(1, 6)] == [0.5, 1, 2, 2.5, 2.5]
    assert policy.wait(9, lambda: 0.0) is None
    assert Retries(attempts=1).wait(1, lambda: 0.0) is None


@pytest.mark.parametrize(
    ("body", "content_type", "message", "code"),
    [
        (b'{"message": "no", "code": "x"}', "application/json", "no", "x"),
        (b'{"message": "no"}', "application/json", "no", None),
        (b'{"message": ["no"], "code": 7}', "application/json", '{"message": ["no"], "code": 7}', None),
        (b"", "", "Bad Gateway", None),
        (b"[]", "application/json", "[]", None),
        (b"<html><head><title>502 Bad\nGateway</title></head>", "text/html", "502 Bad Gateway", None),
        (b"<p>Oops</p>", "text/html", "<p>Oops</p>", None),
        (b"up\x00stream \x1b[31mreset\r\nset-cookie: x\xff", "text/plain", None, None),
        (b'{"message": "' + b"a" * 9000 + b'"}', "application/json", "a" * 300 + "…", None),
        (b"\x00" * (BODY_LIMIT_BYTES + 1), "", "Bad Gateway", None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_an_explanation_is_one_short_printable_line(body, content_type, message, code):
    error, _ = run(SEND, [Response(502, {"content-type": content_type}, body)])
    assert error.code == code
    assert error.message.isprintable()
    assert len(error.message) <= 301
    if message is not None:
        assert error.message == message


def test_an_explanation_may_be_compressed():
    body = gzip.compress(b'{"code": "x", "message": "no"}')
    error, _ = run(SEND, [Response(400, {**JSON, "content-encoding": "gzip"}, body)])
    assert (error.code, error.message) == ("x", "no")
    error, _ = run(SEND, [Response(400, {**JSON, "content-encoding": "gzip"}, b"broken")])
    assert error.message == "Bad Request"


@pytest.mark.parametrize(
    "response",
    [
        refusal(401, message=f"the key {KEY} is not known", code=KEY, sib_request_id=KEY),
        refusal(429, message=KEY * 3),
        refusal(500, message="a" * 295 + KEY),
        Response(403, {"sib-request-id": KEY}, f"<title>{KEY}</title>".encode()),
        Response(400, {}, KEY.encode()),
        Response(200, {"sib-request-id": KEY}, json.dumps({"id": KEY, "createdAt": "x", KEY: 1}).encode()),
        Response(302, {"sib-request-id": KEY}, b""),
        Response(200, {}, b"", f"reset {KEY}"),
        TransportError(f"odd {KEY}", maybe_delivered=True),
    ],
    ids=str,
)
def test_no_error_shows_the_key_even_if_the_server_sends_it_back(response):
    error, _ = run(SEND, [response])
    for shown in (
        str(error),
        repr(error),
        repr(vars(error)),
        repr(error.args),
        pickle.dumps(error).decode("latin-1"),
    ):
        assert KEY not in shown
        assert "secret" not in shown
    assert error.__cause__ is None


def checked(**given: Any) -> Any:
    return destination(
        **(
            {
                "api_key": KEY,
                "base_url": "https://api.brevo.com/v3",
                "proxy": None,
                "allow_insecure_http": False,
            }
            | given
        )
    )


PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture
def environment(monkeypatch):
    for name in PROXIES + BUNDLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"api_key": ""}, "api_key is empty"),
        ({"api_key": "  "}, "api_key is empty"),
        ({"api_key": None}, "api_key is empty"),
        ({"api_key": f"{KEY}\n"}, "line break"),
        ({"api_key": f'{KEY} "'}, "space"),
        ({"api_key": f"{KEY}é"}, "character"),
        ({"base_url": ""}, "base_url"),
        ({"base_url": "api.brevo.com"}, "base_url"),
        ({"base_url": "ftp://api.brevo.com"}, "base_url"),
        ({"base_url": "https://"}, "base_url"),
        ({"base_url": "https://[::1"}, "base_url"),
        ({"base_url": "https://host:port/v3"}, "base_url"),
        ({"base_url": "https://a..b/v3"}, "base_url"),
        ({"base_url": f"https://{'a' * 64}.com/v3"}, "base_url"),
        ({"base_url": f"https://u:{KEY}@api.brevo.com/v3"}, "user"),
        ({"base_url": "https://api.brevo.com/v3?x=1"}, "query"),
        ({"base_url": None}, "base_url"),
        ({"base_url": "http://api.brevo.com/v3"}, "plain http"),
        ({"base_url": "http://localhost.evil.com/v3"}, "plain http"),
        ({"base_url": "http://10.0.0.7/v3"}, "plain http"),
        ({"proxy": "socks5://proxy:1080"}, "HTTP proxy"),
        ({"proxy": "a..b:3128"}, "HTTP proxy"),
        ({"proxy": "http://a..b:3128"}, "HTTP proxy"),
        ({"proxy": "http://[::1:3128"}, "HTTP proxy"),
    ],
    ids=str,
)
def test_a_key_goes_nowhere_wrong(environment, given, part):
    with pytest.raises(InvalidRequest, match=part) as caught:
        checked(**given)
    assert caught.value.status is None
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8090/v3/", "http://localhost/v3", "http://[::1]:1/v3", "https://x/v3/"]
)
def test_plain_http_is_for_this_machine(environment, url):
    assert checked(base_url=url).base_url == url.rstrip("/")


def test_plain_http_elsewhere_has_to_be_allowed(environment):
    assert checked(base_url="http://brevo.internal/v3", allow_insecure_http=True)


def test_the_key_is_in_no_repr(environment):
    assert KEY not in repr(checked(proxy="http://user:password@proxy:3128"))
    assert "password" not in repr(checked(proxy="http://user:password@proxy:3128"))


@pytest.mark.parametrize(
    ("url", "variables", "argument", "proxy"),
    [
        ("https://api.brevo.com/v3", {"https_proxy": "http://e:1"}, None, "http://e:1"),
        ("https://api.brevo.com/v3", {"HTTPS_PROXY": "http://e:1"}, None, "http://e:1"),
        ("https://api.brevo.com/v3", {"https_proxy": "http://e:1"}, "http://a:1", "http://a:1"),
        ("https://api.brevo.com/v3", {"https_proxy": "e:1"}, None, "http://e:1"),
        ("https://api.brevo.com/v3", {}, "user:word@a:1", "http://user:word@a:1"),
        ("https://api.brevo.com/v3", {"http_proxy": "http://e:1"}, None, None),
        ("https://api.brevo.com/v3", {"all_proxy": "http://e:1"}, None, "http://e:1"),
        ("https://api.brevo.com/v3", {"https_proxy": "http://e:1", "no_proxy": "brevo.com"}, None, None),
        (
            "https://api.brevo.com/v3",
            {"https_proxy": "http://e:1", "no_proxy": "brevo.com"},
            "http://a:1",
            "http://a:1",
        ),
        ("https://127.0.0.1/v3", {"https_proxy": "http://e:1"}, None, None),
        ("https://localhost/v3", {"https_proxy": "http://e:1"}, "http://a:1", "http://a:1"),
        ("https://api.brevo.com/v3", {}, "", None),
    ],
    ids=str,
)
def test_the_proxy_argument_wins_over_the_environment(environment, url, variables, argument, proxy):
    for name, value in variables.items():
        environment.setenv(name, value)
    assert checked(base_url=url, proxy=argument).proxy == proxy


def test_a_reason_is_the_innermost_cause_and_nothing_older():
    older = LookupError("private, being handled when the request began")
    inner = ConnectionRefusedError(111, "Connection refused")
    inner.__context__ = older
    error = RuntimeError("wrapped")
    error.__cause__ = inner
    assert reason(error, 3, older) == "ConnectionRefusedError: [Errno 111] Connection refused"
    nameless = RuntimeError()
    nameless.__context__ = older
    assert reason(nameless, 3, older) == "RuntimeError"


def test_a_reason_tells_when_time_was_up():
    error = RuntimeError("wrapped")
    error.__context__ = TimeoutError()
    assert reason(error, 2.5, None) == "no complete answer within 2.5 seconds"


FIELDS = [
    "id",
    "text",
    "createdAt",
    "isPushed",
    "to",
    "file",
    "attachments",
    "code",
    "message",
    "plan",
    "groupId",
]
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner, max_size=4)
    ),
    max_leaves=8,
)
BODIES = st.binary(max_size=40) | ANY_JSON.map(lambda value: json.dumps(value).encode())
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "content-type": st.sampled_from(["application/json", "text/html", "application/problem+json", ""]),
        "content-encoding": st.sampled_from(["gzip", "deflate", "br", "identity", ""]),
        "sib-request-id": st.text(max_size=8),
        **{
            f"x-sib-ratelimit-{name}": st.integers().map(str) | st.floats().map(str) | st.text(max_size=5)
            for name in ("limit", "remaining", "reset")
        },
    },
)


@given(
    status=st.integers(100, 599),
    headers=HEADERS,
    body=BODIES | BODIES.map(gzip.compress),
    cut=st.none() | st.just("IncompleteRead"),
    call=st.sampled_from([SEND, GET, DELETE, calls.set_visitor_group("v", None), calls.get_account()]),
)
def test_whatever_is_answered_is_a_result_or_one_of_our_errors(status, headers, body, cut, call):
    steps = exchange(call, secrets=(KEY,), retries=Retries(attempts=1), rate_limit_wait_seconds=0)
    next(steps)
    with pytest.raises((StopIteration, ConversationsError)) as caught:
        steps.send(Response(status, headers, body, cut))
    end = caught.value
    if isinstance(end, ConversationsError):
        assert str(end).isprintable()
        assert pickle.loads(pickle.dumps(end)).args == end.args
    else:
        assert isinstance(end.value, Answer)


# Certificates


def test_where_no_variable_names_certificates_both_clients_trust_those_of_requests(environment):
    made = checked()
    alone = ssl.create_default_context(cafile=requests.certs.where())
    assert made.ca_bundle == requests.certs.where()
    assert made.certificates is not None
    assert set(made.certificates.get_ca_certs(True)) == set(alone.get_ca_certs(True))
    assert made.certificates.verify_mode == ssl.CERT_REQUIRED
