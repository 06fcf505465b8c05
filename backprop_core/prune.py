"""Making room: what no version that is kept, no release and no unfinished run names is removed, with a tombstone.

Kept are of every line the newest versions, the champion, and the one that a rollback would bring back, each with its
adapters, rows, held-out sets, scores and GGUF files; and what unfinished runs started from, have made, and may go on
from. No run goes on meanwhile, and none begins. A kill at any moment loses nothing of that.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import Field

from backprop_core.errors import BackpropError, RunActive
from backprop_core.frozen import Record
from backprop_core.keys import digests_in
from backprop_core.leases import leased, living
from backprop_core.lines import Lines
from backprop_core.release import record_of, released
from backprop_core.store import Store

log = logging.getLogger(__name__)
UNFINISHED = {"failed", "interrupted", "running"}
KEEP = 3  # versions of a line
OF_A_LINE = {"retrain", "promote", "release", "rollback", "drift"}  # flows whose runs belong to a line
RemoveTag = Callable[[str, int], bool]  # line and version -> whether its tag is gone, if it had one


class Pruned(Record):
    """What was removed, or would be."""

    artifacts: int
    checkpoints: int = Field(description="Keys whose checkpoints nobody would go on from.")
    versions: dict[str, list[int]] = Field(description="Versions whose files are gone, by line.")
    bytes: int
    left: int = Field(description="Bytes of artifacts and checkpoints that stay.")


def prune(
    store: Store,
    *,
    keep: int = KEEP,
    max_bytes: int | None = None,
    line: str | None = None,
    dry_run: bool = False,
    remove_tag: RemoveTag,
) -> Pruned:
    """Remove what is not kept; with `line` only what runs of that line have left behind.

    To come below `max_bytes`, fewer versions than `keep` are kept, but champion, newest and the one before always.
    Raises RunActive if a run is going on.
    """
    with store.lock("prune"):
        if run := next(living(store), None):
            raise RunActive(f"run {run} is going on", hint="prune when it has ended")
        plan = Plan(store, keep, line)
        while max_bytes is not None and plan.left > max_bytes and keep > 1:
            keep -= 1
            plan = Plan(store, keep, line)
        if not dry_run:
            plan.carry_out(remove_tag)
        return plan.report()


class Plan:
    """What stays and what goes."""

    def __init__(self, store: Store, keep: int, line: str | None) -> None:
        self._store, self._lines = store, Lines(store)
        names = self._lines.names()
        self._dropped = {name: self._not_kept(name, keep) for name in names if line in (None, name)}
        kept = self._held_by_versions(names) | self._held_by_runs()
        sizes = {path.name: size_of(path) for path in store.root.glob("artifacts/*")}
        candidates = sizes.keys() if line is None else self._left_behind(line) & sizes.keys()
        self._artifacts = sorted(candidates - kept)
        checkpoints = {path: size_of(path) for path in store.root.glob("checkpoints/*")}
        self._checkpoints = [path for path in checkpoints if path.name not in kept]
        self._bytes = sum(sizes[name] for name in self._artifacts) + sum(checkpoints[p] for p in self._checkpoints)
        self.left = sum(sizes.values()) + sum(checkpoints.values()) - self._bytes

    def report(self) -> Pruned:
        return Pruned(
            artifacts=len(self._artifacts),
            checkpoints=len(self._checkpoints),
            versions={name: numbers for name, numbers in self._dropped.items() if numbers},
            bytes=self._bytes,
            left=self.left,
        )

    def carry_out(self, remove_tag: RemoveTag) -> None:
        """Records of releases last, and not those of versions that still have a tag: the next prune goes by them."""
        for digest in self._artifacts:
            self._store.remove(digest, "pruned: no version that is kept named it")
        for path in self._checkpoints:
            shutil.rmtree(path, ignore_errors=True)
        self._forget(set(self._artifacts))
        for note in self._store.root.glob("flow-runs/*"):
            if not is_unfinished(self._store.run(note.read_text(encoding="utf-8"))):
                note.unlink()
        for line, numbers in self._dropped.items():
            for number in numbers:
                if remove_tag(line, number):
                    record_of(line, number, self._store).unlink(missing_ok=True)

    def _forget(self, gone: set[str]) -> None:
        """The cache's records of what is gone."""
        for result in self._store.cache.glob("results/*"):
            if gone & digests_in(result.read_text(encoding="utf-8")):
                (self._store.cache / "keys" / result.name).unlink(missing_ok=True)
                result.unlink()

    def _not_kept(self, line: str, keep: int) -> list[int]:
        versions, live = self._lines.versions(line), self._lines.live(line)
        kept = set(versions[-keep:])
        if live:
            kept |= {live.number, live.version.parent or live.number - 1}
        return [number for number in versions if number not in kept]

    def _held_by_versions(self, names: list[str]) -> set[str]:
        """What the versions that stay name, and what went live with them; and a release that goes on."""
        found: set[str] = set()
        for name in names:
            for number in set(self._lines.versions(name)) - set(self._dropped.get(name, [])):
                found |= digests_in(self._lines.version(name, number).model_dump_json())
                found |= digests_of(record_of(name, number, self._store))
            found |= digests_of(self._store.lines / name / "transaction.json")
        return found

    def _held_by_runs(self) -> set[str]:
        """What unfinished runs start from and hold; none lives now, and of drift none is gone on with."""
        held, found = leased(self._store), set[str]()
        for spec in self._store.root.glob("runs/*/spec.json"):
            if json.loads(spec.read_bytes())["flow"] == "drift":
                held.pop(spec.parent.name, None)
            elif is_unfinished(spec.parent):
                found |= digests_of(spec) | digests_of(spec.with_name("result.json"))
        return found.union(*held.values())

    def _left_behind(self, line: str) -> set[str]:
        """What the line's finished runs and dropped versions name, and no run that is not the line's."""
        own, others = set[str](), set[str]()
        for spec in self._store.root.glob("runs/*/spec.json"):
            asked = json.loads(spec.read_bytes())
            named = digests_of(spec) | digests_of(spec.with_name("result.json"))
            if asked["spec"]["line"] == line and asked["flow"] in OF_A_LINE:
                own |= named
            else:
                others |= named
        for number in self._dropped[line]:
            own |= digests_in(self._lines.version(line, number).model_dump_json())
            own |= digests_of(record_of(line, number, self._store))
        return own - others


def is_unfinished(run: Path) -> bool:
    """Whether there is such a run, and it has not come to its end."""
    result = run / "result.json"
    ended = result.is_file() and json.loads(result.read_bytes())["status"] not in UNFINISHED
    return (run / "spec.json").is_file() and not ended


def digests_of(path: Path) -> set[str]:
    return digests_in(path.read_text(encoding="utf-8")) if path.is_file() else set()


def size_of(directory: Path) -> int:
    """Bytes of a directory's files."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def tag_remover(store: Store, remove: Callable[[str], None]) -> RemoveTag:
    """Removes the tag vN of a version through `remove`; says False, and a word in the log, where that fails."""

    def of(line: str, number: int) -> bool:
        known = released(line, number, store)
        if known and known.publish.ollama:
            try:
                remove(f"{known.publish.ollama}:v{number}")
            except BackpropError as error:
                log.warning("the tag v%d is left to be removed later: %s", number, error.message)
                return False
        return True

    return of


def sizes(store: Store) -> Iterator[tuple[str, int]]:
    """Bytes of every line: of what its versions and releases name."""
    for name in Lines(store).names():
        folder = store.lines / name
        named = set[str]().union(*(digests_of(path) for path in folder.rglob("*.json")))
        yield name, sum(size_of(store.artifact_path(digest)) for digest in named)
