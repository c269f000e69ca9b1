"""The door to the ledger: which database it is, whether it is the right one, and control of campaigns.

A ledger that is not the one this Airflow has used before, or an older copy of it, has forgotten who was written
to. So its id, and how far its claims had come, are pinned in an Airflow Variable by the first task that sends; a
task that meets another ledger or an older copy refuses.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shlex
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Self, cast

from airflow.sdk import BaseHook

from airflow_provider_sib import _compat
from airflow_provider_sib._compat import AirflowFailException, conf
from airflow_provider_sib.hooks.connection import extra_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from airflow.sdk import Connection
    from sqlalchemy.engine import URL

    import airflow_provider_sib.campaign as campaign
    from airflow_provider_sib.campaign import SqlAudience
    from airflow_provider_sib.campaign.ledger import (
        Campaign,
        Delivery,
        Identity,
        Ledger,
        Suppression,
    )
    from airflow_provider_sib.campaign.report import Report

log = logging.getLogger(__name__)

_DRIVERS = {
    "postgres": "postgresql+psycopg2",
    "postgresql": "postgresql+psycopg2",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
}
# Of a connection's extras, those that the drivers know under the same name; the rest is for Airflow's own hooks.
_DRIVER_OPTIONS = {
    "postgresql+psycopg2": {
        # https://www.postgresql.org/docs/current/libpq-connect.html
        "sslmode", "sslnegotiation", "sslcompression", "sslcert", "sslkey", "sslpassword", "sslcertmode",
        "sslrootcert", "sslcrl", "sslcrldir", "sslsni", "ssl_min_protocol_version", "ssl_max_protocol_version",
        "requirepeer", "require_auth", "channel_binding", "gssencmode", "gsslib", "gssdelegation", "krbsrvname",
        "application_name", "options", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count",
        "tcp_user_timeout", "connect_timeout", "target_session_attrs",
    },
    "mysql+pymysql": {
        "ssl_ca", "ssl_capath", "ssl_cert", "ssl_key", "ssl_cipher", "ssl_check_hostname", "ssl_disabled",
        "unix_socket", "connect_timeout", "read_timeout", "write_timeout",
    },
}  # fmt: skip
_TLS_WORDS = {
    "postgresql+psycopg2": "sslmode, sslrootcert and the other names that libpq has",
    "mysql+pymysql": (
        "ssl_mode (DISABLED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY), ssl_ca, ssl_capath, ssl_cert, ssl_key and "
        "ssl_cipher"
    ),
}
# How much TLS a MySQL connection asks for: 0 none, 1 any, 2 a certificate that is trusted, 3 and of the host's name.
_MYSQL_TLS = {
    ("ssl_mode", "disabled"): 0,
    ("ssl_mode", "required"): 1,
    ("ssl_mode", "verify_ca"): 2,
    ("ssl_mode", "verify_identity"): 3,
    ("ssl_verify_cert", "true"): 2,
    ("ssl_verify_identity", "true"): 3,
    ("ssl_disabled", "true"): 0,
    ("ssl_check_hostname", "false"): 1,
    ("ssl_check_hostname", "true"): 3,
}
_EXTRA_OF_DRIVER = {"postgresql+psycopg2": "postgres", "mysql+pymysql": "mysql"}

EXPORT_COLUMNS = ("visitor_id", "once_key", "state", "reason", "variant", "revision", "message_ids", "at")


@dataclass(frozen=True, slots=True)
class LedgerPlace:
    """Where a ledger lies.

    :param conn_id: the Airflow connection of its database; None: a SQLite file on this machine.
    """

    conn_id: str | None

    @classmethod
    def configured(cls, ledger_conn_id: str | None) -> Self:
        """Choose the place: as given, else ``[sib] ledger_conn_id``, else the file."""
        return cls(ledger_conn_id or conf.get("sib", "ledger_conn_id", fallback=None) or None)

    @property
    def pin_key(self) -> str:
        """The Airflow Variable that says which ledger is the right one here."""
        return f"airflow_provider_sib_ledger_{self.conn_id or 'file'}"

    @property
    def is_file(self) -> bool:
        """Whether it is a SQLite file."""
        return self.url().get_backend_name() == "sqlite"

    def url(self) -> URL:
        """Give the database's address, with its password.

        :raises AirflowFailException: when the connection is of a kind that holds no ledger, or its extra is no JSON
            object.
        """
        return _file_url() if self.conn_id is None else _url(_compat.get_connection(self.conn_id))

    def command(self, *words: str) -> str:
        """Write the command that does something with this ledger, to be copied into a shell.

        :param words: such as ``campaigns``, ``show`` and a campaign's id.
        """
        option = ("--ledger-conn-id", self.conn_id) if self.conn_id else ()
        return shlex.join(("python", "-m", "airflow_provider_sib", *words, *option))

    async def aurl(self) -> URL:
        """Give the same where waiting must not block: in a trigger."""
        return _file_url() if self.conn_id is None else _url(await BaseHook.aget_connection(self.conn_id))


def _file_url() -> URL:
    from sqlalchemy.engine import URL

    home = os.environ.get("AIRFLOW_HOME") or "~/airflow"
    return URL.create("sqlite", database=str(Path(home).expanduser() / "sib_ledger.db"))


def _url(connection: Connection) -> URL:
    from sqlalchemy.engine import URL

    if connection.conn_type == "sqlite":
        return URL.create("sqlite", database=connection.host)
    if (driver := _DRIVERS.get(connection.conn_type or "")) is None:
        raise AirflowFailException(
            f"Connection {connection.conn_id!r} is of type {connection.conn_type!r}, in which no ledger can be "
            "kept: use one of type postgres or mysql."
        )
    extra = extra_of(connection)
    if driver == "mysql+pymysql":
        if not connection.schema:
            raise AirflowFailException(
                f"Connection {connection.conn_id!r} names no database in its schema, where the ledger is to be kept."
            )
        extra = _with_mysql_tls(connection.conn_id, extra)
    given = {name: str(value) for name, value in extra.items() if value not in (None, "")}
    options = {name: value for name, value in given.items() if name in _DRIVER_OPTIONS[driver]}
    for name in given.keys() - options.keys():
        if name.startswith(("ssl", "tls")):
            raise _not_secured(
                connection.conn_id, name, f"its driver is not told of that; use {_TLS_WORDS[driver]}"
            )
    if driver == "mysql+pymysql":
        options["charset"] = "utf8mb4"
    return URL.create(
        driver,
        username=connection.login or None,
        password=connection.password or None,
        host=connection.host or None,
        port=connection.port or None,
        database=connection.schema or None,
        query=options,
    )


def _with_mysql_tls(conn_id: str, extra: dict[str, Any]) -> dict[str, Any]:
    """Put what a MySQL connection says of TLS into the few words that an address has for PyMySQL."""
    nested = extra.get("ssl") or {}
    if isinstance(nested, str):
        # So Airflow's own MySQL hook reads it; a URI can hold no object.
        with suppress(ValueError):
            nested = json.loads(nested)
    if not isinstance(nested, dict):
        example = '{"ca": "/etc/ssl/certs/ca-certificates.crt"}'
        raise _not_secured(conn_id, "ssl", f"it is no JSON object; write one, such as {example}")
    told = {name: value for name, value in extra.items() if name != "ssl"}
    told |= {f"ssl_{name}": value for name, value in nested.items()}
    asked = {}
    for name in dict.fromkeys(name for name, _ in _MYSQL_TLS):
        if (value := told.pop(name, None)) not in (None, ""):
            if (level := _MYSQL_TLS.get((name, str(value).lower()))) is None:
                words = _TLS_WORDS["mysql+pymysql"]
                raise _not_secured(conn_id, name, f"its driver is not told of this value; use {words}")
            asked[level] = name
    if asked:
        strictest = max(asked)
        if strictest >= 2 and not (told.get("ssl_ca") or told.get("ssl_capath")):
            why = (
                "PyMySQL verifies by certificates that are named, and by no others; add ssl_ca or ssl_capath"
            )
            raise _not_secured(conn_id, asked[strictest], why)
        if strictest == 0:
            told["ssl_disabled"] = "true"
        else:
            told["ssl_check_hostname"] = "true" if strictest == 3 else "false"
    return told


def _not_secured(conn_id: str, extra: str, why: str) -> AirflowFailException:
    return AirflowFailException(
        f"The extra {extra!r} of connection {conn_id!r} would not secure the way to the ledger: {why}."
    )


def tasks_run_elsewhere() -> str | None:
    """Say why tasks may run on another machine than this one, where a ledger in a local file is another one.

    :return: the reason, or None when every executor is a LocalExecutor outside of Kubernetes.
    """
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "this task runs on Kubernetes, whose pods lose their files"
    for entry in re.split(r"[,;]", conf.get("core", "executor")):
        name = entry.rpartition("=")[2].rpartition(":")[2].rpartition(".")[2].strip()
        if name != "LocalExecutor":
            return f"[core] executor is {name}, whose tasks may run on any machine"
    return None


@dataclass(frozen=True, slots=True)
class Pin:
    """Which ledger is the right one, and how many rows it had claimed when it was last seen."""

    ledger_id: str
    claims: int

    @classmethod
    def read(cls, place: LedgerPlace) -> Self | None:
        """Read the pin; None before the first use.

        :raises AirflowFailException: when there is one that cannot be read.
        """
        if (value := _compat.get_variable(place.pin_key)) is None:
            return None
        try:
            kept = json.loads(value)
            return cls(ledger_id=str(kept["ledger_id"]), claims=int(kept["claims"]))
        except (ValueError, KeyError, TypeError) as error:
            raise AirflowFailException(
                f"Airflow's Variable {place.pin_key!r}, which says which ledger is the right one, cannot be read "
                f"({type(error).__name__}), so nothing is sent. If the ledger is the right one, run "
                f"`{place.command('ledger', 'adopt')}`."
            ) from error

    def write(self, place: LedgerPlace) -> None:
        """Keep the pin, and see that it is kept."""
        _compat.set_variable(
            place.pin_key,
            json.dumps({"ledger_id": self.ledger_id, "claims": self.claims}),
            "The ledger of Brevo campaigns that tasks may send with. Kept by airflow-provider-sib.",
        )

    def check(self, identity: Identity, place: LedgerPlace) -> None:
        """Refuse another ledger, and an older copy of this one.

        :raises AirflowFailException: with the way out.
        """
        where = f"of connection {place.conn_id!r}" if place.conn_id else f"in {place.url().database}"
        if identity.ledger_id != self.ledger_id:
            trouble = (
                f"The ledger {where} is not the one this Airflow has used before: it does not know who was "
                "written to (a container that lost its files? another database?)."
            )
        elif identity.claims < self.claims:
            trouble = (
                f"The ledger {where} is an older copy: it has begun {identity.claims:,} messages, and had begun "
                f"{self.claims:,} when it was last used. Who was written to since then is forgotten."
            )
        else:
            return
        raise AirflowFailException(
            f"{trouble} Nothing is sent. Bring the right ledger back; or, if you accept that visitors may be "
            f"written to twice, run `{place.command('ledger', 'adopt')}`."
        )


def open_ledger(
    place: LedgerPlace,
    *,
    to_send: bool,
    create: bool = True,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Ledger:
    """Open the ledger and see that it is the right one.

    :param place: where it lies.
    :param to_send: whether campaigns will be delivered with it: then the place must be one that all tasks share,
        and the first use pins it. Looking at it pins nothing.
    :param create: whether to make it where there is none.
    :param sleep: waits so many seconds; to send, a server that has answered before is waited for.
    :param clock: in seconds, measures that wait.
    :raises LedgerMissing: when there is none, and none is to be made.
    :raises AirflowFailException: when it is not the right one, or not safe to send with.
    :raises LedgerUnavailable: when its database does not answer.
    """
    if to_send:
        refuse_a_file_not_shared(place)
    pin = Pin.read(place)
    # One that was never reached is rather a mistake in its connection, to be told at once.
    waits = to_send and pin is not None and not place.is_file
    ledger = _open_in_time(place, sleep, clock) if waits else _open(place, create=create)
    try:
        identity = ledger.identity()
        if pin is not None:
            pin.check(identity, place)
        elif to_send:
            refuse_to_begin_anew(place, identity)
            Pin(identity.ledger_id, identity.claims).write(place)
            if (kept := Pin.read(place)) is None:
                raise _not_kept(place)
            kept.check(identity, place)
    except BaseException:
        ledger.close()
        raise
    return ledger


def _not_kept(place: LedgerPlace) -> RuntimeError:
    return RuntimeError(
        f"Airflow did not keep the Variable {place.pin_key!r}, so nothing is sent. Is it set elsewhere too, in the "
        "environment or a secrets backend? There it counts first. Or, with [core] multi_team, does it belong to "
        "another team? Then give each team a ledger with a ledger_conn_id of its own; or, if they share this one, "
        "delete the Variable in Airflow's UI, and make one that all teams read: run "
        f"`{place.command('ledger', 'adopt')}` in a shell."
    )


def open_ledger_to_rehearse(place: LedgerPlace) -> Ledger:
    """Open the ledger for a run that sends nothing: none is made or pinned.

    :return: the ledger; where there is none, an empty one in memory.
    :raises AirflowFailException: when it is not the right one, or not safe to send with.
    :raises LedgerUnavailable: when its database does not answer.
    """
    from airflow_provider_sib.campaign.ledger import LedgerMissing, MemoryLedger

    refuse_a_file_not_shared(place)
    try:
        return open_ledger(place, to_send=False, create=False)
    except LedgerMissing:
        return MemoryLedger()


def refuse_a_file_not_shared(place: LedgerPlace) -> None:
    """Refuse a ledger in a file where tasks may run on several machines.

    :raises AirflowFailException: with the way out.
    """
    if place.is_file and (reason := tasks_run_elsewhere()):
        raise AirflowFailException(
            f"A campaign needs a ledger that all tasks share, and the one here is a file on one machine: "
            f"{reason}. Set [sib] ledger_conn_id (or the operator's ledger_conn_id) to an Airflow connection of "
            "type postgres or mysql. Nothing was sent."
        )


def refuse_to_begin_anew(place: LedgerPlace, identity: Identity) -> None:
    """Refuse a database's empty ledger where campaigns were sent with the one in a file, which it knows nothing of.

    :raises AirflowFailException: with the way out.
    """
    if place.conn_id is None or identity.claims:
        return
    before = Pin.read(LedgerPlace(None))
    if before is not None and before.claims:
        raise AirflowFailException(
            f"The ledger of connection {place.conn_id!r} is empty, and this Airflow has begun {before.claims:,} "
            "messages with the one in a file: a campaign that goes on here would write to all its visitors again. "
            "Nothing is sent. Let such campaigns finish with the file first, or leave out whom they have reached "
            "(docs: Run on Celery or Kubernetes, From the file to a database); then run "
            f"`{place.command('ledger', 'adopt')}`."
        )


def _open_in_time(place: LedgerPlace, sleep: Callable[[float], None], clock: Callable[[], float]) -> Ledger:
    """Wait for a server, as long as a task that sends already would: a retry costs a try and starts anew."""
    from airflow_provider_sib.campaign.ledger import LedgerUnavailable
    from airflow_provider_sib.delivery import LEDGER_PATIENCE_SECONDS

    began, pause = clock(), 1.0
    while True:
        try:
            return _open(place)
        except LedgerUnavailable as error:
            if clock() - began >= LEDGER_PATIENCE_SECONDS:
                raise
            log.warning("Waiting for the ledger. %s", error)
        sleep(pause)
        pause = min(2 * pause, 10.0)


def look(place: LedgerPlace) -> Identity:
    """Tell who the ledger at a place is, the right one or not.

    :raises AirflowFailException: when none can be kept there.
    :raises LedgerUnavailable: when its database does not answer.
    """
    ledger = _open(place)
    try:
        return ledger.identity()
    finally:
        ledger.close()


def _open(place: LedgerPlace, *, create: bool = True) -> Ledger:
    from airflow_provider_sib.campaign.ledger import LedgerUnsafe
    from airflow_provider_sib.campaign.sql_ledger import SqlLedger

    url = place.url()
    try:
        return SqlLedger(url, create=create)
    except LedgerUnsafe as error:
        raise AirflowFailException(str(error)) from error
    except ModuleNotFoundError as error:
        raise AirflowFailException(
            f"A ledger in {url.get_backend_name()} needs the package {error.name}: install "
            f"airflow-provider-sib[{_EXTRA_OF_DRIVER[url.drivername]}]."
        ) from error


def open_to_watch(url: URL, ledger_id: str) -> Ledger:
    """Open a ledger that another process has made, for reading; never make one.

    :raises LookupError: when there is none, or another one.
    """
    from airflow_provider_sib.campaign.ledger import LedgerMissing
    from airflow_provider_sib.campaign.sql_ledger import SqlLedger

    try:
        ledger = SqlLedger(url, create=False)
    except LedgerMissing as error:
        raise LookupError(str(error)) from error
    if ledger.identity().ledger_id != ledger_id:
        ledger.close()
        raise LookupError("the ledger here is another one than the task's")
    return ledger


def open_path(path: str, conn_id: str | None) -> BinaryIO:
    """Open a file of an audience: a path, or any URL of Airflow's object storage."""
    from airflow.sdk import ObjectStoragePath

    return cast("BinaryIO", ObjectStoragePath(path, conn_id=conn_id).open("rb"))


def connect(audience: SqlAudience) -> Any:
    """Open a DB-API connection for the query of an audience, by the hook of its Airflow connection.

    :raises AirflowFailException: when that hook speaks no DB-API.
    """
    connection = BaseHook.get_connection(audience.conn_id)
    params = dict(audience.hook_params or {})
    if connection.conn_type == "google_cloud_platform":
        # This type belongs to many hooks; BigQuery's is the one that speaks SQL.
        from airflow.providers.google.cloud.hooks.bigquery import BigQueryHook

        return BigQueryHook(gcp_conn_id=audience.conn_id, **{"use_legacy_sql": False} | params).get_conn()
    opened = connection.get_hook(hook_params=params).get_conn()
    if not hasattr(opened, "cursor"):
        raise AirflowFailException(
            f"Connection {audience.conn_id!r} is of type {connection.conn_type!r}, which answers no SQL queries."
        )
    return opened


def pin_progress(ledger: Ledger, place: LedgerPlace) -> None:
    """Keep in the pin how far the ledger's claims have come, so that an older copy shows.

    What fails here is no reason to fail: the pin stays behind, as it does for a minute anyway. The pin of another
    ledger stays as it is.
    """
    try:
        identity, kept = ledger.identity(), Pin.read(place)
        if kept is not None and kept.ledger_id != identity.ledger_id:
            log.warning(
                "Another ledger was adopted meanwhile: %s is pinned, and not %s, with which this task goes on. Stop "
                "the task if that one is to send nothing more.",
                kept.ledger_id,
                identity.ledger_id,
            )
        elif kept is None or kept.claims < identity.claims:
            Pin(identity.ledger_id, identity.claims).write(place)
    except Exception as error:  # noqa: BLE001 - the database or Airflow; it must not hide what has ended the task
        log.warning("How far the ledger has come is not kept, by which an older copy would show. %s", error)


class CampaignHook(BaseHook):
    """Look at campaigns and control them; the command line and Airflow's page stand on it.

    Every change takes effect at once, also on a campaign that is being delivered on another machine: what is in
    flight goes on, nothing more is begun. Close it, or use it as a context manager.

    :param ledger_conn_id: Airflow connection of the ledger's database (postgres or mysql); None is
        ``[sib] ledger_conn_id``, else the file ``sib_ledger.db`` in ``AIRFLOW_HOME``.
    :param create: False: where there is no ledger none is made, and whatever is asked raises ``LedgerMissing``.
    """

    def __init__(self, ledger_conn_id: str | None = None, *, create: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.place = LedgerPlace.configured(ledger_conn_id)
        self._create = create
        self._ledger: Ledger | None = None

    # No cached_property: Python 3.11 makes one of those at a time, so that a silent server would hold up all hooks.
    @property
    def ledger(self) -> Ledger:
        """The ledger, opened at first use."""
        if self._ledger is None:
            self._ledger = open_ledger(self.place, to_send=False, create=self._create)
        return self._ledger

    def close(self) -> None:
        """Close the ledger; the next call opens it again."""
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def list(self) -> list[Campaign]:
        """List the ledger's campaigns, the newest first."""
        return self.ledger.campaigns()

    def report(self, campaign_id: str) -> Report:
        """Tell how a campaign stands: counts, reasons, rates, time left.

        :raises UnknownCampaign: when the ledger has none of this id.
        """
        from airflow_provider_sib.campaign.report import report

        return report(self.ledger, campaign_id)

    def quota(self, campaign_id: str) -> campaign.ledger.Quota:
        """Tell what is known of the quota of a campaign's connection; asks for none of it.

        :raises UnknownCampaign: when the ledger has none of this id.
        """
        from airflow_provider_sib.campaign.engine import BUCKET
        from airflow_provider_sib.campaign.ledger import Quota

        account = self.ledger.campaign(campaign_id).binding["connection"]
        return self.ledger.quotas().get((account, BUCKET), Quota())

    def pause(self, campaign_id: str, *, seen: str | None = None) -> Campaign:
        """Stop beginning messages until :meth:`resume`; a task that delivers it waits, deferred.

        :param seen: the status it was seen to have; with another one by now nothing is changed.
        :raises UnknownCampaign: when the ledger has none of this id.
        :raises ValueError: when it cannot be paused: it is finished or aborted, or not as it was seen.
        """
        return self._set_status(campaign_id, "paused", seen)

    def resume(self, campaign_id: str, *, seen: str | None = None) -> Campaign:
        """Go on with a paused or aborted campaign; its task, or the next run of its DAG, delivers.

        :param seen: the status it was seen to have; with another one by now nothing is changed.
        :raises UnknownCampaign: when the ledger has none of this id.
        :raises ValueError: when it is not as it was seen.
        """
        return self._set_status(campaign_id, "running", seen)

    def abort(self, campaign_id: str, *, seen: str | None = None) -> Campaign:
        """Begin no message any more; the task that delivers it fails. What was sent stays: see withdrawing.

        :param seen: the status it was seen to have; with another one by now nothing is changed.
        :raises UnknownCampaign: when the ledger has none of this id.
        :raises ValueError: when it is not as it was seen.
        """
        return self._set_status(campaign_id, "aborted", seen)

    def _set_status(self, campaign_id: str, status: str, seen: str | None) -> Campaign:
        from airflow_provider_sib.campaign.ledger import CampaignStatus, Refusal

        changed = self.ledger.set_status(
            campaign_id, CampaignStatus(status), seen=None if seen is None else CampaignStatus(seen)
        )
        if isinstance(changed, Refusal):
            if changed.name == "seen":
                raise ValueError(
                    f"Campaign {campaign_id!r} is {changed.kept} by now, not {seen} as it was seen. "
                    "Nothing was changed."
                )
            way_on = (
                "It sends nothing until it is resumed"
                if changed.kept == CampaignStatus.ABORTED
                else "To keep it from sending to newcomers, abort it"
            )
            raise ValueError(
                f"Campaign {campaign_id!r} is {changed.kept} and cannot be set to {status}. {way_on}."
            )
        return changed

    def retry(self, campaign_id: str, *, reasons: Collection[str] | None = None) -> int:
        """Set failed deliveries to pending again; a finished campaign then runs at its DAG's next run.

        :param reasons: only those that failed for one of these, as the report names them; None: all.
        :return: how many.
        :raises UnknownCampaign: when the ledger has none of this id.
        """
        from airflow_provider_sib.campaign.ledger import State

        return self.ledger.retry(campaign_id, State.FAILED, reasons=reasons)

    def settle(self, campaign_id: str, once_key: str, *, sent: bool, message_id: str | None = None) -> None:
        """Decide a doubt after looking into the visitor's chat in Brevo.

        :param once_key: of the delivery: the visitor's id, unless ``once_per`` says otherwise.
        :param sent: True: the message is there; False: it is not, and is sent again.
        :param message_id: the message's id, if known; without it it cannot be edited or withdrawn.
        :raises UnknownCampaign: when the ledger has none of this id.
        :raises ValueError: when there is no such delivery in doubt.
        """
        from airflow_provider_sib.campaign.ledger import State

        state = State.SENT if sent else State.PENDING
        if not self.ledger.settle(campaign_id, once_key, state, message_id=message_id):
            raise ValueError(f"Campaign {campaign_id!r} has no delivery in doubt under this once key.")

    def deliveries(
        self,
        campaign_id: str,
        *,
        states: Collection[str] | None = None,
        reasons: Collection[str] | None = None,
    ) -> Iterator[Delivery]:
        """Iterate over a campaign's deliveries in constant memory.

        :param states: ``pending``, ``sending``, ``sent``, ``failed``, ``in_doubt``, ``skipped``, ``withdrawn``;
            None: all.
        :param reasons: only these, as the report names them; None: all.
        :return: the deliveries, by rank; with ``states`` state by state.
        :raises UnknownCampaign: when the ledger has none of this id.
        :raises ValueError: when there is no such state.
        """
        from airflow_provider_sib.campaign.ledger import State

        names = {state.name.lower(): state for state in State}
        try:
            chosen = None if states is None else [names[state.lower()] for state in states]
        except KeyError as error:
            raise ValueError(f"There is no state {error}; states are {', '.join(names)}.") from None
        return self.ledger.deliveries(campaign_id, states=chosen, reasons=reasons)

    def export(self, campaign_id: str, file: IO[str], *, states: Collection[str] | None = None) -> int:
        """Write a campaign's deliveries as CSV.

        :param file: a text file opened with ``newline=""``.
        :param states: as of :meth:`deliveries`.
        :return: how many rows.
        :raises UnknownCampaign: when the ledger has none of this id.
        """
        writer = csv.writer(file)
        writer.writerow(EXPORT_COLUMNS)
        count = 0
        for delivery in self.deliveries(campaign_id, states=states):
            writer.writerow(
                (
                    delivery.visitor_id,
                    delivery.key,
                    delivery.state.name.lower(),
                    delivery.reason,
                    delivery.variant,
                    delivery.revision or None,
                    " ".join(delivery.message_ids),
                    datetime.fromtimestamp(delivery.at_ms / 1000, UTC).isoformat(timespec="milliseconds"),
                )
            )
            count += 1
        return count

    def suppress(self, visitor_ids: Iterable[str], reason: str = "asked") -> int:
        """Never send to these visitors, in no campaign of this ledger.

        :param visitor_ids: read once, as a stream.
        :param reason: kept with them, for those who look at the list.
        :return: how many are new on the list.
        """
        return self.ledger.suppress(visitor_ids, reason)

    def unsuppress(self, visitor_ids: Iterable[str]) -> int:
        """Take visitors off the list, forgotten ones too; return how many were on it."""
        return self.ledger.unsuppress(visitor_ids)

    def suppressed(self) -> Iterator[Suppression]:
        """Iterate over the visitors to whom nothing is sent; of forgotten ones there is no id."""
        return self.ledger.suppressed()

    def forget_visitor(self, visitor_id: str) -> int:
        """Erase a visitor's id and variables in all campaigns.

        A keyed hash stays, so that they are not written to again. Brevo's message ids stay, so that withdrawing
        still works.

        :param visitor_id: the visitor's id; one that nobody has enrolled is barred all the same.
        :return: deliveries changed.
        """
        return self.ledger.forget_visitor(visitor_id)

    def scrub_variables(self, older_than: timedelta) -> int:
        """Erase the variables of deliveries that came to an end some time ago, in all campaigns.

        What is pending or on its way keeps them, however old it is. What failed or is in doubt has come to an end:
        where it is tried again (``retry``, ``settle``, ``retry_failed``, ``on_doubt="resend"``) its text shows
        defaults or can't be made, and so does a new text for what was sent. So keep variables for longer than a
        campaign and its corrections last. A ``CampaignAudience`` goes on giving such rows, without variables: to a
        follow-up whose text or ``once_per`` needs them they are bad rows.

        :param older_than: how long ago, on the ledger's clock, they must have come to it; zero or more.
        :return: deliveries changed.
        :raises ValueError: when it is negative.
        """
        if older_than < timedelta(0):
            raise ValueError(f"Nothing has ended in the future: {older_than} is negative.")
        return self.ledger.scrub_variables(self.ledger.now_ms() - older_than // timedelta(milliseconds=1))

    def purge(self, campaign_id: str) -> None:
        """Delete a campaign that is finished or aborted, whole. A new one of its id writes to everybody again.

        :raises UnknownCampaign: when the ledger has none of this id.
        :raises ValueError: when it is running or paused, or messages are still on their way, whose ids would be lost.
        """
        refusal = self.ledger.purge(campaign_id)
        if refusal is None:
            return
        if refusal.name == "sending":
            until = datetime.fromtimestamp(int(refusal.kept) / 1000, UTC)
            raise ValueError(
                f"Campaign {campaign_id!r} has messages on their way, whose ids would be lost. Purge it when "
                f"`{self.place.command('campaigns', 'show', campaign_id)}` shows none that is sending; where their "
                f"task was killed, after {until:%H:%M:%S} UTC."
            )
        raise ValueError(f"Campaign {campaign_id!r} is {refusal.kept}: abort it before you purge it.")

    def adopt(self) -> Pin:
        """Make this ledger the right one, whatever was pinned before.

        After that, tasks send with it: whoever it does not know to be reached is written to, again perhaps.

        :return: what is pinned now.
        :raises RuntimeError: when Airflow did not keep the pin.
        """
        identity = look(self.place)
        pin = Pin(identity.ledger_id, identity.claims)
        pin.write(self.place)
        if Pin.read(self.place) != pin:
            raise _not_kept(self.place)
        return pin
