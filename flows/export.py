"""GGUF and other files of the model of an earlier run."""

from collections.abc import Sequence
from functools import partial

from backprop_core.schema.field_types import LineName
from backprop_core.schema.refs import RunResult, heldout_of
from backprop_core.schema.specs import ExportSpec, Package, Quantization
from flows.declared import declared
from flows.run_names import short
from flows.steps.files import exports
from flows.steps.rows import curated, held_out
from tasks.runs.allowed_paths import admitted_output
from tasks.runs.copy_exports import Output, hand_out, owner_of
from tasks.runs.flow_run import recorded
from tasks.runs.resolve_earlier import again


@declared("export", title=lambda given: f"export {short(given['ref'])}")
def export(
    ref: str,
    quantization: Quantization | list[Quantization] = "q4_k_m",
    packages: Sequence[Package] = (),
    imatrix: bool = False,
    output: str | None = None,
    name: LineName | None = None,
    force: bool = False,
    ollama: LineName | None = None,
    num_ctx: int | None = None,
    system: str | None = None,
    license: str | None = None,
    model: str | None = None,
    run_id: str | None = None,
    fresh: bool = False,
) -> RunResult:
    """Fuse the merged adapter of a run into its base, write it as GGUF files, and check that they answer alike.

    With `packages`, also write the fused model as safetensors, or the adapter alone.

    With `ollama`, register the first GGUF file under that name in the Ollama at OLLAMA_HOST, and check that it answers.

    Args:
        ref: A run_id or the start of one, a line (its champion), line@version, or a directory with a PEFT adapter.
        quantization: Which GGUF files to write; an empty list for none.
        packages: Other formats to write: the fused model, the adapter, the adapter as GGUF.
        imatrix: Whether to quantize with an importance matrix of the held-out rows.
        output: Directory to copy the files to, GGUF files with a Modelfile. The store keeps them, too.
        name: Start of the file names in `output`; default: the line's name.
        force: Overwrite files of another model in `output`.
        ollama: Name of the model in Ollama.
        num_ctx: Context length in Ollama, in tokens; default: the model's own, at most 8192.
        system: System prompt in Ollama.
        license: License text in Ollama.
        model: Base model of the adapter in a directory; default: the one its config names.
        run_id: The interrupted export to continue; everything else is read from its record.
        fresh: Run every stage again, ignoring the cache.
    """
    wanted = ExportSpec(
        quantizations=[quantization] if isinstance(quantization, str) else quantization,
        packages=list(packages),
        imatrix=imatrix,
        ollama=ollama,
        num_ctx=num_ctx,
        system=system,
        license=license,
    )
    place = admitted_output(output)
    start = partial(again, "export", ref, wanted, model=model)
    with recorded(start, run_id=run_id, fresh=fresh) as (run, outcome):
        owner, local = owner_of(ref, run.prepared, run.store), None if run.base.revision else run.base.name
        target = place and Output(place, name or run.spec.line, owner, force, local)
        if target:
            target.check(wanted)
        heldout = held_out(run, curated(run))
        exports(run, run.prepared.adapter, heldout_of((run.prepared.sources or run.prepared.watch)[-1].task, heldout))
        if target:
            written = hand_out(outcome.made.gguf, outcome.made.packages, run.spec.export, target)
            outcome.add(written=[str(path) for path in written])
    return outcome.result
