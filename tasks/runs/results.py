"""Builds the records of a RunResult from refs: runs, evaluation, GGUF files, packages. Pure functions."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel

from backprop_core.evaluation.forgetting_matrix import Row
from backprop_core.schema.refs import (
    AdapterRef,
    ArtifactRef,
    Curated,
    DatasetRef,
    DatasetSummary,
    Drift,
    Fidelity,
    GGUFRecord,
    GGUFRef,
    Harnessed,
    HarnessRecord,
    Located,
    PackageRecord,
    PackageRef,
    RunRecord,
    Split,
    StageRecord,
    TrainResult,
)
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import dataset_digest, digest_of, part


def digest_in(result: BaseModel) -> str | None:
    """The digest of a stage's result."""
    match result:
        case ArtifactRef():
            return result.digest
        case TrainResult():
            return result.adapter.digest
        case Curated():
            return result.rows.digest
        case Split():
            return digest_of([*map(dataset_digest, result.datasets), part(result.heldout)])
    return None


def located(ref: ArtifactRef, store: Store) -> Located:
    return Located(digest=ref.digest, path=str(store.layout.artifact(ref.digest)))


def dataset_summary(dataset: DatasetRef) -> DatasetSummary:
    return DatasetSummary(
        name=dataset.name,
        task=dataset.task,
        digest=dataset_digest(dataset),
        train_rows=dataset.train.rows,
        heldout_rows=dataset.heldout.rows,
        dropped=dataset.dropped,
        not_trained=dataset.not_trained,
        pairs=dataset.pairs,
        ratings=dataset.ratings,
    )


class LoraRun(NamedTuple):
    """What a LoRA run made, and the scores of the merged adapter, the base and the line's champion by task."""

    dataset: DatasetRef
    trained: TrainResult
    merged: AdapterRef
    drift: Drift | None
    cells: Row
    base: Row
    champion: Row | None = None
    taken: float | None = None


def run_record(run_id: str, made: LoraRun, *, cached: bool, store: Store) -> RunRecord:
    """The RunRecord of one LoRA run."""
    trained = made.trained
    return RunRecord(
        run_id=run_id,
        dataset=dataset_summary(made.dataset),
        tuned=located(trained.adapter, store),
        merged=located(made.merged, store),
        steps=trained.steps,
        tokens=trained.tokens,
        seconds=trained.seconds,
        train_loss=trained.train_loss,
        cached=cached,
        accepted=True,
        cut=trained.cut,
        left_out=trained.left_out,
        kept=trained.kept,
        drift=made.drift,
        taken=made.taken,
    )


def early_stopping(runs: Sequence[RunRecord]) -> list[str]:
    """Which step each LoRA run with early stopping has kept."""
    return [
        f"{run.dataset.name}: {run.kept.after(run.steps)}, held-out loss {run.kept.loss:.4f}"
        for run in runs
        if run.kept
    ]


def harness_records(base: Harnessed, made: Harnessed) -> list[HarnessRecord]:
    """Harness scores of the adapter beside the base's."""
    return [
        HarnessRecord(task=task, metric=metric, base=base.scores[task][metric], score=score)
        for task, scores in made.scores.items()
        for metric, score in scores.items()
        if metric in base.scores[task]
    ]


def gguf_record(file: GGUFRef, fidelity: Fidelity | None, store: Store) -> GGUFRecord:
    """The GGUFRecord of a GGUF file."""
    return GGUFRecord(
        quantization=file.quantization,
        digest=file.digest,
        path=str(store.layout.artifact(file.digest) / "model.gguf"),
        bytes=file.bytes,
        fidelity=fidelity.model_dump() if fidelity else {},
    )


def package_record(ref: PackageRef, store: Store) -> PackageRecord:
    """The PackageRecord of a package."""
    return PackageRecord(**located(ref, store).model_dump(), package=ref.package, bytes=ref.bytes)


def was_cached(stages: Sequence[StageRecord], stage: str) -> bool:
    """Whether the newest call of this stage came from the cache."""
    return next(record.cached for record in reversed(stages) if record.stage == stage)


def child_id(run_id: str, index: int) -> str:
    """The run_id of a run's index-th LoRA run: the same again after a resume."""
    return hashlib.sha256(f"{run_id}/{index}".encode()).hexdigest()[:32]
