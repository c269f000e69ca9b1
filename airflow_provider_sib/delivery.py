"""Carries a campaign's requests to Brevo: the one place where an error becomes sent, failed or in doubt.

An event loop with many requests in flight, and a thread each for it and for the ledger. Knows neither Airflow nor
when to come back after a long wait: it returns that as a value. What it doesn't know: whether a request whose answer
was lost was carried out; it says so.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Protocol

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
from airflow_provider_sib.campaign.engine import (
    Delete,
    Done,
    Engine,
    Fate,
    Look,
    Outcome,
    Post,
    Put,
    Request,
    Send,
    Step,
    Stopped,
    Wait,
    uptime,
)
from airflow_provider_sib.campaign.ledger import LedgerUnavailable, flaw_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from airflow_provider_sib.api.calls import Call
    from airflow_provider_sib.api.wire import Answer
    from airflow_provider_sib.campaign.ledger import Json

log = logging.getLogger(__name__)

NOBODY = "airflow-provider-sib-is-brevo-there"
"""An id no message has: asking for it harms nobody, and a key limited to Conversations may do it."""

DRAIN_SECONDS = 3.0
"""How long requests in flight may take once told to stop; Airflow kills after five."""

BATCH_SECONDS = 0.005
"""How long an outcome waits for others before the ledger is told."""

LOOK_SECONDS = 5.0
"""How often, while waiting in place, the ledger is asked whether somebody paused, resumed or aborted."""

LEDGER_PATIENCE_SECONDS = 300.0
"""How long outcomes are held while the ledger doesn't answer."""


class Client(Protocol):
    """Performs calls, as :class:`~airflow_provider_sib.api.aio.AsyncConversationsClient` does."""

    async def perform(self, call: Call[Any]) -> Answer[Any]:
        """Carry out a call, once."""


class OutcomesLost(Exception):
    """The ledger did not answer for so long that outcomes are given up; its rows will be in doubt.

    :param rows: numbers of the rows, and the ids of their messages.
    """

    def __init__(self, rows: list[tuple[int, str | None]]) -> None:
        super().__init__(
            f"The ledger does not answer, and {len(rows)} outcomes could not be recorded. Their rows will be in "
            f"doubt, and can be settled by these numbers and message ids: {_listed(rows)}."
        )
        self.rows = rows

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.rows,)


class Courier:
    """Drives an engine until it is done, stopped, told to stop, or has to wait for long.

    :param engine: what to do; only the courier's ledger thread calls it while it runs.
    :param client: makes the client, as an asynchronous context manager: one that repeats nothing
        (``Retries(attempts=1)``, ``rate_limit_wait_seconds=0``), since the engine decides on that.
    :param max_in_flight: as the engine's rules have it.
    :param connections: requests on the wire at the same time; None: ``max_in_flight``. Fewer keep the wire busy
        while the ledger is told.
    :param defer_after_seconds: longer waits end the run; None: never.
    :param progress: called about once a ``progress_seconds`` with the engine's tally and, while it waits, why; in the
        ledger's thread, since it may take its time, and answers must be read meanwhile.
    :param progress_seconds: how often.
    :param clock: the engine's.
    :param parent: tells the process that watches over this one; when that changes, nobody does, and it stops.
    :param watched_by: the process that did so when the work began; None: the one as the delivery begins.
    """

    def __init__(
        self,
        engine: Engine,
        client: Callable[[], AbstractAsyncContextManager[Client]],
        *,
        max_in_flight: int,
        connections: int | None = None,
        defer_after_seconds: float | None = 60.0,
        progress: Callable[[dict[str, Json], Wait | None], None] | None = None,
        progress_seconds: float = 60.0,
        clock: Callable[[], float] = uptime,
        parent: Callable[[], int] = os.getppid,
        watched_by: int | None = None,
    ) -> None:
        self._engine = engine
        self._client_of = client
        self._batch = max(1, max_in_flight // 2)
        self._connections = min(connections or max_in_flight, max_in_flight)
        self._defer_after = defer_after_seconds
        self._progress = progress
        self._progress_seconds = progress_seconds
        self._clock = clock
        self._parent = parent
        self._watched_by = watched_by
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told_to_stop = False
        self._outcomes: list[Outcome] = []
        self._flying = 0
        self._waiting: Wait | None = None
        self._recording_since: float | None = None
        self._failure: Exception | None = None

    def run(self) -> Wait | Done | Stopped:
        """Deliver; what a signal's handler raises meanwhile ends it as :meth:`stop` does, and is raised then.

        :return: ``Done``; ``Stopped``, also with ``interrupted``; or ``Wait``, for longer than to wait in place.
        :raises OutcomesLost: the ledger is gone, with outcomes that it doesn't know.
        :raises LedgerUnavailable: the ledger is gone, and knows all.
        """
        # In a thread of its own, since a signal's handler may raise, as that of Airflow's `execution_timeout` does. It
        # does so in the main thread: in the midst of a request, which would be lost, or of uvloop, which only logs it.
        delivery: Future[Wait | Done | Stopped] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="sib-delivery") as thread:
            try:
                delivery = thread.submit(copy_context().run, self._run)
                wait([delivery])
            except BaseException:
                self.stop()
                if delivery is not None:
                    delivery.result()  # what it raises matters more
                raise
            return delivery.result()

    def _run(self) -> Wait | Done | Stopped:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(self.deliver())

    def stop(self) -> None:
        """Begin nothing more, and end within seconds; from any thread, or a signal handler."""
        self._told_to_stop = True
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # its loop is closed: it has ended
                return

    def _wake(self) -> None:
        self._news.set()
        self._say_last_words()

    def _say_last_words(self) -> None:
        """Once told to stop, name what a silent ledger has not taken in, before this process is killed."""
        assert self._loop is not None  # noqa: S101  set before anybody wakes it
        if self._recording_since is None or self._clock() - self._recording_since < DRAIN_SECONDS:
            self._loop.call_later(0.2, self._say_last_words)
        elif rows := self._unrecorded():
            log.warning(
                "Told to stop while the ledger does not answer. Unless it still does, these rows will be in doubt, "
                "and can be settled by these numbers and message ids: %s.",
                _listed(rows),
            )

    def _unrecorded(self) -> list[tuple[int, str | None]]:
        landed = [
            (outcome.request.rank, outcome.message_id)
            for outcome in self._outcomes
            if outcome.request.rank is not None
        ]
        return [*self._engine.unrecorded(), *landed]

    async def deliver(self) -> Wait | Done | Stopped:
        """Deliver, in a running event loop; see :meth:`run`."""
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._queue: asyncio.Queue[tuple[Request, float]] = asyncio.Queue()
        if self._watched_by is None:
            self._watched_by = self._parent()
        with ThreadPoolExecutor(1, thread_name_prefix="sib-ledger") as self._ledger:
            async with self._client_of() as self._client:
                self._tasks = [asyncio.create_task(self._work()) for _ in range(self._connections)]
                beside = [asyncio.create_task(self._watch()), asyncio.create_task(self._tell())]
                try:
                    end = await self._deliver()
                except (LedgerUnavailable, OutcomesLost):
                    raise
                except BaseException:
                    await self._land(DRAIN_SECONDS)
                    await self._leave(None)
                    raise
                finally:
                    for task in beside:
                        task.cancel()
                    await self._land(0.0)
                await self._leave(end.until_ms if isinstance(end, Wait) else None)
        if self._failure is not None:
            raise self._failure
        return end

    async def _deliver(self) -> Wait | Done | Stopped:
        while not self._told_to_stop:
            step = await self._ask()
            match step:
                case Send(requests, begin_by):
                    self._flying += len(requests)
                    for request in requests:
                        self._queue.put_nowait((request, begin_by))
                    await self._batch_of_news(None)
                case Wait(seconds=seconds) if self._flying or self._outcomes:
                    await self._batch_of_news(seconds)
                case Wait():
                    if not self._is_short(step):
                        return step
                    await self._wait(step)
                case Stopped() if self._flying or self._outcomes:
                    await self._batch_of_news(None)
                case Stopped() | Done():
                    return step
        await self._land(DRAIN_SECONDS)
        return Stopped("interrupted")

    async def _leave(self, until_ms: int | None) -> None:
        """Record what is left, and nothing more; the engine's `next` might begin more."""
        self._hand_over()
        try:
            await self._record(self._engine.leave, until_ms=until_ms)
        except (LedgerUnavailable, OutcomesLost):
            raise
        except Exception:  # whatever it is: ids that no log names can be neither settled nor withdrawn
            if rows := self._unrecorded():
                log.warning(
                    "The ledger could not take in the outcomes of these rows. Their messages may be at Brevo, and can "
                    "be deleted there by id; by the rows' numbers and message ids: %s.",
                    _listed(rows),
                )
            raise

    def _hand_over(self) -> None:
        outcomes, self._outcomes = self._outcomes, []
        self._engine.take(outcomes)

    async def _land(self, seconds: float) -> None:
        """Begin nothing more, wait for what is in flight for seconds, give up the rest as unknown."""
        now = self._clock()
        while not self._queue.empty():
            request, _ = self._queue.get_nowait()
            self._landed(request, Fate.UNBEGUN, now, made=False)
        try:
            async with asyncio.timeout(seconds):
                while self._flying:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _is_short(self, wait: Wait) -> bool:
        if self._defer_after is None:
            return True
        return wait.seconds is not None and wait.seconds <= self._defer_after

    async def _wait(self, wait: Wait) -> None:
        """Wait in place, and look at the ledger now and then."""
        seconds = LOOK_SECONDS if wait.seconds is None else min(wait.seconds, LOOK_SECONDS)
        self._waiting = wait
        await self._until_news(seconds)
        self._waiting = None

    async def _batch_of_news(self, seconds: float | None) -> None:
        """Wait until a batch of outcomes is in, or they are some milliseconds old, or nothing is in flight."""
        if len(self._outcomes) < self._batch and self._flying and not self._told_to_stop:
            if not self._outcomes:
                await self._until_news(seconds)
            if self._outcomes and len(self._outcomes) < self._batch and self._flying:
                await self._until_news(BATCH_SECONDS)

    async def _until_news(self, seconds: float | None) -> None:
        self._news.clear()
        if self._told_to_stop:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return

    async def _watch(self) -> None:
        """Stop when nobody watches over this process any more."""
        while True:
            # A supervisor that was killed can't stop this process, and another one is started in its place.
            if self._parent() != self._watched_by:
                self.stop()
                return
            await asyncio.sleep(1.0)

    async def _tell(self) -> None:
        """Tell of the progress, from time to time."""
        assert self._loop is not None  # noqa: S101  set before this begins
        while (progress := self._progress) is not None:
            await asyncio.sleep(self._progress_seconds)
            try:
                await self._loop.run_in_executor(
                    self._ledger, lambda: progress(self._engine.tally(), self._waiting)
                )
            except Exception as error:  # noqa: BLE001  raised once everything in flight is recorded
                self._failure = self._failure or error
                self.stop()
                return

    async def _ask(self) -> Step:
        self._hand_over()
        step: Step = await self._record(self._engine.next)
        return step

    async def _record(self, work: Callable[..., Any], **arguments: Any) -> Any:
        """Do the ledger's work in its thread, for minutes if it must be."""
        assert self._loop is not None  # noqa: S101  set before anything is recorded
        failed_at: float | None = None
        pause = 0.1
        while True:
            try:
                self._recording_since = self._clock()
                return await self._loop.run_in_executor(self._ledger, lambda: work(**arguments))
            except LedgerUnavailable as error:
                # Not from when it began, after which this process may have been suspended: it is tried once more.
                failed_at = self._clock() if failed_at is None else failed_at
                patience = DRAIN_SECONDS if self._told_to_stop else LEDGER_PATIENCE_SECONDS
                if self._clock() - failed_at > patience:
                    await self._land(0.0)
                    self._hand_over()
                    rows = self._engine.unrecorded()
                    if rows:
                        raise OutcomesLost(rows) from error
                    raise
            finally:
                self._recording_since = None
            # Not news: outcomes that come in meanwhile don't bring the ledger back.
            await asyncio.sleep(0.1 if self._told_to_stop else pause)
            pause = min(2 * pause, 5.0)

    async def _work(self) -> None:
        """Perform requests, one at a time."""
        while True:
            await self._perform(*await self._queue.get())

    def _landed(self, request: Request, fate: Fate, began_at: float, **facts: Any) -> None:
        self._flying -= 1
        self._outcomes.append(
            Outcome(request=request, fate=fate, began_at=began_at, ended_at=self._clock(), **facts)
        )
        count = len(self._outcomes)
        if count == 1 or count >= self._batch or not self._flying:
            self._news.set()

    async def _perform(self, request: Request, begin_by: float) -> None:
        began_at = self._clock()
        facts: dict[str, Any] = {}
        try:
            call = _call_of(request)
            if began_at > begin_by:
                fate, facts = Fate.UNBEGUN, {"made": False}
            else:
                answer = await self._client.perform(call)
                fate = Fate.DONE
                facts = _quota_facts(answer.quota)
                if isinstance(request, Post):
                    facts["message_id"] = _kept(answer.value.id)
        except ConversationsError as error:
            fate, facts = _fate_of(error)
        except asyncio.CancelledError:
            # Told to stop: whether Brevo got it, nobody knows.
            self._landed(request, Fate.UNKNOWN, began_at, reason="stopped")
            raise
        except Exception as error:  # noqa: BLE001  a row that was claimed must get an outcome, whatever happened
            fate, facts = Fate.UNKNOWN, {"reason": type(error).__name__}
            self._failure = self._failure or error
            self.stop()
        self._landed(request, fate, began_at, **facts)


def _listed(rows: list[tuple[int, str | None]]) -> str:
    return ", ".join(f"{rank}: {message_id or 'no message'}" for rank, message_id in rows)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Choose uvloop, which Airflow's API server brings along where it can run: each message costs less with it."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _call_of(request: Request) -> Call[Any]:
    match request:
        case Post():
            return calls.send_pushed_message(
                request.visitor_id, request.text, agent_id=request.agent_id, group_id=request.group_id
            )
        case Put(_, message_id, text):
            return calls.update_pushed_message(message_id, text)
        case Delete(_, message_id):
            return calls.delete_pushed_message(message_id)
        case Look(_, message_id):
            return calls.get_pushed_message(NOBODY if message_id is None else message_id)


def _fate_of(error: ConversationsError) -> tuple[Fate, dict[str, Any]]:
    """Say what an error means for the one request, and what it tells."""
    match error:
        case TransportError(maybe_delivered=False):
            return Fate.UNREACHED, {"reason": "unreached"}
        case UnexpectedResponse(message_id=str(message_id)):
            # The answer can't be read, but it was a yes.
            return Fate.DONE, {"message_id": _kept(message_id), **_quota_facts(error.quota)}
        case UnexpectedResponse():
            return Fate.UNKNOWN, {"reason": f"unreadable_{error.status}", **_quota_facts(error.quota)}
        case ApiError():
            reason = _code(error)
            facts = {"reason": reason, **_quota_facts(error.quota)}
            match error:
                case RateLimited():
                    return Fate.LIMITED, {**facts, "reset_in_seconds": error.reset_in}
                case Unauthorized():
                    return Fate.UNAUTHORIZED, {**facts, "error": error}
                case NotFound():
                    return Fate.GONE, facts
                case ServerError():
                    return Fate.UNKNOWN, {**facts, "reason": f"http_{error.status}"}
                case InvalidRequest(status=None):
                    # A rule that is checked before anything is sent.
                    return Fate.REFUSED, {"reason": "invalid", "made": False}
                case _:
                    return Fate.REFUSED, facts
        case _:
            return Fate.UNKNOWN, {"reason": "no_answer"}


def _kept(message_id: str) -> str | None:
    """Give an id that every ledger can hold, or None: one that can't be kept must not keep others' from being."""
    return message_id if flaw_of(message_id) is None else None


def _code(error: ApiError) -> str:
    """Give Brevo's code if it is one; some are whole sentences, which might hold anything."""
    code = error.code or ""
    return code if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", code) else f"http_{error.status}"


def _quota_facts(quota: Quota | None) -> dict[str, Any]:
    if quota is None:
        return {}
    return {
        "limit": quota.limit,
        "remaining": quota.remaining,
        "reset_in_seconds": quota.reset_in_seconds,
    }
