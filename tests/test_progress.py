"""What a campaign's task says about once a minute: what it did, and how long it still takes."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace

import pytest

from airflow_provider_sib.campaign.engine import BUCKET
from airflow_provider_sib.campaign.ledger import Enrolment, MemoryLedger, Quota, QuotaUse, Text
from airflow_provider_sib.hooks.campaign import LedgerPlace
from airflow_provider_sib.operators.campaign import CampaignTask

NOW = 1_800_000_000.0
TALLY = {
    "sent": 63,
    "failed": 0,
    "in_doubt": 0,
    "calls": 63,
    "seconds": 61.2,
    "quota_limit": 100,
    "quota_left": 37,
}


@pytest.fixture
def task(campaigns):
    """Give a task at work on a campaign of 200, in an Airflow that keeps its pin."""
    ledger = MemoryLedger(clock=lambda: NOW)
    ledger.open_campaign("release", binding={}, each_run=False, text=Text("t", {}), settings={})
    ledger.enrol("release", [Enrolment(f"v{rank}", rank, f"v{rank}") for rank in range(200)])
    return CampaignTask(
        SimpleNamespace(log=logging.getLogger("task")),
        "release",
        ledger=ledger,
        place=LedgerPlace(None),
        settings=SimpleNamespace(conn_id="sib", reserve_calls=10),
        deferrable=True,
        watched_by=os.getppid(),
    )


def tell(ledger, quota):
    ledger.quota(QuotaUse("sib", BUCKET, "w", 0, 0, 60, lambda *_: (quota, 0)))


def test_it_says_at_least_how_long_the_quota_makes_it_last(task, logged):
    tell(task.ledger, Quota(limit=100, remaining=37, reset_at_ms=round((NOW + 1800) * 1000)))
    task._progress(TALLY, None)
    assert "Campaign release: sent 63, " in (said := logged())
    # 27 more in this half hour, 90 in the next, the last 83 in the one after.
    assert "; 200 to go, at least 1 h 30 min." in said


def test_it_says_that_nobody_knows_while_brevo_has_not_told_the_quota(task, logged):
    task._progress(TALLY, None)
    assert "; 200 to go; how long that takes is unknown, since Brevo has not told the quota yet." in logged()


def test_of_an_edit_what_is_left_are_the_calls_it_has_planned(task, logged):
    tell(task.ledger, Quota(limit=100, remaining=37, reset_at_ms=round((NOW + 1800) * 1000)))
    task.calls_planned = 80
    task._progress({"changed": 60, "calls": 63}, None)
    assert "; 17 to go, within this hour." in logged()
