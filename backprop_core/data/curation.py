"""Curates a source: drops malformed, empty and duplicate rows, and sorts the rest by hash, without holding the rows.

Rows pass once from the source into a file in scratch, and from there, sorted, into the artifact. In memory are per row
of the source its identity, place and outcome, and where it is in that file. Rows with the same identity (see
`row_identity`) are duplicates. `splits` decides which rows are held out.
"""

import shutil
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backprop_core.data.file_readers import Malformed
from backprop_core.data.forgotten_rows import names
from backprop_core.data.loading import BATCH, BadRows, ChatRow, Read, chat_rows
from backprop_core.data.preference_rows import is_preference
from backprop_core.data.row_files import commit
from backprop_core.data.row_identity import identity, teaches
from backprop_core.data.row_index import Mask, Positions, RowIndex, distinct
from backprop_core.data.row_lineage import Lineage, Verdict, sampled_places
from backprop_core.data.row_spool import Spool
from backprop_core.data.step_reports import StepReports
from backprop_core.data.steps.order import preference_steps, row_steps, set_steps
from backprop_core.data.steps.personal_data import clean
from backprop_core.data.steps.row_step import Finding, RowStep
from backprop_core.data.steps.set_step import SetStep
from backprop_core.data.steps.source_shares import NOT_SAMPLED, OVER, refuse_unused, shared, source_of
from backprop_core.data.template_refusals import Refusals
from backprop_core.data.token_lengths import Counter
from backprop_core.errors import ConfigInvalid, NoRows
from backprop_core.runtime.redaction import blank_address
from backprop_core.schema.field_types import is_sql
from backprop_core.schema.refs import ChatTemplate, Curated, SourceRef
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical

EMPTY = Verdict("dropped", "empty")
DUPLICATE = Verdict("dropped", "duplicate")
FORGOTTEN = Verdict("dropped", "forgotten")
PREFERENCE = Verdict("kept", "preference")


class Numbered(NamedTuple):
    """A row and its number in the source, from 0."""

    number: int
    row: ChatRow
    group: int


def curate(
    source: SourceRef,
    spec: DatasetSpec,
    *,
    template: ChatTemplate | None = None,
    counter: Counter | None = None,
    store: Store,
) -> Curated:
    """Commit the source's distinct usable rows, in order of identity, as an artifact, and beside it their lineage.

    Drops and counts by reason: malformed rows, rows that the base's chat `template` refuses, `empty` rows (without an
    assistant's answer), `forgotten` rows, `duplicate` rows, and what the steps of `spec.curation` drop; `counter`
    counts tokens for them.
    Raises NoRows if none is left, InputValidationFailed for too many malformed rows, ConfigInvalid for the order of the
    rows of a query or a pattern of sources without a file, and what `loading.chat_rows` raises.
    """
    refuse_unordered(spec)
    with store.begin("curation") as scratch, ExitStack() as files:
        rows = Curation(scratch, files, spec, counter)
        rows.read(source, spec, template)
        return rows.commit(store, {"stage": "curate", "source": source.digest})


def refuse_unordered(spec: DatasetSpec) -> None:
    """Raise ConfigInvalid for the newest rows of a query, or those in its order: its rows are sorted by their text."""
    hints = {
        "contradictions=keep_newest": "let the query choose the newest rows, or use drop_both",
        "curriculum=file": "use curriculum=length, or a file",
    }
    curation = spec.curation
    asked = {f"contradictions={curation.contradictions}", f"curriculum={curation.curriculum}"}
    for setting, hint in hints.items() if is_sql(spec.path) else ():
        if setting in asked:
            raise ConfigInvalid(
                f"{blank_address(spec.path)}: {setting}, but the rows of a query have no order", hint=hint
            )


class Distinct(NamedTuple):
    """Distinct rows in order of identity: of each its number in the source, and that of its last duplicate there.

    `least` has the least value among the duplicates of each of what the spec needs, by name: `time`, `source`, `place`.
    """

    rows: RowIndex
    numbers: Positions
    latest: Positions
    least: Mapping[str, Positions]

    def take(self, which: Mask) -> "Distinct":
        """Some of the rows."""
        least = {name: values[which] for name, values in self.least.items()}
        return Distinct(self.rows.take(which), self.numbers[which], self.latest[which], least)


class Curation:
    """The rows of one source, each with its outcome."""

    def __init__(self, scratch: Path, files: ExitStack, spec: DatasetSpec, counter: Counter | None) -> None:
        self._spec, self._scratch, self._lineage = spec.curation, scratch, Lineage(scratch, files)
        sides = ("kept", "quarantined", "preferences")
        self._kept, self._apart, self._judged = (Spool(scratch / name, files) for name in sides)
        self._row_steps, self._reports = row_steps(spec.curation, counter), StepReports()
        in_order = spec.curation.curriculum == "file"
        needed = {"time": spec.time_split, "source": spec.curation.sources, "place": in_order}
        self._values = {name: array("q") for name, asked in needed.items() if asked}  # of all rows of the source
        self._files = set[str | None]()  # that rows are from, if their sources have shares
        self._forgotten, self._restored = frozenset[str](), frozenset[str]()

    def read(self, source: SourceRef, spec: DatasetSpec, template: ChatTemplate | None) -> None:
        """Read the rows and spool those that are left. Raises NoRows if none is, not even a preference."""
        tally, self._forgotten, self._restored = BadRows(), frozenset(source.forgotten), frozenset(source.restored)
        refusals = Refusals(template, tools_as_text=spec.tools == "as_text") if template else None
        every = chat_rows(source, spec, refusals=refusals)
        while some := list(islice(every, BATCH)):
            for one in some:
                tally.add(one.place, one.row)
            self._take(some)
        tally.check(spec)
        if self._spec.sources:
            refuse_unused(self._files | {file.name for file in source.files}, self._spec.sources)
        if not len(self._kept) + len(self._judged):
            why = ", ".join(f"{count} {reason}" for reason, count in self.dropped().items())
            raise NoRows(f"{spec.path}: no usable rows after filtering ({why})", hint="rows need an assistant's answer")

    def _take(self, some: Sequence[Read]) -> None:
        """Spool the usable ones of some rows."""
        rows = [numbered for read in some if (numbered := self._add(read)) is not None]
        for name, step in self._row_steps.items():
            rows = self._apply(name, step, rows)
        for number, row, group in rows:
            (self._judged if is_preference(row) else self._kept).add(number, canonical(row), group)

    def _add(self, read: Read) -> Numbered | None:
        """Number a row, and note why it is dropped if it is malformed, forgotten or empty."""
        number, row = self._lineage.add(read.place), read.row
        if "time" in self._values:
            self._values["time"].append(read.time)
        if "source" in self._values:
            self._files.add(read.place.file)
            self._values["source"].append(source_of(read.place.file, self._spec.sources))
        if "place" in self._values:
            self._values["place"].append(number)
        if isinstance(row, Malformed):
            self._lineage.note(number, Verdict("dropped", row.reason), str(row))
            return None
        self._lineage.identify(number, identity(row))
        if self._forgotten and names(row) & self._forgotten:
            self._lineage.note(number, FORGOTTEN)
            return None
        if is_preference(row):
            self._lineage.note(number, PREFERENCE)
        if teaches(row) or is_preference(row):
            return Numbered(number, row, read.group)
        hides = self._spec.personal_data in ("redact", "drop", "quarantine")
        self._lineage.note(number, EMPTY, text=lambda: canonical(clean(row) if hides else row))
        return None

    def _apply(self, name: str, step: RowStep, rows: Sequence[Numbered]) -> list[Numbered]:
        """The rows that a step leaves, as it leaves them."""
        with self._reports.timed(name, len(rows)) as report:
            found = [self._reviewed(*pair) for pair in zip(rows, step([one.row for one in rows]), strict=True)]
        left = []
        for one, finding in zip(rows, found, strict=True):
            if finding is not None:
                report[finding.outcome] += 1
                self._note(one, finding)
            if finding is None or finding.outcome == "kept":
                left.append(one._replace(row=finding.row) if finding and finding.row else one)
        return left

    def _reviewed(self, one: Numbered, finding: Finding | None) -> Finding | None:
        """A finding; of a row that a person took out of quarantine, that it is kept as it is."""
        if (
            finding
            and finding.outcome == "quarantined"
            and self._restored
            and identity(one.row).hex() in self._restored
        ):
            return Finding("kept", "restored", finding.detail, one.row)
        return finding

    def _note(self, one: Numbered, finding: Finding) -> None:
        """Note what a step found in a row."""
        number, row, group = one
        shown = finding.row or row
        verdict = Verdict(finding.outcome, finding.reason)
        self._lineage.note(number, verdict, finding.detail, text=lambda: canonical(shown))
        if finding.outcome == "quarantined":
            self._apart.add(number, canonical(row), group)
        elif finding.row and finding.outcome == "kept":
            self._lineage.identify(number, identity(finding.row))

    def dropped(self) -> dict[str, int]:
        """How many rows were dropped so far, by reason."""
        counts = self._lineage.counts().items()
        return {str(reason): count for (outcome, reason), count in sorted(counts, key=str) if outcome == "dropped"}

    def commit(self, store: Store, record: dict[str, Any]) -> Curated:
        """Commit the rows that are left, the quarantined ones and the lineage."""
        kept = self._distinct(self._kept)
        for name, step in set_steps(self._spec).items():
            kept = self._compare(name, step, kept)
        kept = self._shared(kept)
        apart, judged = self._distinct(self._apart).rows, self._preferences()
        times, ranks = kept.least.get("time"), kept.least.get("place")
        ref = commit(kept.rows, store, record, identified=True, times=times, ranks=ranks)
        quarantined = commit(apart, store, {**record, "side": "quarantined"}) if len(apart) else None
        lineage = self._lineage.commit(store, {**record, "rows": ref.digest})
        return Curated(
            rows=ref,
            read=len(self._lineage),
            dropped=self.dropped(),
            quarantined=quarantined,
            preferences=commit(judged, store, {**record, "side": "preferences"}) if len(judged) else None,
            lineage=lineage,
            steps=self._reports.all(),
            first=sampled_places(lineage, store),
        )

    def _preferences(self) -> RowIndex:
        """The preferences that are left."""
        every = self._distinct(self._judged)
        for name, step in preference_steps(self._spec).items():
            every = self._compare(name, step, every)
        return every.rows

    def _distinct(self, spool: Spool) -> Distinct:
        """The distinct rows; notes the duplicates."""
        every, numbers = spool.index(self._lineage.identities), spool.numbers()
        chosen = distinct(every)
        repeated = np.ones(len(every), np.bool_)
        repeated[chosen] = False
        for row in np.flatnonzero(repeated).tolist():
            self._lineage.note(int(numbers[row]), DUPLICATE, text=partial(text_of, every, row))
        kept, latest = every.take(chosen), numbers[chosen]
        twins = np.searchsorted(kept.keys, every.take(repeated).keys)
        np.maximum.at(latest, twins, numbers[repeated])
        least: dict[str, Positions] = {}
        for name, values in self._values.items():
            every_value = np.array(values, np.int64)
            least[name] = every_value[numbers[chosen]]
            np.minimum.at(least[name], twins, every_value[numbers[repeated]])
        return Distinct(kept, numbers[chosen], latest, least)

    def _shared(self, every: Distinct) -> Distinct:
        """The rows that the shares of their sources leave, each with its repeats."""
        if not self._spec.sources:
            return every
        with self._reports.timed("sources", len(every.rows)) as report:
            over, times = shared(every.rows, every.least["source"], self._spec.sources)
            out = over | (times == 0)
            for row in np.flatnonzero(out).tolist():
                verdict = Verdict("dropped", OVER if over[row] else NOT_SAMPLED)
                self._lineage.note(int(every.numbers[row]), verdict, text=partial(text_of, every.rows, row))
            report["dropped"], report["kept"] = int(out.sum()), int((~out & (times > 1)).sum())
            left = every.take(~out)
            left.rows.entries["repeats"] = times[~out] - 1
        return left

    def _compare(self, name: str, step: SetStep, every: Distinct) -> Distinct:
        """The rows that a step leaves."""
        rows, left = every.rows, np.ones(len(every.rows), np.bool_)
        scratch = self._scratch / name
        scratch.mkdir()
        with self._reports.timed(name, len(rows)) as report:
            for row, outcome, reason, detail in step(rows, every.latest, scratch):
                report[outcome] += 1
                left[row] = outcome == "kept"
                text = partial(text_of, rows, row)
                self._lineage.note(int(every.numbers[row]), Verdict(outcome, reason), detail, text=text)
        shutil.rmtree(scratch)
        return every.take(left)


def text_of(rows: RowIndex, row: int) -> str:
    """The line of one row."""
    return next(rows.take(slice(row, row + 1)).lines()).decode()
