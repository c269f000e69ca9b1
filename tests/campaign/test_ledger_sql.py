"""What a ledger in a database survives: kills between any two statements, races, unknown commits, old copies."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import stat
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from airflow_provider_sib.campaign.ledger import (
    Campaign,
    CampaignStatus,
    Cap,
    Cycle,
    EditCycle,
    Enrolled,
    Enrolment,
    Ledger,
    LedgerError,
    LedgerMissing,
    LedgerUnavailable,
    LedgerUnsafe,
    Quota,
    QuotaUse,
    Refusal,
    Result,
    State,
    Text,
    UnknownCampaign,
)
from airflow_provider_sib.campaign.sql_ledger import PATIENCE_SECONDS, SqlLedger, campaigns, network_disk
from airflow_provider_sib.campaign.sql_ledger.database import is_deadlock

from .conftest import make_database
from .test_ledger import audience, cycle, opened, people, result, rows, states, use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import House

PENDING, SENDING, SENT, FAILED, IN_DOUBT, SKIPPED, WITHDRAWN = State


class Killed(BaseException):
    """The process ended here."""


def engine_of(ledger: Ledger) -> sa.engine.Engine:
    assert isinstance(ledger, SqlLedger)
    return ledger._database.engine


class Executioner:
    """Kills at the n-th step of the database: before a statement, before a commit, right after one."""

    def __init__(self, at: int) -> None:
        self.at, self.steps = at, 0

    def step(self, *_: Any) -> None:
        self.steps += 1
        if self.steps == self.at:
            raise Killed

    def watch(self, ledger: Ledger) -> None:
        engine = engine_of(ledger)
        sa.event.listen(engine, "before_cursor_execute", self.step)
        sa.event.listen(engine, "commit", self.step)
        commit = engine.dialect.do_commit

        def commit_and_die(connection: Any) -> None:
            commit(connection)
            self.step()

        engine.dialect.do_commit = commit_and_die  # type: ignore[method-assign]  # SQLAlchemy's, not ours


def send_all(house: House, executioner: Executioner | None, posted: list[str]) -> int:
    """Run a campaign as an engine would, from opening it to the end, or to the kill; return the doubts."""
    ledger = house.open()
    if executioner is not None:
        executioner.watch(ledger)
    audience(ledger, people(*range(5)))
    ledger.set_fraction("c", 0.8)
    ledger.exclude("c", ["v2"])
    results: list[Result] = []
    cap = Cap(1, 60, "g")
    while True:
        cycled = cycle(ledger, 2, results, cap=cap)
        posted += [row.visitor_id or "" for row in cycled.claimed]
        results = [result(row, SENT) for row in cycled.claimed]
        if not results and not ledger.backlog("c").sending:
            return ledger.counts("c").by_state.get(IN_DOUBT, 0)
        if not results:
            house.clock.seconds += 61


def test_a_kill_between_any_two_statements_sends_nobody_twice_and_forgets_nobody(sql_house: House) -> None:
    # Transactions are the same code everywhere; on servers every third step will do.
    step, at = (1, 1) if sql_house.kind == "sqlite" else (3, 2)
    while True:
        clear(sql_house)
        posted: list[str] = []
        try:
            send_all(sql_house, Executioner(at), posted)
        except Killed:
            pass
        else:
            break
        doubts = send_all(sql_house, None, posted)
        reached = {
            row.visitor_id for row in rows(sql_house.opened[-1]).values() if row.state in (SENT, IN_DOUBT)
        }
        assert max(Counter(posted).values()) == 1, at
        assert reached == {"v0", "v1", "v3"}, at
        assert doubts <= 2, at
        at += step
    assert at > 60


def clear(house: House) -> None:
    """Empty a database as if nothing had been kept in it but the ledger's own id."""
    house.open()
    house.close()
    with sa.create_engine(house.url, future=True, poolclass=NullPool).begin() as conn:
        for table in sa.inspect(conn).get_table_names():
            if table != "sib_meta":
                conn.exec_driver_sql(f"DELETE FROM {table}")


# a commit whose outcome is unknown


def fail_commits(ledger: Ledger, *, after: bool, times: int = 1) -> None:
    """Let commits fail as if the connection broke, before or after the server did it."""
    dialect = engine_of(ledger).dialect
    commit, left = dialect.do_commit, [times]

    def do_commit(connection: Any) -> None:
        if not left[0]:
            return commit(connection)
        left[0] -= 1
        if after:
            commit(connection)
        raise dialect.dbapi.OperationalError("the connection broke")  # type: ignore[union-attr]

    dialect.do_commit = do_commit  # type: ignore[method-assign]  # SQLAlchemy's, not ours


@pytest.mark.parametrize("after", [False, True], ids=["not committed", "committed"])
@pytest.mark.parametrize("swept", [False, True])
def test_the_same_cycle_finds_its_rows_again_after_an_unknown_commit(
    sql_house: House, after: bool, swept: bool
) -> None:
    ledger, other = sql_house.open(), sql_house.open()
    audience(ledger, people(*range(8)))
    (first,) = cycle(ledger, 1).claimed
    request = Cycle("c", use(3), 60, results=[result(first, SENT)])
    fail_commits(ledger, after=after, times=2)
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match="the connection broke"):
            ledger.cycle(request)
    if swept:
        sql_house.clock.seconds += 61
        cycle(other, 0)
    claimed = ledger.cycle(request).claimed
    assert [row.rank for row in claimed] == [10, 20, 30]
    assert all(rows(ledger)[row.rank] == row for row in claimed)
    assert ledger.identity().claims == 4
    assert ledger.counts("c").by_state == {SENT: 1, SENDING: 3, PENDING: 4}
    sql_house.clock.seconds += 61
    assert cycle(other, 0).swept == 3
    assert cycle(ledger, 0, [result(row, SENT) for row in claimed]).recorded == 3


# races


def both(*works: Callable[[], Any]) -> list[Any]:
    """Run works in threads, begun together; raise what one of them raised."""
    start, answers, errors = threading.Barrier(len(works)), [None] * len(works), []

    def run(number: int, work: Callable[[], Any]) -> None:
        start.wait()
        try:
            answers[number] = work()
        except BaseException as error:  # noqa: BLE001 - raised again by the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number, work)) for number, work in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return answers


def count_deadlocks(ledger: Ledger, deadlocks: list[str]) -> None:
    def note(context: Any) -> None:
        if is_deadlock(context.sqlalchemy_exception):
            deadlocks.append(str(context.original_exception))

    sa.event.listen(engine_of(ledger), "handle_error", note)


def test_workers_that_race_claim_each_row_once_without_a_deadlock(sql_house: House) -> None:
    first = sql_house.open(own_clock=True)
    for campaign in ("c", "d"):
        audience(first, [Enrolment(f"k{n}", n * 7919 % 10**9, f"v{n}") for n in range(200)], campaign)
    deadlocks: list[str] = []

    def pace(quota: Quota, now_ms: int) -> tuple[Quota, int]:
        return quota, 32 - quota.in_flight(now_ms)

    def worker(campaign: str, holder: str) -> Callable[[], list[str]]:
        ledger = sql_house.open(own_clock=True)
        count_deadlocks(ledger, deadlocks)

        def work() -> list[str]:
            sent: list[str] = []
            results: list[Result] = []
            while True:
                wish = QuotaUse("a", "other", holder, 0, 8, 60, pace)
                cycled = ledger.cycle(Cycle(campaign, wish, 60, results=results, cap=Cap(9, 60, "g")))
                assert cycled.granted.quota.in_flight(cycled.now_ms) <= 32
                sent += [row.visitor_id or "" for row in cycled.claimed]
                results = [result(row, SENT) for row in cycled.claimed]
                if not results and not ledger.backlog(campaign).zones:
                    return sent

        return work

    def bystander() -> None:
        ledger = sql_house.open(own_clock=True)
        count_deadlocks(ledger, deadlocks)
        for turn in range(20):
            ledger.suppress([f"w{turn}"], "bounced")
            ledger.exclude("c", [f"x{turn}"])
            ledger.edit(EditCycle("d", 1, use(1, holder="editor", account="a"), 60))
            ledger.quota(use(1, holder="single", account="a"))
            ledger.set_status("d", CampaignStatus.PAUSED if turn % 2 else CampaignStatus.RUNNING)
            ledger.forget_visitor(f"v{turn}")
        ledger.set_status("d", CampaignStatus.RUNNING)
        ledger.quota(use(0, holder="single", account="a"))
        ledger.quota(use(0, holder="editor", account="a"))

    works = [worker(campaign, f"{campaign}{n}") for campaign in ("c", "d") for n in range(2)]
    answers = both(*works, bystander)
    for campaign, mine in (("c", answers[:2]), ("d", answers[2:4])):
        claimed = [visitor for visitors in mine for visitor in visitors]
        assert max(Counter(claimed).values()) == 1
        counts = first.counts(campaign)
        assert set(counts.by_state) <= {SENT, SKIPPED}
        assert counts.total == 200
        assert counts.by_state[SENT] == len(claimed)
    assert deadlocks == []


def test_whoever_only_looks_makes_no_tables(empty_house: House) -> None:
    assert empty_house.url is not None
    with pytest.raises(LedgerMissing, match="There is no ledger in"):
        SqlLedger(empty_house.url, create=False)
    engine = sa.create_engine(empty_house.url)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


@pytest.mark.parametrize("interrupted", [False, True])
def test_whoever_only_looks_makes_no_file(tmp_path: Path, interrupted: bool) -> None:
    file = tmp_path / "here" / "ledger.db"
    if interrupted:
        file.parent.mkdir()
        file.touch()
    with pytest.raises(LedgerMissing, match=str(file)):
        SqlLedger(f"sqlite:///{file}", create=False)
    assert (file.exists(), file.parent.exists()) == (interrupted, interrupted)
    made = SqlLedger(f"sqlite:///{file}")
    looking = SqlLedger(f"sqlite:///{file}", create=False)
    assert looking.identity() == made.identity()
    made.close()
    looking.close()


def test_opening_an_empty_database_from_everywhere_at_once_makes_one_ledger(empty_house: House) -> None:
    ids = both(*[lambda: empty_house.open().identity().ledger_id for _ in range(6)])
    assert len(set(ids)) == 1


def test_opening_an_empty_file_from_everywhere_at_once_makes_one_ledger(tmp_path: Path) -> None:
    def identity() -> str:
        ledger = SqlLedger(f"sqlite:///{tmp_path}/ledger.db")
        try:
            return ledger.identity().ledger_id
        finally:
            ledger.close()

    assert len(set(both(*[identity] * 6))) == 1


def test_of_two_who_change_a_status_at_once_only_one_does(sql_house: House) -> None:
    ledgers = [sql_house.open(), sql_house.open()]
    opened(ledgers[0])
    for _ in range(20):
        pause, abort = (
            partial(ledger.set_status, "c", status, seen=CampaignStatus.RUNNING)
            for ledger, status in zip(ledgers, (CampaignStatus.PAUSED, CampaignStatus.ABORTED), strict=True)
        )
        refused = [answer for answer in both(pause, abort) if isinstance(answer, Refusal)]
        assert [refusal.name for refusal in refused] == ["seen"]
        ledgers[0].set_status("c", CampaignStatus.RUNNING)


def test_two_enrolments_of_one_snapshot_at_once_enrol_it_once(sql_house: House) -> None:
    ledgers = [sql_house.open(own_clock=True) for _ in range(3)]
    opened(ledgers[0])
    answers = both(*[lambda ledger=ledger: ledger.enrol("c", people(*range(3000))) for ledger in ledgers])
    assert sorted(answer.joined for answer in answers) == [0, 0, 3000]
    assert {answer.total for answer in answers} == {3000}
    ledgers[0].scrub_variables(0)
    assert stored(sql_house) == 3000


def test_newcomers_of_two_runs_at_once_join_once(sql_house: House) -> None:
    ledgers = [sql_house.open(own_clock=True) for _ in range(3)]
    opened(ledgers[0], each_run=True)
    answers = both(*[lambda ledger=ledger: ledger.enrol("c", people(*range(2500))) for ledger in ledgers])
    assert sum(answer.joined for answer in answers) == 2500
    assert ledgers[0].campaign("c").total == stored(sql_house) == 2500


def test_sending_goes_on_beside_an_enrolment(sql_house: House) -> None:
    sender, enroller = sql_house.open(own_clock=True), sql_house.open(own_clock=True)
    audience(sender, people(*range(500)), "c")
    opened(enroller, "big")

    def send() -> int:
        claimed, last = 0, ()
        while claimed < 500:
            last = cycle(sender, 10, [result(row, SENT) for row in last]).claimed
            claimed += len(last)
        return claimed

    def big() -> Iterator[Enrolment]:
        yield from people(*range(20_000))

    assert both(send, lambda: enroller.enrol("big", big()))[0] == 500
    assert enroller.counts("big").total == 20_000


@pytest.mark.parametrize("each_run", [False, True])
def test_whoever_is_forgotten_while_an_audience_is_taken_in_is_erased_from_it(
    sql_house: House, each_run: bool
) -> None:
    ledger, other = sql_house.open(), sql_house.open()
    opened(ledger, each_run=each_run)
    visitors = ("v1", "v4999")
    forgetting = threading.Thread(target=lambda: list(map(other.forget_visitor, visitors)))

    def meanwhile(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "INSERT INTO sib_delivery" in statement and forgetting.ident is None:
            forgetting.start()
            # Time enough to mark and to look for the first of them, whose row is not committed yet.
            forgetting.join(1)

    sa.event.listen(engine_of(ledger), "before_cursor_execute", meanwhile)
    assert ledger.enrol("c", people(*range(5000))).joined == 5000
    forgetting.join()
    kept = rows(ledger)
    for rank in (10, 49_990):
        assert (kept[rank].visitor_id, kept[rank].key[0], kept[rank].state) == (None, "#", SKIPPED)
    assert sum(row.visitor_id is None for row in kept.values()) == 2


# enrolments that are cut off


def stored(house: House) -> int:
    """Count the rows that lie in the database, whoever they belong to."""
    with sa.create_engine(house.url, future=True, poolclass=NullPool).begin() as conn:
        return int(conn.exec_driver_sql("SELECT COUNT(*) FROM sib_delivery").scalar_one())


def test_an_enrolment_killed_half_way_is_taken_up_anew_and_its_remains_are_deleted(sql_house: House) -> None:
    ledger = sql_house.open()
    opened(ledger)
    inserts = []

    def kill(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        inserts.append("INSERT INTO sib_delivery" in statement)
        if sum(inserts) == 6:
            raise Killed

    sa.event.listen(engine_of(ledger), "before_cursor_execute", kill)
    with pytest.raises(Killed):
        ledger.enrol("c", people(*range(15_000)))
    assert 0 < stored(sql_house) < 15_000
    again = sql_house.open()
    assert cycle(again).claimed == ()
    assert again.counts("c").total == 0
    assert again.enrol("c", people(*range(15_000))) == Enrolled(15_000, 0, 0, 15_000)
    assert stored(sql_house) == again.counts("c").total == 15_000


def test_an_enrolment_taken_for_dead_while_it_was_suspended_begins_anew(sql_house: House) -> None:
    ledger, other = sql_house.open(), sql_house.open()
    opened(ledger)
    opened(other, "other")
    suspended: list[int] = []

    def suspend(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "UPDATE sib_part SET lease_ms" in statement:
            suspended.append(len(suspended))

    sa.event.listen(engine_of(ledger), "before_cursor_execute", suspend)

    def slow_clock() -> float:
        # Between the second and the third chunk ten minutes pass, and somebody cleans up.
        if len(suspended) == 2:
            suspended.append(-1)
            sql_house.clock.seconds += 1000
            other.enrol("other", people(1))
        return sql_house.clock()

    ledger._database.clock = slow_clock  # type: ignore[union-attr]  # the clock it was given, from now on
    assert ledger.enrol("c", people(*range(5000))).total == 5000
    assert len(suspended) > 4
    assert stored(sql_house) == 5001


def test_a_purged_campaign_leaves_no_row_behind(sql_house: House) -> None:
    ledger = sql_house.open()
    audience(ledger, people(*range(4500)))
    ledger.exclude("c", ["v9"])
    (row,) = cycle(ledger, 1, cap=Cap(1, 60, "g")).claimed
    cycle(ledger, 0, [result(row, SENT), result(row, SENT, message_id="other")])
    ledger.set_status("c", CampaignStatus.ABORTED)
    assert ledger.purge("c") is None
    with sa.create_engine(sql_house.url, future=True, poolclass=NullPool).begin() as conn:
        for table in ("campaign", "text", "part", "delivery", "message", "suppress", "touch"):
            assert conn.exec_driver_sql(f"SELECT COUNT(*) FROM sib_{table}").scalar_one() == 0, table


def test_a_campaign_that_is_purged_while_it_is_counted_is_unknown(server_house: House) -> None:
    ledger, other = server_house.open(), server_house.open()
    audience(ledger, people(*range(3)))
    (row,) = cycle(ledger, 1).claimed
    cycle(ledger, 0, [result(row, SENT)])
    ledger.set_status("c", CampaignStatus.ABORTED)

    def purge(*_: Any) -> None:
        # Cut short: the campaign is gone, and its rows are not yet.
        assert other._database.write(lambda tx: campaigns.purge(tx, "c")) is None  # type: ignore[attr-defined]

    sa.event.listen(engine_of(ledger), "after_cursor_execute", purge, once=True)
    with pytest.raises(UnknownCampaign):
        ledger.counts("c")


def test_a_purge_while_the_claims_are_counted_takes_none_away(server_house: House) -> None:
    """Fewer than the pin says would make the ledger an older copy of itself."""
    ledger, other = server_house.open(), server_house.open()
    audience(ledger, people(*range(3)))
    cycle(ledger, 3)
    ledger.set_status("c", CampaignStatus.ABORTED)
    server_house.clock.seconds += 60

    def purge(*_: Any) -> None:
        assert other.purge("c") is None

    sa.event.listen(engine_of(ledger), "after_cursor_execute", purge, once=True)
    assert ledger.identity().claims == 3
    assert other.campaigns() == []
    assert ledger.identity().claims == 3


# clocks


def test_leases_run_on_the_database_s_own_clock(sql_house: House) -> None:
    import time

    ledger = sql_house.open(own_clock=True)
    assert abs(ledger.now_ms() - time.time() * 1000) < 5000
    audience(ledger, people(1))
    cycled = cycle(ledger)
    assert cycled.claimed[0].lease_until_ms == cycled.now_ms + 60_000


# plans: what a cycle runs must not depend on the audience's size


def _statements(ledger: Ledger, work: Callable[[], Any]) -> list[tuple[str, Any]]:
    seen: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        seen.append((statement, parameters[0] if many else parameters))

    engine = engine_of(ledger)
    sa.event.listen(engine, "before_cursor_execute", note)
    work()
    sa.event.remove(engine, "before_cursor_execute", note)
    return [(sql, params) for sql, params in seen if sql.startswith(("SELECT", "UPDATE", "DELETE", "WITH"))]


@pytest.mark.parametrize("analyzed", [False, True])
def test_no_statement_of_a_cycle_reads_more_than_its_rows(sql_house: House, analyzed: bool) -> None:
    ledger = sql_house.open()
    audience(ledger, [Enrolment(f"k{n}", n, f"v{n}", timezone="abcd"[n % 4]) for n in range(20_000)])
    engine = engine_of(ledger)
    with engine.connect() as conn:
        # Most are done, as late in a campaign: a plan that walks past them shows.
        conn.exec_driver_sql("UPDATE sib_delivery SET state = 2 WHERE seq < 19000")
        conn.commit()
        if analyzed and sql_house.kind != "mariadb":
            conn.exec_driver_sql("ANALYZE")
            conn.commit()
    claimed = cycle(ledger, 8, cap=Cap(1, 60, "g")).claimed
    sql_house.clock.seconds += 61

    def hot() -> None:
        cycle(ledger, 8, [result(row, FAILED) for row in claimed], cap=Cap(1, 60, "g"), zones=["c", "a", "d"])
        ledger.backlog("c")
        ledger.finish("c")

    statements = _statements(ledger, hot)
    assert len(statements) > 10
    for sql, parameters in statements:
        with engine.connect() as conn:
            assert _is_cheap(sql_house.kind, conn, sql, parameters), sql


def test_a_campaign_that_excludes_nobody_pays_two_reads_for_it(sql_house: House) -> None:
    ledger = sql_house.open()
    audience(ledger, people(1))
    assert len(_statements(ledger, lambda: ledger.exclude("c", []))) == 2


def _is_cheap(kind: str, conn: sa.engine.Connection, sql: str, parameters: Any) -> bool:
    if "sib_delivery" not in sql:
        return True
    if kind == "sqlite":
        plan = [row[3] for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters)]
        touching = [line for line in plan if "sib_delivery" in line]
        by_state = "part=? AND state=?"
        keyed = [line for line in touching if by_state in line or "PRIMARY KEY (part=? AND seq" in line]
        return bool(touching) and keyed == touching
    if kind == "postgresql":
        plan = [row[0] for row in conn.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS OFF) {sql}", parameters)]
        conn.rollback()
        return not any("Seq Scan on sib_delivery" in line or _removed(line) > 1000 for line in plan)
    plan = list(conn.exec_driver_sql(f"EXPLAIN {sql}", parameters).mappings())
    return all(
        row["type"] not in ("ALL", "index")
        for row in plan
        if row["table"] and "delivery" in str(row["table"])
    )


def _removed(line: str) -> int:
    """Read how many rows PostgreSQL looked at in vain."""
    name, _, count = line.strip().partition(": ")
    return int(count) if name.startswith("Rows Removed by") else 0


# the schema


def test_a_ledger_that_needs_newer_code_is_refused_with_the_way_out(sql_house: House) -> None:
    sql_house.open()
    with sa.create_engine(sql_house.url, future=True, poolclass=NullPool).begin() as conn:
        before = dict(conn.exec_driver_sql("SELECT k, v FROM sib_meta").all())
        conn.exec_driver_sql("UPDATE sib_meta SET v = '3' WHERE k = 'schema'")
    try:
        # Newer, but it says that this code may use it.
        assert sql_house.open().identity().schema == 3
        with sa.create_engine(sql_house.url, future=True, poolclass=NullPool).begin() as conn:
            conn.exec_driver_sql("UPDATE sib_meta SET v = '2' WHERE k = 'readable_from'")
            conn.exec_driver_sql("UPDATE sib_meta SET v = '9.1.0' WHERE k = 'readable_from_release'")
        with pytest.raises(
            LedgerUnsafe, match=r"schema 3.*needs airflow-provider-sib 9\.1\.0 or newer.*Upgrade"
        ):
            sql_house.open()
    finally:
        with sa.create_engine(sql_house.url, future=True, poolclass=NullPool).begin() as conn:
            for name in ("schema", "readable_from", "readable_from_release"):
                conn.execute(
                    sa.text("UPDATE sib_meta SET v = :v WHERE k = :k"), {"k": name, "v": before[name]}
                )


def test_a_migration_killed_at_any_step_is_finished_by_the_next(tmp_path: Path) -> None:
    for at in range(1, 40):
        url = f"sqlite:///{tmp_path}/{at}.db"
        executioner = Executioner(at)
        sa.event.listen(sa.engine.Engine, "before_cursor_execute", executioner.step)
        try:
            SqlLedger(url).close()
        except Killed:
            pass
        else:
            return
        finally:
            sa.event.remove(sa.engine.Engine, "before_cursor_execute", executioner.step)
        ledger = SqlLedger(url)
        audience(ledger, people(1))
        ledger.close()
    pytest.fail("the migration never came to its end")


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "mssql+pyodbc://x", "sqlite:///file:x?uri=true"]
)
def test_a_database_that_can_t_be_a_ledger_is_refused(url: str) -> None:
    with pytest.raises(LedgerUnsafe):
        SqlLedger(url)


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg2://root@127.0.0.1:1/x", "mysql+pymysql://root@127.0.0.1:1/x"]
)
def test_a_server_that_does_not_answer_is_unavailable(url: str) -> None:
    with pytest.raises(LedgerUnavailable):
        SqlLedger(url)


def test_an_error_of_the_database_shows_no_visitor(sql_house: House) -> None:
    ledger = sql_house.open()
    audience(ledger, people(1))
    with sa.create_engine(sql_house.url, future=True, poolclass=NullPool).begin() as conn:
        conn.exec_driver_sql("ALTER TABLE sib_suppress RENAME TO sib_elsewhere")
    try:
        with pytest.raises((sa.exc.DBAPIError, LedgerError)) as caught:
            ledger.suppress(["secret-visitor"], "bounced")
    finally:
        with sa.create_engine(sql_house.url, future=True, poolclass=NullPool).begin() as conn:
            conn.exec_driver_sql("ALTER TABLE sib_elsewhere RENAME TO sib_suppress")
    assert "secret-visitor" not in str(caught.value)


# one machine's file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "ledger.db"


def test_the_file_is_durable_and_its_owner_s_alone(file: Path) -> None:
    ledger = SqlLedger(f"sqlite:///{file}")
    for path in file.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    with engine_of(ledger).connect() as conn:
        assert conn.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert conn.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert conn.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 0
    ledger.close()


def test_a_writer_waits_for_another_with_jitter_and_gives_up_after_a_while(file: Path) -> None:
    pauses: list[float] = []
    ledger = SqlLedger(f"sqlite:///{file}", sleep=pauses.append, random=lambda: 0.5)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable, match="locked"):
        opened(ledger)
    assert set(pauses) == {0.002}
    assert sum(pauses) == pytest.approx(PATIENCE_SECONDS, abs=0.01)
    assert ledger.campaigns() == []
    other.execute("COMMIT")
    other.close()
    opened(ledger)
    ledger.close()


def test_a_full_disk_loses_nothing_and_is_told(file: Path) -> None:
    ledger = SqlLedger(f"sqlite:///{file}")
    audience(ledger, people(*range(50)))
    (row,) = cycle(ledger, 1).claimed
    with engine_of(ledger).connect() as conn:
        pages = conn.exec_driver_sql("PRAGMA page_count").scalar_one()
        conn.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerUnavailable, match="full"):
        ledger.suppress([f"{n}" * 50 for n in range(2000)], "bounced")
    with engine_of(ledger).connect() as conn:
        conn.exec_driver_sql("PRAGMA max_page_count = 100000")
    assert cycle(ledger, 0, [result(row, SENT)]).recorded == 1
    ledger.close()


def test_an_older_copy_of_a_ledger_shows_by_its_claims(file: Path) -> None:
    ledger = SqlLedger(f"sqlite:///{file}")
    audience(ledger, people(*range(9)))
    cycle(ledger, 3)
    ledger.close()
    copy = shutil.copy(file, file.with_name("copy.db"))
    ledger = SqlLedger(f"sqlite:///{file}")
    cycle(ledger, 3)
    pinned = ledger.identity()
    ledger.close()
    restored = SqlLedger(f"sqlite:///{copy}")
    assert restored.identity().ledger_id == pinned.ledger_id
    assert restored.identity().claims < pinned.claims
    restored.close()
    fresh = SqlLedger(f"sqlite:///{file.with_name('fresh.db')}")
    assert fresh.identity().ledger_id != pinned.ledger_id
    fresh.close()


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/local ext4 rw 0 0
//server/share /mnt/with\\040blank cifs rw 0 0
s3fs /data fuse.s3fs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/opt/airflow/ledger.db", None),
        ("/home/me/ledger.db", "nfs4"),
        ("/home/local/ledger.db", None),
        ("/homes/ledger.db", None),
        ("/mnt/with blank/ledger.db", "cifs"),
        ("/data/x/ledger.db", "fuse.s3fs"),
    ],
)
def test_a_network_disk_is_known_by_its_mount(path: str, kind: str | None) -> None:
    assert network_disk(Path(path), MOUNTS) == kind


# servers


def test_postgresql_commits_synchronously_even_where_the_database_says_otherwise(databases: Any) -> None:
    url = databases["postgresql"].url
    lazy = url.update_query_dict({"options": url.query["options"] + " -csynchronous_commit=off"})
    ledger = SqlLedger(lazy)
    with engine_of(ledger).connect() as conn:
        assert conn.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
        assert conn.exec_driver_sql("SHOW transaction_isolation").scalar_one() == "read committed"
    ledger.close()


def test_a_machine_that_is_gone_is_noticed_in_a_minute_unless_the_address_says_otherwise(
    databases: Any,
) -> None:
    url = databases["postgresql"].url
    own = url.update_query_dict(
        {
            "keepalives_idle": "7",
            "tcp_user_timeout": "90000",
            "options": url.query["options"] + " -cstatement_timeout=5min",
        }
    )
    for address, idle, unanswered_ms, limit in ((url, 30, 60_000, "54s"), (own, 7, 90_000, "5min")):
        ledger = SqlLedger(address)
        with engine_of(ledger).connect() as conn:
            assert conn.exec_driver_sql("SHOW statement_timeout").scalar_one() == limit
            with socket.socket(fileno=os.dup(conn.connection.dbapi_connection.fileno())) as line:
                assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == idle
                assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == unanswered_ms
        ledger.close()


@pytest.mark.parametrize(
    ("kind", "question", "answer", "warnings"),
    [
        ("postgresql", "SHOW fsync", "'on'", []),
        ("postgresql", "SHOW fsync", "'off'", [r"PostgreSQL runs with fsync=off: .* may lose what was sent"]),
        ("mariadb", "SELECT @@innodb_flush_log_at_trx_commit", "1", []),
        ("mariadb", "SELECT @@innodb_flush_log_at_trx_commit", "2", ["trx_commit is 2, not 1: .* may lose"]),
        ("mariadb", "SELECT @@innodb_flush_log_at_trx_commit", "0", ["trx_commit is 0, not 1: .* may lose"]),
    ],
)
def test_a_server_that_may_lose_commits_is_reported(
    databases: Any, kind: str, question: str, answer: str, warnings: list[str]
) -> None:
    """By an answer that is put into the server's mouth: the settings are those of all its databases."""
    asked: list[str] = []

    def reword(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        if statement != question:
            return statement, parameters
        asked.append(statement)
        return f"SELECT {answer}", parameters

    sa.event.listen(sa.engine.Engine, "before_cursor_execute", reword, retval=True)
    try:
        ledger = SqlLedger(databases[kind].url)
    finally:
        sa.event.remove(sa.engine.Engine, "before_cursor_execute", reword)
    told = ledger.identity().warnings
    ledger.close()
    assert asked == [question]
    assert len(told) == len(warnings)
    assert all(map(re.search, warnings, told))


def test_mariadb_compares_names_byte_by_byte(databases: Any) -> None:
    ledger = SqlLedger(databases["mariadb"].url)
    with engine_of(ledger).connect() as conn:
        collations = conn.exec_driver_sql(
            "SELECT DISTINCT table_collation FROM information_schema.tables WHERE table_schema = DATABASE()"
        ).scalars()
        assert list(collations) == ["utf8mb4_bin"]
    ledger.close()


def test_a_connection_the_server_dropped_is_made_again_without_a_word(server_house: House) -> None:
    ledger = server_house.open()
    opened(ledger)
    with engine_of(ledger).connect() as conn:
        sql = "SELECT pg_backend_pid()" if server_house.kind == "postgresql" else "SELECT CONNECTION_ID()"
        pid = conn.exec_driver_sql(sql).scalar_one()
    with sa.create_engine(server_house.url, future=True, poolclass=NullPool).connect() as conn:
        conn.exec_driver_sql(
            f"SELECT pg_terminate_backend({pid})" if server_house.kind == "postgresql" else f"KILL {pid}"
        )
    assert isinstance(ledger.campaign("c"), Campaign)
    assert ledger.revise("c", Text("new", {})).revision == 2
    assert states(ledger) == []


def test_who_vanishes_in_a_transaction_holds_its_locks_for_seconds(server_house: House) -> None:
    vanished, other = server_house.open(), server_house.open()
    opened(other)
    name, unit = {
        "postgresql": ("idle_in_transaction_session_timeout", "ms"),
        "mariadb": ("idle_transaction_timeout", "s"),
    }[server_house.kind]
    with engine_of(vanished).connect() as conn:
        # As of a machine without power, or a process that is suspended: the server still has its session.
        shown = conn.exec_driver_sql(f"SHOW {name}" if unit == "ms" else f"SELECT @@{name}").scalar_one()
        assert shown in ("20s", 20)
        conn.commit()
        conn.exec_driver_sql(f"SET {name} = {1000 if unit == 'ms' else 1}")
        conn.commit()
        conn.exec_driver_sql("SELECT status FROM sib_campaign WHERE campaign = 'c' FOR UPDATE")
        assert not isinstance(other.set_status("c", CampaignStatus.PAUSED), Refusal)
        conn.invalidate()


@pytest.mark.parametrize(
    ("kind", "rights"),
    [
        ("postgresql", "USAGE, CREATE ON SCHEMA {place}"),
        ("mariadb", "SELECT, INSERT, UPDATE, DELETE, CREATE, INDEX ON {place}.*"),
    ],
)
def test_its_user_needs_these_rights_at_most(kind: str, rights: str) -> None:
    database, server, drop = make_database(kind)
    place = drop.split()[2]
    user = f"{place}_user"
    url = database.url.set(username=user, password="secret", host="127.0.0.1")
    postgresql = kind == "postgresql"
    name = user if postgresql else f"'{user}'@'%%'"
    with server.connect() as conn:
        conn.exec_driver_sql(
            f"CREATE ROLE {name} LOGIN PASSWORD 'secret'"
            if postgresql
            else f"CREATE USER {name} IDENTIFIED BY 'secret'"
        )
        try:
            conn.exec_driver_sql(f"GRANT {rights.format(place=place)} TO {name}")
            ledger = SqlLedger(url)
            audience(ledger, people(1, 2), each_run=True)
            claimed = cycle(ledger, 2).claimed
            assert len(claimed) == 2
            ledger.forget_visitor("v1")
            ledger.set_status("c", CampaignStatus.ABORTED)
            cycle(ledger, 0, [result(row, SENT) for row in claimed])
            assert ledger.purge("c") is None
            ledger.close()
        finally:
            conn.exec_driver_sql(drop)
            conn.exec_driver_sql(f"DROP {'ROLE' if postgresql else 'USER'} {name}")
    server.dispose()
