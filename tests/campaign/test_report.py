"""What a report counts, and the arithmetic of hours."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from airflow_provider_sib.campaign.ledger import Cycle, Enrolment, Quota, QuotaUse, Result, State, Text
from airflow_provider_sib.campaign.report import calls_take, duration, hours, hours_table, report

if TYPE_CHECKING:
    from airflow_provider_sib.campaign.ledger import Ledger


@pytest.mark.parametrize(
    ("calls", "per_hour", "left", "found"),
    [
        (0, 90, None, 0),
        (90, 90, None, 0),
        (91, 90, None, 1),
        (1000, 90, None, 11),
        (1000, 100, None, 9),
        (90, 90, 0, 1),
        (90, 90, 30, 1),
        (90, 90, 500, 0),
        (5, 0, None, 5),
    ],
)
def test_hours(calls: int, per_hour: int, left: int | None, found: float) -> None:
    assert hours(calls, per_hour, left=left) == found


@pytest.mark.parametrize(
    ("calls", "quota", "found"),
    [
        (500, Quota(), None),
        (90, Quota(limit=100), 0),
        (91, Quota(limit=100), 3600),
        # 27 more within the half hour that is left of this one; then 90 each hour.
        (27, Quota(limit=100, remaining=37, reset_at_ms=1_800_000), 0),
        (28, Quota(limit=100, remaining=37, reset_at_ms=1_800_000), 1800),
        (118, Quota(limit=100, remaining=37, reset_at_ms=1_800_000), 1800 + 3600),
        # What is left of an hour that is over counts for nothing.
        (90, Quota(limit=100, remaining=0, reset_at_ms=0), 0),
    ],
)
def test_how_long_calls_take(calls: int, quota: Quota, found: float | None) -> None:
    assert calls_take(calls, quota, 0, reserve=10) == found


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (61, "2 min"),
        (3600, "1 h 0 min"),
        (30_180, "8 h 23 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_a_span_of_time_in_words(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_hours_of_each_plan() -> None:
    assert hours_table(1000) == [(100, 11.0), (200, 5.0), (600, 1.0)]
    assert hours_table(3, reserve=600) == [(100, 2.0), (200, 2.0), (600, 2.0)]


def test_a_report_counts_by_state_reason_variant_and_revision(ledger: Ledger) -> None:
    ledger.open_campaign("c", binding={}, each_run=False, text=Text("a", {}), settings={})
    people = [
        Enrolment(f"k{n}", n, f"v{n}", variant="ab"[n % 2], skip="holdout" if n == 9 else None)
        for n in range(10)
    ]
    ledger.enrol("c", people, bad_rows=lambda: 3)
    use = QuotaUse("acme", "all", "me", 0, 5, 90, lambda quota, now_ms: (quota, 5))
    claimed = ledger.cycle(Cycle("c", use, 90)).claimed
    fates = [
        (State.SENT, None),
        (State.SENT, None),
        (State.FAILED, "invalid_parameter"),
        (State.IN_DOUBT, "no_answer"),
    ]
    results = [
        Result(row.rank, row.claim, state, "m" if state is State.SENT else None, reason=reason)
        for row, (state, reason) in zip(claimed, fates, strict=False)
    ]
    ledger.cycle(Cycle("c", QuotaUse("acme", "all", "me", 1, 0, 90, use.pace), 90, results))
    ledger.set_fraction("c", 0.7)
    found = report(ledger, "c")
    assert (found.total, found.bad_rows) == (10, 3)
    assert (found.sent, found.failed, found.in_doubt, found.sending) == (2, 1, 1, 1)
    assert (found.pending, found.held_back, found.due, found.skipped) == (4, 2, 2, 1)
    assert found.failed_by == {"invalid_parameter": 1}
    assert found.in_doubt_by == {"no_answer": 1}
    assert found.skipped_by == {"holdout": 1}
    assert found.variants["a"]["sent"] + found.variants["b"]["sent"] == 2
    assert found.revisions == {"1": 2}
    assert found.settled_share == pytest.approx(5 / 8)
    assert found.last_hour == 2
    assert not found.is_over
    assert found.hours_left(1, left=0) == 2
    assert found.ledger_id == ledger.identity().ledger_id
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()
