"""What a run with `fresh` has done by itself: gone on with, it takes that from the cache, and nothing else."""

from pathlib import Path


class Afresh:
    """The stages of a run and of its earlier processes; where `fresh` was not asked none is done again."""

    def __init__(self, path: Path, *, asked: bool) -> None:
        self._path, self._asked = path, asked
        self._earlier = set(self._path.read_text(encoding="utf-8").split("\n")) if self._path.is_file() else set()
        self._done: set[str] = set()  # by this process

    def is_due(self, key: str) -> bool:
        """Whether a stage is to be done, even if the cache has it."""
        return self._asked and f"done {key}" not in self._earlier and key not in self._done

    def has_begun(self, key: str) -> bool:
        """Whether an earlier process of this run has begun the stage: its checkpoints are the run's own."""
        return f"begun {key}" in self._earlier

    def begin(self, key: str) -> None:
        """Note that no checkpoint is left but what this run makes from here on."""
        self._note("begun", key)

    def end(self, key: str) -> None:
        """Note that the cache has what this run has made: a stage is done afresh once in a run."""
        self._done.add(key)
        self._note("done", key)

    def _note(self, what: str, key: str) -> None:
        if self._asked:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{what} {key}\n")
