"""The documentation as a site: it builds without a warning, and asks no other host for anything it is drawn with."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

REPOSITORY = Path(__file__).parent.parent

LOADS = {
    "audio": ("src",),
    "embed": ("src",),
    "form": ("action",),
    "iframe": ("src",),
    "image": ("href", "xlink:href"),
    "img": ("src", "srcset"),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "use": ("href", "xlink:href"),
    "video": ("src", "poster"),
}
"""Elements by which a page asks for something as soon as it is opened or used, and how they name it."""


class Page(HTMLParser):
    """What a page loads, what it leads to, and the names within it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loads: set[str] = set()
        self.leads_to: set[str] = set()
        self.names: set[str] = set()
        self.styles = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.loads |= {given[name] for name in LOADS.get(tag, ()) if given.get(name)}
        if tag == "a" and given.get("href"):
            self.leads_to.add(given["href"])
        self.names |= {given[name] for name in ("id", "name") if given.get(name)}
        self.styles += given.get("style") or ""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Build the site as `make docs` does, elsewhere."""
    (recipe,) = re.findall(r"^docs: .*\n\t(.+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    folder = tmp_path_factory.mktemp("site")
    words = recipe.replace("$(BIN)/python", sys.executable).replace(".docs/", f"{folder}/").split()
    built = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    # Old Airflows' libraries say at INFO, and there, what they set up.
    said = [line for line in built.stderr.splitlines() if "[info " not in line]
    assert (built.returncode, said) == (0, [])
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {file: Page(file) for file in site.rglob("*.html")}


def test_every_page_of_the_documents_is_built(site):
    for page in (REPOSITORY / "docs").rglob("*.md"):
        assert (site / page.relative_to(REPOSITORY / "docs")).with_suffix(".html").exists()


def test_no_other_host_is_asked_for_anything(site, pages):
    asked = {target for page in pages.values() for target in page.loads}
    styles = "".join(page.styles for page in pages.values())
    styles += "".join(file.read_text() for file in site.rglob("*.css"))
    asked |= {target.strip("'\" ") for target in re.findall(r"url\(([^)]+)\)|@import", styles) if target}
    assert {"_static/styles/furo.css", "_static/searchtools.js"} <= {
        urlsplit(target).path for target in asked
    }
    assert {target for target in asked if urlsplit(target).netloc} == set()


def test_its_scripts_name_no_host_to_ask(site):
    for file in {*site.rglob("*.js")} - {site / "searchindex.js"}:  # which holds words of the pages
        code = re.sub(r"/\*.*?\*/|^\s*//.*$", "", file.read_text(), flags=re.DOTALL | re.MULTILINE)
        code = code.replace("http://www.w3.org/2000/svg", "")  # the name of SVG, which nobody asks for
        assert re.findall(r"""["'`](?:https?:)?//[\w.-]+""", code) == [], file.name


def test_what_it_loads_and_leads_to_is_there(site, pages):
    missing = []
    for file, page in pages.items():
        for target in page.loads | page.leads_to:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            leads = (file.parent / unquote(url.path)).resolve() if url.path else file
            if not leads.exists() or (
                url.fragment and leads in pages and unquote(url.fragment) not in pages[leads].names
            ):
                missing.append((file.relative_to(site).as_posix(), target))
    assert missing == []


def test_the_search_finds_a_parameter_and_a_message(site):
    words = (site / "searchindex.js").read_text()
    assert '"max_failure_shar"' in words or "max_failure_share" in words
    assert "on_doubt" in words
