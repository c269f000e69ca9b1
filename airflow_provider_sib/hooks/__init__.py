"""The only door from Airflow to Brevo: a connection becomes settings, settings become clients and calls.

Importing this package costs next to nothing: the clients, with requests, aiohttp and pydantic behind them, are
imported when a connection is used (the one lazy seam of the provider).
"""

from __future__ import annotations

from airflow_provider_sib.hooks.connection import ConnectionSettings, VisitorNotAllowed
from airflow_provider_sib.hooks.conversations import (
    SibConversationsHook,
    defer_after_seconds,
    failing_for_good,
)

__all__ = [
    "ConnectionSettings",
    "SibConversationsHook",
    "VisitorNotAllowed",
    "defer_after_seconds",
    "failing_for_good",
]
