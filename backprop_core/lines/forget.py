"""Removes rows from a store: from every artifact that has them or quotes them, and from all records.

An artifact is never edited. It is removed, with a tombstone, and the cache takes it as absent. A set of rows that a
line or a run needs gets a successor without the rows, which takes its place in the records. Sets of rows go last:
they have the text that everything else is searched for, so a forgetting that was killed is finished by another one.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from backprop_core.data.forgotten_rows import names
from backprop_core.data.row_conversations import sharing_conversations
from backprop_core.data.row_files import IDENTITIES, PASSES, ROWS, commit, curriculum, index, line_ends
from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_identity import identity
from backprop_core.data.row_index import Keys, Mask, RowIndex
from backprop_core.data.row_lineage import LINEAGE, remaining
from backprop_core.data.row_quotes import Quotes, lines_of
from backprop_core.data.row_search import datasets, excerpt
from backprop_core.lines import exports
from backprop_core.lines.prune import digests_of
from backprop_core.lines.row_trace import TRAINED, runs_with, versions_with
from backprop_core.schema.records import Record
from backprop_core.schema.refs import LineageRef, RowsRef, RunResult
from backprop_core.store import shared_checkpoints
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import canonical, digests_in
from backprop_core.store.layout import MANIFEST
from backprop_core.store.leases import leased

REASON = "a row in it was forgotten"
DERIVED = {"tokens", "generations", "ratings", "reference", "log-probs", "lineage"}  # made of rows, row by row
BY_ROWS = ("tokens", "reference_log_probs")  # stages whose record names only the rows that they were computed of
TEXTS = {".json", ".jsonl", ".txt", ".md", ".html", ""}  # suffixes of files that may quote a row


class Asked(Record):
    """A row to forget."""

    row: str = Field(description="Its identity, 64 hex digits.")
    text: str = Field(description="How it begins.")


class Removed(Record):
    """An artifact with the row."""

    digest: str
    kind: str
    successor: str | None = Field(None, description="The same rows without the forgotten ones, for records.")


class Learner(Record):
    """What has been trained on the row, or scored on it."""

    name: str = Field(description="A version of a line, or a run.")
    side: str = Field(description="Whether it trained on the row, held it out, or used it otherwise.")
    champion: bool = False
    places: list[str] = Field(description="Ollama models, Hub revisions and files that have its adapter.")


class Affected(NamedTuple):
    """A set of rows with some to forget."""

    ref: RowsRef
    rows: RowIndex
    gone: Mask


class Forgetting:
    """What forgetting some rows means for a store. Nothing is changed before `carry_out`."""

    def __init__(self, rows: Iterable[ChatRow], store: Store) -> None:
        self._store, every = store, list(rows)
        self.asked = [Asked(row=identity(row).hex(), text=excerpt(row, "")) for row in every]
        asked = set[str]().union(*map(names, every))
        self._keys: Keys = np.array([bytes.fromhex(name) for name in asked], "S32")
        self._sets = [found for ref in datasets(store) if (found := self._affected(ref))]
        others = {row.hex() for one in self._sets for row in one.rows.take(one.gone).identities()}
        self.names = sorted(asked | others)  # preferences with a conversation that is asked for
        self._forgotten = frozenset(self.names)
        lines = {line for row in every for line in lines_of(row)}
        self.quotes = Quotes(lines).without(self._shared(Quotes(lines)))

    def _affected(self, ref: RowsRef) -> Affected | None:
        rows = index(ref, self._store)
        gone = self._are_gone(rows)
        return Affected(ref, rows, gone) if gone.any() else None

    def _are_gone(self, rows: RowIndex) -> Mask:
        return rows.among(self._keys) | sharing_conversations(rows, self._keys)

    def _shared(self, quotes: Quotes) -> Iterator[str]:
        """Pieces of text that other rows of the store have too: they are not the forgotten rows' own."""
        for ref in datasets(self._store):
            path = self._store.layout.artifact(ref.digest) / ROWS
            if hits := quotes.in_file(path):
                ends = np.fromiter(line_ends(path), "<u8")
                others = ~self._are_gone(index(ref, self._store))
                at = np.searchsorted(ends, [hit.start for hit in hits])
                yield from (hit.piece for hit, row in zip(hits, at.tolist(), strict=True) if others[row])

    @cached_property
    def removed(self) -> list[Removed]:
        """The artifacts to remove, sets of rows last."""
        sets = {one.ref.digest for one in self._sets}
        gone, found = set(sets), list[Removed]()
        for kinds in (DERIVED - {"ratings"}, None):  # ratings are of generations
            for manifest in sorted(self._store.layout.manifests()):
                digest, kind = manifest.parent.name, json.loads(manifest.read_bytes())["kind"]
                if digest not in gone and (not kinds or kind in kinds) and self._has_rows(manifest.parent, kind, gone):
                    gone.add(digest)
                    found.append(Removed(digest=digest, kind=kind))
        return [*found, *(Removed(digest=digest, kind=RowsRef.artifact) for digest in sorted(sets))]

    def _has_rows(self, artifact: Path, kind: str, gone: set[str]) -> bool:
        """Whether an artifact was made of the rows, or quotes them."""
        if kind == RowsRef.artifact:
            return False
        if kind == LineageRef.artifact and self._in_lineage(artifact / LINEAGE):
            return True
        if kind in DERIVED and kind != LineageRef.artifact and self._came_from(artifact.name, gone):
            return True
        files = (path for path in artifact.rglob("*") if path.suffix in TEXTS and path.name != MANIFEST)
        return any(self.quotes.in_file(path) for path in files if path.is_file())

    def _came_from(self, digest: str, gone: set[str]) -> bool:
        record = self._store.record(digest)
        sources = digests_in(canonical(record))
        absent = record.get("stage") in BY_ROWS and not self._store.has(record["rows"])
        return bool(sources & gone) or absent  # of rows that are gone, nothing says whose these are

    def _in_lineage(self, path: Path) -> bool:
        import pyarrow.parquet  # type: ignore[import-untyped]

        table = pyarrow.parquet.read_table(path, columns=["row", "detail"])
        if set(table["row"].to_pylist()) & set(self.names):
            return True
        return bool(self.quotes.hits("\n".join(filter(None, table["detail"].to_pylist())).encode(errors="replace")))

    def _is_forgotten(self, line: dict[str, Any]) -> bool:
        """Whether a line of a lineage, or a sample in it, is about the rows or quotes them."""
        quoted = "\n".join(text for name in ("detail", "text") if (text := line.get(name)))
        return line.get("row") in self._forgotten or bool(self.quotes.hits(quoted.encode(errors="replace")))

    @cached_property
    def learners(self) -> list[Learner]:
        """What has been trained on the rows, or scored on them."""
        sets = {one.ref.digest for one in self._sets}
        versions = [
            Learner(name=f"{one.line}@{one.number}", side=one.side, champion=one.champion, places=one.published)
            for one in versions_with(sets, self._store)
        ]
        return [*versions, *self._runs(sets)]

    def _runs(self, sets: set[str]) -> Iterator[Learner]:
        """Runs that were trained on the rows, and those that exported or published what they made."""
        trained = {run.run_id for run in runs_with(sets, self._store) if run.side == TRAINED}
        for run in sorted(self._store.layout.begun(), key=lambda run: run.run_id):
            asked = json.loads(run.spec.read_bytes())
            if run.run_id in trained or asked.get("of") in trained:
                made = RunResult.model_validate_json(run.result.read_bytes()) if run.result.is_file() else None
                name = f"run {run.run_id[:12]} ({asked['flow']}, line {asked['spec']['line']})"
                yield Learner(name=name, side=TRAINED, places=places(made) if made else [])

    @cached_property
    def checkpoints(self) -> list[str]:
        """Unfinished trainings on the rows that have checkpoints, by their stage's key."""
        sets = {one.ref.digest for one in self._sets}
        keys = {key for held in leased(self._store).values() if held & sets for key in held}
        return sorted(keys & shared_checkpoints.sizes(self._store).keys())

    @cached_property
    def cached(self) -> list[Path]:
        """Results of stages in the cache that name a removed artifact, or quote the rows."""
        gone = {one.digest for one in self.removed}
        self._store.bring_results()
        return [
            path
            for path in sorted(self._store.layout.cache_results.glob("*"))
            if gone & digests_in(path.read_text(encoding="utf-8")) or self.quotes.in_file(path)
        ]

    def carry_out(self) -> list[Removed]:
        """Remove everything; returns the removed artifacts. Call it when all that is outside the store is done."""
        self.removed, self.cached, self.checkpoints  # noqa: B018  # found before anything changes
        left: dict[str, RowsRef | LineageRef] = {
            one.ref.digest: ref for one in self._sets if (ref := self._successor(one))
        }
        lineages = [one.digest for one in self.removed if one.kind == LineageRef.artifact]
        left |= {digest: remaining(digest, self._is_forgotten, self._store) for digest in lineages}
        swap(left, self._store)
        exports.keep_track({digest: ref.digest for digest, ref in left.items()}, self._store)
        for result in self.cached:
            self._store.drop_result(result.name)
        for key in self.checkpoints:
            shared_checkpoints.remove(self._store, key)
        for one in self.removed:
            self._store.remove(one.digest, REASON)
        for digest in self._store.damaged().keys() - self._store.digests():  # nothing says whether these have the rows
            self._store.remove(digest, REASON)
        self._store.finish_removals()
        successors = {digest: ref.digest for digest, ref in left.items()}
        return [one.model_copy(update={"successor": successors.get(one.digest)}) for one in self.removed]

    @cached_property
    def _named(self) -> set[str]:
        """The digests in the records of lines and runs."""
        return set[str]().union(*map(digests_of, records(self._store)))

    def _successor(self, one: Affected) -> RowsRef | None:
        """The rows that are left of a set that records name; none of a mix with replayed rows, which is made anew."""
        directory = self._store.layout.artifact(one.ref.digest)
        if one.ref.digest not in self._named or (directory / PASSES).is_file():
            return None
        record = self._store.record(one.ref.digest)
        identified = (directory / IDENTITIES).is_file()
        left, order = one.rows.take(~one.gone), curriculum(directory)
        return commit(left, self._store, record, identified=identified, curriculum=order)


def places(result: RunResult) -> list[str]:
    """Where the adapter of a run is: files, Ollama models, Hub revisions."""
    files = [f"GGUF {file.quantization} {file.digest[:12]}" for file in result.gguf]
    files += [f"package {package.package} {package.digest[:12]}" for package in result.packages]
    if result.ollama:
        files.append(f"Ollama {result.ollama['model']}")
    if result.hub:
        files.append(f"Hub {result.hub['repo']} at {result.hub['commit']}")
    return files + result.written


def records(store: Store) -> Iterator[Path]:
    """The records of lines and runs, pins and leases."""
    for folder in (store.layout.lines, store.layout.runs, store.layout.pins, store.layout.leases):
        yield from (path for path in sorted(folder.rglob("*")) if path.suffix in (".json", ".txt"))


def swap(successors: Mapping[str, RowsRef | LineageRef], store: Store) -> None:
    """Name the successors of artifacts in the records of lines and runs."""
    for path in records(store):
        text = path.read_text(encoding="utf-8")
        if not digests_in(text) & successors.keys():
            continue
        if path.suffix == ".json":
            text = json.dumps(swapped(json.loads(text), successors), ensure_ascii=False, separators=(",", ":"))
        for digest, ref in successors.items():
            text = text.replace(digest, ref.digest)
        write_atomic(path, text)


def swapped(value: Any, successors: Mapping[str, RowsRef | LineageRef]) -> Any:
    """A JSON value with successors in place of what was removed."""
    match value:
        case {"digest": str(digest), "rows": _} if digest in successors:
            return successors[digest].model_dump()
        case dict():
            return {name: swapped(item, successors) for name, item in value.items()}
        case list():
            return [swapped(item, successors) for item in value]
    return value


def rows_named(identities: Collection[str], store: Store) -> Iterator[ChatRow]:
    """The rows with these identities, from the first dataset that has each."""
    found = set[str]()
    for ref in datasets(store):
        rows = index(ref, store)
        for place, known in enumerate(rows.identities()):
            if (name := known.hex()) in identities and name not in found:
                found.add(name)
                yield json.loads(next(rows.take(slice(place, place + 1)).lines()))
