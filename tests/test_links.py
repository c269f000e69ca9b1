"""The link from a task to its campaign's page: where it leads, and that it is there while the task runs."""

from __future__ import annotations

import pytest

from airflow_provider_sib import links
from airflow_provider_sib.operators import (
    SendCampaignOperator,
    UpdateCampaignOperator,
    WithdrawCampaignOperator,
)
from airflow_provider_sib.sensors import CampaignSensor

KEY = "_link_CampaignLink"


@pytest.fixture(params=[True, False], ids=["3.3", "3.1"])
def deep(request, monkeypatch):
    monkeypatch.setattr(links, "keeps_deep_links", lambda: request.param)
    return request.param


@pytest.mark.parametrize(
    ("base", "framed", "alone"),
    [
        ("https://a.example", "https://a.example/plugin/brevo-campaigns/sib/?", "https://a.example/sib/?"),
        ("https://a.example/", "https://a.example/plugin/brevo-campaigns/sib/?", "https://a.example/sib/?"),
        (
            "https://a.example/air/flow",
            "https://a.example/air/flow/plugin/brevo-campaigns/air/flow/sib/?",
            "https://a.example/air/flow/sib/?",
        ),
        ("", "/plugin/brevo-campaigns/sib/?", "/sib/?"),
    ],
)
def test_it_leads_below_airflows_base_url(monkeypatch, deep, base, framed, alone):
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base)
    assert links.campaign_address("a b/c&d") == f"{framed if deep else alone}campaign=a+b%2Fc%26d"


def test_it_names_a_ledger_that_is_not_the_configured_one(monkeypatch):
    monkeypatch.setenv("AIRFLOW__SIB__LEDGER_CONN_ID", "usual")
    assert "ledger" not in links.campaign_address("c", ledger_conn_id="usual")
    assert links.campaign_address("c", ledger_conn_id="special").endswith("?campaign=c&ledger=special")


@pytest.mark.parametrize(
    "task",
    [
        SendCampaignOperator(task_id="t", campaign_id="c", audience=[], text="Hi!", sib_conn_id="nowhere"),
        UpdateCampaignOperator(task_id="t", campaign_id="c", text="Hi!", sib_conn_id="nowhere"),
        WithdrawCampaignOperator(task_id="t", campaign_id="c", sib_conn_id="nowhere"),
        CampaignSensor(task_id="t", campaign_id="c", ledger_conn_id="nowhere", mode="poke"),
    ],
    ids=lambda task: type(task).__name__,
)
def test_a_task_keeps_it_before_anything_else(campaigns, task):
    """What comes after it fails here: the connection is not defined."""
    kept = {}

    class TaskInstance:
        def xcom_push(self, key, value):
            kept[key] = value

    with pytest.raises(Exception, match="nowhere"):
        task.execute({"ti": TaskInstance()})
    [link] = task.operator_extra_links
    assert kept == {link.xcom_key: link.get_link(task, ti_key=None)}
    assert link.xcom_key == KEY
