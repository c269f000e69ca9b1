"""The Campaign page in a real browser: what its scripts say, keep and ask again."""

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import partial
from itertools import pairwise

import pytest
from playwright.sync_api import expect

from airflow_provider_sib.campaign.ledger import CampaignStatus
from browser import CHROMIUM, PATIENCE_MS, chromium

pytestmark = pytest.mark.browser

# Of the page's patience a second is 100 ms here.
HASTY = "const wait = AbortSignal.timeout.bind(AbortSignal); AbortSignal.timeout = (ms) => wait(ms / 10);"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        # In CI a failure, by tests/conftest.py, as every skip.
        pytest.skip("the tests in the browser need Chromium on the PATH; on Debian: apt-get install chromium")
    with chromium() as started:
        yield started


@pytest.fixture
def page_of(browser, server, ledger):
    """Open a page for a user who is logged in."""
    with ExitStack() as opened:

        def _page_of(user):
            context = opened.enter_context(browser.new_context())
            context.add_cookies([{"name": "_token", "value": server.token(user), "url": server.root}])
            context.add_init_script(HASTY)
            return context.new_page()

        yield _page_of


@pytest.fixture
def page(page_of):
    return page_of("adam")


@pytest.fixture
def words(page, server):
    """Call a function of the page's words."""
    page.goto(f"{server.page}/")

    def _words(name, *args):
        call = "async ([name, args]) => (await import('./static/words.js'))[name](...args)"
        return page.evaluate(call, [name, args])

    return _words


def test_shares_are_rounded_down_but_something_is_never_nothing(words):
    assert [words("percent", share) for share in (0, 0.004, 0.28, 0.29, 0.57, 0.999, 1)] == [
        "0 %", "< 1 %", "28 %", "29 %", "57 %", "99 %", "100 %",
    ]  # fmt: skip


def test_time_left_is_a_lower_bound_and_told_only_where_somebody_delivers(words):
    row = {"status": "running", "due": 5, "sending": 0, "delivery": "now", "next_wake_ms": None}

    def left(**changed):
        return words("left", row | changed, 1_000_000)

    assert left(seconds_left=0) == "within this hour's quota"
    assert left(seconds_left=40) == "≥ 40 s"
    assert left(seconds_left=0, delivery="waits", next_wake_ms=1_000_000 + 7_200_000) == "≥ 2 h 0 min"
    for delivery in ("nobody", "never", "preparing"):
        assert left(seconds_left=40, delivery=delivery) == "unknown"
    assert left(seconds_left=0, due=0) == "\N{EN DASH}"


def test_the_charts_quota_leaves_the_reserve_to_others(page, server):
    page.goto(f"{server.page}/?campaign=release")
    legend = page.get_by_test_id("chart").locator(".legend")
    expect(legend).to_contain_text("90 an hour, without the reserve of 10")


@pytest.fixture
def chart(page, server, sent_over_time):
    """Look at the chart of a campaign whose messages were sent so many minutes ago."""

    def _chart(messages, *, reset_in):
        sent_over_time("hours", messages, reset_in=reset_in)
        page.goto(f"{server.page}/?campaign=hours")
        shown = page.get_by_test_id("chart")
        expect(shown.locator(".legend")).to_contain_text("90 an hour, without the reserve of 10")
        return shown

    return _chart


def line(chart, kind):
    """Give the points of a line of the chart, in pixels from its upper left corner."""
    points = chart.locator(f"polyline.{kind}").get_attribute("points")
    return [tuple(map(float, point.split(","))) for point in points.split()]


def height(points, x):
    """Give a line's height at a place, between two of its points."""
    for (left, from_), (right, to) in pairwise(points):
        if left <= x <= right and left < right:
            return from_ + (to - from_) * (x - left) / (right - left)
    raise AssertionError(f"The line doesn't reach {x}.")


def is_sent_within_the_allowed(chart):
    """Tell whether at no moment more was sent than the quota's line allows."""
    sent = line(chart, "sent")
    return all(
        height(sent, x) >= allowed - 0.1
        for (left, allowed), (right, _) in list(pairwise(line(chart, "allowed")))[::2]
        for x in [left, right, *(x for x, _ in sent if left < x < right)]
    )


@pytest.mark.parametrize("minutes_ago", [4, 5])
def test_the_quotas_line_rises_where_its_window_ended(chart, minutes_ago):
    shown = chart({15: 90, minutes_ago: 90}, reset_in=55)
    expect(shown.locator(".legend")).to_contain_text("What the quota allows: 90 an hour")
    expect(shown.locator(".legend")).not_to_contain_text("within one")
    expect(shown.locator("polyline.allowed")).to_be_visible()
    expect(shown.locator("polyline.allowed")).not_to_have_css("stroke", "none")
    assert is_sent_within_the_allowed(shown)
    (*_, first), (*_, all_) = line(shown, "sent")[1], line(shown, "sent")[-1]
    heights = [y for _, y in line(shown, "allowed")]
    assert heights == pytest.approx([first, first, all_, all_], abs=0.1)


def test_a_window_of_which_only_the_end_was_the_campaigns_is_a_whole_one(chart):
    shown = chart({95: 90, 85: 90, 25: 90}, reset_in=30)
    assert is_sent_within_the_allowed(shown)
    assert len(line(shown, "allowed")) == 6


def test_a_window_that_opened_with_the_first_message_is_the_first(chart):
    shown = chart({75: 90, 5: 90}, reset_in=45 + 1 / 60)
    assert is_sent_within_the_allowed(shown)
    assert line(shown, "allowed")[0][1] == pytest.approx(line(shown, "sent")[1][1], abs=0.1)


@pytest.mark.parametrize("reset_in", [None, 45])
def test_where_the_windows_are_not_known_or_were_not_an_hour_apart_one_more_is_allowed(chart, reset_in):
    shown = chart({85: 90, 80: 90, 10: 45}, reset_in=reset_in)
    expect(shown.locator(".legend")).to_contain_text("What the quota allows at most: 90 an hour")
    assert is_sent_within_the_allowed(shown)


def test_the_windows_are_known_after_their_end_too(chart):
    shown = chart({145: 90, 134: 90}, reset_in=-75)
    expect(shown.locator(".legend")).to_contain_text("What the quota allows: 90 an hour")
    assert is_sent_within_the_allowed(shown)


@pytest.mark.parametrize(("reset_in", "is_within"), [(55, False), (30, True), (None, False)])
def test_only_what_is_within_one_window_is_said_to_be(chart, reset_in, is_within):
    shown = chart({15: 40, 4: 40}, reset_in=reset_in)
    assert ("all this was within one" in shown.locator(".legend").inner_text()) is is_within


def test_an_open_page_says_that_nothing_answers_and_keeps_what_was_seen(page, server):
    page.goto(f"{server.page}/?campaign=release")
    expect(page.get_by_test_id("sent")).to_have_text("8")
    page.route("**/api/campaign?*", lambda route: None)  # it is never answered
    expect(page.get_by_role("alert")).to_contain_text("is silent", timeout=15_000)
    expect(page.get_by_role("alert")).to_contain_text("Below is what was seen last.")
    expect(page.get_by_test_id("sent")).to_be_visible()
    page.unroute("**/api/campaign?*")
    expect(page.get_by_test_id("problem")).to_be_hidden(timeout=15_000)


def test_a_campaign_that_may_not_be_seen_any_more_is_not_kept(page, server):
    page.goto(f"{server.page}/?campaign=release")
    expect(page.get_by_test_id("sent")).to_be_visible()
    page.route(
        "**/api/campaign?*", lambda route: route.fulfill(status=404, json={"detail": "There is none."})
    )
    expect(page.get_by_role("alert")).to_contain_text("There is none.", timeout=15_000)
    expect(page.get_by_test_id("sent")).to_be_hidden()


def test_what_has_changed_meanwhile_is_not_overridden_and_is_said(page, server, ledger):
    page.goto(f"{server.page}/?campaign=release")
    page.get_by_role("button", name="Pause").click()
    ledger.set_status("release", CampaignStatus.ABORTED)
    page.get_by_role("button", name="Pause campaign").click()
    expect(page.get_by_role("alert")).to_contain_text("is aborted by now, not running as it was seen.")
    expect(page.get_by_test_id("status")).to_have_text("aborted")
    expect(page.get_by_role("button", name="Resume")).to_be_focused()
    assert ledger.campaign("release").status == "aborted"


@pytest.mark.parametrize(
    "leave",
    [
        lambda page: page.keyboard.press("Escape"),
        lambda page: page.keyboard.press("Enter"),
        lambda page: page.get_by_role("button", name="Cancel").click(),
    ],
    ids=["Escape", "Enter", "Cancel"],
)
def test_an_abort_that_is_not_confirmed_changes_nothing(page, server, ledger, leave):
    page.goto(f"{server.page}/?campaign=release")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Pause campaign").click()
    expect(page.get_by_test_id("status")).to_have_text("paused")
    changes = []
    page.route("**/api/status", lambda route: (changes.append(route.request), route.continue_()))
    page.get_by_role("button", name="Abort").click()
    expect(page.get_by_role("alertdialog").get_by_role("button", name="Cancel")).to_be_focused()
    with page.expect_response("**/api/campaign?*"):
        leave(page)
    expect(page.get_by_role("alertdialog")).to_be_hidden()
    expect(page.get_by_role("button", name="Abort")).to_be_focused()
    expect(page.get_by_test_id("status")).to_have_text("paused")
    assert (changes, ledger.campaign("release").status) == ([], "paused")


def test_an_abort_that_is_confirmed_is_done_and_said(page, server, ledger):
    page.goto(f"{server.page}/?campaign=release")
    page.get_by_role("button", name="Abort").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Abort campaign").click()
    expect(page.get_by_role("status")).to_have_text("Aborted. Campaign release is aborted.")
    expect(page.get_by_test_id("status")).to_have_text("aborted")
    assert ledger.campaign("release").status == "aborted"


@pytest.mark.parametrize(("user", "offered"), [("vera", 0), ("uma", 2)])
def test_who_may_only_look_is_offered_no_change(page_of, server, user, offered):
    page = page_of(user)
    for campaign in ("release", "paused"):
        page.goto(f"{server.page}/?campaign={campaign}")
        expect(page.get_by_test_id("sent")).to_have_text("8")
        expect(page.get_by_role("button", name=re.compile("Pause|Resume|Abort"))).to_have_count(offered)


def test_after_a_change_the_focus_is_on_the_way_back(page, server):
    page.goto(f"{server.page}/?campaign=release")
    page.get_by_role("button", name="Pause").press("Enter")
    page.get_by_role("button", name="Pause campaign").press("Enter")
    expect(page.get_by_role("button", name="Resume")).to_be_focused()


def test_beyond_the_end_of_the_list_is_its_last_page(page, server):
    page.goto(f"{server.page}/?offset=500")
    expect(page.get_by_test_id("campaign-row")).to_have_count(4)
    expect(page).not_to_have_url(re.compile("offset"))


def test_the_next_doubts_are_shown_though_figures_are_still_being_counted(page, server, make_campaign):
    make_campaign("doubtful", visitors=40, sent=0, failed=0, doubts=40)
    page.route("**/api/figures?*", lambda route: None)
    page.goto(f"{server.page}/?campaign=doubtful")
    where = page.get_by_test_id("doubts").locator(".where")
    expect(where).to_have_text(re.compile("1.25 of 40"))
    page.get_by_role("button", name="Next recipients").click()
    expect(where).to_have_text(re.compile("26.40 of 40"))
    expect(page.get_by_test_id("doubt")).to_have_count(15)


def test_the_keyboard_reaches_the_search_and_each_campaign_and_opens_it(page, server):
    page.goto(f"{server.page}/")
    rows = page.get_by_test_id("campaign-row")
    expect(rows).to_have_count(4)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the campaigns")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("searchbox", name="Search campaigns")).to_be_focused()
    page.keyboard.type("announce")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(2)
    page.keyboard.press("Tab")
    expect(page.get_by_role("combobox", name="Status")).to_be_focused()
    for campaign in ("release", "paused"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name=campaign, exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="paused", exact=True)).to_be_visible()


def test_what_comes_from_visitors_and_authors_is_shown_as_text(page, server, make_campaign, evil):
    make_campaign("doubtful", visitors=1, sent=0, failed=0, doubts=1)
    page.goto(f"{server.page}/?campaign=doubtful")
    expect(page.get_by_test_id("doubt").locator("td").first).to_have_text(evil)
    expect(page.get_by_test_id("texts").get_by_text("<script>alert('text')</script>")).to_be_visible()
    expect(page.locator("img, article script")).to_have_count(0)


def test_a_ledger_that_is_not_there_is_told_with_every_way_out(page, server):
    for file in server.home.glob("sib_ledger.db*"):
        file.unlink()
    page.goto(f"{server.page}/")
    problem = page.get_by_test_id("problem")
    expect(problem.get_by_role("heading", name="There is no ledger here yet")).to_be_visible()
    expect(problem).to_contain_text(str(server.ledger_file))
    expect(problem.get_by_role("listitem")).to_have_text(
        [re.compile("If no campaign was sent yet"), re.compile("Set .sib. ledger_conn_id")]
    )
    expect(page.get_by_role("heading", name="Brevo campaigns")).to_be_hidden()


@pytest.fixture
def framed(page, server):
    """Open the page in Airflow's frame."""
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{server.root}/air/plugin/brevo-campaigns")
    return page.frame_locator("iframe")


def test_a_dag_is_opened_in_airflow_and_not_in_its_frame(page, server, framed):
    framed.get_by_role("link", name="release", exact=True).click()
    framed.get_by_role("link", name="Open DAG announce").first.click()
    expect(page).to_have_url(f"{server.root}/air/dags/announce", timeout=PATIENCE_MS)


def is_dark(page):
    """Wait until it is."""
    expect(page.locator("html")).to_have_css("color-scheme", "dark")
    expect(page.locator("body")).not_to_have_css("background-color", "rgb(255, 255, 255)")


def is_light(page):
    """Wait until it is."""
    expect(page.locator("html")).to_have_css("color-scheme", "light")
    expect(page.locator("body")).to_have_css("background-color", "rgb(255, 255, 255)")


def test_it_is_dark_or_light_as_airflow_is_and_else_as_the_system(page, server):
    page.emulate_media(color_scheme="dark")
    page.goto(f"{server.page}/")
    is_dark(page)
    page.emulate_media(color_scheme="light")
    is_light(page)
    airflow = page.context.new_page()  # of the same origin: what it chooses is told there at once
    airflow.goto(f"{server.root}/air/")
    airflow.evaluate("localStorage.setItem('theme', 'dark')")
    is_dark(page)
    page.reload()
    is_dark(page)
    page.emulate_media(color_scheme="dark")
    airflow.evaluate("localStorage.setItem('theme', 'light')")
    is_light(page)
    page.reload()
    is_light(page)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_in_airflows_frame_it_is_dark_or_light_with_airflow(page, server, theme):
    page.add_init_script(f"localStorage.setItem('theme', '{theme}')")
    page.emulate_media(color_scheme="light" if theme == "dark" else "dark")
    page.goto(f"{server.root}/air/plugin/brevo-campaigns")
    frame = page.frame_locator("iframe")
    expect(frame.get_by_test_id("campaign-row")).to_have_count(4, timeout=PATIENCE_MS)
    expect(page.locator("html")).to_have_class(re.compile(rf"\b{theme}\b"))
    {"dark": is_dark, "light": is_light}[theme](frame)


def answer(body, route):
    route.fulfill(body=body, content_type="application/json")


def test_figures_that_are_not_ready_or_older_replace_none(page, server):
    page.goto(f"{server.page}/?campaign=release")
    reasons = page.get_by_test_id("reasons")
    expect(reasons).to_contain_text("http_404")
    for older in ('{"ready": false}', '{"ready": true, "at_ms": 1}'):
        page.unroute_all()
        page.route("**/api/figures?*", partial(answer, older))
        with page.expect_response("**/api/figures?*", timeout=15_000):
            pass
        page.wait_for_timeout(300)
        expect(reasons).to_contain_text("http_404")
        expect(reasons.get_by_text("Counting the deliveries")).to_be_hidden()


def test_figures_that_are_not_ready_are_asked_for_by_one_timer(page, server, make_campaign):
    make_campaign("sure", doubts=0)
    asked = []

    def not_ready(route):
        asked.append(route)
        answer('{"ready": false}', route)

    page.route("**/api/figures?*", not_ready)
    page.goto(f"{server.page}/?campaign=sure")
    expect(page.get_by_test_id("chart")).to_contain_text("Counting the deliveries")
    for _ in range(6):  # each time somebody comes back to it, the page refreshes itself
        with page.expect_response("**/api/campaign?*"):
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for_timeout(170)
    before = len(asked)
    page.wait_for_timeout(2_000)
    assert 0 < len(asked) - before <= 6
