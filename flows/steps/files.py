"""The files that are shipped: GGUF files, quantized or not, and packages."""

from backprop_core.export import stages as exporting
from backprop_core.schema.refs import AdapterRef, GGUFRef, ReferenceRef, RowsRef
from flows.steps.models import model
from tasks.runs.flow_run import Run

FIDELITY_ROWS = 16  # held-out rows on which a GGUF file is compared with the model


def exports(run: Run, merged: AdapterRef | None, heldout: RowsRef) -> None:
    """Write every file of the export spec, and register the first GGUF file in Ollama if it says so."""
    quantizations = run.spec.export.quantizations
    known = reference(run, merged, heldout) if quantizations and run.can_read_gguf else None
    files = [export(run, merged, quantization, heldout, known) for quantization in quantizations]
    for package in run.spec.export.packages:
        hub_id = f"{run.base.name}@{run.base.revision}" if run.base.revision and package == "lora" else None
        made = run.call(exporting.package, base=run.base, adapter=merged, package=package, hub_id=hub_id)
        run.notes.packaged(made)
    if run.spec.export.ollama:
        run.notes.served(run.executor.serve(files[0], heldout))


def reference(run: Run, merged: AdapterRef | None, heldout: RowsRef) -> ReferenceRef:
    """The model's own answers, made once, to compare all files with."""
    prompts = [canary.prompt for canary in run.spec.gate.canaries]
    return run.call(
        exporting.reference, base=run.base, adapter=merged, heldout=heldout, rows=FIDELITY_ROWS, prompts=prompts
    )


def export(
    run: Run, merged: AdapterRef | None, quantization: str, heldout: RowsRef, known: ReferenceRef | None
) -> GGUFRef:
    """Write one GGUF file of the merged adapter, and compare it with the reference, if `known`."""
    if quantization in exporting.WRITTEN_DIRECTLY:
        file = converted(run, merged, quantization)
    else:
        file = quantized(run, merged, quantization, heldout)
    fidelity = None
    if known:
        fidelity = run.call(exporting.fidelity, reference=known, gguf=file, canaries=run.spec.gate.canaries)
    run.notes.exported(file, fidelity)
    return file


def converted(run: Run, merged: AdapterRef | None, outtype: str) -> GGUFRef:
    """A GGUF file in a type that needs no llama.cpp, by llama.cpp's converter for models that ours does not know."""
    wanted = {"base": run.base, "adapter": merged, "outtype": outtype}
    if run.prepared.converter:
        return run.call(exporting.convert_outside, **wanted, converter=run.prepared.converter)
    return run.call(exporting.convert, **wanted)


def quantized(run: Run, merged: AdapterRef | None, quantization: str, heldout: RowsRef) -> GGUFRef:
    """A GGUF file that llama.cpp quantizes from the f16 one, with an importance matrix if the spec says so."""
    source = converted(run, merged, "f16")
    if not run.spec.export.imatrix:
        return run.call(exporting.quantize, source=source, quantization=quantization)
    length = run.spec.training.limit
    weights = run.call(
        exporting.importance, **model(run, merged), heldout=heldout, skip=FIDELITY_ROWS, max_length=length
    )
    return run.call(exporting.quantize_weighted, source=source, quantization=quantization, importance=weights)
