"""What the page shows of a campaign: who delivers, how far it is, and figures that take their time."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace

import pytest
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.models.team import Team
from airflow.utils.session import create_session
from sqlalchemy import delete
from sqlalchemy.event import listens_for

from airflow_provider_sib.campaign.ledger import CampaignStatus, Enrolment, MemoryLedger, Text
from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from airflow_provider_sib.page import views
from airflow_provider_sib.page.access import permitted

NOW_MS = 1_800_000_000_000
MINUTE_MS = 60_000
LONG_AGO = {"created_at_ms": NOW_MS - 90 * MINUTE_MS, "enrolled_at_ms": NOW_MS - 60 * MINUTE_MS}


@pytest.fixture
def ledger():
    made = MemoryLedger(clock=lambda: NOW_MS / 1000)
    made.open_campaign("c", binding={}, each_run=False, text=Text("t", {}), settings={"dag_id": "d"})
    made.enrol("c", [Enrolment(f"v{rank}", rank, f"v{rank}") for rank in range(5)])
    return made


@pytest.mark.parametrize(
    ("changed", "waiting", "told"),
    [
        ({"status": CampaignStatus.FINISHED}, 0, "over"),
        ({"status": CampaignStatus.PAUSED}, 5, "stopped"),
        ({"status": CampaignStatus.ABORTED}, 5, "stopped"),
        ({}, 0, "settled"),
        ({"last_seen_ms": NOW_MS - 30 * MINUTE_MS}, 0, "settled"),
        ({"last_seen_ms": NOW_MS - 1000}, 5, "now"),
        ({**LONG_AGO, "last_seen_ms": NOW_MS - 10 * MINUTE_MS}, 5, "nobody"),
        # Newcomers are enrolled, or are just being enrolled.
        ({"each_run": True, "last_seen_ms": NOW_MS - 10 * MINUTE_MS}, 5, "now"),
        ({**LONG_AGO, "each_run": True, "last_seen_ms": NOW_MS - 10 * MINUTE_MS}, 5, "preparing"),
        ({"last_seen_ms": NOW_MS - 30 * MINUTE_MS, "next_wake_ms": NOW_MS + MINUTE_MS}, 5, "waits"),
        # It is given two minutes to be scheduled again.
        ({"last_seen_ms": NOW_MS - 30 * MINUTE_MS, "next_wake_ms": NOW_MS - MINUTE_MS}, 5, "now"),
        (
            {**LONG_AGO, "last_seen_ms": NOW_MS - 30 * MINUTE_MS, "next_wake_ms": NOW_MS - 5 * MINUTE_MS},
            5,
            "nobody",
        ),
        (LONG_AGO, 5, "never"),
        ({"enrolled_at_ms": None}, 0, "now"),
        ({"enrolled_at_ms": None}, 5, "now"),
        ({**LONG_AGO, "enrolled_at_ms": None}, 0, "preparing"),
        ({**LONG_AGO, "enrolled_at_ms": None}, 5, "preparing"),
    ],
)
def test_who_delivers(ledger, changed, waiting, told):
    campaign = replace(ledger.campaign("c"), **changed)
    assert views._delivery(campaign, waiting, held_back=0, now_ms=NOW_MS) == told


def test_only_what_waits_for_a_larger_fraction_is_said_to_be_held_back(ledger):
    assert views._delivery(ledger.campaign("c"), 0, held_back=3, now_ms=NOW_MS) == "held_back"


def test_figures_that_take_long_are_said_not_to_be_ready_and_come_later(ledger):
    may_go_on = threading.Event()

    class Slow(MemoryLedger):
        def breakdown(self, campaign_id):
            assert may_go_on.wait(60)
            return ledger.breakdown(campaign_id)

        def series(self, campaign_id, **options):
            return ledger.series(campaign_id, **options)

    slow, campaign = Slow(), ledger.campaign("c")
    figures = views.Figures()
    assert figures.of(slow, campaign) == {"ready": False}
    may_go_on.set()
    figures._counted[slow.identity().ledger_id, "c", NOW_MS].coming.result(60)
    assert figures.of(slow, campaign)["variants"] == {"": {"pending": 5}}


def test_figures_are_counted_again_when_they_are_old(ledger):
    seconds = [0.0]
    figures = views.Figures(clock=lambda: seconds[0])
    campaign = ledger.campaign("c")

    def pending():
        figures.of(ledger, campaign)
        figures._counted[ledger.identity().ledger_id, "c", NOW_MS].coming.result(60)
        return figures.of(ledger, campaign)["variants"][""].get("pending", 0)

    assert pending() == 5
    ledger.skip_pending("c", "over", limit=2)
    assert pending() == 5
    seconds[0] += views.FRESH_SECONDS
    assert pending() == 3


def test_a_purged_campaigns_figures_are_not_its_successors(ledger):
    figures = views.Figures()
    campaign = ledger.campaign("c")
    assert figures.of(ledger, campaign)["variants"] == {"": {"pending": 5}}
    ledger.skip_pending("c", "over", limit=5)
    successor = replace(campaign, created_at_ms=NOW_MS + 1)
    assert figures.of(ledger, successor)["variants"] == {"": {"skipped": 5}}


def test_a_campaign_that_is_revised_while_the_list_is_read_is_listed(ledger_url):
    with closing(SqlLedger(ledger_url)) as reader, closing(SqlLedger(ledger_url)) as writer:
        writer.open_campaign("c", binding={}, each_run=False, text=Text("1", {}), settings={})

        @listens_for(reader._database.engine, "after_cursor_execute")
        def revise(conn, cursor, statement, *_):
            if statement.startswith("SELECT"):
                writer.revise("c", Text(f"{writer.campaign('c').revision + 1}", {}))

        assert [campaign.text.digest for campaign in reader.campaigns()] == ["1"]


def test_a_chart_has_a_bounded_number_of_points():
    for days in (0.001, 1, 30, 1000):
        assert days * 86_400 / views._span(days * 86_400 / views.POINTS) <= views.POINTS * 1.5


def test_a_campaign_of_no_dag_takes_the_right_to_all_dags(airflow_db, monkeypatch):
    """FAB's auth manager, asked without a DAG, tells whether there is any that may be read."""

    class OnlyMine:
        def is_authorized_dag(self, *, method, user, access_entity=None, details=None):
            return details is None or details.id == "mine"

    monkeypatch.setattr("airflow_provider_sib.page.access.get_auth_manager", OnlyMine)
    assert permitted("user", "GET", ["mine", "other", None]) == {"mine"}


if hasattr(Team, "get_all_team_names"):  # Airflow 3.1 has no teams yet

    def test_with_teams_a_dag_that_airflow_no_longer_has_is_shown_to_who_is_in_all_of_them(
        airflow_db, monkeypatch
    ):
        monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
        monkeypatch.setattr("airflow_provider_sib.page.access.get_auth_manager", SimpleAuthManager)
        asked = ["vanished", None]
        with create_session() as session:
            session.add_all([Team(name="ours"), Team(name="theirs")])
        try:
            one, all_ = (
                SimpleAuthManagerUser(username="u", role="viewer", teams=teams)
                for teams in (["ours"], ["ours", "theirs"])
            )
            assert permitted(one, "GET", asked) == set()
            assert permitted(all_, "GET", asked) == set(asked)
        finally:
            with create_session() as session:
                session.execute(delete(Team))
