"""Runs the provider's commands: ``python -m airflow_provider_sib COMMAND``; each module brings its own."""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout

# Airflow logs to standard output from its import on, and that is for what was asked for.
with redirect_stdout(sys.stderr):
    from airflow_provider_sib import check, cli


def commands() -> argparse.ArgumentParser:
    """Give the parser of all commands."""
    parser = argparse.ArgumentParser(prog="python -m airflow_provider_sib", allow_abbrev=False)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (check, cli):
        module.add_command(subparsers)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    :param arguments: the command line without the program's name; None for this process's own.
    :return: the exit status.
    """
    options = commands().parse_args(arguments)
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
