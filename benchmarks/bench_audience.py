"""Measure what reading an audience, preparing and enrolling it cost: rows a second and memory, beside csv.DictReader.

python benchmarks/bench_audience.py [--rows 1000000] [--json FILE]
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from airflow_provider_sib.campaign import CsvAudience, JsonLinesAudience
from airflow_provider_sib.campaign.announcement import Announcement, Enroller
from airflow_provider_sib.campaign.audience import Row, read
from airflow_provider_sib.campaign.engine import enrol, open_campaign
from airflow_provider_sib.campaign.ledger import MemoryLedger
from airflow_provider_sib.campaign.sql_ledger import SqlLedger

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT = "Hi [[ visitor.first_name | default('there') ]], your plan is [[ visitor.plan ]]."


def write(folder: Path, rows: int) -> tuple[Path, Path]:
    """Write the same audience as CSV and as JSON Lines."""
    as_csv, as_lines = folder / "visitors.csv", folder / "visitors.jsonl"
    with as_csv.open("w", newline="") as csv_file, as_lines.open("w") as lines_file:
        writer = csv.writer(csv_file)
        columns = ["visitor_id", "first_name", "plan", "timezone", "locale"]
        writer.writerow(columns)
        for number in range(rows):
            row = [f"visitor-{number:032x}", f"Zoë {number}", "pro", "Europe/Paris", "fr-FR"]
            writer.writerow(row)
            lines_file.write(json.dumps(dict(zip(columns, row, strict=True))) + "\n")
    return as_csv, as_lines


def open_path(path: str, _conn_id: str | None) -> BinaryIO:
    """Open a file for reading bytes."""
    return Path(path).open("rb")


def recipients(path: Path) -> int:
    """Read the file as an audience."""
    audience = CsvAudience(str(path)) if path.suffix == ".csv" else JsonLinesAudience(str(path))
    stream = read(audience, open_path=open_path, connect=print, ledger=MemoryLedger())
    return sum(isinstance(row, Row) for row in stream)


def enrolled(path: Path, text: str) -> int:
    """Read the file as an audience, draw every recipient's lots and render every text."""
    stream = read(CsvAudience(str(path)), open_path=open_path, connect=print, ledger=MemoryLedger())
    enroller = Enroller("bench", Announcement(variants={"a": text, "b": text + "!"}), holdout=0.1)
    return sum(enroller.enrolment(row) is not None for row in stream if isinstance(row, Row))


def drawn(path: Path) -> int:
    """Enrol for a text without placeholders."""
    return enrolled(path, "Hi there")


def rendered(path: Path) -> int:
    """Enrol for a text with two placeholders."""
    return enrolled(path, TEXT)


def kept(path: Path) -> int:
    """Do all that a campaign does before its first message: enrol a file into a durable ledger."""
    announcement = Announcement(TEXT)
    ledger = SqlLedger(f"sqlite:///{path.parent}/{time.time_ns()}.db")
    open_campaign(ledger, "bench", binding={}, announcement=announcement)
    stream = read(CsvAudience(str(path)), open_path=open_path, connect=print, ledger=ledger)
    return enrol(ledger, "bench", stream, Enroller("bench", announcement)).joined


def bare(path: Path) -> int:
    """Read the file with csv.DictReader alone."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        return sum(1 for _ in csv.DictReader(file))


WAYS: dict[str, tuple[Callable[[Path], int], str]] = {
    "csv.DictReader, bare": (bare, "csv"),
    "CsvAudience": (recipients, "csv"),
    "JsonLinesAudience": (recipients, "jsonl"),
    "CsvAudience, drawn": (drawn, "csv"),
    "CsvAudience, drawn and rendered": (rendered, "csv"),
    "CsvAudience, into a SQLite ledger": (kept, "csv"),
}


def peak_kib() -> int:
    """Tell this process's own peak of memory; ``ru_maxrss`` may be its parent's."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def measure(way: str, folder: Path) -> dict[str, float | str]:
    """Run one way in this process; memory is that above the imports."""
    function, suffix = WAYS[way]
    before = peak_kib()
    started = time.perf_counter()
    rows = function(folder / f"visitors.{suffix}")
    seconds = time.perf_counter() - started
    peak = peak_kib() - before
    return {
        "way": way,
        "rows_per_second": round(rows / seconds),
        "peak_mib_above_import": round(peak / 1024, 1),
    }


def main() -> None:
    """Measure each way in a process of its own, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], Path(arguments.one[1]))))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), arguments.rows)
        for way in WAYS:
            command = [sys.executable, __file__, "--one", way, folder]
            results.append(json.loads(subprocess.check_output(command)))
    reference = results[0]["rows_per_second"]
    for result in results:
        result["share_of_bare"] = round(result["rows_per_second"] / reference, 2)
        print(
            f"{result['way']:34} {result['rows_per_second']:>10,} rows/s  {result['share_of_bare']:>5.0%} of bare"
            f"  {result['peak_mib_above_import']:>6} MiB"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": arguments.rows, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
