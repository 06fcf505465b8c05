"""Finds rows in all datasets of a store, by the start of their identity or by text in them."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import Field

from backprop_core.data.row_files import ROWS, index
from backprop_core.data.row_lineage import LINEAGE
from backprop_core.schema.records import Record
from backprop_core.schema.refs import LineageRef, RowsRef
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical

PREFIX = re.compile(r"[0-9a-f]{6,64}")
SHOWN = 160  # characters of a found row


class Hit(NamedTuple):
    """A row in a dataset: its identity, the dataset's digest, and how the row begins or what surrounds the text."""

    row: str
    digest: str
    text: str


class TracedFile(Record):
    """A file of rows that a dataset was made of, and what became of the row in it."""

    source: str = Field(description="Digest of the source.")
    path: str | None = Field(description="Where the source was, if a run has read it.")
    place: str = Field(description="The file in a directory, and the line or row from 1.")
    outcome: str = Field(description="kept, dropped or quarantined.")
    reason: str | None


def search(asked: str, store: Store) -> list[Hit]:
    """Every row of every dataset whose identity starts with `asked`; if there is none, every row with that text."""
    if PREFIX.fullmatch(asked) and (found := list(by_identity(asked, store))):
        return found
    return list(by_text(asked, store)) if asked.strip() else []


def datasets(store: Store) -> Iterator[RowsRef]:
    """The sets of rows of a store, in the order of their digests."""
    store.bring_all()
    return here(store)


def sets(store: Store) -> Iterator[RowsRef]:
    """The same; of a bucket nothing else is copied here."""
    store.bring_kind(RowsRef.artifact)
    return here(store)


def here(store: Store) -> Iterator[RowsRef]:
    """The sets of rows that are on this machine, in the order of their digests."""
    for manifest in sorted(store.layout.manifests()):
        if json.loads(manifest.read_bytes())["kind"] == RowsRef.artifact:
            yield RowsRef(digest=manifest.parent.name, rows=0)


def by_identity(prefix: str, store: Store) -> Iterator[Hit]:
    """Rows by the start of their identity."""
    for ref in datasets(store):
        rows = index(ref, store)
        for place, identity in enumerate(rows.identities()):
            if identity.hex().startswith(prefix):
                line = next(rows.take(slice(place, place + 1)).lines())
                yield Hit(identity.hex(), ref.digest, excerpt(json.loads(line), ""))


def by_text(text: str, store: Store) -> Iterator[Hit]:
    """Rows with this text, spelt like this."""
    written = canonical(text)[1:-1].encode(errors="replace")  # as it stands in a JSON line
    for ref in datasets(store):
        if written not in (store.local(ref) / ROWS).read_bytes():
            continue
        rows = index(ref, store)
        for identity, line in zip(rows.identities(), rows.lines(), strict=True):
            row = json.loads(line) if written in line else None
            if any(text in part for part in strings(row)):
                yield Hit(identity.hex(), ref.digest, excerpt(row, text))


def strings(value: Any) -> Iterator[str]:
    """All text in a row, at any depth, without the roles of its turns."""
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from strings(item)
        case dict():
            for name, item in value.items():
                if name != "role":
                    yield from strings(item)


def excerpt(row: Any, text: str) -> str:
    """What surrounds a text in a row; without a text, how the row begins."""
    part = next((part for part in strings(row) if text in part), "")
    begin = max(0, part.find(text) - SHOWN // 3)
    return ("…" if begin else "") + part[begin : begin + SHOWN] + ("…" if len(part) > begin + SHOWN else "")


def files_of(rows: set[str], paths: dict[str, str], store: Store) -> dict[str, list[TracedFile]]:
    """Where rows stand in the files that datasets were made of, by the rows' identities.

    `paths` are those of sources, by digest.
    """
    import pyarrow.parquet  # type: ignore[import-untyped]

    found: dict[str, dict[TracedFile, None]] = {row: {} for row in rows}
    for manifest in sorted(store.layout.manifests()):
        if json.loads(manifest.read_bytes())["kind"] != LineageRef.artifact:
            continue
        digest = manifest.parent.name
        record = store.layout.record(digest)
        source = json.loads(record.read_bytes()).get("source", "") if record.is_file() else ""
        filters = [("row", "in", sorted(rows))]
        for one in pyarrow.parquet.read_table(manifest.parent / LINEAGE, filters=filters).to_pylist():
            where = f"{one['unit']} {one['number']}"
            place = f"{one['file']}, {where}" if one["file"] else where
            path, outcome, reason = paths.get(source), one["outcome"], one["reason"]
            found[one["row"]][TracedFile(source=source, path=path, place=place, outcome=outcome, reason=reason)] = None
    return {row: list(some) for row, some in found.items()}
