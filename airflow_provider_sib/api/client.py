"""Perform calls with requests, one at a time.

A client may be used by one thread at a time; threads that work side by side take one each. Time limits hold for a
request as a whole, with two exceptions that no library can bound: looking up the host's name, and a name with
several addresses, each of which may take the whole time to connect.
"""

from __future__ import annotations

import http.client
import io
import random as random_module
import sys
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from airflow_provider_sib.api import calls
from airflow_provider_sib.api.errors import TransportError
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
from airflow_provider_sib.provider_info import DEFAULT_BASE_URL

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_sib.api.calls import Call

P = ParamSpec("P")
T = TypeVar("T")


def _method(call: Callable[P, Call[T]]) -> Callable[Concatenate[ConversationsClient, P], T]:
    def method(self: ConversationsClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.perform(call(*args, **kwargs)).value

    return calls.dressed(method, call)


class ConversationsClient:
    """Call Brevo's Conversations API.

    :param api_key: Brevo's API key.
    :param base_url: where the API is.
    :param timeout_seconds: bounds one request: connecting, sending and reading the answer.
    :param proxy: URL of an HTTP proxy; None asks the environment.
    :param allow_insecure_http: allows plain http to other machines than this one.
    :param retries: how often, and after which waits, a call is repeated that may be repeated.
    :param rate_limit_wait_seconds: longest time to wait for the quota within a call; by default a 429 is raised at
        once.
    :param sleep: waits for a number of seconds.
    :param random: a number from 0 to 1 at each call.
    :raises InvalidRequest: if the key, a URL, or the environment's ``REQUESTS_CA_BUNDLE`` can't be right.
    """

    def __init__(
        self,
        *,
        api_key: str,
        base_url: str = DEFAULT_BASE_URL,
        timeout_seconds: float = 30.0,
        proxy: str | None = None,
        allow_insecure_http: bool = False,
        retries: Retries = Retries(),  # noqa: B008  (a frozen value)
        rate_limit_wait_seconds: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._destination = destination(
            api_key=api_key, base_url=base_url, proxy=proxy, allow_insecure_http=allow_insecure_http
        )
        self._timeout_seconds = timeout_seconds
        self._retries = retries
        self._rate_limit_wait_seconds = rate_limit_wait_seconds
        self._sleep = sleep
        self._random = random
        # No session above it: that would follow redirects, keep cookies and add passwords from ~/.netrc.
        self._adapter = _Adapter(max_retries=urllib3.Retry(0, read=False, redirect=False))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._adapter.close()

    def perform(self, call: Call[T]) -> Answer[T]:
        """Carry out a call.

        :param call: what to do, from :mod:`~airflow_provider_sib.api.calls`.
        :return: its result, and what Brevo said about the quota.
        :raises TransportError: if no answer came.
        :raises ApiError: if Brevo refused.
        :raises UnexpectedResponse: if Brevo's answer can't be read.
        """
        steps = exchange(
            call,
            secrets=self._destination.secrets,
            retries=self._retries,
            rate_limit_wait_seconds=self._rate_limit_wait_seconds,
            random=self._random,
        )
        try:
            step = next(steps)
            while True:
                if isinstance(step, Sleep):
                    self._sleep(step.seconds)
                    step = steps.send(None)
                    continue
                try:
                    response = self._send(step)
                except TransportError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as done:
            answer: Answer[T] = done.value
            return answer

    def _send(self, request: Request) -> Response:
        target = self._destination
        before = sys.exception()
        prepared = requests.PreparedRequest()
        prepared.method = request.method
        # Set as it is: preparing would undo the percent-encoding of some ids.
        prepared.url = target.base_url + request.path
        prepared.headers = requests.structures.CaseInsensitiveDict(target.headers)
        prepared.body = request.body
        if request.body is not None:
            prepared.headers["content-length"] = str(len(request.body))
        attempt = _Attempt(time.monotonic() + self._timeout_seconds)
        _attempt.set(attempt)
        try:
            answer = self._adapter.send(
                prepared,
                stream=True,
                timeout=self._timeout_seconds,
                verify=target.ca_bundle or True,
                proxies={} if target.proxy is None else {"http": target.proxy, "https": target.proxy},
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise TransportError(
                reason(error, self._timeout_seconds, before), maybe_delivered=attempt.begun
            ) from None
        content, cut = b"", None
        with answer:
            try:
                while len(content) <= BODY_LIMIT_BYTES and (
                    # To the end and once more: only then is it told that something is missing.
                    chunk := answer.raw.read(BODY_LIMIT_BYTES + 1 - len(content), decode_content=False)
                ):
                    content += chunk
            except (urllib3.exceptions.HTTPError, OSError) as error:
                cut = reason(error, self._timeout_seconds, before)
            return Response(answer.status_code, answer.headers, content, cut)

    send_message = _method(calls.send_message)
    get_message = _method(calls.get_message)
    update_message = _method(calls.update_message)
    delete_message = _method(calls.delete_message)
    send_pushed_message = _method(calls.send_pushed_message)
    get_pushed_message = _method(calls.get_pushed_message)
    update_pushed_message = _method(calls.update_pushed_message)
    delete_pushed_message = _method(calls.delete_pushed_message)
    ping_agent_online = _method(calls.ping_agent_online)
    set_visitor_group = _method(calls.set_visitor_group)
    get_account = _method(calls.get_account)


class _Attempt:
    """What the connection must know of the request it carries.

    :param deadline: when time is up, on the monotonic clock.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.begun = False

    def left(self) -> float:
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


_attempt: ContextVar[_Attempt] = ContextVar("attempt")


class _Reader(io.RawIOBase):
    """Read a socket until the deadline; a socket's own timeout begins anew with every byte."""

    def __init__(self, stream: Any, sock: Any) -> None:
        self._stream = stream
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_attempt.get().left())
        count: int | None = self._stream.readinto(buffer)
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Reply(http.client.HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Reader(self.fp.detach(), sock))


class _Observed:
    """Bound what a connection does, and tell when it begins to send."""

    response_class = _Reply
    sock: Any
    connect: Callable[[], None]

    def _new_conn(self) -> Any:
        sock = super()._new_conn()  # type: ignore[misc]  # of urllib3's connection, the class beside this one
        # The handshake, if there is one, and the sending have what connecting left.
        sock.settimeout(_attempt.get().left())
        return sock

    def endheaders(self, *args: Any, **kwargs: Any) -> None:
        # Whatever fails up to here, looking up, connecting, the proxy's tunnel or the handshake: nothing was sent.
        if self.sock is None:
            self.connect()
        _attempt.get().begun = True
        super().endheaders(*args, **kwargs)  # type: ignore[misc]  # as above


class _Plain(_Observed, HTTPConnection):  # type: ignore[misc]  # response_class is untyped upstream
    pass


class _Secure(_Observed, HTTPSConnection):  # type: ignore[misc]  # response_class is untyped upstream
    pass


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Secure


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}
        return manager
