"""Records what a --fresh run has recomputed, so that resuming does not recompute it."""

from pathlib import Path


class Afresh:
    """Which stages a --fresh run, including its earlier processes, has recomputed; without --fresh, none has to be."""

    def __init__(self, path: Path, *, asked: bool) -> None:
        self._path, self._asked = path, asked
        self._earlier = set(self._path.read_text(encoding="utf-8").split("\n")) if self._path.is_file() else set()
        self._done: set[str] = set()  # by this process

    def is_due(self, key: str) -> bool:
        """Whether to recompute a stage even if it is cached."""
        return self._asked and f"done {key}" not in self._earlier and key not in self._done

    def has_begun(self, key: str) -> bool:
        """Whether an earlier process of this run has started the stage, so that its checkpoints are the run's own."""
        return f"begun {key}" in self._earlier

    def begin(self, key: str) -> None:
        """Record that the stage has started, without older checkpoints."""
        self._note("begun", key)

    def end(self, key: str) -> None:
        """Record that the stage's result is cached: a stage is recomputed only once per run."""
        self._done.add(key)
        self._note("done", key)

    def _note(self, what: str, key: str) -> None:
        if self._asked:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{what} {key}\n")
