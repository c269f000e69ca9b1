"""Operators for campaigns: an announcement to many, to each at most once, at the pace the quota allows.

A task delivers while the quota lasts and is deferred while it does not. Whatever ends it (a retry, a clear, a kill,
another DAG run), the next one goes on where it was, by the ledger. What must survive a deferral is there; the
deferral itself carries only the counts of what was done before it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Set
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn
from urllib.parse import quote

from airflow.sdk import Asset, AssetAlias, BaseOperator, XComArg

from airflow_provider_sib._compat import AirflowFailException, AirflowSkipException
from airflow_provider_sib.arguments import boolean, number, whole
from airflow_provider_sib.hooks import SibConversationsHook, defer_after_seconds
from airflow_provider_sib.links import CampaignLink
from airflow_provider_sib.provider_info import DEFAULT_CONN_ID

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from contextlib import AbstractContextManager

    import jinja2
    from airflow.sdk import BaseOperatorLink, Context

    from airflow_provider_sib.campaign import FrequencyCap, SendWindow, Variant
    from airflow_provider_sib.campaign.announcement import Announcement, Enroller
    from airflow_provider_sib.campaign.audience import BadRow, Row
    from airflow_provider_sib.campaign.engine import (
        Rules,
        SendEngine,
        Stopped,
        UpdateEngine,
        Wait,
        WithdrawEngine,
    )
    from airflow_provider_sib.campaign.ledger import Json, Ledger
    from airflow_provider_sib.campaign.report import Report
    from airflow_provider_sib.delivery import Courier
    from airflow_provider_sib.hooks.campaign import LedgerPlace
    from airflow_provider_sib.hooks.connection import ConnectionSettings

CAMPAIGNS = "sib-campaigns"
"""Asset alias under which a campaign's task adds an asset of the campaign's own when it is through."""


class CampaignTask:
    """A task at work on a campaign: its ledger, its connection, and what it does when an engine waits or stops.

    :param operator: the task.
    :param campaign_id: the campaign.
    :param ledger: opened, and the right one.
    :param place: where that lies.
    :param settings: the connection.
    :param deferrable: whether long waits are deferred; else they are spent in the worker.
    :param watched_by: the process that watched over the task when it began.
    """

    def __init__(
        self,
        operator: BaseOperator,
        campaign_id: str,
        *,
        ledger: Ledger,
        place: LedgerPlace,
        settings: ConnectionSettings,
        deferrable: bool,
        watched_by: int,
    ) -> None:
        self.operator = operator
        self.campaign_id = campaign_id
        self.ledger = ledger
        self.place = place
        self.settings = settings
        self.deferrable = deferrable
        self.watched_by = watched_by
        self.log = operator.log
        self.calls_planned: int | None = None
        self.reserve = settings.reserve_calls
        # Not asked when it is needed: a deferral must not fail since the ledger is silent just then.
        self._ledger_id = ledger.identity().ledger_id
        self._courier: Courier | None = None

    def stop(self) -> None:
        """Begin nothing more, and end within seconds; from a signal handler."""
        if self._courier is not None:
            self._courier.stop()

    def rules(self, *, max_in_flight: Any, reserve: Any = None, **rules: Any) -> Rules:
        """Give the rules for sending, from the connection and the author.

        :param max_in_flight: requests at once, from 1 to 1,000.
        :param reserve: calls of each hour left to others; None: as the connection says.
        """
        from airflow_provider_sib.campaign.engine import Rules
        from airflow_provider_sib.campaign.pacing import Rate

        settings = self.settings
        kept_back = settings.reserve_calls if reserve is None else whole("reserve", reserve, least=0)
        self.reserve = kept_back
        return Rules(
            account=settings.conn_id,
            rate=Rate(reserve=kept_back, requests_per_hour=settings.requests_per_hour),
            timeout_seconds=settings.timeout_seconds,
            allowed_visitors=settings.allowed_visitors,
            max_in_flight=whole("max_in_flight", max_in_flight, least=1, most=1000),
            **rules,
        )

    def drive(self, engine: SendEngine | UpdateEngine | WithdrawEngine) -> None:
        """Let the engine work until it is done; defer when it has to wait for long.

        After a deferral `execute` is told, as ``before``, what was done until then.

        :raises AirflowFailException: when the campaign was aborted, the connection is refused, or too much failed.
        """
        from airflow_provider_sib.api.wire import Retries
        from airflow_provider_sib.campaign.engine import Stopped, Wait
        from airflow_provider_sib.delivery import Courier

        max_in_flight = engine.rules.max_in_flight
        self._courier = Courier(
            engine,
            lambda: self.settings.async_client(retries=Retries(attempts=1), max_connections=max_in_flight),
            max_in_flight=max_in_flight,
            defer_after_seconds=defer_after_seconds() if self.deferrable else None,
            progress=self._progress,
            watched_by=self.watched_by,
        )
        if getattr(self.operator, "told_to_stop", False):  # before there was anything to stop
            self._courier.stop()
        end = self._courier.run()
        if isinstance(end, Wait):
            self._defer(end, before=engine.tally())
        if isinstance(end, Stopped):
            self._fail(end, engine.tally())

    def _progress(self, tally: Mapping[str, Any], waiting: Wait | None) -> None:
        """Say about once a minute how it goes, and keep how far the ledger has come, lest this process be killed."""
        from airflow_provider_sib.campaign.ledger import LedgerUnavailable
        from airflow_provider_sib.hooks.campaign import pin_progress

        facts = ", ".join(f"{name} {value}" for name, value in tally.items() if value not in (None, {}))
        pause = f"; waiting for {waiting.reason}" if waiting else ""
        try:
            left = self._left(tally["calls"])
        except LedgerUnavailable as error:  # its outcomes are held meanwhile, and given up by name if need be
            left = "how long it still takes is unknown"
            self.log.warning("%s", error)
        self.log.info("Campaign %s: %s%s; %s.", self.campaign_id, facts, pause, left)
        pin_progress(self.ledger, self.place)

    def _left(self, calls: int) -> str:
        """Say how long it still takes, as far as the quota tells.

        :param calls: made so far.
        """
        from airflow_provider_sib.campaign.engine import BUCKET
        from airflow_provider_sib.campaign.report import calls_take, duration

        if self.calls_planned is None:
            counts = self.ledger.counts(self.campaign_id)
            ahead = counts.waiting
        else:
            ahead = max(0, self.calls_planned - calls)
        quota = self.ledger.quotas().get((self.settings.conn_id, BUCKET))
        seconds = (
            None if quota is None else calls_take(ahead, quota, self.ledger.now_ms(), reserve=self.reserve)
        )
        if seconds is None:
            return f"{ahead:,} to go; how long that takes is unknown, since Brevo has not told the quota yet"
        return f"{ahead:,} to go, {'within this hour' if seconds == 0 else f'at least {duration(seconds)}'}"

    def _defer(self, wait: Wait, *, before: Mapping[str, Json]) -> NoReturn:
        from airflow_provider_sib.triggers import CampaignTrigger

        until = None if wait.until_ms is None else wait.until_ms / 1000
        moment = (
            "it is resumed" if until is None else datetime.fromtimestamp(until, UTC).isoformat("T", "seconds")
        )
        self.log.info("Campaign %s waits for %s: deferring until %s.", self.campaign_id, wait.reason, moment)
        self.operator.defer(
            trigger=CampaignTrigger(
                campaign_id=self.campaign_id,
                ledger_conn_id=self.place.conn_id,
                ledger_id=self._ledger_id,
                until=until,
                edits=self.calls_planned is not None,
            ),
            method_name="execute",
            kwargs={"before": dict(before)},
        )

    def _fail(self, stopped: Stopped, tally: Mapping[str, Any]) -> NoReturn:
        name = self.campaign_id
        match stopped.reason:
            case "aborted":
                raise AirflowFailException(
                    f"Campaign {name!r} was aborted. To go on, resume it "
                    f"(`{self.place.command('campaigns', 'resume', name)}`) and clear this task."
                )
            case "unauthorized":
                raise AirflowFailException(
                    f"Campaign {name!r} stopped, since Brevo refuses the connection {self.settings.conn_id!r}; "
                    f"nobody is lost. Mend the connection and clear this task. {stopped.error}"
                ) from stopped.error
            case "max_failure_share" if self.calls_planned is not None:
                raise AirflowFailException(
                    f"Campaign {name!r} stopped, since too many messages could not be changed "
                    f"({_listed(tally['failed'])}); they stay as they are. Clear this task to try those again, and to "
                    "go on."
                )
            case "max_failure_share":
                raise AirflowFailException(
                    f"Campaign {name!r} stopped, since too many messages failed or are in doubt. See "
                    f"`{self.place.command('campaigns', 'show', name)}` for the reasons; clear this task to go on."
                )
            case reason:
                raise RuntimeError(f"Campaign {name!r} was {reason}; the next try goes on with it.")


@contextmanager
def opened(
    operator: BaseOperator,
    campaign_id: str,
    *,
    sib_conn_id: str,
    ledger_conn_id: str | None,
    deferrable: bool,
    rehearses: bool = False,
) -> Iterator[CampaignTask]:
    """Open the connection and the right ledger; at the end keep how far it has come, whatever happened.

    :param rehearses: whether nothing will be sent: then no ledger is made, and none is pinned.
    :raises AirflowFailException: when the author has to choose or mend something; the message says what.
    """
    from airflow_provider_sib.api.errors import InvalidRequest
    from airflow_provider_sib.campaign.audience import AudienceError
    from airflow_provider_sib.campaign.engine import CampaignRefused, TooManyBadRows
    from airflow_provider_sib.campaign.ledger import UnknownCampaign
    from airflow_provider_sib.hooks.campaign import (
        LedgerPlace,
        open_ledger,
        open_ledger_to_rehearse,
        pin_progress,
    )

    # Before the ledger is opened and the audience read, which may take long.
    watched_by = os.getppid()
    place = LedgerPlace.configured(ledger_conn_id)
    ledger = open_ledger_to_rehearse(place) if rehearses else open_ledger(place, to_send=True)
    try:
        yield CampaignTask(
            operator,
            campaign_id,
            ledger=ledger,
            place=place,
            settings=SibConversationsHook(sib_conn_id).settings,
            deferrable=deferrable,
            watched_by=watched_by,
        )
    except (
        AudienceError,
        CampaignRefused,
        InvalidRequest,
        TooManyBadRows,
        UnknownCampaign,
        TypeError,
        ValueError,
    ) as error:
        # The author has to choose, or to mend the connection; a retry cannot help.
        raise AirflowFailException(str(error)) from error
    finally:
        try:
            if not rehearses:
                pin_progress(ledger, place)
        finally:
            ledger.close()


class _CampaignOperator(BaseOperator):
    """What the operators of campaigns share: values of which Airflow renders copies, the ledger, the deferral.

    A crash is survived by retrying, so they come with retries of their own.
    """

    template_ext: Sequence[str] = (".md.j2", ".txt.j2")
    template_fields_renderers: ClassVar[dict[str, str]] = {"text": "md"}
    operator_extra_links: Collection[BaseOperatorLink] = (CampaignLink(),)
    ui_color = "#c4e8d3"
    told_to_stop = False

    def __init__(
        self,
        *,
        campaign_id: str,
        sib_conn_id: str = DEFAULT_CONN_ID,
        ledger_conn_id: str | None = None,
        deferrable: bool = True,
        retries: int = 3,
        retry_delay: timedelta | float = timedelta(seconds=30),
        multiple_outputs: bool = True,
        **kwargs: Any,
    ) -> None:
        # Not a parameter: a mapped task would take its default for the outlets themselves.
        kwargs["outlets"] = [*(kwargs.get("outlets") or ()), AssetAlias(CAMPAIGNS)]
        super().__init__(
            retries=retries, retry_delay=retry_delay, multiple_outputs=multiple_outputs, **kwargs
        )
        self.campaign_id = campaign_id
        self.sib_conn_id = sib_conn_id
        self.ledger_conn_id = ledger_conn_id
        self.deferrable = boolean("deferrable", deferrable)
        self._task: CampaignTask | None = None

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render strings as Airflow does, copies of our values, and never the rows of an audience.

        Airflow's own leaves strings inside an object as they are; and rows it would take for templates, and keep
        in clear with the rendered fields.
        """
        if hasattr(content, "rendered"):  # one of our values
            return content.rendered(
                lambda text: super(_CampaignOperator, self).render_template(text, context, jinja_env)
            )
        rendered = super().render_template(content, context, jinja_env, seen_oids)
        return rendered if rendered is content else _wrapped(rendered)

    def on_kill(self) -> None:
        """Begin nothing more, finish or give back what is in flight, within the seconds Airflow leaves."""
        self.told_to_stop = True
        if self._task is not None:
            self._task.stop()

    def _opened(self, context: Context, *, rehearses: bool = False) -> AbstractContextManager[CampaignTask]:
        """Open the connection and the right ledger; see :func:`opened`."""
        CampaignLink().keep(self, context)
        return opened(
            self,
            self.campaign_id,
            sib_conn_id=self.sib_conn_id,
            ledger_conn_id=self.ledger_conn_id,
            deferrable=self.deferrable,
            rehearses=rehearses,
        )

    def _finish(self, context: Context, told: Report, tally: Mapping[str, Json]) -> dict[str, Any]:
        """Give the task's result, and add the campaign's asset with it."""
        run = dict(tally)
        quota = {name: run.pop(name) for name in ("quota_limit", "quota_left")}
        result = {
            "campaign_id": self.campaign_id,
            "ledger_id": told.ledger_id,
            "status": told.status,
            "revision": told.revision,
            "totals": {
                name: getattr(told, name)
                for name in (
                    "total",
                    "pending",
                    "sending",
                    "sent",
                    "failed",
                    "in_doubt",
                    "skipped",
                    "withdrawn",
                )
            },
            "failed_by": told.failed_by,
            "in_doubt_by": told.in_doubt_by,
            "skipped_by": told.skipped_by,
            "run": run,
            **quota,
        }
        counts = ", ".join(f"{name} {count}" for name, count in result["totals"].items() if count)
        self.log.info("Campaign %s is %s: %s.", self.campaign_id, told.status, counts or "nobody enrolled")
        events = context.get("outlet_events")
        if events is not None and (asset := self._asset()) is not None:
            events[AssetAlias(CAMPAIGNS)].add(asset, extra={"status": told.status, **result["totals"]})
        return result

    def _asset(self) -> Asset | None:
        try:
            return Asset(
                name=f"sib-campaign-{self.campaign_id}",
                uri=f"sib-campaign://{quote(self.campaign_id, safe='')}",
            )
        except ValueError as error:  # not ASCII where Airflow's database is MySQL, or too long
            self.log.warning("Campaign %s has no asset of its own: %s.", self.campaign_id, error)
            return None


class SendCampaignOperator(_CampaignOperator):
    """Announce something to the visitors of an audience, to each at most once.

    A campaign is its id: retrying, clearing or running the DAG again goes on with it and never repeats. The task
    holds a worker while it sends, and is deferred while the quota is used up, the visitors' windows are shut, or
    the campaign is paused. It is green when everybody due has an outcome and not too many failed; doubts (a message
    whose fate nobody knows) are not sent again, and warned of. Visitors are sent to time zone by time zone, in
    the order in which the audience first names them; within a zone by rank, a keyed hash of campaign and once key.

    :param campaign_id: the campaign's name, chosen by you (templated); up to 255 characters.
    :param audience: who (templated): an audience; a path or URL ending in ``.csv``, ``.jsonl``, ``.ndjson``; rows,
        also as another task's output. Airflow keeps of rows only their number and columns; in ``default_args`` or
        the arguments of a mapped task group write them as ``RowsAudience(rows)`` for that.
    :param text: what (templated; also a file ``.md.j2`` or ``.txt.j2``): a text, or ``{locale: text}``. What differs
        per visitor is in double square brackets: ``[[ visitor.first_name | default('there') ]]``.
    :param variants: instead of ``text``: ``{name: text | {locale: text} | Variant(text, weight)}`` (templated).
    :param default_locale: for visitors whose locale has no text; ``fr-CA`` falls back to ``fr`` first.
    :param agent_id: who writes (templated); a row's own column ``agent_id`` or ``group_id`` wins.
    :param group_id: a group of which a random agent writes (templated).
    :param enrol: ``"once"``: the audience is a snapshot, taken at the first run; ``"each_run"``: newcomers join at
        every run.
    :param once_per: the column, or columns, that "once" counts by.
    :param fraction: share of the audience that may be sent to, above 0 (templated). ``0.05`` and later ``1.0`` is a
        canary: the first are among the others. For a snapshot exact; for ``"each_run"`` by each one's rank.
    :param holdout: share that is never sent to, for comparison, from 0 up to 1 (templated).
    :param send_window: when, on the visitor's own clock.
    :param frequency_cap: how often at most, over the campaigns of a group.
    :param not_after: the moment after which nothing is sent: aware datetime, ISO 8601 with offset (templated), or a
        timedelta from when the run was due (``run_after``).
    :param suppress: an audience of visitors to leave out, read again at each resume (templated); the list read last
        holds, also an empty one or None. Who was skipped by an earlier one stays skipped.
    :param send_in_backfill: whether a backfill's runs send; else they skip the task.
    :param retry_failed: whether deliveries that failed in earlier runs are tried again.
    :param on_doubt: ``"hold"``; or ``"resend"``: doubts are sent again, and may arrive twice.
    :param max_bad_rows: rows of the audience that may be unusable, and rows of ``suppress``; beyond it nothing is
        sent.
    :param max_failure_share: share of this run's messages that may fail or be in doubt before it stops; doubts that a
        killed worker left do not count.
    :param reserve: calls of each hour left to others (templated); None: the connection's ``reserve_calls``.
    :param max_in_flight: requests at once (templated); a kill puts at most so many in doubt.
    :param dry_run: enrol nobody and send nothing: read and render everything, and log what would happen (templated).
    :param sib_conn_id: the connection (templated).
    :param ledger_conn_id: Airflow connection of the ledger's database (templated); None: ``[sib] ledger_conn_id``,
        else a file on this machine.
    :param deferrable: False waits in the worker.
    :return: (XCom) a dict of this run's counts, the campaign's totals, failures by code, skips by reason, calls,
        seconds, quota left, and the ledger's id.
    :raises AirflowSkipException: in a backfill.
    :raises AirflowFailException: when the author has to choose or mend something; the message says what.
    """

    template_fields: Sequence[str] = (
        "campaign_id",
        "audience",
        "text",
        "variants",
        "agent_id",
        "group_id",
        "fraction",
        "holdout",
        "not_after",
        "suppress",
        "reserve",
        "max_in_flight",
        "dry_run",
        "sib_conn_id",
        "ledger_conn_id",
    )

    def __init__(
        self,
        *,
        campaign_id: str,
        audience: Any,
        text: str | Mapping[str, str] | None = None,
        variants: Mapping[str, str | Mapping[str, str] | Variant] | None = None,
        default_locale: str = "en",
        agent_id: str | None = None,
        group_id: str | None = None,
        enrol: Literal["once", "each_run"] = "once",
        once_per: str | Sequence[str] = "visitor_id",
        fraction: float | str = 1.0,
        holdout: float | str = 0.0,
        send_window: SendWindow | None = None,
        frequency_cap: FrequencyCap | None = None,
        not_after: datetime | timedelta | str | None = None,
        suppress: Any = None,
        send_in_backfill: bool = False,
        retry_failed: bool = False,
        on_doubt: Literal["hold", "resend"] = "hold",
        max_bad_rows: int = 0,
        max_failure_share: float = 0.2,
        reserve: int | str | None = None,
        max_in_flight: int | str = 8,
        dry_run: bool | str = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(campaign_id=campaign_id, **kwargs)
        self.audience = _literal("audience", audience)
        self.text = text
        self.variants = variants
        self.default_locale = default_locale
        self.agent_id = agent_id
        self.group_id = group_id
        self.enrol = _one_of("enrol", enrol, "once", "each_run")
        self.once_per = once_per
        self.fraction = fraction
        self.holdout = holdout
        self.send_window = send_window
        self.frequency_cap = frequency_cap
        self.not_after = not_after
        self.suppress = _literal("suppress", suppress)
        self.send_in_backfill = boolean("send_in_backfill", send_in_backfill)
        self.retry_failed = boolean("retry_failed", retry_failed)
        self.on_doubt = _one_of("on_doubt", on_doubt, "hold", "resend")
        self.max_bad_rows = whole("max_bad_rows", max_bad_rows, least=0)
        self.max_failure_share = number("max_failure_share", max_failure_share, least=0, most=1)
        self.reserve = reserve
        self.max_in_flight = max_in_flight
        # BaseOperator.dry_run() only renders the templates; a rehearsal does more, under the name people know.
        self.dry_run = dry_run  # type: ignore[method-assign,assignment]  # as said above

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Give the arguments that the instances of a mapped task share, as Airflow's own does.

        :raises TypeError: ``audience`` or ``suppress`` is a collection, but not of rows.
        """
        return _Partial(super().partial(**{name: _literal(name, value) for name, value in kwargs.items()}))

    def execute(
        self, context: Context, event: Any = None, before: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Deliver; after a deferral go on."""
        resumed = event is not None
        if _is_backfill(context) and not self.send_in_backfill:
            raise AirflowSkipException("A backfill sends nothing; send_in_backfill=True would.")
        rehearses = self._rehearses()
        with self._opened(context, rehearses=rehearses) as self._task:
            task = self._task
            if rehearses:
                return self._rehearse(task, context)
            engine = self._begin(task, context, resumed=resumed)
            if before is not None:
                engine.go_on(before)
            task.drive(engine)
            return self._result(task, engine, context)

    def _rehearses(self) -> bool:
        try:
            return boolean("dry_run", self.dry_run)
        except ValueError as error:
            raise AirflowFailException(str(error)) from error

    def _announcement(self) -> Announcement:
        from airflow_provider_sib.campaign.announcement import Announcement

        return Announcement(self.text, self.variants, default_locale=self.default_locale)

    def _begin(self, task: CampaignTask, context: Context, *, resumed: bool) -> SendEngine:
        """Open the campaign, take its audience in, and make its engine by the rules as they are now."""
        from airflow_provider_sib.campaign.engine import SendEngine, enrol, open_campaign

        ledger, settings = task.ledger, task.settings
        announcement = self._announcement()
        enroller = self._enroller(announcement)
        rules = task.rules(
            reserve=self.reserve,
            max_in_flight=self.max_in_flight,
            send_window=self.send_window,
            frequency_cap=self.frequency_cap,
            not_after_ms=_moment_ms("not_after", self.not_after, context),
            agent_id=self.agent_id or (None if self.group_id else settings.agent_id),
            group_id=self.group_id or (None if self.agent_id else settings.group_id),
            max_failure_share=self.max_failure_share,
            resend_doubts=self.on_doubt == "resend",
        )
        open_campaign(
            ledger,
            self.campaign_id,
            binding={
                "host": settings.base_url,
                "connection": settings.conn_id,
                "once_per": json.dumps(enroller.once_per),
            },
            # A template may render to another text at each resume: it goes on with the ledger's.
            announcement=None if resumed else announcement,
            each_run=self.enrol == "each_run",
            settings={"dag_id": self.dag_id, "task_id": self.task_id, "reserve": rules.rate.reserve}
            | self._shown_rules(),
        )
        if not resumed:
            enrolled = enrol(
                ledger,
                self.campaign_id,
                self._read(self.audience, ledger),
                enroller,
                max_bad_rows=self.max_bad_rows,
                tell=self._tell,
            )
            self.log.info(
                "Campaign %s: %d enrolled now, %d in all; %d duplicates and %d unusable rows left out.",
                self.campaign_id,
                enrolled.joined,
                enrolled.total,
                enrolled.duplicates,
                enrolled.bad_rows,
            )
        # Also where there is no list: the ledger still has the one of an earlier run.
        ledger.exclude(self.campaign_id, self._suppressed(ledger))
        engine = SendEngine(ledger, self.campaign_id, rules)
        engine.begin(
            resumed=resumed,
            fraction=number("fraction", self.fraction, above=0, most=1),
            retry_failed=self.retry_failed,
        )
        return engine

    def _tell(self, row: BadRow) -> None:
        self.log.warning("Line %d %s; it is left out.", row.line, row.reason)

    def _suppressed(self, ledger: Ledger) -> Iterator[str]:
        """Give who is left out; a row that can't be used may name one of them, so that sending would do harm."""
        from airflow_provider_sib.campaign.audience import Row
        from airflow_provider_sib.campaign.engine import BadRows

        bad = BadRows("`suppress`")
        if self.suppress is not None:
            for row in self._read(self.suppress, ledger, name="suppress"):
                if isinstance(row, Row):
                    yield row.visitor_id
                else:
                    bad.add(row)
        bad.refuse_beyond(self.max_bad_rows)

    def _enroller(self, announcement: Announcement) -> Enroller:
        from airflow_provider_sib.campaign.announcement import Enroller

        holdout = number("holdout", self.holdout, least=0)
        return Enroller(self.campaign_id, announcement, once_per=self.once_per, holdout=holdout)

    def _read(self, audience: Any, ledger: Ledger, *, name: str = "audience") -> Iterator[Row | BadRow]:
        from airflow_provider_sib.campaign import audience_of
        from airflow_provider_sib.campaign.audience import read
        from airflow_provider_sib.hooks.campaign import connect, open_path

        return read(audience_of(audience, name=name), open_path=open_path, connect=connect, ledger=ledger)

    def _shown_rules(self) -> dict[str, Json]:
        """Give the rules as those who look at the campaign from outside are shown them."""
        from airflow_provider_sib.campaign import audience_of

        window, cap = self.send_window, self.frequency_cap
        return {
            "audience": repr(audience_of(self.audience)),
            "fraction": str(self.fraction),
            "holdout": str(self.holdout),
            "send_window": None if window is None else window.as_dict(),
            "frequency_cap": None if cap is None else cap.as_dict(),
            "not_after": None if self.not_after is None else str(self.not_after),
            "on_doubt": self.on_doubt,
        }

    def _rehearse(self, task: CampaignTask, context: Context) -> dict[str, Any]:
        """Read and render everything, and change nothing."""
        from airflow_provider_sib.campaign.engine import BadRows, enrolments
        from airflow_provider_sib.campaign.report import hours_table

        enroller = self._enroller(self._announcement())
        # What a real run would refuse, a rehearsal does.
        number("fraction", self.fraction, above=0, most=1)
        rules = task.rules(
            reserve=self.reserve,
            max_in_flight=self.max_in_flight,
            not_after_ms=_moment_ms("not_after", self.not_after, context),
        )
        usable, held_out, bad = 0, 0, BadRows()
        for enrolment in enrolments(self._read(self.audience, task.ledger), enroller, bad):
            usable += 1
            held_out += enrolment.skip is not None
        hours = hours_table(usable - held_out, reserve=rules.rate.reserve)
        self.log.info(
            "A rehearsal of campaign %s; nothing was sent. %d rows: %d usable, %d of them held out, %d unusable. "
            "All of them would take %s.",
            self.campaign_id,
            usable + bad.count,
            usable,
            held_out,
            bad.count,
            ", ".join(f"{needed:g} hours at {limit} calls an hour" for limit, needed in hours),
        )
        bad.refuse_beyond(self.max_bad_rows)
        for row in bad.named:
            self._tell(row)
        excluded = sum(1 for _ in self._suppressed(task.ledger))
        if excluded:
            self.log.info("`suppress` leaves out up to %d of them.", excluded)
        return {
            "campaign_id": self.campaign_id,
            "dry_run": True,
            "usable": usable,
            "held_out": held_out,
            "bad_rows": bad.count,
        }

    def _result(self, task: CampaignTask, engine: SendEngine, context: Context) -> dict[str, Any]:
        from airflow_provider_sib.campaign.report import report

        told = report(task.ledger, self.campaign_id)
        if told.in_doubt:
            self.log.warning(
                "Campaign %s: %d messages are in doubt: nobody knows whether they were delivered, and they are not "
                "sent again. `%s` names them.",
                self.campaign_id,
                told.in_doubt,
                task.place.command("campaigns", "deliveries", self.campaign_id, "--state", "in_doubt"),
            )
        return self._finish(context, told, engine.tally())


class _Partial:
    """What ``partial`` gives, wrapping rows also when it is expanded.

    Airflow keeps with the DAG what a mapped task is given, and makes the operator itself only when it runs.
    """

    def __init__(self, partial: Any) -> None:
        self._partial = partial

    def expand(self, **mapped: Any) -> Any:
        """Map over arguments, as Airflow's own does."""
        return self._partial.expand(
            **{
                name: [_literal(name, each) for each in value]
                if isinstance(value, list | tuple)
                else _literal(name, value)
                for name, value in mapped.items()
            }
        )

    def expand_kwargs(self, kwargs: Any, **how: Any) -> Any:
        """Map over sets of arguments, as Airflow's own does."""
        if isinstance(kwargs, list | tuple):
            kwargs = [
                {name: _literal(name, value) for name, value in each.items()}
                if isinstance(each, Mapping)
                else each
                for each in kwargs
            ]
        return self._partial.expand_kwargs(kwargs, **how)


class _EditOperator(_CampaignOperator):
    """Change what a campaign has sent: resumable, and safe beside a running send."""

    def __init__(
        self,
        *,
        max_failure_share: float = 0.2,
        reserve: int | str | None = None,
        max_in_flight: int | str = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.max_failure_share = number("max_failure_share", max_failure_share, least=0, most=1)
        self.reserve = reserve
        self.max_in_flight = max_in_flight

    def _rules(self, task: CampaignTask) -> Rules:
        return task.rules(
            reserve=self.reserve,
            max_in_flight=self.max_in_flight,
            max_failure_share=self.max_failure_share,
        )

    def _edit(
        self,
        task: CampaignTask,
        engine: UpdateEngine | WithdrawEngine,
        context: Context,
        before: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        from airflow_provider_sib.campaign.report import report

        if before is not None:
            engine.go_on(before)
        price = engine.price()
        task.calls_planned = engine.tally()["calls"] + price.calls
        self.log.info(
            "Campaign %s: %d calls, about %g hours at the account's quota; %d messages need none.",
            self.campaign_id,
            price.calls,
            price.hours,
            price.untouched,
        )
        task.drive(engine)
        told, run = report(task.ledger, self.campaign_id), engine.tally()
        if run["failed"]:
            self.log.warning(
                "Campaign %s: %d messages could not be changed and stay as they are: %s. Clear this task to try those "
                "again. `%s` names them.",
                self.campaign_id,
                sum(run["failed"].values()),
                _listed(run["failed"]),
                task.place.command(
                    "campaigns",
                    "deliveries",
                    self.campaign_id,
                    "--state",
                    "sent",
                    *(word for reason in run["failed"] for word in ("--reason", reason)),
                ),
            )
        if told.in_doubt:
            self.log.warning(
                "Campaign %s: %d messages in doubt could not be changed, their ids being unknown. `%s` names them.",
                self.campaign_id,
                told.in_doubt,
                task.place.command("campaigns", "deliveries", self.campaign_id, "--state", "in_doubt"),
            )
        return self._finish(context, told, run)


class UpdateCampaignOperator(_EditOperator):
    """Give a campaign another text: edit what was sent, and send the new one to those who wait.

    A message whose own text stays the same (the typo was in the French one) costs no call. The price in calls and
    hours is logged first. Variants and their names stay as they are in the ledger.

    :param campaign_id: the campaign (templated).
    :param text: the new text, as of :class:`SendCampaignOperator` (templated).
    :param variants: the new variants, likewise (templated).
    :param default_locale: as of :class:`SendCampaignOperator`.
    :param max_failure_share: share of the messages to change that may fail before it stops. Those below it are warned
        of, and stay as they are.
    :param reserve: calls of each hour left to others (templated); None: the connection's ``reserve_calls``.
    :param max_in_flight: requests at once (templated).
    :param sib_conn_id: the connection (templated).
    :param ledger_conn_id: as of :class:`SendCampaignOperator` (templated).
    :param deferrable: False waits in the worker.
    :return: (XCom) a dict of this run's counts, calls and seconds, the campaign's totals, and the quota left.
    :raises AirflowFailException: when the author has to choose or mend something; the message says what.
    """

    template_fields: Sequence[str] = (
        "campaign_id",
        "text",
        "variants",
        "reserve",
        "max_in_flight",
        "sib_conn_id",
        "ledger_conn_id",
    )

    def __init__(
        self,
        *,
        text: str | Mapping[str, str] | None = None,
        variants: Mapping[str, str | Mapping[str, str] | Variant] | None = None,
        default_locale: str = "en",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.text = text
        self.variants = variants
        self.default_locale = default_locale

    def execute(
        self, context: Context, event: Any = None, before: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Edit; after a deferral go on with the text that the ledger has."""
        from airflow_provider_sib.campaign.announcement import Announcement
        from airflow_provider_sib.campaign.engine import UpdateEngine

        with self._opened(context) as self._task:
            task = self._task
            engine = UpdateEngine(task.ledger, self.campaign_id, self._rules(task))
            announcement = Announcement(self.text, self.variants, default_locale=self.default_locale)
            campaign = engine.begin(None if event is not None else announcement, by=_name_of(context))
            if campaign.text.digest != announcement.digest:
                self.log.warning(
                    "Campaign %s has got a newer text since this task gave it its own; that one stays. To go back, "
                    "start a new run.",
                    self.campaign_id,
                )
            return self._edit(task, engine, context, before)


class WithdrawCampaignOperator(_EditOperator):
    """Delete what a campaign has sent, and send nothing more of it.

    What is already gone counts as withdrawn. Doubts cannot be withdrawn, since their ids are unknown; they are named.
    The API key needs the permission "All".

    :param campaign_id: the campaign (templated).
    :param sent_before: only messages sent before this moment: aware datetime, ISO 8601 with offset (templated), or a
        timedelta before the run was due; then the pending stay. None: all, and the pending are skipped.
    :param verify: ask Brevo for each message afterwards: one call more each.
    :param max_failure_share: share of the messages to change that may fail before it stops. Those below it are warned
        of, and stay as they are.
    :param reserve: calls of each hour left to others (templated); None: the connection's ``reserve_calls``.
    :param max_in_flight: requests at once (templated).
    :param sib_conn_id: the connection (templated).
    :param ledger_conn_id: as of :class:`SendCampaignOperator` (templated).
    :param deferrable: False waits in the worker.
    :return: (XCom) a dict of this run's counts, calls and seconds, the campaign's totals, and the quota left.
    :raises AirflowFailException: when the author has to choose or mend something; the message says what.
    """

    template_fields: Sequence[str] = (
        "campaign_id",
        "sent_before",
        "reserve",
        "max_in_flight",
        "sib_conn_id",
        "ledger_conn_id",
    )

    def __init__(
        self,
        *,
        sent_before: datetime | timedelta | str | None = None,
        verify: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sent_before = sent_before
        self.verify = boolean("verify", verify)

    def execute(
        self,
        context: Context,
        event: Any = None,  # noqa: ARG002 - a deferral's event
        before: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Delete; after a deferral go on."""
        from airflow_provider_sib.campaign.engine import WithdrawEngine

        until = -self.sent_before if isinstance(self.sent_before, timedelta) else self.sent_before
        with self._opened(context) as self._task:
            task = self._task
            engine = WithdrawEngine(
                task.ledger,
                self.campaign_id,
                self._rules(task),
                sent_before_ms=_moment_ms("sent_before", until, context),
                verify=self.verify,
            )
            engine.begin()
            return self._edit(task, engine, context, before)


def _name_of(context: Context) -> str | None:
    """Name a task's instance, through all its tries."""
    ti = context.get("ti")
    return None if ti is None else f"{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.map_index}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _literal(name: str, value: Any) -> Any:
    """Wrap rows that stand in the DAG, and refuse what is no row before Airflow keeps it.

    :param name: the operator's argument; others than those for visitors are left as they are.
    :raises TypeError: it isn't rows; without their data.
    """
    if name not in ("audience", "suppress") or not isinstance(value, list | tuple | Mapping | Set):
        return value
    if any(isinstance(row, XComArg) for row in value):  # rows of other tasks, wrapped when they are there
        return value
    from airflow_provider_sib.campaign import audience_of

    return audience_of(value, name=name)


def _wrapped(value: Any) -> Any:
    """Wrap rows, so that Airflow neither renders nor keeps them.

    :raises AirflowFailException: it isn't rows; without their data.
    """
    if not isinstance(value, list | tuple | Set):
        return value
    from airflow_provider_sib.campaign import RowsAudience

    try:
        return RowsAudience(value)  # type: ignore[arg-type]  # looked at there
    except TypeError as error:
        raise AirflowFailException(str(error)) from error


def _one_of(name: str, value: str, *allowed: str) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, not {value!r}.")
    return value


def _moment_ms(name: str, value: Any, context: Context) -> int | None:
    """Read a moment, or a distance from when the run was due, as milliseconds since 1970."""
    if value is None or value == "":
        return None
    if isinstance(value, timedelta):
        # Not the logical date, which may be the beginning of the data interval: a day before the run can begin.
        moment = context["dag_run"].run_after + value
    elif isinstance(value, datetime):
        moment = value
    else:
        import pendulum

        try:
            parsed = pendulum.parse(str(value), tz=None)
        except ValueError:
            parsed = None
        moment = parsed if isinstance(parsed, datetime) else datetime.min  # noqa: DTZ901 - refused below
    if moment is None or moment.tzinfo is None:
        raise ValueError(
            f"{name} must be a moment with a time zone, such as 2026-11-23T18:00:00+01:00, or a timedelta, "
            f"not {value!r}."
        )
    return round(moment.timestamp() * 1000)


def _is_backfill(context: Context) -> bool:
    run_type = getattr(context.get("dag_run"), "run_type", None)
    return getattr(run_type, "value", run_type) == "backfill"
