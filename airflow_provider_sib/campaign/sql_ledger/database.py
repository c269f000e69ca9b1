"""Run transactions, again where they surely left nothing behind; refuse disks on which a commit may be lost."""

from __future__ import annotations

import math
import os
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.pool import QueuePool

from airflow_provider_sib.campaign.ledger import (
    Json,
    LedgerMissing,
    LedgerRefused,
    LedgerUnavailable,
    LedgerUnsafe,
    keyed_hash,
)
from airflow_provider_sib.campaign.sql_ledger.dialects import DIALECTS

T = TypeVar("T")
Row = Sequence[Any]

_GONE = (OperationalError, InterfaceError, InternalError, ProgrammingError)
"""What a database says that is not there, or not as it was: shut down, failed over to a copy that may only be read,
its tables dropped or not restored yet. Results are held meanwhile, and named in the end."""

_NOT_LET_IN = re.compile(
    r"authentication failed|pg_hba\.conf|no password supplied|is not permitted to log in"
    r'|(role|database) ".*" does not exist|permission denied for database'
)
"""PostgreSQL's words for SQLSTATE 28000, 28P01, 3D000 and 42501 to who connects, where psycopg2 tells no code. A
server that speaks another language counts as not answering."""

_NOT_ALLOWED = ((1044,), (1045,), (1049,), (1142,), (1698,))
"""What MySQL and MariaDB say first: ER_DBACCESS_DENIED_ERROR, ER_ACCESS_DENIED_ERROR, ER_BAD_DB_ERROR,
ER_TABLEACCESS_DENIED_ERROR, ER_ACCESS_DENIED_NO_PASSWORD_ERROR."""

CHUNK = 2000
"""Rows per transaction where many are changed: other writers wait for less than 100 ms."""

PATIENCE_SECONDS = 30.0
"""How long to wait for another writer before the ledger counts as unavailable."""

SILENCE_SECONDS = 60.0
"""When a server that says nothing counts as gone; longer than a lock is waited for."""

LIMITS = {
    # https://www.postgresql.org/docs/current/libpq-connect.html: a machine that is gone is noticed in 60 s.
    "postgresql": {
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,
    },
    "mysql": {"connect_timeout": 10, "read_timeout": 60, "write_timeout": 60},
}
"""The drivers' own options to the same end; an address that has its own keeps them."""

NETWORK_DISKS = frozenset(
    [
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
    ]
    + ["smb2", "smb3", "smbfs"]
    + [f"fuse.{name}" for name in ("blobfuse", "blobfuse2", "ceph", "davfs", "gcsfuse", "glusterfs")]
    + [f"fuse.{name}" for name in ("rclone", "s3fs", "sshfs")]
)
"""File systems on which SQLite's locks or its shared memory don't hold (https://www.sqlite.org/wal.html)."""


class Transaction:
    """Speaks with the database within one transaction; works that are tried again get a new one.

    :param conn: the connection, its transaction begun.
    :param database: whose connection it is.
    """

    __slots__ = ("conn", "database", "dialect")

    def __init__(self, conn: sa.engine.Connection, database: Database) -> None:
        self.conn, self.database, self.dialect = conn, database, database.dialect

    def rows(self, sql: str, **params: Any) -> list[Any]:
        """Read rows; a parameter after ``IN`` is a list."""
        return list(self._execute(sql, params).all())

    def row(self, sql: str, **params: Any) -> Any:
        """Read the one row there is."""
        return self._execute(sql, params).one()

    def run(self, sql: str, **params: Any) -> int:
        """Run a statement; return how many rows it changed."""
        return self._execute(sql, params).rowcount

    def many(self, sql: str, rows: list[dict[str, Any]]) -> None:
        """Run a statement once for each set of parameters."""
        self.conn.exec_driver_sql(_worded(sql, self.dialect.mark, ()), rows)

    def _execute(self, sql: str, params: dict[str, Any]) -> sa.engine.CursorResult[Any]:
        # Straight to the driver: SQLAlchemy's text() would take a third of a cycle to word its statements anew.
        lists = {name: value for name, value in params.items() if isinstance(value, list)}
        statement = _worded(
            sql, self.dialect.mark, tuple((name, len(value)) for name, value in lists.items())
        )
        if lists:
            params = {name: value for name, value in params.items() if name not in lists}
            for name, values in lists.items():
                params.update((f"{name}_{number}", value) for number, value in enumerate(values))
        return self.conn.exec_driver_sql(statement, params)

    def now_ms(self) -> int:
        """Tell the time on the ledger's clock."""
        if self.database.clock is not None:
            return round(self.database.clock() * 1000)
        return int(self.row(f"SELECT {self.dialect.now}")[0])

    def hash(self, value: str) -> str:
        """Hash an id with the ledger's secret."""
        return self.database.hash(value)

    def forgotten_key(self, key: str) -> str:
        """Return what a once key becomes when its visitor is forgotten."""
        return "#" + self.hash(key)


class Database:
    """Runs a ledger's transactions. Nothing is asked of the database before the first of them.

    Beside the connections it holds what a process knows of one ledger: ``secret``, the key of its hashes, empty
    until it was read; ``unsure``, the tokens of transactions whose commit was begun and not confirmed; ``texts``,
    bodies that were read before, by digest.

    :param url: SQLAlchemy's URL.
    :param clock: seconds since 1970; None is the database's own clock.
    :param sleep: waits so many seconds for another writer.
    :param random: a number from 0 up to 1, for the jitter of those waits.
    :param create: whether to make SQLite's file where there is none.
    :raises LedgerMissing: there is no such file, and none is to be made.
    :raises LedgerUnsafe: a network disk, a database of another kind.
    :raises LedgerUnavailable: the file can't be opened.
    """

    def __init__(
        self,
        url: str | sa.engine.URL,
        *,
        clock: Callable[[], float] | None,
        sleep: Callable[[float], None],
        random: Callable[[], float],
        create: bool,
    ) -> None:
        url = sa.engine.make_url(url)
        kind = url.get_backend_name()
        if kind not in DIALECTS:
            raise LedgerUnsafe(f"A ledger can't be kept in {kind}: use SQLite, PostgreSQL, MySQL or MariaDB.")
        self.dialect = DIALECTS[kind]
        self._sqlite = self.dialect.name == "sqlite"
        self.clock = time.time if clock is None and self._sqlite else clock
        self._sleep, self._random = sleep, random
        self.secret = b""
        self.unsure: set[int] = set()
        self.texts: dict[str, Json] = {}
        if self._sqlite:
            _prepare_file(url.database, create=create)
        self.place = url.database if self._sqlite else f"{url.database} at {url.host}"
        self.engine = _engine(url, self.dialect.name)
        self._silence_seconds = _silence_seconds(url, self.dialect.name)
        self._bounded: Callable[[], AbstractContextManager[None]] = nullcontext
        if self.dialect.name == "postgresql":
            self._bounded = _Watch(self.engine, self._silence_seconds).bounded

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run a work that changes nothing."""
        return self._attempt(work, commit=False, token=0)

    def write(self, work: Callable[[Transaction], T], *, token: int = 0) -> T:
        """Run a work and commit it; a work may be run several times, and only the last one counts.

        :param token: noted as unsure from before the commit until it is confirmed; 0: none.
        :raises LedgerUnavailable: the database doesn't answer, or nobody knows whether it committed.
        """
        return self._attempt(work, commit=True, token=token)

    def hash(self, value: str) -> str:
        """Hash an id with the ledger's secret."""
        return keyed_hash(self.secret, value)

    def close(self) -> None:
        """Give connections back."""
        self.engine.dispose()

    def _attempt(self, work: Callable[[Transaction], T], *, commit: bool, token: int) -> T:
        """Run a transaction, again where it surely left nothing behind: a lock, a deadlock, an old connection."""
        waited, deadlocks, reconnected = 0.0, 0, False
        while True:
            committing, began = False, time.monotonic()
            try:
                with self._bounded(), self.engine.connect() as conn:
                    if self._sqlite:
                        conn.exec_driver_sql("BEGIN IMMEDIATE" if commit else "BEGIN")
                    value = work(Transaction(conn, self))
                    if token:
                        self.unsure.add(token)
                    if commit:
                        committing = True
                        self._commit(conn)
                    self.unsure.discard(token)
                    return value
            except DBAPIError as error:
                if committing:
                    raise _unavailable(error) from error
                if self._sqlite and _is_busy(error) and waited < PATIENCE_SECONDS:
                    pause = 0.001 + 0.002 * self._random()
                    waited += pause
                    self._sleep(pause)
                elif is_deadlock(error) and deadlocks < 5:
                    deadlocks += 1
                    self._sleep(0.01 * deadlocks * (1 + self._random()))
                elif error.connection_invalidated and not reconnected and not self._was_silent(began):
                    reconnected = True
                elif isinstance(error, _GONE) or error.connection_invalidated:
                    raise _unavailable(error) from error
                else:
                    raise

    def _was_silent(self, since: float) -> bool:
        # An old connection shows at once that it was dropped; another one to a silent server would be silent too.
        return time.monotonic() - since >= self._silence_seconds

    def _commit(self, conn: sa.engine.Connection) -> None:
        try:
            conn.commit()
        except BaseException:
            # SQLAlchemy would give the connection back with its transaction, and its locks, still open.
            conn.invalidate()
            raise


@lru_cache(maxsize=2048)
def _worded(sql: str, mark: str, lists: tuple[tuple[str, int], ...]) -> str:
    """Word a statement as the driver wants it: a mark for each parameter, and one for each value of a list."""
    sizes = dict(lists)

    def marks(found: re.Match[str]) -> str:
        name = found[1]
        if name not in sizes:
            return mark.format(name)
        return f"({', '.join(mark.format(f'{name}_{number}') for number in range(sizes[name])) or 'NULL'})"

    return re.sub(r":([a-z]\w*)", marks, sql.replace("%", "%%") if "%" in mark else sql)


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield lists of up to :data:`CHUNK` items."""
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _unavailable(error: DBAPIError) -> LedgerUnavailable:
    said = f"{type(error.orig).__name__}: {error.orig}"
    if _is_refusal(error.orig):
        return LedgerRefused(f"The ledger's database refuses: {said}")
    return LedgerUnavailable(f"The ledger's database did not do it: {said}")


def _is_refusal(said: BaseException | None) -> bool:
    """Tell whether the database is there, and its name, the login, its password or its rights are not right."""
    if said is None or not hasattr(said, "pgcode"):
        return said is not None and said.args[:1] in _NOT_ALLOWED
    return said.pgcode == "42501" or (said.pgcode is None and bool(_NOT_LET_IN.search(str(said))))


def _is_busy(error: DBAPIError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_deadlock(error: DBAPIError) -> bool:
    """Tell whether the database gave a transaction up for another's sake, so that it may be tried again."""
    # PostgreSQL's deadlock_detected and serialization_failure; MySQL's ER_LOCK_DEADLOCK.
    if getattr(error.orig, "pgcode", None) in ("40P01", "40001"):
        return True
    return (
        not hasattr(error.orig, "sqlite_errorcode")
        and error.orig is not None
        and error.orig.args[:1] == (1213,)
    )


def network_disk(path: Path, mounts: str) -> str | None:
    """Name the network file system a path lies on, or None.

    :param path: absolute and without symbolic links.
    :param mounts: the text of ``/proc/mounts``.
    """
    found, kind = Path("/"), ""
    for line in mounts.splitlines():
        _, place, type_, *_ = line.split(" ")
        # Blanks in a mount point are written as octal escapes (proc(5)).
        mount = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), place))
        if path.is_relative_to(mount) and len(mount.parts) >= len(found.parts):
            found, kind = mount, type_
    return kind if kind in NETWORK_DISKS else None


def _prepare_file(database: str | None, *, create: bool) -> None:
    if not database or database == ":memory:" or database.startswith("file:"):
        raise LedgerUnsafe("A ledger in SQLite needs the path of a file.")
    path = Path(database).resolve()
    mounts = Path("/proc/mounts")
    kind = network_disk(path, mounts.read_text(errors="replace")) if mounts.exists() else None
    if kind is not None:
        raise LedgerUnsafe(
            f"The ledger's file {path} lies on a network disk ({kind}), where SQLite may lose rows: put it on a"
            " local disk, or keep the ledger in PostgreSQL or MySQL (ledger_conn_id)."
        )
    # An empty file is what an interrupted creation leaves.
    if not create and not (path.exists() and path.stat().st_size):
        raise LedgerMissing(f"There is no ledger at {path} on this machine.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise LedgerUnavailable(f"The ledger's file {path} can't be opened: {error.strerror}.") from error


class _Watch:
    """Hangs up on a PostgreSQL that says nothing for too long, for which psycopg2 would wait for ever.

    Keepalives notice a machine that is gone. A server that is frozen, or a proxy that has lost it, answers those.

    :param engine: whose connections.
    :param seconds: how long a transaction may take, connecting included.
    """

    def __init__(self, engine: sa.engine.Engine, seconds: float) -> None:
        self._seconds = seconds
        self._under_way: dict[int, tuple[float, list[Any]]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        sa.event.listen(engine, "connect", self._note, insert=True)
        sa.event.listen(engine, "checkout", self._note)

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Bound what this thread does with a connection."""
        this = threading.get_ident()
        around = self._under_way.get(this)
        self._under_way[this] = (time.monotonic() + self._seconds, [])
        # One thread for all transactions, while there are any: one for each takes longer than many a transaction.
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="sib-silence", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            if around is None:
                del self._under_way[this]
            else:
                self._under_way[this] = around

    def _note(self, dbapi: Any, *_: object) -> None:
        # Beside the transactions nothing is under way.
        if mine := self._under_way.get(threading.get_ident()):
            mine[1].append(dbapi)

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self._seconds / 4))  # between two looks; so late it may notice a silence
            for deadline, held in list(self._under_way.values()):
                if time.monotonic() >= deadline:
                    _hang_up(held)
            with self._lock:
                if not self._under_way:
                    self._thread = None
                    return


def _hang_up(held: list[Any]) -> None:
    for dbapi in held:
        # The driver, in its own thread, then reads the end of the stream; or it has closed it meanwhile.
        with suppress(Exception), socket.socket(fileno=os.dup(dbapi.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)


def _silence_seconds(url: sa.engine.URL, kind: str) -> float:
    """Give how long a server may say nothing; who has larger tables, or slower disks, says so in the address."""
    match kind:
        case "postgresql":
            return max(SILENCE_SECONDS, int(str(url.query.get("tcp_user_timeout", 0))) / 1000)
        case "mysql":
            return int(str(url.query.get("read_timeout", LIMITS[kind]["read_timeout"])))
        case _:
            return math.inf


def _engine(url: sa.engine.URL, kind: str) -> sa.engine.Engine:
    if kind == "sqlite":
        engine = sa.create_engine(
            url,
            future=True,
            hide_parameters=True,
            poolclass=QueuePool,
            connect_args={"timeout": 0, "check_same_thread": False, "isolation_level": None},
        )
        sa.event.listen(engine, "connect", _set_up(_on_sqlite))
        return engine
    arguments: dict[str, Any] = {name: value for name, value in LIMITS[kind].items() if name not in url.query}
    if url.get_driver_name() == "pymysql" and url.password:
        # As text PyMySQL sends it in Latin-1, which servers don't expect, and which has no "€".
        arguments["password"] = str(url.password).encode()
    engine = sa.create_engine(
        url,
        future=True,
        hide_parameters=True,
        isolation_level="READ COMMITTED",
        pool_recycle=240,
        connect_args=arguments,
        **({"executemany_mode": "values_plus_batch"} if url.get_driver_name() == "psycopg2" else {}),
    )
    if kind == "postgresql":
        limit_ms = round(900 * _silence_seconds(url, kind))
        sa.event.listen(engine, "connect", _set_up(partial(_on_postgresql, limit_ms=limit_ms)))
    else:
        tls = any(name.startswith("ssl_") for name in url.query) and "ssl_disabled" not in url.query
        sa.event.listen(engine, "connect", _set_up(partial(_on_mysql, tls=tls)))
    return engine


def _set_up(session: Callable[[Any], None]) -> Callable[[Any, object], None]:
    """Set each new connection's session up; SQLAlchemy forgets one on which that fails, and leaves it open."""

    def connected(dbapi: Any, _: object) -> None:
        try:
            session(dbapi)
        except BaseException:
            dbapi.close()
            raise

    return connected


def _on_sqlite(dbapi: Any) -> None:
    # https://www.sqlite.org/pragma.html#pragma_synchronous: in WAL mode only FULL survives a power loss.
    dbapi.execute("PRAGMA synchronous = FULL")
    # 16 MiB of log: a checkpoint then falls upon fewer than one cycle in a hundred.
    dbapi.execute("PRAGMA wal_autocheckpoint = 4000")
    for _turn in range(1000):
        try:
            dbapi.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            time.sleep(0.002)  # somebody else is changing the mode just now, for which SQLite does not wait
        else:
            return


def _on_postgresql(dbapi: Any, limit_ms: int) -> None:
    with _cursor(dbapi) as cursor:
        # An asynchronous commit could forget an intent after its POST; this is ours to choose, per session.
        # https://www.postgresql.org/docs/current/wal-async-commit.html
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') = 'off'"
        )
        # A machine that lost its power, or a process that is suspended, would hold its locks for hours; so it is
        # less than others wait for them.
        cursor.execute("SET lock_timeout = '30s'; SET idle_in_transaction_session_timeout = '20s'")
        # What nobody waits for any more holds no locks either; who has set another limit knows better.
        cursor.execute(
            f"SELECT set_config('statement_timeout', '{limit_ms}', false)"
            " WHERE current_setting('statement_timeout') = '0'"
        )


def _on_mysql(dbapi: Any, *, tls: bool) -> None:
    # Before 1.2, PyMySQL goes on without TLS where the server, or whoever stands before it, says that it has none.
    if tls and not getattr(dbapi, "_secure", True):
        raise dbapi.OperationalError(2026, "the connection asks for TLS, and the server offers none")
    with _cursor(dbapi) as cursor:
        # UNIX_TIMESTAMP reads local time, which an autumn night has twice. And a machine that lost its power would
        # hold its locks for hours: MariaDB knows when a transaction is idle, MySQL only when a session is.
        cursor.execute(
            "SET time_zone = '+00:00', innodb_lock_wait_timeout = 30, wait_timeout = 300"
            " /*M!100300 , idle_transaction_timeout = 20 */"
        )


@contextmanager
def _cursor(dbapi: Any) -> Iterator[Any]:
    cursor = dbapi.cursor()
    try:
        yield cursor
        dbapi.commit()
    finally:
        cursor.close()
