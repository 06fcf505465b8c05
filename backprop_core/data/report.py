"""What is in a dataset: rows by outcome, lengths, sources, and a few rows as training sees them.

Usable rows are those that curation keeps if no optional step is on; what those steps would find is listed apart, by the
steps themselves. Characters are counted in all usable rows, tokens in a sample of them.
"""

import math
import random
from collections import Counter as Counts
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from backprop_core.data.loading import REFUSED, ChatRow
from backprop_core.data.preview import ShownExample, ShownRow, shown
from backprop_core.data.report_findings import findings, languages_of
from backprop_core.data.report_rows import DUPLICATE, EMPTY, ReadRows, Usable
from backprop_core.data.report_samples import Reasons
from backprop_core.data.template_refusals import Refusals
from backprop_core.data.token_lengths import MOST_ROWS, Counter, Reservoir, fewer_if_long
from backprop_core.models.file_tokenizer import FileTokenizer
from backprop_core.runtime.redaction import blank_secrets
from backprop_core.schema.dataset_reports import Dropped
from backprop_core.schema.records import Record
from backprop_core.schema.refs import ChatTemplate
from backprop_core.schema.specs import DatasetSpec

BINS = 24  # of a histogram
SHOWN = 3  # rows shown as training sees them
QUANTILES = {"p25": 0.25, "median": 0.5, "p75": 0.75, "p90": 0.9, "p99": 0.99}
STEPS = ("near_duplicates", "contradictions", "personal_data", "quality")
FIGURES = {  # what --fail-on can compare: counts of rows
    "dropped": "dropped by curation, for any reason",
    "malformed": "not readable as chat rows",
    "refused_by_template": "refused by the base's chat template",
    "empty": "without an answer",
    "duplicates": "equal to an earlier row",
    "near_duplicates": "usable, but almost equal to another row",
    "contradictions": "usable, with the question of another row and another answer",
    "personal_data": "usable, with an e-mail address, phone number, IBAN, card number or secret",
    "quality": "usable, with an answer that breaks a rule of quality",
    "cut": "longer than the maximum length",
    "without_answer": "whose answer begins beyond the maximum length",
}


class Bin(Record):
    """Rows whose length is at least `start` and below `end`."""

    start: int
    end: int
    rows: int


class Lengths(Record):
    """How long rows are, in characters or tokens."""

    rows: int = Field(description="Rows that were measured.")
    total: int
    mean: float
    shortest: int
    p25: int
    median: int
    p75: int
    p90: int
    p99: int
    longest: int
    histogram: list[Bin] = Field(description="Equal bins up to p99; the last one has everything above.")


class FileRows(Record):
    """One file of a source."""

    file: str
    read: int
    usable: int


class Tokens(Record):
    """Rows in tokens of the base's tokenizer, rendered with its chat template. Counted in a sample of usable rows."""

    model: str
    exact: bool = Field(description="Counted by the tokenizer; else estimated by bytes, as there is no tokenizer.json.")
    lengths: Lengths
    label_share: float = Field(ge=0, le=1, description="Share of the tokens that training learns.")
    max_length: int
    cut: int = Field(description="Usable rows longer than max_length, estimated from the sample.")
    without_answer: int = Field(description="Rows among them that lose all of their answer.")


class DatasetReport(Record):
    """What is in one dataset, and what curation would make of it."""

    format: Literal[1] = 1
    data: str = Field(description="The path that was given.")
    digest: str = Field(description="Digest of the source.")
    row_formats: dict[str, int] = Field(description="Row format -> rows that could be read as it.")
    read: int = Field(description="Rows in the source.")
    usable: int = Field(description="Rows left after curation.")
    dropped: list[Dropped] = Field(description="By reason, the most frequent first.")
    found: list[Dropped] = Field([], description="Usable rows that optional curation steps would find, by reason.")
    languages: dict[str, int] = Field(
        default_factory=dict, description="Language -> rows of a sample of usable rows; unsure if none is probable."
    )
    files: list[FileRows] = Field(description="The files of a directory or a Hub dataset.")
    characters: Lengths
    tokens: Tokens | None = Field(description="None without a base model.")
    rows: list[ShownRow] = Field(description="A few rows as training sees them.")
    figures: dict[str, int] = Field(description="The counts of rows that --fail-on can compare, by name.")


class Base(NamedTuple):
    """What the report needs of a base model."""

    name: str
    directory: Path
    max_length: int


def report(digest: str, rows: ReadRows, spec: DatasetSpec, base: Base | None, scratch: Path) -> DatasetReport:
    """Report on the rows of a source, with a base's chat template and tokenizer if there is one.

    `scratch` is a directory for temporary files. Raises ChatTemplateMissing, ChatTemplateUnusable, TokenizerMismatch.
    """
    usable = rows.usable()
    drawn = sample_of(usable)
    found, by_step = Reasons(), Counts[str]()
    for one in findings(usable, spec.curation, scratch):
        by_step[one.step] += 1
        found.add(one.reason, usable.place(one.row), one.detail, one.text)
    tokens = tokens_of(drawn, len(usable.index), base) if base and drawn else None
    return DatasetReport(
        data=spec.path,
        digest=digest,
        row_formats={rows.format: rows.read - rows.malformed},
        read=rows.read,
        usable=len(usable.index),
        dropped=rows.dropped.all(),
        found=found.all(),
        languages=languages_of(drawn),
        files=files_of(rows),
        characters=lengths(usable.characters),
        tokens=tokens,
        rows=shown_rows(rows.format, usable, spec, base) if base else [],
        figures=figures(rows, by_step, tokens),
    )


def sample_of(usable: Usable) -> list[ChatRow]:
    """The rows that `token_lengths.sample` draws of these."""
    drawn = Reservoir[int](MOST_ROWS)
    for position in range(len(usable.index)):
        drawn.add(position)
    return fewer_if_long(usable.at(drawn.held))


def refusals_of(spec: DatasetSpec, template: ChatTemplate | None) -> Refusals | None:
    """What finds rows that the base's template refuses; None without one."""
    return Refusals(template, tools_as_text=spec.tools == "as_text") if template else None


def files_of(rows: ReadRows) -> list[FileRows]:
    """The files of a source, in its order; none if it is a single file."""
    return [
        FileRows(file=file, read=count, usable=rows.usable_in[file])
        for file, count in rows.read_in.items()
        if file is not None
    ]


def lengths(values: Sequence[int] | NDArray[Any]) -> Lengths:
    """Quantiles and histogram of lengths; all zero for none."""
    ordered = np.sort(np.asarray(values, np.int64))
    known = ordered if len(ordered) else np.zeros(1, np.int64)
    total = int(ordered.sum())
    quantiles = {name: int(known[math.ceil(share * len(known)) - 1]) for name, share in QUANTILES.items()}
    return Lengths(
        rows=len(ordered),
        total=total,
        mean=round(total / len(known), 1),
        shortest=int(known[0]),
        longest=int(known[-1]),
        histogram=histogram(ordered, quantiles["p99"]),
        **quantiles,
    )


def histogram(ordered: NDArray[np.int64], p99: int) -> list[Bin]:
    """Equal bins from the shortest to p99, and one for everything above."""
    if not len(ordered):
        return []
    start, longest = int(ordered[0]), int(ordered[-1])
    width = max(1, math.ceil((p99 + 1 - start) / BINS))
    counts = np.bincount(np.minimum((ordered - start) // width, BINS)).tolist()
    ends = [start + width * (number + 1) for number in range(len(counts))]
    if len(counts) > BINS:
        ends[-1] = longest + 1
    return [Bin(start=start + width * number, end=end, rows=counts[number]) for number, end in enumerate(ends)]


def tokens_of(drawn: Sequence[ChatRow], usable: int, base: Base) -> Tokens:
    """The tokens of `usable` rows, counted in a sample of them. Raises TokenizerMismatch."""
    counter = Counter(base.directory)
    counted = counter.count(drawn)
    total = sum(row.tokens for row in counted)
    share = usable / len(counted)
    return Tokens(
        model=base.name,
        exact=counter.exact,
        lengths=lengths([row.tokens for row in counted]),
        label_share=min(1.0, sum(row.labels for row in counted) / max(1, total)),
        max_length=base.max_length,
        cut=round(share * sum(row.tokens > base.max_length for row in counted)),
        without_answer=round(share * sum(row.before >= base.max_length for row in counted)),
    )


def shown_rows(format: str, usable: Usable, spec: DatasetSpec, base: Base) -> list[ShownRow]:
    """A few usable rows, rendered; none without a tokenizer.json, or if no row is usable."""
    if not (base.directory / "tokenizer.json").is_file():
        return []
    count = len(usable.index)
    chosen = sorted(random.Random(0).sample(range(count), min(SHOWN, count)))
    tokenizer = FileTokenizer(base.directory)
    rows = [
        shown(str(usable.place(number)), row, tokenizer, base.max_length)
        for number, row in zip(chosen, usable.at(chosen), strict=True)
    ]
    return [row.model_copy(update={"examples": [blanked(one) for one in row.examples]}) for row in rows]


def blanked(example: ShownExample) -> ShownExample:
    """The example with secrets blanked."""
    spans = [span.model_copy(update={"text": blank_secrets(span.text)}) for span in example.spans]
    return example.model_copy(update={"spans": spans})


def figures(rows: ReadRows, by_step: Counts[str], tokens: Tokens | None) -> dict[str, int]:
    """The counts of FIGURES that are known."""
    counts = rows.dropped.counts
    of_tokens = {"cut": tokens.cut, "without_answer": tokens.without_answer} if tokens else {}
    return {
        "dropped": counts.total(),
        "malformed": rows.malformed,
        "refused_by_template": counts[REFUSED],
        "empty": counts[EMPTY],
        "duplicates": counts[DUPLICATE],
        **{step: by_step[step] for step in STEPS},
        **of_tokens,
    }
