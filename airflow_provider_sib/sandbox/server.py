"""Serves the sandbox over HTTP: Brevo's API below ``/v3``, its own below ``/_sandbox``, the page at ``/``.

It performs the answers that `state` decides on, hanging up and keeping silent where they say so. It knows the
time; it has no rules of its own about Conversations.

Its own API, JSON in and out:

============================  ================================================================================
``GET /_sandbox/state``       all it holds; ``?messages=0`` leaves out visitors and messages, ``?log=N`` lists only
                              the newest N requests; it keeps 100,000, and counts all
``GET /_sandbox/messages``    the messages, deleted ones too; ``?visitor_id=`` for one visitor's
``GET /_sandbox/counts``      visitors, messages, duplicates, requests
``PUT /_sandbox/settings``    change switches (the table in `state`); answers with all of them
``POST /_sandbox/faults``     put a fault in force (the table in `faults`); ``DELETE`` ends them all
``POST /_sandbox/reset``      begin anew
``POST /_sandbox/visitors``   ``{"id": …, "name": …, "text": …}`` or a list of these: make visitors known, name
                              them, and let them write
``GET /_sandbox/chats``       what the page draws: ``?offset=&limit=&search=&order=newest``
``GET /_sandbox/events``      Server-Sent Events: the figures of the page's head, at every change
============================  ================================================================================
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from http import HTTPStatus
from importlib import resources
from itertools import chain, islice
from typing import Any

from aiohttp import web

from airflow_provider_sib.sandbox.state import LOG_LENGTH, Answer, Received, State

#: What web browsers may do with the page: nothing comes from elsewhere, nothing goes elsewhere.
_PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_JSON_HEADERS = {"content-type": "application/json", "cache-control": "no-store"}
_ASSETS = {
    "/": ("index.html", "text/html"),
    "/_sandbox/page.css": ("page.css", "text/css"),
    "/_sandbox/page.js": ("page.js", "text/javascript"),
}
_MOST_CHATS = 200
_FIRST_CHATS = 24
#: Where the page's file has room for what it shows first.
_BEGIN = b">null</script>"
#: The page hears of changes at most this often, however many there are.
_EVENT_INTERVAL_SECONDS = 0.15
#: So often it hears of the quota's clock, when nothing changes.
_TICK_SECONDS = 1.0

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class SandboxServer:
    """Serve one `State` on one address.

    :param state: what it serves; changed by the event loop's thread only.
    :param clock: gives seconds since the epoch.
    """

    def __init__(self, state: State, *, clock: Callable[[], float] = time.time) -> None:
        self.state = state
        self._clock = clock
        self._watchers: set[asyncio.Event] = set()
        self._version = 0
        self._own: dict[tuple[str, str], Handler] = {
            ("GET", "/_sandbox/state"): self._get_state,
            ("GET", "/_sandbox/messages"): self._get_messages,
            ("GET", "/_sandbox/counts"): self._get_counts,
            ("PUT", "/_sandbox/settings"): self._put_settings,
            ("POST", "/_sandbox/faults"): self._post_fault,
            ("DELETE", "/_sandbox/faults"): self._delete_faults,
            ("POST", "/_sandbox/reset"): self._post_reset,
            ("POST", "/_sandbox/visitors"): self._post_visitors,
            ("GET", "/_sandbox/chats"): self._get_chats,
            ("GET", "/_sandbox/events"): self._get_events,
        }
        self._http = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._listener: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Begin to listen.

        :param host: the address to bind.
        :param port: the port; 0 for a free one.
        :raises OSError: when the address can't be had.
        :return: the port.
        """
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._http, host, port, backlog=1024)
        chosen: int = self._listener.sockets[0].getsockname()[1]
        return chosen

    async def stop(self) -> None:
        """Stop listening and close every connection, those that wait for an answer too."""
        if self._listener is not None:
            self._listener.close()
        await self._http.shutdown(timeout=0.05)

    def notify(self) -> None:
        """Tell the pages that look on that something has changed."""
        self._version += 1
        for watcher in self._watchers:
            watcher.set()

    def snapshot(self) -> dict[str, Any]:
        """Give all the state holds, as of now."""
        return self.state.snapshot(self._clock())

    def add_visitors(self, visitors: list[Any]) -> None:
        """Make visitors known and let them write, as of now: see `State.add_visitors`."""
        self.state.add_visitors(visitors, self._clock())

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        if path.startswith("/v3/"):
            return await self._handle_api(request, path)
        return await self._handle_own(request, path)

    # -- Brevo's API -----------------------------------------------------------------------------------------

    async def _handle_api(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        headers = request.headers
        body = await request.content.read() if request.body_exists else b""
        received = Received(
            method=request.method,
            path=path,
            api_key=headers.get("api-key"),
            content_type=headers.get("content-type"),
            body=body,
            remote=request.remote or "",
        )
        answer = self.state.receive(received, self._clock())
        self.notify()
        if answer.delay_seconds:
            await asyncio.sleep(answer.delay_seconds)
        if answer.hang_up is not None:
            await self._hang_up(request, answer)
        return web.Response(status=answer.status or 500, body=answer.body, headers=answer.headers)

    async def _hang_up(self, request: web.BaseRequest, answer: Answer) -> None:
        transport = request.transport
        if answer.hang_up == "never" or transport is None:
            # Ends when the caller leaves or the server stops: both cancel this handler.
            await asyncio.Event().wait()
        elif answer.hang_up == "during":
            transport.write(_first_half(answer))
            transport.close()
        else:
            transport.abort()
        # What is returned after this is written to a closed connection, that is, nowhere.

    # -- the sandbox's own API and page ----------------------------------------------------------------------

    async def _handle_own(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            return _error(403, "The sandbox takes no requests from pages of other origins.")
        if request.method in ("GET", "HEAD") and path in _ASSETS:
            name, media_type = _ASSETS[path]
            body = resources.files("airflow_provider_sib.sandbox").joinpath("page", name).read_bytes()
            if path == "/":
                body = body.replace(_BEGIN, self._begin())
            headers = {"content-type": f"{media_type}; charset=utf-8", **_PAGE_HEADERS}
            return web.Response(body=body, headers=headers)
        handler = self._own.get((request.method, path))
        if handler is None:
            known = sorted({known for _, known in self._own})
            return _error(404, f"The sandbox answers at /, below /v3, and at {', '.join(known)}.")
        try:
            return await handler(request)
        except ValueError as error:
            return _error(400, str(error))

    def _begin(self) -> bytes:
        begin = {
            "figures": self.state.figures(self._clock()),
            "chats": self.state.chats(offset=0, limit=_FIRST_CHATS),
        }
        # "<" as an escape, so that no text can end the script element
        return b">" + json.dumps(begin).replace("<", "\\u003c").encode() + b"</script>"

    async def _get_state(self, request: web.BaseRequest) -> web.StreamResponse:
        log = _number(request, "log", LOG_LENGTH)
        if request.query.get("messages", "1") in ("0", "false"):
            return _json(self.state.summary(self._clock(), log=log))
        head = json.dumps(self.state.summary(self._clock(), log=log)).removesuffix("}")
        visitors, messages = list(self.state.visitors.values()), list(self.state.messages.values())
        return await _streamed(
            request,
            chain(
                (f'{head}, "visitors": {{',),
                _pieces(f"{json.dumps(one.id)}: {json.dumps(self.state.described(one))}" for one in visitors),
                ('}, "messages": {',),
                _pieces(f"{json.dumps(one.id)}: {json.dumps(self.state.recorded(one))}" for one in messages),
                ("}}",),
            ),
        )

    async def _get_messages(self, request: web.BaseRequest) -> web.StreamResponse:
        messages = list(self.state.messages_of(request.query.get("visitor_id")))
        return await _streamed(
            request, chain("[", _pieces(json.dumps(self.state.recorded(one)) for one in messages), "]")
        )

    async def _get_counts(self, _: web.BaseRequest) -> web.StreamResponse:
        return _json(self.state.counts())

    async def _put_settings(self, request: web.BaseRequest) -> web.StreamResponse:
        self.state.configure(await _object(request))
        self.notify()
        return _json(self.state.settings.as_json())

    async def _post_fault(self, request: web.BaseRequest) -> web.StreamResponse:
        self.state.add_fault(await _object(request))
        self.notify()
        return _json([fault.as_json() for fault in self.state.faults], status=HTTPStatus.CREATED)

    async def _delete_faults(self, _: web.BaseRequest) -> web.StreamResponse:
        self.state.faults.clear()
        self.notify()
        return web.Response(status=HTTPStatus.NO_CONTENT)

    async def _post_reset(self, _: web.BaseRequest) -> web.StreamResponse:
        self.state.reset()
        self.notify()
        return web.Response(status=HTTPStatus.NO_CONTENT)

    async def _post_visitors(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await _body(request)
        self.add_visitors(body if isinstance(body, list) else [body])
        self.notify()
        return _json({"visitors": len(self.state.visitors)}, status=HTTPStatus.CREATED)

    async def _get_chats(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json(
            self.state.chats(
                offset=_number(request, "offset", 0),
                limit=min(_number(request, "limit", 50), _MOST_CHATS),
                search=request.query.get("search", ""),
                newest_first=request.query.get("order") == "newest",
            )
        )

    async def _get_events(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"content-type": "text/event-stream", "cache-control": "no-store"}
        )
        await response.prepare(request)
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            while True:
                changed.clear()
                figures = json.dumps({"version": self._version, **self.state.figures(self._clock())})
                await response.write(f"data: {figures}\n\n".encode())
                await asyncio.sleep(_EVENT_INTERVAL_SECONDS)
                try:
                    await asyncio.wait_for(changed.wait(), _TICK_SECONDS)
                except TimeoutError:
                    continue
        except ConnectionError:
            return response
        finally:
            self._watchers.discard(changed)


def _json(value: Any, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=json.dumps(value).encode(), headers=_JSON_HEADERS)


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Join texts with commas, a thousand at a time."""
    texts = iter(texts)
    comma = ""
    while piece := list(islice(texts, 1000)):
        yield comma + ", ".join(piece)
        comma = ", "


async def _streamed(request: web.BaseRequest, pieces: Iterable[str]) -> web.StreamResponse:
    """Send a long JSON text piece by piece: other requests are answered in between, and no million messages are in
    memory as text at once."""
    response = web.StreamResponse(headers=_JSON_HEADERS)
    await response.prepare(request)
    for piece in pieces:
        await response.write(piece.encode())
        await asyncio.sleep(0)
    await response.write_eof()
    return response


def _error(status: int, message: str) -> web.Response:
    return _json({"message": message}, status=status)


def _number(request: web.BaseRequest, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name} must be a whole number, 0 or more; it is {text!r}.")
    return int(text)


async def _body(request: web.BaseRequest) -> Any:
    if request.content_type != "application/json":
        raise ValueError("The content type must be application/json.")
    try:
        return json.loads(await request.content.read())
    except (ValueError, RecursionError):
        raise ValueError("The body must be JSON.") from None


async def _object(request: web.BaseRequest) -> dict[str, Any]:
    body = await _body(request)
    if not isinstance(body, dict):
        raise ValueError("The body must be a JSON object.")
    return body


def _first_half(answer: Answer) -> bytes:
    """Write out an answer as HTTP/1.1; give its bytes up to the middle of its body, or else of its first line.

    Some clients take a head that ends too early for a whole one.
    """
    body = answer.body or b""
    head = f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\ncontent-length: {len(body)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
    whole = f"{head}\r\n".encode() + body
    return whole[: len(whole) - len(body) // 2] if body else whole[: len("HTTP/1.1 2")]
