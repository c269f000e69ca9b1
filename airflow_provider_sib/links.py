"""Leads from a task's page in Airflow's UI to its campaign's.

Airflow keeps a link when a task's slice ends; so a task keeps its own when it begins, and the button works while it
runs. There is no link to a conversation in Brevo's app: its address (``visitor.threadLink``) is told by webhooks only
(https://developers.brevo.com/docs/conversations-webhooks), and no answer of the API has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from airflow.sdk import BaseOperatorLink

from airflow_provider_sib._compat import conf, keeps_deep_links

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey


class CampaignLink(BaseOperatorLink):
    """The page of the campaign that a task is about."""

    @property
    def name(self) -> str:
        """What the button says."""
        return "Campaign page"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002  Airflow's own
        """Give the page's address.

        :param operator: the task, its templates rendered.
        """
        task: Any = operator
        return campaign_address(task.campaign_id, ledger_conn_id=task.ledger_conn_id)

    def keep(self, operator: BaseOperator, context: Context) -> None:
        """Keep the link from now on, while the task still runs.

        :param context: of the task; one without a task instance, as a test may give it, keeps nothing.
        """
        task_instance: Any = context.get("ti")
        if task_instance is not None:
            task_instance.xcom_push(key=self.xcom_key, value=self.get_link(operator, ti_key=task_instance))


def campaign_address(campaign_id: str, *, ledger_conn_id: str | None = None) -> str:
    """Give the address of a campaign's page, below ``[api] base_url``.

    :param campaign_id: the campaign.
    :param ledger_conn_id: the Airflow connection of its ledger; None: the one that is configured.
    """
    from airflow_provider_sib.hooks.campaign import LedgerPlace

    base = (conf.get("api", "base_url", fallback="") or "").rstrip("/")
    query = {"campaign": campaign_id}
    place = LedgerPlace.configured(ledger_conn_id)
    if place.conn_id is not None and place != LedgerPlace.configured(None):
        query["ledger"] = place.conn_id
    page = f"/sib/?{urlencode(query)}"
    if keeps_deep_links():
        return f"{base}/plugin/brevo-campaigns{urlsplit(base).path}{page}"
    return f"{base}{page}"
