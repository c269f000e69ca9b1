"""Keep the ledger in SQLite, PostgreSQL, MySQL or MariaDB, with the promises of :mod:`.ledger`, durably.

A row that was answered to be ``SENDING`` is on disk before the answer; a process or a database may die between
any two statements. What it doesn't know: whether the database keeps what it says it committed (a network disk, an
asynchronous commit); it refuses the first, and reports or mends the second where the database tells.

Lock order, the same everywhere: campaign, then quota, then frequency cap group, then the ledger's own facts.
"""

from __future__ import annotations

from airflow_provider_sib.campaign.sql_ledger.database import PATIENCE_SECONDS, network_disk
from airflow_provider_sib.campaign.sql_ledger.enrolment import ENROLMENT_COLUMNS
from airflow_provider_sib.campaign.sql_ledger.ledger import SqlLedger

__all__ = ["ENROLMENT_COLUMNS", "PATIENCE_SECONDS", "SqlLedger", "network_disk"]
