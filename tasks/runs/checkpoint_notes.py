"""Notes the newest checkpoint of a training in the journal, from where MLflow gets a copy."""

import time
from pathlib import Path

from backprop_core.store.artifacts import Store
from tasks.runs.record import RunJournal


class CheckpointNotes:
    """The checkpoints of a run's trainings, noted at most every `every` seconds, and when a training stops."""

    def __init__(self, journal: RunJournal, store: Store, *, every: float) -> None:
        self._journal, self._store, self._every = journal, store, every
        self._noted: Path | None = None
        self._due: dict[str, float] = {}

    def look(self, key: str, *, at_once: bool = False) -> None:
        """Note the newest checkpoint of the training with this key, if it is time to."""
        now = time.monotonic()
        if now < self._due.setdefault(key, now + self._every) and not at_once:
            return
        self._due[key] = now + self._every
        steps = self._store.layout.checkpoints(key).glob("step-*")
        newest = max((path for path in steps if path.suffix != ".tmp"), default=None)
        if newest and newest != self._noted:
            self._noted = newest
            self._journal.checkpoint(key, newest)

    def end(self, key: str) -> None:
        """The training is finished: its checkpoint is not needed any more."""
        self._journal.checkpoint(key, None)
