"""Describe this provider to Airflow: plain data, which imports nothing.

Airflow reads it in every process that discovers providers; on 3.2 and later, importing Airflow from here would
break a bare ``import airflow``. The connection form stands here once: Airflow 3.3 and later draw it from this
data, Airflow 3.1 and 3.2 through the hook, which translates it; the hook reads the extras by the same table.
"""

from __future__ import annotations

from typing import Any

CONN_TYPE = "sib_conversations"
DEFAULT_CONN_ID = "sib_conversations_default"
HOOK_NAME = "Brevo (Sendinblue) Conversations"
DEFAULT_BASE_URL = "https://api.brevo.com/v3"

INTEGRATION = "Brevo Conversations"

# The extras of a connection: what the form shows and the hook accepts, with the defaults the hook takes.
CONN_FIELDS: dict[str, dict[str, Any]] = {
    "timeout_seconds": {
        "label": "Timeout (seconds)",
        "description": "Bounds one request as a whole: connecting, sending and reading the answer. Default: 30.",
        "schema": {"type": ["number", "null"], "default": 30, "minimum": 1, "maximum": 600},
    },
    "requests_per_hour": {
        "label": "Requests per hour",
        "description": (
            "The quota of your Brevo plan (100, 200 or 600), for the case that Brevo's answers do not tell it."
        ),
        "schema": {"type": ["integer", "null"], "minimum": 1},
    },
    "reserve_calls": {
        "label": "Calls left to others",
        "description": (
            "The quota belongs to the whole Brevo account: campaigns leave this many calls of every hour to your "
            "colleagues' integrations. Default: 10."
        ),
        "schema": {"type": ["integer", "null"], "default": 10, "minimum": 0},
    },
    "proxy": {
        "label": "Proxy",
        "description": (
            "URL of an HTTP proxy, such as http://proxy.example.com:3128. Without it the environment's "
            "https_proxy counts."
        ),
        "schema": {"type": ["string", "null"]},
    },
    "agent_id": {
        "label": "Agent id",
        "description": (
            "The agent in whose name messages are sent where a task names none, such as d9nKoegKSjmCtyK78. "
            "Without agent and group, Brevo picks a random agent for a pushed message."
        ),
        "schema": {"type": ["string", "null"]},
    },
    "group_id": {
        "label": "Group id",
        "description": (
            "A random agent of this group writes pushed messages where a task names none, such as "
            "PjRBMhWGen6aRHjif. Give an agent or a group, not both."
        ),
        "schema": {"type": ["string", "null"]},
    },
    "allowed_visitors": {
        "label": "Allowed visitors",
        "description": (
            "For staging: messages go only to visitors whose id matches one of these patterns, separated by "
            "commas (qa-*, kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg); everybody else is skipped. Empty: everybody."
        ),
        "schema": {"type": ["string", "null"]},
    },
    "allow_insecure_http": {
        "label": "Allow plain http",
        "description": "Send the API key unencrypted to a host that is not this machine. For test networks only.",
        "schema": {"type": ["boolean", "null"], "default": False},
    },
}

# `port` stays visible: where it is hidden, the form of Airflow 3.3 posts 0 for it and the Test button is refused
# before it reaches the hook (https://github.com/apache/airflow/issues/73298).
UI_FIELD_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["login", "schema"],
    "relabeling": {"password": "API key", "host": "Base URL"},
    "placeholders": {"password": "xkeysib-…", "host": DEFAULT_BASE_URL},
}


def get_provider_info() -> dict[str, Any]:
    """Describe the provider in the form of Airflow's ``provider_info.schema.json``.

    :return: plain dicts and lists, as read by ``airflow.providers_manager``.
    """
    return {
        "package-name": "airflow-provider-sib",
        "name": HOOK_NAME,
        "description": (
            "`Brevo <https://www.brevo.com/>`__ (formerly Sendinblue) Conversations: messages and announcements "
            "to the visitors of a web app."
        ),
        "integrations": [
            {
                "integration-name": INTEGRATION,
                "external-doc-url": "https://developers.brevo.com/reference/send-a-message-as-an-agent",
                "tags": ["service"],
            }
        ],
        "hooks": [{"integration-name": INTEGRATION, "python-modules": ["airflow_provider_sib.hooks"]}],
        "operators": [
            {"integration-name": INTEGRATION, "python-modules": ["airflow_provider_sib.operators"]}
        ],
        "sensors": [{"integration-name": INTEGRATION, "python-modules": ["airflow_provider_sib.sensors"]}],
        "triggers": [{"integration-name": INTEGRATION, "python-modules": ["airflow_provider_sib.triggers"]}],
        "notifications": ["airflow_provider_sib.notifications.SibNotifier"],
        "extra-links": ["airflow_provider_sib.links.CampaignLink"],
        "connection-types": [
            {
                "connection-type": CONN_TYPE,
                "hook-class-name": "airflow_provider_sib.hooks.SibConversationsHook",
                "hook-name": HOOK_NAME,
                "ui-field-behaviour": UI_FIELD_BEHAVIOUR,
                "conn-fields": CONN_FIELDS,
            }
        ],
        "config": {
            "sib": {
                "description": "Settings of the provider for Brevo (Sendinblue) Conversations.",
                "options": {
                    "defer_after_seconds": {
                        "description": (
                            "A task waits in place for at most this many seconds (10 or more); for longer it is "
                            "deferred and gives its worker slot back.\n"
                        ),
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": None,
                        "default": "60",
                    },
                    "ledger_conn_id": {
                        "description": (
                            "Airflow connection (postgres or mysql) of the database that keeps the campaigns' ledger. "
                            "Empty: a SQLite file in AIRFLOW_HOME, for an Airflow whose tasks run on one machine.\n"
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "campaigns_ledger",
                        "default": "",
                    },
                },
            }
        },
    }
