"""What the quota allows, by tables; the hours that follow from it are in ``test_engine``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sib.campaign.ledger import Holding, Quota
from airflow_provider_sib.campaign.pacing import Closed, Rate, Seen, opening, pace

NOW = 1_800_000_000_000
RATE = Rate(reserve=10, jitter_seconds=0.5)
OPEN = Quota(limit=100, remaining=60, reset_at_ms=NOW + 1_800_000, window_at_ms=NOW - 1_800_000)
FULL = Seen(begun_ago=0.3, ended_ago=0.1, limit=100, remaining=99, reset_in_seconds=3600)


def ask(
    quota: Quota,
    *seen: Seen,
    rate: Rate = RATE,
    flying: int = 0,
    wanted: int = 50,
    holder: str = "me",
    now_ms: int = NOW,
) -> tuple[Quota, int]:
    policy = pace(rate, seen, holder=holder, flying=flying, wanted=wanted, probe_seconds=90)
    return policy(quota, now_ms)


def others(flying: int, until_ms: int = NOW + 1000) -> dict[str, Holding]:
    return {"other": Holding(flying, until_ms)}


@pytest.mark.parametrize(
    ("quota", "flying", "permits"),
    [
        pytest.param(OPEN, 0, 50, id="what is left, less the reserve"),
        pytest.param(OPEN, 8, 42, id="less what this worker has in flight"),
        pytest.param(replace(OPEN, holders=others(20)), 8, 22, id="and the others"),
        pytest.param(replace(OPEN, holders=others(20, NOW - 1)), 0, 50, id="but not the dead"),
        pytest.param(replace(OPEN, holders={"me": Holding(30, NOW + 1)}), 5, 45, id="nor oneself twice"),
        pytest.param(replace(OPEN, remaining=10), 0, 0, id="nothing but the reserve"),
        pytest.param(replace(OPEN, remaining=0), 0, 0, id="nothing"),
        pytest.param(Quota(), 0, 1, id="nothing known: one, to learn"),
        pytest.param(Quota(), 1, 0, id="which is under way"),
        pytest.param(
            Quota(probe="other", probe_until_ms=NOW + 1), 0, 0, id="or another worker's is under way"
        ),
        pytest.param(Quota(probe="other", probe_until_ms=NOW), 0, 1, id="or was lost"),
        pytest.param(replace(OPEN, reset_at_ms=NOW - 1499), 0, 50, id="the window is not over for sure"),
        pytest.param(replace(OPEN, reset_at_ms=NOW - 1500), 0, 1, id="a new window: one, to learn"),
    ],
)
def test_permits(quota: Quota, flying: int, permits: int) -> None:
    assert ask(quota, flying=flying)[1] == permits


def test_who_wants_nothing_takes_no_probe() -> None:
    assert ask(Quota(), wanted=0) == (Quota(), 0)


def test_a_probe_opens_the_window_for_all() -> None:
    probing, permits = ask(Quota())
    assert (permits, probing.probe, probing.window_at_ms) == (1, "me", NOW)
    learnt, permits = ask(probing, FULL, now_ms=NOW + 300)
    assert (learnt.limit, learnt.remaining, learnt.probe) == (100, 99, None)
    assert learnt.reset_at_ms == NOW + 200 + 3_600_000
    assert permits == 89


@pytest.mark.parametrize(
    ("quota", "seen", "remaining", "reset_in_seconds"),
    [
        pytest.param(OPEN, {"remaining": 40}, 40, 1800, id="less is left"),
        pytest.param(OPEN, {"remaining": 70}, 60, 1800, id="an answer that was overtaken"),
        pytest.param(OPEN, {"remaining": None}, 59, 1800, id="an answer without headers counts"),
        pytest.param(
            OPEN,
            {"remaining": None, "reset_in_seconds": None},
            59,
            1800,
            id="an answer that never came counts",
        ),
        pytest.param(OPEN, {"remaining": None, "spent": False}, 60, 1800, id="what never got there doesn't"),
        pytest.param(OPEN, {"remaining": 0, "refused": True}, 0, 1800, id="refused"),
        pytest.param(
            OPEN,
            {"remaining": None, "reset_in_seconds": None, "refused": True},
            0,
            1800,
            id="refused without headers: an hour after the window began",
        ),
        pytest.param(
            OPEN,
            {"remaining": 40, "begun_ago": 1801.0},
            60,
            1800,
            id="an answer to what began before the window",
        ),
        pytest.param(
            OPEN,
            {"remaining": 99, "reset_in_seconds": 3600},
            99,
            3600,
            id="a new window, earlier than believed",
        ),
        pytest.param(
            OPEN, {"remaining": 99, "reset_in_seconds": 1801}, 60, 1801, id="seconds that were rounded up"
        ),
        pytest.param(
            OPEN,
            {"remaining": 99, "reset_in_seconds": 1820, "begun_ago": 30.0},
            60,
            1820,
            id="seconds that were late",
        ),
        pytest.param(
            replace(OPEN, reset_at_ms=NOW - 5000), {"remaining": 80}, 80, 1800, id="the probe of a new window"
        ),
        pytest.param(
            replace(OPEN, reset_at_ms=NOW - 5000),
            {"remaining": 15, "reset_in_seconds": 20},
            0,
            180,
            id="a new window that trickles: wait for a tenth",
        ),
        pytest.param(
            replace(OPEN, reset_at_ms=NOW - 5000),
            {"remaining": 15, "reset_in_seconds": 1800},
            0,
            1800,
            id="a new window that others used up",
        ),
        pytest.param(Quota(), {"remaining": 15}, 15, 1800, id="a first look is no new window"),
        pytest.param(
            Quota(),
            {"limit": None, "remaining": None, "reset_in_seconds": None},
            None,
            None,
            id="nothing told",
        ),
        pytest.param(
            Quota(), {"remaining": None, "reset_in_seconds": None}, 99, 3600, id="only the limit is told"
        ),
    ],
)
def test_observations(
    quota: Quota, seen: dict[str, Any], remaining: int | None, reset_in_seconds: float | None
) -> None:
    one = Seen(
        **{"begun_ago": 0.0, "ended_ago": 0.0, "limit": 100, "remaining": 0, "reset_in_seconds": 1800, **seen}
    )
    found, _ = ask(quota, one, wanted=0)
    assert found.remaining == remaining
    assert found.reset_at_ms == (None if reset_in_seconds is None else NOW + reset_in_seconds * 1000)


def test_a_connection_s_own_limit_is_counted_down_where_no_header_tells() -> None:
    rate = replace(RATE, requests_per_hour=100)
    quota, permits = ask(Quota(), rate=rate)
    silent = Seen(begun_ago=0.1, ended_ago=0.0)
    for left in (99, 98, 97):
        quota, permits = ask(quota, silent, rate=rate, now_ms=NOW + 200)
        assert (quota.remaining, permits) == (left, left - 10)
    assert quota.reset_at_ms == NOW + 3_600_000


@pytest.mark.parametrize(
    "quota",
    [
        replace(OPEN, window_at_ms=NOW + 86_400_000),
        replace(OPEN, reset_at_ms=NOW + 86_400_000),
    ],
)
def test_a_clock_that_jumped_back_does_not_shut_the_window_for_a_day(quota: Quota) -> None:
    found, permits = ask(quota)
    assert permits == 1
    assert found.limit == 100


@pytest.mark.parametrize(
    ("quota", "reason", "after_ms"),
    [
        (replace(OPEN, remaining=10), Closed.QUOTA, 1_800_000 + 1500),
        (replace(OPEN, holders=others(50)), Closed.IN_FLIGHT, 1000),
        (Quota(probe="other", probe_until_ms=NOW + 1), Closed.PROBE, 1000),
    ],
)
def test_when_to_ask_again(quota: Quota, reason: Closed, after_ms: int) -> None:
    found = opening(quota, NOW, rate=RATE)
    assert (found.reason, found.at_ms) == (reason, NOW + after_ms)


@pytest.mark.parametrize(("limit", "kept"), [(100, 10), (10, 9), (1, 0), (0, 0), (None, 10)])
def test_one_request_of_a_window_is_always_used(limit: int | None, kept: int) -> None:
    assert RATE.kept_back(limit) == kept


_maybe = st.none() | st.integers(0, 700)


@given(
    st.lists(
        st.builds(
            Seen,
            begun_ago=st.floats(0, 7200),
            ended_ago=st.floats(0, 60),
            limit=_maybe,
            remaining=_maybe,
            reset_in_seconds=st.none() | st.floats(0, 3600),
            refused=st.booleans(),
            spent=st.booleans(),
        ),
        max_size=8,
    ),
    st.integers(0, 20),
)
def test_whatever_is_told_permits_keep_to_what_is_left_and_waits_to_an_hour(
    seen: list[Seen], flying: int
) -> None:
    quota, permits = ask(OPEN, *seen, flying=flying)
    assert permits >= 0
    if permits > 1:
        assert permits <= (quota.remaining or 0) - flying
    else:
        assert opening(quota, NOW, rate=RATE).at_ms <= NOW + 3_600_000 + 5000 + 1500
