"""How a campaign's requests are carried to Brevo: a real client, the sandbox over a socket, a real ledger."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_sib.api.aio import AsyncConversationsClient
from airflow_provider_sib.api.wire import Response, Retries, exchange
from airflow_provider_sib.campaign.announcement import Announcement, Enroller
from airflow_provider_sib.campaign.audience import Row
from airflow_provider_sib.campaign.engine import (
    Done,
    Rules,
    SendEngine,
    Stopped,
    UpdateEngine,
    Wait,
    WithdrawEngine,
    enrol,
    open_campaign,
    uptime,
)
from airflow_provider_sib.campaign.ledger import (
    CampaignStatus,
    Delivery,
    LedgerUnavailable,
    State,
    UnknownCampaign,
)
from airflow_provider_sib.campaign.pacing import Rate
from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from airflow_provider_sib.delivery import Courier, OutcomesLost
from airflow_provider_sib.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

HELLO = Announcement("Hello [[ visitor.name ]]")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    made = SqlLedger(f"sqlite:///{tmp_path}/ledger.db")
    yield made
    made.close()


@pytest.fixture
def sandbox() -> Iterator[Any]:
    with Sandbox(quota=100_000) as running:
        yield running


def begun(ledger: SqlLedger, people: int = 30, **rules: Any) -> SendEngine:
    open_campaign(ledger, "c", binding={"host": "sandbox"}, announcement=HELLO)
    rows = (Row(f"v{n}", {"name": f"n{n}"}, line=n) for n in range(people))
    enrol(ledger, "c", rows, Enroller("c", HELLO))
    return again(ledger, **rules)


def again(ledger: Any, *, resumed: bool = False, retry_failed: bool = False, **rules: Any) -> SendEngine:
    engine = SendEngine(ledger, "c", Rules(**{"account": "acme", "rate": Rate(reserve=0), **rules}))
    engine.begin(resumed=resumed, retry_failed=retry_failed)
    return engine


def courier(engine: Any, sandbox: Any, **given: Any) -> Courier:
    timeout_seconds = given.pop("timeout_seconds", 10.0)
    return Courier(
        engine,
        lambda: AsyncConversationsClient(
            api_key=sandbox.api_key,
            base_url=sandbox.base_url,
            timeout_seconds=timeout_seconds,
            retries=Retries(attempts=1),
        ),
        **{"max_in_flight": 8, **given},
    )


def deliveries(ledger: SqlLedger) -> dict[str, Delivery]:
    return {row.key: row for row in ledger.deliveries("c")}


def states(ledger: SqlLedger) -> Counter[State]:
    return Counter(row.state for row in deliveries(ledger).values())


def posted(sandbox: Any) -> Counter[str]:
    return Counter(message["visitorId"] for message in sandbox.messages() if message["visitorId"][0] == "v")


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.005)  # between two looks


def test_everybody_is_reached_once_and_the_ledger_knows_each_message(ledger: SqlLedger, sandbox: Any) -> None:
    engine = begun(ledger, 200)
    assert courier(engine, sandbox).run() == Done()
    kept = {row.message_ids[0]: row.visitor_id for row in deliveries(ledger).values()}
    assert kept == {message["id"]: message["visitorId"] for message in sandbox.messages()}
    tally = engine.tally()
    assert tally == {**tally, "sent": 200, "failed": 0, "in_doubt": 0, "calls": 200}
    assert tally["quota_left"] == 100_000 - 200
    assert ledger.campaign("c").status is CampaignStatus.FINISHED


def test_what_was_sent_is_edited_and_withdrawn(ledger: SqlLedger, sandbox: Any) -> None:
    courier(begun(ledger, 40), sandbox).run()
    rules = Rules(account="acme")
    update = UpdateEngine(ledger, "c", rules)
    update.begin(Announcement("Bye [[ visitor.name ]]"))
    assert courier(update, sandbox).run() == Done()
    assert {message["text"] for message in sandbox.messages()} == {f"Bye n{n}" for n in range(40)}
    withdrawal = WithdrawEngine(ledger, "c", rules, verify=True)
    withdrawal.begin()
    assert courier(withdrawal, sandbox).run() == Done()
    assert all(message["deleted"] for message in sandbox.messages())
    assert withdrawal.tally()["calls"] == 80
    assert states(ledger) == {State.WITHDRAWN: 40}


# What an error means


@pytest.mark.parametrize(
    ("fault", "state", "reason", "is_there"),
    [
        ({"kind": "error_json", "status": 400}, State.FAILED, None, False),
        ({"kind": "error_json", "status": 404}, State.FAILED, None, False),
        ({"kind": "error_json", "status": 422}, State.FAILED, None, False),
        ({"kind": "error_json", "status": 500}, State.IN_DOUBT, "http_500", False),
        ({"kind": "error_json", "status": 503, "store": True}, State.IN_DOUBT, "http_503", True),
        ({"kind": "error_html"}, State.IN_DOUBT, "http_502", False),
        ({"kind": "hang_up_before"}, State.IN_DOUBT, "no_answer", False),
        ({"kind": "hang_up_after"}, State.IN_DOUBT, "no_answer", True),
        ({"kind": "hang_up_during"}, State.IN_DOUBT, "unreadable_200", True),
        ({"kind": "never_answer"}, State.IN_DOUBT, "no_answer", True),
        ({"kind": "garbage"}, State.IN_DOUBT, "unreadable_200", True),
        ({"kind": "extra_fields"}, State.SENT, None, True),
        ({"kind": "no_rate_headers"}, State.SENT, None, True),
    ],
    ids=lambda value: value.get("kind") if isinstance(value, dict) else None,
)
def test_what_an_answer_means_for_its_recipient(
    ledger: SqlLedger, sandbox: Any, fault: dict[str, Any], state: State, reason: str | None, is_there: bool
) -> None:
    # The ninth of twenty.
    sandbox.fault(**fault, operation="send_pushed_message", times=1, after=8)
    engine = begun(ledger, 20)
    timeout_seconds = 2.0 if fault["kind"] == "never_answer" else 10.0
    assert courier(engine, sandbox, timeout_seconds=timeout_seconds).run() == Done()
    found = states(ledger)
    assert found[state] == (20 if state is State.SENT else 1)
    assert found.total() == 20
    if state is not State.SENT:
        [row] = [row for row in deliveries(ledger).values() if row.state is state]
        assert row.reason == reason or (state is State.FAILED and row.reason)
        assert (row.key in posted(sandbox)) is is_there
    assert set(posted(sandbox).values()) == {1}


@pytest.mark.parametrize("kind", ["ip_blocked", "permission"])
def test_a_refused_connection_stops_the_campaign_and_nobody_is_lost(
    ledger: SqlLedger, sandbox: Any, kind: str
) -> None:
    sandbox.fault(kind, after=10)
    end = courier(begun(ledger), sandbox).run()
    assert isinstance(end, Stopped)
    assert end.reason == "unauthorized"
    assert "Brevo answered 40" in str(end.error)
    assert states(ledger) == {State.SENT: 10, State.PENDING: 20}
    sandbox.clear_faults()
    assert courier(again(ledger), sandbox).run() == Done()
    assert set(posted(sandbox).values()) == {1}


def test_a_429_sends_the_row_back_and_ends_with_a_wait_for_an_hour(ledger: SqlLedger, sandbox: Any) -> None:
    sandbox.fault("too_many_requests_without_headers", after=10)
    end = courier(begun(ledger), sandbox).run()
    assert isinstance(end, Wait)
    assert end.reason == "quota"
    assert end.seconds == pytest.approx(3601, abs=5)
    found = states(ledger)
    assert found.keys() == {State.SENT, State.PENDING}
    assert ledger.campaign("c").next_wake_ms == end.until_ms


def test_a_server_that_is_not_there_puts_nobody_in_doubt(ledger: SqlLedger) -> None:
    class Nowhere:
        api_key = "xkeysib-x"

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        Nowhere.base_url = f"http://127.0.0.1:{closed.getsockname()[1]}/v3"  # type: ignore[attr-defined]
        end = courier(begun(ledger), Nowhere, defer_after_seconds=10).run()
    assert isinstance(end, Wait)
    assert end.reason == "outage"
    assert states(ledger) == {State.PENDING: 30}


def test_a_visitor_id_that_can_not_be_sent_fails_alone_and_costs_no_call(
    ledger: SqlLedger, sandbox: Any
) -> None:
    open_campaign(ledger, "c", binding={}, announcement=HELLO)
    people = [
        Row("v1", {"name": "a", "agent_id": "x", "group_id": "y"}, line=2),
        Row("v2", {"name": "b"}, line=3),
    ]
    enrol(ledger, "c", people, Enroller("c", HELLO))
    engine = again(ledger, max_failure_share=0.5)
    assert courier(engine, sandbox).run() == Done()
    assert deliveries(ledger)["v1"].reason == "invalid"
    assert deliveries(ledger)["v2"].state is State.SENT
    assert engine.tally()["calls"] == sandbox.counts()["requests"] == 1


# Waiting


def test_short_hours_are_waited_for_in_place_and_kept_to(ledger: SqlLedger) -> None:
    with Sandbox(quota=40, hour_seconds=2) as sandbox:
        assert courier(begun(ledger, 100), sandbox).run() == Done()
        state = sandbox.state()
    assert set(posted_in(state).values()) == {1}
    assert state["requests"]["total"] == 100
    assert state["quota"]["refused"] == 0


def posted_in(state: dict[str, Any]) -> Counter[str]:
    return Counter(message["visitorId"] for message in state["messages"].values())


def test_a_long_hour_ends_the_run_and_another_one_goes_on(ledger: SqlLedger) -> None:
    with Sandbox(quota=20, hour_seconds=11) as sandbox:
        first = begun(ledger)
        end = courier(first, sandbox, defer_after_seconds=5).run()
        assert isinstance(end, Wait)
        assert end.seconds is not None
        assert end.seconds > 5
        assert states(ledger)[State.SENT] == 20
        engine = again(ledger, resumed=True)
        engine.go_on(first.tally())
        assert courier(engine, sandbox, defer_after_seconds=None).run() == Done()
        assert sandbox.state()["quota"]["refused"] == 0
    # The run is one, before and after the wait.
    assert (engine.tally()["sent"], engine.tally()["calls"]) == (30, 30)


def test_a_paused_campaign_ends_the_run_until_somebody_acts(ledger: SqlLedger, sandbox: Any) -> None:
    engine = begun(ledger)
    ledger.set_status("c", CampaignStatus.PAUSED)
    assert courier(engine, sandbox).run() == Wait("paused")
    assert sandbox.counts()["messages"] == 0


def test_an_abort_while_sending_stops(ledger: SqlLedger, sandbox: Any) -> None:
    sandbox.fault("latency", seconds=0.05)
    engine = begun(ledger, 2000)
    aborter = threading.Thread(
        target=lambda: (
            eventually(lambda: sandbox.counts()["messages"] > 20),
            ledger.set_status("c", CampaignStatus.ABORTED),
        )
    )
    aborter.start()
    assert courier(engine, sandbox).run() == Stopped("aborted")
    aborter.join()
    found = states(ledger)
    assert found.keys() == {State.SENT, State.PENDING}
    assert found[State.SENT] == len(posted(sandbox))


def test_progress_is_told_while_it_sends_and_while_it_waits(ledger: SqlLedger) -> None:
    told: list[tuple[dict[str, Any], Wait | None]] = []
    with Sandbox(quota=20, hour_seconds=4) as sandbox:
        run = courier(
            begun(ledger, 30), sandbox, progress=lambda *line: told.append(line), progress_seconds=1.0
        )
        run.run()
    assert {tally["sent"] for tally, waiting in told if waiting and waiting.reason == "quota"} == {20}


def test_answers_are_read_while_the_progress_takes_its_time(ledger: SqlLedger, sandbox: Any) -> None:
    """Telling it asks Airflow and the ledger's server, which may take as long as they like."""
    sandbox.fault("latency", seconds=0.5)
    told: list[int] = []

    def progress(*_: Any) -> None:
        told.append(threading.get_ident())
        time.sleep(8.0 * (len(told) == 1))  # what takes its time, far beyond an answer's

    run = courier(begun(ledger, 48), sandbox, timeout_seconds=4.0, progress=progress, progress_seconds=1.0)
    assert run.run() == Done()
    assert told
    assert states(ledger) == {State.SENT: 48}


# Stopping


def stopped_after(run: Courier, sandbox: Any, messages: int) -> tuple[Any, float]:
    """Run, and stop it from another thread once so many messages are there; give its end, and how long after."""
    told: list[float] = []

    def stop() -> None:
        eventually(lambda: sandbox.counts()["requests"] >= messages)
        told.append(time.monotonic())
        run.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    end = run.run()
    took = time.monotonic() - told[0]
    stopper.join()
    return end, took


def test_told_to_stop_it_finishes_what_is_in_flight_and_claims_no_more(
    ledger: SqlLedger, sandbox: Any
) -> None:
    sandbox.fault("latency", seconds=0.3)
    end, took = stopped_after(courier(begun(ledger, 500), sandbox), sandbox, 20)
    assert end == Stopped("interrupted")
    assert took < 10
    found = states(ledger)
    assert found.keys() == {State.SENT, State.PENDING}
    assert found[State.SENT] == len(posted(sandbox)) < 60


def test_told_to_stop_before_a_silent_server_it_ends_within_seconds_and_names_the_doubts(
    ledger: SqlLedger, sandbox: Any
) -> None:
    sandbox.fault("never_answer", after=40)
    run = courier(begun(ledger, 500, max_in_flight=32), sandbox, max_in_flight=32, timeout_seconds=60.0)
    end, took = stopped_after(run, sandbox, 60)
    assert end == Stopped("interrupted")
    assert took < 20
    doubts = {row.key for row in deliveries(ledger).values() if row.state is State.IN_DOUBT}
    assert 0 < len(doubts) <= 32
    assert all(deliveries(ledger)[key].reason == "stopped" for key in doubts)
    assert states(ledger)[State.SENDING] == 0
    assert states(ledger)[State.SENT] == 40


def test_a_sender_whose_supervisor_is_gone_stops(ledger: SqlLedger, sandbox: Any) -> None:
    sandbox.fault("latency", seconds=0.1)
    parents = iter([7, 7])
    run = courier(begun(ledger, 5000), sandbox, parent=lambda: next(parents, 1))
    assert run.run() == Stopped("interrupted")
    assert states(ledger).keys() == {State.SENT, State.PENDING}


def test_a_sender_whose_supervisor_was_gone_before_it_began_sends_nothing(
    ledger: SqlLedger, sandbox: Any
) -> None:
    run = courier(begun(ledger), sandbox, watched_by=7, parent=lambda: 1)
    assert run.run() == Stopped("interrupted")
    assert sandbox.counts()["messages"] == 0
    assert states(ledger).keys() == {State.PENDING}


def test_stopping_one_that_has_ended_does_no_harm(ledger: SqlLedger, sandbox: Any) -> None:
    run = courier(begun(ledger, 1), sandbox)
    run.run()
    run.stop()


def test_told_to_stop_before_it_runs_it_sends_nothing(ledger: SqlLedger, sandbox: Any) -> None:
    run = courier(begun(ledger), sandbox)
    run.stop()
    assert run.run() == Stopped("interrupted")
    assert sandbox.counts()["messages"] == 0


class TimedOut(BaseException):
    """As Airflow's `AirflowTaskTimeout` is one."""


@pytest.fixture(params=["uvloop", "asyncio"])
def _on_either_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)  # as where it is not installed
    else:
        pytest.importorskip("uvloop")


@contextmanager
def timed_out_after(seconds: float) -> Iterator[None]:
    """Raise once in the main thread from a signal's handler, as Airflow's `execution_timeout` does."""

    def handler(*_: Any) -> None:
        raise TimedOut

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("_on_either_loop")
def test_timed_out_before_a_silent_server_it_raises_within_seconds_and_names_the_doubts(
    ledger: SqlLedger, sandbox: Any
) -> None:
    sandbox.fault("never_answer", after=40)
    run = courier(begun(ledger, 500), sandbox, timeout_seconds=20.0)
    began = time.monotonic()
    with pytest.raises(TimedOut), timed_out_after(1.0):
        run.run()
    assert time.monotonic() - began < 5.5
    doubts = [row for row in deliveries(ledger).values() if row.state is State.IN_DOUBT]
    assert 0 < len(doubts) <= 8
    assert {row.reason for row in doubts} == {"stopped"}
    assert states(ledger) == {State.SENT: 40, State.IN_DOUBT: len(doubts), State.PENDING: 460 - len(doubts)}


@pytest.mark.usefixtures("_on_either_loop")
def test_timed_out_in_full_flight_it_raises_and_puts_nobody_in_doubt(ledger: SqlLedger, sandbox: Any) -> None:
    run = courier(begun(ledger, 20_000), sandbox)
    with pytest.raises(TimedOut), timed_out_after(0.5):
        run.run()
    found = states(ledger)
    assert found.keys() == {State.SENT, State.PENDING}
    assert found[State.SENT] == len(posted(sandbox))


# When the ground gives way


class Broken:
    """A ledger that does not answer while told so."""

    def __init__(self, ledger: SqlLedger) -> None:
        self.ledger = ledger
        self.is_gone: Callable[[], bool] = lambda: False

    def __getattr__(self, name: str) -> Any:
        if name == "cycle" and self.is_gone():
            raise LedgerUnavailable("not reached")
        return getattr(self.ledger, name)


def test_results_are_held_while_the_ledger_does_not_answer(ledger: SqlLedger, sandbox: Any) -> None:
    begun(ledger, 300)
    broken = Broken(ledger)
    outage: list[float] = []

    def is_gone() -> bool:
        if not outage and sandbox.counts()["messages"] > 50:
            outage.append(time.monotonic() + 1.5)
        return bool(outage) and time.monotonic() < outage[0]

    broken.is_gone = is_gone
    assert courier(again(broken), sandbox).run() == Done()
    assert outage
    assert states(ledger) == {State.SENT: 300}
    assert set(posted(sandbox).values()) == {1}


def test_a_sender_that_was_suspended_while_it_recorded_tries_once_more(
    ledger: SqlLedger, sandbox: Any
) -> None:
    """The database has cut the connection meanwhile, and is as well as ever."""
    begun(ledger, 30)
    broken = Broken(ledger)
    leap = [0.0]

    def is_gone() -> bool:
        if leap[0] or sandbox.counts()["messages"] < 10:
            return False
        leap[0] = 400.0  # in the middle of a transaction
        return True

    broken.is_gone = is_gone
    clock = lambda: uptime() + leap[0]  # noqa: E731
    engine = SendEngine(broken, "c", Rules(account="acme"), clock=clock)  # type: ignore[arg-type]
    engine.begin(resumed=False)
    assert courier(engine, sandbox, clock=clock).run() == Done()
    assert leap[0]
    assert states(ledger) == {State.SENT: 30}


def test_told_to_stop_while_the_ledger_is_silent_it_names_what_it_knows_before_it_is_killed(
    ledger: SqlLedger, sandbox: Any, caplog: pytest.LogCaptureFixture
) -> None:
    begun(ledger, 30)
    broken = Broken(ledger)
    recorded: set[str] = set()

    def is_gone() -> bool:
        if sandbox.counts()["messages"] >= 10 and not recorded:
            recorded.update(row.message_ids[0] for row in deliveries(ledger).values() if row.message_ids)
            run.stop()
            eventually(lambda: "in doubt" in caplog.text)  # as a driver waits that hears nothing
        return False

    broken.is_gone = is_gone
    run = courier(again(broken), sandbox)
    assert run.run() == Stopped("interrupted")
    assert recorded
    messages = {message["id"] for message in sandbox.messages()}
    assert {message_id for message_id in messages if message_id in caplog.text} == messages - recorded


def test_results_that_a_ledger_refuses_for_good_are_named(
    ledger: SqlLedger, sandbox: Any, caplog: pytest.LogCaptureFixture
) -> None:
    begun(ledger, 30)
    broken = Broken(ledger)

    def is_gone() -> bool:
        if sandbox.counts()["messages"] >= 10:
            raise UnknownCampaign("c")
        return False

    broken.is_gone = is_gone
    with pytest.raises(UnknownCampaign):
        courier(again(broken), sandbox).run()
    recorded = {row.message_ids[0] for row in deliveries(ledger).values() if row.message_ids}
    messages = {message["id"] for message in sandbox.messages()}
    assert (
        {message_id for message_id in messages if message_id in caplog.text} == messages - recorded != set()
    )


def test_results_that_can_not_be_recorded_in_five_minutes_are_named(ledger: SqlLedger, sandbox: Any) -> None:
    begun(ledger, 100)
    broken = Broken(ledger)
    leap = [0.0]

    def is_gone() -> bool:
        if sandbox.counts()["messages"] < 20:
            return False
        leap[0] += 120.0
        return True

    broken.is_gone = is_gone
    clock = lambda: uptime() + leap[0]  # noqa: E731
    engine = SendEngine(broken, "c", Rules(account="acme"), clock=clock)  # type: ignore[arg-type]
    engine.begin(resumed=False)
    with pytest.raises(OutcomesLost) as caught:
        courier(engine, sandbox, clock=clock).run()
    named = {message_id for _, message_id in caught.value.rows if message_id}
    # A request that was cut short, or never begun, has no message id: its row is named alone.
    unsure = {rank for rank, message_id in caught.value.rows if message_id is None}
    visitors = {row.visitor_id for row in ledger.deliveries("c") if row.rank in unsure}
    known = {row.message_ids[0] for row in deliveries(ledger).values() if row.message_ids}
    messages = {message["id"]: message["visitorId"] for message in sandbox.messages()}
    assert named
    assert named <= messages.keys()
    assert {messages[left] for left in messages.keys() - known - named} <= visitors
    assert all(message_id in str(caught.value) for message_id in named)


def test_timed_out_while_the_ledger_does_not_answer_it_names_the_results(
    ledger: SqlLedger, sandbox: Any
) -> None:
    begun(ledger, 100)
    broken = Broken(ledger)
    broken.is_gone = lambda: sandbox.counts()["messages"] >= 20
    with pytest.raises(OutcomesLost) as caught, timed_out_after(1.0):
        courier(again(broken), sandbox).run()
    assert isinstance(caught.value.__context__, TimedOut)
    known = {row.message_ids[0] for row in deliveries(ledger).values() if row.message_ids}
    named = {message_id for _, message_id in caught.value.rows}
    assert known | named == {message["id"] for message in sandbox.messages()}


def test_a_process_that_was_suspended_between_claim_and_request_does_not_send(
    ledger: SqlLedger, sandbox: Any
) -> None:
    # Suspended: the clock that counts it leaps between the claim and the request.
    leap = [0.0]

    class Slow:
        def __init__(self, engine: SendEngine) -> None:
            self.engine, self.steps = engine, 0

        def next(self) -> Any:
            step = self.engine.next()
            self.steps += 1
            if self.steps == 2:
                leap[0] += 120.0
            return step

        def __getattr__(self, name: str) -> Any:
            return getattr(self.engine, name)

    clock = lambda: uptime() + leap[0]  # noqa: E731
    begun(ledger, 30)
    engine = SendEngine(ledger, "c", Rules(account="acme"), clock=clock)
    engine.begin(resumed=False)
    assert courier(Slow(engine), sandbox, clock=clock).run() == Done()
    assert states(ledger) == {State.SENT: 30}
    assert set(posted(sandbox).values()) == {1}
    assert engine.tally()["calls"] == 30
    assert ledger.campaign("c").claims > 30


def test_an_editor_that_was_suspended_overwrites_no_newer_text(tmp_path: Path, sandbox: Any) -> None:
    leap = [0.0]
    clock = lambda: uptime() + leap[0]  # noqa: E731
    ledger = SqlLedger(f"sqlite:///{tmp_path}/edited.db", clock=lambda: time.time() + leap[0])
    courier(begun(ledger, 30), sandbox).run()

    def editor(text: str) -> UpdateEngine:
        engine = UpdateEngine(ledger, "c", Rules(account="acme"), clock=clock)
        engine.begin(Announcement(text))
        return engine

    class Suspended:
        """Sleeps through its lease with requests in hand, while somebody else edits all."""

        def __init__(self, engine: UpdateEngine) -> None:
            self.engine, self.steps = engine, 0

        def next(self) -> Any:
            step = self.engine.next()
            self.steps += 1
            # At once: what was in flight would have ended long before its lease did.
            if self.steps == 1:
                leap[0] += 120.0
                assert courier(editor("third"), sandbox, clock=clock).run() == Done()
            return step

        def __getattr__(self, name: str) -> Any:
            return getattr(self.engine, name)

    assert courier(Suspended(editor("second")), sandbox, clock=clock).run() == Done()
    for message in sandbox.messages():
        texts = [*message["history"], message["text"]]
        assert "second" not in texts[texts.index("third") :]
    ledger.close()


def test_a_fault_of_our_own_is_raised_and_its_row_is_in_doubt(ledger: SqlLedger) -> None:
    class Buggy:
        async def perform(self, call: Any) -> Any:
            await asyncio.sleep(0)
            raise ZeroDivisionError

    @asynccontextmanager
    async def client() -> AsyncIterator[Buggy]:
        yield Buggy()

    with pytest.raises(ZeroDivisionError):
        Courier(begun(ledger), client, max_in_flight=8).run()
    assert states(ledger) == {State.IN_DOUBT: 1, State.PENDING: 29}
    assert {row.reason for row in deliveries(ledger).values()} == {None, "ZeroDivisionError"}


def test_two_workers_share_a_campaign_and_its_quota(ledger: SqlLedger, tmp_path: Path) -> None:
    with Sandbox(quota=60, hour_seconds=2) as sandbox:
        begun(ledger, 150)
        ends: list[Any] = []

        def work() -> None:
            mine = SqlLedger(f"sqlite:///{tmp_path}/ledger.db")
            # In place, since who comes last may find the others' messages still under way.
            ends.append(courier(again(mine, resumed=True), sandbox, defer_after_seconds=None).run())
            mine.close()

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert ends == [Done()] * 3
        assert set(posted(sandbox).values()) == {1}
        assert sandbox.state()["quota"]["refused"] == 0
    assert states(ledger) == {State.SENT: 150}


@pytest.mark.parametrize(
    "body", [{"id": "a\0b"}, {"id": "\ud83c"}, {"id": "x" * 300}, {"id": "\ud83c", "isPushed": []}], ids=repr
)
def test_a_message_id_that_no_ledger_can_hold_keeps_no_other_from_being_recorded(
    ledger: SqlLedger, sandbox: Any, body: dict[str, Any]
) -> None:
    real = AsyncConversationsClient(api_key=sandbox.api_key, base_url=sandbox.base_url)

    class Odd:
        """A Brevo whose fifth answer has an odd id."""

        calls = 0

        async def perform(self, call: Any) -> Any:
            answer = await real.perform(call)
            self.calls += 1
            if self.calls != 5:
                return answer
            response = Response(200, {}, json.dumps(body).encode())
            steps = exchange(call, secrets=("x",), retries=Retries(attempts=1), rate_limit_wait_seconds=0)
            next(steps)
            try:
                steps.send(response)
            except StopIteration as done:
                return done.value

    @asynccontextmanager
    async def client() -> AsyncIterator[Odd]:
        async with real:
            yield Odd()

    assert Courier(begun(ledger), client, max_in_flight=4).run() == Done()
    assert states(ledger) == {State.SENT: 30}
    odd = [row for row in deliveries(ledger).values() if row.state is State.SENT and not row.message_ids]
    assert len(odd) == 1
