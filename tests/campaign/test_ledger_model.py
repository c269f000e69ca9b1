"""Whatever is done to them, in whatever order: the memory ledger and the SQL ledger say the same."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from airflow_provider_sib.campaign.ledger import (
    CampaignStatus,
    Cap,
    Cycle,
    Cycled,
    Delivery,
    EditCycle,
    EditResult,
    Enrolment,
    MemoryLedger,
    Quota,
    Result,
    State,
    Text,
)
from airflow_provider_sib.campaign.sql_ledger import SqlLedger

from .conftest import Clock
from .test_campaign_model import examples
from .test_ledger import opened, use

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_sib.campaign.ledger import Ledger

CAMPAIGNS = st.sampled_from(["once", "each"])
PEOPLE = st.integers(0, 11)
ZONES = [None, "UTC", "Asia/Tokyo"]


def person(number: int) -> Enrolment:
    # Some share a rank, and some a visitor.
    skip = "holdout" if number == 7 else None
    return Enrolment(
        f"k{number}", number // 2 * 10, f"v{number % 9}", "ab"[number % 2], skip, ZONES[number % 3]
    )


class BothLedgers(RuleBasedStateMachine):
    """Does the same to both, and compares every answer and, after each step, all there is to see."""

    @initialize(audience=st.lists(PEOPLE, max_size=12))
    def begin(self, audience: list[int]) -> None:
        self.clock = Clock()
        self.folder = tempfile.TemporaryDirectory()
        self.memory = MemoryLedger(clock=self.clock)
        self.sql = SqlLedger(f"sqlite:///{self.folder.name}/ledger.db", clock=self.clock)
        self.token = 0
        self.sent: list[tuple[str, Delivery]] = []
        self.both(lambda ledger: opened(ledger, "once"))
        self.both(lambda ledger: opened(ledger, "each", each_run=True))
        self.both(lambda ledger: ledger.enrol("once", map(person, audience)))

    def teardown(self) -> None:
        if hasattr(self, "sql"):
            self.sql.close()
            self.folder.cleanup()

    def both(self, work: Callable[[Ledger], Any]) -> Any:
        first, second = work(self.memory), work(self.sql)
        assert first == second
        return first

    @rule(people=st.lists(PEOPLE, max_size=6))
    def newcomers(self, people: list[int]) -> None:
        self.both(lambda ledger: ledger.enrol("each", map(person, people)))

    @rule(
        campaign=CAMPAIGNS,
        wanted=st.integers(0, 4),
        outcomes=st.lists(st.tuples(st.integers(0, 50), st.sampled_from(State)), max_size=5),
        zones=st.none() | st.lists(st.sampled_from([*ZONES, "Mars/Base"]), max_size=3),
        cap=st.none()
        | st.builds(Cap, st.integers(1, 2), st.sampled_from([30, 300]), st.sampled_from(["g", "h"])),
        screened=st.none() | st.integers(0, 8),
    )
    def cycle(
        self,
        campaign: str,
        wanted: int,
        outcomes: list[tuple[int, State]],
        zones: list[str | None] | None,
        cap: Cap | None,
        screened: int | None,
    ) -> None:
        self.token += 1
        mine = [delivery for name, delivery in self.sent if name == campaign]
        results = [
            Result(
                mine[number % len(mine)].rank,
                mine[number % len(mine)].claim,
                outcome,
                message_id=f"m{mine[number % len(mine)].claim}" if outcome is State.SENT else None,
                reason=None if outcome is State.SENT else "why",
            )
            for number, outcome in outcomes
            if mine and outcome is not State.WITHDRAWN and outcome is not State.SENDING
        ]

        def pace(quota: Quota, now_ms: int) -> tuple[Quota, int]:
            return replace(quota, remaining=(quota.remaining or 0) + 1), 8 - quota.in_flight(
                now_ms, besides="w"
            )

        def screen(delivery: Delivery) -> str | None:
            return "screened" if screened is not None and delivery.visitor_id == f"v{screened}" else None

        turn = Cycle(campaign, use(wanted, pace=pace), 60, results, zones, cap, screen, token=self.token)
        cycled: Cycled = self.both(lambda ledger: ledger.cycle(turn))
        self.sent += [(campaign, delivery) for delivery in cycled.claimed]

    @rule(
        campaign=CAMPAIGNS,
        status=st.sampled_from(CampaignStatus),
        seen=st.none() | st.sampled_from(CampaignStatus),
    )
    def status(self, campaign: str, status: CampaignStatus, seen: CampaignStatus | None) -> None:
        self.both(lambda ledger: ledger.set_status(campaign, status, seen=seen))

    @rule(campaign=CAMPAIGNS)
    def finish(self, campaign: str) -> None:
        self.both(lambda ledger: ledger.finish(campaign))

    @rule(campaign=CAMPAIGNS, fraction=st.sampled_from([0.1, 0.5, 1.0]))
    def fraction(self, campaign: str, fraction: float) -> None:
        self.both(lambda ledger: ledger.set_fraction(campaign, fraction))

    @rule(seconds=st.sampled_from([1, 20, 61, -30]))
    def time_passes(self, seconds: int) -> None:
        self.clock.seconds += seconds

    @rule(campaign=CAMPAIGNS, state=st.sampled_from([State.FAILED, State.IN_DOUBT, State.SKIPPED]))
    def retry(self, campaign: str, state: State) -> None:
        self.both(
            lambda ledger: ledger.retry(campaign, state, reasons=None if state is State.FAILED else ["why"])
        )

    @rule(campaign=CAMPAIGNS, number=PEOPLE, state=st.sampled_from([State.SENT, State.FAILED, State.PENDING]))
    def settle(self, campaign: str, number: int, state: State) -> None:
        self.both(lambda ledger: ledger.settle(campaign, f"k{number}", state, message_id="by-hand"))

    @rule(campaign=CAMPAIGNS, limit=st.integers(1, 3))
    def skip(self, campaign: str, limit: int) -> None:
        done = self.both(lambda ledger: ledger.skip_pending(campaign, "expired", limit=limit))
        assert done <= limit

    @rule(visitors=st.lists(st.integers(0, 9).map("v{}".format), max_size=3), list_=st.sampled_from("ues"))
    def lists(self, visitors: list[str], list_: str) -> None:
        match list_:
            case "s":
                self.both(lambda ledger: ledger.suppress(visitors, "bounced"))
            case "u":
                self.both(lambda ledger: ledger.unsuppress(visitors))
            case _:
                self.both(lambda ledger: ledger.exclude("each", visitors))

    @rule(number=st.integers(0, 8))
    def forget(self, number: int) -> None:
        self.both(lambda ledger: ledger.forget_visitor(f"v{number}"))

    @rule(campaign=CAMPAIGNS)
    def revise(self, campaign: str) -> None:
        self.both(lambda ledger: ledger.revise(campaign, Text(f"t{self.token}", [self.token])))

    @rule(
        campaign=CAMPAIGNS,
        state=st.sampled_from([State.SENT, State.WITHDRAWN]),
        all_ids=st.booleans(),
        editor=st.integers(1, 2),
    )
    def edit(self, campaign: str, state: State, all_ids: bool, editor: int) -> None:
        shown = self.both(lambda ledger: ledger.sent(campaign, below_revision=2, limit=2))
        results = [
            EditResult(row.rank, state, row.message_ids if all_ids else row.message_ids[:1], 2)
            for row in shown
        ]
        self.both(lambda ledger: ledger.edit(EditCycle(campaign, editor, use(1, holder="e"), 30, results)))

    @rule(seconds=st.sampled_from([0, 40]))
    def scrub(self, seconds: int) -> None:
        self.both(lambda ledger: ledger.scrub_variables(self.clock.ms - seconds * 1000))

    @precondition(lambda self: self.token % 5 == 4)
    @rule()
    def purge(self) -> None:
        if self.both(lambda ledger: ledger.purge("each")) is None:
            self.both(lambda ledger: opened(ledger, "each", each_run=True))
            self.sent = [(name, delivery) for name, delivery in self.sent if name != "each"]

    @invariant()
    def they_show_the_same(self) -> None:
        if not hasattr(self, "memory"):
            return
        assert self.memory.identity().claims == self.sql.identity().claims
        for campaign in ("once", "each"):
            self.both(lambda ledger, campaign=campaign: ledger.campaign(campaign))
            self.both(lambda ledger, campaign=campaign: list(map(_seen, ledger.deliveries(campaign))))
            self.both(lambda ledger, campaign=campaign: ledger.backlog(campaign))
            self.both(lambda ledger, campaign=campaign: ledger.counts(campaign))
            self.both(lambda ledger, campaign=campaign: ledger.breakdown(campaign))
            self.both(
                lambda ledger, campaign=campaign: list(
                    map(_seen, ledger.deliveries(campaign, states=list(State)))
                )
            )


def _seen(row: Delivery) -> Delivery:
    # Each ledger has a secret of its own for what is forgotten.
    return replace(row, key="#") if row.key.startswith("#") else row


TestBothLedgers = BothLedgers.TestCase
TestBothLedgers.settings = examples(20, 20)
