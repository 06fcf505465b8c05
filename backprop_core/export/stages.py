"""Export stages: convert, importance, quantize, package, reference, measure."""

from pathlib import Path
from typing import Any, Literal, get_args

from backprop_core.models import base as bases
from backprop_core.schema.field_types import Precision
from backprop_core.schema.refs import (
    AdapterRef,
    BaseRef,
    ConverterRef,
    Fidelity,
    GGUFRef,
    ImportanceRef,
    PackageRef,
    ReferenceRef,
    RowsRef,
)
from backprop_core.schema.specs import CanarySpec, Limit, Package
from backprop_core.stages import WorkerPlace, Workplace, stage
from backprop_core.store.artifacts import Store

OutType = Literal["f32", "f16", "bf16", "q8_0"]
WRITTEN_DIRECTLY = frozenset(get_args(OutType))  # llama.cpp makes the others from the f16 file
FILE = "model.gguf"


@stage(version=3, runs_in="worker")
def convert(base: BaseRef, adapter: AdapterRef | None, outtype: OutType, *, at: Workplace) -> GGUFRef:
    """Base and adapter → one GGUF file with the adapter fused in."""
    from backprop_core.export import gguf

    local, fused = bases.local(base, at.store), directory_of(adapter, at.store)
    with at.store.begin("gguf") as directory:
        gguf.convert(local, fused, directory / FILE, outtype=outtype, on_progress=at.progress)
        return commit_gguf(at.store, directory, outtype, {"stage": "convert", "base": base.digest})


@stage(version=3, runs_in="worker")
def convert_outside(
    base: BaseRef, adapter: AdapterRef | None, outtype: OutType, converter: ConverterRef, *, at: WorkerPlace
) -> GGUFRef:
    """Base and adapter → one GGUF file, by the converter of the user's llama.cpp."""
    from transformers import AutoConfig

    from backprop_core.export import llamacpp_converter
    from backprop_core.export.gguf.vocabulary import declare
    from backprop_core.export.merged_checkpoint import fuse

    llamacpp_converter.check(converter)
    local, fused = bases.local(base, at.store), directory_of(adapter, at.store)
    with at.store.begin("gguf") as directory, at.store.begin("fused") as scratch:
        model = scratch / "model"
        model.mkdir()
        fuse(local, fused, model, on_progress=at.progress)
        declare(model, AutoConfig.from_pretrained(local))
        llamacpp_converter.convert(
            model,
            directory / FILE,
            outtype=outtype,
            converter=converter,
            log=scratch / "log",
            on_progress=at.progress,
            should_stop=at.should_stop,
        )
        record = {"stage": "convert_outside", "base": base.digest, "converter": converter.digest}
        return commit_gguf(at.store, directory, outtype, record)


@stage(version=2, runs_in="worker")
def importance(
    base: BaseRef,
    adapter: AdapterRef | None,
    heldout: RowsRef,
    skip: int,
    max_length: int | Limit,
    precision: Precision,
    device: str,
    *,
    at: WorkerPlace,
) -> ImportanceRef:
    """A model and held-out rows → the importance matrix (imatrix)."""
    from backprop_core.export import imatrix

    return imatrix.importance(
        at.model(base, adapter, precision, device),
        adapter,
        heldout,
        base_digest=base.digest,
        skip=skip,
        max_length=max_length,
        store=at.store,
        on_progress=at.progress,
    )


@stage(version=1, runs_in="worker")
def quantize(source: GGUFRef, quantization: str, *, at: Workplace) -> GGUFRef:
    """A GGUF file → a quantized one."""
    return smaller(source, quantization, None, at)


@stage(version=1, runs_in="worker")
def quantize_weighted(source: GGUFRef, quantization: str, importance: ImportanceRef, *, at: Workplace) -> GGUFRef:
    """A GGUF file and an importance matrix → a quantized one."""
    return smaller(source, quantization, importance, at)


def smaller(source: GGUFRef, quantization: str, weights: ImportanceRef | None, at: Workplace) -> GGUFRef:
    import torch

    from backprop_core.export import imatrix, quantize

    with at.store.begin("gguf") as directory:
        types = quantize.quantize(
            at.store.local(source) / FILE,
            directory / FILE,
            quantization,
            threads=torch.get_num_threads(),
            importance=at.store.local(weights) / imatrix.FILE if weights else None,
        )
        record = {"stage": "quantize", "source": source.digest, "tensor_types": types}
        return commit_gguf(at.store, directory, quantization, record)


@stage(version=4, runs_in="worker")
def package(base: BaseRef, adapter: AdapterRef, package: Package, hub_id: str | None, *, at: Workplace) -> PackageRef:
    """Base and adapter → a package for other programs, which names the base by `hub_id` if it has one."""
    from backprop_core.export import adapter_packages

    local, tuned = bases.local(base, at.store), at.store.local(adapter)
    with at.store.begin("package") as directory:
        adapter_packages.write_package(base, local, tuned, directory, package=package, named=hub_id is not None)
        size = sum(path.stat().st_size for path in directory.iterdir())
        record = {"stage": "package", "base": base.digest, "adapter": adapter.digest}
        return at.store.commit(directory, PackageRef, record=record, package=package, bytes=size)


@stage(version=2, runs_in="worker")
def reference(
    base: BaseRef, adapter: AdapterRef | None, heldout: RowsRef, rows: int, prompts: list[str], *, at: WorkerPlace
) -> ReferenceRef:
    """A model and held-out rows → the reference for the fidelity check."""
    from backprop_core.export import fidelity_reference

    model = at.model(base, adapter, "fp32", "cpu")
    return fidelity_reference.reference(model, adapter, heldout, rows=rows, prompts=prompts, store=at.store)


@stage(version=2, runs_in="worker")
def fidelity(reference: ReferenceRef, gguf: GGUFRef, canaries: list[CanarySpec], *, at: Workplace) -> Fidelity:
    """A GGUF file and its model's reference → how closely they match."""
    from backprop_core.export import fidelity, fidelity_reference

    known = fidelity_reference.read_reference(at.store.local(reference))
    return fidelity.measure(known, at.store.local(gguf) / FILE, quantization=gguf.quantization, canaries=canaries)


def commit_gguf(store: Store, directory: Path, quantization: str, record: dict[str, Any]) -> GGUFRef:
    size = (directory / FILE).stat().st_size
    return store.commit(directory, GGUFRef, record=record, quantization=quantization, bytes=size)


def directory_of(adapter: AdapterRef | None, store: Store) -> Path | None:
    return store.local(adapter) if adapter else None
