"""One quota for single calls and campaigns: its state is in the ledger, where there is one.

A single call asks there before it begins and tells afterwards what Brevo's headers said, so that campaigns and
single calls on one connection keep to the quota together. Without a ledger, or when it does not answer, a call goes
as it is: Brevo itself refuses what is too much, and a refused call was not carried out.
"""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_sib.api.errors import ConversationsError, RateLimited, TransportError
from airflow_provider_sib.hooks.campaign import LedgerPlace

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_sib.api.calls import Call
    from airflow_provider_sib.api.errors import Quota
    from airflow_provider_sib.api.wire import Answer
    from airflow_provider_sib.campaign.ledger import Granted, Ledger
    from airflow_provider_sib.campaign.pacing import Seen
    from airflow_provider_sib.hooks.connection import ConnectionSettings

T = TypeVar("T")
log = logging.getLogger(__name__)


class SharedQuota:
    """The quota of a connection, as a ledger keeps it for all who use the connection.

    :param ledger: an open ledger.
    :param settings: the connection.
    :param clock: seconds, never jumping.
    :param sleep: waits for a number of seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: ConnectionSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        from airflow_provider_sib.campaign.ledger import new_token
        from airflow_provider_sib.campaign.pacing import Rate

        self._ledger = ledger
        self._settings = settings
        self._clock = clock
        self._sleep = sleep
        self._holder = f"{new_token():x}"
        # Single calls are among those for whom campaigns leave a reserve.
        self._rate = Rate(
            reserve=0,
            requests_per_hour=settings.requests_per_hour,
            jitter_seconds=random.random(),  # noqa: S311 - spreads those who come back, no secret
        )

    @classmethod
    def configured(cls, settings: ConnectionSettings) -> SharedQuota | None:
        """Open the quota in the configured ledger; None where no ledger is configured, or none answers."""
        from airflow_provider_sib.campaign.sql_ledger import SqlLedger

        place = LedgerPlace.configured(None)
        try:
            url = place.url()
            if place.conn_id is None and not Path(url.database or "").exists():
                return None  # no campaign has run here
            return cls(SqlLedger(url), settings)
        except Exception as error:  # noqa: BLE001 - a single call does not need the ledger
            _go_without(error)
            return None

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()

    def perform(
        self, perform: Callable[[Call[T]], Answer[T]], call: Call[T], *, wait_seconds: float
    ) -> Answer[T]:
        """Carry out a call when the quota has room for it.

        :param perform: the client's.
        :param call: what to do.
        :param wait_seconds: how long to wait in place for room.
        :raises RateLimited: when there is no room within that time; nothing was sent, and ``reset_in`` tells when.
        """
        if not self._permitted(call, wait_seconds):
            return perform(call)
        began = self._clock()
        quota, told = None, {"spent": True}
        try:
            answer = perform(call)
            quota = answer.quota
        except ConversationsError as error:
            quota = getattr(error, "quota", None)
            told = {
                "spent": not (isinstance(error, TransportError) and not error.maybe_delivered),
                "refused": isinstance(error, RateLimited),
            }
            raise
        finally:
            self._tell(began, quota, told)
        return answer

    def _permitted(self, call: Call[Any], wait_seconds: float) -> bool:
        """Wait for a permit; False: the ledger does not answer."""
        from airflow_provider_sib.campaign.ledger import LedgerError
        from airflow_provider_sib.campaign.pacing import opening

        until = self._clock() + wait_seconds
        while True:
            try:
                granted = self._ask(wanted=1)
            except LedgerError as error:
                _go_without(error)
                return False
            if granted.permits:
                return True
            found = opening(granted.quota, granted.now_ms, rate=self._rate)
            wait = max(0.05, (found.at_ms - granted.now_ms) / 1000)
            if self._clock() + wait > until:
                raise RateLimited(
                    f"the quota of connection {self._settings.conn_id!r} is used up; there is room in {wait:.0f} s.",
                    reset_in=wait,
                    call=call.name,
                )
            self._sleep(wait)

    def _tell(self, began: float, quota: Quota | None, told: dict[str, bool]) -> None:
        from airflow_provider_sib.campaign.ledger import LedgerError
        from airflow_provider_sib.campaign.pacing import Seen

        seen = Seen(
            begun_ago=self._clock() - began,
            ended_ago=0.0,
            limit=None if quota is None else quota.limit,
            remaining=None if quota is None else quota.remaining,
            reset_in_seconds=None if quota is None else quota.reset_in_seconds,
            **told,
        )
        try:
            self._ask(wanted=0, seen=(seen,))
        except LedgerError as error:
            _go_without(error)  # its place in the quota runs out with its lease

    def _ask(self, *, wanted: int, seen: tuple[Seen, ...] = ()) -> Granted:
        from airflow_provider_sib.campaign.engine import BUCKET, Rules
        from airflow_provider_sib.campaign.ledger import QuotaUse
        from airflow_provider_sib.campaign.pacing import pace

        rules = Rules(account=self._settings.conn_id, timeout_seconds=self._settings.timeout_seconds)
        return self._ledger.quota(
            QuotaUse(
                account=rules.account,
                bucket=BUCKET,
                holder=self._holder,
                flying=0,
                wanted=wanted,
                lease_seconds=rules.lease_seconds,
                pace=pace(
                    self._rate,
                    seen,
                    holder=self._holder,
                    flying=0,
                    wanted=wanted,
                    probe_seconds=rules.lease_seconds,
                ),
            )
        )


def _go_without(error: Exception) -> None:
    log.warning("The quota is not shared with campaigns, since the ledger does not answer: %s", error)
