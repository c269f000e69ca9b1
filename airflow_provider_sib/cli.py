"""Looks at campaigns and controls them from a shell, on :class:`CampaignHook` alone; no API call is made.

Exit status: 0; 1 when it is refused, with one sentence on standard error; 2 for a wrong command line. Standard
output holds what was asked for and nothing else, since Airflow's log goes to standard error meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from airflow_provider_sib._compat import AirflowException, AirflowFailException
from airflow_provider_sib.campaign.ledger import Campaign, CampaignStatus, Delivery, LedgerError, State
from airflow_provider_sib.campaign.report import duration, seconds_left, seconds_until_reset
from airflow_provider_sib.hooks.campaign import (
    CampaignHook,
    LedgerPlace,
    Pin,
    look,
    refuse_a_file_not_shared,
    refuse_to_begin_anew,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from airflow_provider_sib.campaign.ledger import Json
    from airflow_provider_sib.campaign.report import Report

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001  it has no public name
    Act = Callable[[CampaignHook, argparse.Namespace, IO[str]], int]

BAR_SECONDS = 1.0
"""How often the progress bar of a terminal is drawn."""

LINES_SECONDS = 10.0
"""How often, where there is no terminal, a line is added if anything changed."""

WIDEST_BAR = 24
NARROWEST_BAR = 10
_STATUS = "Exit status: 0; 1 when it is refused, and standard error says why; 2 for a wrong command line."

STATES = tuple(state.name.lower() for state in State)


def add_command(commands: Commands) -> None:
    """Add ``campaigns``, ``ledger`` and ``sandbox`` to the commands of ``python -m airflow_provider_sib``.

    :param commands: what ``ArgumentParser.add_subparsers`` gave.
    """
    _add_campaigns(commands)
    _add_ledger(commands)
    # With no prefix for options of its own, it takes everything that follows as it is.
    sandbox = commands.add_parser(
        "sandbox", help="run a local Brevo Conversations", add_help=False, prefix_chars="\0"
    )
    sandbox.add_argument("arguments", nargs=argparse.REMAINDER)
    sandbox.set_defaults(run=_sandbox)


def _add_campaigns(commands: Commands) -> None:
    parser = commands.add_parser(
        "campaigns", help="look at campaigns and control them", allow_abbrev=False, description=_STATUS
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    campaign = argparse.ArgumentParser(add_help=False)
    campaign.add_argument("campaign_id", metavar="ID", help="the campaign's id")

    _add(actions, "list", _list, "list campaigns, the newest first", as_json=True)
    show = _add(actions, "show", _show, "tell how a campaign stands", campaign)
    form = show.add_mutually_exclusive_group()
    form.add_argument("--follow", action="store_true", help="until it is finished or aborted; Ctrl-C ends it")
    form.add_argument("--json", action="store_true", help="print JSON")
    _add(actions, "pause", _pause, "begin no message until it is resumed", campaign)
    _add(actions, "resume", _resume, "go on with a paused or aborted campaign", campaign)
    _add(actions, "abort", _abort, "begin no message any more; its task fails", campaign, asks=True)
    retry = _add(actions, "retry", _retry, "set failed deliveries to pending again", campaign)
    _add_filter(retry, "--reason", "only those that failed for this reason, as `show` names it")
    settle = _add(
        actions, "settle", _settle, "decide a doubt after looking into the visitor's chat", campaign
    )
    settle.add_argument("once_key", metavar="ONCE_KEY", help="of the delivery, as `deliveries` shows it")
    fate = settle.add_mutually_exclusive_group(required=True)
    fate.add_argument("--sent", action="store_true", help="the message is there")
    fate.add_argument("--not-sent", action="store_true", help="it is not there: it is sent again")
    settle.add_argument(
        "--message-id", metavar="ID", help="with --sent: without it, it can't be edited or withdrawn"
    )
    deliveries = _add(actions, "deliveries", _deliveries, "print who got what", campaign)
    _add_states(deliveries)
    _add_filter(deliveries, "--reason", "only those with this reason, as `show` names it")
    deliveries.add_argument("--json", action="store_true", help="print JSON Lines")
    export = _add(actions, "export", _export, "write the deliveries as CSV", campaign)
    export.add_argument("--file", type=Path, metavar="PATH", help="else standard output")
    _add_states(export)
    _add(actions, "purge", _purge, "delete a finished or aborted campaign, whole", campaign, asks=True)
    _add_visitors(_add(actions, "suppress", _suppress, "never send to these visitors, in any campaign"))
    _add_visitors(_add(actions, "unsuppress", _unsuppress, "take visitors off that list"))
    _add(actions, "suppressed", _suppressed, "print that list", as_json=True)
    forget = _add(actions, "forget", _forget, "erase a visitor's id and variables everywhere", asks=True)
    forget.add_argument("visitor", metavar="VISITOR")
    scrub = _add(actions, "scrub", _scrub, "erase the variables of what ended some time ago", asks=True)
    scrub.add_argument(
        "--older-than-days",
        type=_days,
        required=True,
        metavar="N",
        help="only of deliveries that came to an end so many days ago or earlier",
    )


def _add_ledger(commands: Commands) -> None:
    parser = commands.add_parser(
        "ledger", help="look at the ledger, or make it the right one", allow_abbrev=False, description=_STATUS
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add(actions, "show", _show_ledger, "tell where it is, and whether it is the right one", as_json=True)
    _add(actions, "adopt", _adopt, "let tasks send with the ledger as it is", asks=True)


def _add(
    actions: Commands,
    name: str,
    act: Act,
    says: str,
    *parents: argparse.ArgumentParser,
    asks: bool = False,
    as_json: bool = False,
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name,
        help=says,
        description=f"{says[0].upper()}{says[1:]}.",
        parents=list(parents),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--ledger-conn-id",
        metavar="CONN_ID",
        help="Airflow connection of the ledger's database; else [sib] ledger_conn_id, else the local file",
    )
    if asks:
        parser.add_argument("--yes", action="store_true", help="don't ask")
    if as_json:
        parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run, act=act, usage_error=parser.error)
    return parser


def _add_filter(parser: argparse.ArgumentParser, option: str, says: str) -> None:
    parser.add_argument(option, action="append", metavar="REASON", help=f"{says}; may be given often")


def _add_states(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state",
        action="append",
        choices=STATES,
        metavar="STATE",
        help=f"only these: {', '.join(STATES)}; may be given often",
    )


def _add_visitors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("visitors", nargs="*", metavar="VISITOR", help="a visitor's id")
    parser.add_argument("--file", type=Path, metavar="PATH", help="a file of ids, one a line")


def _days(text: str) -> timedelta:
    try:
        return timedelta(days=int(text))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"not a number of days: {text!r}") from None


def run(options: argparse.Namespace) -> int:
    """Run the command.

    :param options: as parsed; see :func:`add_command`.
    :return: the exit status.
    """
    act: Act = options.act
    out = sys.stdout
    try:
        # Outside of tasks, Airflow logs to standard output.
        with redirect_stdout(sys.stderr), CampaignHook(options.ledger_conn_id) as hook:
            status = act(hook, options, out)
        out.flush()
    except BrokenPipeError:
        # Its reader has had enough (`… | head`). What is buffered must not be tried again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return 1
    except KeyboardInterrupt:
        return _failed("Interrupted.")
    except (AirflowException, LedgerError, ValueError, OSError, RuntimeError) as error:
        return _failed(" ".join(str(error).split()) or type(error).__name__)
    return status


def _failed(sentence: str) -> int:
    print(f"{sentence[:1].upper()}{sentence[1:]}", file=sys.stderr)
    return 1


class _NotConfirmed(ValueError):
    """Somebody thought better of it, or nobody could be asked."""


def _confirm(options: argparse.Namespace, meaning: str) -> None:
    if options.yes:
        return
    print(meaning, file=sys.stderr)
    try:
        agreed = input("Go on? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        agreed = False
    if not agreed:
        raise _NotConfirmed("Nothing was changed. (--yes answers the question.)")


# campaigns


def _list(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    campaigns = hook.list()
    if options.json:
        _print_json([_campaign_json(campaign) for campaign in campaigns], out)
    elif campaigns:
        heading = ("CAMPAIGN", "STATUS", "TOTAL", "BEGAN", "LAST SEEN", "GOES ON", "TASK")
        rows = [
            (
                _shown(campaign.campaign_id),
                campaign.status.value,
                f"{campaign.total:,}",
                _moment(campaign.created_at_ms),
                _moment(campaign.last_seen_ms),
                _moment(campaign.next_wake_ms),
                _task_of(campaign),
            )
            for campaign in campaigns
        ]
        _print_table([heading, *rows], out)
    else:
        print(f"No campaigns in the ledger: {_where(hook.place)}.", file=out)
    return 0


def _campaign_json(campaign: Campaign) -> dict[str, Json]:
    names = (
        "campaign_id status binding each_run revision settings total duplicates bad_rows fraction "
        "created_at_ms enrolled_at_ms last_seen_ms next_wake_ms"
    )
    return {name: getattr(campaign, name) for name in names.split()}


def _show(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    if options.follow:
        return follow(hook, options.campaign_id, out)
    view = _View(hook, options.campaign_id)
    if options.json:
        _print_json(view.as_dict(), out)
    else:
        view.print(out)
    return 0


def _pause(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    hook.pause(options.campaign_id)
    print(f"Campaign {options.campaign_id!r} is paused; what is in flight goes on.", file=out)
    return 0


def _resume(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    hook.resume(options.campaign_id)
    print(
        f"Campaign {options.campaign_id!r} is running: a task that is deferred since it was paused goes on within "
        "seconds, one that waits for a moment then; where it has ended, clear it, or run the DAG.",
        file=out,
    )
    return 0


def _abort(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    total = hook.ledger.campaign(options.campaign_id).total
    _confirm(
        options,
        f"Nothing more of campaign {options.campaign_id!r} ({total:,} deliveries) will be sent, and its task fails. "
        "What was sent stays; `resume` takes this back.",
    )
    hook.abort(options.campaign_id)
    print(f"Campaign {options.campaign_id!r} is aborted; what was sent stays.", file=out)
    return 0


def _retry(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    count = hook.retry(options.campaign_id, reasons=options.reason)
    if count:
        print(f"{_many(count, 'delivery', 'deliveries')} pending again, for its DAG's next run.", file=out)
    else:
        print("No delivery has failed" + (" for this reason." if options.reason else "."), file=out)
    return 0


def _settle(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    if options.not_sent and options.message_id is not None:
        options.usage_error("argument --message-id: not allowed with argument --not-sent")
    hook.settle(options.campaign_id, options.once_key, sent=options.sent, message_id=options.message_id)
    print("Settled as sent." if options.sent else "Pending again, for its DAG's next run.", file=out)
    return 0


def _deliveries(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    hook.ledger.campaign(options.campaign_id)
    found = hook.deliveries(options.campaign_id, states=options.state, reasons=options.reason)
    if options.json:
        for delivery in found:
            print(json.dumps(_delivery_json(delivery), ensure_ascii=False), file=out)
        return 0
    print("once_key", "visitor_id", "state", "reason", "at", "message_ids", sep="\t", file=out)
    for delivery in found:
        facts = (
            delivery.key,
            delivery.visitor_id or "-",
            delivery.state.name.lower(),
            delivery.reason or "-",
            _moment(delivery.at_ms),
            " ".join(delivery.message_ids) or "-",
        )
        print(*map(_shown, facts), sep="\t", file=out)
    return 0


def _delivery_json(delivery: Delivery) -> dict[str, Json]:
    return {
        "once_key": delivery.key,
        "visitor_id": delivery.visitor_id,
        "state": delivery.state.name.lower(),
        "reason": delivery.reason,
        "variant": delivery.variant,
        "revision": delivery.revision,
        "message_ids": list(delivery.message_ids),
        "at_ms": delivery.at_ms,
    }


def _export(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    # Before a file is overwritten with nothing.
    hook.ledger.campaign(options.campaign_id)
    if options.file is None:
        hook.export(options.campaign_id, out, states=options.state)
        return 0
    with options.file.open("w", encoding="utf-8", newline="") as file:
        count = hook.export(options.campaign_id, file, states=options.state)
    print(f"{_many(count, 'delivery', 'deliveries')} written to {options.file}.", file=out)
    return 0


def _purge(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    total = hook.ledger.campaign(options.campaign_id).total
    _confirm(
        options,
        f"Campaign {options.campaign_id!r} is forgotten, with {_many(total, 'delivery', 'deliveries')}: what it sent "
        "can't be edited or withdrawn any more, and a new campaign of this id writes to everybody again.",
    )
    hook.purge(options.campaign_id)
    print(f"Campaign {options.campaign_id!r} is deleted.", file=out)
    return 0


def _visitors(options: argparse.Namespace) -> Iterator[str]:
    yield from options.visitors
    if options.file is not None:
        with options.file.open(encoding="utf-8-sig") as lines:
            yield from filter(None, map(str.strip, lines))


def _check_visitors(options: argparse.Namespace) -> None:
    if not options.visitors and options.file is None:
        options.usage_error("give visitors' ids, or --file")


def _suppress(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    _check_visitors(options)
    count = hook.suppress(_visitors(options))
    print(f"{_many(count, 'visitor')} new on the list of those nothing is sent to.", file=out)
    return 0


def _unsuppress(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    _check_visitors(options)
    count = hook.unsuppress(_visitors(options))
    print(f"{_many(count, 'visitor')} taken off the list of those nothing is sent to.", file=out)
    return 0


def _suppressed(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    found = hook.suppressed()
    if options.json:
        names = ("visitor_id", "reason", "at_ms")
        _print_json([{name: getattr(one, name) for name in names} for one in found], out)
        return 0
    print("visitor_id", "reason", "since", sep="\t", file=out)
    for one in found:
        print(*map(_shown, (one.visitor_id or "-", one.reason, _moment(one.at_ms))), sep="\t", file=out)
    return 0


def _forget(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    _confirm(
        options,
        "The visitor's id and variables are erased in all campaigns of this ledger, for good. A keyed hash stays, so "
        "that nothing is sent to them again.",
    )
    count = hook.forget_visitor(options.visitor)
    print(f"Forgotten in {_many(count, 'delivery', 'deliveries')}; nothing is sent to them again.", file=out)
    return 0


def _scrub(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    older_than: timedelta = options.older_than_days
    _confirm(
        options,
        f"The variables of what came to an end {_many(older_than.days, 'day')} ago or earlier are erased in all "
        "campaigns of this ledger, for good: a new text or another try finds none.",
    )
    count = hook.scrub_variables(older_than)
    print(f"Variables erased of {_many(count, 'delivery', 'deliveries')}.", file=out)
    return 0


# how a campaign stands


class _View:
    """What is shown of one campaign: its report, its quota, and the time they say is left."""

    def __init__(self, hook: CampaignHook, campaign_id: str) -> None:
        self.campaign = hook.ledger.campaign(campaign_id)
        self.report: Report = hook.report(campaign_id)
        self.place = hook.place
        self.quota = hook.quota(campaign_id)

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen any more, unless somebody acts."""
        report = self.report
        if self.campaign.status in (CampaignStatus.FINISHED, CampaignStatus.ABORTED):
            return True
        return report.is_over and report.held_back > 0

    @property
    def seconds_left(self) -> float | None:
        """How long the quota makes it last at least; None where nobody knows."""
        return seconds_left(self.campaign, self.report.due, self.quota, self.report.at_ms)

    @property
    def _seconds_until_reset(self) -> float | None:
        return seconds_until_reset(self.quota, self.report.at_ms)

    def as_dict(self) -> dict[str, Json]:
        """Give all of it as plain JSON."""
        return self.report.as_dict() | {
            "task": _task_of(self.campaign),
            "quota": {
                "limit": self.quota.limit,
                "remaining": self.quota.remaining,
                "reset_at_ms": self.quota.reset_at_ms,
            },
            "seconds_left": self.seconds_left,
        }

    def line(self, *, short: bool = False) -> str:
        """Give the state in one line.

        :param short: leave out what hasn't happened, and when the quota is renewed.
        """
        report = self.report
        rare = {"failed": report.failed, "in doubt": report.in_doubt, "skipped": report.skipped}
        facts = [
            "" if self.campaign.status is CampaignStatus.RUNNING else report.status,
            f"sent {report.sent:,}",
            *(f"{name} {count:,}" for name, count in rare.items() if count or not short),
            f"left {report.due + report.sending:,}",
            self._quota_words(short=short),
            self._left_words(),
        ]
        return f"{report.settled_share:4.0%} {', '.join(filter(None, facts))}"

    def bar(self, columns: int) -> str:
        """Give the same with a bar, in so many columns of a terminal."""
        line = self.line(short=True)
        width = min(WIDEST_BAR, max(NARROWEST_BAR, columns - len(line) - len("[] ") - 1))
        filled = int(width * self.report.settled_share)
        return f"[{'#' * filled}{'.' * (width - filled)}] {line}"[: columns - 1]

    def print(self, out: IO[str]) -> None:
        """Print all of it."""
        report, campaign = self.report, self.campaign
        print(
            f"Campaign {_shown(report.campaign_id)}: {report.status}, revision {report.revision} of its text",
            file=out,
        )
        counts = [
            ("sent", report.sent, f"{report.last_hour:,} in the last hour" if report.last_hour else ""),
            ("failed", report.failed, _reasons(report.failed_by)),
            ("in doubt", report.in_doubt, _reasons(report.in_doubt_by)),
            ("skipped", report.skipped, _reasons(report.skipped_by)),
            ("withdrawn", report.withdrawn, ""),
            ("sending", report.sending, ""),
            ("left", report.due, ""),
            ("held back", report.held_back, "for a larger fraction" if report.held_back else ""),
            ("in all", report.total, self._left_out()),
        ]
        width = max(len(f"{count:,}") for _, count, _ in counts)
        for name, count, more in counts:
            print(f"  {name:<9}  {count:>{width},}  {more}".rstrip(), file=out)
        if len(report.variants) > 1:
            for variant, states in sorted(report.variants.items()):
                print(f"  variant {_shown(variant)}: {_reasons(states)}", file=out)
        print(f"Quota: {self._quota_words().removeprefix('quota ') or 'not learnt yet'}", file=out)
        if left := self._left_words():
            print(f"Time: {left}", file=out)
        print(f"Task: {_task_of(campaign)}, last seen {_moment(campaign.last_seen_ms)}", file=out)
        if campaign.next_wake_ms and campaign.status is CampaignStatus.RUNNING:
            print(f"Goes on: {_moment(campaign.next_wake_ms)}", file=out)
        print(f"Ledger: {_where(self.place)}", file=out)

    def _left_out(self) -> str:
        report = self.report
        parts = [
            _many(report.duplicates, "duplicate") if report.duplicates else "",
            _many(report.bad_rows, "unusable row") if report.bad_rows else "",
        ]
        named = " and ".join(filter(None, parts))
        return f"{named} left out" if named else ""

    def _quota_words(self, *, short: bool = False) -> str:
        if self.quota.limit is None:
            return ""
        if self._seconds_until_reset is None:
            return f"quota {self.quota.limit:,} an hour"
        if short:
            return f"quota {self.quota.remaining:,} of {self.quota.limit:,}"
        until = datetime.fromtimestamp((self.quota.reset_at_ms or 0) / 1000, UTC)
        return f"quota {self.quota.remaining:,} of {self.quota.limit:,} until {until:%H:%M:%S} UTC"

    def _left_words(self) -> str:
        seconds = self.seconds_left
        return f"at least {duration(seconds)} left" if seconds and self.report.due else ""


def follow(
    hook: CampaignHook, campaign_id: str, out: IO[str], *, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Show how a campaign goes on until it is finished or aborted: a bar in a terminal, else lines.

    :param sleep: waits for a number of seconds.
    :return: the exit status.
    :raises UnknownCampaign: when the ledger has none of this id.
    """
    terminal = out.isatty()
    before = ""
    try:
        while True:
            view = _View(hook, campaign_id)
            if terminal:
                # Back to the line's begin, and erase what is longer than the new one.
                out.write(f"\r{view.bar(shutil.get_terminal_size().columns)}\x1b[K")
            elif (line := view.line()) != before:
                print(before := line, file=out)
            out.flush()
            if view.is_over:
                break
            sleep(BAR_SECONDS if terminal else LINES_SECONDS)
    except KeyboardInterrupt:
        # The one way to end it earlier; the campaign goes on.
        if terminal:
            print(file=out)
        return 0
    if terminal:
        print(file=out)
    if view.campaign.status is CampaignStatus.RUNNING:
        print(
            f"All it may send to have an outcome; {view.report.held_back:,} wait for a larger fraction.",
            file=out,
        )
    else:
        print(f"Campaign {campaign_id!r} is {view.campaign.status}.", file=out)
    return 0


# the ledger


def _show_ledger(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    """Tell of a ledger even where others refuse it."""
    place = hook.place
    verdict = None
    try:
        pin = Pin.read(place)
    except AirflowFailException as error:
        pin, verdict = None, error
    if place.is_file and not Path(place.url().database or "").exists():
        refuse_a_file_not_shared(place)
        if pin is None and verdict is None:
            raise ValueError(f"There is no ledger yet: {_where(place)}. The first task that sends makes it.")
        raise ValueError(
            f"There is no ledger on this machine: {_where(place)}. There was one, and it is pinned."
        )
    identity = look(place)
    try:
        refuse_a_file_not_shared(place)
        if pin is not None:
            pin.check(identity, place)
        elif verdict is None:
            refuse_to_begin_anew(place, identity)
    except AirflowFailException as error:
        verdict = error
    if options.json:
        facts = {
            "place": _where(place),
            "ledger_conn_id": place.conn_id,
            "ledger_id": identity.ledger_id,
            "schema": identity.schema,
            "claims": identity.claims,
            "pin": None if pin is None else {"ledger_id": pin.ledger_id, "claims": pin.claims},
            "trouble": None if verdict is None else str(verdict),
            "warnings": list(identity.warnings),
        }
        _print_json(facts, out)
        return 0 if verdict is None else 1
    print(f"Ledger: {_where(place)}", file=out)
    print(f"Id: {identity.ledger_id} (schema {identity.schema})", file=out)
    print(f"Messages begun: {identity.claims:,}", file=out)
    if pin is not None:
        print(f"Pinned: {pin.ledger_id}, with {pin.claims:,} messages begun", file=out)
    elif verdict is None:
        print("Pinned: none yet; the first task that sends pins it", file=out)
    for warning in identity.warnings:
        print(f"Warning: {warning}", file=out)
    if verdict is not None:
        raise verdict
    print("Tasks send with it." if pin is not None else "Tasks may send with it.", file=out)
    return 0


def _adopt(hook: CampaignHook, options: argparse.Namespace, out: IO[str]) -> int:
    place = hook.place
    try:
        pin = Pin.read(place)
        pinned = f"{pin.ledger_id}, with {pin.claims:,} messages begun" if pin else "none"
    except AirflowFailException:
        pinned = "one that can't be read"
    if place.is_file and not Path(place.url().database or "").exists():
        here = "none: an empty one is made"
    else:
        identity = look(place)
        here = f"{identity.ledger_id}, with {identity.claims:,} messages begun"
    _confirm(
        options,
        f"The ledger here ({_where(place)}): {here}.\nPinned until now: {pinned}.\nFrom now on tasks send with the "
        "one here, and take for unwritten whoever it doesn't know: visitors may be written to twice.",
    )
    adopted = hook.adopt()
    print(f"Adopted: {adopted.ledger_id}, with {adopted.claims:,} messages begun.", file=out)
    return 0


def _where(place: LedgerPlace) -> str:
    """Name a ledger's place without anything secret."""
    url = place.url()
    if url.host is None and url.get_backend_name() == "sqlite":
        return f"{url.database}" + (f" (connection {place.conn_id})" if place.conn_id else "")
    port = f":{url.port}" if url.port else ""
    return (
        f"{url.get_backend_name()}://{url.host or ''}{port}/{url.database or ''} (connection {place.conn_id})"
    )


# the sandbox


def _sandbox(options: argparse.Namespace) -> int:
    from airflow_provider_sib.sandbox.__main__ import main

    return main(options.arguments)


# words


def _print_json(value: Json, out: IO[str]) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False), file=out)


def _print_table(rows: Iterable[tuple[str, ...]], out: IO[str]) -> None:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip(), file=out)


def _shown(text: str) -> str:
    """Escape what would move a terminal's cursor, or break a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _reasons(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{_shown(reason)} {count:,}" for reason, count in ordered)


def _many(count: int, one: str, more: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else more or f'{one}s'}"


def _task_of(campaign: Campaign) -> str:
    settings: Any = campaign.settings
    return f"{settings['dag_id']}.{settings['task_id']}" if {"dag_id", "task_id"} <= settings.keys() else "-"


def _moment(at_ms: int | None) -> str:
    if at_ms is None:
        return "-"
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
