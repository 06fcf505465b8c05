"""Traces rows through a store: the datasets, files, runs, versions and releases that contain them."""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from backprop_core.data.row_search import TracedFile, files_of, search
from backprop_core.lines.prune import named_by
from backprop_core.lines.versions import Lines
from backprop_core.publishing.release_transaction import released
from backprop_core.schema.records import Record
from backprop_core.schema.refs import DatasetRef, RowsRef
from backprop_core.store.artifacts import Store
from backprop_core.store.layout import RunLayout

TRAINED, HELD_OUT, USED = "trained", "held out", "used"


class TracedDataset(Record):
    """A set of rows in the store."""

    digest: str
    rows: int


class TracedRun(Record):
    """A run that names a dataset with the row."""

    run_id: str
    flow: str
    line: str
    status: str
    side: str = Field(description="Whether it trained on the row, held it out, or used it otherwise.")


class TracedVersion(Record):
    """A version of a line that has seen the row."""

    line: str
    number: int
    champion: bool
    side: str = Field(description="Whether the line trained on the row up to this version, or held it out.")
    published: list[str] = Field(description="Where it was released: Ollama tags and Hub revisions.")


class TracedRow(Record):
    """Where one row is."""

    row: str = Field(description="Its identity, 64 hex digits.")
    text: str = Field(description="A part of it.")
    files: list[TracedFile]
    datasets: list[TracedDataset]
    runs: list[TracedRun]
    versions: list[TracedVersion]


class Trace(Record):
    """The rows that were found, and where they are."""

    asked: str
    found: int = Field(description="Distinct rows that were found.")
    rows: list[TracedRow]


def trace(asked: str, store: Store, *, most: int) -> Trace:
    """Find rows by the start of their identity or by text, and where the first `most` of them are."""
    hits = search(asked, store)
    names = list(dict.fromkeys(hit.row for hit in hits))
    shown = names[:most]
    files = files_of(set(shown), source_paths(store), store) if shown else {}
    sets = {name: list(dict.fromkeys(hit.digest for hit in hits if hit.row == name)) for name in shown}
    texts = {hit.row: hit.text for hit in reversed(hits)}
    rows = [
        TracedRow(
            row=name,
            text=texts[name],
            files=files[name],
            datasets=[TracedDataset(digest=digest, rows=rows_in(digest, store)) for digest in sets[name]],
            runs=list(runs_with(set(sets[name]), store)),
            versions=list(versions_with(set(sets[name]), store)),
        )
        for name in shown
    ]
    return Trace(asked=asked, found=len(names), rows=rows)


def rows_in(digest: str, store: Store) -> int:
    """How many rows a dataset has."""
    from backprop_core.data.row_files import index

    return len(index(RowsRef(digest=digest, rows=0), store))


def source_paths(store: Store) -> dict[str, str]:
    """The path of every source that a run of this store has read, by its digest."""
    found: dict[str, str] = {}
    for run in store.layout.begun():
        asked = json.loads(run.spec.read_bytes())
        for one in [*asked.get("sources", ()), *asked.get("watch", ())]:
            for source in filter(None, (one.get("data"), one.get("heldout"))):
                found.setdefault(source["digest"], source["path"])
    return found


def runs_with(datasets: set[str], store: Store) -> Iterator[TracedRun]:
    """The runs that name one of these datasets, or made a version with it, in the order of their ids."""
    makers = {run_id: side for run_id, side in makers_of(datasets, store) if side != USED}
    for run in sorted(store.layout.begun(), key=lambda run: run.run_id):
        if run.run_id in makers or datasets & named_by(run):
            asked, result = json.loads(run.spec.read_bytes()), result_of(run)
            split = result.get("split") or {}
            side = side_of(datasets, [DatasetRef.model_validate(one) for one in split.get("datasets", ())])
            yield TracedRun(
                run_id=run.run_id,
                flow=asked["flow"],
                line=asked["spec"]["line"],
                status=result.get("status", "running"),
                side=makers.get(run.run_id, side) if side == USED else side,
            )


def makers_of(datasets: set[str], store: Store) -> Iterator[tuple[str, str]]:
    """The runs that made versions, and on which side of their own rows these datasets are."""
    lines = Lines(store)
    for line in lines.names():
        for number in lines.versions(line):
            version = lines.version(line, number)
            yield version.run_id, side_of(datasets, version.datasets)


def result_of(run: RunLayout) -> Any:
    """What a run made; empty while it has not ended."""
    return json.loads(run.result.read_bytes()) if run.result.is_file() else {}


def side_of(rows: set[str], datasets: list[DatasetRef]) -> str:
    """On which side of the split of these datasets one of these sets of rows is."""
    if rows & {one.train.digest for one in datasets}:
        return TRAINED
    return HELD_OUT if rows & {held.digest for one in datasets for held in one.held_out} else USED


def versions_with(datasets: set[str], store: Store) -> Iterator[TracedVersion]:
    """The versions that one of these datasets went into, and those that continue them."""
    lines = Lines(store)
    for line in lines.names():
        champion = lines.champion(line)
        for number in lines.versions(line):
            before = lines.ancestors(line, number)
            trained = {one.train.digest for version in before for one in version.datasets}
            kept = [*before[-1].heldout.values(), *(before[-1].aside or {}).values()]
            side = TRAINED if datasets & trained else HELD_OUT if datasets & {one.digest for one in kept} else None
            if side:
                places = list(published(line, number, store))
                yield TracedVersion(line=line, number=number, champion=number == champion, side=side, published=places)


def published(line: str, number: int, store: Store) -> Iterator[str]:
    """Where a version was released."""
    release = released(line, number, store)
    if release and release.publish.ollama:
        yield f"Ollama {release.publish.ollama}:v{number}"
    if release and release.publish.repo:
        yield f"Hub {release.publish.repo}" + (f" at {release.commit}" if release.commit else "")
