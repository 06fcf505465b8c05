"""What a version changed: rows, settings, scores by task; and rows that it has learned."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from backprop_core.lines.versions import LineVersion
from backprop_core.schema.gate_report import TaskVerdict
from backprop_core.schema.records import Record
from backprop_core.schema.refs import DatasetRef, Digest
from backprop_core.store.artifacts import Store
from tasks.runs.ended_runs import ended
from tasks.stages.labels import preferences

MOST_SAMPLES = 10
LONGEST = 400  # characters of a turn in a sample


class NewData(Record):
    """A dataset that a version added."""

    digest: Digest = Field(description="Of its training rows.")
    name: str
    task: str
    read: int
    train_rows: int
    preferences: str = Field("", description="How many of them are pairs or ratings, in words.")
    left_out: dict[str, int] = Field(description="Rows dropped or not trained, by reason.")


class SettingChange(Record):
    """A setting that differs from the version before."""

    field: str
    before: Any
    after: Any


class ChangeReport(Record):
    """What is different in a version, compared with the version that it continues."""

    number: int
    parent: int | None
    data: list[NewData]
    settings: list[SettingChange]
    tasks: list[TaskVerdict]


class Sample(Record):
    """A training row."""

    turns: list[tuple[str, str]] = Field(description="Role and text; long texts are cut.")


def change(store: Store, number: int, versions: dict[int, LineVersion]) -> ChangeReport:
    """What a version changed."""
    version = versions[number]
    parent = versions.get(version.parent or 0)
    after, before = ended(store, version.run_id), ended(store, parent.run_id) if parent else None
    return ChangeReport(
        number=number,
        parent=version.parent,
        data=[new_data(dataset) for dataset in new_datasets(number, versions)],
        settings=list(differences(before.spec, after.spec)) if before and after else [],
        tasks=version.gate.tasks if version.gate else [],
    )


def new_datasets(number: int, versions: dict[int, LineVersion]) -> list[DatasetRef]:
    """The datasets of a version that its parent does not have."""
    parent = versions.get(versions[number].parent or 0)
    return versions[number].datasets[len(parent.datasets) if parent else 0 :]


def new_data(dataset: DatasetRef) -> NewData:
    left_out = {reason: rows for reason, rows in (dataset.dropped | dataset.not_trained).items() if rows}
    return NewData(
        digest=dataset.train.digest,
        name=dataset.name,
        task=dataset.task,
        read=dataset.read,
        train_rows=dataset.train.rows,
        preferences=preferences(dataset.pairs, dataset.ratings),
        left_out=left_out,
    )


def differences(before: Any, after: Any, path: str = "") -> Iterator[SettingChange]:
    """The fields of two specs that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            yield from differences(before.get(name), after.get(name), f"{path}.{name}" if path else name)
    elif before != after:
        yield SettingChange(field=path, before=before, after=after)


def samples(store: Store, datasets: list[DatasetRef]) -> Iterator[Sample]:
    """The first training rows of datasets."""
    here = [dataset.train.digest for dataset in datasets if store.has(dataset.train.digest)]
    files = [store.layout.artifact(digest) / "rows.jsonl" for digest in here]
    rows = (json.loads(line) for file in files if file.is_file() for line in lines_of(file))
    for row in islice(rows, MOST_SAMPLES):
        turns = row.get("messages") or [{"role": "text", "content": row.get("text", "")}]
        yield Sample(turns=[(turn["role"], plain(turn.get("content"))) for turn in turns])


def lines_of(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as text:
        yield from islice(text, MOST_SAMPLES)


def plain(content: Any) -> str:
    """A turn's content as text, cut."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
