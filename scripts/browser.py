"""Airflow's own pages in a real browser, worked as their users work them; for tests and for pictures.

It knows where Airflow 3.1, 3.2 and 3.3 have their buttons; what must be seen is told by the tests.
"""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote

from playwright.sync_api import FrameLocator, expect, sync_playwright

from trial import Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Locator, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTH, HEIGHT = 1280, 900
# Airflow's pages load some megabytes of script, and every part of it may share two cores with all the others.
PATIENCE_MS = 120_000


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run the machine's Chromium, without a window.

    :raises FileNotFoundError: when there is none.
    """
    if CHROMIUM is None:
        raise FileNotFoundError("There is no Chromium on the PATH; on Debian: apt-get install chromium.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                # It looks at pages of this machine: nothing is to be looked up, fetched or shared elsewhere.
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                # Its own sandbox needs rights that containers lack, and there is no graphics card.
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
            ],
        )
        try:
            yield browser
        finally:
            browser.close()


class AirflowPages:
    """The pages of one Airflow in which everybody is an administrator.

    :param page: a page of the browser.
    :param url: Airflow's address.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self._url = url
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)

    def sign_in(self) -> None:
        """Get the cookie; on Airflow 3.1 this forgets where one wanted to go."""
        self.page.goto(self._url)
        self.page.get_by_role("link", name="Home").first.wait_for()

    def open(self, path: str) -> None:
        """Go to a page.

        :param path: such as "/connections".
        """
        self.page.goto(f"{self._url}{path}")

    def begin_connection(self, conn_id: str, kind: str) -> Locator:
        """Open the form of a new connection, and choose its id and its type.

        :param kind: the type, as the list of types shows it.
        :return: the form.
        """
        self.open("/connections")
        self.page.get_by_role("button", name="Add Connection").first.click()
        form = self.page.get_by_role("dialog")
        form.get_by_label("Connection ID").fill(conn_id)
        form.get_by_role("combobox").fill(kind)
        self.page.get_by_role("option", name=kind, exact=True).click()
        expect(form.get_by_text("Standard Fields", exact=True)).to_be_visible()
        return form

    def unfold_extras(self, form: Locator) -> None:
        """Unfold the form's part "Extra Fields", which folds the others; from Airflow 3.4 on nothing is folded."""
        folded = form.get_by_role("button", name="Extra Fields", exact=True)
        if folded.count():
            folded.click()
            expect(form.get_by_role("region", name="Standard Fields")).to_be_hidden()

    def extra(self, form: Locator, label: str) -> Locator:
        """Find the part of the form that holds an extra: its label, its widget and its help."""
        named = self.page.get_by_text(label, exact=True)
        return form.get_by_role("group").filter(has=named)

    def save(self, form: Locator) -> None:
        """Save a connection, and come back to the list."""
        form.get_by_role("button", name="Save").click()
        expect(form).to_be_hidden()

    def test_connection(self, conn_id: str) -> Locator:
        """Press Test in the list of connections.

        :return: the notice with the answer.
        """
        row = self.page.get_by_role("row").filter(has_text=conn_id)
        row.get_by_role("button", name="Test Connection").click()
        notice = self.page.get_by_role("status").filter(has_text=re.compile("Test Connection"))
        expect(notice).to_be_visible()
        return notice

    def trigger(self, dag_id: str, **parameters: str) -> Run:
        """Start a run of a DAG that has one task at least, by the button on its page.

        :param parameters: of the DAG, as they are typed.
        """
        self.open(f"/dags/{dag_id}")
        self.page.get_by_role("button", name="Trigger").first.click()
        dialog = self.page.get_by_role("dialog")
        for name, value in parameters.items():
            dialog.get_by_role("group").filter(has_text=name).get_by_role("textbox").fill(value)
        dialog.get_by_role("button", name="Trigger", exact=True).click()
        self.page.wait_for_url("**/runs/**")
        return Run(dag_id, unquote(self.page.url.rpartition("/runs/")[2]))

    def open_task(self, run: Run, task_id: str) -> None:
        """Go to the details of a task."""
        self.open(f"/dags/{run.dag_id}/runs/{run.run_id}/tasks/{task_id}/details")

    def open_campaigns(self) -> FrameLocator:
        """Go to the list of campaigns by Airflow's menu.

        :return: what is in Airflow's frame.
        """
        self.open("/")
        self.page.get_by_role("button", name="Browse").click()
        self.page.get_by_role("menuitem", name="Brevo campaigns").click()
        return self.page.frame_locator("iframe")

    def open_campaign(self, campaign_id: str) -> FrameLocator:
        """Go to a campaign by the list, as soon as it is there.

        :return: what is in Airflow's frame.
        """
        frame = self.open_campaigns()
        frame.get_by_role("link", name=campaign_id, exact=True).click()
        expect(frame.get_by_role("heading", name=campaign_id)).to_be_visible()
        return frame

    def follow(self, link: Locator) -> Page:
        """Click a link, which on Airflow 3.1 opens a window of its own.

        :return: the page it leads to.
        """
        if link.get_attribute("target") != "_blank":
            link.click()
            return self.page
        with self.page.expect_popup() as opened:
            link.click()
        return opened.value
