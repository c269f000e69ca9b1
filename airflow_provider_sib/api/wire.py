"""Read every answer and decide every repetition, for both clients; nothing is sent or waited for here.

:func:`exchange` asks its driver for one effect after the other: perform a :class:`Request`, or sleep. Whoever
drives it needs no knowledge of statuses, headers or bodies. What is not known: how Brevo words a refusal. Nothing
here looks at words.
"""

from __future__ import annotations

import ipaddress
import json
import os
import random as random_module
import re
import ssl
import zlib
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from pydantic_core import to_json

from airflow_provider_sib import __version__
from airflow_provider_sib.api.errors import (
    ApiError,
    InvalidRequest,
    NotFound,
    Quota,
    RateLimited,
    ServerError,
    TransportError,
    Unauthorized,
    UnexpectedResponse,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from airflow_provider_sib.api.calls import Call

T = TypeVar("T")

BODY_LIMIT_BYTES = 4 * 1024 * 1024
"""No answer of this API comes near it; a driver need not read further than one byte beyond."""

_EXCERPT_CHARACTERS = 300
_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """Ask the driver for one HTTP request.

    :param method: HTTP method.
    :param path: path below the base URL, percent-encoded; to be sent exactly so.
    :param body: bytes to send, or None.
    """

    method: str
    path: str
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Ask the driver to wait.

    :param seconds: for how long.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Response:
    """Hand over what came back.

    :param status: HTTP status.
    :param headers: the headers; looked up case-insensitively.
    :param body: the body as it came, not decompressed; cut one byte beyond :data:`BODY_LIMIT_BYTES`.
    :param cut: why the body is not whole, or None if it is.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    cut: str | None = None


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """Hold the result of a call.

    :param value: what the call returns.
    :param quota: what Brevo said about the quota, if anything.
    :param request_id: ``sib-request-id``, if Brevo gave one.
    :param requests: HTTP requests made for it, repetitions included.
    """

    value: T
    quota: Quota | None
    request_id: str | None
    requests: int


@dataclass(frozen=True, slots=True)
class Retries:
    """Tell how long to wait before a repetition, in seconds, or that there shall be none.

    The wait doubles with each attempt and lies between half of that and the whole, so that many who failed
    together don't come back together.

    :param attempts: requests in all, the first included.
    :param first_wait_seconds: longest wait before the first repetition.
    :param max_wait_seconds: longest wait before any.
    """

    attempts: int = 3
    first_wait_seconds: float = 1.0
    max_wait_seconds: float = 10.0

    def wait(self, attempt: int, random: Callable[[], float]) -> float | None:
        """Answer for a failed attempt.

        :param attempt: how many were made.
        :param random: a number from 0 to 1 at each call.
        :return: seconds to wait, or None if there shall be no other attempt.
        """
        if attempt >= self.attempts:
            return None
        longest = min(self.first_wait_seconds * 2.0 ** (attempt - 1), self.max_wait_seconds)
        return longest * (1 + random()) / 2


@dataclass(frozen=True, slots=True)
class Destination:
    """Say where requests go, and what goes with each; checked when made by :func:`destination`.

    :param base_url: without a slash at its end.
    :param headers: sent with every request.
    :param proxy: URL of the proxy, or None.
    :param ca_bundle: path of the certificates to trust; None where there is no TLS.
    :param certificates: the same, read and ready for TLS.
    :param secrets: what no error may show: the API key, then the proxy's password.
    """

    base_url: str
    headers: Mapping[str, str] = field(repr=False)
    proxy: str | None = field(repr=False)
    ca_bundle: str | None
    certificates: ssl.SSLContext | None = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)


def destination(*, api_key: str, base_url: str, proxy: str | None, allow_insecure_http: bool) -> Destination:
    """Check where the key is about to go.

    :param api_key: Brevo's API key.
    :param base_url: such as ``https://api.brevo.com/v3``.
    :param proxy: URL of an HTTP proxy; None asks the environment (``https_proxy``, ``no_proxy`` and so on), except
        for a loopback address.
    :param allow_insecure_http: allows plain http to other machines.
    :return: the destination, with the certificates to trust: those that the environment's ``REQUESTS_CA_BUNDLE`` or
        ``CURL_CA_BUNDLE`` names, else those that requests brings along.
    :raises InvalidRequest: if one of them can't be right.
    """
    if not isinstance(api_key, str) or not api_key.strip():
        _misconfigured("api_key is empty; give an API key of Brevo's, such as xkeysib-…")
    if not (api_key.isascii() and api_key.isprintable()) or " " in api_key:
        _misconfigured(
            "api_key holds a space, a line break or a character that no key has; copy the key again, without quotes"
        )
    try:
        url = urlsplit(base_url)
        host, _ = url.hostname, url.port
        # Too long or empty parts are found by nobody until the name is looked up, and then by an odd error.
        (host or "").encode("idna")
    except (ValueError, AttributeError):
        _misconfigured("base_url is not a URL; give one such as https://api.brevo.com/v3")
    if url.scheme not in ("http", "https") or not host:
        _misconfigured("base_url is no http or https URL; give one such as https://api.brevo.com/v3")
    if url.username is not None or url.query or url.fragment:
        _misconfigured(
            "base_url holds a user, a query or a fragment; give one such as https://api.brevo.com/v3"
        )
    loopback = _is_loopback(host)
    if url.scheme == "http" and not loopback and not allow_insecure_http:
        _misconfigured(
            "base_url is plain http to another machine, which shows the key to everyone on the way; "
            "use https, or set allow_insecure_http"
        )
    if proxy is None and not loopback and not proxy_bypass(url.netloc):
        environment = getproxies()
        proxy = environment.get(url.scheme) or environment.get("all")
    if proxy and "://" not in proxy:  # as other programs read https_proxy=proxy.example.com:3128
        proxy = f"http://{proxy}"
    if proxy and not _is_http(proxy):
        _misconfigured("the proxy is no HTTP proxy; give a URL such as http://proxy.example.com:3128")
    # Broken certificates harm nobody where there is no TLS, as with the sandbox.
    ca_bundle, certificates = (
        _trusted() if "https" in (url.scheme, urlsplit(proxy or "").scheme) else (None, None)
    )
    return Destination(
        base_url=base_url.rstrip("/"),
        headers={
            "api-key": api_key,
            "accept": "application/json",
            # https://developers.brevo.com/docs/how-it-works: on every request, also on those without a body.
            "content-type": "application/json",
            # Answers are small; what is compressed nevertheless is read with a limit all the same.
            "accept-encoding": "identity",
            "user-agent": f"airflow-provider-sib/{__version__}",
        },
        proxy=proxy or None,
        ca_bundle=ca_bundle,
        certificates=certificates,
        secrets=(api_key, *_passwords(proxy)),
    )


def _trusted() -> tuple[str, ssl.SSLContext]:
    """Read the certificates to trust now: no message may be under way when they turn out to be broken."""
    # As of requests, for both clients: instead of the usual ones, and not beside them.
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if path := os.environ.get(variable):
            try:
                return path, _trusting(path)
            except OSError as error:
                _misconfigured(
                    f"the environment's {variable} names {path}, from which no certificates can be read "
                    f"({error.strerror}); mend that file, correct the variable, or unset it"
                )
    return _usual()


@cache
def _usual() -> tuple[str, ssl.SSLContext]:
    """Give the certificates that requests brings along; reading them takes 20 ms."""
    import certifi

    return certifi.where(), _trusting(certifi.where())


def _trusting(path: str) -> ssl.SSLContext:
    file, folder = (None, path) if Path(path).is_dir() else (path, None)
    context = ssl.create_default_context(cafile=file, capath=folder)
    context.set_alpn_protocols(["http/1.1"])  # as both libraries have it in contexts of their own
    return context


def _is_http(proxy: str) -> bool:
    try:
        url = urlsplit(proxy)
        (url.hostname or "").encode("idna")
    except ValueError:
        return False
    return url.scheme in ("http", "https")


def _passwords(proxy: str | None) -> tuple[str, ...]:
    password = urlsplit(proxy).password if proxy else None
    return (password, unquote(password)) if password else ()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _misconfigured(rule: str) -> NoReturn:
    raise InvalidRequest(f"{rule}.")


def reason(error: BaseException, timeout_seconds: float, beyond: BaseException | None) -> str:
    """Tell in a few words why a request failed.

    :param error: what a driver caught.
    :param timeout_seconds: the driver's time limit.
    :param beyond: what was being handled when the request began, which Python chains to the error although it is
        none of its causes.
    :return: the innermost cause, or that time was up.
    """
    cause = error
    while True:
        if isinstance(cause, TimeoutError):
            return f"no complete answer within {timeout_seconds:g} seconds"
        inner = cause.__cause__ or cause.__context__
        if inner is None or inner is beyond:
            return f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
        cause = inner


def exchange(
    call: Call[T],
    *,
    secrets: tuple[str, ...],
    retries: Retries,
    rate_limit_wait_seconds: float,
    random: Callable[[], float] = random_module.random,
) -> Generator[Request | Sleep, Response | None, Answer[T]]:
    """Carry out one call: yield what is to be done, be sent what came of it.

    A request is answered by sending a :class:`Response`, or by throwing a :class:`TransportError` whose
    ``maybe_delivered`` says whether the request may have reached Brevo; a sleep by sending None.

    A call that creates a message is repeated only if it surely was not carried out: it did not reach Brevo, or was
    refused with 429. Other calls are repeated after a failed transport and a 5xx as well. A 429 is waited for only
    as long as ``rate_limit_wait_seconds`` allows.

    :param call: what to do.
    :param secrets: what no error may show; the first is the API key, the others can be in transport errors only.
    :param retries: how often to repeat, and how long to wait before.
    :param rate_limit_wait_seconds: longest time to wait, in all, for the quota; 0 raises a 429 at once.
    :param random: a number from 0 to 1 at each call.
    :return: the answer.
    :raises TransportError: if no answer came.
    :raises ApiError: if Brevo refused.
    :raises UnexpectedResponse: if Brevo's answer can't be read.
    """
    request = Request(call.method, call.path, None if call.body is None else to_json(call.body))
    requests = failures = 0
    maybe_delivered = False
    patience = rate_limit_wait_seconds
    while True:
        requests += 1
        try:
            response = yield request
            assert response is not None  # noqa: S101  (the driver's part of the contract)
            if response.cut is not None and response.status < 300 and call.repeatable:
                raise TransportError(response.cut, maybe_delivered=True)
            return _read(call, response, requests, secrets[:1], maybe_delivered)
        except TransportError as error:
            maybe_delivered = maybe_delivered or error.maybe_delivered
            failure: TransportError | ServerError = TransportError(
                _printable(error.reason, secrets), maybe_delivered=maybe_delivered, call=call.name
            )
            repeat = call.repeatable or not error.maybe_delivered
        except ServerError as error:
            maybe_delivered = True
            failure, repeat = error, call.repeatable
        except RateLimited as error:
            # https://developers.brevo.com/docs/limit-headers: the only word on the wait is x-sib-ratelimit-reset.
            if patience <= 0 or error.reset_in is None or error.reset_in > patience:
                raise
            # Whole seconds may have been rounded down, and everyone waits for the same moment.
            seconds = max(1.0, error.reset_in + random())
            patience -= seconds
            yield Sleep(seconds)
            continue
        failures += 1
        wait = retries.wait(failures, random) if repeat else None
        if wait is None:
            raise failure from None
        yield Sleep(wait)


def _read(
    call: Call[T], response: Response, requests: int, secrets: tuple[str, ...], maybe_done: bool
) -> Answer[T]:
    status, headers = response.status, response.headers
    quota = Quota.from_headers(headers)
    request_id = headers.get("sib-request-id")
    if request_id is not None:
        request_id = _printable(request_id, secrets)
    if 200 <= status < 300:
        body = b""
        try:
            if response.cut is not None:
                raise ValueError(f"it is cut off: {_printable(response.cut, secrets)}")
            body = _decoded(response)
            if body and "json" not in headers.get("content-type", "json").partition(";")[0].lower():
                raise ValueError("it is not JSON by its content type")
            return Answer(call.read(body), quota, request_id, requests)
        except ValueError as error:
            raise UnexpectedResponse(
                f"its body can't be read: {_printable(str(error), secrets)}",
                status=status,
                request_id=request_id,
                message_id=_message_id(body, secrets),
                quota=quota,
                call=call.name,
            ) from None
    if status == 404 and call.method == "DELETE" and maybe_done:
        # An earlier attempt of this very call lost its answer: it is gone, as was wanted.
        return Answer(call.read(b""), quota, request_id, requests)
    if not 400 <= status < 600:
        redirect = "that is a redirect, and the key goes to no other host: check the connection's host"
        raise UnexpectedResponse(
            redirect if 300 <= status < 400 else "that is no status of HTTP",
            status=status,
            request_id=request_id,
            quota=quota,
            call=call.name,
        )
    message, code = _explanation(response, secrets)
    if status == 429:
        raise RateLimited(
            message,
            reset_in=None if quota is None else quota.reset_in_seconds,
            status=status,
            code=code,
            request_id=request_id,
            quota=quota,
            call=call.name,
        )
    raise _kind(status)(message, status=status, code=code, request_id=request_id, quota=quota, call=call.name)


def _kind(status: int) -> type[ApiError]:
    match status:
        case 401 | 402 | 403 | 407:
            return Unauthorized
        case 404:
            return NotFound
        case _ if status >= 500:
            return ServerError
        case _:
            return InvalidRequest


def _decoded(response: Response) -> bytes:
    body = response.body
    if len(body) > BODY_LIMIT_BYTES:
        raise ValueError(f"it is longer than {BODY_LIMIT_BYTES} bytes")
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("gzip", "x-gzip", "deflate"):
        body = _inflated(body)
    elif encoding not in ("identity", ""):
        raise ValueError("it is compressed in a way that was not asked for")
    return body


def _inflated(body: bytes) -> bytes:
    # 32 + 15: gzip or zlib, told apart by their headers. The limit holds while inflating: a bomb doesn't go off.
    inflater = zlib.decompressobj(47)
    try:
        whole = inflater.decompress(body, BODY_LIMIT_BYTES + 1)
    except zlib.error:
        raise ValueError("its compression is broken") from None
    if len(whole) > BODY_LIMIT_BYTES:
        raise ValueError(f"it is longer than {BODY_LIMIT_BYTES} bytes once inflated")
    if not inflater.eof:
        raise ValueError("its compression ends too early")
    return whole


def _message_id(body: bytes, secrets: tuple[str, ...]) -> str | None:
    match _json_object(body):
        case {"id": str(message_id)} if message_id and not any(secret in message_id for secret in secrets):
            return message_id
    return None


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _explanation(response: Response, secrets: tuple[str, ...]) -> tuple[str, str | None]:
    body = response.body[:BODY_LIMIT_BYTES]
    try:
        if "content-encoding" in response.headers:
            body = _decoded(response)
    except ValueError:
        body = b""
    envelope = _json_object(body) or {}
    code, message = envelope.get("code"), envelope.get("message")
    if not isinstance(message, str):
        # A gateway in front of Brevo explains itself in HTML, by the page's title at best.
        page = body[:_PAGE_BYTES].decode(errors="replace")
        title = re.search(r"<title[^>]*>([^<]+)<", page, re.IGNORECASE)
        message = title[1] if title else page
    text = _printable(message, secrets)
    if not text:
        try:
            text = HTTPStatus(response.status).phrase
        except ValueError:
            text = "no explanation"
    return text, _printable(code, secrets) if isinstance(code, str) else None


def _printable(text: str, secrets: tuple[str, ...]) -> str:
    # Secrets go first: cut in two or with a character taken out, they would not be found.
    for secret in secrets:
        text = text.replace(secret, "***")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT_CHARACTERS else line[:_EXCERPT_CHARACTERS] + "…"
