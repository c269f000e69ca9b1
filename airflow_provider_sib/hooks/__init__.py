"""The only door from Airflow to Brevo: a connection becomes settings, settings become clients and calls.

Importing this package costs next to nothing: the clients, with requests, aiohttp and pydantic behind them, are
imported when a connection is used (the one lazy seam of the provider).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_sib.hooks.connection import ConnectionSettings, VisitorNotAllowed
from airflow_provider_sib.hooks.conversations import (
    SibConversationsHook,
    defer_after_seconds,
    failing_for_good,
)

if TYPE_CHECKING:
    from airflow_provider_sib.hooks.campaign import CampaignHook

__all__ = [
    "CampaignHook",
    "ConnectionSettings",
    "SibConversationsHook",
    "VisitorNotAllowed",
    "defer_after_seconds",
    "failing_for_good",
]


def __getattr__(name: str) -> Any:
    if name == "CampaignHook":
        from airflow_provider_sib.hooks.campaign import CampaignHook

        return CampaignHook
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
