"""Makes the documentation's pictures: a sandbox, a real Airflow and a browser, all anew, into ``docs/images/``.

All that is seen is invented. What else it makes is below ``.browser/``.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from playwright.sync_api import FrameLocator, expect

from airflow_provider_sib.campaign.announcement import Announcement, Enroller
from airflow_provider_sib.campaign.audience import Row
from airflow_provider_sib.campaign.engine import BUCKET, enrol, open_campaign
from airflow_provider_sib.campaign.ledger import Cycle, Quota, QuotaUse, Result, State
from airflow_provider_sib.campaign.report import RESERVE
from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from browser import WIDTH, AirflowPages, chromium
from trial import API_KEY, REPOSITORY, Trial, TrialError, call, visitors

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, Page

    from airflow_provider_sib.campaign.ledger import Delivery

IMAGES = REPOSITORY / "docs" / "images"
CONN_ID = "sib_conversations_default"
KIND = "Brevo (Sendinblue) Conversations"
DAG_ID, TASK_ID = "announce_release", "announce"
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
MOST_BYTES = 200_000
# As at Brevo: the first campaign uses up most of an hour. Answers are slow, so that it is seen on its way.
QUOTA, HOUR_SECONDS = 100, 3600
SLOWLY = {"kind": "latency", "seconds": 8}
CAMPAIGN_MS = 600_000
# The calls that the campaign of hours made in each hour of Brevo's, by the minutes since it began to. The last hour
# began 38 minutes ago; in one, others used the key.
HOURS = {251: 90, 218: 90, 158: 52, 98: 90, 38: 90}
MINUTES_LEFT = 22
VARIANTS = {
    "short": {
        "en": "Hi [[ visitor.first_name ]]! The autumn release is here. Reload the page to get it.",
        "fr": "Bonjour [[ visitor.first_name ]] ! La version d'automne est là. Rechargez la page.",
    },
    "news": {
        "en": "Hi [[ visitor.first_name ]]! The autumn release is here: dark mode, and exports of any size.",
        "fr": "Bonjour [[ visitor.first_name ]] ! La version d'automne : mode sombre et exports sans limite.",
        "de": "Hallo [[ visitor.first_name ]]! Die Herbstversion: dunkles Design und Exporte jeder Größe.",
    },
}


def shoot(page: Page, name: str, *, height: int) -> None:
    """Write a picture of what a window shows.

    :param name: of the file, without its ending.
    :param height: of the window, in pixels.
    :raises TrialError: when it is too large for the documentation.
    """
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.wait_for_function("document.fonts.status === 'loaded'")
    file = IMAGES / f"{name}.png"
    # Twice the same: what moved has come to rest.
    before, after = b"", page.screenshot(animations="disabled", caret="hide")
    while before != after:
        before, after = after, page.screenshot(animations="disabled", caret="hide")
    file.write_bytes(after)
    print(f"  {file.relative_to(REPOSITORY)}  {len(after) / 1000:.0f} kB", flush=True)
    if len(after) > MOST_BYTES:
        raise TrialError(f"{file} has {len(after):,} bytes; the most is {MOST_BYTES:,}.")


class Pictures:
    """The pictures, in an order in which they can be made.

    :param trial: has been started.
    """

    def __init__(self, trial: Trial, browser: Browser) -> None:
        self._trial = trial
        self._browser = browser

    def make(self) -> None:
        """Make them all."""
        self.connection()
        self.one_campaign()
        self.several_campaigns()
        self.campaign_of_hours()

    def connection(self) -> None:
        """Fill in the connection's form, save it, and press Test."""
        pages = self._window()
        form = pages.begin_connection(CONN_ID, KIND)
        form.get_by_label("Description").fill("A sandbox of Brevo Conversations")
        form.get_by_label("Base URL").fill("http://127.0.0.1")
        form.get_by_label("API key").fill(API_KEY)
        form.get_by_label("Port").fill(str(self._trial.sandbox.port))
        shoot(pages.page, "connection-form", height=860)
        pages.unfold_extras(form)
        shoot(pages.page, "connection-extras", height=1500)
        pages.save(form)
        pages.open("/connections")  # without the notice that it was saved
        expect(pages.test_connection(CONN_ID)).to_contain_text("Test Connection Successful")
        shoot(pages.page, "connection-test", height=500)

    def one_campaign(self) -> None:
        """Announce a release; look at it when half is done, and in the end at its task and at the sandbox."""
        call("POST", f"{self._trial.sandbox.page}_sandbox/faults", SLOWLY)
        pages = self._window()
        run = pages.trigger(DAG_ID, version="2.0")
        windows = {theme: self._window(theme) for theme in THEMES}
        shown = {theme: window.open_campaign("release-2.0") for theme, window in windows.items()}
        for theme, campaign in shown.items():
            has_sent(campaign, "[2-5].")
            shoot(windows[theme].page, f"campaign-{theme}", height=820)
        expect(campaign.get_by_test_id("status")).to_have_text("finished", timeout=CAMPAIGN_MS)
        pages.open_task(run, TASK_ID)
        expect(pages.page.get_by_role("link", name="Campaign page")).to_be_visible()
        shoot(pages.page, "task", height=620)
        pages.page.goto(self._trial.sandbox.page)
        expect(pages.page.get_by_role("article").nth(1).get_by_role("listitem")).to_have_count(1)
        shoot(pages.page, "sandbox", height=800)

    def several_campaigns(self) -> None:
        """Begin two more, the one paused, the other waiting for the next hour; look at the list."""
        pages = self._window()
        pages.trigger(DAG_ID, version="2.1")
        campaign = pages.open_campaign("release-2.1")
        has_sent(campaign, "[1-9].*")
        campaign.get_by_role("button", name="Pause").click()
        campaign.get_by_role("dialog").get_by_role("button", name="Pause campaign").click()
        expect(campaign.get_by_test_id("status")).to_have_text("paused")
        pages.trigger(DAG_ID, version="2.2")
        has_sent(pages.open_campaign("release-2.2"), "[1-9].*")
        for theme in THEMES:
            window = self._window(theme)
            expect(window.open_campaigns().get_by_test_id("campaign-row")).to_have_count(3)
            shoot(window.page, f"campaigns-{theme}", height=360)

    def campaign_of_hours(self) -> None:
        """Look at a campaign that began hours ago, by itself and in full length; it is written for the picture."""
        write_hours(self._trial.home / "sib_ledger.db", "autumn")
        pages = self._window()
        pages.open("/sib/?campaign=autumn")
        page = pages.page
        expect(page.get_by_test_id("chart").locator("polyline.allowed")).to_be_visible()
        expect(page.get_by_test_id("doubt").first).to_be_visible()
        shoot(page, "campaign-hours", height=page.evaluate("document.documentElement.scrollHeight"))

    def _window(self, theme: Literal["light", "dark"] = "light") -> AirflowPages:
        context = self._browser.new_context(viewport={"width": WIDTH, "height": 900}, color_scheme=theme)
        # Airflow's own choice counts before the browser's.
        context.add_init_script(f"localStorage.setItem('theme', '{theme}')")
        pages = AirflowPages(context.new_page(), self._trial.airflow.url)
        pages.sign_in()
        return pages


def has_sent(campaign: FrameLocator, figure: str) -> None:
    """Wait until a campaign's page shows that so many were sent.

    :param figure: a pattern.
    """
    expect(campaign.get_by_test_id("sent")).to_have_text(re.compile(f"^{figure}$"), timeout=CAMPAIGN_MS)


def write_hours(file: Path, campaign_id: str) -> None:
    """Write a campaign that began in the middle of one of Brevo's hours, and waits for the next hour.

    :param file: of the ledger.
    """
    now = time.time()
    clock = [now - 60 * next(iter(HOURS))]
    reset_at_ms = round((now + 60 * MINUTES_LEFT) * 1000)

    def told(quota: Quota, _: int) -> tuple[Quota, int]:
        return Quota(limit=QUOTA, remaining=RESERVE, reset_at_ms=reset_at_ms, holders=quota.holders), QUOTA

    def fate(row: Delivery) -> Result:
        if row.rank % 47 == 0:
            return Result(row.rank, row.claim, State.FAILED, reason="http_404")
        if row.rank % 97 == 0:
            return Result(row.rank, row.claim, State.IN_DOUBT, reason="no_answer")
        return Result(row.rank, row.claim, State.SENT, f"m{row.rank}")

    people = visitors()
    rows = [
        Row(hashlib.sha256(str(number).encode()).hexdigest()[:24], person, locale=person["locale"])
        for number, person in enumerate(people * 9)
    ]
    announcement = Announcement(variants=VARIANTS)
    with closing(SqlLedger(f"sqlite:///{file}", clock=lambda: clock[0])) as ledger:
        open_campaign(
            ledger,
            campaign_id,
            binding={"host": "https://api.brevo.com/v3", "connection": "brevo"},
            announcement=announcement,
            settings={
                "dag_id": DAG_ID,
                "task_id": TASK_ID,
                "reserve": RESERVE,
                "audience": "CsvAudience('s3://customers/visitors.csv')",
                "holdout": "0.05",
            },
        )
        ledger.suppress([row.visitor_id for row in rows[::60]], "bounced")
        enroller = Enroller(campaign_id, announcement, once_per="visitor_id", holdout=0.05)
        enrol(ledger, campaign_id, rows, enroller)
        for minutes_ago, calls in HOURS.items():
            for begun in range(0, calls, 15):
                clock[0] = now - 60 * minutes_ago + 8 * begun
                use = QuotaUse("brevo", BUCKET, "picture", 0, min(15, calls - begun), 60, told)
                results = [fate(row) for row in ledger.cycle(Cycle(campaign_id, use, 60)).claimed]
                clock[0] += 60
                use = replace(use, wanted=0)
                ledger.cycle(Cycle(campaign_id, use, 60, results=results, next_wake_ms=reset_at_ms))


def main() -> int:
    """Make the pictures.

    :return: the exit status: 0, or 1 when one could not be made.
    """
    print("Starting a sandbox and an Airflow; then come the pictures.", flush=True)
    IMAGES.mkdir(exist_ok=True)
    try:
        with (
            chromium() as browser,
            Trial(REPOSITORY / ".browser" / "airflow", quota=QUOTA, hour_seconds=HOUR_SECONDS) as trial,
        ):
            trial.start_all()
            trial.sandbox.greet(visitors())
            trial.wait_for_dag(DAG_ID)
            trial.airflow.unpause(DAG_ID)
            Pictures(trial, browser).make()
    except (TrialError, FileNotFoundError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
