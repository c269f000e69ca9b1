"""Operators of Brevo Conversations: single messages, and campaigns."""

from __future__ import annotations

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
    "SendMessageOperator",
    "SendPushedMessageOperator",
    "UpdateMessageOperator",
    "UpdatePushedMessageOperator",
]
