"""Records what happens to each row of a source, and writes it as `lineage.parquet`. See LineageRef.

In memory are 48 bytes a row; details are in a file. Rows are numbered from 0 in the order of the source.
"""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from backprop_core.data.file_readers import Place
from backprop_core.data.row_index import SIZE
from backprop_core.data.row_places import Places
from backprop_core.runtime.redaction import blank_secrets
from backprop_core.schema.refs import LineageRef
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical

LINEAGE = "lineage.parquet"
SAMPLES = "samples.jsonl"
SAMPLED = 5  # rows shown of each reason
SHOWN = 400  # characters of a sampled row
GROUP = 2**13  # rows written together
NO_DETAIL = -1
KEPT = 0  # number of the verdict of rows that nothing was noted of
UNKNOWN = bytes(SIZE)  # identity of a row that is none
Outcome = Literal["kept", "dropped", "quarantined"]


class Verdict(NamedTuple):
    """What became of a row, and why."""

    outcome: Outcome
    reason: str | None = None


class Change(NamedTuple):
    """Another outcome of a row, the detail, and what may be shown of the row."""

    verdict: Verdict
    detail: str
    text: Callable[[], str]


class Lineage:
    """The outcome of each row read so far. A row is kept unless something else is noted."""

    def __init__(self, scratch: Path, files: ExitStack) -> None:
        self._places, self._verdicts, self._details = Places(), array("I"), array("q")
        self._identities = bytearray()
        self._known: dict[Verdict, int] = {Verdict("kept"): KEPT}
        self._noted = [Verdict("kept")]  # the same by number
        self._samples: dict[str, list[dict[str, Any]]] = {}
        self._texts = files.enter_context((scratch / "details").open("w+b"))

    def __len__(self) -> int:
        return len(self._places)

    @property
    def identities(self) -> NDArray[np.uint8]:
        """(rows, 32): the rows' identities; zeros for what is no row. Holds the buffer: use it, then let it go."""
        return np.frombuffer(self._identities, np.uint8).reshape(-1, SIZE)

    def add(self, place: Place) -> int:
        """Add the next row of the source, and return its number."""
        self._verdicts.append(KEPT)
        self._details.append(NO_DETAIL)
        self._identities += UNKNOWN
        return self._places.add(place)

    def identify(self, row: int, identity: bytes) -> None:
        """Note a row's identity."""
        self._identities[row * SIZE : (row + 1) * SIZE] = identity

    def note(self, row: int, verdict: Verdict, detail: str = "", text: Callable[[], str] | None = None) -> None:
        """Note a row's outcome; `text` is shown if it is among the first of its reason.

        A kept row may be noted for several reasons, which are joined.
        """
        before = self._noted[self._verdicts[row]]
        if verdict.outcome == "kept" and before.reason:
            joined = Verdict("kept", f"{before.reason}, {verdict.reason}")
            self._set(row, joined, "; ".join(filter(None, [self._detail(row), detail])))
        else:
            self._set(row, verdict, detail)
        samples = self._samples.setdefault(verdict.reason or verdict.outcome, [])
        if len(samples) < SAMPLED:
            place, shown = self._places[row]._asdict(), text and blank_secrets(text())[:SHOWN]
            samples.append({**place, "detail": detail, "text": shown})

    def _set(self, row: int, verdict: Verdict, detail: str) -> None:
        if verdict not in self._known:
            self._known[verdict] = len(self._known)
            self._noted.append(verdict)
        self._verdicts[row] = self._known[verdict]
        self._details[row] = self._texts.seek(0, 2) if detail else NO_DETAIL
        if detail:
            self._texts.write(json.dumps(detail).encode() + b"\n")

    def counts(self) -> dict[Verdict, int]:
        """How many rows have each outcome."""
        found = Counter(self._verdicts)
        return {verdict: found[number] for verdict, number in self._known.items() if found[number]}

    def commit(self, store: Store, record: dict[str, Any]) -> LineageRef:
        """Commit the outcomes as an artifact."""
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]

        names = [(name, pyarrow.string()) for name in ("row", "file", "unit")]
        names += [("number", pyarrow.int64())]
        schema = pyarrow.schema([*names, *((name, pyarrow.string()) for name in ("outcome", "reason", "detail"))])
        with store.begin("lineage") as directory:
            with pyarrow.parquet.ParquetWriter(directory / LINEAGE, schema, compression="zstd") as writer:
                for start in range(0, len(self), GROUP):
                    rows = list(self._rows(start, min(start + GROUP, len(self))))
                    columns = [list(column) for column in zip(*rows, strict=True)]
                    arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
                    writer.write_batch(pyarrow.record_batch(arrays, schema=schema))
            lines = [{"reason": reason, **one} for reason, some in self._samples.items() for one in some]
            text = "".join(canonical(line) + "\n" for line in lines)
            (directory / SAMPLES).write_text(text, encoding="utf-8", newline="\n")
            return store.commit(directory, LineageRef, record=record, rows=len(self))

    def _rows(self, start: int, end: int) -> Iterator[tuple[Any, ...]]:
        """Rows of the table, some of them."""
        for row in range(start, end):
            identity = bytes(self._identities[row * SIZE : (row + 1) * SIZE])
            outcome, reason = self._noted[self._verdicts[row]]
            name = None if identity == UNKNOWN else identity.hex()
            yield name, *self._places[row], outcome, reason, self._detail(row)

    def _detail(self, row: int) -> str | None:
        at = self._details[row]
        if at == NO_DETAIL:
            return None
        self._texts.seek(at)
        text: str = json.loads(self._texts.readline())
        return text


def sampled_places(ref: LineageRef, store: Store) -> dict[str, list[str]]:
    """Where the first rows of each reason stand."""
    found: dict[str, list[str]] = {}
    for line in (store.local(ref) / SAMPLES).read_bytes().splitlines():
        one = json.loads(line)
        found.setdefault(one["reason"], []).append(str(Place(*place_of(one))))
    return found


def amended(ref: LineageRef, changes: Mapping[str, Change], more: dict[str, Any], store: Store) -> LineageRef:
    """A lineage in which some of the kept rows, by their identities as hex digits, have another outcome.

    `more` is added to its record.
    """
    import pyarrow
    import pyarrow.parquet

    old = store.local(ref)
    samples: dict[str, list[dict[str, Any]]] = {}
    with store.begin("lineage") as directory:
        source = pyarrow.parquet.ParquetFile(old / LINEAGE)
        with pyarrow.parquet.ParquetWriter(directory / LINEAGE, source.schema_arrow, compression="zstd") as writer:
            for batch in source.iter_batches(GROUP):
                rows = [changed(row, changes, samples) for row in batch.to_pylist()]
                writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=source.schema_arrow))
        lines = [canonical({"reason": reason, **one}) + "\n" for reason, some in samples.items() for one in some]
        text = (old / SAMPLES).read_text(encoding="utf-8") + "".join(lines)
        (directory / SAMPLES).write_text(text, encoding="utf-8", newline="\n")
        return store.commit(directory, LineageRef, record={**store.record(ref.digest), **more}, rows=ref.rows)


def changed(
    row: dict[str, Any], changes: Mapping[str, Change], samples: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """A line of the table, changed if it is that of a kept row in `changes`; the first of each reason are sampled."""
    change = changes.get(row["row"])
    if change is None or row["outcome"] != "kept":
        return row
    (outcome, reason), detail, text = change
    some = samples.setdefault(str(reason), [])
    if len(some) < SAMPLED:
        place = {name: row[name] for name in ("file", "unit", "number")}
        some.append({**place, "detail": detail, "text": blank_secrets(text())[:SHOWN]})
    return {**row, "outcome": outcome, "reason": reason, "detail": detail}


def remaining(digest: str, is_gone: Callable[[dict[str, Any]], bool], store: Store) -> LineageRef:
    """A lineage without some lines of its table, and without the samples of these lines and those that `is_gone`."""
    import pyarrow
    import pyarrow.parquet

    old, count, places = store.layout.artifact(digest), 0, set[tuple[Any, ...]]()
    with store.begin("lineage") as directory:
        source = pyarrow.parquet.ParquetFile(old / LINEAGE)
        with pyarrow.parquet.ParquetWriter(directory / LINEAGE, source.schema_arrow, compression="zstd") as writer:
            for batch in source.iter_batches(GROUP):
                rows = batch.to_pylist()
                gone = [is_gone(row) for row in rows]
                places |= {place_of(row) for row, it_is in zip(rows, gone, strict=True) if it_is}
                left = [row for row, it_is in zip(rows, gone, strict=True) if not it_is]
                writer.write_batch(pyarrow.RecordBatch.from_pylist(left, schema=source.schema_arrow))
                count += len(left)
        lines = (old / SAMPLES).read_text(encoding="utf-8").splitlines(keepends=True)
        shown = [line for line in lines if place_of(one := json.loads(line)) not in places and not is_gone(one)]
        (directory / SAMPLES).write_text("".join(shown), encoding="utf-8", newline="\n")
        return store.commit(directory, LineageRef, record=store.record(digest), rows=count)


def place_of(line: dict[str, Any]) -> tuple[Any, ...]:
    """Where a row of the table, or a sample, is from."""
    return line["file"], line["unit"], line["number"]
