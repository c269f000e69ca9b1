"""What `import airflow_provider_sib.operators` costs a process that has airflow.sdk: milliseconds and modules."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

CODE = """
import json, sys, time
from airflow.sdk import DAG, BaseOperator
before = set(sys.modules)
begun = time.perf_counter()
import airflow_provider_sib.operators
milliseconds = (time.perf_counter() - begun) * 1000
print(json.dumps([milliseconds, len(set(sys.modules) - before)]))
"""


def main() -> None:
    """Print the median of fresh interpreters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9, help="fresh interpreters (9)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    runs = []
    for _ in range(arguments.runs + 1):  # the first one warms the file cache
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    milliseconds = sorted(run[0] for run in runs[1:])
    figures = {
        "import_ms_min": round(milliseconds[0], 1),
        "import_ms_median": round(statistics.median(milliseconds), 1),
        "import_ms_max": round(milliseconds[-1], 1),
        "modules_added": runs[-1][1],
    }
    print("import airflow_provider_sib.operators after airflow.sdk")
    for name, value in figures.items():
        print(f"  {name:<18} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
