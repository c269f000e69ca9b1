"""Errors: facts as attributes, one helpful sentence, fit to travel between processes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest

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

FACTS = {
    "code": "some_code",
    "request_id": "r-1",
    "quota": Quota(100, 7, 12.0),
    "call": "send a pushed message",
}

ERRORS = [
    ConversationsError("a sentence"),
    TransportError("ConnectionResetError", maybe_delivered=True, call="get a message"),
    InvalidRequest("text is blank."),
    InvalidRequest("no", status=400, **FACTS),
    Unauthorized("no", status=401, **FACTS),
    NotFound("no", status=404, **FACTS),
    RateLimited("no", status=429, reset_in=12.0, **FACTS),
    ServerError("no", status=503, **FACTS),
    UnexpectedResponse("it is cut off", status=200, message_id="m", request_id="r", quota=Quota(1, 1, 1.0)),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "travel", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy], ids=["p", "c", "d"]
)
def test_an_error_arrives_whole(error, travel):
    arrived = travel(error)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert arrived.args == error.args
    assert vars(arrived) == vars(error)


def test_each_error_belongs_to_the_tree():
    for kind in (InvalidRequest, Unauthorized, NotFound, RateLimited, ServerError):
        assert issubclass(kind, ApiError)
    for kind in (ApiError, TransportError, UnexpectedResponse):
        assert issubclass(kind, ConversationsError)


def test_the_sentence_says_what_happened_to_which_call_and_what_to_do():
    text = str(InvalidRequest("text is missing", status=400, **FACTS))
    for part in ("send a pushed message", "400", "some_code", '"text is missing"', "r-1", "Fix the call"):
        assert part in text


def test_what_was_refused_here_reads_as_refused_here():
    error = InvalidRequest("text is blank; give the text to show.", call="send a message")
    assert str(error) == "Cannot send a message: text is blank; give the text to show."
    assert error.status is None


@pytest.mark.parametrize(
    ("status", "remedies"),
    [
        (401, ["API key", "IP address", "authorised_ips", "expired"]),
        (402, ["plan"]),
        (403, ["permission", "All to delete"]),
        (407, ["proxy"]),
    ],
)
def test_unauthorized_names_the_remedies_that_are_known_for_its_status(status, remedies):
    text = str(Unauthorized("no", status=status))
    for remedy in remedies:
        assert remedy in text


def test_a_transport_error_says_whether_it_may_be_repeated():
    assert "surely did not reach Brevo" in str(TransportError("x", maybe_delivered=False))
    assert "not known" in str(TransportError("x", maybe_delivered=True))


@pytest.mark.parametrize("error", [ServerError("x", status=502), UnexpectedResponse("odd", status=200)])
def test_what_may_have_been_carried_out_is_to_be_looked_at_before_it_is_repeated(error):
    assert "look before you repeat it" in str(error)


def test_an_unreadable_yes_names_the_id_it_could_read():
    assert "do not repeat it. The message has the id m7." in str(
        UnexpectedResponse("odd", status=200, message_id="m7")
    )


@pytest.mark.parametrize(
    ("headers", "quota"),
    [
        ({}, None),
        ({"x-sib-ratelimit-limit": "abc"}, None),
        (
            {
                "x-sib-ratelimit-limit": "100",
                "x-sib-ratelimit-remaining": "0",
                "x-sib-ratelimit-reset": "45",
            },
            Quota(100, 0, 45.0),
        ),
        ({"x-sib-ratelimit-reset": "1795476309"}, Quota(None, None, 3600.0)),
        ({"x-sib-ratelimit-reset": " 1.5 "}, Quota(None, None, 1.5)),
        ({"x-sib-ratelimit-remaining": "-1", "x-sib-ratelimit-limit": "7"}, Quota(7, None, None)),
        ({"x-sib-ratelimit-limit": "9" * 400, "x-sib-ratelimit-remaining": "1"}, Quota(None, 1, None)),
        ({"x-sib-ratelimit-limit": "1_000"}, None),
        ({"x-sib-ratelimit-limit": "²"}, None),
        ({"x-sib-ratelimit-limit": "nan"}, None),
        ({"x-sib-ratelimit-limit": "inf"}, None),
        ({"x-sib-ratelimit-limit": "."}, None),
        ({"x-sib-ratelimit-limit": ""}, None),
        ({"x-sib-ratelimit-limit": "100, 100"}, None),
    ],
)
def test_quota_headers_may_be_missing_or_garbage(headers, quota):
    assert Quota.from_headers(headers) == quota


def test_errors_need_the_standard_library_only():
    code = (
        "import sys, airflow_provider_sib.api.errors; "
        "print([m for m in ('requests', 'pydantic', 'aiohttp', 'urllib3', 'airflow') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
