"""Counts the rows of a dataset report by reason, with the first few of each."""

from collections import Counter
from collections.abc import Callable

from backprop_core.data.file_readers import Place
from backprop_core.runtime.redaction import blank_secrets
from backprop_core.schema.dataset_reports import Dropped, DroppedSample

SAMPLES = 3  # rows shown of each reason
LONGEST = 600  # characters shown of a row


class Reasons:
    """Rows by reason. Their details and texts are made only for those that are shown."""

    def __init__(self) -> None:
        self.counts = Counter[str]()  # rows
        self._samples: dict[str, list[DroppedSample]] = {}

    def add(self, reason: str, place: Place, detail: Callable[[], str], text: Callable[[], str]) -> None:
        """Count a row."""
        self.counts[reason] += 1
        samples = self._samples.setdefault(reason, [])
        if len(samples) < SAMPLES:
            samples.append(sample_of(place, detail(), text()))

    def all(self) -> list[Dropped]:
        """By reason, the most frequent first."""
        found = [
            Dropped(reason=reason, rows=rows, samples=self._samples[reason]) for reason, rows in self.counts.items()
        ]
        return sorted(found, key=lambda one: (-one.rows, one.reason))


def sample_of(place: Place, detail: str, text: str) -> DroppedSample:
    """A sample with secrets blanked: reports are passed on."""
    return DroppedSample(place=str(place), detail=blank_secrets(detail), text=shortened(blank_secrets(text)))


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
