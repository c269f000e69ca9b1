"""A release goes on with what the one before has left, and the one before with what a newer one has made of it."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tarfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa

from airflow_provider_sib._compat import AirflowFailException
from airflow_provider_sib.campaign.ledger import LedgerUnsafe
from airflow_provider_sib.campaign.sql_ledger import schema
from airflow_provider_sib.campaign.sql_ledger.database import Database
from airflow_provider_sib.hooks import CampaignHook
from airflow_provider_sib.hooks.campaign import LedgerPlace
from airflow_provider_sib.sandbox import Sandbox
from tests.campaign.conftest import make_database

from . import campaigns
from .left import (
    BASE_URL,
    HERE,
    KINDS,
    RELEASES,
    REPOSITORY,
    connections,
    dumped,
    earlier,
    form,
    left_now,
    load,
    made,
)

HOURS = 3 * 3_600_000
"""After which every lease and every hour of quota is over, in milliseconds."""

NEWEST = RELEASES[-1]


@pytest.fixture
def sandboxes():
    """Give a sandbox for each campaign."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(Sandbox()) for name in campaigns.CAMPAIGNS}


@pytest.fixture
def place(airflow_db, tmp_path, sandboxes, monkeypatch):
    """Make an empty place for a ledger of a kind, known to Airflow beside the sandboxes, and give its address."""
    from airflow.models import Variable

    with ExitStack() as stack:

        def _place(kind="sqlite"):
            url = sa.engine.make_url(f"sqlite:///{tmp_path}/{len(list(tmp_path.iterdir()))}.db")
            if kind != "sqlite":
                database, engine, drop = make_database(kind)
                url = database.url
                stack.callback(engine.dispose)
                stack.callback(lambda: engine.connect().execution_options().exec_driver_sql(drop))
            for name, value in connections(url, sandboxes).items():
                monkeypatch.setenv(name, value)
            return url

        Variable.delete(LedgerPlace(campaigns.LEDGER).pin_key)
        yield _place
        Variable.delete(LedgerPlace(campaigns.LEDGER).pin_key)


def lay(kept, url, sandboxes, statements):
    """Lay what a release has left three hours ago into a database; the addresses are today's sandboxes'."""
    from airflow.models import Variable

    tables = earlier(kept["ledger"], HOURS)
    for row in tables["sib_campaign"]:
        row["binding"] = row["binding"].replace(BASE_URL, sandboxes[row["campaign"]].base_url)
    load(url, statements, tables)
    Variable.set(LedgerPlace(campaigns.LEDGER).pin_key, kept["pin"], serialize_json=True)
    deferred = json.loads(json.dumps(kept["deferred"]))
    for task in deferred.values():
        if task["kwargs"]["until"] is not None:
            task["kwargs"]["until"] -= HOURS / 1000
    return deferred


def before(kept, campaign, *states):
    """Give the visitors whose deliveries the release has left in these states."""
    (part,) = {row["part"] for row in kept["ledger"]["sib_campaign"] if row["campaign"] == campaign}
    return [
        row["visitor"]
        for row in kept["ledger"]["sib_delivery"]
        if row["part"] == part and row["state"] in states
    ]


def due(kept, campaign):
    """Give the visitors who are still to be written to: the list of the suppressed is read when it is their turn."""
    suppressed = {row["visitor"] for row in kept["ledger"]["sib_suppress"]}
    return [visitor for visitor in before(kept, campaign, PENDING) if visitor not in suppressed]


def written_to(sandbox):
    return Counter(message["visitorId"] for message in sandbox.messages())


PENDING, SENDING, SENT, FAILED, IN_DOUBT, SKIPPED = range(6)


def see_that_everybody_was_told_once(kept, sandboxes, already):
    """See what stood before, what was told since, and that nobody was told twice.

    :param already: messages that the sandboxes had when the release stopped, by campaign and visitor.
    """
    for campaign in ("release", "orders"):
        told = written_to(sandboxes[campaign]) - already[campaign]
        assert told == Counter(due(kept, campaign)), campaign
    with CampaignHook(campaigns.LEDGER) as hook:
        release, orders = hook.report("release"), hook.report("orders")
        assert (release.status, orders.status) == ("finished", "finished")
        # The two that the killed worker had in hand, and the lost answer: by name, and never sent again.
        assert release.in_doubt == len(before(kept, "release", SENDING, IN_DOUBT)) == 3
        assert release.failed == len(before(kept, "release", FAILED))
        assert release.sent == len(before(kept, "release", SENT)) + len(due(kept, "release"))
        assert release.skipped_by.keys() == {"holdout", "suppressed", "forgotten"}
        assert orders.sent == orders.total == 8
        (twice,) = [row for row in hook.deliveries("release") if len(row.message_ids) == 2]
        assert set(twice.message_ids) == {"one", "two"}
        assert {row.visitor_id for row in hook.suppressed()} == {"visitor-18", None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("release", RELEASES)
def test_campaigns_that_a_release_left_under_way_come_to_their_end(kind, release, place, sandboxes):
    kept = json.loads((HERE / release / "left.json").read_text())
    url = place(kind)
    deferred = lay(kept, url, sandboxes, (HERE / release / f"{kind}.sql").read_text())
    for sandbox in sandboxes.values():
        sandbox.configure(quota=10_000)
    results = campaigns.go_on(deferred)
    see_that_everybody_was_told_once(kept, sandboxes, {name: Counter() for name in sandboxes})
    # A resumed run counts on: its result has what it sent before the deferral, too, and not what others did.
    sent = kept["deferred"]["release"]["arguments"]["before"]["sent"]
    assert sent == len(before(kept, "release", SENT)) - 1
    assert results["release"]["run"]["sent"] == sent + len(due(kept, "release"))
    # Four of six show the old text still. This sandbox has never heard of them, and each is asked for once.
    asked = sandboxes["outage"].state()["requests"]["by_operation"]
    assert asked == {"update_pushed_message": 4}
    with CampaignHook(campaigns.LEDGER) as hook:
        assert hook.ledger.identity().schema == schema.SCHEMA
        assert hook.ledger.identity().ledger_id == kept["pin"]["ledger_id"]
        assert {row["k"] for row in kept["ledger"]["sib_meta"]} <= {
            row["k"] for row in dumped(url)["sib_meta"]
        }


@pytest.mark.parametrize("kind", KINDS)
def test_a_ledger_with_a_campaign_under_way_is_brought_to_a_newer_schema(kind, place, sandboxes, monkeypatch):
    kept = json.loads((HERE / NEWEST / "left.json").read_text())
    url = place(kind)
    deferred = lay(kept, url, sandboxes, (HERE / NEWEST / f"{kind}.sql").read_text())
    known = {row["k"]: row["v"] for row in dumped(url)["sib_meta"]}
    newer = str(schema.SCHEMA + 1)
    step = (
        "CREATE TABLE IF NOT EXISTS sib_of_tomorrow (k VARCHAR(255) NOT NULL PRIMARY KEY, v {text} NOT NULL){table}",
        "ALTER TABLE sib_delivery ADD COLUMN of_tomorrow BIGINT NOT NULL DEFAULT 7",
    )
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, step))
    monkeypatch.setattr(schema, "SCHEMA", schema.SCHEMA + 1)
    monkeypatch.setattr(schema, "READABLE_FROM", (newer, "9.1.0"))
    for sandbox in sandboxes.values():
        sandbox.configure(quota=10_000)
    campaigns.go_on(deferred)
    see_that_everybody_was_told_once(kept, sandboxes, {name: Counter() for name in sandboxes})
    tables = dumped(url)
    assert tables["sib_of_tomorrow"] == []
    assert {row["of_tomorrow"] for row in tables["sib_delivery"]} == {7}
    meta = {row["k"]: row["v"] for row in tables["sib_meta"]}
    forward = {"schema": newer, "readable_from": newer, "readable_from_release": "9.1.0"}
    assert {name: meta[name] for name in ("ledger_id", "secret", *forward)} == {
        name: known[name] for name in ("ledger_id", "secret")
    } | forward


@pytest.mark.parametrize("release", RELEASES)
def test_single_tasks_that_a_release_left_under_way_come_to_their_end(release, place, sandboxes):
    place()
    single = json.loads((HERE / release / "left.json").read_text())["single"]
    results = campaigns.go_on_with_single_tasks(single)
    (attempt,) = single["attempts"].values()
    assert results == {
        "message": attempt["message"],
        "sensor": None,
        "online": {"pings": 1, "failed": 0},
    }
    assert sandboxes["orders"].messages() == []


WHAT_TO_DO = """
What outlives a release has another form now than the newest release gave it, but other code than has written it will
read it. See "Releasing" in docs/versions.md: add names, and read what lacks them; never change what a name means.
Then write down what this version leaves behind: `python -m tests.upgrades.left`. If this version has been released
already, give it the next number first, for a release's folder stays as it is."""


def test_the_forms_of_what_outlives_a_release_are_those_of_the_newest(place, sandboxes):
    """What Airflow keeps of deferred tasks and their attempts, the pin, and the ledger with its JSON."""
    kept = json.loads((HERE / NEWEST / "left.json").read_text())
    now = left_now(place(), sandboxes)
    assert now.keys() == kept.keys()
    for part in kept.keys() - {"ledger"}:
        assert form(now[part]) == form(kept[part]), WHAT_TO_DO
    assert now["ledger"].keys() == kept["ledger"].keys(), WHAT_TO_DO
    for table, rows in kept["ledger"].items():
        assert form(now["ledger"][table]) == form(rows), f"{table}: {WHAT_TO_DO}"


OLDER_CODE = (HERE / NEWEST / "commit").read_text().strip()


@pytest.fixture(scope="session")
def older(tmp_path_factory):
    """Lay out the code of the newest release, and give a way to go on with it, in a process of its own."""
    folder = tmp_path_factory.mktemp("older")
    archive = subprocess.run(
        ["git", "archive", OLDER_CODE, "airflow_provider_sib"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")

    def go_on(deferred):
        code = (
            "import runpy, sys, airflow_provider_sib as ours;"
            f"assert ours.__file__.startswith({str(folder)!r}), ours.__file__;"
            f"runpy.run_path({str(Path(campaigns.__file__))!r}, run_name='__main__')"
        )
        return subprocess.run(
            [sys.executable, "-c", code],
            check=False,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": ""},  # "": off
            input=json.dumps(deferred),
            capture_output=True,
            text=True,
        )

    return go_on


def as_newer_code_would(url, readable_from):
    """Bring a ledger to a schema that does not exist yet, which adds a table, a column and a fact."""
    newer = str(schema.SCHEMA + 1)
    engine = sa.create_engine(url, future=True)
    with engine.begin() as conn:
        conn.exec_driver_sql("CREATE TABLE sib_of_tomorrow (k VARCHAR(255) NOT NULL PRIMARY KEY)")
        conn.exec_driver_sql("ALTER TABLE sib_campaign ADD COLUMN of_tomorrow BIGINT")
        conn.exec_driver_sql("INSERT INTO sib_meta (k, v) VALUES ('of_tomorrow', '1')")
        facts = {"schema": newer, "readable_from": str(readable_from), "readable_from_release": "9.1.0"}
        for name, value in facts.items():
            conn.execute(sa.text("UPDATE sib_meta SET v = :v WHERE k = :k"), {"k": name, "v": value})
    engine.dispose()


@pytest.mark.parametrize("kind", KINDS)
def test_older_code_goes_on_with_what_this_code_left_in_a_newer_schema_that_only_adds(
    kind, place, sandboxes, older
):
    """As while an upgrade is under way, or after one that was taken back."""
    kept = left_now(place(), sandboxes)
    already = {name: written_to(sandbox) for name, sandbox in sandboxes.items()}
    for sandbox in sandboxes.values():
        sandbox.configure(quota=10_000, unknown_visitor="accept")
    url = place(kind)
    made(url)
    empty(url)
    deferred = lay(kept, url, sandboxes, "")
    as_newer_code_would(url, readable_from=1)
    ended = older(deferred)
    assert ended.returncode == 0, ended.stderr
    see_that_everybody_was_told_once(kept, sandboxes, already)
    texts = {message["text"] for message in sandboxes["outage"].messages()}
    assert texts == {"We are down on Friday."}
    meta = {row["k"]: row["v"] for row in dumped(url)["sib_meta"]}
    assert (meta["schema"], meta["of_tomorrow"]) == (str(schema.SCHEMA + 1), "1")


class Overtaken(Database):
    """A database in which newer code makes the ledger while this code, that has seen none, waits for the lock."""

    readable_from = 1

    def write(self, work, *, token=0):
        made(self.engine.url)
        as_newer_code_would(self.engine.url, self.readable_from)
        self.made = dumped(self.engine.url)
        return super().write(work, token=token)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("readable_from", [schema.SCHEMA, schema.SCHEMA + 1])
def test_a_new_ledger_that_newer_code_makes_first_keeps_its_schema(kind, readable_from, place):
    database = Overtaken(place(kind), clock=None, sleep=time.sleep, random=random.random, create=True)
    database.readable_from = readable_from
    try:
        if readable_from > schema.SCHEMA:
            with pytest.raises(LedgerUnsafe, match=r"needs airflow-provider-sib 9\.1\.0 or newer"):
                schema.opened(database, create=True)
        else:
            schema.opened(database, create=True)
        assert dumped(database.engine.url) == database.made
    finally:
        database.close()


def empty(url):
    engine = sa.create_engine(url, future=True)
    with engine.begin() as conn:
        for table in sa.inspect(conn).get_table_names():
            conn.exec_driver_sql(f"DELETE FROM {table}")
    engine.dispose()


def test_older_code_refuses_a_schema_it_cannot_use_and_says_what_to_install(place, sandboxes, older):
    url = place()
    kept = left_now(url, sandboxes)
    as_newer_code_would(url, readable_from=schema.SCHEMA + 1)
    known = dumped(url)
    ended = older(kept["deferred"])
    assert ended.returncode != 0
    assert AirflowFailException.__name__ in ended.stderr
    assert (
        f"This ledger has schema {schema.SCHEMA + 1}, which needs airflow-provider-sib 9.1.0 or newer"
        in ended.stderr
    )
    assert dumped(url) == known
