"""The quarantined rows of a store, and those that a person has put back: curation keeps these.

The list of restored rows has identities and no text. Only those of a source are part of what is read from it, and so of
its cache keys, as with forgotten rows.
"""

import json
from collections.abc import Collection, Iterator
from typing import Any

from pydantic import Field

from backprop_core.data import forgotten_rows
from backprop_core.data.forgotten_rows import forgotten, names_in, own_names
from backprop_core.data.row_files import index
from backprop_core.data.row_search import TracedFile, datasets, files_of
from backprop_core.data.sources import in_order
from backprop_core.schema.records import Record
from backprop_core.schema.refs import ChatTemplate, SourceRef
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import Store, write_atomic


class QuarantinedRow(Record):
    """A row that a person may look at, and put back."""

    row: str = Field(description="Its identity, 64 hex digits.")
    content: dict[str, Any] = Field(description="The row itself.")
    files: list[TracedFile] = Field(description="Where it stands.")


def restored(store: Store) -> set[str]:
    """The identities of all rows that were put back."""
    path = store.layout.restored
    return set(path.read_text(encoding="utf-8").split()) if path.is_file() else set()


def restore(rows: Collection[str], store: Store) -> None:
    """Add rows to the list."""
    write_atomic(store.layout.restored, "".join(f"{row}\n" for row in sorted({*restored(store), *rows})))


def marked(source: SourceRef, spec: DatasetSpec, store: Store, template: ChatTemplate | None = None) -> SourceRef:
    """The source with the restored rows that it has, if its spec sets rows apart."""
    known = restored(store)
    if not known or spec.curation.personal_data != "quarantine":
        return source
    return source.model_copy(update={"restored": names_in("restored", source, spec, known, store, template, own_names)})


def decided(source: SourceRef, spec: DatasetSpec, store: Store, template: ChatTemplate | None = None) -> SourceRef:
    """The source with all that a person has decided of rows in it: which are forgotten, and which are restored."""
    return marked(forgotten_rows.marked(source, spec, store, template), spec, store, template)


def quarantined(store: Store) -> dict[str, dict[str, Any]]:
    """Identity -> row, of all rows that were set apart by curation and not forgotten, also of restored ones."""
    gone = forgotten(store)
    return {row: content for row, content in set_apart(store) if row not in gone}


def set_apart(store: Store) -> Iterator[tuple[str, dict[str, Any]]]:
    """Identity and content of the rows that the curations of a store have set apart."""
    for ref in datasets(store):
        if store.record(ref.digest).get("side") == "quarantined":
            rows = index(ref, store)
            for identity, line in zip(rows.identities(), rows.lines(), strict=True):
                yield identity.hex(), json.loads(line)


def listed(rows: dict[str, dict[str, Any]], paths: dict[str, str], store: Store) -> list[QuarantinedRow]:
    """The rows with their places, in the order of the files; `paths` are those of sources, by digest."""
    files = files_of(set(rows), paths, store) if rows else {}
    made = [QuarantinedRow(row=row, content=content, files=files[row]) for row, content in rows.items()]
    return sorted(made, key=lambda one: ([(file.path or "", in_order(file.place)) for file in one.files], one.row))
