"""What the optional curation steps would find in usable rows, whether or not a spec asks for them."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from backprop_core.data.file_readers import Place
from backprop_core.data.row_files import indexed
from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_index import RowIndex, order_of
from backprop_core.data.steps import contradictions, language, near_duplicates, personal_data, quality
from backprop_core.data.steps.shingles import spoken
from backprop_core.schema.specs.curation import CurationSpec, QualityRule
from backprop_core.store.cache_keys import canonical

SIMILAR = 0.85  # Jaccard similarity of near duplicates, unless the spec sets another
ROWS = "rows.jsonl"
BATCH = 1024  # rows that a step looks at together


class Usable(NamedTuple):
    """A row that curation keeps, and where it stands in the source."""

    place: Place
    row: ChatRow


class Found(NamedTuple):
    """What a step finds in a row: a step's name, the row's position, the reason to count by, a detail for people.

    `text` is what may be shown of the row, as JSON; empty if nothing may.
    """

    step: str
    row: int
    reason: str
    detail: str
    text: str


def findings(rows: Sequence[Usable], spec: CurationSpec, scratch: Path) -> Iterator[Found]:
    """Near duplicates, contradictions, personal data and broken quality rules. `scratch` is for temporary files."""
    if rows:
        yield from in_rows(rows)
        yield from between_rows(rows, spec, scratch)


def languages_of(rows: Sequence[ChatRow]) -> dict[str, int]:
    """How many rows are in which language, the most frequent first; `unsure` if none is probable enough."""
    model, counts = language.identifier(), Counter[str]()
    for row in rows:
        found, probability = model.classify(spoken(row)[: language.READ])
        counts[found if probability >= language.SURE else "unsure"] += 1
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def in_rows(rows: Sequence[Usable]) -> Iterator[Found]:
    """What the steps that look at one row at a time find; rows with personal data are not shown."""
    steps = {"personal_data": personal_data.step("flag"), "quality": quality.step(get_args(QualityRule))}
    for name, step in steps.items():
        for begin in range(0, len(rows), BATCH):
            some = rows[begin : begin + BATCH]
            for row, finding in enumerate(step([one.row for one in some]), begin):
                if finding is not None:
                    text = "" if name == "personal_data" else canonical(rows[row].row)
                    yield Found(name, row, finding.reason, finding.detail, text)


def between_rows(rows: Sequence[Usable], spec: CurationSpec, scratch: Path) -> Iterator[Found]:
    """What the steps that compare rows find."""
    (scratch / ROWS).write_text("".join(canonical(one.row) + "\n" for one in rows), encoding="utf-8", newline="\n")
    every = indexed(scratch / ROWS)
    numbers = order_of(every.entries["identity"])
    ordered = every.take(numbers)
    names = {identity.hex(): int(numbers[place]) for place, identity in enumerate(ordered.identities())}
    threshold = spec.near_duplicates or SIMILAR
    steps = {
        "near_duplicates": near_duplicates.step(threshold, spec.near_duplicates_on),
        "contradictions": contradictions.step("report"),
    }
    for name, step in steps.items():
        place = scratch / name
        place.mkdir()
        for found in step(ordered, np.asarray(numbers, np.int64), place):
            detail = with_place(found.detail, names, rows)
            yield Found(name, int(numbers[found.row]), found.reason, detail, text_of(ordered, found.row))


def with_place(detail: str, names: dict[str, int], rows: Sequence[Usable]) -> str:
    """A detail that names another row, with its place instead of its identity."""
    similarity, _, name = detail.partition(" of row ")
    return f"similarity {similarity} to {rows[names[name]].place}" if name in names else detail


def text_of(rows: RowIndex, row: int) -> str:
    return canonical(json.loads(next(rows.take(slice(row, row + 1)).lines())))
