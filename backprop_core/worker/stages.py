"""The stages that the worker runs, each from its job alone: a fresh and a used worker give the same bits."""

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from backprop_core.errors import Interrupted
from backprop_core.evaluation.generation import answer, generate
from backprop_core.evaluation.lambda_search import search
from backprop_core.evaluation.scoring import evaluate
from backprop_core.export import llamacpp_converter
from backprop_core.merging.merge_stats import drift
from backprop_core.merging.strategies import merge
from backprop_core.models import base as bases
from backprop_core.models.loading import LoadedBase, Precision, load, with_tokenizer_of
from backprop_core.runtime.progress import OnProgress
from backprop_core.schema.records import Record
from backprop_core.schema.refs import (
    AdapterRef,
    Answers,
    BaseRef,
    ConverterRef,
    Drift,
    Fidelity,
    Generations,
    GGUFRef,
    Harnessed,
    ImportanceRef,
    OwnTasks,
    PackageRef,
    ReferenceRef,
    RowsRef,
    Scores,
    Searched,
    Start,
    TrainResult,
)
from backprop_core.schema.specs import CanarySpec, GenerationSpec, HarnessSpec, MergeSpec, Package, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training import gpu_guard, unsloth
from backprop_core.training.distributed import ALONE, Ranks
from backprop_core.training.loop import fit, train

Emit = Callable[[dict[str, Any]], None]


class TrainJob(Record):
    base: BaseRef
    rows: RowsRef
    spec: TrainSpec
    start: Start | None


class MergeJob(Record):
    merged: AdapterRef | None
    tuned: AdapterRef
    earlier: list[AdapterRef]
    count: int
    spec: MergeSpec


class DriftJob(Record):
    before: AdapterRef
    tuned: AdapterRef
    after: AdapterRef


class SearchJob(Record):
    base: BaseRef
    merged: AdapterRef
    tuned: AdapterRef
    count: int
    spec: MergeSpec
    heldout: list[RowsRef]
    max_length: int
    precision: Precision
    device: str


class EvaluateJob(Record):
    base: BaseRef
    adapter: AdapterRef | None
    heldout: RowsRef
    max_length: int
    precision: Precision
    device: str


class GenerateJob(Record):
    base: BaseRef
    adapter: AdapterRef | None
    heldout: RowsRef
    spec: GenerationSpec
    precision: Precision
    device: str


class AnswerJob(Record):
    base: BaseRef
    adapter: AdapterRef | None
    conversations: list[list[dict[str, str]]]
    spec: GenerationSpec
    precision: Precision
    device: str


class ConvertJob(Record):
    base: BaseRef
    adapter: AdapterRef | None
    outtype: Literal["f32", "f16", "bf16", "q8_0"]


class ConvertOutsideJob(ConvertJob):
    converter: ConverterRef


class QuantizeJob(Record):
    source: GGUFRef
    quantization: str
    importance: ImportanceRef | None = None


class ImportanceJob(Record):
    base: BaseRef
    adapter: AdapterRef | None
    heldout: RowsRef
    skip: int
    max_length: int
    precision: Precision
    device: str


class PackageJob(Record):
    base: BaseRef
    adapter: AdapterRef
    package: Package
    hub_id: str | None


class HarnessJob(Record):
    base: BaseRef
    adapter: AdapterRef | None
    spec: HarnessSpec
    own: OwnTasks | None
    precision: Precision
    device: str


class ReferenceJob(Record):
    base: BaseRef
    adapter: AdapterRef | None
    heldout: RowsRef
    rows: int
    prompts: list[str]


class FidelityJob(Record):
    reference: ReferenceRef
    gguf: GGUFRef
    canaries: list[CanarySpec]


Model = EvaluateJob | GenerateJob | AnswerJob | ImportanceJob | HarnessJob | ReferenceJob


class Stages:
    """Runs jobs by name; keeps the base between them."""

    def __init__(self, store: Store, *, should_stop: Callable[[], bool], ranks: Ranks = ALONE) -> None:
        self._store = store
        self._should_stop = should_stop
        self._ranks = ranks
        self._loaded: tuple[object, LoadedBase] | None = None

    def run(self, stage: str, key: str, parameters: dict[str, Any], emit: Emit) -> BaseModel:
        def progress(done: int, total: int) -> None:
            emit({"done": done, "total": total})

        match stage:
            case "train":
                return self.train(TrainJob.model_validate(parameters), key, emit)
            case "merge":
                return self.merge(MergeJob.model_validate(parameters))
            case "drift":
                return self.drift(DriftJob.model_validate(parameters))
            case "search":
                return self.search(SearchJob.model_validate(parameters), progress)
            case "harness":
                return self.harness(HarnessJob.model_validate(parameters))
            case "evaluate":
                return self.evaluate(EvaluateJob.model_validate(parameters), progress)
            case "generate":
                return self.generate(GenerateJob.model_validate(parameters), progress)
            case "answer":
                return self.answer(AnswerJob.model_validate(parameters), progress)
            case "convert":
                return self.convert(ConvertJob.model_validate(parameters), progress)
            case "convert_outside":
                return self.convert_outside(ConvertOutsideJob.model_validate(parameters), progress)
            case "importance":
                return self.importance(ImportanceJob.model_validate(parameters), progress)
            case "quantize" | "quantize_weighted":
                return self.quantize(QuantizeJob.model_validate(parameters))
            case "package":
                return self.package(PackageJob.model_validate(parameters))
            case "reference":
                return self.reference(ReferenceJob.model_validate(parameters))
            case "fidelity":
                return self.fidelity(FidelityJob.model_validate(parameters))
        raise AssertionError(f"no stage {stage}")

    def base(self, ref: BaseRef, precision: Precision, device: str) -> LoadedBase:
        """The base in memory, loaded when another one is asked for."""
        wanted = (ref.digest, precision, device)
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = None  # let go of the old one first
            self._loaded = wanted, load(bases.local(ref, self._store), precision=precision, device=device)
        return self._loaded[1]

    def model(self, job: Model, precision: Precision, device: str) -> LoadedBase:
        """The base in memory, with the tokenizer that came with the job's adapter, if one did."""
        return with_tokenizer_of(self.base(job.base, precision, device), job.adapter, self._store)

    def base_to_train(self, job: TrainJob) -> LoadedBase:
        """The base as the training's backend loads it; Unsloth's is good for one training."""
        assert job.spec.precision != "auto", "resolved before the key was made"
        if job.spec.backend == "unsloth":
            path = bases.local(job.base, self._store)
            return unsloth.load(path, precision=job.spec.precision, max_length=job.spec.max_length)
        return self.base(job.base, job.spec.precision, job.spec.device)

    def train(self, job: TrainJob, key: str, emit: Emit) -> TrainResult:
        self._ranks.told([key, job.model_dump(mode="json")])
        base = self.base_to_train(job)
        return train(
            base,
            job.rows,
            spec=job.spec,
            start=job.start,
            key=key,
            store=self._store,
            on_metrics=lambda step, total, values: emit({"done": step, "total": total, "values": values}),
            should_stop=self._should_stop,
            guard=gpu_guard.of(base.device),
            on_wait=lambda: emit({"level": logging.DEBUG, "log": "waiting for another run"}),
            keep_checkpoints=True,
            ranks=self._ranks,
        )

    def follow(self) -> None:
        """Take part in the next training that the leader of these processes does."""
        key, told = self._ranks.told(None)
        job = TrainJob.model_validate(told)
        base = self.base_to_train(job)
        with suppress(Interrupted):
            fit(
                base,
                job.rows,
                spec=job.spec,
                start=job.start,
                key=key,
                store=self._store,
                on_metrics=lambda step, total, values: None,
                should_stop=lambda: False,
                guard=None,
                ranks=self._ranks,
            )

    def merge(self, job: MergeJob) -> AdapterRef:
        return merge(job.merged, job.tuned, earlier=job.earlier, count=job.count, spec=job.spec, store=self._store)

    def drift(self, job: DriftJob) -> Drift:
        return drift(job.before, job.tuned, job.after, store=self._store)

    def search(self, job: SearchJob, progress: OnProgress) -> Searched:
        return search(
            self.base(job.base, job.precision, job.device),
            job.merged,
            job.tuned,
            count=job.count,
            spec=job.spec,
            heldout=job.heldout,
            max_length=job.max_length,
            store=self._store,
            on_progress=progress,
        )

    def harness(self, job: HarnessJob) -> Harnessed:
        from backprop_core.evaluation.lm_eval import harness

        base = self.model(job, job.precision, job.device)
        return harness(base, job.adapter, spec=job.spec, own=job.own, store=self._store)

    def evaluate(self, job: EvaluateJob, progress: OnProgress) -> Scores:
        base = self.model(job, job.precision, job.device)
        return evaluate(
            base, job.adapter, job.heldout, max_length=job.max_length, store=self._store, on_progress=progress
        )

    def generate(self, job: GenerateJob, progress: OnProgress) -> Generations:
        base = self.model(job, job.precision, job.device)
        return generate(base, job.adapter, job.heldout, spec=job.spec, store=self._store, on_progress=progress)

    def answer(self, job: AnswerJob, progress: OnProgress) -> Answers:
        base = self.model(job, job.precision, job.device)
        made = answer(base, job.adapter, job.conversations, spec=job.spec, store=self._store, on_progress=progress)
        return Answers(answers=made)

    def convert(self, job: ConvertJob, progress: OnProgress) -> GGUFRef:
        from backprop_core.export.gguf import convert

        with self._store.begin("gguf") as directory:
            file = directory / "model.gguf"
            convert(
                bases.local(job.base, self._store),
                self.adapter_directory(job.adapter),
                file,
                outtype=job.outtype,
                on_progress=progress,
            )
            return self.commit_gguf(directory, job.outtype, {"stage": "convert", "base": job.base.digest})

    def convert_outside(self, job: ConvertOutsideJob, progress: OnProgress) -> GGUFRef:
        from transformers import AutoConfig

        from backprop_core.export.gguf.vocabulary import declare
        from backprop_core.export.merged_checkpoint import fuse

        llamacpp_converter.check(job.converter)
        base, adapter = bases.local(job.base, self._store), self.adapter_directory(job.adapter)
        with self._store.begin("gguf") as directory, self._store.begin("fused") as scratch:
            (scratch / "model").mkdir()
            fuse(base, adapter, scratch / "model", on_progress=progress)
            declare(scratch / "model", AutoConfig.from_pretrained(base))
            llamacpp_converter.convert(
                scratch / "model",
                directory / "model.gguf",
                outtype=job.outtype,
                converter=job.converter,
                log=scratch / "log",
                on_progress=progress,
                should_stop=self._should_stop,
            )
            record = {"stage": "convert_outside", "base": job.base.digest, "converter": job.converter.digest}
            return self.commit_gguf(directory, job.outtype, record)

    def importance(self, job: ImportanceJob, progress: OnProgress) -> ImportanceRef:
        from backprop_core.export.imatrix import importance

        base = self.model(job, job.precision, job.device)
        return importance(
            base,
            job.adapter,
            job.heldout,
            base_digest=job.base.digest,
            skip=job.skip,
            max_length=job.max_length,
            store=self._store,
            on_progress=progress,
        )

    def quantize(self, job: QuantizeJob) -> GGUFRef:
        import torch

        from backprop_core.export.imatrix import FILE
        from backprop_core.export.quantize import quantize

        with self._store.begin("gguf") as directory:
            types = quantize(
                self._store.local(job.source) / "model.gguf",
                directory / "model.gguf",
                job.quantization,
                threads=torch.get_num_threads(),
                importance=self._store.local(job.importance) / FILE if job.importance else None,
            )
            record = {"stage": "quantize", "source": job.source.digest, "tensor_types": types}
            return self.commit_gguf(directory, job.quantization, record)

    def commit_gguf(self, directory: Path, quantization: str, record: dict[str, Any]) -> GGUFRef:
        size = (directory / "model.gguf").stat().st_size
        return self._store.commit(directory, GGUFRef, record=record, quantization=quantization, bytes=size)

    def package(self, job: PackageJob) -> PackageRef:
        from backprop_core.export.adapter_packages import write

        base, adapter = bases.local(job.base, self._store), self._store.local(job.adapter)
        with self._store.begin("package") as directory:
            write(job.base, base, adapter, directory, package=job.package, named=job.hub_id is not None)
            size = sum(path.stat().st_size for path in directory.iterdir())
            record = {"stage": "package", "base": job.base.digest, "adapter": job.adapter.digest}
            return self._store.commit(directory, PackageRef, record=record, package=job.package, bytes=size)

    def reference(self, job: ReferenceJob) -> ReferenceRef:
        from backprop_core.export.fidelity_reference import reference

        base = self.model(job, "fp32", "cpu")
        return reference(base, job.adapter, job.heldout, rows=job.rows, prompts=job.prompts, store=self._store)

    def fidelity(self, job: FidelityJob) -> Fidelity:
        from backprop_core.export.fidelity import measure
        from backprop_core.export.fidelity_reference import read

        known, file = read(self._store.local(job.reference)), self._store.local(job.gguf) / "model.gguf"
        return measure(known, file, quantization=job.gguf.quantization, canaries=job.canaries)

    def adapter_directory(self, adapter: AdapterRef | None) -> Path | None:
        return self._store.local(adapter) if adapter else None
