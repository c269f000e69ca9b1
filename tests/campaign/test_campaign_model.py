"""Whatever happens to a campaign, in whatever order: nobody is written to twice, nobody is forgotten.

Workers that are killed, suspended and woken late, answers that are lost or come late, people who pause, retry, settle
and forget, an editor beside them. What is believed here is kept apart from what the ledger says, and compared.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from airflow_provider_sib.campaign.announcement import Announcement, Enroller
from airflow_provider_sib.campaign.audience import Row
from airflow_provider_sib.campaign.engine import (
    Done,
    Fate,
    Outcome,
    Post,
    Request,
    Send,
    SendEngine,
    Stopped,
    UpdateEngine,
    WithdrawEngine,
    enrol,
    open_campaign,
)
from airflow_provider_sib.campaign.ledger import (
    CampaignStatus,
    Delivery,
    LedgerUnavailable,
    MemoryLedger,
    State,
)
from airflow_provider_sib.campaign.report import report
from airflow_provider_sib.campaign.sql_ledger import SqlLedger

from .test_engine import BINDING, Brevo, Time, rules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_sib.campaign.ledger import Ledger

PEOPLE = st.integers(0, 9)
BLOWS = st.sampled_from(
    [None, None, None, "lost", "down", "http_500", "bad", "refused_connection", "unauthorized"]
)
SURELY_NOT = frozenset({Fate.LIMITED, Fate.UNAUTHORIZED, Fate.UNBEGUN, Fate.UNREACHED})
"""Fates of which a worker may know that no message came of it, and write again by itself."""

HARD = int(os.environ.get("SIB_FUZZ_EXAMPLES", "0"))
"""How many examples `make fuzz` asks for; 0: as many as each change must pass, always the same ones."""


@dataclass(eq=False)
class Worker:
    """A process at work on the campaign, with requests it was handed and has not told the end of."""

    engine: Any
    most: int
    handed: list[Request] = field(default_factory=list)
    begin_by: dict[Request, float] = field(default_factory=dict)
    answered: list[Outcome] = field(default_factory=list)
    is_blind: bool = False
    """Its ledger did not answer: it may have claimed rows that it doesn't know of."""
    unsure: set[int] = field(default_factory=set)
    """Claims of such rows: it alone may take them up, and their lease anew with them."""


class Campaigning(RuleBasedStateMachine):
    """One campaign, several workers, Brevo, and people who meddle."""

    on_doubt = "hold"

    def make_ledger(self) -> Ledger:
        return MemoryLedger(clock=self.time)

    @initialize(
        people=st.lists(PEOPLE, min_size=4, max_size=12),
        each_run=st.booleans(),
        limit=st.sampled_from([12, 100]),
        headers=st.sampled_from([True, True, False]),
    )
    def begin(self, people: list[int], each_run: bool, limit: int, headers: bool) -> None:
        self.time = Time()
        self.ledger = self.make_ledger()
        self.each_run, self.revision = each_run, 1
        self.brevo = Brevo(self.time, limit=limit, headers=headers)
        self.workers: list[Worker] = []
        self.editor: Worker | None = None
        # By row: who it is for, how many requests to send began, how many may begin, and who settled it by hand.
        self.persons: dict[int, int] = {}
        self.begun: Counter[int] = Counter()
        self.licensed: Counter[int] = Counter()
        self.by_hand: set[int] = set()
        self.before: dict[int, Delivery] = {}
        self.taken_up: set[int] = set()
        self.orphans = 0
        self.announcement = Announcement("Hello [[ visitor.name ]]")
        open_campaign(self.ledger, "c", binding=BINDING, announcement=self.announcement, each_run=each_run)
        self.join(people)

    def join(self, people: list[int]) -> None:
        # Some have several orders: an id of a visitor, and a once key for each of the orders.
        enroller = Enroller("c", self.announcement, once_per="order")
        people_rows = [Row(f"v{n % 7}", {"order": f"k{n}", "name": f"n{n}"}, line=n) for n in people]
        enrol(self.ledger, "c", people_rows, enroller)
        if self.each_run or not self.persons:
            for n in people:
                rank, *_ = enroller.draw(f"k{n}")
                if rank not in self.persons:
                    self.persons[rank] = n
                    self.licensed[rank] = 1

    # Workers

    def by_rules(self, most: int) -> Any:
        return rules(
            max_in_flight=most,
            max_failure_share=1.0,
            timeout_seconds=30.0,
            resend_doubts=self.on_doubt == "resend",
        )

    @precondition(lambda self: len(self.workers) < 3)
    @rule(most=st.integers(1, 4), resumed=st.booleans(), retry_failed=st.booleans())
    def start(self, most: int, resumed: bool, retry_failed: bool) -> None:
        engine = SendEngine(self.ledger, "c", self.by_rules(most), clock=self.time, random=lambda: 0.5)
        failed = self.ranks(State.FAILED)
        engine.begin(resumed=resumed, fraction=self.ledger.campaign("c").fraction, retry_failed=retry_failed)
        if retry_failed and not resumed:
            self.license(failed)
        self.workers.append(Worker(engine, most))

    @rule(
        pick=st.integers(0, 2),
        rounds=st.lists(st.lists(BLOWS, max_size=4), min_size=1, max_size=4),
        gone=st.integers(0, 9).map(lambda number: number == 9),
    )
    def turn(self, pick: int, rounds: list[list[str | None]], gone: bool) -> None:
        """A worker tells what it knows and is handed requests, of which some reach Brevo; and again."""
        if not self.workers:
            self.start(4, resumed=True, retry_failed=False)
        worker = self.workers[pick % len(self.workers)]
        for blows in rounds:
            self.work(worker, gone=gone)
            for request, blow in zip(list(worker.handed), blows, strict=False):
                self.carry(worker, request, blow)

    def work(self, worker: Worker, *, gone: bool = False) -> Any:
        self.tell(worker)
        known = self.claims()
        try:
            with self.unsure_commits() if gone else nullcontext():
                step = worker.engine.next()
        except LedgerUnavailable:
            worker.is_blind = True
            worker.unsure |= self.claims() - known
            return None
        self.sees_again(worker)
        if isinstance(step, Send):
            posts = {request.rank for request in step.requests if isinstance(request, Post)}
            assert posts <= self.ranks(State.SENDING), "no intent was recorded before the request"
            worker.handed += step.requests
            worker.begin_by.update(dict.fromkeys(step.requests, step.begin_by))
        assert len(worker.handed) <= worker.most
        return step

    def sees_again(self, worker: Worker) -> None:
        worker.is_blind = False
        self.taken_up |= worker.unsure
        worker.unsure = set()

    def tell(self, worker: Worker) -> None:
        for outcome in worker.answered:
            if isinstance(outcome.request, Post) and outcome.fate in SURELY_NOT and outcome.made:
                self.licensed[outcome.request.rank] += 1
        worker.engine.take(worker.answered)
        worker.answered = []

    @contextmanager
    def unsure_commits(self) -> Iterator[None]:
        """Have the ledger's commits fail with an unknown outcome, where it has commits."""
        yield

    @precondition(lambda self: any(worker.handed for worker in self.all_workers()))
    @rule(pick=st.integers(0, 20), blow=BLOWS)
    def request(self, pick: int, blow: str | None) -> None:
        """One of the requests under way reaches Brevo, and its answer the worker."""
        flying = [(worker, request) for worker in self.all_workers() for request in worker.handed]
        self.carry(*flying[pick % len(flying)], blow)

    def carry(self, worker: Worker, request: Request, blow: str | None) -> None:
        worker.handed.remove(request)
        now = self.time()
        if now > worker.begin_by[request]:
            worker.answered.append(
                Outcome(request=request, fate=Fate.UNBEGUN, began_at=now, ended_at=now, made=False)
            )
            return
        if isinstance(request, Post):
            self.begins(request)
        self.brevo.strike = lambda request: blow
        facts = self.brevo.handle(request)
        worker.answered.append(Outcome(request=request, began_at=now, ended_at=now, **facts))

    def begins(self, request: Post) -> None:
        self.begun[request.rank] += 1
        if self.on_doubt == "hold":
            assert self.begun[request.rank] <= self.licensed[request.rank], "a second request to send began"

    @precondition(lambda self: self.all_workers())
    @rule(pick=st.integers(0, 3), how=st.sampled_from(["killed", "stopped", "stopped", "cancelled"]))
    def end(self, pick: int, how: str) -> None:
        living = self.all_workers()
        worker = living[pick % len(living)]
        if how != "killed":
            self.stop(worker, in_mid_air=how == "cancelled")
        # What it was handed and had not begun is never begun; what it knew and had not recorded, nobody knows.
        self.bury(worker)

    def bury(self, worker: Worker) -> None:
        self.orphans += len(worker.handed) + len(worker.answered) + worker.is_blind
        if worker is self.editor:
            self.editor = None
        else:
            self.workers.remove(worker)

    def stop(self, worker: Worker, *, in_mid_air: bool) -> None:
        """As the courier does when it is told to: what is under way is unknown, and all is recorded."""
        now = self.time()
        for request in worker.handed:
            begins = in_mid_air and now <= worker.begin_by[request]
            if isinstance(request, Post) and begins:
                self.begins(request)
            fate = Fate.UNKNOWN if begins else Fate.UNBEGUN
            worker.answered.append(
                Outcome(request=request, fate=fate, began_at=now, ended_at=now, made=begins, reason="stopped")
            )
        worker.handed = []
        self.tell(worker)
        worker.engine.leave()
        self.sees_again(worker)
        if isinstance(worker.engine, SendEngine):
            assert worker.engine.unrecorded() == []

    def all_workers(self) -> list[Worker]:
        return [*self.workers, self.editor] if self.editor else list(self.workers)

    @rule(seconds=st.sampled_from([1, 20, 40, 95, 1000, 3700]))
    def time_passes(self, seconds: int) -> None:
        self.time.seconds += seconds

    # An editor

    @rule(
        withdraw=st.integers(0, 3).map(lambda number: number == 3),
        new=st.booleans(),
        most=st.integers(1, 3),
        blows=st.lists(BLOWS, max_size=3),
    )
    def edit(self, withdraw: bool, new: bool, most: int, blows: list[str | None]) -> None:
        """Somebody begins to change what was sent, or goes on with it."""
        editor = self.editor = self.editor or Worker(self.edit_engine(most, withdraw=withdraw, new=new), most)
        step = self.work(editor)
        for request, blow in zip(list(editor.handed), blows, strict=False):
            self.carry(editor, request, blow)
        if isinstance(step, Done | Stopped) and not editor.handed:
            if isinstance(step, Done) and isinstance(editor.engine, UpdateEngine):
                self.everybody_sees_the_newest()
            editor.engine.leave()
            self.editor = None

    def edit_engine(self, most: int, *, withdraw: bool, new: bool) -> WithdrawEngine | UpdateEngine:
        kind = WithdrawEngine if withdraw else UpdateEngine
        engine = kind(self.ledger, "c", self.by_rules(most), clock=self.time, random=lambda: 0.5)
        if isinstance(engine, WithdrawEngine):
            engine.begin()
        else:
            self.revision += new
            self.announcement = Announcement(f"Text {self.revision} [[ visitor.name ]]")
            engine.begin(self.announcement)
        return engine

    def everybody_sees_the_newest(self) -> None:
        newest = self.announcement
        for row in self.rows(State.SENT):
            if row.reason is None and row.visitor_id is not None:
                for message_id in row.message_ids:
                    _, *texts = self.brevo.messages[message_id]
                    assert texts[-1] == newest.render(row, row.variant)

    # People

    @rule(
        what=st.sampled_from(
            [
                "newcomers",
                "newcomers",
                "retry",
                "settle",
                "settle",
                "fraction",
                "suppress",
                "unsuppress",
                "forget",
            ]
        ),
        number=PEOPLE,
        more=PEOPLE,
    )
    def meddle(self, what: str, number: int, more: int) -> None:
        match what:
            case "newcomers":
                self.join([number, more])
            case "retry":
                failed = self.ranks(State.FAILED)
                assert self.ledger.retry("c", State.FAILED) == len(failed)
                self.license(failed)
            case "settle" if doubts := self.rows(State.IN_DOUBT):
                self.settle(doubts[number % len(doubts)], (State.SENT, State.FAILED, State.PENDING)[more % 3])
            case "fraction":
                self.ledger.set_fraction("c", (0.3, 0.6, 1.0)[number % 3])
            case "suppress":
                self.ledger.suppress([f"v{number}"], "asked")
            case "unsuppress":
                self.ledger.unsuppress([f"v{number}"])
            case "forget":
                self.ledger.forget_visitor(f"v{number}")

    @rule(status=st.sampled_from(["running", "running", "running", "paused", "aborted"]))
    def status(self, status: str) -> None:
        self.ledger.set_status("c", CampaignStatus(status))

    def settle(self, doubt: Delivery, state: State) -> None:
        assert self.ledger.settle("c", doubt.key, state)
        self.by_hand.add(doubt.rank)
        if state is State.PENDING:
            self.license({doubt.rank})

    def license(self, ranks: set[int]) -> None:
        """Let one request more begin for each: somebody said so."""
        for rank in ranks:
            self.licensed[rank] = max(self.licensed[rank], self.begun[rank] + 1)

    # What is always so

    def rows(self, state: State) -> list[Delivery]:
        return list(self.ledger.deliveries("c", states=[state]))

    def claims(self) -> set[int]:
        return {row.claim for row in self.rows(State.SENDING)}

    def ranks(self, state: State) -> set[int]:
        return {row.rank for row in self.rows(state)}

    @invariant()
    def nobody_is_forgotten_and_nothing_goes_back(self) -> None:
        if not hasattr(self, "ledger"):
            return
        now = {row.rank: row for row in self.ledger.deliveries("c")}
        assert now.keys() == self.persons.keys()
        # A worker that is blind once more may have renewed its own lease, too.
        taken_up = self.taken_up.union(*(worker.unsure for worker in self.workers))
        for rank, row in now.items():
            was = self.before.get(rank)
            if was is not None:
                assert row.state is was.state or row.state in self.edges(was.state), (was, row)
                if row.claim == was.claim and row.claim in taken_up:
                    assert row.lease_until_ms >= was.lease_until_ms
                else:
                    assert row.claim != was.claim or row.lease_until_ms == was.lease_until_ms
        self.before, self.taken_up = now, set()
        counted = Counter(row.state for row in now.values())
        assert self.ledger.counts("c").by_state == counted
        told = report(self.ledger, "c")
        assert {state: getattr(told, state.name.lower()) for state in State if counted[state]} == counted
        assert told.total == len(now)

    def edges(self, state: State) -> set[State]:
        """Say where one step of ours, of several transactions, may have brought a row."""
        never = {State.SENT: {State.WITHDRAWN}, State.WITHDRAWN: set()}
        if self.on_doubt == "resend":
            # The message of an earlier request, known late, after all else was taken back.
            never[State.WITHDRAWN] = {State.SENT}
        return never.get(state, set(State) - {State.WITHDRAWN})

    @invariant()
    def the_ledger_says_what_brevo_has(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.blind = any(worker.is_blind for worker in self.workers)
        living = {request.rank for worker in self.workers for request in worker.handed} | {
            outcome.request.rank for worker in self.workers for outcome in worker.answered
        }
        for rank, row in self.before.items():
            visitor = f"v{self.persons[rank] % 7}"
            if not self.begun[rank]:
                assert row.state is not State.SENT or rank in self.by_hand
            if row.state is State.SENT and rank not in self.by_hand:
                assert row.message_ids
                assert all(self.brevo.messages.get(one, [visitor])[0] == visitor for one in row.message_ids)
            if row.state is State.SENDING and rank not in living:
                # Nobody living knows of it: its lease has to run out.
                assert self.orphans or self.blind
            if row.state is State.IN_DOUBT:
                assert self.begun[rank] or self.orphans or rank in living or self.blind

    @invariant()
    def the_quota_is_kept_to(self) -> None:
        if hasattr(self, "brevo") and self.brevo.headers and not self.orphans:
            assert self.brevo.refused == []

    def teardown(self) -> None:
        if not hasattr(self, "ledger"):
            return
        try:
            if sys.exception() is None:
                self.see_it_through()
        finally:
            self.ledger.close()

    def see_it_through(self) -> None:
        """Brevo answers, and one more worker goes on: everybody gets an outcome."""
        for worker in self.all_workers():
            self.bury(worker)
        self.ledger.set_status("c", CampaignStatus.RUNNING)
        engine = SendEngine(self.ledger, "c", self.by_rules(4), clock=self.time, random=lambda: 0.5)
        engine.begin(resumed=True)
        worker = Worker(engine, 4)
        self.workers = [worker]
        for _ in range(300):
            step = self.work(worker)
            for request in list(worker.handed):
                self.carry(worker, request, None)
            if isinstance(step, Done) and not worker.answered:
                break
            assert not isinstance(step, Stopped)
            self.time.seconds += getattr(step, "seconds", None) or 0.2
        else:
            raise AssertionError("it never came to its end")
        engine.leave()
        self.nobody_is_forgotten_and_nothing_goes_back()
        assert not self.ranks(State.PENDING) | self.ranks(State.SENDING)
        assert self.ledger.campaign("c").status is CampaignStatus.FINISHED


class CampaigningOnSqlite(Campaigning):
    """The same on a file, whose commits may fail with an unknown outcome."""

    def make_ledger(self) -> Ledger:
        self.folder = tempfile.TemporaryDirectory()
        return SqlLedger(f"sqlite:///{self.folder.name}/ledger.db", clock=self.time)

    @contextmanager
    def unsure_commits(self) -> Iterator[None]:
        database = self.ledger._database  # type: ignore[attr-defined]
        commit = database._commit

        def lost(conn: Any) -> None:
            commit(conn)
            raise sa.exc.OperationalError("COMMIT", None, sqlite3.OperationalError("disk I/O error"))

        database._commit = lost
        try:
            yield
        finally:
            database._commit = commit

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "folder"):
            self.folder.cleanup()


class CampaigningWithResends(Campaigning):
    """The same where the author has chosen that doubts are sent again."""

    on_doubt = "resend"


def examples(number: int, steps: int) -> settings:
    return settings(
        max_examples=HARD or number,
        stateful_step_count=steps,
        derandomize=not HARD,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


TestCampaigning = Campaigning.TestCase
TestCampaigning.settings = examples(300, 40)
TestCampaigningWithResends = CampaigningWithResends.TestCase
TestCampaigningWithResends.settings = examples(100, 40)
TestCampaigningOnSqlite = CampaigningOnSqlite.TestCase
TestCampaigningOnSqlite.settings = examples(30, 40)
