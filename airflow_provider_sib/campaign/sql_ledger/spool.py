"""Sort an audience by rank, on disk and in constant memory, and drop what is there twice."""

from __future__ import annotations

import marshal
import os
import tempfile
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from airflow_provider_sib.campaign.ledger import RANKS, Enrolment, State, check_enrolment, rank_after, to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Spool:
    """Holds an audience on disk, in constant memory, to be read in the order of ranks.

    Rows are tuples ``(rank, key, visitor, zone, variant, locale, variables, state, reason)``.
    """

    BUCKETS = 256
    HELD = 16384

    def __init__(self) -> None:
        # Unlinked at once where the system can: the audience is gone with the process.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._buckets: list[list[tuple[Any, ...]]] = [[] for _ in range(self.BUCKETS)]
        self._places: list[list[int]] = [[] for _ in range(self.BUCKETS)]
        self.zones: list[str | None] = []

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, rows: Iterable[Enrolment]) -> None:
        """Take all rows in.

        :raises ValueError: a row the ledger can't hold.
        """
        zones: dict[str | None, int] = {}
        shift = RANKS.bit_length() - 1 - (self.BUCKETS.bit_length() - 1)
        buckets = self._buckets
        pending, skipped = int(State.PENDING), int(State.SKIPPED)
        for count, row in enumerate(rows, 1):
            check_enrolment(row)
            zone = zones.setdefault(row.timezone, len(zones))
            buckets[row.rank >> shift].append(
                (
                    row.rank,
                    row.key,
                    row.visitor_id,
                    zone,
                    row.variant,
                    row.locale,
                    to_json(row.variables),
                    pending if row.skip is None else skipped,
                    row.skip,
                )
            )
            if count % self.HELD == 0:
                self._spill()
        self.zones = list(zones)

    def _spill(self) -> None:
        self._file.seek(0, os.SEEK_END)
        for bucket, places in zip(self._buckets, self._places, strict=True):
            if bucket:
                places.append(self._file.tell())
                marshal.dump(bucket, self._file)
                bucket.clear()

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Yield the rows by rank and key, those that are alike in both in the order they came."""
        for bucket, places in zip(self._buckets, self._places, strict=True):
            rows: list[tuple[Any, ...]] = []
            for place in places:
                self._file.seek(place)
                rows += marshal.load(self._file)  # noqa: S302 - this process wrote it, and nobody else can
            rows += bucket
            rows.sort(key=itemgetter(0, 1))
            yield from rows


class Distinct:
    """Yields a spool's rows once per once key, in its order; ``duplicates`` counts the others."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.duplicates = 0

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        last_key = ""
        for row in self._spool:
            if row[1] == last_key:
                self.duplicates += 1
            else:
                last_key = row[1]
                yield row


def placed(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Give rows of the same rank a place each, one after the other."""
    last = -1
    for row in rows:
        if row[0] > last:
            last = row[0]
            yield row
        else:
            last = rank_after(last)
            yield (last, *row[1:])
