"""Shows the Campaign page in Airflow's navigation, under Browse.

Every daemon and each fresh task imports this module, so it imports nothing but Airflow's own base class: the page
behind the callable is imported at its first request, which only ever reaches an API server.
"""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from typing import Any

    Message = MutableMapping[str, Any]


async def campaign_page(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Answer a request for the page; an ASGI application."""
    from airflow_provider_sib.page.app import app

    await app(scope, receive, send)


class SibPlugin(AirflowPlugin):
    """The provider's part of Airflow's UI."""

    name = "sib"
    fastapi_apps: list[Any] = [  # noqa: RUF012  so Airflow declares it
        {"app": campaign_page, "url_prefix": "/sib", "name": "Brevo campaigns"}
    ]
    # Without a leading slash an address is relative to Airflow's own, whose base URL may have a path.
    external_views: list[Any] = [  # noqa: RUF012  as above
        {
            "name": "Brevo campaigns",
            "href": "sib/",
            "destination": "nav",
            "category": "browse",
            "url_route": "brevo-campaigns",
            "icon": "sib/static/icon.svg",
            "icon_dark_mode": "sib/static/icon-dark.svg",
        }
    ]
