"""Restores runs from MLflow to a store that lacks them: its disk was lost, or it is on another machine.

A run gets its spec, its result, its cache records, the newest checkpoints and, until it has ended, the files that it
reads. Artifacts follow one by one, when they are needed: see `bring_artifacts`.
"""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from backprop_core.errors import ArtifactDamaged, MLflowUnreachable, RunUnknown
from backprop_core.runtime.settings import settings
from backprop_core.schema.records import Record
from backprop_core.schema.refs import RunResult, SourceRef, artifacts_in
from backprop_core.store.artifacts import Store, write_atomic

if TYPE_CHECKING:
    from tasks.tracking.recorded import RecordedRun, RecordedStage

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
        raise unfit(prefix, error) from error
    log.warning("run %s was restored from MLflow; if it is still active elsewhere, stop it there", recorded.run_id)
    return recorded.run_id


def write_run(recorded: "RecordedRun", inputs: Any, store: Store) -> None:
    """Write what MLflow has of a run, its spec last: that says that the rest is there."""
    from tasks.runs.prepared_run import Prepared

    place, result, stages = store.layout.run(recorded.run_id), recorded.document("result.json"), verified(recorded)
    check("inputs.json", inputs, Prepared, recorded.run_id)
    if result:
        check("result.json", result, RunResult, recorded.run_id)
    for stage in stages:
        if not store.layout.cache_key(stage.key).is_file():
            write_atomic(store.layout.cache_result(stage.key), json.dumps(stage.result))
            write_atomic(store.layout.cache_key(stage.key), json.dumps(stage.record))
    if result:
        write_atomic(place.result, json.dumps(relocated(result, store)))
    if not recorded.has_ended:
        write_checkpoints(recorded, store)
        inputs = with_sources(inputs, recorded, store)
        recorded.restore_journal()
    write_atomic(place.spec, json.dumps(inputs))


def verified(recorded: "RecordedRun") -> "list[RecordedStage]":
    """The cache records of a run that the store would read; the others are left out, and their stages run again.

    So does what returned no artifact, such as the report of a gate or the answers to canaries: nothing verifies it.
    """
    from tasks.runs.line_splits import OLDER
    from tasks.stages.cache_policy import UnfitRecord, read_metadata, read_result, result_types

    found = []
    types: dict[str, type[BaseModel]] = {**result_types(), **OLDER}
    for stage in recorded.stages():
        try:
            read_metadata(json.dumps(stage.record).encode())
            if any(artifacts_in(read_result(json.dumps(stage.result).encode(), types))):
                found.append(stage)
        except UnfitRecord as error:
            log.warning("MLflow's cache record %s is ignored and the stage runs again: %s", stage.key[:12], error)
    return found


def check(name: str, content: Any, kind: type[Record], run_id: str) -> None:
    """Raise ArtifactDamaged unless a document of MLflow's is in the form of its kind, and of this run."""
    try:
        found = kind.model_validate(content)
    except ValidationError as error:
        raise unfit(run_id, error, name) from error
    if isinstance(found, RunResult) and found.run_id != run_id:
        raise unfit(run_id, f"it is that of run {found.run_id}", name)


def unfit(run_id: str, why: ValidationError | str, name: str = "a stage") -> ArtifactDamaged:
    said = why if isinstance(why, str) else why.errors(include_url=False, include_input=False)[0]["msg"]
    return ArtifactDamaged(
        f"MLflow's record of run {run_id} cannot be read: {name}: {said}",
        hint="restore it there from a backup, or start the run again",
    )


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
            known = digest in path and ".." not in re.split(r"[/\\]", f"{digest}/{inside}")
            moved = str(store.layout.artifact(digest) / inside) if known else path
            return {"digest": digest, "path": moved} | {name: relocated(one, store) for name, one in others.items()}
        case dict():
            return {name: relocated(one, store) for name, one in value.items()}
        case list():
            return [relocated(one, store) for one in value]
        case _:
            return value
