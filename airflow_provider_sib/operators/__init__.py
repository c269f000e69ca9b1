"""Operators of Brevo Conversations: single messages, and campaigns.

Each is loaded when it is first named, so that a DAG file pays for what it uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_sib.operators.campaign import (
        SendCampaignOperator,
        UpdateCampaignOperator,
        WithdrawCampaignOperator,
    )
    from airflow_provider_sib.operators.messages import (
        AgentOnlineOperator,
        DeleteMessageOperator,
        GetMessageOperator,
        SendMessageOperator,
        SendPushedMessageOperator,
        UpdateMessageOperator,
        UpdatePushedMessageOperator,
    )

__all__ = [
    "AgentOnlineOperator",
    "DeleteMessageOperator",
    "GetMessageOperator",
    "SendCampaignOperator",
    "SendMessageOperator",
    "SendPushedMessageOperator",
    "UpdateCampaignOperator",
    "UpdateMessageOperator",
    "UpdatePushedMessageOperator",
    "WithdrawCampaignOperator",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{'campaign' if 'Campaign' in name else 'messages'}")
    return getattr(module, name)
