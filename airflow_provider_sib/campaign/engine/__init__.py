"""Decides what a campaign does next: send, edit, delete, wait, or be done; it never sleeps and never speaks HTTP.

Whoever drives it asks :meth:`Engine.next`, performs the requests it is handed, and hands their outcomes to
:meth:`Engine.take`. Every call is one or a few transactions of the ledger, so that the process may die between
any two of them: nobody is written to twice, nobody is forgotten, and what was under way is in doubt by name. What
it doesn't know: how a request is made, and what its errors mean.
"""

from airflow_provider_sib.campaign.engine.editing import Price, UpdateEngine, WithdrawEngine
from airflow_provider_sib.campaign.engine.opening import (
    BadRows,
    CampaignRefused,
    TooManyBadRows,
    enrol,
    enrolments,
    open_campaign,
    text_of,
)
from airflow_provider_sib.campaign.engine.sending import SendEngine
from airflow_provider_sib.campaign.engine.steps import (
    Delete,
    Done,
    Engine,
    Fate,
    Look,
    Outcome,
    Post,
    Put,
    Request,
    Send,
    Step,
    Stopped,
    Wait,
    uptime,
)
from airflow_provider_sib.campaign.engine.work import BUCKET, Rules, text_hash

__all__ = [
    "BUCKET",
    "BadRows",
    "CampaignRefused",
    "Delete",
    "Done",
    "Engine",
    "Fate",
    "Look",
    "Outcome",
    "Post",
    "Price",
    "Put",
    "Request",
    "Rules",
    "Send",
    "SendEngine",
    "Step",
    "Stopped",
    "TooManyBadRows",
    "UpdateEngine",
    "Wait",
    "WithdrawEngine",
    "enrol",
    "enrolments",
    "open_campaign",
    "text_hash",
    "text_of",
    "uptime",
]
