"""Which journals a tracker still lacks, and how much of each it has.

A run is noted for the trackers that are set when it starts, so nothing is sent of runs that began without one.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from backprop_core.runtime.settings import Settings, names_in
from backprop_core.schema.records import Record
from backprop_core.store.artifacts import write_atomic
from backprop_core.store.layout import JournalLayout, TrackerLayout

OTLP = "otlp"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")


class Note(Record):
    """How much of a journal a tracker has."""

    format: int = 1
    offset: int = 0
    state: dict[str, Any] = Field(default_factory=dict, description="What the tracker needs to go on from there.")


def wanted(settings: Settings) -> list[str]:
    """The trackers that the settings name, and OpenTelemetry if its own variables name an endpoint."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    is_set = not off and any(os.environ.get(name) for name in ENDPOINTS)
    return [*names_in(settings.report_to), *([OTLP] if is_set else [])]


def watch(settings: Settings, run_id: str) -> None:
    """Note that the trackers are to get this run."""
    for name in wanted(settings):
        place = settings.layout.journal.tracker(name)
        if not place.note(run_id).exists() and not bring_back(place, run_id):
            save(place, run_id, Note())


def bring_back(place: TrackerLayout, run_id: str) -> bool:
    """Go on with a journal that the tracker had to the end; False if it did not."""
    with suppress(FileNotFoundError):
        place.sent.note(run_id).replace(place.note(run_id))
        return True
    return False


def load(place: TrackerLayout, run_id: str) -> Note:
    """The note; if it is missing or unreadable, one that says that nothing was sent."""
    try:
        return Note.model_validate_json(place.note(run_id).read_bytes())
    except (FileNotFoundError, ValidationError):
        return Note()


def save(place: TrackerLayout, run_id: str, note: Note) -> None:
    place.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(place.note(run_id), note.model_dump_json())


def done(place: TrackerLayout, run_id: str) -> None:
    """The tracker has all of a journal."""
    place.sent.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    place.note(run_id).replace(place.sent.note(run_id))


def journal_of(journals: JournalLayout, run_id: str) -> Path | None:
    """Where a journal lies now: MLflow may have it to the end."""
    places = (journals.lines(run_id), journals.sent.lines(run_id))
    return next((path for path in places if path.is_file()), None)


def waiting(settings: Settings) -> Iterator[tuple[str, str]]:
    """Each tracker with the runs of which it still lacks something."""
    for name in wanted(settings):
        yield from ((name, run_id) for run_id in settings.layout.journal.tracker(name).waiting())
