"""Sensors of Brevo Conversations."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_provider_sib._compat import AirflowFailException, conf
from airflow_provider_sib.api.errors import NotFound, RateLimited
from airflow_provider_sib.arguments import boolean, number
from airflow_provider_sib.hooks import SibConversationsHook, failing_for_good
from airflow_provider_sib.hooks.campaign import CampaignHook, Pin, refuse_a_file_not_shared
from airflow_provider_sib.links import CampaignLink
from airflow_provider_sib.provider_info import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from airflow.sdk import BaseOperatorLink, Context

    from airflow_provider_sib.triggers import Kind, Until


class MessageSensor(BaseSensorOperator):
    """Wait until a message exists, is gone, or has given fields.

    One look costs one call of the account's quota (100 an hour on most plans): the default of one look in five
    minutes costs 12 an hour, ``poke_interval=60`` would cost 60. A look refused for quota counts as "not yet".
    Brevo's answer 200 means that Brevo has the message, not that the visitor has seen it.

    :param message_id: the message's id, as the sending task returned it (templated).
    :param kind: ``"pushed"`` for a pushed message, ``"agent"`` for a message of a conversation.
    :param until: ``"exists"``; ``"gone"``; or fields by Brevo's names with the values to wait for, such as
        ``{"isMissed": False}`` (templated). A field that the message lacks equals nothing.
    :param sib_conn_id: the connection (templated).
    :param poke_interval: seconds between two looks.
    :param deferrable: wait in the triggerer, without a worker slot; ``poke_interval`` must then be 10 or more.
    :return: (XCom) the message as a dict of Brevo's fields, or None when it is gone.
    :raises AirflowFailException: when the connection or the request is wrong: waiting cannot mend it.
    """

    template_fields: Sequence[str] = ("message_id", "until", "sib_conn_id")
    ui_color = "#d8f0e3"

    def __init__(
        self,
        *,
        message_id: str,
        kind: Kind = "pushed",
        until: Until = "exists",
        sib_conn_id: str = DEFAULT_CONN_ID,
        poke_interval: timedelta | float = 300,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        if kind not in ("pushed", "agent"):
            raise ValueError(f'kind must be "pushed" or "agent", not {kind!r}.')
        self.deferrable = boolean("deferrable", deferrable)
        if self.deferrable and self.poke_interval < 10:
            raise ValueError(
                f"poke_interval is {self.poke_interval:g} s; a deferrable sensor needs 10 or more, since Airflow "
                "fails a task that comes back from its deferral within seconds."
            )
        self.message_id = message_id
        self.kind = kind
        self.until = until
        self.sib_conn_id = sib_conn_id

    def poke(self, context: Context) -> PokeReturnValue:  # noqa: ARG002 - the signature is Airflow's
        """Look once."""
        from airflow_provider_sib.triggers import has_come

        if self.until not in ("exists", "gone") and not (isinstance(self.until, dict) and self.until):
            raise AirflowFailException(
                'until must be "exists", "gone" or a dict of fields with the values to wait for, '
                f"not {type(self.until).__name__} {self.until!r}."
            )
        with failing_for_good(), SibConversationsHook(self.sib_conn_id, rate_limit_wait_seconds=0) as hook:
            get = hook.get_pushed_message if self.kind == "pushed" else hook.get_message
            try:
                message = get(self.message_id)
            except NotFound:
                message = None
            except RateLimited as error:
                self.log.info("%s", error)
                return PokeReturnValue(is_done=False)
        return PokeReturnValue(
            is_done=has_come(self.until, message), xcom_value=None if message is None else message.as_dict()
        )

    def execute(self, context: Context, event: dict[str, Any] | None = None) -> Any:
        """Look; then wait as the mode says, or in the triggerer."""
        if event is not None:
            if event["status"] == "error":
                raise AirflowFailException(event["error"])
            return event["message"]
        if not self.deferrable:
            return super().execute(context)
        first = self.poke(context)
        if first.is_done:
            return first.xcom_value
        from airflow_provider_sib.triggers import MessageTrigger

        self.defer(
            trigger=MessageTrigger(
                message_id=self.message_id,
                kind=self.kind,
                until=self.until,
                sib_conn_id=self.sib_conn_id,
                poke_interval=self.poke_interval,
            ),
            method_name="execute",
            timeout=timedelta(seconds=self.timeout),
        )


class CampaignSensor(BaseSensorOperator):
    """Wait until a campaign has an outcome for its audience; it asks the ledger and makes no API call.

    A campaign that is paused, however much of it is settled, or not there yet, is waited for, and so is a ledger that
    no task has made yet; an aborted campaign fails the sensor.

    :param campaign_id: the campaign (templated).
    :param settled_share: share, above 0, of those who may be sent to that must have an outcome: sent, failed, in
        doubt, skipped or withdrawn.
    :param ledger_conn_id: Airflow connection of the ledger's database (templated); None: ``[sib] ledger_conn_id``,
        else a file on this machine.
    :param mode: gives the worker slot back between two looks, unless ``"poke"``.
    :return: (XCom) the campaign's report as a dict.
    :raises AirflowFailException: when the campaign is aborted, or the ledger is not the one that tasks send with: a
        file where they run on several machines, another one than before.
    """

    template_fields: Sequence[str] = ("campaign_id", "ledger_conn_id")
    operator_extra_links: Collection[BaseOperatorLink] = (CampaignLink(),)
    ui_color = "#c4e8d3"

    def __init__(
        self,
        *,
        campaign_id: str,
        settled_share: float = 1.0,
        ledger_conn_id: str | None = None,
        mode: str = "reschedule",
        **kwargs: Any,
    ) -> None:
        super().__init__(mode=mode, **kwargs)
        self.campaign_id = campaign_id
        self.settled_share = number("settled_share", settled_share, above=0, most=1)
        self.ledger_conn_id = ledger_conn_id

    def execute(self, context: Context) -> Any:
        """Look, again and again."""
        CampaignLink().keep(self, context)
        return super().execute(context)

    def poke(self, context: Context) -> PokeReturnValue:  # noqa: ARG002 - the signature is Airflow's
        """Look once."""
        from airflow_provider_sib.campaign.ledger import CampaignStatus, LedgerMissing, UnknownCampaign

        with CampaignHook(self.ledger_conn_id, create=False) as hook:
            refuse_a_file_not_shared(hook.place)
            # Before the look: meanwhile the first task that sends may make the ledger, and pin it.
            pin = Pin.read(hook.place)
            try:
                report = hook.report(self.campaign_id)
            except (LedgerMissing, UnknownCampaign) as error:
                if isinstance(error, LedgerMissing) and pin is not None:
                    raise AirflowFailException(
                        f"{error} There was one, and it is pinned. Bring it back; or, if you accept that visitors may "
                        f"be written to twice, run `{hook.place.command('ledger', 'adopt')}`."
                    ) from error
                self.log.info("%s Waiting for it.", error)
                return PokeReturnValue(is_done=False)
        if report.status == CampaignStatus.ABORTED:
            raise AirflowFailException(
                f"Campaign {self.campaign_id!r} was aborted. To go on, resume it "
                f"(`{hook.place.command('campaigns', 'resume', self.campaign_id)}`), and clear its task and this one."
            )
        self.log.info(
            "Campaign %s is %s, %.1f %% settled.",
            report.campaign_id,
            report.status,
            report.settled_share * 100,
        )
        done = report.status != CampaignStatus.PAUSED and report.settled_share >= self.settled_share
        return PokeReturnValue(is_done=done, xcom_value=report.as_dict())
