"""The rows that a store has forgotten, by identity, and which of them a source has. Curation drops them.

The list has hashes and no text. Only the forgotten rows of a source are part of what is read from it, so of its cache
keys: a source without any has the keys that it had before. A row counts with and without its personal data redacted,
and in any kind: as an answer to learn, and as one of a preference.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from pydantic import Field

from backprop_core.data.loading import chat_rows
from backprop_core.data.parsed_items import Malformed
from backprop_core.data.preference_rows import conversations
from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_identity import identity
from backprop_core.data.steps.personal_data import clean
from backprop_core.data.template_refusals import Refusals
from backprop_core.schema.records import Record
from backprop_core.schema.refs import ChatTemplate, Digest, SourceRef
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import canonical, digest_of, part

VERSION = 2  # of the notes on which forgotten rows a source has


class ForgottenRow(Record):
    """A row that is not read any more."""

    row: Digest
    versions: list[str] = Field(description="LINE@NUMBER of versions that have learned it or were scored on it.")

    def renamed(self, line: str, to: str) -> "ForgottenRow":
        """The same, for a line that has another name."""
        named = [f"{to}{each.removeprefix(line)}" if each.startswith(f"{line}@") else each for each in self.versions]
        return self.model_copy(update={"versions": sorted(named)})


def forgotten(store: Store) -> dict[str, ForgottenRow]:
    """All rows that were forgotten, by identity."""
    path = store.layout.forgotten
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [ForgottenRow.model_validate_json(line) for line in lines]
    return {one.row: one for one in rows}


def forget(rows: Collection[str], versions: Collection[str], store: Store) -> None:
    """Add rows to the list, and note which versions have seen them."""
    known = forgotten(store)
    for row in rows:
        before = known[row].versions if row in known else []
        known[row] = ForgottenRow(row=row, versions=sorted({*before, *versions}))
    write(known.values(), store)


def write(rows: Iterable[ForgottenRow], store: Store) -> None:
    """Write the list, in the order of the identities."""
    lines = (canonical(one.model_dump()) + "\n" for one in sorted(rows, key=lambda one: one.row))
    write_atomic(store.layout.forgotten, "".join(lines))


def names(row: ChatRow) -> set[str]:
    """The identities of a row and of the conversations in it, and those that they have once they are redacted."""
    return own_names(row).union(*map(own_names, conversations(row)))


def own_names(row: ChatRow) -> set[str]:
    """A row's identity, and the one that it has once it is redacted."""
    return {identity(row).hex(), identity(clean(row)).hex()}


def marked(source: SourceRef, spec: DatasetSpec, store: Store, template: ChatTemplate | None = None) -> SourceRef:
    """The source with the forgotten rows that it has. What cannot be read is for curation to report."""
    known = forgotten(store)
    if not known:
        return source
    return source.model_copy(update={"forgotten": names_in("forgotten", source, spec, known, store, template)})


def names_in(
    kind: str,
    source: SourceRef,
    spec: DatasetSpec,
    known: Collection[str],
    store: Store,
    template: ChatTemplate | None,
    named: Callable[[ChatRow], set[str]] = names,
) -> list[str]:
    """Which of some rows a source has, by the identities that `named` says; noted in the store as `kind`."""
    how: list[Any] = [spec.format, spec.columns, spec.tools, template and template.model_dump()]
    note = store.layout.note(kind, digest_of([VERSION, part(source), how, sorted(known)]))
    if not note.is_file():
        found = sorted({name for row in readable(source, spec, template) for name in named(row) & set(known)})
        write_atomic(note, canonical(found))
    found_before: list[str] = json.loads(note.read_bytes())
    return found_before


def readable(source: SourceRef, spec: DatasetSpec, template: ChatTemplate | None) -> Iterator[ChatRow]:
    """The chat rows of a source, as curation sees them."""
    refusals = Refusals(template, tools_as_text=spec.tools == "as_text") if template else None
    return (row for _, row, *_ in chat_rows(source, spec, refusals=refusals) if not isinstance(row, Malformed))
