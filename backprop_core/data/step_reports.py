"""Counts what each curation step finds, and its seconds."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from backprop_core.schema.refs import StepReport


class StepReports:
    """The figures of the steps so far, in the order in which they first ran."""

    def __init__(self) -> None:
        self._found: dict[str, Counter[str]] = {}
        self._seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, step: str, rows: int) -> Iterator[Counter[str]]:
        """Time a step on some rows; what it finds is counted by outcome in what this yields."""
        found = self._found.setdefault(step, Counter())
        found["rows"] += rows
        begun = time.perf_counter()
        yield found
        self._seconds[step] = self._seconds.get(step, 0) + time.perf_counter() - begun

    def all(self) -> list[StepReport]:
        """One report per step."""
        return [
            StepReport(
                step=step,
                rows=found["rows"],
                dropped=found["dropped"],
                quarantined=found["quarantined"],
                noted=found["kept"],
                seconds=round(self._seconds[step], 3),
            )
            for step, found in self._found.items()
        ]
