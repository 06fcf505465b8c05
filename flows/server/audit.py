"""The audit log: every action at the pages, by whom, when, on what, from where, and what came of it.

What signed-in people do, and what was refused to strangers, are two files: no stranger can push an action out.
"""

import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from backprop_core.errors import PlaceUnusable
from backprop_core.runtime.redaction import blank_secrets
from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from flows.server import private_files

log = logging.getLogger(__name__)
LARGEST = 4 * 2**20  # bytes of a file
OLDER = {"audit": 24, "refused": 2}  # files that are kept beside the newest: 100 MiB and 12 MiB
LONGEST = 300  # characters of a value
How = Literal["session", "password", "token", "terminal", "open"]  # open: `serve` asks for no password


class Entry(Record):
    """One action, or one refusal."""

    at: datetime
    who: str | None = Field(description="Null for a stranger, and where `serve` asks for no password.")
    how: How | None = Field(description="What showed who it was; null for a stranger.")
    address: str = Field(description="Where the request came from.")
    what: str = Field(description="The action, or the method of a request that got no further.")
    target: str = Field(description="The path of the request, or the user who was changed.")
    given: dict[str, str] = Field({}, description="What was filled in, without passwords, tokens and secrets.")
    status: int = Field(description="HTTP status; below 400 it was done.")
    code: str | None = Field(None, description="Code of the error.")


def shown(given: Mapping[str, str]) -> dict[str, str]:
    """What was filled in, as it is kept: blanked first, then cut."""
    return {name[:LONGEST]: blank_secrets(value)[:LONGEST] for name, value in given.items()}


def append(entry: Entry, config: Settings) -> None:
    """Append an entry, durably. Raises OSError."""
    layout = config.layout
    kind, place = ("audit", layout.audit) if entry.how else ("refused", layout.refused)
    private_files.append(place, layout.audit_lock, entry.model_dump_json(), largest=LARGEST, older=OLDER[kind])


def check_writable(config: Settings) -> None:
    """Raise PlaceUnusable if no entry could be written: then there is no action."""
    try:
        with open(config.layout.audit, "a", opener=private_files.opened):
            pass
    except OSError as error:
        raise PlaceUnusable(
            f"the audit log {config.layout.audit} cannot be written: {error.strerror}",
            hint="make it writable; until then no user is changed, and nothing is done from the pages",
        ) from error


def entries(config: Settings, most: int) -> list[Entry]:
    """The newest entries of both files, the newest first."""
    found = [entry for place in (config.layout.audit, config.layout.refused) for entry in newest(place, most)]
    return sorted(found, key=lambda entry: entry.at, reverse=True)[:most]


def newest(place: Path, most: int) -> list[Entry]:
    """The newest entries of one file and the older ones beside it."""
    found: list[Entry] = []
    for path in [place, *(place.with_name(f"{place.name}.{number}") for number in range(1, max(OLDER.values()) + 1))]:
        if len(found) >= most or not path.is_file():
            break
        found += list(parsed(path.read_bytes().splitlines()[: -most - 1 : -1]))
    return found[:most]


def parsed(lines: list[bytes]) -> Iterator[Entry]:
    """The entries of lines; one that a crash has cut is none."""
    for line in lines:
        try:
            yield Entry.model_validate_json(line)
        except ValidationError:
            log.warning("a line of the audit log is damaged")
