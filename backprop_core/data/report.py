"""What is in a dataset: rows by outcome, lengths, sources, and a few rows as training sees them.

Usable rows are those that curation keeps if no optional step is on; what those steps would find is listed apart, by the
steps themselves. Characters are counted in all usable rows, tokens in a sample of them.
"""

import math
from collections import Counter as Counts
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from backprop_core.data.converted_rows import Converted
from backprop_core.data.file_readers import Item, Malformed, Place
from backprop_core.data.loading import REFUSED, ChatRow
from backprop_core.data.preference_rows import is_preference
from backprop_core.data.preview import ShownExample, ShownRow, preview
from backprop_core.data.report_findings import Found, Usable, findings, languages_of
from backprop_core.data.row_identity import identity, teaches
from backprop_core.data.template_refusals import Refusals
from backprop_core.data.token_lengths import Counter, sample, texts
from backprop_core.errors import NoRows
from backprop_core.models.file_tokenizer import FileTokenizer
from backprop_core.runtime.redaction import blank_secrets
from backprop_core.schema.records import Record
from backprop_core.schema.refs import ChatTemplate
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.cache_keys import canonical

BINS = 24  # of a histogram
SAMPLES = 3  # rows shown of each reason
LONGEST = 600  # characters shown of a dropped row
QUANTILES = {"p25": 0.25, "median": 0.5, "p75": 0.75, "p90": 0.9, "p99": 0.99}
EMPTY, DUPLICATE = "empty", "duplicate"
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


class DroppedSample(Record):
    """A row that curation drops."""

    place: str = Field(description="Its file, and its line or row from 1.")
    detail: str = Field(description="Why, for people.")
    text: str = Field(description="The row as JSON, shortened; empty if it could not be parsed.")


class Dropped(Record):
    """The rows that curation drops, or could drop, for one reason."""

    reason: str
    rows: int
    samples: list[DroppedSample] = Field(description="The first few of them.")


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
    template: ChatTemplate
    max_length: int


class Fate(NamedTuple):
    """Why a row is dropped: the reason to count by, and a detail for people."""

    reason: str
    detail: str


def report(digest: str, source: Converted, spec: DatasetSpec, base: Base | None, scratch: Path) -> DatasetReport:
    """Examine a dataset's rows, with the base's chat template and tokenizer if there is one.

    `scratch` is an empty directory for temporary files. Raises ChatTemplateMissing, ChatTemplateUnusable.
    """
    fates = fates_of(source, refusals_of(spec, base))
    usable = [
        Usable(item.place, row)
        for item, row, fate in zip(source.items, source.rows, fates, strict=True)
        if fate is None and not isinstance(row, Malformed)
    ]
    kept = [one.row for one in usable]
    by_reason = dropped(source.items, fates)
    found = list(findings(usable, spec.curation, scratch))
    tokens = tokens_of(kept, base) if base and kept else None
    return DatasetReport(
        data=spec.path,
        digest=digest,
        row_formats={source.format: sum(not isinstance(row, Malformed) for row in source.rows)},
        read=len(source.items),
        usable=len(kept),
        dropped=by_reason,
        found=summed(found, usable),
        languages=languages_of(sample(kept)[0]),
        files=files_of(source.items, fates),
        characters=lengths([sum(map(len, texts(row))) for row in kept]),
        tokens=tokens,
        rows=shown_rows(spec, source, fates, base) if base else [],
        figures=figures(by_reason, found, source, tokens),
    )


def summed(found: Sequence[Found], rows: Sequence[Usable]) -> list[Dropped]:
    """Findings by reason, the most frequent first."""
    by_reason: dict[str, list[Found]] = {}
    for one in found:
        by_reason.setdefault(one.reason, []).append(one)
    made = [
        Dropped(
            reason=reason,
            rows=len({one.row for one in some}),
            samples=[sample_of(rows[one.row].place, one.detail, one.text) for one in some[:SAMPLES]],
        )
        for reason, some in by_reason.items()
    ]
    return sorted(made, key=lambda one: (-one.rows, one.reason))


def refusals_of(spec: DatasetSpec, base: Base | None) -> Refusals | None:
    return Refusals(base.template, tools_as_text=spec.tools == "as_text") if base else None


def fates_of(source: Converted, refusals: Refusals | None) -> list[Fate | None]:
    """For each row why curation drops it, or None. Of several equal rows the first is kept."""
    fates: list[Fate | None] = [
        Fate(row.reason, str(row)) if isinstance(row, Malformed) else None for row in source.rows
    ]
    good = [place for place, fate in enumerate(fates) if fate is None]
    rows: list[ChatRow] = [source.rows[place] for place in good]  # type: ignore[misc]  # the others are Malformed
    tried = refusals(rows) if refusals else iter(rows)
    first: dict[bytes, int] = {}
    for place, row in zip(good, tried, strict=True):
        if isinstance(row, Malformed):
            fates[place] = Fate(row.reason, str(row))
        elif is_preference(row):
            fates[place] = Fate("preference", "judged answers are kept apart, not trained")
        elif not teaches(row):
            fates[place] = Fate(EMPTY, "no answer to learn from")
        elif (before := first.setdefault(identity(row), place)) != place:
            fates[place] = Fate(DUPLICATE, f"the same as {source.items[before].place}")
    return fates


def dropped(items: Sequence[Item], fates: Sequence[Fate | None]) -> list[Dropped]:
    """The dropped rows by reason, the most frequent first."""
    by_reason: dict[str, list[tuple[Item, Fate]]] = {}
    for item, fate in zip(items, fates, strict=True):
        if fate:
            by_reason.setdefault(fate.reason, []).append((item, fate))
    found = [
        Dropped(reason=reason, rows=len(rows), samples=[dropped_sample(*row) for row in islice(rows, SAMPLES)])
        for reason, rows in by_reason.items()
    ]
    return sorted(found, key=lambda one: (-one.rows, one.reason))


def dropped_sample(item: Item, fate: Fate) -> DroppedSample:
    text = "" if isinstance(item.value, Malformed) else canonical(item.value)
    return sample_of(item.place, fate.detail, text)


def sample_of(place: Place, detail: str, text: str) -> DroppedSample:
    """A sample with secrets blanked: reports are passed on."""
    return DroppedSample(place=str(place), detail=blank_secrets(detail), text=shortened(blank_secrets(text)))


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def files_of(items: Sequence[Item], fates: Sequence[Fate | None]) -> list[FileRows]:
    """The files of a source, in its order; none if it is a single file."""
    read, usable = Counts[str](), Counts[str]()
    for item, fate in zip(items, fates, strict=True):
        if item.place.file is not None:
            read[item.place.file] += 1
            usable[item.place.file] += fate is None
    return [FileRows(file=file, read=count, usable=usable[file]) for file, count in read.items()]


def lengths(values: Iterable[int]) -> Lengths:
    """Quantiles and histogram of lengths; all zero for none."""
    ordered = sorted(values)
    known = ordered or [0]
    total = sum(ordered)
    quantiles = {name: known[math.ceil(share * len(known)) - 1] for name, share in QUANTILES.items()}
    return Lengths(
        rows=len(ordered),
        total=total,
        mean=round(total / len(known), 1),
        shortest=known[0],
        longest=known[-1],
        histogram=histogram(ordered, quantiles["p99"]),
        **quantiles,
    )


def histogram(ordered: Sequence[int], p99: int) -> list[Bin]:
    """Equal bins from the shortest to p99, and one for everything above."""
    if not ordered:
        return []
    start = ordered[0]
    width = max(1, math.ceil((p99 + 1 - start) / BINS))
    counts = Counts(min((value - start) // width, BINS) for value in ordered)
    last = max(counts)
    ends = [start + width * (number + 1) for number in range(last + 1)]
    if last == BINS:
        ends[-1] = ordered[-1] + 1
    return [Bin(start=start + width * number, end=end, rows=counts[number]) for number, end in enumerate(ends)]


def tokens_of(rows: Sequence[ChatRow], base: Base) -> Tokens:
    """The rows in tokens, counted in a sample. Raises TokenizerMismatch."""
    counter = Counter(base.directory)
    drawn, count = sample(rows)
    counted = counter.count(drawn)
    total = sum(row.tokens for row in counted)
    share = count / len(counted)
    return Tokens(
        model=base.name,
        exact=counter.exact,
        lengths=lengths(row.tokens for row in counted),
        label_share=min(1.0, sum(row.labels for row in counted) / max(1, total)),
        max_length=base.max_length,
        cut=round(share * sum(row.tokens > base.max_length for row in counted)),
        without_answer=round(share * sum(row.before >= base.max_length for row in counted)),
    )


def shown_rows(spec: DatasetSpec, source: Converted, fates: Sequence[Fate | None], base: Base) -> list[ShownRow]:
    """A few usable rows, rendered; none without a tokenizer.json, or if no row is usable."""
    if not (base.directory / "tokenizer.json").is_file():
        return []
    kept = [place for place, fate in enumerate(fates) if fate is None]
    left = Converted(source.format, [source.items[place] for place in kept], [source.rows[place] for place in kept])
    try:
        shown = preview(
            spec.path,
            left,
            FileTokenizer(base.directory),
            model=base.name,
            max_length=base.max_length,
            refusals=refusals_of(spec, base),
        )
    except NoRows:
        return []
    return [row.model_copy(update={"examples": [blanked(one) for one in row.examples]}) for row in shown.rows]


def blanked(example: ShownExample) -> ShownExample:
    """The example with secrets blanked."""
    spans = [span.model_copy(update={"text": blank_secrets(span.text)}) for span in example.spans]
    return example.model_copy(update={"spans": spans})


def figures(
    by_reason: Sequence[Dropped], found: Sequence[Found], source: Converted, tokens: Tokens | None
) -> dict[str, int]:
    """The counts of FIGURES that are known."""
    counts = {one.reason: one.rows for one in by_reason}
    of_steps = {step: len({one.row for one in found if one.step == step}) for step in STEPS}
    of_tokens = {"cut": tokens.cut, "without_answer": tokens.without_answer} if tokens else {}
    return {
        "dropped": sum(counts.values()),
        "malformed": sum(isinstance(row, Malformed) for row in source.rows),
        "refused_by_template": counts.get(REFUSED, 0),
        "empty": counts.get(EMPTY, 0),
        "duplicates": counts.get(DUPLICATE, 0),
        **of_steps,
        **of_tokens,
    }
