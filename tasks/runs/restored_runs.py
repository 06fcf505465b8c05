"""Restores runs and lines from MLflow to a store that lacks them: its disk was lost, or it is on another machine.

A run gets its spec, its result, its cache records, the newest checkpoints and, until it has ended, the files that it
reads. Artifacts follow one by one, when they are needed: see `bring_artifacts`.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from backprop_core.errors import ArtifactDamaged, MLflowUnreachable, RunUnknown
from backprop_core.lines.deletion import DeletedLine
from backprop_core.lines.renaming import noted
from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import Settings, settings
from backprop_core.schema.refs import SourceRef
from backprop_core.store.artifacts import Store, write_atomic

if TYPE_CHECKING:
    from tasks.tracking.recorded import RecordedRun

log = logging.getLogger(__name__)


def bring_artifacts() -> None:
    """From now on, artifacts that the store lacks are looked up in MLflow."""
    from tasks.tracking.recorded import Fetcher

    config = settings()
    if not (isinstance(Store.elsewhere, Fetcher) and Store.elsewhere.settings == config):
        Store.elsewhere = staticmethod(Fetcher(config))


def restore_run(prefix: str, store: Store) -> str | None:
    """Restore the run whose run_id starts so; returns its run_id, or None if MLflow has none.

    Raises RefAmbiguous, ArtifactDamaged; an outage of MLflow is logged.
    """
    from tasks.tracking.recorded import recorded_run

    if store.root != settings().store_path:
        return None
    try:
        recorded = recorded_run(settings(), prefix)
        inputs = recorded.document("inputs.json")
        if inputs is None:
            return None
        write_run(recorded, inputs, store)
    except MLflowUnreachable as error:
        log.warning("whether MLflow has run %s is not known: %s", prefix, error.message)
        return None
    except RunUnknown:
        return None
    except ValidationError as error:
        raise ArtifactDamaged(
            f"MLflow's record of run {prefix} cannot be read: {error.errors()[0]['msg']}",
            hint="restore it there from a backup, or start the run again",
        ) from error
    log.warning("run %s was restored from MLflow; if it is still active elsewhere, stop it there", recorded.run_id)
    return recorded.run_id


def write_run(recorded: "RecordedRun", inputs: Any, store: Store) -> None:
    """Write what MLflow has of a run, its spec last: that says that the rest is there."""
    place = store.layout.run(recorded.run_id)
    for stage in recorded.stages():
        if not store.layout.cache_key(stage.key).is_file():
            write_atomic(store.layout.cache_result(stage.key), json.dumps(stage.result))
            write_atomic(store.layout.cache_key(stage.key), json.dumps(stage.record))
    if result := recorded.document("result.json"):
        write_atomic(place.result, json.dumps(relocated(result, store)))
    if not recorded.has_ended:
        write_checkpoints(recorded, store)
        inputs = with_sources(inputs, recorded, store)
        recorded.restore_journal()
    write_atomic(place.spec, json.dumps(inputs))


def write_checkpoints(recorded: "RecordedRun", store: Store) -> None:
    """Put the newest checkpoints where their trainings look for them; those that are here already stay."""
    for key, copied in recorded.checkpoints(store.scratch("checkpoints")):
        target = store.layout.checkpoints(key) / copied.name
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True)
            shutil.move(copied, target)


def with_sources(inputs: Any, recorded: "RecordedRun", store: Store) -> Any:
    """The inputs of a run, with the places of its files here: those it names if they are the same, else copies."""
    place = store.layout.run(recorded.run_id).sources

    def here(source: Any) -> Any:
        ref = SourceRef.model_validate(source)
        if Path(ref.path).exists():
            return source
        target = place / ref.digest
        there = target.exists() or recorded.source(ref, target, store.scratch("source"))
        return source | {"path": str(target)} if there else source

    def moved(one: Any) -> Any:
        return one | {name: here(one[name]) for name in ("data", "heldout") if one.get(name)}

    return inputs | {name: [moved(one) for one in inputs[name]] for name in ("sources", "watch")}


def relocated(value: Any, store: Store) -> Any:
    """A result whose artifacts lie in this store: each `path` beside a `digest`."""
    match value:
        case {"digest": str(digest), "path": str(path), **others}:
            inside = path.partition(digest)[2].strip("/\\")
            moved = str(store.layout.artifact(digest) / inside) if digest in path else path
            return {"digest": digest, "path": moved} | {name: relocated(one, store) for name, one in others.items()}
        case dict():
            return {name: relocated(one, store) for name, one in value.items()}
        case list():
            return [relocated(one, store) for one in value]
        case _:
            return value


def restore_line(line: str, store: Store) -> bool:
    """Restore the versions of a line that the store lacks; whether MLflow has them.

    A line that was deleted or renamed here is not restored. Raises ArtifactDamaged; an outage of MLflow is logged.
    """
    from tasks.tracking.recorded import recorded_line

    if store.root != settings().store_path or Lines(store).versions(line) or line in left_behind(store):
        return False
    try:
        files = recorded_line(settings(), line)
    except MLflowUnreachable as error:
        log.warning("whether MLflow has line %s is not known: %s", line, error.message)
        return False
    if not files:
        return False
    write_line(line, files, store)
    log.warning("line %s was restored from MLflow", line)
    return True


def look_for_line(line: str, config: Settings) -> None:
    """Restore a line that the store lacks, to show it. Raises what `restore_line` raises."""
    restore_line(line, Store(config.store_path))


def write_line(line: str, files: dict[str, str], store: Store) -> None:
    """Write the directory of a line, its versions last. Raises ArtifactDamaged for a name that leads elsewhere."""
    place = store.layout.line(line).root
    for name in sorted(files, key=lambda name: name.startswith("versions/")):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not re.fullmatch(r"[\w./-]+", name):
            raise ArtifactDamaged(f"MLflow's record of line {line} names a file {name[:100]}", hint="restore it there")
        write_atomic(place / path, files[name])


def left_behind(store: Store) -> Iterator[str]:
    """Lines that this store had under these names: deleted, or renamed."""
    for gone in store.layout.deletions():
        yield DeletedLine.model_validate_json(gone.tombstone.read_bytes()).line
    for renamed, _ in noted(store.layout):
        yield renamed.line
