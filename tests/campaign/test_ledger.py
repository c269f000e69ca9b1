"""What every ledger keeps: one suite for memory, SQLite, PostgreSQL and MariaDB."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_sib.campaign.ledger import (
    RANKS,
    Backlog,
    Campaign,
    CampaignStatus,
    Cap,
    Cycle,
    Cycled,
    Delivery,
    EditCycle,
    Edited,
    EditorBusy,
    EditResult,
    Enrolled,
    Enrolment,
    Ledger,
    Quota,
    QuotaUse,
    Refusal,
    RefusalKind,
    Result,
    State,
    Text,
    Transition,
    UnknownCampaign,
    first_ranks,
    flaw_of,
    new_token,
    transition,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .conftest import Clock, House

HELLO = Text("hello", {"en": "Hello"})
BINDING = {"host": "api.brevo.com", "connection": "sib"}
PENDING, SENDING, SENT, FAILED, IN_DOUBT, SKIPPED, WITHDRAWN = State


def opened(ledger: Ledger, campaign: str = "c", *, each_run: bool = False, text: Text = HELLO) -> Campaign:
    made = ledger.open_campaign(campaign, binding=BINDING, each_run=each_run, text=text, settings={})
    assert isinstance(made, Campaign)
    return made


def people(*numbers: int, **fields: Any) -> list[Enrolment]:
    """Recipients whose rank is ten times their number."""
    return [Enrolment(f"k{n}", n * 10, f"v{n}", **fields) for n in numbers]


def audience(ledger: Ledger, rows: Sequence[Enrolment], campaign: str = "c", **fields: Any) -> Enrolled:
    opened(ledger, campaign, **fields)
    return ledger.enrol(campaign, rows)


def use(
    wanted: int = 100, *, holder: str = "w", flying: int = 0, pace: Any = None, account: str = "a"
) -> QuotaUse:
    return QuotaUse(account, "other", holder, flying, wanted, 60, pace or (lambda quota, _: (quota, 10**6)))


def cycle(
    ledger: Ledger, wanted: int = 100, results: Sequence[Result] = (), *, campaign: str = "c", **fields: Any
) -> Cycled:
    quota = fields.pop("quota", None) or use(wanted)
    return ledger.cycle(Cycle(campaign, quota, fields.pop("lease_seconds", 60), results=results, **fields))


def result(row: Delivery, state: State, **fields: Any) -> Result:
    if state is SENT:
        fields.setdefault("message_id", f"m{row.rank}")
    return Result(row.rank, row.claim, state, **fields)


def rows(ledger: Ledger, campaign: str = "c") -> dict[int, Delivery]:
    return {row.rank: row for row in ledger.deliveries(campaign)}


def states(ledger: Ledger, campaign: str = "c") -> list[State]:
    return [row.state for row in ledger.deliveries(campaign)]


# campaigns


def test_a_campaign_is_its_id_and_opening_it_again_goes_on(ledger: Ledger) -> None:
    first = opened(ledger)
    assert (first.status, first.revision, first.text) == (CampaignStatus.RUNNING, 1, HELLO)
    assert (first.enrolled_at_ms, first.claims, first.fraction) == (None, 0, 1.0)
    again = ledger.open_campaign("c", binding=BINDING, each_run=False, text=HELLO, settings={"cap": [1]})
    assert again == replace(first, settings={"cap": [1]})
    assert ledger.campaign("c") == again
    assert [campaign.campaign_id for campaign in ledger.campaigns()] == ["c"]


@pytest.mark.parametrize(
    ("binding", "each_run", "name", "kept", "given"),
    [
        ({**BINDING, "host": "127.0.0.1"}, False, "host", "api.brevo.com", "127.0.0.1"),
        ({**BINDING, "connection": "other"}, False, "connection", "sib", "other"),
        ({**BINDING, "once_per": "order"}, False, "once_per", "", "order"),
        (BINDING, True, "enrol", "once", "each_run"),
    ],
)
def test_a_campaign_keeps_to_what_it_began_with(
    ledger: Ledger, binding: dict[str, str], each_run: bool, name: str, kept: str, given: str
) -> None:
    before = opened(ledger)
    refusal = ledger.open_campaign("c", binding=binding, each_run=each_run, text=HELLO, settings={"x": 1})
    assert refusal == Refusal(RefusalKind.OTHER_BINDING, name, kept, given)
    assert ledger.campaign("c") == before


def test_a_text_the_campaign_has_had_goes_on_with_the_newest_and_one_it_never_had_is_refused(
    ledger: Ledger, clock: Clock
) -> None:
    opened(ledger)
    clock.seconds += 1
    newest = Text("bye", {"en": ["Bye", 1.5, None, "ü\0😀"]})
    assert ledger.revise("c", newest).revision == 2
    assert ledger.revise("c", newest).revision == 2
    assert opened(ledger, text=HELLO).text == newest
    refusal = ledger.open_campaign("c", binding=BINDING, each_run=False, text=Text("new", {}), settings={})
    assert refusal == Refusal(RefusalKind.UNKNOWN_TEXT, "text", "bye", "new")
    without = ledger.open_campaign("c", binding=BINDING, each_run=False, text=None, settings={})
    assert isinstance(without, Campaign)
    assert without.revision == 2
    assert [(known.revision, known.text) for known in ledger.revisions("c")] == [(1, HELLO), (2, newest)]
    assert ledger.revise("c", HELLO).revision == 3


def test_a_campaign_nobody_opened_is_unknown_to_all(ledger: Ledger) -> None:
    with pytest.raises(UnknownCampaign, match="'none'"):
        ledger.open_campaign("none", binding=BINDING, each_run=False, text=None, settings={})
    for call in (
        ledger.campaign,
        ledger.revisions,
        ledger.finish,
        ledger.backlog,
        ledger.counts,
        ledger.breakdown,
        ledger.sent,
        ledger.purge,
        ledger.deliveries,
        lambda campaign: ledger.revise(campaign, HELLO),
        lambda campaign: ledger.set_status(campaign, CampaignStatus.PAUSED),
        lambda campaign: ledger.set_fraction(campaign, 0.5),
        lambda campaign: ledger.enrol(campaign, []),
        lambda campaign: ledger.exclude(campaign, []),
        lambda campaign: ledger.skip_pending(campaign, "x"),
        lambda campaign: ledger.retry(campaign, FAILED),
        lambda campaign: ledger.settle(campaign, "k", SENT),
        lambda campaign: ledger.series(campaign, seconds=60),
        lambda campaign: cycle(ledger, campaign=campaign),
        lambda campaign: ledger.edit(EditCycle(campaign, 1, use(), 60)),
    ):
        with pytest.raises(UnknownCampaign):
            call("none")


@pytest.mark.parametrize(
    ("identifier", "flaw"),
    [
        ("", "blanks"),
        (" a", "blanks"),
        ("a\n", "blanks"),
        ("a\u2003", "blanks"),
        ("a\0b", "NUL"),
        ("a\ud800", "surrogate"),
        ("é" * 256, "255"),
        ("é" * 255, None),
        ("😀 [x]'\"%s:y\\", None),
    ],
)
def test_ids_on_whose_equality_databases_differ_are_refused(
    ledger: Ledger, identifier: str, flaw: str | None
) -> None:
    assert (flaw_of(identifier) or "none").find(flaw or "none") >= 0
    if flaw is None:
        opened(ledger, identifier)
        assert ledger.enrol(identifier, [Enrolment("k", 1, identifier)]).joined == 1
        assert cycle(ledger, campaign=identifier).claimed[0].visitor_id == identifier
        return
    with pytest.raises(ValueError, match=flaw):
        opened(ledger, identifier)
    opened(ledger)
    with pytest.raises(ValueError, match=flaw):
        ledger.enrol("c", [Enrolment("k", 1, identifier)])
    with pytest.raises(ValueError, match=flaw):
        ledger.suppress([identifier], "bounced")


def test_ids_that_differ_in_case_or_accent_are_different(ledger: Ledger) -> None:
    for campaign in ("a", "A", "á"):
        opened(ledger, campaign)
    assert len(ledger.campaigns()) == 3
    ledger.enrol("a", [Enrolment("k", 1, "a"), Enrolment("K", 2, "A"), Enrolment("ḱ", 3, "á")])
    ledger.suppress(["A"], "bounced")
    assert [row.visitor_id for row in cycle(ledger, campaign="a").claimed] == ["a", "á"]


@pytest.mark.parametrize(
    ("way", "refused"),
    [
        ("paused running", False),
        ("paused paused", False),
        ("paused aborted running", False),
        ("aborted paused", True),
        ("finished", True),
        ("paused finished", True),
    ],
)
def test_a_status_changes_only_in_the_ways_there_are(ledger: Ledger, way: str, refused: bool) -> None:
    opened(ledger)
    answers = [ledger.set_status("c", CampaignStatus(status)) for status in way.split()]
    assert isinstance(answers[-1], Refusal) is refused
    if not refused:
        assert ledger.campaign("c").status == way.rsplit(maxsplit=1)[-1]


def test_a_status_that_is_not_as_it_was_seen_is_not_changed(ledger: Ledger) -> None:
    opened(ledger)
    running, paused, aborted = CampaignStatus.RUNNING, CampaignStatus.PAUSED, CampaignStatus.ABORTED
    assert ledger.set_status("c", paused, seen=running) == ledger.campaign("c")
    # Also where it is what is asked for: somebody else's pause is not to be taken for one's own.
    for status in (aborted, paused, running):
        refusal = ledger.set_status("c", status, seen=running)
        assert refusal == Refusal(RefusalKind.STATUS, "seen", paused, running)
    assert ledger.campaign("c").status is paused
    assert ledger.set_status("c", aborted, seen=paused) == ledger.campaign("c")


# enrolment


def test_an_audience_is_enrolled_whole_and_keeps_what_was_known_of_each(ledger: Ledger, clock: Clock) -> None:
    variables = {"name": "Ü\0😀", "n": 1.5, "none": None, "list": [True, {"a": []}]}
    row = Enrolment("key", 77, "v", "b", None, "Europe/Paris", "fr-CA", variables)
    held = Enrolment("held", 5, "w", skip="holdout")
    assert audience(ledger, [row, held]) == Enrolled(2, 0, 0, 2)
    campaign = ledger.campaign("c")
    assert (campaign.total, campaign.enrolled_at_ms) == (2, clock.ms)
    assert list(ledger.deliveries("c")) == [
        Delivery(5, "held", "w", {}, None, None, "", SKIPPED, "holdout", at_ms=clock.ms),
        Delivery(77, "key", "v", variables, "Europe/Paris", "fr-CA", "b", PENDING, at_ms=clock.ms),
    ]


def test_the_same_once_key_is_enrolled_once_and_the_first_row_wins(ledger: Ledger) -> None:
    first, second = Enrolment("k", 3, "v", variables={"n": 1}), Enrolment("k", 3, "v", variables={"n": 2})
    assert audience(ledger, [first, *people(1, 2), second, second]) == Enrolled(3, 2, 0, 3)
    assert ledger.campaign("c").duplicates == 2
    assert rows(ledger)[3].variables == {"n": 1}


def test_a_snapshot_is_taken_once_and_the_audience_is_not_even_read_again(ledger: Ledger) -> None:
    opened(ledger)
    assert ledger.enrol("c", people(1, 2), bad_rows=lambda: 7) == Enrolled(2, 0, 7, 2)

    def unread() -> Iterator[Enrolment]:
        pytest.fail("read")
        yield

    assert ledger.enrol("c", unread()) == Enrolled(0, 0, 7, 2)
    assert ledger.campaign("c").bad_rows == 7


@pytest.mark.parametrize("each_run", [False, True])
def test_an_audience_that_breaks_off_enrols_nobody(ledger: Ledger, each_run: bool) -> None:
    opened(ledger, each_run=each_run)

    def broken() -> Iterator[Enrolment]:
        yield from people(*range(5000))
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="gone"):
        ledger.enrol("c", broken())
    assert ledger.campaign("c").enrolled_at_ms is None
    assert cycle(ledger).claimed == ()
    assert ledger.enrol("c", people(1)) == Enrolled(1, 0, 0, 1)


@pytest.mark.parametrize(
    "row",
    [
        Enrolment("", 1, "v"),
        Enrolment("a\0b", 1, "v"),
        Enrolment("k\udfff", 1, "v"),
        Enrolment("k", -1, "v"),
        Enrolment("k", RANKS, "v"),
        Enrolment("k", 1, "v", variant="x" * 256),
        Enrolment("k", 1, "v", locale="fr\0"),
        Enrolment("k", 1, "v", timezone="\ud800"),
        Enrolment("k", 1, "v", variables={"n": float("nan")}),
    ],
)
def test_a_row_that_not_every_ledger_could_hold_is_refused_by_all(ledger: Ledger, row: Enrolment) -> None:
    opened(ledger)
    with pytest.raises(ValueError):  # noqa: PT011 - json's own words differ by version
        ledger.enrol("c", [row])


def test_two_keys_of_one_rank_are_both_enrolled_and_both_known_again(ledger: Ledger) -> None:
    twins = [Enrolment(f"k{n}", 10**18 if n < 3 else 0, f"v{n}") for n in range(5)]
    assert audience(ledger, twins, each_run=True).joined == 5
    assert ledger.enrol("c", reversed(twins)) == Enrolled(0, 5, 0, 5)
    assert ledger.enrol("c", [Enrolment("k9", 10**18, "v9"), twins[0]]).joined == 1
    assert {row.visitor_id for row in ledger.deliveries("c")} == {"v0", "v1", "v2", "v3", "v4", "v9"}


def test_a_key_known_at_its_rank_is_known_again_when_another_of_that_rank_comes_before_it(
    ledger: Ledger,
) -> None:
    audience(ledger, [Enrolment("b", 5, "v")], each_run=True)
    assert ledger.enrol("c", [Enrolment("a", 5, "w"), Enrolment("b", 5, "v")]) == Enrolled(1, 1, 0, 2)


def test_two_keys_of_the_very_last_rank_are_refused_by_name(ledger: Ledger) -> None:
    opened(ledger)
    with pytest.raises(ValueError, match="last of all ranks"):
        ledger.enrol("c", [Enrolment("a", RANKS - 1, "v"), Enrolment("b", RANKS - 1, "w")])
    assert ledger.campaign("c").enrolled_at_ms is None


def test_newcomers_join_at_each_run_and_wake_a_finished_campaign(ledger: Ledger) -> None:
    audience(ledger, people(1, 2, timezone="UTC"), each_run=True)
    cycle(ledger, results=[result(row, SENT) for row in cycle(ledger).claimed], wanted=0)
    assert ledger.finish("c")
    assert ledger.enrol("c", people(2, 1)) == Enrolled(0, 2, 0, 2)
    assert ledger.campaign("c").status == CampaignStatus.FINISHED
    assert ledger.enrol("c", people(3, 1, timezone="Asia/Tokyo")) == Enrolled(1, 1, 0, 3)
    assert ledger.campaign("c").status == CampaignStatus.RUNNING
    assert [(row.visitor_id, row.timezone) for row in cycle(ledger).claimed] == [("v3", "Asia/Tokyo")]


# fraction


@pytest.mark.parametrize(
    ("fraction", "total", "first"),
    [(0.05, 1000, 50), (0.07, 100, 7), (0.1, 30, 3), (0.3, 10, 3), (0.001, 10, 1), (1.0, 7, 7), (0.5, 7, 4)],
)
def test_a_fraction_of_a_snapshot_is_exact(ledger: Ledger, fraction: float, total: int, first: int) -> None:
    assert first_ranks(fraction, total) == first
    audience(ledger, people(*range(total)))
    assert ledger.set_fraction("c", fraction).fraction == fraction
    claimed = cycle(ledger, wanted=10_000).claimed
    assert [row.rank for row in claimed] == [n * 10 for n in range(first)]
    assert ledger.counts("c").held_back == total - first
    assert ledger.counts("c").due == 0


def test_a_larger_fraction_contains_the_smaller_one(ledger: Ledger) -> None:
    audience(ledger, people(*range(10)))
    ledger.set_fraction("c", 0.2)
    canary = cycle(ledger).claimed
    assert ledger.backlog("c") == Backlog(ledger.now_ms(), frozenset(), True, 2, ledger.now_ms() + 60_000)
    ledger.set_fraction("c", 1)
    assert ledger.campaign("c").limit_rank is None
    assert len({row.rank for row in (*canary, *cycle(ledger).claimed)}) == 10


def test_where_newcomers_join_a_fraction_is_a_share_of_the_ranks(ledger: Ledger) -> None:
    ranks = [0, RANKS // 10 - 1, RANKS // 4 - 1, RANKS // 4, RANKS - 1]
    audience(ledger, [Enrolment(f"k{rank}", rank, f"v{rank}") for rank in ranks], each_run=True)
    ledger.set_fraction("c", 0.25)
    assert [row.rank for row in cycle(ledger).claimed] == ranks[:3]
    ledger.enrol("c", [Enrolment("new", 7, "new"), Enrolment("late", RANKS // 2, "late")])
    assert [row.rank for row in cycle(ledger).claimed] == [7]


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_a_fraction_is_over_nothing_and_up_to_all(ledger: Ledger, fraction: float) -> None:
    opened(ledger)
    with pytest.raises(ValueError, match="fraction"):
        ledger.set_fraction("c", fraction)


# the cycle


def test_a_claim_is_an_intent_with_a_lease_and_the_text_of_the_moment(ledger: Ledger, clock: Clock) -> None:
    audience(ledger, people(3, 1, 2))
    ledger.revise("c", Text("new", {}))
    clock.seconds += 5
    token = new_token()
    cycled = cycle(ledger, 2, token=token, lease_seconds=90)
    assert [row.visitor_id for row in cycled.claimed] == ["v1", "v2"]
    for row in cycled.claimed:
        assert (row.state, row.claim, row.lease_until_ms) == (SENDING, token, clock.ms + 90_000)
        assert (row.revision, row.at_ms) == (2, clock.ms)
        assert rows(ledger)[row.rank] == row
    assert (cycled.now_ms, cycled.campaign.claims, cycled.granted.permits) == (clock.ms, 2, 2)
    assert cycled.campaign == ledger.campaign("c")
    assert ledger.identity().claims == 2
    assert [row.visitor_id for row in cycle(ledger).claimed] == ["v3"]


def test_nothing_is_claimed_beyond_what_is_wanted_and_what_the_pace_allows(ledger: Ledger) -> None:
    audience(ledger, people(*range(20)))
    seen: list[int] = []

    def pace(quota: Quota, now_ms: int) -> tuple[Quota, int]:
        seen.append(now_ms)
        return replace(quota, limit=100), 3

    assert len(cycle(ledger, quota=use(50, pace=pace)).claimed) == 3
    assert len(cycle(ledger, quota=use(2, pace=pace)).claimed) == 2
    assert len(cycle(ledger, quota=use(50, pace=lambda quota, _: (quota, -4))).claimed) == 0
    assert seen == [ledger.now_ms()] * 2


@pytest.mark.parametrize("status", [CampaignStatus.PAUSED, CampaignStatus.ABORTED])
def test_a_campaign_that_is_not_running_claims_nothing_and_still_takes_results(
    ledger: Ledger, status: CampaignStatus
) -> None:
    audience(ledger, people(1, 2))
    (row,) = cycle(ledger, 1).claimed
    ledger.set_status("c", status)
    cycled = cycle(ledger, results=[result(row, SENT)])
    assert (cycled.claimed, cycled.recorded, cycled.campaign.status) == ((), 1, status)
    assert states(ledger) == [SENT, PENDING]


def test_zones_are_served_in_the_order_asked_for_and_others_not_at_all(ledger: Ledger) -> None:
    zones = ["UTC", "Asia/Tokyo", None, "Europe/Paris", "America/Lima"]
    audience(ledger, [Enrolment(f"k{n}", n, f"v{n}", timezone=zones[n % 5]) for n in range(15)])
    claimed = cycle(ledger, 7, zones=["Europe/Paris", None, "Mars/Base", "UTC", None]).claimed
    assert [row.rank for row in claimed] == [3, 8, 13, 2, 7, 12, 0]
    assert ledger.backlog("c").zones == {"UTC", "Asia/Tokyo", "America/Lima"}
    assert cycle(ledger, zones=["Europe/Paris"]).claimed == ()
    assert cycle(ledger, zones=[]).claimed == ()
    assert {row.rank for row in cycle(ledger).claimed} == {5, 10, 1, 6, 11, 4, 9, 14}


@pytest.mark.parametrize(
    ("state", "fields"),
    [
        (SENT, {"message_id": "m", "text_hash": "h"}),
        (FAILED, {"reason": "404 not_found"}),
        (IN_DOUBT, {"reason": "timeout", "text_hash": "h"}),
        (SKIPPED, {"reason": "blank"}),
        (PENDING, {}),
    ],
)
def test_each_result_becomes_the_row_s_state(
    ledger: Ledger, clock: Clock, state: State, fields: dict[str, Any]
) -> None:
    audience(ledger, people(1))
    (row,) = cycle(ledger).claimed
    clock.seconds += 1
    outcome = Result(row.rank, row.claim, state, **fields)
    cycled = cycle(ledger, 0, [outcome])
    assert cycled.recorded == 1
    (after,) = ledger.deliveries("c")
    assert after == replace(
        row,
        state=state,
        at_ms=clock.ms,
        reason=fields.get("reason"),
        text_hash=fields.get("text_hash"),
        message_ids=("m",) if state is SENT else (),
    )
    assert cycle(ledger, 0, [outcome]).recorded == (state is IN_DOUBT)
    assert states(ledger) == [state]


def test_a_row_given_back_can_be_claimed_in_the_same_cycle_under_the_new_token(ledger: Ledger) -> None:
    audience(ledger, people(1))
    (first,) = cycle(ledger).claimed
    (second,) = cycle(ledger, results=[result(first, PENDING)]).claimed
    assert (second.rank, second.claim == first.claim) == (first.rank, False)
    assert cycle(ledger, 0, [result(first, PENDING), result(first, FAILED)]).recorded == 0
    assert states(ledger) == [SENDING]


def test_an_expired_lease_is_a_doubt_and_never_sent_again(ledger: Ledger, clock: Clock) -> None:
    audience(ledger, people(1, 2))
    cycle(ledger, 1, lease_seconds=30)
    clock.seconds += 20
    cycle(ledger, 1, lease_seconds=30)
    clock.seconds += 9.999
    assert cycle(ledger).swept == 0
    clock.seconds += 0.001
    cycled = cycle(ledger)
    assert (cycled.swept, cycled.claimed) == (1, ())
    assert [(row.state, row.reason) for row in ledger.deliveries("c")] == [
        (IN_DOUBT, "lease_expired"),
        (SENDING, None),
    ]
    clock.seconds += 20
    assert cycle(ledger).swept == 1
    assert cycle(ledger).swept == 0
    clock.seconds += 1000
    assert cycle(ledger).claimed == ()


@pytest.mark.parametrize("state", [SENT, FAILED, PENDING, SKIPPED])
def test_a_result_that_comes_after_the_lease_is_recorded(ledger: Ledger, clock: Clock, state: State) -> None:
    audience(ledger, people(1))
    (row,) = cycle(ledger).claimed
    clock.seconds += 3600
    assert cycle(ledger, 0).swept == 1
    assert cycle(ledger, 0, [result(row, state)]).recorded == 1
    assert states(ledger) == [state]


def test_a_result_in_the_cycle_that_would_sweep_it_comes_first(ledger: Ledger, clock: Clock) -> None:
    audience(ledger, people(1))
    (row,) = cycle(ledger).claimed
    clock.seconds += 3600
    assert cycle(ledger, 0, [result(row, SENT)]).swept == 0
    assert states(ledger) == [SENT]


def test_a_clock_that_jumps_back_loses_nothing_and_sends_nothing_twice(ledger: Ledger, clock: Clock) -> None:
    audience(ledger, people(1, 2, 3))
    (first,) = cycle(ledger, 1, lease_seconds=60).claimed
    clock.seconds -= 3600
    (second,) = cycle(ledger, 1, lease_seconds=60).claimed
    clock.seconds += 61
    assert cycle(ledger, 0).swept == 1
    assert [row.state for row in ledger.deliveries("c")] == [SENDING, IN_DOUBT, PENDING]
    clock.seconds += 3600
    assert cycle(ledger, 0, [result(second, SENT)]).swept == 1
    assert cycle(ledger, 0, [result(first, SENT)]).recorded == 1
    assert states(ledger) == [SENT, SENT, PENDING]


def _after(result_state: State, own: bool, message: str | None) -> dict[State, State | None]:
    """What a result makes of each state; None: nothing."""
    if result_state is SENT:
        other_attempt = SENDING if not own else SENT
        return {
            PENDING: SENT,
            SENDING: other_attempt,
            SENT: SENT if message != "new" else None,
            FAILED: SENT,
            IN_DOUBT: SENT,
            SKIPPED: SENT,
            WITHDRAWN: SENT if message != "new" else None,
        }
    changed = result_state if message is None else SENT
    return dict.fromkeys(State) | ({SENDING: changed, IN_DOUBT: changed} if own else {})


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("outcome", [SENT, FAILED, IN_DOUBT, PENDING, SKIPPED])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("message", [None, "old", "new"])
def test_no_result_moves_a_row_in_a_way_the_state_machine_lacks(
    state: State, outcome: State, own: bool, message: str | None
) -> None:
    new = "new" if outcome is SENT else None
    change = transition(state, 1, message, Result(0, 1 if own else 2, outcome, message_id=new))
    expected = _after(outcome, own, message)[state]
    if state is SENDING and not own and outcome is SENT and message == "new":
        expected = None
    assert (change and change.state) == expected
    if change is not None and outcome is SENT:
        # No message that is known is ever lost.
        known = {change.message_id, change.extra, "old" if state is WITHDRAWN else None}
        assert {"new", message} <= known | {None}


def test_a_message_of_the_first_attempt_is_kept_beside_the_second_s(ledger: Ledger, clock: Clock) -> None:
    audience(ledger, people(1))
    (first,) = cycle(ledger).claimed
    clock.seconds += 3600
    cycle(ledger, 0)
    assert ledger.retry("c", IN_DOUBT) == 1
    (second,) = cycle(ledger).claimed
    late = result(first, SENT, message_id="first")
    cycle(ledger, 0, [late])
    assert (states(ledger), rows(ledger)[10].message_ids) == ([SENDING], ("first",))
    cycle(ledger, 0, [result(second, SENT, message_id="second"), late])
    assert (states(ledger), rows(ledger)[10].message_ids) == ([SENT], ("first", "second"))
    assert ledger.sent("c")[0].message_ids == ("first", "second")


def test_a_second_attempt_that_fails_does_not_hide_that_the_first_one_arrived(
    ledger: Ledger, clock: Clock
) -> None:
    audience(ledger, people(1))
    (first,) = cycle(ledger).claimed
    clock.seconds += 3600
    cycle(ledger, 0)
    ledger.retry("c", IN_DOUBT)
    (second,) = cycle(ledger).claimed
    cycle(ledger, 0, [result(first, SENT, message_id="first"), result(second, PENDING)])
    assert (states(ledger), rows(ledger)[10].message_ids) == ([SENT], ("first",))
    assert cycle(ledger).claimed == ()


def test_a_late_message_of_a_row_that_waits_for_its_second_attempt_spares_it(ledger: Ledger) -> None:
    audience(ledger, people(1))
    (row,) = cycle(ledger).claimed
    cycle(ledger, 0, [result(row, IN_DOUBT)])
    ledger.retry("c", IN_DOUBT)
    assert cycle(ledger, results=[result(row, SENT)]).claimed == ()
    assert states(ledger) == [SENT]


def test_results_of_rows_that_are_not_there_are_passed_over(ledger: Ledger) -> None:
    audience(ledger, people(1))
    assert cycle(ledger, 0, [Result(99, 1, SENT, message_id="m")]).recorded == 0


def test_who_works_when_and_what_the_engine_noted_is_kept_with_the_campaign(
    ledger: Ledger, clock: Clock
) -> None:
    audience(ledger, people(1))
    cycle(ledger, 0, memo={"doubts": 2}, next_wake_ms=clock.ms + 5000)
    campaign = ledger.campaign("c")
    assert (campaign.last_seen_ms, campaign.next_wake_ms) == (clock.ms, clock.ms + 5000)
    cycled = cycle(ledger, next_wake_ms=clock.ms + 5000)
    assert (cycled.campaign.memo, cycled.campaign.next_wake_ms) == ({"doubts": 2}, None)
    assert cycle(ledger, 0, memo={}).campaign.memo == {}


def test_a_rule_that_raises_changes_nothing(ledger: Ledger) -> None:
    audience(ledger, people(1, 2, 3))
    (row,) = cycle(ledger, 1).claimed
    before, quota = rows(ledger), ledger.quota(use(0, flying=1)).quota

    def screen(delivery: Delivery) -> str | None:
        if delivery.rank == 30:
            raise RuntimeError("a rule")
        return "no" if delivery.rank == 20 else None

    with pytest.raises(RuntimeError, match="a rule"):
        cycle(ledger, results=[result(row, FAILED)], screen=screen, cap=Cap(1, 10, "g"))
    assert rows(ledger) == before
    assert ledger.quota(use(0, flying=1)).quota == quota
    assert [row.rank for row in cycle(ledger, cap=Cap(1, 10, "g")).claimed] == [20, 30]


# rules read at the claim


def test_whoever_must_not_be_written_to_is_skipped_by_reason_and_others_take_the_place(
    ledger: Ledger,
) -> None:
    audience(ledger, people(*range(9)))
    ledger.suppress(["v1"], "bounced")
    ledger.exclude("c", ["v2", "v9"])
    ledger.forget_visitor("v3")
    cycled = cycle(ledger, 4, screen=lambda row: "not_allowed" if row.visitor_id == "v4" else None)
    assert [row.visitor_id for row in cycled.claimed] == ["v0", "v5", "v6", "v7"]
    assert cycled.skipped == {"suppressed": 1, "excluded": 1, "not_allowed": 1}
    assert {row.rank: row.reason for row in ledger.deliveries("c", states=[SKIPPED])} == {
        10: "suppressed",
        20: "excluded",
        30: "forgotten",
        40: "not_allowed",
    }


def test_two_who_exclude_the_same_at_once_leave_nobody_of_them_out(ledger: Ledger) -> None:
    audience(ledger, people(1))
    excluded = [f"v{number}" for number in range(2500)]

    def meanwhile() -> Iterator[str]:
        yield from excluded[:2400]
        assert ledger.exclude("c", excluded) == 2500
        yield from excluded[2400:]

    assert ledger.exclude("c", meanwhile()) == 2500


def test_excluding_replaces_what_was_excluded_before_and_concerns_one_campaign(ledger: Ledger) -> None:
    audience(ledger, people(1, 2), "c")
    audience(ledger, people(1, 2), "d")
    assert ledger.exclude("c", ["v1", "v1", "v7"]) == 2
    assert ledger.exclude("c", (f"v{n}" for n in (2, 7))) == 2
    assert [row.visitor_id for row in cycle(ledger).claimed] == ["v1"]
    assert len(cycle(ledger, campaign="d").claimed) == 2
    assert ledger.exclude("c", []) == 0


def test_a_rule_that_refuses_nearly_everybody_still_finds_the_few(ledger: Ledger) -> None:
    audience(ledger, people(*range(5000)))
    claimed, skipped, turns = [], 0, 0
    while ledger.backlog("c").zones:
        cycled = cycle(ledger, 8, screen=lambda row: "no" if row.rank % 10_000 else None)
        claimed += [row.rank for row in cycled.claimed]
        skipped += sum(cycled.skipped.values())
        turns += 1
    assert (claimed, skipped) == ([0, 10_000, 20_000, 30_000, 40_000], 4995)
    assert turns <= 4


def test_a_frequency_cap_counts_across_the_campaigns_of_its_group(ledger: Ledger, clock: Clock) -> None:
    for campaign in ("c", "d", "e"):
        audience(ledger, people(1, 2), campaign)
    cap = Cap(1, 3600, "news")
    assert len(cycle(ledger, 1, cap=cap).claimed) == 1
    assert len(cycle(ledger, campaign="e", cap=Cap(1, 3600, "other")).claimed) == 2
    clock.seconds += 3599
    cycled = cycle(ledger, campaign="d", cap=cap)
    assert ([row.visitor_id for row in cycled.claimed], cycled.skipped) == (["v2"], {"frequency_cap": 1})
    audience(ledger, people(1, 2), "f")
    clock.seconds += 1
    cycled = cycle(ledger, campaign="f", cap=cap)
    assert ([row.visitor_id for row in cycled.claimed], cycled.skipped) == (["v1"], {"frequency_cap": 1})


@pytest.mark.parametrize(
    ("state", "counts"), [(SENT, 1), (IN_DOUBT, 1), (FAILED, 0), (PENDING, 0), (SKIPPED, 0)]
)
def test_a_frequency_cap_forgets_what_surely_did_not_arrive(
    ledger: Ledger, state: State, counts: int
) -> None:
    audience(ledger, people(1), "c")
    audience(ledger, people(1), "d")
    cap = Cap(1, 3600, "news")
    (row,) = cycle(ledger, cap=cap).claimed
    cycle(ledger, 0, [result(row, state)], cap=cap)
    assert len(cycle(ledger, campaign="d", cap=cap).claimed) == 1 - counts


def test_one_visitor_s_orders_in_one_claim_count_beside_each_other(ledger: Ledger) -> None:
    audience(ledger, [Enrolment(f"order{n}", n, "v") for n in range(5)])
    cycled = cycle(ledger, cap=Cap(2, 3600, "orders"))
    assert (len(cycled.claimed), cycled.skipped) == (2, {"frequency_cap": 3})


# quota


def test_a_quota_row_is_shared_by_campaigns_and_single_calls_of_an_account(ledger: Ledger) -> None:
    audience(ledger, people(*range(9)))
    flying: list[int] = []

    def pace(quota: Quota, now_ms: int) -> tuple[Quota, int]:
        flying.append(quota.in_flight(now_ms, besides="me"))
        return replace(quota, limit=(quota.limit or 0) + 1), 5

    cycle(ledger, quota=use(3, holder="worker", flying=2, pace=pace))
    granted = ledger.quota(use(1, holder="me", pace=pace))
    assert (granted.permits, granted.quota.in_flight(granted.now_ms)) == (1, 6)
    assert granted.quota.limit == 2
    assert flying == [0, 5]
    assert ledger.quota(use(1, holder="me", account="other")).quota.in_flight(0) == 1
    assert ledger.quota(use(0, holder="me", pace=pace)).quota.in_flight(granted.now_ms) == 5
    assert flying == [0, 5, 5]


def test_quotas_are_read_by_account_and_bucket_and_nothing_is_asked_of_them(ledger: Ledger) -> None:
    assert ledger.quotas() == {}

    def told(quota: Quota, now_ms: int) -> tuple[Quota, int]:
        return replace(quota, limit=100, remaining=37, reset_at_ms=now_ms + 1000), 1

    granted = ledger.quota(use(1, holder="me", pace=told))
    asked = use(1)
    assert ledger.quotas() == {(asked.account, asked.bucket): granted.quota} == ledger.quotas()


def test_a_holder_that_died_stops_counting(ledger: Ledger, clock: Clock) -> None:
    ledger.quota(use(4, holder="dead"))
    clock.seconds += 60
    quota = ledger.quota(use(1, holder="alive")).quota
    assert (quota.in_flight(ledger.now_ms()), set(quota.holders)) == (1, {"alive"})


def test_a_probe_nobody_needed_is_given_back(ledger: Ledger) -> None:
    opened(ledger)

    def probing(quota: Quota, now_ms: int) -> tuple[Quota, int]:
        return replace(quota, probe="w", probe_until_ms=now_ms + 60_000), 1

    assert cycle(ledger, quota=use(1, pace=probing)).granted.quota.probe is None
    ledger.enrol("c", people(1))
    assert cycle(ledger, quota=use(1, pace=probing)).granted.quota.probe == "w"


# ending


def test_a_campaign_is_finished_when_nothing_is_pending_or_sending(ledger: Ledger) -> None:
    audience(ledger, people(1, timezone="UTC"))
    assert not ledger.finish("c")
    (row,) = cycle(ledger).claimed
    assert not ledger.finish("c")
    cycle(ledger, 0, [result(row, IN_DOUBT)])
    assert ledger.finish("c")
    assert ledger.finish("c")
    assert ledger.campaign("c").status == CampaignStatus.FINISHED
    assert ledger.retry("c", IN_DOUBT) == 1
    assert ledger.campaign("c").status == CampaignStatus.RUNNING


def test_a_paused_campaign_does_not_finish(ledger: Ledger) -> None:
    opened(ledger)
    ledger.set_status("c", CampaignStatus.PAUSED)
    assert not ledger.finish("c")


def test_what_is_pending_can_be_skipped_in_chunks(ledger: Ledger) -> None:
    audience(ledger, people(*range(4), timezone="UTC") + people(*range(4, 7)))
    ledger.set_fraction("c", 0.3)
    cycle(ledger, 1)
    assert [ledger.skip_pending("c", "expired", limit=4) for _ in range(3)] == [4, 2, 0]
    assert [share.count for share in ledger.breakdown("c") if share.reason == "expired"] == [6]


def test_failures_are_tried_again_by_reason(ledger: Ledger) -> None:
    audience(ledger, people(*range(6)))
    reasons = ["404", "422", "404", None]
    claimed = cycle(ledger, 4).claimed
    cycle(ledger, 0, [result(row, FAILED, reason=why) for row, why in zip(claimed, reasons, strict=True)])
    assert ledger.retry("c", FAILED, reasons=[]) == 0
    assert ledger.retry("c", FAILED, reasons=["404"]) == 2
    assert ledger.retry("c", IN_DOUBT) == 0
    assert states(ledger) == [PENDING, FAILED, PENDING, FAILED, PENDING, PENDING]
    assert ledger.retry("c", FAILED) == 2
    assert [row.rank for row in cycle(ledger).claimed] == [0, 10, 20, 30, 40, 50]
    for state in (PENDING, SENDING, SENT, WITHDRAWN):
        with pytest.raises(ValueError, match="tried again"):
            ledger.retry("c", state)


@pytest.mark.parametrize(
    ("state", "message", "ids"),
    [(SENT, "m", ("m",)), (SENT, None, ()), (FAILED, None, ()), (PENDING, None, ())],
)
def test_a_doubt_is_settled_by_hand(
    ledger: Ledger, state: State, message: str | None, ids: tuple[str, ...]
) -> None:
    audience(ledger, people(1, 2))
    claimed = cycle(ledger, 2).claimed
    cycle(ledger, 0, [result(claimed[0], IN_DOUBT), result(claimed[1], FAILED)])
    assert not ledger.settle("c", "k2", state)
    assert not ledger.settle("c", "K1", state)
    assert not ledger.settle("c", "k1 ", state)
    assert ledger.settle("c", "k1", state, message_id=message)
    assert (rows(ledger)[10].state, rows(ledger)[10].message_ids) == (state, ids)
    assert not ledger.settle("c", "k1", state)
    with pytest.raises(ValueError, match="settled"):
        ledger.settle("c", "k1", WITHDRAWN)


# edits and withdrawals


def sent(ledger: Ledger, count: int) -> list[Delivery]:
    audience(ledger, people(*range(count)))
    results = [result(row, SENT, text_hash="old") for row in cycle(ledger, count).claimed]
    cycle(ledger, 0, results)
    return ledger.sent("c")


def edit(ledger: Ledger, editor: int = 1, results: Sequence[EditResult] = (), **fields: Any) -> Any:
    quota = fields.pop("quota", use(5, holder="editor"))
    return ledger.edit(EditCycle("c", editor, quota, fields.pop("lease_seconds", 60), results))


def test_one_editor_at_a_time_until_it_gives_up_or_dies(ledger: Ledger, clock: Clock) -> None:
    (row,) = sent(ledger, 1)
    assert edit(ledger, 1).granted.permits == 5
    change = [EditResult(row.rank, WITHDRAWN, row.message_ids)]
    assert edit(ledger, 2, change) == EditorBusy(clock.ms, clock.ms + 60_000)
    assert states(ledger) == [SENT]
    assert isinstance(edit(ledger, 1, lease_seconds=0), Edited)
    assert isinstance(edit(ledger, 2), Edited)
    clock.seconds += 60
    assert edit(ledger, 3, change).recorded == 1
    assert isinstance(edit(ledger, 2), EditorBusy)


def test_rows_that_show_an_older_text_are_listed_until_their_edit_is_recorded(ledger: Ledger) -> None:
    known = sent(ledger, 5)
    ledger.revise("c", Text("new", {}))
    assert [row.rank for row in ledger.sent("c", below_revision=2, limit=3)] == [0, 10, 20]
    assert [row.rank for row in ledger.sent("c", below_revision=2, after=20)] == [30, 40]
    results = [
        EditResult(0, SENT, known[0].message_ids, revision=2, text_hash="new"),
        EditResult(10, SENT, known[1].message_ids, revision=2),
        EditResult(20, SENT, known[2].message_ids, reason="edit 400"),
        EditResult(30, WITHDRAWN, known[3].message_ids, reason="gone"),
        EditResult(99, SENT, ()),
    ]
    assert edit(ledger, results=results).recorded == 4
    after = rows(ledger)
    assert [(row.revision, row.text_hash, row.reason) for row in after.values()] == [
        (2, "new", None),
        (2, "old", None),
        (1, "old", "edit 400"),
        (1, "old", "gone"),
        (1, "old", None),
    ]
    assert [row.rank for row in ledger.sent("c", below_revision=2)] == [20, 40]
    assert after[30].state is WITHDRAWN
    assert edit(ledger, results=[EditResult(30, SENT, known[3].message_ids, revision=2)]).recorded == 0


def test_rows_sent_before_a_moment_are_listed_for_withdrawal(ledger: Ledger, clock: Clock) -> None:
    audience(ledger, people(1, 2))
    cycle(ledger, 0, [result(row, SENT) for row in cycle(ledger, 1).claimed])
    clock.seconds += 10
    cycle(ledger, 0, [result(row, SENT) for row in cycle(ledger, 1).claimed])
    assert [row.rank for row in ledger.sent("c", sent_before_ms=clock.ms)] == [10]


def test_an_edit_of_one_message_does_not_cover_a_second_one_that_came_meanwhile(ledger: Ledger) -> None:
    (row,) = sent(ledger, 1)
    cycle(ledger, 0, [Result(0, 12345, SENT, message_id="late")])
    for state, revision in ((SENT, 2), (WITHDRAWN, None)):
        change = EditResult(0, state, row.message_ids, revision=revision)
        assert edit(ledger, results=[change]).recorded == 0
    assert edit(ledger, results=[EditResult(0, WITHDRAWN, ("m0", "late"))]).recorded == 1


def test_a_message_that_turns_up_after_the_withdrawal_is_met_by_the_next_pass(ledger: Ledger) -> None:
    (row,) = sent(ledger, 1)
    edit(ledger, results=[EditResult(0, WITHDRAWN, row.message_ids)])
    assert ledger.sent("c") == []
    again = Result(0, row.claim, SENT, message_id="m0")
    assert cycle(ledger, 0, [again]).recorded == 0
    cycle(ledger, 0, [replace(again, message_id="late")])
    assert [row.message_ids for row in ledger.sent("c")] == [("late",)]


# looking


def test_counts_are_those_of_the_rows_however_far_a_campaign_has_come(ledger: Ledger) -> None:
    """A ledger need not count all it has."""

    def see() -> None:
        assert ledger.counts("c").by_state == Counter(states(ledger))

    opened(ledger, each_run=True)
    see()
    ledger.enrol("c", [Enrolment(f"k{n}", n, f"v{n}") for n in range(9)])
    see()
    for outcomes in ((SENT, FAILED), (SENT, IN_DOUBT, SENT), (SENT, SENT, SENT, SENT)):
        claimed = cycle(ledger, len(outcomes)).claimed
        see()
        cycle(ledger, 0, [result(*pair) for pair in zip(claimed, outcomes, strict=True)])
        see()
    ledger.enrol("c", [Enrolment(f"k{n}", n, f"v{n}") for n in range(40)])
    see()
    while ledger.retry("c", FAILED):
        see()
    while ledger.skip_pending("c", "late"):
        see()


def test_deliveries_are_counted_charted_and_listed(ledger: Ledger, clock: Clock) -> None:
    zones = ["UTC", None]
    audience(ledger, [Enrolment(f"k{n}", n, f"v{n}", "ab"[n % 2], timezone=zones[n % 2]) for n in range(8)])
    start = clock.ms - clock.ms % 60_000
    for minute, outcome in enumerate((SENT, SENT, FAILED)):
        clock.seconds = start / 1000 + minute * 60
        (row,) = cycle(ledger, 1).claimed
        cycle(ledger, 0, [result(row, outcome, reason="404" if outcome is FAILED else None)])
    counts = ledger.counts("c")
    assert (counts.by_state, counts.held_back) == ({PENDING: 5, SENT: 2, FAILED: 1}, 0)
    assert (counts.total, counts.due) == (8, 5)
    assert [
        (share.state, share.reason, share.variant, share.revision, share.count)
        for share in ledger.breakdown("c")
    ] == [
        (PENDING, None, "a", 0, 1),
        (PENDING, None, "b", 0, 4),
        (SENT, None, "a", 1, 2),
        (FAILED, "404", "a", 1, 1),
    ]
    assert [
        (moment.start_ms - start, moment.state, moment.count) for moment in ledger.series("c", seconds=60)
    ] == [
        (0, SENT, 1),
        (60_000, SENT, 1),
        (120_000, FAILED, 1),
    ]
    assert len(ledger.series("c", seconds=3600, since_ms=start + 1)) == 2
    assert [row.rank for row in ledger.deliveries("c")] == list(range(8))
    assert [row.rank for row in ledger.deliveries("c", states=[FAILED, PENDING])] == [6, 1, 3, 5, 7, 4]
    assert [row.rank for row in ledger.deliveries("c", reasons=["404"])] == [4]
    assert [row.rank for row in ledger.deliveries("c", states=[SENT], before_ms=start + 1)] == [0]
    assert list(ledger.deliveries("c", reasons=[])) == []


def test_deliveries_are_listed_beyond_a_page(ledger: Ledger) -> None:
    audience(ledger, people(*range(1203)))
    assert [row.rank for row in ledger.deliveries("c")] == [n * 10 for n in range(1203)]
    assert len(list(ledger.deliveries("c", states=[PENDING, SENT]))) == 1203


def test_newcomers_of_a_new_time_zone_disturb_nobody_who_iterates(ledger: Ledger) -> None:
    audience(ledger, people(*range(1203)), each_run=True)
    reading = ledger.deliveries("c")
    first = next(reading)
    ledger.enrol("c", [Enrolment("new", 12_025, "w", timezone="Asia/Tokyo")])
    met = {row.visitor_id: row.timezone for row in (first, *reading)}
    assert met.items() >= {f"v{n}": None for n in range(1203)}.items()
    assert met.get("w", "Asia/Tokyo") == "Asia/Tokyo"


# people


def test_the_list_of_suppressed_visitors(ledger: Ledger, clock: Clock) -> None:
    assert ledger.suppress((f"v{n}" for n in range(1500)), "bounced") == 1500
    assert ledger.suppress(["v1", "v2000", "v2000"], "complained") == 1
    assert ledger.unsuppress(["v3", "nobody"]) == 1
    listed = {entry.visitor_id: entry for entry in ledger.suppressed()}
    assert len(listed) == 1500
    assert (listed["v1"].reason, listed["v2000"].reason, listed["v1"].at_ms) == (
        "bounced",
        "complained",
        clock.ms,
    )


def test_a_forgotten_visitor_is_erased_everywhere_and_stays_unwritten_to(ledger: Ledger) -> None:
    for campaign in ("c", "d"):
        audience(ledger, people(1, 2, variables={"mail": "x"}), campaign, each_run=True)
    (row,) = cycle(ledger, 1, campaign="c").claimed
    assert ledger.forget_visitor("v1") == 2
    for campaign in ("c", "d"):
        erased = rows(ledger, campaign)[10]
        assert (erased.visitor_id, erased.variables, "v1" in erased.key, "k1" in erased.key) == (
            None,
            None,
            False,
            False,
        )
        assert ledger.enrol(campaign, people(1, 2)) == Enrolled(0, 2, 0, 2)
    assert states(ledger, "d") == [SKIPPED, PENDING]
    cycle(ledger, 0, [result(row, PENDING)], campaign="c")
    cycled = cycle(ledger, campaign="c")
    assert ([row.visitor_id for row in cycled.claimed], cycled.skipped) == (["v2"], {"forgotten": 1})
    assert [entry.visitor_id for entry in ledger.suppressed()] == [None]
    assert ledger.unsuppress(["v1"]) == 1


@pytest.mark.parametrize("each_run", [False, True])
@pytest.mark.parametrize("when", ["before", "while the audience is read"])
def test_a_later_audience_holds_of_a_forgotten_visitor_what_a_claim_would_leave_though_none_comes(
    ledger: Ledger, each_run: bool, when: str
) -> None:
    opened(ledger, each_run=each_run)
    ledger.set_status("c", CampaignStatus.PAUSED)
    ledger.suppress(["v4"], "bounced")
    told = [*people(1, skip="holdout", variables={"m": "x"}), *people(2, 3, 4, variables={"m": "x"})]

    def forget() -> None:
        for visitor in ("v1", "v2"):
            ledger.forget_visitor(visitor)

    def read() -> Iterator[Enrolment]:
        yield from told
        if when != "before":
            forget()

    if when == "before":
        forget()
    assert ledger.enrol("c", read()) == Enrolled(4, 0, 0, 4)
    kept = rows(ledger)
    for rank, reason in ((10, "holdout"), (20, "forgotten")):
        erased = kept[rank]
        assert (erased.state, erased.reason) == (SKIPPED, reason)
        assert (erased.visitor_id, erased.variables, erased.key[0]) == (None, None, "#")
    assert [(row.visitor_id, row.key, row.state) for row in (kept[30], kept[40])] == [
        ("v3", "k3", PENDING),
        ("v4", "k4", PENDING),
    ]
    assert ledger.enrol("c", told) == (Enrolled(0, 4, 0, 4) if each_run else Enrolled(0, 0, 0, 4))
    ledger.set_status("c", CampaignStatus.RUNNING)
    cycled = cycle(ledger)
    assert ([row.visitor_id for row in cycled.claimed], cycled.skipped) == (["v3"], {"suppressed": 1})


def test_variables_of_what_came_to_an_end_are_scrubbed_after_a_while(ledger: Ledger, clock: Clock) -> None:
    audience(ledger, people(1, 2, 3, variables={"x": 1}))
    claimed = cycle(ledger, 2).claimed
    cycle(ledger, 0, [result(claimed[0], SENT)])
    assert ledger.scrub_variables(clock.ms) == 0
    clock.seconds += 1
    assert ledger.scrub_variables(clock.ms) == 1
    assert ledger.scrub_variables(clock.ms) == 0
    assert [row.variables for row in ledger.deliveries("c")] == [None, {"x": 1}, {"x": 1}]


def test_a_campaign_that_is_over_can_be_purged_and_the_claims_do_not_fall(ledger: Ledger) -> None:
    audience(ledger, people(*range(3)))
    ledger.exclude("c", ["v9"])
    claimed = cycle(ledger, 2, cap=Cap(1, 10, "g")).claimed
    refusal = ledger.purge("c")
    assert isinstance(refusal, Refusal)
    assert refusal.kind is RefusalKind.STATUS
    ledger.set_status("c", CampaignStatus.ABORTED)
    cycle(ledger, 0, [result(row, SENT) for row in claimed])
    assert ledger.purge("c") is None
    with pytest.raises(UnknownCampaign):
        ledger.campaign("c")
    assert ledger.identity().claims == 2
    audience(ledger, people(*range(3)))
    assert len(cycle(ledger, cap=Cap(1, 10, "g")).claimed) == 3
    assert ledger.identity().claims == 5


def test_a_campaign_is_purged_only_when_nothing_is_on_its_way_or_its_lease_is_over(
    ledger: Ledger, clock: Clock
) -> None:
    audience(ledger, people(*range(3)))
    (sent,) = cycle(ledger, 1).claimed
    clock.seconds += 10
    (lost,) = cycle(ledger, 1).claimed
    ledger.set_status("c", CampaignStatus.ABORTED)
    refusal = Refusal(RefusalKind.STATUS, "sending", str(lost.lease_until_ms), "purged")
    assert ledger.purge("c") == refusal
    cycle(ledger, 0, [result(sent, SENT)])
    assert ledger.purge("c") == refusal
    assert rows(ledger)[sent.rank].message_ids == ("m0",)
    clock.seconds += 60
    assert ledger.purge("c") is None
    assert ledger.campaigns() == []


def test_a_ledger_is_itself_however_often_it_is_opened(house: House) -> None:
    first, second = house.open().identity(), house.open().identity()
    assert first == second
    assert (first.schema, first.warnings) == (1, ())


def test_the_transition_value_names_what_changes() -> None:
    assert transition(SENDING, 1, None, Result(0, 1, SENT, message_id="m")) == Transition(SENT, "m")
