"""What the optional curation steps would find in usable rows, whether or not a spec asks for them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from backprop_core.data.report_rows import Usable, text_at
from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_index import Positions, RowIndex, order_of
from backprop_core.data.steps import contradictions, language, near_duplicates, personal_data, quality
from backprop_core.data.steps.shingles import spoken
from backprop_core.schema.specs.curation import CurationSpec, QualityRule

SIMILAR = 0.85  # Jaccard similarity of near duplicates, unless the spec sets another
BATCH = 1024  # rows that a step looks at together


class Found(NamedTuple):
    """What a step finds in a row: a step's name, the row's position, the reason to count by, a detail for people.

    `text` is what may be shown of the row, as JSON; empty if nothing may.
    """

    step: str
    row: int
    reason: str
    detail: Callable[[], str]
    text: Callable[[], str]


def findings(rows: Usable, spec: CurationSpec, scratch: Path) -> Iterator[Found]:
    """Near duplicates, contradictions, personal data and broken quality rules. `scratch` is for temporary files."""
    if len(rows.index):
        yield from in_rows(rows)
        yield from between_rows(rows, spec, scratch)


def languages_of(rows: Sequence[ChatRow]) -> dict[str, int]:
    """How many rows are in which language, the most frequent first; `unsure` if none is probable enough."""
    model, counts = language.identifier(), Counter[str]()
    for row in rows:
        found, probability = model.classify(spoken(row)[: language.READ])
        counts[found if probability >= language.SURE else "unsure"] += 1
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def in_rows(rows: Usable) -> Iterator[Found]:
    """What the steps that look at one row at a time find; rows with personal data are not shown."""
    steps = {"personal_data": personal_data.step("flag"), "quality": quality.step(get_args(QualityRule))}
    shown: dict[str, Callable[[int], str]] = {
        "personal_data": lambda row: "",
        "quality": partial(text_at, rows.index),
    }
    every, begin = rows.rows(), 0
    while some := list(islice(every, BATCH)):
        for name, step in steps.items():
            for row, finding in enumerate(step(some), begin):
                if finding is not None:
                    yield Found(name, row, finding.reason, finding.detail.__str__, partial(shown[name], row))
        begin += len(some)


def between_rows(rows: Usable, spec: CurationSpec, scratch: Path) -> Iterator[Found]:
    """What the steps that compare rows find."""
    numbers = order_of(rows.index.entries["identity"])
    ordered = rows.index.take(numbers)
    threshold = spec.near_duplicates or SIMILAR
    steps = {
        "near_duplicates": near_duplicates.step(threshold, spec.near_duplicates_on),
        "contradictions": contradictions.step("report"),
    }
    for name, step in steps.items():
        place = scratch / name
        place.mkdir()
        for found in step(ordered, numbers, place):
            detail = partial(with_place, found.detail, rows, ordered, numbers)
            yield Found(name, int(numbers[found.row]), found.reason, detail, partial(text_at, ordered, found.row))


def with_place(detail: str, rows: Usable, ordered: RowIndex, numbers: Positions) -> str:
    """A detail that names another row, with its place instead of its identity."""
    similarity, _, name = detail.partition(" of row ")
    if not name:
        return detail
    other = int(numbers[np.searchsorted(ordered.keys, np.bytes_(bytes.fromhex(name)))])
    return f"similarity {similarity} to {rows.place(other)}"
