"""Say what SQLite, PostgreSQL and MySQL (MariaDB too) word differently; the only place that knows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one database says differently.

    :param name: ``sqlite``, ``postgresql`` or ``mysql``, which MariaDB counts as.
    :param mark: how its driver marks a parameter, to be formatted with the parameter's name.
    :param now: its clock, in milliseconds; None: the process's own is the same one.
    :param lock: what makes a SELECT lock its rows.
    :param text: type of a long text.
    :param table: what ends a CREATE TABLE; ``keyed`` for the table of deliveries, whose rows lie in key order.
    :param todo: the table of deliveries, to be read by the index of states.
    :param next_in_zone: rows of one state and zone up to a rank, so that only that index can give their order.
        PostgreSQL would walk the primary key past everything that is done, were zone a constant.
    :param missing: end of an INSERT that leaves alone what is there; with a column to name for MySQL.
    :param generation: end of an INSERT of a suppression that raises its generation instead.
    """

    name: str
    mark: str
    now: str | None
    lock: str
    text: str
    table: str
    keyed: str
    todo: str
    next_in_zone: str
    missing: str
    generation: str


_PLAIN_NEXT = "zone = :zone AND seq > :after AND seq <= :upto ORDER BY seq"
DIALECTS = {
    "sqlite": Dialect(
        name="sqlite",
        mark=":{}",
        now=None,
        lock="",
        text="TEXT",
        table="",
        keyed=" WITHOUT ROWID",
        todo="sib_delivery INDEXED BY sib_delivery_todo",
        next_in_zone=_PLAIN_NEXT,
        missing="ON CONFLICT DO NOTHING",
        generation="ON CONFLICT (scope, hash) DO UPDATE SET gen = MAX(gen, excluded.gen)",
    ),
    "postgresql": Dialect(
        name="postgresql",
        mark="%({})s",
        now="CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        lock=" FOR UPDATE",
        text="TEXT",
        table="",
        keyed="",
        todo="sib_delivery",
        next_in_zone="(zone, seq) > (:zone, :after) AND (zone, seq) <= (:zone, :upto) ORDER BY zone, seq",
        missing="ON CONFLICT DO NOTHING",
        generation="ON CONFLICT (scope, hash) DO UPDATE SET gen = GREATEST(sib_suppress.gen, excluded.gen)",
    ),
    "mysql": Dialect(
        name="mysql",
        mark="%({})s",
        now="CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)",
        lock=" FOR UPDATE",
        text="MEDIUMTEXT",
        table=" ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin",
        keyed=" ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin",
        todo="sib_delivery FORCE INDEX (sib_delivery_todo)",
        next_in_zone=_PLAIN_NEXT,
        missing="ON DUPLICATE KEY UPDATE {0} = {0}",
        generation="ON DUPLICATE KEY UPDATE gen = GREATEST(gen, VALUES(gen))",
    ),
}
DIALECTS["mariadb"] = DIALECTS["mysql"]
