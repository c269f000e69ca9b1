"""What a user of Airflow sees and does of this provider, in a real browser on a real Airflow, against the sandbox."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from airflow_provider_sib.provider_info import CONN_FIELDS, HOOK_NAME
from browser import AirflowPages
from trial import API_KEY, call, free_ports, visitors

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, FrameLocator, Locator, Page

    from trial import Run, Trial

pytestmark = pytest.mark.browser

RESTRICTED_KEY = "xkeysib-restricted"
DAG_ID, TASK_ID = "announce_release", "announce"
VISITORS = visitors()
# A campaign lasts an hour of the sandbox, and Airflow defers its task meanwhile.
CAMPAIGN_SECONDS = 300


class TestConnectionForm:
    @pytest.fixture
    def form(self, pages: AirflowPages) -> Locator:
        return pages.begin_connection("made_by_form", HOOK_NAME)

    def test_labels_its_standard_fields_and_gives_examples(self, form):
        key, address = form.get_by_label("API key"), form.get_by_label("Base URL")
        expect(key).to_have_attribute("placeholder", "xkeysib-…")
        expect(address).to_have_attribute("placeholder", "https://api.brevo.com/v3")
        expect(form.get_by_label("Port")).to_be_visible()
        for hidden in ("Login", "Schema"):
            expect(form.get_by_label(hidden)).to_have_count(0)

    def test_masks_the_key(self, form):
        expect(form.get_by_label("API key")).to_have_attribute("type", "password")

    def test_has_a_label_a_help_text_a_default_and_the_right_widget_for_each_extra(self, pages, form):
        pages.unfold_extras(form)
        roles = {"number": "spinbutton", "integer": "spinbutton", "string": "textbox", "boolean": "checkbox"}
        for field in CONN_FIELDS.values():
            extra = pages.extra(form, field["label"])
            expect(extra).to_have_count(1)
            expect(extra.get_by_text(field["description"], exact=True)).to_be_visible()
            widget = extra.get_by_role(roles[field["schema"]["type"][0]])
            match field["schema"].get("default"):
                case False:
                    expect(widget).not_to_be_checked()
                case default:
                    expect(widget).to_have_value("" if default is None else str(default))

    def test_makes_a_connection_that_test_accepts(self, trial, pages, form):
        form.get_by_label("Base URL").fill("http://127.0.0.1")
        form.get_by_label("API key").fill(API_KEY)
        form.get_by_label("Port").fill(str(trial.sandbox.port))
        pages.unfold_extras(form)
        pages.extra(form, "Requests per hour").get_by_role("spinbutton").fill("200")
        pages.extra(form, "Allowed visitors").get_by_role("textbox").fill("qa-*")
        pages.extra(form, "Allow plain http").locator("[data-part=control]").click()
        pages.save(form)
        saved = trial.airflow.ask("GET", "/connections/made_by_form")
        assert (saved["conn_type"], saved["host"], saved["port"], saved["password"]) == (
            "sib_conversations",
            "http://127.0.0.1",
            trial.sandbox.port,
            "***",
        )
        defaults = {name: field["schema"].get("default") for name, field in CONN_FIELDS.items()}
        chosen = {"requests_per_hour": 200, "allowed_visitors": "qa-*", "allow_insecure_http": True}
        assert json.loads(saved["extra"]) == defaults | chosen
        expect(pages.test_connection("made_by_form")).to_contain_text(
            "Brevo accepts the key for Conversations"
        )


class TestTheTestButton:
    """It sits in the list of connections, and gives the hook's answer."""

    @pytest.fixture
    def answer_to(self, trial: Trial, pages: AirflowPages):
        """Press Test for a connection to the sandbox that differs in some fields; give the notice."""

        def _answer_to(conn_id: str, **fields: object) -> Locator:
            connection = {"conn_type": "sib_conversations", "host": "http://127.0.0.1", "password": API_KEY}
            port = {"port": trial.sandbox.port}
            trial.airflow.ask("POST", "/connections", {"connection_id": conn_id} | connection | port | fields)
            pages.open("/connections")
            return pages.test_connection(conn_id)

        return _answer_to

    def test_accepts_the_right_key_at_the_connections_own_port_and_names_the_machine(self, trial, answer_to):
        notice = answer_to("right")
        expect(notice).to_contain_text("Test Connection Successful")
        expect(notice).to_contain_text(
            f"Brevo accepts the key for Conversations at http://127.0.0.1:{trial.sandbox.port}/v3. "
            f"Asked from {socket.gethostname()}."
        )

    def test_accepts_a_key_that_is_restricted_to_conversations(self, trial, answer_to):
        call("PUT", f"{trial.sandbox.page}_sandbox/settings", {"restricted_key": RESTRICTED_KEY})
        notice = answer_to("restricted", password=RESTRICTED_KEY)
        expect(notice).to_contain_text("Brevo accepts the key for Conversations")

    def test_refuses_a_wrong_key_in_brevos_words_and_does_not_show_it(self, answer_to):
        notice = answer_to("wrong", password="xkeysib-wrong")
        expect(notice).to_contain_text("Test Connection Failed")
        expect(notice).to_contain_text("Refused: ")
        expect(notice).to_contain_text("Key not found")
        expect(notice).not_to_contain_text("xkeysib-wrong")

    def test_says_which_address_does_not_answer(self, answer_to):
        (port,) = free_ports(1)
        notice = answer_to("unreachable", port=port)
        expect(notice).to_contain_text("Test Connection Failed")
        expect(notice).to_contain_text(f"No answer from http://127.0.0.1:{port}/v3: ")

    def test_says_what_is_wrong_with_an_extra(self, answer_to):
        notice = answer_to("misspelt", extra=json.dumps({"timeout": 5}))
        expect(notice).to_contain_text(re.compile("Brevo accepts the key, but: .*timeout_seconds"))


def is_at(status: str, campaign: FrameLocator) -> None:
    """Wait until a campaign's page, which nobody loads again, shows a status."""
    expect(campaign.get_by_test_id("status")).to_have_text(status, timeout=CAMPAIGN_SECONDS * 1000)


@pytest.fixture(scope="module")
def connected(trial: Trial) -> None:
    trial.sandbox.greet(VISITORS)
    trial.airflow.connect(trial.sandbox)
    trial.wait_for_dag(DAG_ID)
    # What other tests have called is no part of this campaign's hours.
    trial.wait("sandbox", CAMPAIGN_SECONDS, lambda: not trial.sandbox.summary()["quota"]["is_open"])
    # The form that triggers a run offers this too, but a click may be faster than its learning that the DAG is paused.
    trial.airflow.unpause(DAG_ID)


@pytest.fixture(scope="module")
def announced(trial: Trial, context: BrowserContext, connected: None) -> Run:
    page = context.new_page()
    run = AirflowPages(page, trial.airflow.url).trigger(DAG_ID)
    page.close()
    return run


class TestCampaign:
    """From the click that starts it to what visitors see; there is less quota in an hour than there are visitors."""

    def test_started_by_a_click_is_seen_moving_to_its_end(self, pages, announced):
        campaign = pages.open_campaign("release-2.0")
        is_at("running", campaign)
        sent = campaign.get_by_test_id("sent")
        expect(sent).to_have_text("40", timeout=CAMPAIGN_SECONDS * 1000)
        is_at("finished", campaign)
        expect(sent).to_have_text(str(len(VISITORS)))
        for nothing in ("failed", "in_doubt", "skipped", "pending"):
            expect(campaign.get_by_test_id(nothing)).to_have_text("0")

    def test_is_one_click_away_from_its_task(self, pages, announced):
        pages.open_task(announced, TASK_ID)
        page = pages.follow(pages.page.get_by_role("link", name="Campaign page"))
        # Airflow 3.1 has no address for a page in its frame: there it is shown by itself.
        shown: FrameLocator | Page = page.frame_locator("iframe") if "/plugin/" in page.url else page
        expect(shown.get_by_role("heading", name="release-2.0")).to_be_visible()

    def test_is_on_the_sandboxs_page_as_each_visitor_sees_it(self, trial, pages, announced):
        pages.page.goto(trial.sandbox.page)
        pages.page.get_by_role("searchbox").fill("Amélie")
        seen = pages.page.get_by_role("article", name="Amélie")
        message = seen.get_by_role("listitem").filter(has_text="La version 2.0 est arrivée")
        expect(message).to_have_count(1, timeout=CAMPAIGN_SECONDS * 1000)
        expect(message).to_contain_text("Bonjour Amélie!")

    def test_paused_in_the_middle_writes_to_nobody_until_it_is_resumed(self, trial, pages, connected):
        def written_to() -> list[str]:
            """Give the visitors who have got a message of this campaign, as often as they have."""
            return [m["visitorId"] for m in trial.sandbox.messages() if "2.1" in m["text"]]

        pages.trigger(DAG_ID, version="2.1")
        campaign = pages.open_campaign("release-2.1")
        expect(campaign.get_by_test_id("sent")).not_to_have_text("0", timeout=CAMPAIGN_SECONDS * 1000)
        campaign.get_by_role("button", name="Pause").click()
        campaign.get_by_role("dialog").get_by_role("button", name="Pause campaign").click()
        is_at("paused", campaign)
        expect(campaign.get_by_test_id("delivery")).to_contain_text(
            "nothing is begun until somebody resumes it"
        )
        before = written_to()
        assert 0 < len(before) < len(VISITORS)
        trial.wait("sandbox", CAMPAIGN_SECONDS, lambda: not trial.sandbox.summary()["quota"]["is_open"])
        assert written_to() == before
        is_at("paused", campaign)

        campaign.get_by_role("button", name="Resume").click()
        campaign.get_by_role("dialog").get_by_role("button", name="Resume campaign").click()
        is_at("finished", campaign)
        assert sorted(written_to()) == sorted(visitor["visitor_id"] for visitor in VISITORS)
