"""Prunes the store: removes artifacts and checkpoints that are no longer needed, and leaves a tombstone for each.

Kept are, for every line, the newest versions, the champion, and the version that a rollback would restore, each with
its adapters, rows, held-out sets, scores and GGUF files; pinned artifacts; recent results that are not versions of a
line; and everything that unfinished runs started from, have made, or may resume from. Pruning excludes runs: none is
active meanwhile. Killing it at any moment loses nothing that is kept.
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
from backprop_core.schema.flows import flow_info
from backprop_core.schema.records import Record
from backprop_core.store import shared_checkpoints
from backprop_core.store.artifacts import Store, remove_file
from backprop_core.store.cache_keys import digests_in
from backprop_core.store.disk_files import size_of as size_of
from backprop_core.store.layout import RunLayout
from backprop_core.store.leases import leased, living
from backprop_core.store.locks import held
from backprop_core.store.pins import pinned

log = logging.getLogger(__name__)
UNFINISHED = {"failed", "interrupted", "running"}
KEEP = 3  # versions of a line
DAY = 86400  # seconds
UNNAMED = "not used by any run or version"
RemoveTag = Callable[[str, int], bool]  # (line, version) -> whether it has no Ollama tag any more


class Item(Record):
    """Artifacts to remove that belong to the same run or version."""

    what: str = Field(description="A run or a version.")
    ended: float | None = Field(None, description="End of the run, in seconds since 1970.")
    artifacts: list[str] = Field(description="Digests.")
    bytes: int


class Pruned(Record):
    """What was removed, or would be removed."""

    items: list[Item]
    artifacts: int
    checkpoints: int = Field(description="Stage keys whose checkpoints no run will resume from.")
    versions: dict[str, list[int]] = Field(description="Versions whose files were removed, by line.")
    bytes: int
    left: int = Field(description="Bytes of remaining artifacts and checkpoints.")

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
    """Remove everything that is not kept; with `line`, only leftovers of that line's runs, however old.

    Without `line`, results of the last `keep_days` days are kept. To get below `max_bytes`, fewer than `keep` versions
    are kept, but always the champion, the newest and the one before. With `only`, removes nothing that this dry run did
    not list. Raises RunActive if a run is active.
    """
    with held(store.lock("prune"), "the store is being pruned"):
        if run := next(living(store), None):
            raise RunActive(f"run {run} is active", hint="prune after it has ended")
        young = time.time() - (keep_days * DAY if line is None else 0)
        plan = Plan(store, keep, line, young)
        while max_bytes is not None and plan.left > max_bytes and keep > 1:
            keep -= 1
            plan = Plan(store, keep, line, young)
        if only is not None:
            plan.restrict(only)
        report = plan.report()  # before anything is removed
        if not dry_run:
            plan.carry_out(remove_tag)
        return report


class Plan:
    """Decides what to keep and what to remove."""

    def __init__(self, store: Store, keep: int, line: str | None, young: float) -> None:
        self._store, self._lines = store, Lines(store)
        self._pinned = set[str]().union(*pinned(store).values())
        names = self._lines.names()
        self._dropped = {name: self._not_kept(name, keep) for name in names if line in (None, name)}
        kept = self._held_by_versions(names) | self._held_by_runs(names, young) | self._pinned
        self._sizes = store.sizes()
        candidates = self._sizes.keys() if line is None else self._left_behind(line) & self._sizes.keys()
        self._artifacts = sorted(candidates - kept)
        checkpoints = shared_checkpoints.sizes(store)
        self._checkpoints = {key: size for key, size in checkpoints.items() if key not in kept}
        self._all = sum(self._sizes.values()) + sum(checkpoints.values())

    @property
    def bytes(self) -> int:
        """Bytes to remove."""
        return sum(self._sizes[name] for name in self._artifacts) + sum(self._checkpoints.values())

    @property
    def left(self) -> int:
        """Bytes to keep."""
        return self._all - self.bytes

    def restrict(self, listed: Pruned) -> None:
        """Restrict the plan to what was listed before."""
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
        """The artifacts to remove, each under the version or the newest run that uses it."""
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
        """Every run with the artifacts it uses, newest first."""
        found = []
        for run in self._store.layout.begun():
            asked = json.loads(run.spec.read_bytes())
            name = f"run {run.run_id[:12]} ({asked['flow']}, line {asked['spec']['line']})"
            found.append((name, ended_at(run) or 0.0, named_by(run)))
        return sorted(found, key=lambda one: one[1], reverse=True)

    def carry_out(self, remove_tag: RemoveTag) -> None:
        """Remove everything; release records last, except those with a remaining tag, which the next prune retries."""
        for digest in self._artifacts:
            self._store.remove(digest, "pruned: not used by any kept version")
        for key in self._checkpoints:
            shared_checkpoints.remove(self._store, key)
        self._store.finish_removals()
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
                    remove_file(self._store.layout.line(line).release(number))

    def _forget(self, gone: set[str]) -> None:
        """Remove cache records of removed artifacts, those of other machines too."""
        if gone:
            self._store.bring_results()
        for result in self._store.layout.cache_results.glob("*"):
            if gone & digests_in(result.read_text(encoding="utf-8")):
                self._store.drop_result(result.name)

    def _not_kept(self, line: str, keep: int) -> list[int]:
        versions, live = self._lines.versions(line), self._lines.live(line)
        kept = set(versions[-keep:])
        if live:
            kept |= {live.number, live.version.parent or live.number - 1}
        return [number for number in versions if number not in kept and not self._is_pinned(line, number)]

    def _is_pinned(self, line: str, number: int) -> bool:
        """Whether the version's merged adapter is pinned."""
        return self._lines.version(line, number).merged.digest in self._pinned

    def _held_by_versions(self, names: list[str]) -> set[str]:
        """Artifacts of the kept versions, their releases, and a release in progress."""
        found: set[str] = set()
        for name in names:
            for number in set(self._lines.versions(name)) - set(self._dropped.get(name, [])):
                found |= digests_in(self._lines.version(name, number).model_dump_json())
                found |= digests_of(self._store.layout.line(name).release(number))
            found |= digests_of(self._store.layout.line(name).transaction)
        return found

    def _held_by_runs(self, names: list[str], young: float) -> set[str]:
        """Artifacts of unfinished runs, and recent results that are not versions of a line.

        No run is active now, and a run that cannot be resumed holds nothing.
        """
        held, found = leased(self._store), set[str]()
        made = {self._lines.version(name, number).run_id for name in names for number in self._lines.versions(name)}
        for run in self._store.layout.begun():
            flow = flow_info(json.loads(run.spec.read_bytes())["flow"])
            recent = flow.keeps_result and run.run_id not in made and (ended_at(run) or 0) > young
            if not flow.resumable:
                held.pop(run.run_id, None)
            elif recent or is_unfinished(run):
                found |= named_by(run)
        return found.union(*held.values())

    def _left_behind(self, line: str) -> set[str]:
        """Artifacts used by the line's finished runs and dropped versions, and by no other run."""
        own, others = set[str](), set[str]()
        for run in self._store.layout.begun():
            asked, named = json.loads(run.spec.read_bytes()), named_by(run)
            if asked["spec"]["line"] == line and flow_info(asked["flow"]).of_line:
                own |= named
            else:
                others |= named
        for number in self._dropped[line]:
            own |= digests_in(self._lines.version(line, number).model_dump_json())
            own |= digests_of(self._store.layout.line(line).release(number))
        return own - others


def is_unfinished(run: RunLayout) -> bool:
    """Whether this run exists and has not finished."""
    ended = run.result.is_file() and json.loads(run.result.read_bytes())["status"] not in UNFINISHED
    return run.spec.is_file() and not ended


def ended_at(run: RunLayout) -> float | None:
    """When a run wrote its result, in seconds since 1970; None if it has not."""
    return run.result.stat().st_mtime if run.result.is_file() else None


def named_by(run: RunLayout) -> set[str]:
    """The digests in a run's spec and result."""
    return digests_of(run.spec) | digests_of(run.result)


def digests_of(path: Path) -> set[str]:
    return digests_in(path.read_text(encoding="utf-8")) if path.is_file() else set()


def tag_remover(store: Store, remove: Callable[[str], None]) -> RemoveTag:
    """A function that removes a version's Ollama tag vN with `remove`; it logs and returns False if that fails."""
    # its clients of servers take longer than listing runs
    from backprop_core.publishing.release_transaction import released

    def of(line: str, number: int) -> bool:
        known = released(line, number, store)
        if known and known.publish.ollama:
            try:
                remove(f"{known.publish.ollama}:v{number}")
            except BackpropError as error:
                log.warning("the tag v%d could not be removed; the next prune retries: %s", number, error.message)
                return False
        return True

    return of


def sizes(store: Store) -> Iterator[tuple[str, int]]:
    """Each line with the bytes of its versions and releases."""
    for name in Lines(store).names():
        folder = store.layout.line(name).root
        named = set[str]().union(*(digests_of(path) for path in folder.rglob("*.json")))
        yield name, sum(size_of(store.layout.artifact(digest)) for digest in named)
