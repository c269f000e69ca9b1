"""Holds ledgers open for an API server that only looks, and says for people why one can't be reached."""

from __future__ import annotations

import logging
import os
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from sqlalchemy.exc import TimeoutError as NoConnectionFree

from airflow_provider_sib._compat import AirflowFailException
from airflow_provider_sib.campaign.ledger import LedgerMissing, LedgerRefused, LedgerUnavailable
from airflow_provider_sib.hooks.campaign import CampaignHook, LedgerPlace, Pin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEEP_SECONDS = 30.0
"""How long a ledger is held open before it is opened anew, and seen to be the right one again."""

FAILED_SECONDS = 3.0
"""How long a failure is believed in, so that pages which ask again don't pile up before a dead server."""

OPENING_SECONDS = 2.0
"""How long to wait for a ledger that somebody else is opening; each who waits takes a thread of the API server."""

log = logging.getLogger(__name__)


class Unreachable(Exception):
    """The ledger can't be read here.

    :param title: what is wrong.
    :param detail: what exactly, and where.
    :param remedies: ways out, a sentence each.
    """

    def __init__(self, title: str, detail: str, remedies: tuple[str, ...] = ()) -> None:
        super().__init__(title)
        self.title, self.detail, self.remedies = title, detail, remedies


class UnknownLedger(LookupError):
    """No task of this Airflow has sent with a ledger at this connection."""


@dataclass(slots=True)
class _Held:
    until: float
    hook: CampaignHook | None = None
    failure: Unreachable | None = None
    file: tuple[int, int] | None = None


class Shelf:
    """Ledgers that are held open, by the Airflow connection of their database.

    :param clock: seconds, of any beginning.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._held: dict[str | None, _Held] = {}
        # One for each place, kept while somebody opens it: a database that is silent must not stop the others.
        self._openings: WeakValueDictionary[str | None, Lock] = WeakValueDictionary()

    @contextmanager
    def opened(self, ledger_conn_id: str | None) -> Iterator[CampaignHook]:
        """Give the hook on a ledger.

        :param ledger_conn_id: None: the one that is configured; another only if a task has sent with it.
        :raises Unreachable: when it can't be opened, or stops answering.
        :raises UnknownLedger: when no task has.
        """
        place = LedgerPlace.configured(ledger_conn_id)
        held = self._hold(place, named=ledger_conn_id is not None)
        if held.failure is not None:
            raise held.failure
        assert held.hook is not None  # noqa: S101  one of the two is there
        try:
            yield held.hook
        except (LedgerUnavailable, NoConnectionFree) as error:
            self._drop(place, held)
            raise _unreachable(error, place) from error

    def _hold(self, place: LedgerPlace, *, named: bool) -> _Held:
        with self._lock:
            opening = self._openings.setdefault(place.conn_id, Lock())
        if not opening.acquire(timeout=OPENING_SECONDS):
            raise _unreachable(
                LedgerUnavailable(f"It has been silent for {OPENING_SECONDS:g} seconds."), place
            )
        try:
            held = self._held.get(place.conn_id)
            if held is not None and held.until > self._clock() and held.file == _file_of(held.hook):
                return held
            if held is not None and held.hook is not None:
                held.hook.close()
            held = self._open(place, named=named)
            with self._lock:
                self._held[place.conn_id] = held
            return held
        finally:
            opening.release()

    def _open(self, place: LedgerPlace, *, named: bool) -> _Held:
        hook = CampaignHook(place.conn_id, create=False)
        try:
            if named and place != LedgerPlace.configured(None) and Pin.read(place) is None:
                raise UnknownLedger(place.conn_id)
            hook.ledger.now_ms()
        except UnknownLedger:
            raise
        except Exception as error:  # noqa: BLE001  whatever keeps it from being opened is said on the page
            hook.close()
            if not isinstance(error, LedgerMissing):
                log.warning("The Campaign page can't open its ledger: %s: %s", type(error).__name__, error)
            return _Held(self._clock() + FAILED_SECONDS, failure=_unreachable(error, place))
        return _Held(self._clock() + KEEP_SECONDS, hook=hook, file=_file_of(hook))

    def _drop(self, place: LedgerPlace, held: _Held) -> None:
        with self._lock:
            if self._held.get(place.conn_id) is held:
                del self._held[place.conn_id]
        if held.hook is not None:
            held.hook.close()


def _file_of(hook: CampaignHook | None) -> tuple[int, int] | None:
    """Tell which file a ledger lies in: one that was removed is read on, unnoticed, by whoever has it open."""
    if hook is None or hook.place.conn_id is not None:
        return None
    try:
        found = Path(hook.place.url().database or "").stat()
    except OSError:
        return (0, 0)
    return found.st_dev, found.st_ino


def _unreachable(error: Exception, place: LedgerPlace) -> Unreachable:
    here = f"this API server (host {socket.gethostname()})"
    match error:
        case LedgerMissing() if place.conn_id is None:
            home = os.environ.get("AIRFLOW_HOME") or "~/airflow"
            return Unreachable(
                "There is no ledger here yet",
                f"{error} That is where {here} looks, with AIRFLOW_HOME={home}.",
                (
                    (
                        "If no campaign was sent yet, all is well: the first task that sends one makes the ledger, "
                        "and this page shows it."
                    ),
                    (
                        "If campaigns were sent, their tasks keep a ledger elsewhere: on another machine, in another "
                        "container, or under another AIRFLOW_HOME. Set [sib] ledger_conn_id, for every part of "
                        "Airflow, to a connection of type postgres or mysql; or give this API server the "
                        "tasks' AIRFLOW_HOME."
                    ),
                ),
            )
        case LedgerMissing():
            return Unreachable(
                "There is no ledger in this database yet",
                f"{error} Connection {place.conn_id!r} leads there from {here}.",
                (
                    "If no campaign was sent yet, all is well: the first task that sends one makes the tables.",
                    (
                        "If campaigns were sent, see that the connection names the same host, database and user here "
                        "as for the tasks (an environment variable AIRFLOW_CONN_… differs by machine)."
                    ),
                ),
            )
        case NoConnectionFree():
            return _unreachable(LedgerUnavailable("Its connections all wait for an answer."), place)
        case LedgerRefused():
            return Unreachable(
                "The ledger's database refuses the connection",
                f"{error} It answers, and was asked by {here}.",
                (
                    (
                        f"Mend login, password and schema of connection {place.conn_id!r} as this host sees it: an "
                        "environment variable AIRFLOW_CONN_… or a secrets backend counts before Airflow's own "
                        "connections, and may differ by machine."
                    ),
                    "If they are as for the tasks, the database has to let this login in from this host.",
                    "This page tries again by itself.",
                ),
            )
        case LedgerUnavailable():
            where = f"of connection {place.conn_id!r}" if place.conn_id else "in AIRFLOW_HOME"
            return Unreachable(
                "The ledger's database does not answer",
                f"{error} It is asked by {here}. Campaigns that are being sent hold what they have to record for "
                "five minutes.",
                (
                    f"See that the database {where} is up, and can be reached from this host.",
                    "This page tries again by itself.",
                ),
            )
        case AirflowFailException():
            return Unreachable("This ledger can't be used", f"{error} That is how {here} sees it.")
        case _:
            return Unreachable(
                "The ledger's connection can't be read",
                f"{type(error).__name__}: {error}",
                (
                    f"[sib] ledger_conn_id is {place.conn_id!r}: create this connection, of type postgres or mysql, "
                    f"or let {here} see the environment or secrets backend it is in."
                    if place.conn_id
                    else f"The log of {here} says more.",
                ),
            )


def as_dict(problem: Unreachable) -> dict[str, Any]:
    """Give a problem as plain JSON."""
    return {"title": problem.title, "detail": problem.detail, "remedies": list(problem.remedies)}
