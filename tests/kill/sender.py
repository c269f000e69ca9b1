"""Deliver a campaign in a process of its own, to be killed: `sender.py BASE_URL API_KEY LEDGER_URL VISITORS`."""

from __future__ import annotations

import sys

from airflow_provider_sib.api.aio import AsyncConversationsClient
from airflow_provider_sib.api.wire import Retries
from airflow_provider_sib.campaign.announcement import Announcement, Enroller
from airflow_provider_sib.campaign.audience import Row
from airflow_provider_sib.campaign.engine import Rules, SendEngine, Stopped, enrol, open_campaign
from airflow_provider_sib.campaign.pacing import Rate
from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from airflow_provider_sib.delivery import Courier

MAX_IN_FLIGHT = 8
CAMPAIGN = "killed"


def main(base_url: str, api_key: str, ledger_url: str, visitors: int) -> int:
    """Begin, or go on where the killed one was."""
    ledger = SqlLedger(ledger_url)
    announcement = Announcement("Hello")
    open_campaign(ledger, CAMPAIGN, binding={}, announcement=announcement)
    rows = (Row(f"visitor-{number}", {}) for number in range(visitors))
    enrol(ledger, CAMPAIGN, rows, Enroller(CAMPAIGN, announcement))
    # A short timeout, so that the leases of the killed end within the test.
    rules = Rules(
        account="sandbox",
        rate=Rate(reserve=0),
        max_in_flight=MAX_IN_FLIGHT,
        timeout_seconds=1.0,
    )
    engine = SendEngine(ledger, CAMPAIGN, rules)
    engine.begin(resumed=False)
    end = Courier(
        engine,
        lambda: AsyncConversationsClient(api_key=api_key, base_url=base_url, retries=Retries(attempts=1)),
        max_in_flight=MAX_IN_FLIGHT,
        defer_after_seconds=None,
    ).run()
    return isinstance(end, Stopped)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4], int(sys.argv[4])))
