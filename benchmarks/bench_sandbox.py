"""Measures how many requests a second the sandbox stands: ``python benchmarks/bench_sandbox.py``.

The sandbox is one process, the callers another, so that the two don't share a core. Printed besides what the
callers saw is what one core of the sandbox could do, from the processor time it used.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import aiohttp

KEY = "xkeysib-sandbox"


def cpu_seconds(pid: int) -> float:
    """Give the processor time a process has used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def drive(base_url: str, *, requests: int, in_flight: int, visitors: int) -> float:
    """Send pushed messages as fast as they are answered.

    :return: seconds taken.
    """
    numbers = iter(range(requests))
    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(connector=connector, headers={"api-key": KEY}) as session:

        async def caller() -> None:
            for number in numbers:
                body = {"visitorId": f"visitor-{number % visitors}", "text": f"Version {number} is out."}
                async with session.post(f"{base_url}/conversations/pushedMessages", json=body) as response:
                    assert response.status == 200, await response.text()
                    await response.read()

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(in_flight)))
        return time.perf_counter() - began


def main() -> None:
    """Start the sandbox, drive it, print a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--visitors", type=int, default=5_000)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    command = [sys.executable, "-m", "airflow_provider_sib.sandbox", "--port", "0", "--quota", "1000000000"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sandbox:
        assert sandbox.stdout is not None
        line = sandbox.stdout.readline()
        up_after = time.perf_counter() - began
        try:
            base_url = next(word for word in line.split() if word.startswith("http://"))
            before = cpu_seconds(sandbox.pid)
            seconds = asyncio.run(
                drive(
                    base_url,
                    requests=options.requests,
                    in_flight=options.in_flight,
                    visitors=options.visitors,
                )
            )
            used = cpu_seconds(sandbox.pid) - before
        finally:
            sandbox.terminate()
    figures = {
        "up_after_seconds": round(up_after, 2),
        "seen_per_second": round(options.requests / seconds),
        "per_second_of_cpu": round(options.requests / used),
    }
    if options.json:
        options.json.write_text(json.dumps(figures) + "\n")
    print(
        f"up after {up_after:.2f} s; {options.requests} requests, {options.in_flight} in flight: "
        f"{options.requests / seconds:,.0f}/s seen, {options.requests / used:,.0f}/s on one core of the sandbox"
    )


if __name__ == "__main__":
    main()
