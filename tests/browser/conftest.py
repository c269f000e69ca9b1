"""A sandbox, a real Airflow and a real browser; what each test saw is kept below `.browser/`."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from browser import CHROMIUM, HEIGHT, WIDTH, AirflowPages, chromium
from trial import REPOSITORY, Trial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext

KEPT = REPOSITORY / ".browser"
# The environment whose Airflow is looked at: another version's, where the variable names one.
PYTHON = Path(os.environ.get("SIB_AIRFLOW_PYTHON", sys.executable))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        # In CI a failure, by tests/conftest.py, as every skip.
        pytest.skip("the tests in the browser need Chromium on the PATH; on Debian: apt-get install chromium")
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def trial(browser: Browser) -> Iterator[Trial]:
    """Start a sandbox and an Airflow; of the module only, since they would slow down all other tests."""
    with Trial(KEPT / "airflow", quota=50, hour_seconds=30, python=PYTHON) as started:
        started.start_all()
        yield started


@pytest.fixture(scope="module")
def kept(trial: Trial) -> Path:
    """Give the folder for what is seen of this version of Airflow."""
    folder = KEPT / trial.airflow.ask("GET", "/version")["version"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def context(browser: Browser, trial: Trial) -> Iterator[BrowserContext]:
    """Give a window that is signed in, and keeps Airflow's megabytes of script from page to page."""
    with browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}) as opened:
        AirflowPages(opened.new_page(), trial.airflow.url).sign_in()
        yield opened


@pytest.fixture
def pages(
    trial: Trial, context: BrowserContext, kept: Path, request: pytest.FixtureRequest
) -> Iterator[AirflowPages]:
    """Give Airflow's pages; keep a picture of the last one, and after a failure all there is."""
    page = context.new_page()
    yield AirflowPages(page, trial.airflow.url)
    stem = re.sub(r"\W+", "-", request.node.name).strip("-")
    page.screenshot(path=kept / f"{stem}.png")
    if request.node.stash.get(FAILED, False):
        (kept / f"{stem}.html").write_text(page.content())
        shutil.copytree(trial.logs, kept / f"{stem}.logs")
    page.close()


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Tell the fixture `pages` how its test ended."""
    report = yield
    if call.when == "call":
        item.stash[FAILED] = report.failed
    return report
