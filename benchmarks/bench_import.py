"""What the operators cost a process that has airflow.sdk when a DAG file is parsed: milliseconds and modules."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

CODE = """
import json, sys, time
from airflow.sdk import DAG, BaseOperator
before = set(sys.modules)
begun = time.perf_counter()
{statement}
milliseconds = (time.perf_counter() - begun) * 1000
print(json.dumps([milliseconds, len(set(sys.modules) - before)]))
"""
STATEMENTS = {
    "a message": "from airflow_provider_sib.operators import SendPushedMessageOperator",
    "a campaign": "from airflow_provider_sib.operators import SendCampaignOperator",
    "all operators": "from airflow_provider_sib.operators import *",
}
# As in any installation, modules are compiled once.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def measure(statement: str, runs: int) -> dict[str, float]:
    """Run a statement in fresh interpreters and give its milliseconds."""
    found = []
    for _ in range(runs + 1):  # the first one compiles, and warms the file cache
        done = subprocess.run(
            [sys.executable, "-c", CODE.format(statement=statement)],
            capture_output=True,
            text=True,
            check=True,
            env=ENVIRONMENT,
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
    milliseconds = sorted(run[0] for run in found[1:])
    return {
        "min_ms": round(milliseconds[0], 1),
        "median_ms": round(statistics.median(milliseconds), 1),
        "max_ms": round(milliseconds[-1], 1),
        "modules": found[-1][1],
    }


def main() -> None:
    """Print a table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9, help="fresh interpreters (9)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    figures = {name: measure(statement, arguments.runs) for name, statement in STATEMENTS.items()}
    print(f"{'import of':<16}{'min':>8}{'median':>8}{'max':>8}  ms  modules added")
    for name, row in figures.items():
        print(f"{name:<16}{row['min_ms']:>8}{row['median_ms']:>8}{row['max_ms']:>8}      {row['modules']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
