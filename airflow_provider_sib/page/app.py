"""Serves the page and its JSON; see :mod:`airflow_provider_sib.page` for the addresses.

Airflow checks no cross-site requests, and its token is a cookie. So a change has to be JSON and to bring a header of
ours, both of which a browser lets another site's page send only after asking this server, which does not agree.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Literal

from airflow.api_fastapi.core_api.security import GetUserDep  # noqa: TC002  FastAPI reads annotations when it runs
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from airflow_provider_sib.campaign.ledger import UnknownCampaign
from airflow_provider_sib.page import views
from airflow_provider_sib.page.access import permitted
from airflow_provider_sib.page.ledgers import Shelf, UnknownLedger, Unreachable, as_dict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from airflow_provider_sib.campaign.ledger import Campaign
    from airflow_provider_sib.hooks import CampaignHook

#: What web browsers may do with the page: nothing comes from elsewhere, nothing goes elsewhere, and only Airflow's own
#: pages may frame it.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".html": "text/html"}
_STATIC = {
    file.name: (file.read_bytes(), _TYPES[f".{file.name.rpartition('.')[2]}"])
    for file in (resources.files("airflow_provider_sib.page") / "static").iterdir()
}
_CHANGES: dict[str, Callable[[CampaignHook, str, str], Campaign]] = {
    "paused": lambda hook, campaign_id, seen: hook.pause(campaign_id, seen=seen),
    "running": lambda hook, campaign_id, seen: hook.resume(campaign_id, seen=seen),
    "aborted": lambda hook, campaign_id, seen: hook.abort(campaign_id, seen=seen),
}

app = FastAPI(title="Brevo campaigns", docs_url=None, redoc_url=None, openapi_url=None)
shelf = Shelf()
figures = views.Figures()

LedgerName = Annotated[str | None, Query(alias="ledger", max_length=250)]
CampaignId = Annotated[str, Query(alias="id", min_length=1, max_length=255)]
Offset = Annotated[int, Query(ge=0)]
Limit = Annotated[int, Query(ge=1, le=100)]


class Change(BaseModel):
    """What somebody wants to be done with a campaign whose status they saw."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=False)

    id: str
    status: Literal["paused", "running", "aborted"]
    seen: Literal["paused", "running", "aborted", "finished"]
    ledger: str | None = None


@app.middleware("http")
async def _secured(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await answer(request)
    response.headers.update(HEADERS)
    response.headers.setdefault("cache-control", "no-store")
    return response


@app.exception_handler(Exception)
async def _failed(_: Request, __: Exception) -> JSONResponse:
    # Starlette answers these outside of all middleware; then it raises them again, for the log.
    headers = HEADERS | {"cache-control": "no-store"}
    return JSONResponse({"detail": "The API server failed; its log says why."}, 500, headers)


@app.exception_handler(Unreachable)
async def _unreachable(_: Request, error: Unreachable) -> JSONResponse:
    return JSONResponse({"problem": as_dict(error)}, status_code=503)


@app.exception_handler(UnknownCampaign)
async def _unknown(_: Request, error: UnknownCampaign) -> JSONResponse:
    return JSONResponse(
        {"detail": f"There is no campaign {error.campaign_id!r}, or you may not see it."}, 404
    )


@app.exception_handler(UnknownLedger)
async def _unknown_ledger(_: Request, error: UnknownLedger) -> JSONResponse:
    return JSONResponse({"detail": f"No task of this Airflow has sent with the ledger at {error}."}, 404)


def _wanted(request: Request) -> None:
    """Refuse what another site's page could make a browser send.

    :raises HTTPException: 403 without our header, 415 for anything but JSON.
    """
    if request.headers.get("x-sib-request") != "1":
        raise HTTPException(403, "A change needs the header X-Sib-Request: 1.")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "A change must be sent as application/json.")


def _seen(hook: CampaignHook, user: Any, campaign_id: str) -> tuple[Campaign, bool]:
    """Give a campaign, and whether the user may change it.

    :raises UnknownCampaign: when there is none, or the user may not see it: which of them is not told.
    """
    campaign = hook.ledger.campaign(campaign_id)
    dag_id = views.dag_of(campaign)
    if dag_id not in permitted(user, "GET", [dag_id]):
        raise UnknownCampaign(campaign_id)
    return campaign, dag_id in permitted(user, "PUT", [dag_id])


@app.get("/")
async def index() -> Response:
    """Give the page; what is in it takes a user to be asked for."""
    return _file("index.html")


@app.get("/static/{name}")
async def static(name: str) -> Response:
    """Give a file of the page."""
    return _file(name)


def _file(name: str) -> Response:
    if name not in _STATIC:
        raise HTTPException(404, "There is no such file.")
    content, kind = _STATIC[name]
    return Response(content, media_type=kind, headers={"cache-control": "no-cache"})


@app.get("/api/campaigns")
def campaigns(
    user: GetUserDep,
    search: Annotated[str, Query(max_length=255)] = "",
    status: Literal["", "running", "paused", "aborted", "finished"] = "",
    offset: Offset = 0,
    limit: Limit = 25,
    ledger: LedgerName = None,
) -> Response:
    """Give a page of the list."""
    with shelf.opened(ledger) as hook:
        return _json(
            views.listed(
                hook,
                lambda dag_ids: permitted(user, "GET", dag_ids),
                search=search,
                status=status,
                offset=offset,
                limit=limit,
            )
        )


@app.get("/api/campaign")
def campaign(user: GetUserDep, campaign_id: CampaignId, ledger: LedgerName = None) -> Response:
    """Give one campaign."""
    with shelf.opened(ledger) as hook:
        found, may_edit = _seen(hook, user, campaign_id)
        return _json(views.one(hook, found) | {"may_edit": may_edit})


@app.get("/api/figures")
def campaign_figures(user: GetUserDep, campaign_id: CampaignId, ledger: LedgerName = None) -> Response:
    """Give a campaign's chart, variants and reasons."""
    with shelf.opened(ledger) as hook:
        found, _ = _seen(hook, user, campaign_id)
        return _json(figures.of(hook.ledger, found))


@app.get("/api/doubts")
def campaign_doubts(
    user: GetUserDep,
    campaign_id: CampaignId,
    offset: Annotated[int, Query(ge=0, le=views.MOST_DOUBTS)] = 0,
    limit: Limit = 25,
    ledger: LedgerName = None,
) -> Response:
    """Give a page of a campaign's doubtful recipients."""
    with shelf.opened(ledger) as hook:
        _seen(hook, user, campaign_id)
        return _json(views.doubts(hook, campaign_id, offset=offset, limit=limit))


@app.post("/api/status", dependencies=[Depends(_wanted)])
def change_status(user: GetUserDep, change: Change) -> Response:
    """Pause, resume or abort a campaign."""
    with shelf.opened(change.ledger) as hook:
        _, may_edit = _seen(hook, user, change.id)
        if not may_edit:
            raise HTTPException(403, "To change a campaign one must be allowed to edit the runs of its DAG.")
        try:
            changed = _CHANGES[change.status](hook, change.id, change.seen)
        except ValueError as error:
            raise HTTPException(409, str(error)) from error
        return _json(views.one(hook, changed) | {"may_edit": True})


def _json(value: dict[str, Any]) -> Response:
    return Response(json.dumps(value, ensure_ascii=False), media_type="application/json")
