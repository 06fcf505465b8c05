"""Making room: what no kept version, release, pin, recent result or unfinished run names is removed, with a tombstone.

Kept are, of every line, the newest versions, the champion, and the one that a rollback would bring back, each with its
adapters, rows, held-out sets, scores and GGUF files; what is pinned; what runs of the last days made that is no version
of a line; and what unfinished runs started from, have made, and may go on from. No run goes on meanwhile, and none
begins. A kill at any moment loses nothing of that.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import Field

from backprop_core.errors import BackpropError, RunActive
from backprop_core.lines.versions import Lines
from backprop_core.publishing.release import released
from backprop_core.schema.records import Record
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import digests_in
from backprop_core.store.layout import RunLayout
from backprop_core.store.leases import leased, living
from backprop_core.store.locks import held
from backprop_core.store.pins import pinned

log = logging.getLogger(__name__)
UNFINISHED = {"failed", "interrupted", "running"}
KEEP = 3  # versions of a line
OF_A_LINE = {"retrain", "promote", "release", "rollback", "drift"}  # flows whose runs belong to a line
RESULTS = {"train", "multi-run", "retrain", "promote", "export"}  # flows whose results people come back for
DAY = 86400  # seconds
UNNAMED = "named by no run or version"
RemoveTag = Callable[[str, int], bool]  # line and version -> whether its tag is gone, if it had one


class Item(Record):
    """Artifacts that go together, by what named them."""

    what: str = Field(description="A run or a version.")
    ended: float | None = Field(None, description="When the run ended, in seconds since 1970.")
    artifacts: list[str] = Field(description="Digests.")
    bytes: int


class Pruned(Record):
    """What was removed, or would be."""

    items: list[Item]
    artifacts: int
    checkpoints: int = Field(description="Keys whose checkpoints nobody would go on from.")
    versions: dict[str, list[int]] = Field(description="Versions whose files are gone, by line.")
    bytes: int
    left: int = Field(description="Bytes of artifacts and checkpoints that stay.")

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to remove."""
        return not self.artifacts and not self.checkpoints


def prune(
    store: Store,
    *,
    keep: int = KEEP,
    keep_days: float = 0,
    max_bytes: int | None = None,
    line: str | None = None,
    only: Pruned | None = None,
    dry_run: bool = False,
    remove_tag: RemoveTag,
) -> Pruned:
    """Remove what is not kept; with `line` only what runs of that line have left behind, whenever that was.

    Without `line`, results of the last `keep_days` days stay. To come below `max_bytes`, fewer versions than `keep` are
    kept, but champion, newest and the one before always. With `only`, nothing is removed that a dry run did not list.
    Raises RunActive if a run is going on.
    """
    with held(store.lock("prune"), "the store is being pruned"):
        if run := next(living(store), None):
            raise RunActive(f"run {run} is going on", hint="prune when it has ended")
        young = time.time() - (keep_days * DAY if line is None else 0)
        plan = Plan(store, keep, line, young)
        while max_bytes is not None and plan.left > max_bytes and keep > 1:
            keep -= 1
            plan = Plan(store, keep, line, young)
        if only is not None:
            plan.restrict(only)
        report = plan.report()  # while everything that names something is there
        if not dry_run:
            plan.carry_out(remove_tag)
        return report


class Plan:
    """What stays and what goes."""

    def __init__(self, store: Store, keep: int, line: str | None, young: float) -> None:
        self._store, self._lines = store, Lines(store)
        self._pinned = set[str]().union(*pinned(store).values())
        names = self._lines.names()
        self._dropped = {name: self._not_kept(name, keep) for name in names if line in (None, name)}
        kept = self._held_by_versions(names) | self._held_by_runs(names, young) | self._pinned
        self._sizes = {path.name: size_of(path) for path in store.layout.artifacts.glob("*")}
        candidates = self._sizes.keys() if line is None else self._left_behind(line) & self._sizes.keys()
        self._artifacts = sorted(candidates - kept)
        checkpoints = {path: size_of(path) for path in store.layout.trainings.glob("*")}
        self._checkpoints = {path: size for path, size in checkpoints.items() if path.name not in kept}
        self._all = sum(self._sizes.values()) + sum(checkpoints.values())

    @property
    def bytes(self) -> int:
        """What goes."""
        return sum(self._sizes[name] for name in self._artifacts) + sum(self._checkpoints.values())

    @property
    def left(self) -> int:
        """What stays."""
        return self._all - self.bytes

    def restrict(self, listed: Pruned) -> None:
        """Remove nothing that was not listed before."""
        known = {digest for item in listed.items for digest in item.artifacts}
        self._artifacts = [digest for digest in self._artifacts if digest in known]
        self._dropped = {
            line: [number for number in numbers if number in listed.versions.get(line, [])]
            for line, numbers in self._dropped.items()
        }

    def report(self) -> Pruned:
        return Pruned(
            items=self._items(),
            artifacts=len(self._artifacts),
            checkpoints=len(self._checkpoints),
            versions={name: numbers for name, numbers in self._dropped.items() if numbers},
            bytes=self.bytes,
            left=self.left,
        )

    def _items(self) -> list[Item]:
        """What goes, each artifact under the version or the newest run that names it."""
        left, found = set(self._artifacts), []
        for what, ended, named in [*self._versions_that_go(), *self._runs()]:
            if mine := sorted(left & named):
                left -= set(mine)
                found.append(self._item(what, ended, mine))
        return found + ([self._item(UNNAMED, None, sorted(left))] if left else [])

    def _item(self, what: str, ended: float | None, digests: list[str]) -> Item:
        size = sum(self._sizes[digest] for digest in digests)
        return Item(what=what, ended=ended, artifacts=digests, bytes=size)

    def _versions_that_go(self) -> Iterator[tuple[str, None, set[str]]]:
        for line, numbers in self._dropped.items():
            for number in numbers:
                named = digests_in(self._lines.version(line, number).model_dump_json())
                yield f"{line}@{number}", None, named | digests_of(self._store.layout.line(line).release(number))

    def _runs(self) -> list[tuple[str, float, set[str]]]:
        """Every run with what it names, the newest first."""
        found = []
        for run in self._store.layout.begun():
            asked = json.loads(run.spec.read_bytes())
            name = f"run {run.run_id[:12]} ({asked['flow']}, line {asked['spec']['line']})"
            found.append((name, ended_at(run) or 0.0, named_by(run)))
        return sorted(found, key=lambda one: one[1], reverse=True)

    def carry_out(self, remove_tag: RemoveTag) -> None:
        """Records of releases last, and not those of versions that still have a tag: the next prune goes by them."""
        for digest in self._artifacts:
            self._store.remove(digest, "pruned: no version that is kept named it")
        for path in self._checkpoints:
            shutil.rmtree(path, ignore_errors=True)
        self._forget(set(self._artifacts))
        for run in self._store.layout.holding():
            if not is_unfinished(run):
                shutil.rmtree(run.sources, ignore_errors=True)
        for note in self._store.layout.flow_runs.glob("*"):
            if not is_unfinished(self._store.layout.run(note.read_text(encoding="utf-8"))):
                note.unlink()
        for line, numbers in self._dropped.items():
            for number in numbers:
                if remove_tag(line, number):
                    self._store.layout.line(line).release(number).unlink(missing_ok=True)

    def _forget(self, gone: set[str]) -> None:
        """The cache's records of what is gone."""
        for result in self._store.layout.cache_results.glob("*"):
            if gone & digests_in(result.read_text(encoding="utf-8")):
                self._store.layout.cache_key(result.name).unlink(missing_ok=True)
                result.unlink()

    def _not_kept(self, line: str, keep: int) -> list[int]:
        versions, live = self._lines.versions(line), self._lines.live(line)
        kept = set(versions[-keep:])
        if live:
            kept |= {live.number, live.version.parent or live.number - 1}
        return [number for number in versions if number not in kept and not self._is_pinned(line, number)]

    def _is_pinned(self, line: str, number: int) -> bool:
        """Whether a person keeps what a version is: its merged adapter."""
        return self._lines.version(line, number).merged.digest in self._pinned

    def _held_by_versions(self, names: list[str]) -> set[str]:
        """What the versions that stay name, and what went live with them; and a release that goes on."""
        found: set[str] = set()
        for name in names:
            for number in set(self._lines.versions(name)) - set(self._dropped.get(name, [])):
                found |= digests_in(self._lines.version(name, number).model_dump_json())
                found |= digests_of(self._store.layout.line(name).release(number))
            found |= digests_of(self._store.layout.line(name).transaction)
        return found

    def _held_by_runs(self, names: list[str], young: float) -> set[str]:
        """What unfinished runs start from and hold, and recent results that are no version of a line.

        None lives now, and a run of drift is never resumed.
        """
        held, found = leased(self._store), set[str]()
        made = {self._lines.version(name, number).run_id for name in names for number in self._lines.versions(name)}
        for run in self._store.layout.begun():
            flow = json.loads(run.spec.read_bytes())["flow"]
            recent = flow in RESULTS and run.run_id not in made and (ended_at(run) or 0) > young
            if flow == "drift":
                held.pop(run.run_id, None)
            elif recent or is_unfinished(run):
                found |= named_by(run)
        return found.union(*held.values())

    def _left_behind(self, line: str) -> set[str]:
        """What the line's finished runs and dropped versions name, and no run that is not the line's."""
        own, others = set[str](), set[str]()
        for run in self._store.layout.begun():
            asked, named = json.loads(run.spec.read_bytes()), named_by(run)
            if asked["spec"]["line"] == line and asked["flow"] in OF_A_LINE:
                own |= named
            else:
                others |= named
        for number in self._dropped[line]:
            own |= digests_in(self._lines.version(line, number).model_dump_json())
            own |= digests_of(self._store.layout.line(line).release(number))
        return own - others


def is_unfinished(run: RunLayout) -> bool:
    """Whether there is such a run, and it has not come to its end."""
    ended = run.result.is_file() and json.loads(run.result.read_bytes())["status"] not in UNFINISHED
    return run.spec.is_file() and not ended


def ended_at(run: RunLayout) -> float | None:
    """When a run wrote its result, in seconds since 1970; None before it has."""
    return run.result.stat().st_mtime if run.result.is_file() else None


def named_by(run: RunLayout) -> set[str]:
    """The digests in a run's spec and result."""
    return digests_of(run.spec) | digests_of(run.result)


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
        folder = store.layout.line(name).root
        named = set[str]().union(*(digests_of(path) for path in folder.rglob("*.json")))
        yield name, sum(size_of(store.layout.artifact(digest)) for digest in named)
