"""Runs the sandbox from the command line: says its address at once, ends cleanly on Ctrl-C and SIGTERM.

``python -m airflow_provider_sib.sandbox --port 8090 --quota 100 --hour-seconds 20 --fault latency,seconds=0.5``
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import signal
import sys
from random import SystemRandom
from typing import Any

from airflow_provider_sib.sandbox.server import SandboxServer
from airflow_provider_sib.sandbox.settings import Settings, hints, parsed
from airflow_provider_sib.sandbox.state import State

#: What the bare `--restricted-key` stands for.
_RESTRICTED_KEY = "xkeysib-restricted"


def commands() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_sib.sandbox",
        description="A local Brevo Conversations, with a page that shows what each visitor sees. The switches and "
        "faults are described in the docstrings of airflow_provider_sib.sandbox.state and .faults.",
        allow_abbrev=False,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=8090, help="port, 0 for a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="KIND[,NAME=VALUE…]",
        help="a fault in force from the start, e.g. latency,seconds=2,times=3; may be given often",
    )
    switches = parser.add_argument_group("switches")
    defaults = Settings()
    for name in hints():
        default = getattr(defaults, name)
        switches.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"switch_{name}",
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=f"default: {default}".replace("%", "%%"),
            nargs="?" if name == "restricted_key" else None,
            const=_RESTRICTED_KEY if name == "restricted_key" else None,
        )
    return parser


def _fault(text: str) -> dict[str, Any]:
    kind, *pairs = text.split(",")
    values: dict[str, Any] = {"kind": kind}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--fault {text}: {name} has no value; write it as NAME=VALUE.")
        values[name] = parsed(name, value)
    return values


def main(arguments: list[str] | None = None) -> int:
    """Run the sandbox until it is told to end.

    :param arguments: the command line without the program's name; None for this process's own.
    :return: the exit status: 0 when told to end, 1 when the address can't be had, 2 when the command line is wrong.
    """
    parser = commands()
    options = vars(parser.parse_args(arguments))
    host, port = options["host"], options["port"]
    try:
        switches = {
            name: parsed(name, options[f"switch_{name}"]) for name in hints() if f"switch_{name}" in options
        }
        settings = Settings().changed(switches)
        state = State(settings, SystemRandom(), faults=[_fault(text) for text in options["fault"]])
        return asyncio.run(_serve(state, host, port))
    except ValueError as error:
        return _failed(str(error), status=2)
    except (OSError, OverflowError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            return _failed(
                f"Port {port} of {host} is taken: choose another with --port, or 0 for a free one."
            )
        return _failed(f"The sandbox can't listen on port {port} of {host}: {error}")


def _failed(sentence: str, *, status: int = 1) -> int:
    sys.stderr.write(f"{sentence}\n")
    return status


async def _serve(state: State, host: str, port: int) -> int:
    loop = asyncio.get_running_loop()
    told_to_end = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told_to_end.set)
    server = SandboxServer(state)
    port = await server.start(host, port)
    name = f"[{host}]" if ":" in host else host
    # a key of the user's own stays off the screen
    key = state.settings.api_key if state.settings.api_key == Settings().api_key else "as given"
    sys.stdout.write(
        f"Sandbox of Brevo Conversations: http://{name}:{port}/v3 (api-key {key})\n"
        f"What visitors see: http://{name}:{port}/\n"
    )
    sys.stdout.flush()
    await told_to_end.wait()
    await server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
