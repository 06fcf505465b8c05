"""Restores lines from MLflow to a store that lacks them. What MLflow has is checked before any of it is written."""

import logging
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import Field, Json, TypeAdapter, ValidationError

from backprop_core.errors import ArtifactDamaged, MLflowUnreachable
from backprop_core.lines.deletion import DeletedLine
from backprop_core.lines.renaming import noted
from backprop_core.lines.versions import Lines, LineVersion, Move, why_not_live
from backprop_core.lines.votes import Vote
from backprop_core.runtime.settings import Settings, settings
from backprop_core.schema.field_types import LineName
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.layout import LINE_RECORD

log = logging.getLogger(__name__)


def restore_line(line: str, store: Store) -> bool:
    """Restore the versions of a line that the store lacks; whether MLflow has them.

    A line that was deleted or renamed here is not restored. Raises ArtifactDamaged; an outage of MLflow is logged.
    """
    from tasks.tracking.recorded import recorded_line

    if store.root != settings().store_path or Lines(store).versions(line) or line in left_behind(store):
        return False
    try:
        found = recorded_line(settings(), line)
    except MLflowUnreachable as error:
        log.warning("whether MLflow has line %s is not known: %s", line, error.message)
        return False
    if not found:
        return False
    write_line(line, found.files, store, registered=found.registered)
    log.warning("line %s was restored from MLflow", line)
    return True


def look_for_line(line: str, config: Settings) -> None:
    """Restore a line that the store lacks, to show it. Raises what `restore_line` raises."""
    restore_line(line, Store(config.store_path))


def write_line(
    line: str, files: Mapping[str, str], store: Store, *, registered: Mapping[int, tuple[str, str]] | None = None
) -> None:
    """Write the directory of a line, its versions last. Raises ArtifactDamaged, with the file, for what is no line.

    `registered` has the run_id and the merged adapter of each version that MLflow's registered model has.
    """
    check(line, files, registered or {})
    place = store.layout.line(line).root
    for name in sorted(files, key=lambda name: name.startswith("versions/")):
        write_atomic(place / name, files[name])


def check(line: str, files: Mapping[str, str], registered: Mapping[int, tuple[str, str]]) -> None:
    """Raise ArtifactDamaged unless each file is a record of a line, and they fit each other and the registry."""
    records = {name: parsed(line, name, text) for name, text in files.items()}
    versions = {int(PurePosixPath(name).stem): one for name, one in records.items() if isinstance(one, LineVersion)}
    if not versions:
        raise unfit(line, "versions", "there is none")
    for name, record in records.items():
        if not belongs(name, record, versions):
            raise unfit(line, name, "it does not fit its name, or the versions of the line")
    for number, known in registered.items():
        if number in versions and known != (versions[number].run_id, versions[number].merged.digest):
            raise unfit(line, f"version {number}", "the registered model names another run, or another adapter")
    moves = [one for one in records.values() if isinstance(one, Move)]
    if (live := records.get("champion")) and versions[live].gate and (why := why_not_live(live, versions[live], moves)):
        raise unfit(line, "champion", f"version {live} {why}")


@cache
def forms() -> Mapping[str, TypeAdapter[Any]]:
    """What the files of a line are, by the first part of their names."""
    from backprop_core.publishing.release_transaction import Release

    return {
        "versions": TypeAdapter(Json[LineVersion]),
        "moves": TypeAdapter(Json[Move]),
        "votes": TypeAdapter(Json[Vote]),
        "releases": TypeAdapter(Json[Release]),
        "champion": TypeAdapter(Annotated[int, Field(ge=1)]),
        "first-name": TypeAdapter(LineName),
    }


def parsed(line: str, name: str, text: str) -> Any:
    """A record of a line. Raises ArtifactDamaged for one that is not in the form of its kind."""
    if LINE_RECORD.fullmatch(name) is None:
        raise unfit(line, name[:100], "it is no record of a line")
    try:
        return forms()[name.partition("/")[0]].validate_python(text)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise unfit(line, name, f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ")) from error


def belongs(name: str, record: Any, versions: Mapping[int, LineVersion]) -> bool:
    """Whether a record stands under its own name, and the version that it is about is there."""
    path = PurePosixPath(name)
    match record:
        case LineVersion():
            return record.parent is None or (record.parent in versions and record.parent < int(path.stem))
        case Move():
            return path.stem == record.run_id and record.number in versions
        case Vote():
            return path.parent.name == record.run_id
        case int():
            return record in versions
        case str():
            return True
    return bool(int(path.stem) == record.number and record.number in versions)  # a release


def unfit(line: str, name: str, why: str) -> ArtifactDamaged:
    return ArtifactDamaged(
        f"MLflow's line.json of line {line}: {name}: {why}",
        hint="nothing was written: restore line.json there from a backup, or start another line",
    )


def left_behind(store: Store) -> Iterator[str]:
    """Lines that this store had under these names: deleted, or renamed."""
    for gone in store.layout.deletions():
        yield DeletedLine.model_validate_json(gone.tombstone.read_bytes()).line
    for renamed, _ in noted(store.layout):
        yield renamed.line
