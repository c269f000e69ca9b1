"""Runs the sandbox in a thread of its own, on a free port, for as long as a ``with`` block lasts."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import Future
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Self, TypeVar

from airflow_provider_sib.sandbox.server import SandboxServer
from airflow_provider_sib.sandbox.settings import Settings
from airflow_provider_sib.sandbox.state import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

T = TypeVar("T")
_START_TIMEOUT_SECONDS = 30.0


class Sandbox:
    """Run a sandbox on 127.0.0.1::

        with Sandbox(quota=100, hour_seconds=2, unknown_visitor="reject") as sandbox:
            client = ConversationsClient(api_key=sandbox.api_key, base_url=sandbox.base_url)

    Every method may be called from any thread.

    :param switches: what differs from the defaults, by the names in the docstring of
        `airflow_provider_sib.sandbox.state`.
    :raises ValueError: when a switch or its value isn't known.
    """

    #: The page to look at, e.g. ``http://127.0.0.1:8090/``. Known once started.
    page_url: str
    #: What a client needs, e.g. ``http://127.0.0.1:8090/v3``. Known once started.
    base_url: str

    def __init__(self, **switches: Any) -> None:
        self._settings = Settings().changed(switches)
        self._thread: threading.Thread | None = None

    @property
    def api_key(self) -> str:
        """The key it accepts."""
        return self._settings.api_key

    def start(self) -> Self:
        """Start it; ``with`` does.

        :raises OSError: when no port is to be had.
        """
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="sib-sandbox", daemon=True
        )
        self._thread.start()
        started.result(_START_TIMEOUT_SECONDS)
        return self

    def stop(self) -> None:
        """Stop it and close its connections; ``with`` does. Stopping twice does no harm."""
        if self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _serve(self, started: Future[None]) -> None:
        try:
            self._loop = asyncio.get_running_loop()
            self._stopping = asyncio.Event()
            self._server = SandboxServer(State(self._settings, SystemRandom()))
            port = await self._server.start("127.0.0.1", 0)
        except BaseException as error:
            started.set_exception(error)
            raise
        self.page_url = f"http://127.0.0.1:{port}/"
        self.base_url = f"{self.page_url}v3"
        started.set_result(None)
        await self._stopping.wait()
        await self._server.stop()

    def _ask(self, question: Callable[[SandboxServer], T]) -> T:
        """Put a question to the server, in the server's thread."""
        if self._thread is None:
            raise RuntimeError("The sandbox is not running: use it in a with block.")
        answer: Future[T] = Future()

        def ask() -> None:
            try:
                answer.set_result(question(self._server))
            except BaseException as error:  # noqa: BLE001  it belongs to the thread that asked
                answer.set_exception(error)
            self._server.notify()

        self._loop.call_soon_threadsafe(ask)
        return answer.result()

    def state(self) -> dict[str, Any]:
        """Give all it holds and every request it counted, as ``GET /_sandbox/state`` does."""
        return self._ask(lambda server: server.snapshot())

    def messages(self, visitor_id: str | None = None) -> list[dict[str, Any]]:
        """Give the messages in the order they were written, deleted ones too.

        :param visitor_id: only this visitor's.
        """
        return self._ask(
            lambda server: [
                server.state.recorded(message) for message in server.state.messages_of(visitor_id)
            ]
        )

    def counts(self) -> dict[str, int]:
        """Count visitors, messages, duplicates (a text a visitor has had before) and requests."""
        return self._ask(lambda server: server.state.counts())

    def configure(self, **switches: Any) -> None:
        """Change switches while it runs.

        :raises ValueError: when a switch or its value isn't known.
        """
        self._ask(lambda server: server.state.configure(switches))

    def fault(self, kind: str, **params: Any) -> None:
        """Put a fault in force: `airflow_provider_sib.sandbox.faults` lists them.

        :raises ValueError: when the kind or a parameter isn't known.
        """
        self._ask(lambda server: server.state.add_fault({"kind": kind, **params}))

    def clear_faults(self) -> None:
        """End all faults."""
        self._ask(lambda server: server.state.faults.clear())

    def add_visitors(self, *visitors: dict[str, str]) -> None:
        """Make visitors known, name them, and let them write.

        :param visitors: ``{"id": …, "name": …, "text": …}``, the last two optional.
        :raises ValueError: when one isn't such an object.
        """
        self._ask(lambda server: server.add_visitors(list(visitors)))

    def reset(self) -> None:
        """Forget everything and begin anew with the switches of the start."""
        self._ask(lambda server: server.state.reset())

    def connection(self, **extra: Any) -> dict[str, Any]:
        """Give what an Airflow connection to it needs.

        :param extra: the connection's extras.
        :return: ``conn_type``, ``host``, ``password`` and ``extra``.
        """
        return {
            "conn_type": "sib_conversations",
            "host": self.base_url,
            "password": self.api_key,
            "extra": extra,
        }

    def connection_json(self, **extra: Any) -> str:
        """Give the same as JSON, the value of an ``AIRFLOW_CONN_…`` environment variable."""
        return json.dumps(self.connection(**extra))
