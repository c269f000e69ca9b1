"""Makes the documentation's pictures: a sandbox, a real Airflow and a browser, all anew, into ``docs/images/``.

All that is seen is invented. What else it makes is below ``.browser/``.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Literal

from playwright.sync_api import FrameLocator, expect

from browser import WIDTH, AirflowPages, chromium
from trial import API_KEY, REPOSITORY, Trial, TrialError, call, visitors

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

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
