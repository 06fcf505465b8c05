"""What the store knows of a dataset that a line has learned: source, dropped rows, lengths, and a few rows."""

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pydantic import Field

from backprop_core.data.report import Lengths, lengths
from backprop_core.data.row_lineage import SAMPLES
from backprop_core.errors import RunUnknown
from backprop_core.lines.versions import Lines
from backprop_core.runtime.redaction import blank_secrets
from backprop_core.runtime.settings import Settings
from backprop_core.schema.dataset_reports import Dropped, DroppedSample
from backprop_core.schema.records import Record
from backprop_core.schema.refs import DatasetRef, Digest
from backprop_core.store.artifacts import Store
from tasks.runs.ended_runs import ended
from tasks.runs.line_report import known_version
from tasks.runs.version_changes import Sample, samples

MEASURED = 20_000  # rows whose length is counted


class Use(Record):
    """A version of a line that has learned a dataset."""

    line: str
    number: int
    run_id: str


class StoredDataset(Record):
    """A dataset in the store."""

    digest: Digest = Field(description="Of its training rows.")
    name: str
    task: str
    source: str | None = Field(description="Where its rows were read; null if the record does not say.")
    read: int = Field(description="Rows in the source.")
    trained: int
    heldout: int
    dropped: list[Dropped] = Field(description="By reason, the most frequent first; samples say where they stand.")
    not_trained: dict[str, int] = Field(description="Usable rows not trained on, by reason.")
    characters: Lengths = Field(description=f"Of the first {MEASURED} training rows.")
    versions: list[Use] = Field(description="Versions whose line has learned it, the first ones first.")
    rows: list[Sample] = Field(description="The first training rows.")


def stored_dataset(digest: str, config: Settings) -> StoredDataset:
    """A dataset by the digest of its training rows. Raises RunUnknown."""
    store = Store(config.store_path)
    found = list(uses(digest, store)) if re.fullmatch("[0-9a-f]{64}", digest) else []
    if not found:
        raise RunUnknown(f"no version has a dataset {digest[:64]}", hint="open it from the page of a line")
    dataset = found[0][1]
    return StoredDataset(
        digest=digest,
        name=dataset.name,
        task=dataset.task,
        source=source_of(found[0][0], dataset, store),
        read=dataset.read,
        trained=dataset.train.rows,
        heldout=dataset.heldout.rows,
        dropped=dropped(dataset, store),
        not_trained={reason: rows for reason, rows in dataset.not_trained.items() if rows},
        characters=lengths([len(text) for text in texts(dataset, store)]),
        versions=[use for use, _ in found],
        rows=list(samples(store, [dataset])),
    )


def uses(digest: str, store: Store) -> Iterator[tuple[Use, DatasetRef]]:
    """The versions that have a dataset."""
    lines = Lines(store)
    for line in lines.names():
        for number in lines.versions(line):
            version = known_version(store, line, number)
            for dataset in version.datasets:
                if dataset.train.digest == digest:
                    yield Use(line=line, number=number, run_id=version.run_id), dataset
                    break


def source_of(use: Use, dataset: DatasetRef, store: Store) -> str | None:
    """The path in the spec of the run that has read it, without credentials."""
    run = ended(store, use.run_id)
    given: list[dict[str, Any]] = run.spec.get("datasets", []) if run else []
    paths = [str(each["path"]) for each in given if "path" in each]
    named = [path for path in paths if dataset.name in path] or (paths if len(paths) == 1 else [])
    return blank_secrets(named[0]) if named else None


def dropped(dataset: DatasetRef, store: Store) -> list[Dropped]:
    """The dropped rows by reason, with the first few of each."""
    shown = sampled(dataset, store)
    counts = sorted(dataset.dropped.items(), key=lambda one: (-one[1], one[0]))
    return [Dropped(reason=reason, rows=rows, samples=shown.get(reason, [])) for reason, rows in counts if rows]


def sampled(dataset: DatasetRef, store: Store) -> dict[str, list[DroppedSample]]:
    """The first rows of each reason, from what was recorded of the source; none in older records."""
    found: dict[str, list[DroppedSample]] = {}
    file = store.layout.artifact(dataset.lineage.digest) / SAMPLES if dataset.lineage else None
    if file is None or not (dataset.lineage and store.has(dataset.lineage.digest)) or not file.is_file():
        return found
    for one in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        place = " ".join(str(part) for part in (one["file"], one["unit"], one["number"]) if part is not None)
        sample = DroppedSample(place=place, detail=one["detail"], text=one["text"] or "")
        found.setdefault(one["reason"], []).append(sample)
    return found


def texts(dataset: DatasetRef, store: Store) -> Iterator[str]:
    """The text of the first training rows; none if they were pruned."""
    file = store.layout.artifact(dataset.train.digest) / "rows.jsonl"
    if store.has(dataset.train.digest) and file.is_file():
        with file.open(encoding="utf-8") as rows:
            for row in map(json.loads, islice(rows, MEASURED)):
                turns = row.get("messages") or [{"content": row.get("text", "")}]
                yield "".join(str(turn.get("content") or "") for turn in turns)
