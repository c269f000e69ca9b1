"""What the engine decides, in simulated hours against a model of Brevo, and killed at every step, for every ledger."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_sib.campaign import FrequencyCap, SendWindow
from airflow_provider_sib.campaign.announcement import Announcement, Enroller
from airflow_provider_sib.campaign.audience import BadRow, Row
from airflow_provider_sib.campaign.engine import (
    CampaignRefused,
    Delete,
    Done,
    Engine,
    Fate,
    Look,
    Outcome,
    Post,
    Put,
    Rules,
    Send,
    SendEngine,
    Stopped,
    TooManyBadRows,
    UpdateEngine,
    Wait,
    WithdrawEngine,
    enrol,
    open_campaign,
    text_hash,
)
from airflow_provider_sib.campaign.ledger import (
    CampaignStatus,
    Ledger,
    LedgerUnavailable,
    MemoryLedger,
    State,
    UnknownCampaign,
)
from airflow_provider_sib.campaign.pacing import Rate
from airflow_provider_sib.campaign.report import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from airflow_provider_sib.campaign.engine import Request

    from .conftest import House

HELLO = Announcement("Hello [[ visitor.name ]]")
BINDING = {"host": "https://api.brevo.com/v3", "connection": "sib"}
HOUR = 3600.0


class Time:
    """A clock that the simulation turns."""

    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0

    def __call__(self) -> float:
        return self.seconds


class Killed(BaseException):
    """SIGKILL, as far as a simulation can have it."""


@dataclass
class Brevo:
    """A model of Brevo's quota and messages: a window opens at its first request and lasts an hour."""

    time: Time | Any
    limit: int = 100
    window_seconds: float = HOUR
    headers: bool = True
    round_reset: Callable[[float], int] = math.ceil
    latency_seconds: float = 0.2
    strike: Callable[[Request], str | None] = lambda request: None
    on_post: Callable[[str], None] = lambda when: None
    messages: dict[str, list[str]] = field(default_factory=dict)
    posts: Counter[str] = field(default_factory=Counter)
    counted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    windows: int = 0
    ends_at: float = -math.inf
    used: int = 0

    def count(self) -> bool:
        """Count a request, of a campaign or of somebody else; tell whether it was within the quota."""
        now = self.time()
        if now >= self.ends_at:
            self.ends_at, self.used = now + self.window_seconds, 0
            self.windows += 1
        if self.used >= self.limit:
            self.refused.append(now)
            return False
        self.used += 1
        self.counted.append(now)
        return True

    def handle(self, request: Request) -> dict[str, Any]:
        """Carry a request out; give what its outcome tells."""
        blow = self.strike(request)
        if blow == "refused_connection":
            return {"fate": Fate.UNREACHED, "reason": "unreached"}
        if blow == "unauthorized":
            return {"fate": Fate.UNAUTHORIZED, "reason": "unauthorized", "error": PermissionError("401")}
        if blow == "down":
            return {"fate": Fate.UNKNOWN, "reason": "no_answer"}
        within = self.count()
        told: dict[str, Any] = {}
        if self.headers:
            told = {
                "limit": self.limit,
                "remaining": self.limit - self.used,
                "reset_in_seconds": float(self.round_reset(self.ends_at - self.time())),
            }
        if not within:
            return {"fate": Fate.LIMITED, "reason": "http_429", **told}
        if blow == "http_500":
            return {"fate": Fate.UNKNOWN, "reason": "http_500", **told}
        if blow == "bad":
            return {"fate": Fate.REFUSED, "reason": "invalid_parameter", **told}
        done: dict[str, Any] = {"fate": Fate.DONE}
        match request:
            case Post(visitor_id=visitor, text=text):
                self.on_post("before")
                self.posts[visitor] += 1
                message = f"m{self.posts.total()}"
                self.messages[message] = [visitor, text]
                done["message_id"] = message
                self.on_post("after")
            case Put(message_id=message, text=text):
                if message in self.messages:
                    self.messages[message].append(text)
                else:
                    done = {"fate": Fate.GONE, "reason": "document_not_found"}
            case Delete(message_id=message):
                if self.messages.pop(message, None) is None:
                    done = {"fate": Fate.GONE, "reason": "document_not_found"}
            case Look(message_id=message):
                if message not in self.messages:
                    done = {"fate": Fate.GONE, "reason": "document_not_found"}
        if blow == "lost":
            return {"fate": Fate.UNKNOWN, "reason": "no_answer"}
        return {**done, **told}


class Simulation:
    """Drives engines as the courier does, several at once, in simulated time."""

    def __init__(self, time: Time | Any, brevo: Brevo) -> None:
        self.time, self.brevo = time, brevo
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = count()
        self.waits: list[Wait] = []
        self.most_flying = 0

    def at(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.time() + seconds, next(self.order), event))

    def run(self, *makers: Callable[[bool], Engine], hours: float = 10_000.0) -> list[Any]:
        """Drive an engine of each maker (told whether it goes on) to its end; give their last steps."""
        workers = [Worker(self, maker) for maker in makers]
        until = self.time() + hours * HOUR
        for worker in workers:
            self.at(0.0, worker.turn)
        while self.events and any(worker.end is None for worker in workers):
            at, _, event = heapq.heappop(self.events)
            if at > until:
                break
            self.time.seconds = max(self.time.seconds, at)
            event()
        return [worker.end for worker in workers]


class Worker:
    def __init__(self, simulation: Simulation, maker: Callable[[bool], Engine]) -> None:
        self.simulation, self.maker = simulation, maker
        self.engine = maker(False)
        self.flying = 0
        self.planned = 0
        self.end: Any = None

    def turn(self) -> None:
        if self.end is not None:
            return
        self.planned += 1
        plan = self.planned
        step = self.engine.next()
        match step:
            case Send(requests):
                for request in requests:
                    self.begin(request)
                self.simulation.most_flying = max(self.simulation.most_flying, self.flying)
            case Wait(seconds=None) if self.flying:
                pass
            case Wait(seconds=seconds):
                self.simulation.waits.append(step)
                seconds = 60.0 if seconds is None else seconds
                if seconds > 60 and not self.flying:
                    self.engine.leave(until_ms=step.until_ms)
                    self.simulation.at(seconds, self.resume)
                else:
                    self.simulation.at(seconds, lambda: self.turn() if self.planned == plan else None)
            case _ if not self.flying:
                self.engine.leave()
                self.end = step

    def resume(self) -> None:
        self.engine = self.maker(True)
        self.turn()

    def begin(self, request: Request) -> None:
        brevo, time = self.simulation.brevo, self.simulation.time
        began_at = time()
        self.flying += 1
        half = brevo.latency_seconds / 2

        def arrive() -> None:
            facts = brevo.handle(request)
            self.simulation.at(half, lambda: land(facts))

        def land(facts: dict[str, Any]) -> None:
            self.flying -= 1
            self.engine.take([Outcome(request=request, began_at=began_at, ended_at=time(), **facts)])
            self.turn()

        self.simulation.at(half, arrive)


def rows(*names: str | int, **fields: Any) -> list[Row | BadRow]:
    return [Row(f"v{name}", {"name": f"n{name}"}, line=i, **fields) for i, name in enumerate(names, 2)]


def campaign(
    ledger: Ledger,
    audience: Iterable[Row | BadRow],
    campaign_id: str = "c",
    announcement: Announcement = HELLO,
    **options: Any,
) -> None:
    open_campaign(ledger, campaign_id, binding=BINDING, announcement=announcement)
    enrol(ledger, campaign_id, audience, Enroller(campaign_id, announcement), **options)


def rules(**given: Any) -> Rules:
    return Rules(**{"account": "acme", "rate": Rate(reserve=10, jitter_seconds=0.5), **given})


def sender(
    ledger: Ledger, time: Any, campaign_id: str = "c", begin: dict[str, Any] | None = None, **given: Any
) -> Callable[[bool], SendEngine]:
    last: list[SendEngine] = []

    def make(resumed: bool) -> SendEngine:
        engine = SendEngine(ledger, campaign_id, rules(**given), clock=time, random=lambda: 0.5)
        engine.begin(resumed=resumed, **(begin or {}))
        if resumed and last:
            engine.go_on(last[0].tally())
        last[:] = [engine]
        return engine

    return make


def states(ledger: Ledger, campaign_id: str = "c") -> dict[str, State]:
    return {row.key: row.state for row in ledger.deliveries(campaign_id)}


def reasons(ledger: Ledger, campaign_id: str = "c") -> dict[str, str | None]:
    return {row.key: row.reason for row in ledger.deliveries(campaign_id)}


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def memory(time: Time) -> MemoryLedger:
    return MemoryLedger(clock=time)


@pytest.fixture
def brevo(time: Time) -> Brevo:
    return Brevo(time)


@pytest.fixture
def simulation(time: Time, brevo: Brevo) -> Simulation:
    return Simulation(time, brevo)


# Killed anywhere


class Mortal:
    """A ledger whose caller dies right before or right after its n-th call."""

    def __init__(self, ledger: Ledger, dies_at: int, when: str) -> None:
        self.ledger, self.dies_at, self.when, self.calls = ledger, dies_at, when, 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.ledger, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.dies_at and self.when == "before":
                raise Killed
            answer = method(*args, **kwargs)
            if self.calls == self.dies_at and self.when == "after":
                raise Killed
            return answer

        return call


def kill_points(run: Callable[[int, str], bool]) -> int:
    """Run with a death at each step before and after, until no step is left; give the number of deaths."""
    deaths = 0
    for when in ("before", "after"):
        for step in count(1):
            if not run(step, when):
                break
            deaths += 1
    return deaths


def test_nobody_is_written_to_twice_nor_forgotten_when_killed_at_any_step(house: House) -> None:
    ledger, time = house.open(), house.clock
    people = rows(*range(5))
    most = 3

    def run(step: int, when: str, *, at_brevo: bool) -> bool:
        campaign_id = f"{step} {when} {at_brevo}"
        brevo = Brevo(time, limit=4)
        made = count(1)

        def blow(moment: str) -> None:
            if at_brevo and moment == when and next(made) == step:
                raise Killed

        brevo.on_post = blow
        given: dict[str, Any] = {"account": campaign_id, "max_in_flight": most, "rate": Rate(reserve=1)}

        def life(ledger: Ledger) -> Any:
            campaign(ledger, people, campaign_id)
            return Simulation(time, brevo).run(sender(ledger, time, campaign_id, **given))[0]

        died = False
        try:
            life(ledger if at_brevo else Mortal(ledger, step, when))  # type: ignore[arg-type]
        except Killed:
            died = True
        brevo.on_post = lambda moment: None
        assert life(ledger) == Done()
        found = states(ledger, campaign_id)
        doubts = {key for key, state in found.items() if state is State.IN_DOUBT}
        assert len(found) == 5
        assert set(found.values()) <= {State.SENT, State.IN_DOUBT}
        assert len(doubts) <= (most if died else 0)
        assert set(brevo.posts.values()) <= {1}
        assert {key for key, state in found.items() if state is State.SENT} <= brevo.posts.keys()
        assert found.keys() - brevo.posts.keys() <= doubts
        return died

    assert kill_points(lambda step, when: run(step, when, at_brevo=False)) > 30
    assert kill_points(lambda step, when: run(step, when, at_brevo=True)) == 10


@pytest.mark.parametrize("kind", ["update", "withdraw"])
def test_an_edit_killed_at_any_step_is_taken_up_again(house: House, kind: str) -> None:
    ledger, time = house.open(), house.clock
    new = Announcement("Bye [[ visitor.name ]]")

    def run(step: int, when: str) -> bool:
        campaign_id = f"{kind} {step} {when}"
        brevo = Brevo(time)
        campaign(ledger, rows(*range(4)), campaign_id)
        Simulation(time, brevo).run(sender(ledger, time, campaign_id, account=campaign_id))

        def life(ledger: Ledger) -> Any:
            def make(resumed: bool) -> Engine:
                given = rules(account=campaign_id, max_in_flight=2)
                if kind == "update":
                    update = UpdateEngine(ledger, campaign_id, given, clock=time, random=lambda: 0.5)
                    update.begin(None if resumed else new)
                    return update
                withdrawal = WithdrawEngine(ledger, campaign_id, given, clock=time, random=lambda: 0.5)
                withdrawal.begin()
                return withdrawal

            return Simulation(time, brevo).run(make)[0]

        died = False
        try:
            life(Mortal(ledger, step, when))  # type: ignore[arg-type]
        except Killed:
            died = True
        assert life(ledger) == Done()
        if kind == "update":
            assert {texts[-1] for texts in brevo.messages.values()} == {f"Bye n{i}" for i in range(4)}
            assert {row.revision for row in ledger.deliveries(campaign_id)} == {2}
        else:
            assert brevo.messages == {}
            assert set(states(ledger, campaign_id).values()) == {State.WITHDRAWN}
        return died

    assert kill_points(run) > 10


# Hours


@pytest.mark.parametrize("round_reset", [math.ceil, math.floor])
@pytest.mark.parametrize("workers", [1, 4])
def test_ten_hours_use_the_allowance_less_the_reserve_and_are_never_refused(
    time: Time,
    memory: MemoryLedger,
    brevo: Brevo,
    simulation: Simulation,
    workers: int,
    round_reset: Callable[[float], int],
) -> None:
    brevo.round_reset = round_reset
    campaign(memory, rows(*range(900)))
    ends = simulation.run(*[sender(memory, time)] * workers)
    assert ends == [Done()] * workers
    assert brevo.posts.total() == 900
    assert brevo.refused == []
    assert brevo.windows == 10
    assert len(brevo.counted) / (90 * brevo.windows) >= 0.99
    assert simulation.most_flying <= 8


@pytest.mark.parametrize("latency", [0.05, 5.0, 25.0])
def test_windows_are_kept_to_at_any_latency(
    time: Time, memory: MemoryLedger, brevo: Brevo, simulation: Simulation, latency: float
) -> None:
    brevo.latency_seconds = latency
    campaign(memory, rows(*range(450)))
    assert simulation.run(*[sender(memory, time)] * 3) == [Done()] * 3
    assert brevo.refused == []
    assert len(brevo.counted) / (90 * brevo.windows) >= 0.99


def test_two_campaigns_and_single_calls_keep_to_one_quota_together(
    time: Time, memory: MemoryLedger, brevo: Brevo, simulation: Simulation
) -> None:
    campaign(memory, rows(*range(400)), "one")
    campaign(memory, rows(*range(400, 600)), "two")

    def single() -> None:
        # One call of somebody else every three minutes, who keeps no account; the reserve is for them.
        brevo.count()
        simulation.at(400.0, single)

    simulation.at(10.0, single)
    ends = simulation.run(sender(memory, time, "one"), sender(memory, time, "two"))
    assert ends == [Done()] * 2
    assert brevo.posts.total() == 600
    assert brevo.refused == []
    assert len(brevo.counted) / (brevo.limit * brevo.windows) >= 0.9


def test_without_headers_one_request_is_in_flight_and_one_an_hour_refused(
    time: Time, memory: MemoryLedger, brevo: Brevo, simulation: Simulation
) -> None:
    brevo.headers = False
    campaign(memory, rows(*range(500)))
    assert simulation.run(*[sender(memory, time)] * 2) == [Done()] * 2
    assert simulation.most_flying == 1
    assert brevo.posts.total() == 500
    assert brevo.windows == 5
    for before, after in zip(brevo.refused, brevo.refused[1:], strict=False):
        assert after - before >= HOUR


def test_without_headers_the_connection_s_limit_is_counted_and_nothing_refused(
    time: Time, memory: MemoryLedger, brevo: Brevo, simulation: Simulation
) -> None:
    brevo.headers = False
    rate = Rate(reserve=10, requests_per_hour=100, jitter_seconds=0.5)
    campaign(memory, rows(*range(500)))
    assert simulation.run(*[sender(memory, time, rate=rate)] * 2) == [Done()] * 2
    assert brevo.refused == []
    assert brevo.windows == 6
    assert simulation.most_flying > 1


def test_a_refusal_shuts_the_window_for_all_and_nobody_is_lost(
    time: Time, memory: MemoryLedger, brevo: Brevo, simulation: Simulation
) -> None:
    brevo.ends_at, brevo.used, brevo.windows = time() + 1800, 100, 1
    campaign(memory, rows(*range(50)))
    assert simulation.run(*[sender(memory, time)] * 4) == [Done()] * 4
    assert len(brevo.refused) == 1
    assert set(states(memory).values()) == {State.SENT}


def test_a_reserve_as_large_as_the_limit_leaves_one_request_an_hour(
    time: Time, memory: MemoryLedger, brevo: Brevo, simulation: Simulation
) -> None:
    brevo.limit = 5
    campaign(memory, rows(*range(3)))
    assert simulation.run(sender(memory, time)) == [Done()]
    assert brevo.windows == 3


def test_a_long_wait_tells_until_when_and_why(
    time: Time, memory: MemoryLedger, brevo: Brevo, simulation: Simulation
) -> None:
    campaign(memory, rows(*range(100)))
    simulation.run(sender(memory, time), hours=0.5)
    [wait] = [wait for wait in simulation.waits if (wait.seconds or 0) > 60]
    assert wait.reason == "quota"
    assert wait.until_ms is not None
    assert 0 < wait.until_ms - brevo.ends_at * 1000 <= 3000
    assert memory.campaign("c").next_wake_ms == wait.until_ms


# Trouble


def test_exactly_those_whose_answer_is_lost_are_in_doubt(
    time: Time, memory: MemoryLedger, brevo: Brevo, simulation: Simulation
) -> None:
    lost = {"v3", "v17", "v28"}
    brevo.strike = lambda request: (
        "lost" if isinstance(request, Post) and request.visitor_id in lost else None
    )
    campaign(memory, rows(*range(40)))
    assert simulation.run(sender(memory, time)) == [Done()]
    assert {key for key, state in states(memory).items() if state is State.IN_DOUBT} == lost
    assert set(brevo.posts.values()) == {1}
    assert brevo.posts.total() == 40


@pytest.mark.parametrize("blow", ["down", "http_500"])
@pytest.mark.parametrize("most", [1, 8, 32])
def test_an_outage_of_ten_minutes_costs_at_most_what_was_in_flight_and_three(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo, blow: str, most: int
) -> None:
    brevo.limit, brevo.latency_seconds = 10_000, 1.0
    begins = time() + 7.3
    brevo.strike = lambda request: blow if begins <= time() < begins + 600 else None
    campaign(memory, rows(*range(1000)))
    assert simulation.run(sender(memory, time, max_in_flight=most)) == [Done()]
    found = Counter(states(memory).values())
    assert found[State.SENT] + found[State.IN_DOUBT] == 1000
    assert found[State.IN_DOUBT] <= most + 3
    assert any(wait.reason == "outage" for wait in simulation.waits)


def test_an_outage_that_spares_the_look_costs_no_more(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    begins = time() + 10
    brevo.limit = 10_000
    brevo.strike = lambda request: (
        "http_500" if isinstance(request, Post) and begins <= time() < begins + 600 else None
    )
    campaign(memory, rows(*range(500)))
    assert simulation.run(sender(memory, time)) == [Done()]
    assert Counter(states(memory).values())[State.IN_DOUBT] <= 8 + 3


def test_an_outage_that_hits_the_last_ones_keeps_nobody_waiting(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    brevo.strike = lambda request: "down" if brevo.posts.total() >= 15 else None
    campaign(memory, rows(*range(20)))
    assert simulation.run(sender(memory, time, max_failure_share=0.5)) == [Done()]
    assert Counter(states(memory).values()) == {State.SENT: 15, State.IN_DOUBT: 5}
    assert simulation.waits == [wait for wait in simulation.waits if wait.reason != "outage"]


def test_refused_connections_are_no_doubts_and_nobody_is_lost(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    begins = time() + 1
    brevo.strike = lambda request: "refused_connection" if begins <= time() < begins + 600 else None
    campaign(memory, rows(*range(80)))
    assert simulation.run(sender(memory, time)) == [Done()]
    assert set(states(memory).values()) == {State.SENT}
    assert brevo.posts.total() == 80


def test_after_a_doubt_one_request_is_in_flight_until_one_is_answered(
    time: Time, memory: MemoryLedger
) -> None:
    campaign(memory, rows(*range(40)))
    engine = sender(memory, time)(False)

    begun: dict[Request, float] = {}

    def answer(request: Request, fate: Fate, left: int) -> None:
        time.seconds += 0.1
        engine.take(
            [
                Outcome(
                    request=request,
                    fate=fate,
                    began_at=begun[request],
                    ended_at=time(),
                    message_id="m" if fate is Fate.DONE else None,
                    limit=100,
                    remaining=left,
                    reset_in_seconds=3600.0,
                )
            ]
        )

    def sent() -> list[Request]:
        step = engine.next()
        requests = step.requests if isinstance(step, Send) else ()
        begun.update(dict.fromkeys(requests, time()))
        return list(requests)

    [probe] = sent()
    answer(probe, Fate.DONE, 99)
    flying = sent()
    assert len(flying) == 8
    answer(flying[0], Fate.UNKNOWN, 98)
    assert sent() == []
    for request in flying[1:]:
        answer(request, Fate.DONE, 90)
    # They began before the doubt, so they tell nothing about after it.
    [alone] = sent()
    assert sent() == []
    answer(alone, Fate.DONE, 89)
    assert len(sent()) == 8


def test_the_state_of_an_outage_survives_the_process(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    brevo.strike = lambda request: "down"
    campaign(memory, rows(*range(50)))
    for _ in range(5):
        # Each time a new process begins anew, as a retried task does.
        simulation.run(sender(memory, time), hours=1 / 60)
        simulation.events.clear()
        time.seconds += 30
    assert Counter(states(memory).values())[State.IN_DOUBT] <= 3


def test_too_many_failures_stop_the_campaign_and_keep_the_rest(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    brevo.strike = lambda request: "bad" if isinstance(request, Post) else None
    campaign(memory, rows(*range(80)))
    assert simulation.run(sender(memory, time)) == [Stopped("max_failure_share")]
    found = Counter(states(memory).values())
    assert 20 <= found[State.FAILED] <= 28
    assert found[State.PENDING] == 80 - found[State.FAILED]
    assert set(reasons(memory).values()) == {None, "invalid_parameter"}
    # A new run counts anew, or nobody could go on after mending what was wrong.
    brevo.strike = lambda request: None
    assert simulation.run(sender(memory, time, begin={"retry_failed": True})) == [Done()]
    assert set(states(memory).values()) == {State.SENT}


@pytest.mark.parametrize("limit", [100, 12], ids=["in one go", "deferred in between"])
def test_the_doubts_that_a_killed_sender_left_do_not_stop_the_next_one(house: House, limit: int) -> None:
    ledger, time = house.open(), house.clock
    brevo = Brevo(time, limit=limit)
    campaign(ledger, rows(*range(30)))
    rate = Rate(reserve=0, jitter_seconds=0.5)
    killed = sender(ledger, time, rate=rate)(False)
    step = killed.next()
    assert isinstance(step, Send)
    [probe] = step.requests
    killed.take([Outcome(request=probe, began_at=time(), ended_at=time(), **brevo.handle(probe))])
    step = killed.next()
    assert isinstance(step, Send)
    assert len(step.requests) == 8
    time.seconds += killed.rules.lease_seconds + 1
    # They say nothing about how Brevo fares.
    lives: list[SendEngine] = []
    simulation, make = Simulation(time, brevo), sender(ledger, time, rate=rate)
    assert simulation.run(lambda resumed: lives.append(make(resumed)) or lives[-1]) == [Done()]
    assert Counter(states(ledger).values()) == {State.SENT: 22, State.IN_DOUBT: 8}
    assert lives[-1].tally()["in_doubt"] == 8
    assert (len(lives) > 1) == (limit == 12)


def test_a_run_beside_it_changes_nothing_of_what_a_run_knows_of_itself(
    time: Time, memory: MemoryLedger, brevo: Brevo
) -> None:
    campaign(memory, rows(*range(60)))
    rate = Rate(reserve=0, jitter_seconds=0.5)
    first = SendEngine(memory, "c", rules(rate=rate), clock=time, random=lambda: 0.5)
    first.begin(resumed=False)
    brevo.strike = lambda request: "bad" if isinstance(request, Post) else None
    step = first.next()
    assert isinstance(step, Send)
    first.take(
        [Outcome(request=one, began_at=time(), ended_at=time(), **brevo.handle(one)) for one in step.requests]
    )
    first.leave()
    failed = first.tally()["failed"]
    assert failed > 0
    # The next night's run comes while the first one waits; and somebody looks after the failures by hand.
    beside = SendEngine(memory, "c", rules(rate=rate), clock=time, random=lambda: 0.5)
    beside.begin(resumed=False)
    beside.leave()
    assert beside.tally()["failed"] == 0
    while memory.retry("c", State.FAILED):
        pass
    resumed = SendEngine(memory, "c", rules(rate=rate), clock=time, random=lambda: 0.5)
    resumed.begin(resumed=True)
    resumed.go_on(first.tally())
    tally = resumed.tally()
    assert (tally["failed"], tally["sent"], tally["calls"]) == (failed, 0, failed)


def test_one_bad_recipient_fails_alone(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    brevo.strike = lambda request: "bad" if isinstance(request, Post) and request.visitor_id == "v4" else None
    campaign(memory, rows(*range(20)))
    assert simulation.run(sender(memory, time)) == [Done()]
    assert Counter(states(memory).values()) == {State.SENT: 19, State.FAILED: 1}


def test_a_refused_connection_key_stops_the_campaign_and_nobody_is_lost(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    campaign(memory, rows(*range(30)))
    brevo.strike = lambda request: "unauthorized" if brevo.posts.total() >= 9 else None
    [end] = simulation.run(sender(memory, time))
    assert isinstance(end, Stopped)
    assert end.reason == "unauthorized"
    assert isinstance(end.error, PermissionError)
    found = Counter(states(memory).values())
    assert found.keys() == {State.SENT, State.PENDING}
    brevo.strike = lambda request: None
    assert simulation.run(sender(memory, time)) == [Done()]
    assert set(brevo.posts.values()) == {1}


def test_doubts_are_sent_again_only_where_the_author_says_so(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    struck: set[str] = set()

    def strike(request: Request) -> str | None:
        if isinstance(request, Post) and request.visitor_id == "v2" and request.visitor_id not in struck:
            struck.add(request.visitor_id)
            return "lost"
        return None

    brevo.strike = strike
    campaign(memory, rows(*range(10)))
    assert simulation.run(sender(memory, time)) == [Done()]
    assert simulation.run(sender(memory, time)) == [Done()]
    assert brevo.posts["v2"] == 1
    assert simulation.run(sender(memory, time, resend_doubts=True)) == [Done()]
    assert brevo.posts["v2"] == 2
    assert set(states(memory).values()) == {State.SENT}


@pytest.mark.parametrize("fate", [Fate.UNBEGUN, Fate.DONE])
def test_a_worker_suspended_beyond_its_lease_comes_back_after_all_was_done(house: House, fate: Fate) -> None:
    ledger, time = house.open(), house.clock
    brevo = Brevo(time)
    campaign(ledger, rows(*range(12)))
    first = sender(ledger, time, rate=Rate(requests_per_hour=100), max_in_flight=4)
    suspended = first(False)
    step = suspended.next()
    assert isinstance(step, Send)
    [probe] = step.requests
    suspended.take([Outcome(request=probe, began_at=time(), ended_at=time(), **brevo.handle(probe))])
    step = suspended.next()
    assert isinstance(step, Send)
    assert len(step.requests) == 4
    assert Simulation(time, brevo).run(sender(ledger, time)) == [Done()]
    found = Counter(states(ledger).values())
    assert found == {State.SENT: 8, State.IN_DOUBT: 4}
    assert ledger.campaign("c").status is CampaignStatus.FINISHED
    # It wakes: what it had begun has an answer, what it had not goes back, and is sent after all.
    told = [
        {"fate": fate, "made": False} if fate is Fate.UNBEGUN else brevo.handle(request)
        for request in step.requests
    ]
    suspended.take(
        Outcome(request=request, began_at=time(), ended_at=time(), **facts)
        for request, facts in zip(step.requests, told, strict=True)
    )
    assert Simulation(time, brevo).run(lambda resumed: suspended) == [Done()]
    assert set(states(ledger).values()) == {State.SENT}
    assert set(brevo.posts.values()) == {1}
    assert brevo.posts.total() == 12
    assert ledger.campaign("c").status is CampaignStatus.FINISHED


def test_a_ledger_that_does_not_answer_for_a_while_loses_nothing(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    class Flaky:
        calls = 0

        def __getattr__(self, name: str) -> Any:
            method = getattr(memory, name)

            def call(*args: Any, **kwargs: Any) -> Any:
                if name != "cycle":
                    return method(*args, **kwargs)
                self.calls += 1
                if self.calls % 3 == 1:
                    raise LedgerUnavailable("not reached")
                answer = method(*args, **kwargs)
                if self.calls % 3 == 2:
                    raise LedgerUnavailable("committed, but nobody knows")
                return answer

            return call

    campaign(memory, rows(*range(30)))
    engine = sender(Flaky(), time)(False)  # type: ignore[arg-type]

    class Patient:
        def next(self) -> Any:
            while True:
                try:
                    return engine.next()
                except LedgerUnavailable:
                    time.seconds += 1

        def leave(self, *, until_ms: int | None = None) -> None:
            while True:
                try:
                    return engine.leave(until_ms=until_ms)
                except LedgerUnavailable:
                    time.seconds += 1

        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

    assert simulation.run(lambda resumed: Patient()) == [Done()]
    assert set(states(memory).values()) == {State.SENT}
    assert set(brevo.posts.values()) == {1}
    assert engine.unrecorded() == []


# Rules


def test_windows_are_kept_on_each_visitor_s_own_clock(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    time.seconds = datetime(2026, 3, 28, 20, 0, tzinfo=UTC).timestamp()
    when: dict[str, datetime] = {}

    def strike(request: Request) -> None:
        if isinstance(request, Post):
            when[request.visitor_id] = datetime.fromtimestamp(time(), UTC)

    brevo.strike = strike
    window = SendWindow("09:00", "10:00", default_timezone=None)
    audience = [
        *rows("berlin", timezone="Europe/Berlin"),
        *rows("tokyo", timezone="Asia/Tokyo"),
        *rows("nowhere", timezone="Mars/Base"),
        *rows("unknown"),
    ]
    campaign(memory, audience)
    assert simulation.run(sender(memory, time, send_window=window)) == [Done()]
    # Berlin put its clocks forward that night.
    assert when["vberlin"] - datetime(2026, 3, 29, 7, 0, tzinfo=UTC) < timedelta(minutes=1)
    assert when["vtokyo"] - datetime(2026, 3, 29, 0, 0, tzinfo=UTC) < timedelta(minutes=1)
    assert {reasons(memory)["vnowhere"], reasons(memory)["vunknown"]} == {"timezone_unknown"}
    assert {wait.reason for wait in simulation.waits if (wait.seconds or 0) > 60} == {"send_window"}


def test_the_window_that_closes_first_is_served_first(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    time.seconds = datetime(2026, 1, 10, 8, 30, tzinfo=UTC).timestamp()
    served: list[str] = []

    def strike(request: Request) -> None:
        if isinstance(request, Post):
            served.append(request.visitor_id[1:2])

    brevo.strike = strike
    window = SendWindow("09:00", "18:00", default_timezone=None)
    audience = [
        *rows(*(f"l{i}" for i in range(30)), timezone="Europe/London"),
        *rows(*(f"t{i}" for i in range(30)), timezone="Asia/Tokyo"),
    ]
    campaign(memory, audience)
    assert simulation.run(sender(memory, time, send_window=window)) == [Done()]
    assert served == ["t"] * 30 + ["l"] * 30


def test_nothing_is_sent_from_not_after_on(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    campaign(memory, rows(*range(150)))
    end_ms = round((time() + 1800) * 1000)
    assert simulation.run(sender(memory, time, not_after_ms=end_ms)) == [Done()]
    found = Counter(states(memory).values())
    assert found == {State.SENT: 90, State.SKIPPED: 60}
    assert set(reasons(memory).values()) == {None, "not_after"}
    assert memory.campaign("c").status is CampaignStatus.FINISHED


def test_rules_skip_by_name_and_are_read_when_sending(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    campaign(memory, rows("ok", "suppressed", "excluded", "capped", "other"), "c")
    campaign(memory, rows("capped"), "before")
    cap = FrequencyCap(1, timedelta(days=1))
    simulation.run(sender(memory, time, "before", frequency_cap=cap))
    memory.suppress(["vsuppressed"], "asked")
    memory.exclude("c", ["vexcluded"])
    allowed = ("vo[k]", "vs*", "vexcluded", "vcapped")
    assert simulation.run(sender(memory, time, frequency_cap=cap, allowed_visitors=allowed)) == [Done()]
    assert reasons(memory) == {
        "vok": None,
        "vsuppressed": "suppressed",
        "vexcluded": "excluded",
        "vcapped": "frequency_cap",
        "vother": "allowed_visitors",
    }


def test_a_canary_is_among_the_rest_and_leaves_the_campaign_running(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    campaign(memory, rows(*range(60)))
    begin = {"fraction": 0.05}
    assert simulation.run(sender(memory, time, begin=begin)) == [Done(held_back=True)]
    assert brevo.posts.total() == 3
    assert memory.campaign("c").status is CampaignStatus.RUNNING
    assert simulation.run(sender(memory, time)) == [Done()]
    assert brevo.posts.total() == 60
    assert set(brevo.posts.values()) == {1}
    assert memory.campaign("c").status is CampaignStatus.FINISHED


def test_a_canary_that_wakes_does_not_narrow_what_somebody_widened_meanwhile(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    campaign(memory, rows(*range(200)))
    canary = sender(memory, time, begin={"fraction": 0.05})
    everybody = sender(memory, time, begin={"fraction": 1.0})
    full = everybody(False)
    canary(True)  # it wakes after the other began
    assert simulation.run(lambda resumed: full if not resumed else everybody(True)) == [Done()]
    assert set(states(memory).values()) == {State.SENT}


def test_a_canary_that_begins_later_keeps_nobody_from_the_full_run(
    time: Time, memory: MemoryLedger, simulation: Simulation
) -> None:
    campaign(memory, rows(*range(50)))
    full = sender(memory, time, begin={"fraction": 1.0})(False)
    sender(memory, time, begin={"fraction": 0.1})(False)
    assert simulation.run(lambda resumed: full) == [Done()]
    assert set(states(memory).values()) == {State.SENT}


def test_a_canary_that_is_too_late_skips_its_own_and_not_those_it_held_back(
    time: Time, memory: MemoryLedger, simulation: Simulation
) -> None:
    campaign(memory, rows(*range(100)))
    late = round(time() * 1000) - 1
    canary = sender(memory, time, begin={"fraction": 0.05}, not_after_ms=late)
    assert simulation.run(canary) == [Done(held_back=True)]
    assert Counter(states(memory).values()) == {State.SKIPPED: 5, State.PENDING: 95}


def test_pausing_waits_and_aborting_stops(time: Time, memory: MemoryLedger) -> None:
    campaign(memory, rows(*range(5)))
    memory.set_status("c", CampaignStatus.PAUSED)
    engine = sender(memory, time)(False)
    assert engine.next() == Wait("paused")
    memory.set_status("c", CampaignStatus.RUNNING)
    assert isinstance(engine.next(), Send)
    memory.set_status("c", CampaignStatus.ABORTED)
    assert engine.next() == Stopped("aborted")


def test_a_row_s_own_agent_or_group_wins(time: Time, memory: MemoryLedger) -> None:
    audience = [
        Row("v1", {"name": "a", "agent_id": "own"}, line=2),
        Row("v2", {"name": "b", "group_id": "team"}, line=3),
        Row("v3", {"name": "c", "agent_id": " "}, line=4),
    ]
    campaign(memory, audience)
    found = {}
    engine = sender(memory, time, agent_id="given", rate=Rate(requests_per_hour=100))(False)
    for _ in audience:
        step = engine.next()
        assert isinstance(step, Send)
        for request in step.requests:
            assert isinstance(request, Post)
            found[request.visitor_id] = (request.agent_id, request.group_id)
            engine.take(
                [Outcome(request=request, fate=Fate.DONE, began_at=time(), ended_at=time(), message_id="m")]
            )
        if len(found) == 3:
            break
    assert found == {"v1": ("own", None), "v2": (None, "team"), "v3": ("given", None)}


def test_newcomers_join_at_every_run_and_nobody_gets_it_again(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    for people in (rows(1, 2), rows(1, 2, 3), rows(3, 4)):
        open_campaign(memory, "c", binding=BINDING, announcement=HELLO, each_run=True)
        enrol(memory, "c", people, Enroller("c", HELLO))
        assert simulation.run(sender(memory, time)) == [Done()]
    assert brevo.posts == {"v1": 1, "v2": 1, "v3": 1, "v4": 1}


# Beginning


def test_bad_rows_beyond_those_allowed_are_named_by_line_and_enrol_nobody(memory: MemoryLedger) -> None:
    audience = [*rows(1), BadRow(3, "has no visitor id"), Row("v4", {}, line=4)]
    open_campaign(memory, "c", binding=BINDING, announcement=HELLO)
    with pytest.raises(TooManyBadRows, match=r"line 3 has no visitor id; line 4 .*name") as caught:
        enrol(memory, "c", audience, Enroller("c", HELLO), max_bad_rows=1)
    assert caught.value.count == 2
    assert memory.campaign("c").total == 0
    enrolled = enrol(memory, "c", audience, Enroller("c", HELLO), max_bad_rows=2)
    assert (enrolled.joined, enrolled.bad_rows) == (1, 2)


def test_a_campaign_that_began_elsewhere_or_with_another_text_is_refused_with_the_ways_out(
    memory: MemoryLedger,
) -> None:
    campaign(memory, rows(1))
    with pytest.raises(CampaignRefused, match=r"UpdateCampaignOperator .* new campaign_id"):
        open_campaign(memory, "c", binding=BINDING, announcement=Announcement("Other"))
    with pytest.raises(CampaignRefused, match=r"began with host .* choose a new campaign_id"):
        open_campaign(memory, "c", binding={**BINDING, "host": "http://sandbox"}, announcement=HELLO)
    with pytest.raises(UnknownCampaign):
        open_campaign(memory, "d", binding=BINDING, announcement=None)


# Changing what was sent


def updater(
    ledger: Ledger, time: Time, announcement: Announcement, **given: Any
) -> Callable[[bool], UpdateEngine]:
    def make(resumed: bool) -> UpdateEngine:
        engine = UpdateEngine(ledger, "c", rules(**given), clock=time, random=lambda: 0.5)
        engine.begin(None if resumed else announcement)
        return engine

    return make


TWO = Announcement({"en": "Hello [[ visitor.name ]]", "fr": "Bonjuor"})
FIXED = Announcement({"en": "Hello [[ visitor.name ]]", "fr": "Bonjour"})


def test_a_french_typo_costs_only_the_french_and_its_price_is_known_before(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    brevo.limit = 1000
    campaign(memory, [*rows(*range(10)), *rows(*range(10, 14), locale="fr-CA")], announcement=TWO)
    simulation.run(sender(memory, time))
    engine = updater(memory, time, FIXED)(False)
    price = engine.price()
    assert (price.calls, price.untouched, price.hours) == (4, 10, 0)
    before = len(brevo.counted)
    assert simulation.run(updater(memory, time, FIXED)) == [Done()]
    assert len(brevo.counted) - before == 4
    assert sorted(texts[-1] for texts in brevo.messages.values()).count("Bonjour") == 4
    assert {row.revision for row in memory.deliveries("c")} == {2}
    assert all(row.text_hash for row in memory.deliveries("c"))


def test_pending_rows_get_the_newest_text_beside_a_running_send(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    new = Announcement("Bye [[ visitor.name ]]")
    campaign(memory, rows(*range(150)))
    started: list[Any] = []

    def strike(request: Request) -> None:
        if brevo.posts.total() == 50 and not started:
            started.append(updater(memory, time, new)(False))

    brevo.strike = strike
    assert simulation.run(sender(memory, time), lambda r: updater(memory, time, HELLO)(True), hours=0.01)
    simulation.events.clear()
    brevo.strike = lambda request: None
    time.seconds += 200
    assert simulation.run(sender(memory, time), updater(memory, time, new)) == [Done(), Done()]
    assert {texts[-1][:3] for texts in brevo.messages.values()} == {"Bye"}
    assert set(brevo.posts.values()) == {1}
    assert brevo.refused == []


def test_only_one_edits_a_campaign_at_a_time(time: Time, memory: MemoryLedger) -> None:
    brevo = Brevo(time)
    campaign(memory, rows(*range(5)))
    Simulation(time, brevo).run(sender(memory, time))
    first = updater(memory, time, Announcement("A"))(False)
    second = updater(memory, time, Announcement("B"))(False)
    assert isinstance(first.next(), Send)
    wait = second.next()
    assert isinstance(wait, Wait)
    assert wait.reason == "editor"
    assert wait.seconds == pytest.approx(90, abs=1)


def test_a_newer_text_in_mid_edit_is_what_everybody_sees_in_the_end(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    campaign(memory, rows(*range(30)))
    simulation.run(sender(memory, time))
    make = updater(memory, time, Announcement("A"), max_in_flight=2)
    revised: list[Any] = []

    def strike(request: Request) -> None:
        if isinstance(request, Put) and not revised:
            revised.append(memory.revise("c", Text_of("B")))

    brevo.strike = strike
    assert simulation.run(make) == [Done()]
    assert {texts[-1] for texts in brevo.messages.values()} == {"B"}
    assert {row.text_hash for row in memory.deliveries("c")} == {text_hash("B")}


def Text_of(text: str) -> Any:  # noqa: N802  reads as the value it makes
    from airflow_provider_sib.campaign.engine import text_of

    return text_of(Announcement(text))


def test_an_edit_outlives_an_outage_and_names_what_can_not_be_edited(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    campaign(memory, rows(*range(20)))
    simulation.run(sender(memory, time))
    gone = next(iter(brevo.messages))
    del brevo.messages[gone]
    poisoned = list(brevo.messages)[3]
    refused = list(brevo.messages)[5]
    begins = time() + 1

    def strike(request: Request) -> str | None:
        if begins <= time() < begins + 600:
            return "down"
        match request:
            case Put(message_id=message) if message == poisoned:
                return "http_500"
            case Put(message_id=message) if message == refused:
                return "bad"
        return None

    brevo.strike = strike
    engines: list[UpdateEngine] = []

    def make(resumed: bool) -> UpdateEngine:
        engines.append(updater(memory, time, Announcement("New"))(resumed))
        return engines[-1]

    assert simulation.run(make) == [Done()]
    shown = Counter(texts[-1] for texts in brevo.messages.values())
    assert shown["New"] == 17
    tally = [engine.tally() for engine in engines]
    assert sum(t["gone"] for t in tally) == 1
    assert tally[-1]["failed"].keys() <= {"http_500", "invalid_parameter"}
    assert sum(1 for reason in reasons(memory).values() if reason == "gone") == 1


def test_an_edit_that_is_refused_for_all_stops_early_and_lets_another_one_edit(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    campaign(memory, rows(*range(80)))
    simulation.run(sender(memory, time))
    before = len(brevo.counted)
    brevo.strike = lambda request: "bad"
    assert simulation.run(updater(memory, time, Announcement("New"))) == [Stopped("max_failure_share")]
    assert len(brevo.counted) - before < 40
    brevo.strike = lambda request: None
    assert simulation.run(updater(memory, time, Announcement("New"))) == [Done()]
    assert {texts[-1] for texts in brevo.messages.values()} == {"New"}


def test_few_that_are_refused_stop_an_edit_at_its_end_only(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    campaign(memory, rows(*range(4)))
    simulation.run(sender(memory, time))
    refused = next(iter(brevo.messages))
    brevo.strike = lambda request: (
        "bad" if isinstance(request, Put) and request.message_id == refused else None
    )
    assert simulation.run(updater(memory, time, Announcement("New"))) == [Stopped("max_failure_share")]
    assert Counter(texts[-1] for texts in brevo.messages.values())["New"] == 3
    assert simulation.run(updater(memory, time, Announcement("New"), max_failure_share=1.0)) == [Done()]


def test_a_later_try_of_an_older_update_does_not_put_its_text_back(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    campaign(memory, rows(*range(5)))
    simulation.run(sender(memory, time))

    def update(text: str, by: str) -> Callable[[bool], UpdateEngine]:
        def make(resumed: bool) -> UpdateEngine:
            engine = UpdateEngine(memory, "c", rules(), clock=time, random=lambda: 0.5)
            engine.begin(Announcement(text), by=by)
            return engine

        return make

    assert simulation.run(update("A", "run 1"), hours=0) == [None]  # killed
    simulation.events.clear()
    time.seconds += 200
    assert simulation.run(update("B", "run 2")) == [Done()]
    assert simulation.run(update("A", "run 1")) == [Done()]
    assert {texts[-1] for texts in brevo.messages.values()} == {"B"}
    assert simulation.run(update("C", "run 1")) == [Done()]  # cleared, with a text it never gave
    assert {texts[-1] for texts in brevo.messages.values()} == {"C"}
    assert simulation.run(update("A", "run 3")) == [Done()]
    assert {texts[-1] for texts in brevo.messages.values()} == {"A"}


def test_back_to_an_earlier_text_edits_also_where_the_later_one_was_never_recorded(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    campaign(memory, rows(*range(4)), announcement=Announcement("First"))
    simulation.run(sender(memory, time))
    killed = updater(memory, time, Announcement("Second"))(False)
    step = killed.next()
    assert isinstance(step, Send)
    for request in step.requests:
        brevo.handle(request)
    time.seconds += 200
    assert simulation.run(updater(memory, time, Announcement("First"))) == [Done()]
    assert {texts[-1] for texts in brevo.messages.values()} == {"First"}
    assert {row.revision for row in memory.deliveries("c")} == {3}


def test_what_opens_an_outage_gives_up_no_message(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    campaign(memory, rows(*range(3)))
    simulation.run(sender(memory, time))
    begins = time()
    brevo.strike = lambda request: "down" if time() < begins + 30 else None
    assert simulation.run(updater(memory, time, Announcement("New"), max_in_flight=1)) == [Done()]
    assert {texts[-1] for texts in brevo.messages.values()} == {"New"}


@pytest.mark.parametrize("verify", [False, True])
def test_withdrawing_deletes_what_was_sent_and_skips_what_is_pending(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo, verify: bool
) -> None:
    campaign(memory, rows(*range(150)))
    simulation.run(sender(memory, time), hours=0.5)
    simulation.events.clear()
    gone = next(iter(brevo.messages))
    del brevo.messages[gone]

    def make(resumed: bool) -> WithdrawEngine:
        engine = WithdrawEngine(memory, "c", rules(), verify=verify, clock=time, random=lambda: 0.5)
        engine.begin()
        return engine

    time.seconds += HOUR
    assert simulation.run(make) == [Done()]
    assert brevo.messages == {}
    assert Counter(states(memory).values()) == {State.WITHDRAWN: 90, State.SKIPPED: 60}
    assert set(reasons(memory).values()) == {None, "gone", "withdrawn"}
    assert report(memory, "c").withdrawn == 90


def test_withdrawing_up_to_a_moment_leaves_later_ones_and_the_pending(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    campaign(memory, rows(*range(150)))
    begins = time()
    simulation.run(sender(memory, time), hours=0.5)
    simulation.events.clear()
    time.seconds = begins + HOUR + 60
    simulation.run(sender(memory, time), hours=0.01)
    simulation.events.clear()
    found = Counter(states(memory).values())
    time.seconds += 2 * HOUR
    moment = round((begins + HOUR) * 1000)

    def make(resumed: bool) -> WithdrawEngine:
        engine = WithdrawEngine(memory, "c", rules(), sent_before_ms=moment, clock=time, random=lambda: 0.5)
        engine.begin()
        return engine

    assert simulation.run(make) == [Done()]
    after = Counter(states(memory).values())
    assert after[State.WITHDRAWN] == 90
    assert after[State.SENT] == found[State.SENT] - 90


def test_a_withdrawal_ends_although_a_killed_sender_never_comes_back(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    campaign(memory, rows(*range(9)))
    killed = sender(memory, time, rate=Rate(requests_per_hour=100))(False)
    step = killed.next()
    assert isinstance(step, Send)

    def make(resumed: bool) -> WithdrawEngine:
        engine = WithdrawEngine(memory, "c", rules(), clock=time, random=lambda: 0.5)
        engine.begin()
        return engine

    assert simulation.run(make, hours=1) == [Done()]
    doubts = len(step.requests)
    assert Counter(states(memory).values()) == {State.IN_DOUBT: doubts, State.SKIPPED: 9 - doubts}


def test_rows_that_a_running_send_gives_back_are_taken_back_too(
    time: Time, memory: MemoryLedger, simulation: Simulation, brevo: Brevo
) -> None:
    campaign(memory, rows(*range(20)))
    running = sender(memory, time, rate=Rate(requests_per_hour=100))(False)
    step = running.next()
    assert isinstance(step, Send)
    [probe] = step.requests
    running.take([Outcome(request=probe, began_at=time(), ended_at=time(), **brevo.handle(probe))])
    step = running.next()
    assert isinstance(step, Send)
    assert len(step.requests) == 8
    withdrawal = WithdrawEngine(memory, "c", rules(account="other"), clock=time, random=lambda: 0.5)
    withdrawal.begin()

    def refuse() -> None:
        running.take(
            Outcome(request=request, fate=Fate.LIMITED, began_at=time(), ended_at=time())
            for request in step.requests
        )
        running.leave()

    simulation.at(12.0, refuse)
    assert simulation.run(lambda resumed: withdrawal) == [Done()]
    assert brevo.messages == {}
    assert Counter(states(memory).values()) == {State.WITHDRAWN: 1, State.SKIPPED: 19}
    assert simulation.run(sender(memory, time)) == [Done()]
    assert brevo.posts.total() == 1
