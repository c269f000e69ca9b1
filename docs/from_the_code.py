"""Directives that draw pages from the package's own data, so that a page that has gone stale fails the build.

On a code host their blocks stay readable: what stands inside is the explanation, one line for each thing.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import tempfile
import textwrap
import tomllib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from docutils import nodes
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

from airflow_provider_sib.campaign.sql_ledger import SqlLedger
from airflow_provider_sib.provider_info import CONN_FIELDS, get_provider_info

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sphinx import addnodes
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

OTHERS = {
    "AirflowFailException", "AirflowSkipException", "Any", "Connection", "Context", "IO", "Json", "Kind", "M",
    "MinLen",
    "MonkeyPatch", "Path", "Screen", "T", "URL", "Until", "datetime", "timedelta", "_milliseconds", "_moment",
}  # fmt: skip
"""Names that are not this package's own, or not worth a page: they stay without a link."""

REPOSITORY = Path(__file__).parent.parent
OWN = "airflow_provider_sib"


class FromTheCode(SphinxDirective):
    """A directive whose lines explain, as ``name: meaning``, what the code has by these names."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def explained(self, there: Iterable[str]) -> dict[str, str]:
        """Read the explanations, of all that is there and of nothing else."""
        lines = (line.partition(": ") for line in self.content if line.strip())
        meanings = {name: meaning for name, _, meaning in lines}
        there = set(there)
        if meanings.keys() != there:
            raise self.error(
                f"{self.arguments[0]}: not explained {sorted(there - meanings.keys())}, "
                f"not there {sorted(meanings.keys() - there)}"
            )
        return meanings

    def markdown(self, text: str) -> list[nodes.Node]:
        """Give Markdown as nodes; its tables begin with names."""
        given = self.parse_text_to_nodes(text, allow_section_headings=True)
        for node in given:
            for table in node.findall(nodes.table):
                table["classes"].append("names")
        return given

    def table(self, heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[nodes.Node]:
        """Give a table, whose cells are Markdown."""
        lines = [heading, ("---",) * len(heading), *rows]
        cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
        return self.markdown("\n".join(f"| {' | '.join(line)} |" for line in cells))


class LedgerTable(FromTheCode):
    """The columns of one of the ledger's tables, as a new ledger has them."""

    def run(self) -> list[nodes.Node]:
        with tempfile.TemporaryDirectory() as folder:
            url = sa.engine.URL.create("sqlite", database=f"{folder}/ledger.db")
            SqlLedger(url).close()
            engine = sa.create_engine(url)
            name, inspector = self.arguments[0], sa.inspect(engine)
            columns, indexes = inspector.get_columns(name), inspector.get_indexes(name)
            key = inspector.get_pk_constraint(name)["constrained_columns"]
            engine.dispose()
        meanings = self.explained(column["name"] for column in columns)
        rows = (
            (
                f"`{column['name']}`",
                f"{str(column['type']).lower()}{' or null' if column['nullable'] else ''}",
                meanings[column["name"]],
            )
            for column in columns
        )
        names = [
            f"Key: {_columns(key)}",
            *(f"index `{i['name']}`: {_columns(i['column_names'])}" for i in indexes),
        ]
        return [*self.table(("column", "type", "meaning"), rows), *self.markdown(f"{'; '.join(names)}.")]


class LedgerSchema(FromTheCode):
    """The names of all tables, to hold a page that explains each against the schema."""

    def run(self) -> list[nodes.Node]:
        source = Path(self.env.doc2path(self.env.docname)).read_text()
        shown = set(re.findall(r"^```\{ledger-table\} (\w+)", source, re.MULTILINE))
        with tempfile.TemporaryDirectory() as folder:
            url = sa.engine.URL.create("sqlite", database=f"{folder}/ledger.db")
            SqlLedger(url).close()
            engine = sa.create_engine(url)
            there = set(sa.inspect(engine).get_table_names())
            engine.dispose()
        if shown != there:
            raise self.error(f"tables not shown: {sorted(there - shown)}, not there: {sorted(shown - there)}")
        return []


class ConnectionFields(FromTheCode):
    """The extras of a connection, as its form has them."""

    has_content = False
    required_arguments = 0

    def run(self) -> list[nodes.Node]:
        def bounds(schema: dict[str, Any]) -> str:
            least, most = schema.get("minimum"), schema.get("maximum")
            kind = schema["type"][0]
            return (
                kind
                + (f", {least} or more" if most is None and least is not None else "")
                + (f", {least} to {most}" if most is not None else "")
            )

        return self.table(
            ("extra", "label in the form", "type", "default", "meaning"),
            (
                (
                    f"`{name}`",
                    field["label"],
                    bounds(field["schema"]),
                    _default(field["schema"].get("default")),
                    field["description"],
                )
                for name, field in CONN_FIELDS.items()
            ),
        )


class AirflowSettings(FromTheCode):
    """The options of the provider's sections in ``airflow.cfg``."""

    has_content = False
    required_arguments = 0

    def run(self) -> list[nodes.Node]:
        return self.table(
            ("setting", "environment variable", "type", "default", "meaning"),
            (
                (
                    f"`[{section}] {name}`",
                    f"`AIRFLOW__{section.upper()}__{name.upper()}`",
                    option["type"],
                    _default(option["default"]),
                    option["description"],
                )
                for section, described in get_provider_info()["config"].items()
                for name, option in described["options"].items()
            ),
        )


class CommandLine(FromTheCode):
    """The commands of an argument parser, given as ``module:function`` that makes it, and perhaps one command."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        maker, _, command = self.arguments[0].partition(" ")
        module, _, function = maker.partition(":")
        os.environ["NO_COLOR"] = "1"
        parser = getattr(import_module(module), function)()
        return self.markdown("\n\n".join(described(_commands(parser)[command] if command else parser)))


def described(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Describe a parser, and each of its commands under a heading, in Markdown."""
    yield parser.description or ""
    if commands := _commands(parser):
        for name, command in commands.items():
            yield f"### {name}"
            yield from described(command)
        return
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    yield "\n".join(
        ["```text", *textwrap.wrap(usage, 84, subsequent_indent="    ", break_on_hyphens=False), "```"]
    )
    rows = [(_option(action), _words(action, parser)) for action in parser._actions if action.dest != "help"]
    if rows:
        yield "\n".join(["| | |", "|---|---|", *(f"| {option} | {says} |" for option, says in rows)])


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    # argparse has no public way to list what a parser takes.
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0]) if found else {}


class House(FromTheCode):
    """The layers of the package, as the contracts in pyproject.toml have them; who may import whom."""

    def run(self) -> list[nodes.Node]:
        linter = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]
        layers = {c["containers"][0]: c["layers"] for c in linter["contracts"] if c["type"] == "layers"}
        meanings = self.explained(_rooms(layers[OWN]))
        picture = nodes.raw("", f'<div class="house">{self.drawn(OWN, layers)}</div>', format="html")
        return [picture, *self.table(("room", ""), ((f"`{room}`", told) for room, told in meanings.items()))]

    def drawn(self, container: str, layers: dict[str, list[str]]) -> str:
        """Draw a container's layers, and in each room its own."""
        floors = []
        for layer in layers[container]:
            rooms = []
            for room in _rooms([layer]):
                inner = f"{container}.{room}"
                inside = self.drawn(inner, layers) if inner in layers else ""
                rooms.append(f'<div class="room"><code>{html.escape(room)}</code>{inside}</div>')
            floors.append(f'<div class="floor">{"".join(rooms)}</div>')
        return "".join(floors)


def _rooms(layers: Iterable[str]) -> list[str]:
    return [room.strip(" ()") for layer in layers for room in re.split(r"[|:]", layer)]


def _columns(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _default(value: object) -> str:
    return "" if value in (None, "") else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _option(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    value = f" {action.metavar}" if action.option_strings and action.metavar else ""
    return f"`{names}{value}`"


def _words(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    words = {**vars(action), "prog": parser.prog}
    text = (action.help or "") % words
    return f"{text} (required)" if action.required and action.option_strings else text


def resolve(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, shown: nodes.Element
) -> nodes.Element | None:
    """Find what docstrings and annotations name: ours by the last word alone, Airflow's and Python's nowhere.

    Annotations name a class as the module that uses it does, or by the module that holds it.
    """
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].rpartition(".")[2]
    domain = env.domains.python_domain
    found = domain.find_obj(env, None, None, name, node["reftype"], 1)
    if len(found) == 1:
        qualified, entry = found[0]
        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, shown, qualified)
    return shown if not found and name in OTHERS else None


def shorten(
    app: Sphinx,
    kind: str,
    name: str,
    thing: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Write a default that is made anew each time as dots: Sphinx can't read `<factory>`."""
    return signature and signature.replace("<factory>", "..."), returns


def setup(app: Sphinx) -> dict[str, Any]:
    """Make the directives known."""
    directives: dict[str, type[FromTheCode]] = {
        "ledger-table": LedgerTable,
        "ledger-schema": LedgerSchema,
        "connection-fields": ConnectionFields,
        "airflow-settings": AirflowSettings,
        "command-line": CommandLine,
        "house": House,
    }
    for name, directive in directives.items():
        app.add_directive(name, directive)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-signature", shorten)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "version": "1"}
