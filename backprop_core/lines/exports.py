"""The files that lines were written into. They lie outside the store, so forgetting a row can only name them."""

import platform
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from backprop_core.schema.records import Record
from backprop_core.schema.refs import Digest
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import digest_of


class Export(Record):
    """A file that a line was written into."""

    format: Literal[1] = 1
    line: str
    path: str
    host: str
    at: datetime
    artifacts: list[Digest]


def note(line: str, file: Path, artifacts: Collection[str], store: Store) -> None:
    """Note what is in a file, in place of what was written there before."""
    path, host = str(file.absolute()), platform.node()
    made = Export(line=line, path=path, host=host, at=datetime.now(UTC), artifacts=sorted(artifacts))
    write(made, store)


def write(export: Export, store: Store) -> None:
    write_atomic(store.layout.line_export(digest_of([export.host, export.path])), export.model_dump_json())


def having(artifacts: Collection[str], store: Store) -> list[Export]:
    """The files with one of these artifacts, by path."""
    every = (Export.model_validate_json(path.read_bytes()) for path in store.layout.line_exports.glob("*.json"))
    found = (one for one in every if not set(artifacts).isdisjoint(one.artifacts))
    return sorted(found, key=lambda one: (one.path, one.host))


def keep_track(successors: Mapping[str, str], store: Store) -> None:
    """Note that files with a removed artifact have the rows of its successor too: another one may be forgotten."""
    for one in having(successors.keys(), store):
        more = {successor for digest, successor in successors.items() if digest in one.artifacts}
        write(one.model_copy(update={"artifacts": sorted({*one.artifacts, *more})}), store)
