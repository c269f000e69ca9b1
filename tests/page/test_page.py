"""The Campaign page in a real API server: who sees what, who may change it, and what is refused."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from itertools import pairwise

import pytest
import requests

from airflow_provider_sib.campaign.ledger import CampaignStatus

HEADER = {"x-sib-request": "1"}
STATIC = resources.files("airflow_provider_sib.page") / "static"


def ask(server, user, path, **query):
    return server.browser(user).get(f"{server.page}/api/{path}", params=query, timeout=60)


def told(server, user, path, **query):
    answer = ask(server, user, path, **query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def change(server, user, campaign_id, status, seen="running"):
    return server.browser(user).post(
        f"{server.page}/api/status",
        json={"id": campaign_id, "status": status, "seen": seen},
        headers=HEADER,
        timeout=60,
    )


# the page itself


def is_secured(answer):
    policy = answer.headers["content-security-policy"]
    assert dict(part.strip().split(" ", 1) for part in policy.split(";")) == {
        "default-src": "'none'",
        **dict.fromkeys(["script-src", "style-src", "connect-src", "img-src", "frame-ancestors"], "'self'"),
        **dict.fromkeys(["base-uri", "form-action"], "'none'"),
    }
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_lets_a_browser_run_nothing_but_its_own_files_and_only_airflow_frame_it(server):
    for path in ("/", "/static/page.js", "/api/campaigns", "/static/nothing"):
        is_secured(requests.get(server.page + path, timeout=60))


def test_an_error_that_nobody_foresaw_is_secured_too_and_tells_where_to_look(server, ledger, make_campaign):
    make_campaign("odd", reserve="ten")
    answer = ask(server, "adam", "campaigns")
    assert answer.status_code == 500
    is_secured(answer)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {"detail": "The API server failed; its log says why."}


def test_every_file_it_names_is_there_by_a_relative_address_and_none_is_elsewhere(server):
    page = requests.get(f"{server.page}/", timeout=60).text
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert [name for name in named if name.startswith(("/", "http"))] == []
    for name in named:
        if name.startswith("static/"):
            answer = requests.get(f"{server.page}/{name}", timeout=60)
            assert answer.status_code == 200
    for file in STATIC.iterdir():
        text = file.read_text().replace("http://www.w3.org/", "")
        assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|document\.write|\beval\(", text), (
            file.name
        )
        for imported in re.findall(r'import\("?\./([\w.]+)|from "\./([\w.]+)', text):
            assert (STATIC / "".join(imported)).is_file()
    assert not re.search(r"<script(?![^>]* src=)|<style| on\w+=| style=", page)


@pytest.mark.parametrize("name", ["nothing.js", "..%2fapp.py", "%2e%2e/app.py", ""])
def test_no_other_file_is_given(server, name):
    assert requests.get(f"{server.page}/static/{name}", timeout=60).status_code == 404


def test_airflow_shows_it_in_its_navigation(server):
    answer = requests.get(
        f"{server.root}/air/api/v2/plugins",
        headers={"authorization": f"Bearer {server.token('adam')}"},
        timeout=60,
    ).json()
    [view] = [
        view for plugin in answer["plugins"] if plugin["name"] == "sib" for view in plugin["external_views"]
    ]
    assert (view["category"], view["destination"], view["href"]) == ("browse", "nav", "sib/")
    for icon in (view["icon"], view["icon_dark_mode"]):
        assert (
            requests.get(f"{server.root}/air/{icon}", timeout=60).headers["content-type"] == "image/svg+xml"
        )


# looking


def test_without_a_login_nothing_is_told(server, ledger):
    for path in ("campaigns", "campaign?id=release", "figures?id=release", "doubts?id=release"):
        assert requests.get(f"{server.page}/api/{path}", timeout=60).status_code == 401


def test_the_list_tells_of_each_campaign_the_newest_first(server, ledger):
    listed = told(server, "vera", "campaigns")
    assert [row["id"] for row in listed["campaigns"]] == ["release", "paused", "done", "no-dag"]
    row = listed["campaigns"][0]
    assert (row["sent"], row["failed"], row["in_doubt"], row["skipped"], row["due"]) == (8, 1, 1, 0, 2)
    assert row["settled_share"] == pytest.approx(10 / 12)
    assert (row["quota"]["remaining"], row["quota"]["limit"]) == (37, 100)
    assert (row["status"], row["delivery"], row["seconds_left"]) == ("running", "now", 0)
    assert [row["delivery"] for row in listed["campaigns"][1:3]] == ["stopped", "over"]


def test_the_list_is_searched_filtered_and_paged(server, ledger):
    def ids(**query):
        found = told(server, "vera", "campaigns", **query)
        return found["total"], [row["id"] for row in found["campaigns"]]

    assert ids(search="REL") == (1, ["release"])
    assert ids(search="announce send") == (2, ["release", "paused"])
    assert ids(status="paused") == (1, ["paused"])
    assert ids(offset=1, limit=2) == (4, ["paused", "done"])
    assert ids(search="nothing") == (0, [])


def test_one_campaign_tells_its_texts_by_locale_and_revision(server, ledger):
    one = told(server, "vera", "campaign", id="release")
    [revision] = one["texts"]
    assert revision["revision"] == 1
    by_variant = {variant["variant"]: variant["texts"] for variant in revision["variants"]}
    assert by_variant == {
        "short": {"en": "Hi!"},
        "long": {"en": "Hi [[ visitor.first_name ]]! <script>alert('text')</script>", "fr": "Bonjour !"},
    }
    assert (one["connection"], one["dag_id"], one["task_id"]) == ("sib", "announce", "send")


def test_figures_count_every_delivery_once(server, ledger):
    figures = told(server, "vera", "figures", id="release")
    assert figures["ready"]
    assert figures["reasons"] == {"failed": {"http_404": 1}, "in_doubt": {"no_answer": 1}, "skipped": {}}
    assert sum(sum(states.values()) for states in figures["variants"].values()) == 12
    moments = figures["chart"]["moments"]
    for state, count in (("sent", 8), ("failed", 1), ("in_doubt", 1)):
        assert sum(moment.get(state, 0) for moment in moments) == count


def test_doubtful_recipients_are_paged_and_their_ids_are_only_text(server, make_campaign, evil):
    make_campaign("doubtful", sent=0, failed=0, doubts=12)
    first = told(server, "vera", "doubts", id="doubtful", limit=5)["doubts"]
    rest = told(server, "vera", "doubts", id="doubtful", offset=5, limit=25)["doubts"]
    ids = {row["visitor_id"] for row in first + rest}
    assert len(ids) == 12
    assert evil in ids
    answer = ask(server, "vera", "doubts", id="doubtful")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"


def test_a_campaign_may_have_any_id(server, make_campaign):
    name = "a/b?c=d&e #ü <b>%2F"
    make_campaign(name)
    assert told(server, "vera", "campaign", id=name)["id"] == name
    assert change(server, "uma", name, "paused").json()["status"] == "paused"


def test_what_is_not_there_is_not_found(server, ledger):
    for path in ("campaign", "figures", "doubts"):
        answer = ask(server, "adam", path, id="nope")
        assert answer.status_code == 404
        assert "no campaign 'nope'" in answer.json()["detail"]
    assert ask(server, "adam", "nothing").status_code == 404
    assert change(server, "adam", "nope", "paused").status_code == 404


def test_a_ledger_that_no_task_has_sent_with_is_not_opened(server, ledger):
    assert ask(server, "adam", "campaigns", ledger="some_database").status_code == 404


# changing


@pytest.mark.parametrize("user", ["uma", "opal", "adam"])
def test_who_may_edit_runs_pauses_resumes_and_aborts(server, ledger, user):
    assert told(server, user, "campaign", id="release")["may_edit"]
    for seen, status in pairwise(["running", "paused", "running", "aborted", "running"]):
        answer = change(server, user, "release", status, seen)
        assert (answer.status_code, answer.json()["status"]) == (200, status)
        assert ledger.campaign("release").status == status


def test_who_may_only_look_changes_nothing(server, ledger):
    assert not told(server, "vera", "campaign", id="release")["may_edit"]
    for status in ("paused", "running", "aborted"):
        assert change(server, "vera", "release", status).status_code == 403
    assert ledger.campaign("release").status == "running"


def test_what_is_finished_is_not_paused(server, ledger):
    answer = change(server, "adam", "done", "paused", "finished")
    assert answer.status_code == 409
    assert "finished" in answer.json()["detail"]


def test_what_is_no_longer_as_it_was_seen_is_not_changed(server, ledger):
    ledger.set_status("release", CampaignStatus.ABORTED)
    answer = change(server, "adam", "release", "running", "paused")
    assert (answer.status_code, answer.json()["detail"]) == (
        409,
        "Campaign 'release' is aborted by now, not paused as it was seen. Nothing was changed.",
    )
    assert ledger.campaign("release").status == "aborted"


def test_of_two_who_change_it_at_once_only_one_does(server, ledger):
    sessions = server.browser("uma"), server.browser("adam")
    for _ in range(20):
        start = threading.Barrier(2)

        def ask_for(session, status, start=start):
            start.wait(60)
            body = {"id": "release", "status": status, "seen": "running"}
            return session.post(f"{server.page}/api/status", json=body, headers=HEADER, timeout=60)

        with ThreadPoolExecutor(2) as pool:
            answers = [*pool.map(ask_for, sessions, ("paused", "aborted"))]
        assert sorted(answer.status_code for answer in answers) == [200, 409]
        (done,) = [answer.json()["status"] for answer in answers if answer.ok]
        assert ledger.campaign("release").status == done
        ledger.set_status("release", CampaignStatus.RUNNING)


BODY = json.dumps({"id": "release", "status": "aborted", "seen": "running"})


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (
            {"content-type": "application/x-www-form-urlencoded"},
            "id=release&status=aborted&seen=running",
            403,
        ),
        ({"content-type": "text/plain"}, BODY, 403),
        ({"content-type": "application/json"}, BODY, 403),
        ({"content-type": "application/json", "x-sib-request": "0"}, BODY, 403),
        ({"content-type": "text/plain", **HEADER}, BODY, 415),
        (
            {"content-type": "application/x-www-form-urlencoded", **HEADER},
            "id=release&status=aborted&seen=running",
            415,
        ),
        (HEADER, BODY, 415),
    ],
)
def test_what_another_sites_page_could_send_is_refused(server, ledger, headers, body, status):
    session = server.browser("adam")
    answer = session.post(f"{server.page}/api/status", data=body, headers=headers, timeout=60)
    assert answer.status_code == status
    assert ledger.campaign("release").status == "running"


def test_a_change_is_asked_for_by_post_alone_and_whole(server, ledger):
    session = server.browser("adam")
    address = f"{server.page}/api/status"
    assert (
        session.get(address, params={"id": "release", "status": "aborted"}, headers=HEADER).status_code == 405
    )
    for body in (
        {"id": "release"},
        {"id": "release", "status": "paused"},
        {"id": "release", "status": "finished", "seen": "running"},
        {"id": 1, "status": "paused", "seen": "running"},
        [],
    ):
        assert session.post(address, json=body, headers=HEADER, timeout=60).status_code == 422
    assert requests.post(address, json=json.loads(BODY), headers=HEADER, timeout=60).status_code == 401
    assert ledger.campaign("release").status == "running"


# without a ledger


def test_a_missing_ledger_is_told_with_the_way_out_and_not_made(server, ledger):
    aside = server.home / "aside"
    for file in server.home.glob("sib_ledger.db*"):
        file.rename(aside.with_name(file.name + ".aside"))
    answer = ask(server, "vera", "campaigns")
    assert answer.status_code == 503
    problem = answer.json()["problem"]
    assert problem["title"] == "There is no ledger here yet"
    assert str(server.ledger_file) in problem["detail"]
    assert any("ledger_conn_id" in remedy for remedy in problem["remedies"])
    assert not server.ledger_file.exists()
    for file in server.home.glob("*.aside"):
        file.rename(file.with_suffix(""))
