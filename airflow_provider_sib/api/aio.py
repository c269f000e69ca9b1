"""Perform calls with aiohttp, many at a time, in one event loop.

Looking up, connecting, sending and reading are bounded together, waiting for a free connection included.
"""

from __future__ import annotations

import asyncio
import random as random_module
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import aiohttp
from yarl import URL

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
    from collections.abc import Awaitable, Callable, Coroutine

    from aiohttp.tracing import Trace

    from airflow_provider_sib.api.calls import Call

P = ParamSpec("P")
T = TypeVar("T")


def _method(
    call: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncConversationsClient, P], Coroutine[Any, Any, T]]:
    async def method(self: AsyncConversationsClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return (await self.perform(call(*args, **kwargs))).value

    return calls.dressed(method, call)


class AsyncConversationsClient:
    """Call Brevo's Conversations API from an event loop; connections open with the first call.

    :param api_key: Brevo's API key.
    :param base_url: where the API is.
    :param timeout_seconds: bounds one request: connecting, sending and reading the answer.
    :param proxy: URL of an HTTP proxy; None asks the environment.
    :param allow_insecure_http: allows plain http to other machines than this one.
    :param retries: how often, and after which waits, a call is repeated that may be repeated.
    :param rate_limit_wait_seconds: longest time to wait for the quota within a call; by default a 429 is raised at
        once.
    :param max_connections: requests under way at the same time; others wait, within their time limit.
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
        max_connections: int = 100,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._destination = destination(
            api_key=api_key, base_url=base_url, proxy=proxy, allow_insecure_http=allow_insecure_http
        )
        self._timeout_seconds = timeout_seconds
        self._retries = retries
        self._rate_limit_wait_seconds = rate_limit_wait_seconds
        self._max_connections = max_connections
        self._sleep = sleep
        self._random = random
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def perform(self, call: Call[T]) -> Answer[T]:
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
                    await self._sleep(step.seconds)
                    step = steps.send(None)
                    continue
                try:
                    response = await self._send(step)
                except TransportError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as done:
            answer: Answer[T] = done.value
            return answer

    async def _send(self, request: Request) -> Response:
        session = self._session or self._open()
        target = self._destination
        attempt = _Attempt()
        _attempt.set(attempt)
        before = sys.exception()
        chunks: list[bytes] = []
        answer: aiohttp.ClientResponse | None = None
        try:
            async with session.request(
                request.method,
                URL(target.base_url + request.path, encoded=True),
                data=request.body,
                headers=target.headers,
                allow_redirects=False,
                middlewares=() if request.method == "POST" else None,  # no POST is repeated anyway
            ) as answer:
                missing = BODY_LIMIT_BYTES + 1
                while missing > 0 and (chunk := await answer.content.read(missing)):
                    chunks.append(chunk)
                    missing -= len(chunk)
                return Response(answer.status, answer.headers, b"".join(chunks))
        except (aiohttp.ClientError, OSError) as error:
            why = reason(error, self._timeout_seconds, before)
            if answer is not None:
                return Response(answer.status, answer.headers, b"".join(chunks), why)
            raise TransportError(why, maybe_delivered=attempt.begun) from None
        finally:
            # What is given up is not sent on: aiohttp would let the rest of it flush, for as long as that takes.
            if sys.exception() is not before and attempt.transport is not None:
                attempt.transport.abort()

    def _open(self) -> aiohttp.ClientSession:
        target = self._destination
        self._session = aiohttp.ClientSession(
            connector=_Connector(limit=self._max_connections, ssl=target.certificates or True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._timeout_seconds),
            # Proxies were read by `destination`; the environment's netrc must never add a password.
            trust_env=False,
            proxy=target.proxy,
            auto_decompress=False,
            middlewares=(_once,),
        )
        return self._session

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
    """What the connector must tell of the request it found a connection for."""

    begun = False
    transport: asyncio.Transport | None = None


_attempt: ContextVar[_Attempt] = ContextVar("attempt")


class _Connector(aiohttp.TCPConnector):
    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  (the signature is aiohttp's)
    ) -> aiohttp.connector.Connection:
        # Whatever fails in here, looking up, connecting, the proxy's tunnel or the handshake: nothing was sent.
        connection = await super().connect(req, traces, timeout)
        attempt = _attempt.get()
        attempt.begun, attempt.transport = True, connection.transport
        return connection


async def _once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    # Of these two errors aiohttp repeats GET, PUT and DELETE by itself, unseen; but a DELETE whose first attempt
    # got through ends in a 404 then, and only `exchange`, if it is told, knows what that means.
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise aiohttp.ClientConnectionError from error
