"""How `make docs` builds the pages: strictly, from this repository and nothing else, into `.docs/`."""

from __future__ import annotations

import sys
from pathlib import Path

from airflow_provider_sib import __version__

sys.path.insert(0, str(Path(__file__).parent))

project = "airflow-provider-sib"
author = "the maintainers of airflow-provider-sib"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "from_the_code"]
source_suffix = {".md": "markdown"}

# Markdown as code hosts show it too: tables, links to headings as GitHub names them, and nothing fancier.
myst_heading_anchors = 4

# A docstring's single backticks quote code.
default_role = "code"
autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

# Every name that is ours has to be found. These are others', whose pages are on other hosts; and what a
# signature names but no page needs to explain.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(airflow|aiohttp|collections|datetime|enum|jinja2|pathlib|pydantic|requests|sqlalchemy|typing|types)\..*",
    ),
]

html_theme = "furo"
html_title = f"airflow-provider-sib {version}"
html_short_title = "airflow-provider-sib"
html_static_path = ["static"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6e45", "color-brand-content": "#0b6e45"},
    "dark_css_variables": {"color-brand-primary": "#5fd39b", "color-brand-content": "#5fd39b"},
    "top_of_page_buttons": [],
}
html_css_files = ["house.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
