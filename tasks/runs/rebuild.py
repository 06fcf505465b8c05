"""What a line's versions were trained with, to train them again without forgotten rows.

The versions are replayed in a line of their own, so that the line stays as it is until all are done; nothing of a
killed rebuild is needed, as its stages are in the cache. Then they become the line's newest versions. The versions that
have seen the rows are withdrawn once another one is live: their adapters and files are removed, their records stay.
"""

import json
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from backprop_core.data.forgotten_rows import forget
from backprop_core.data.row_files import ROWS, commit, index
from backprop_core.data.row_index import unique
from backprop_core.data.sources import ON_HUB
from backprop_core.errors import RebuildImpossible
from backprop_core.lines.prune import digests_of, tag_remover
from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.runtime.settings import Settings
from backprop_core.schema.flows import flow_info
from backprop_core.schema.records import Record
from backprop_core.schema.refs import DatasetRef, RowsRef, SourceRef
from backprop_core.schema.specs import ApprovalSpec, DatasetSpec, ExportSpec, PublishSpec, RunSpec
from backprop_core.store.artifacts import Store, file_digest, remove_records, write_atomic
from backprop_core.store.cache_keys import digests_in
from backprop_core.store.layout import MANIFEST, REBUILD
from backprop_core.store.pins import pinned
from tasks.runs.line_splits import of_run
from tasks.runs.line_state import working_on
from tasks.runs.prepared_run import Prepared, load
from tasks.runs.prune import remove_tag
from tasks.runs.sources import Source
from tasks.tracking.withdrawal import remove_copies, remove_model, remove_versions

WITHDRAWN = {"adapter", "gguf", "package", "reference"}  # kinds of what a version has learned
REWRITTEN = "rewritten"  # notes of files that `data forget` has rewritten: digest before -> digest after
LONGEST = 40  # characters of a line's name in that of its rebuild


class Night(Record):
    """A version to train again."""

    number: int
    flow: str = Field(description="The flow that trains it.")
    promoted: bool = Field(description="Whether its run was promoted to the line.")
    spec: RunSpec


@contextmanager
def opened(config: Settings) -> Iterator[Store]:
    """The store, and its temporary files until the block ends."""
    store = Store(config.store_path)
    try:
        yield store
    finally:
        store.close()


def concerned(line: str, seen: Collection[str], store: Store) -> list[int]:
    """The versions behind a line's champion from the first that has seen forgotten rows; `seen` has LINE@NUMBER."""
    lines, chain = Lines(store), list[int]()
    number = lines.champion(line)
    while number:
        chain.append(number)
        number = lines.version(line, number).parent
    chain.reverse()
    first = next((place for place, number in enumerate(chain) if f"{line}@{number}" in seen), len(chain))
    return chain[first:]


def nights(line: str, numbers: Sequence[int], store: Store) -> list[Night]:
    """How these versions were trained: what was chosen by their data is left open. Raises RebuildImpossible."""
    return [night(line, number, store) for number in numbers]


def night(line: str, number: int, store: Store) -> Night:
    """How a version was trained."""
    run_id = Lines(store).version(line, number).run_id
    prepared, split = load(run_id, store), of_run(run_id, store)
    promoted = prepared.flow == "promote"
    if promoted and prepared.of:
        prepared = load(prepared.of, store)
    flow = "multi-run" if prepared.flow == "promote" else prepared.flow  # old records do not say of what
    if split is None:
        raise RebuildImpossible(
            f"which rows version {number} of line {line} trained is not known any more", hint="train the line anew"
        )
    return Night(number=number, flow=flow, promoted=promoted, spec=spec_of(prepared, split.datasets, store))


def spec_of(prepared: Prepared, made: Sequence[DatasetRef], store: Store) -> RunSpec:
    """The spec of a run as it was asked for, without what would leave this machine; its rows are where they are now."""
    spec = prepared.asked
    alone = {"publish": PublishSpec(), "approval": ApprovalSpec(), "export": ExportSpec(), "notify": []}
    if flow_info(prepared.flow).rows == "stored":  # its rows are those of the version before
        return spec.model_copy(update={**alone, "max_seconds": None})
    datasets = [dataset_of(*each, store) for each in zip(spec.datasets, prepared.sources, made, strict=True)]
    watch = [
        one.model_copy(update={"path": place_of(source.data, store) or one.path})
        for one, source in zip(spec.evaluation.watch, prepared.watch, strict=True)
    ]
    rows = {"datasets": datasets, "evaluation": spec.evaluation.model_copy(update={"watch": watch})}
    return spec.model_copy(update={**alone, **rows, "max_seconds": None})


def dataset_of(spec: DatasetSpec, source: Source, made: DatasetRef, store: Store) -> DatasetSpec:
    """A dataset, read from its own files if they are what they were, else from the rows that are left of it.

    Raises RebuildImpossible if only the file says what the rows belong to.
    """
    known = {"task": source.task, "heldout": None if source.heldout is None else place_of(source.heldout, store)}
    if spec.on_hub() or source.data.path.startswith(ON_HUB):
        return spec.model_copy(update=known)
    path = place_of(source.data, store)
    if path and (known["heldout"] or not source.heldout):
        return spec.model_copy(update={**known, "path": path})
    if spec.group_by or spec.time_split or spec.curation.sources or spec.curation.curriculum == "file":
        raise RebuildImpossible(
            f"{source.data.path} is not what it was, and its rows are chosen or ordered by what only it says",
            hint="put the file back where it was, and run this again",
        )
    sets = [made.train] if source.heldout else [made.train, *made.held_out]
    plain = DatasetSpec(path=rows_file(sets, store), curation=spec.curation, tools=spec.tools)
    return plain.model_copy(
        update={
            "task": source.task,
            "heldout": rows_file(made.held_out, store) if source.heldout else None,
            **({"format": "mixed"} if made.judges or made.heldout_preferences else {}),
        }
    )


def rows_file(sets: Sequence[RowsRef], store: Store) -> str:
    """A file of the distinct rows of some sets."""
    ref = commit(unique([index(one, store) for one in sets]), store, {"stage": "rebuild"})
    return str(store.local(ref) / ROWS)


def place_of(source: SourceRef, store: Store) -> str | None:
    """Where the rows of a source are, if its files are there as a run or `data forget` has left them.

    Of a directory, the files that it had then, in a directory of their own.
    """
    if not source.files:
        return source.path if is_current(Path(source.path), source.digest, store) else None
    there = {file.name: Path(source.path, file.name) for file in source.files if latest(file.digest, store)}
    digests = {file.name: file.digest for file in source.files}
    if not there or not all(is_current(path, digests[name], store) for name, path in there.items()):
        return None
    directory = store.scratch("rebuild")
    for name, path in there.items():
        (directory / name).symlink_to(path)
    return str(directory)


def is_current(path: Path, digest: str, store: Store) -> bool:
    return path.is_file() and file_digest(path) == latest(digest, store)


def latest(digest: str, store: Store) -> str:
    """The digest that a file has after all rows that were removed from it; empty if none was left."""
    while digest and (note := store.layout.note(REWRITTEN, digest)).is_file():
        digest = json.loads(note.read_bytes())
    return digest


def note_rewritten(before: str, path: Path, store: Store) -> None:
    """Note what `data forget` has made of a file."""
    write_atomic(store.layout.note(REWRITTEN, before), json.dumps(file_digest(path) if path.is_file() else ""))


# The line of the rebuild


def begin(line: str, numbers: Sequence[int], rows: Collection[str], store: Store) -> str:
    """A new line with the versions before those with `numbers`; its name. Notes that those have seen the rows.

    Removes the line of an earlier rebuild that was killed.
    """
    lines = Lines(store)
    forget(rows, [f"{line}@{number}" for number in numbers], store)
    for name in lines.names():
        if REBUILD.search(name) and REBUILD.sub("", name) == line[:LONGEST]:
            remove_records(store.layout.line(name).root)
    made = f"{line[:LONGEST]}.rebuild-{uuid.uuid4().hex[:12]}"
    before = lines.ancestors(line, lines.version(line, numbers[0]).parent)
    for place, version in enumerate(before):
        lines.append(made, version.model_copy(update={"parent": place or None}), after=place)
    lines.set_champion(made, len(before) or None)
    return made


def end(name: str, store: Store, config: Settings) -> None:
    """Remove the line of a rebuild, here and in MLflow; its runs stay."""
    remove_records(store.layout.line(name).root)
    remove_model(config, name)


def adopt(line: str, rebuilt: str, numbers: Sequence[int], store: Store) -> list[int]:
    """Append the rebuilt versions to the line, and return their numbers; the last is rebuilt's champion.

    A version that is there already, from a rebuild that was killed, is not appended again. Raises LineConflict if
    another run has continued the line since.
    """
    lines = Lines(store)
    with working_on(line):
        lines.check_champion(line, numbers[-1])
        before = chain(line, lines.version(line, numbers[0]).parent, lines)
        known: dict[int | None, int | None] = {None: None, **dict(enumerate(before, 1))}
        for number in lines.versions(rebuilt)[len(before) :]:
            version = lines.version(rebuilt, number)
            moved = version.model_copy(update={"parent": known[version.parent]})
            known[number] = place_in(line, moved, {*before, *numbers}, lines)
    return [number for number in list(known.values())[1:] if number]


def chain(line: str, number: int | None, lines: Lines) -> list[int]:
    """A version and those that it continues, oldest first."""
    found = list[int]()
    while number:
        found.insert(0, number)
        number = lines.version(line, number).parent
    return found


def place_in(line: str, version: LineVersion, old: Collection[int], lines: Lines) -> int:
    """The number of a rebuilt version in a line; it is appended unless it is there, and not one of the `old` ones."""
    numbers = lines.versions(line)
    for number in (each for each in numbers if each not in old):
        known = lines.version(line, number)
        if (known.parent, known.tuned, known.merged, known.datasets) == (
            version.parent,
            version.tuned,
            version.merged,
            version.datasets,
        ):
            return number
    return lines.append(line, version, after=numbers[-1])


# Versions that have seen the rows


def seen_by(line: str, seen: Collection[str], store: Store) -> list[int]:
    """The versions of a line that have seen forgotten rows; `seen` has LINE@NUMBER."""
    return [number for number in Lines(store).versions(line) if f"{line}@{number}" in seen]


def withdraw(line: str, numbers: Sequence[int], store: Store, config: Settings) -> list[str]:
    """Remove the adapters and files of versions, their Ollama tags, and their copies in MLflow.

    Returns what is left, in words.
    """
    names = {number: f"{line}@{number}" for number in numbers}
    tags = tag_remover(store, remove_tag)
    left = [f"{names[number]}: its Ollama tag could not be removed" for number in numbers if not tags(line, number)]
    kept = named_by_others(line, numbers, store)
    pins = set[str]().union(*pinned(store).values())
    for digest in sorted(made_by(line, numbers, store) - kept):
        if digest in pins:
            left.append(f"artifact {digest[:12]} is pinned; release it with `backprop store keep --undo`, then prune")
        else:
            store.remove(digest, f"withdrawn: a version of line {line} that has learned forgotten rows")
    left += remove_copies(config, store.was_removed, rows=True)
    runs = [Lines(store).version(line, number).run_id for number in numbers]
    return left + remove_versions(config, line, dict(zip(numbers, runs, strict=True)))


def made_by(line: str, numbers: Sequence[int], store: Store) -> set[str]:
    """The adapters and files of versions, and what later runs have made of those."""
    lines, layout = Lines(store), store.layout
    versions = {number: lines.version(line, number) for number in numbers}
    runs = {version.run_id for version in versions.values()}
    named = set[str]()
    for number, version in versions.items():
        named |= digests_in(version.model_dump_json()) | digests_of(layout.line(line).release(number))
    for run in layout.ended():
        if run.run_id in runs or json.loads(run.spec.read_bytes()).get("of") in runs:
            named |= digests_of(run.result)
    return {digest for digest in named if kind_of(digest, store) in WITHDRAWN}


def kind_of(digest: str, store: Store) -> str | None:
    """The kind of an artifact; None if there is none."""
    store.has(digest)
    manifest = store.layout.artifact(digest) / MANIFEST
    kind: str | None = json.loads(manifest.read_bytes())["kind"] if manifest.is_file() else None
    return kind


def named_by_others(line: str, numbers: Sequence[int], store: Store) -> set[str]:
    """What other versions of any line name."""
    lines, found = Lines(store), set[str]()
    for name in lines.names():
        for number in lines.versions(name):
            if (name, number) not in {(line, each) for each in numbers}:
                found |= digests_in(lines.version(name, number).model_dump_json())
                found |= digests_of(store.layout.line(name).release(number))
    return found
