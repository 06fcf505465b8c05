"""Files of what an earlier run made."""

from collections.abc import Sequence

from backprop_core.schema.field_types import LineName
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import ExportSpec, Package, Quantization
from flows.declared import declared
from flows.pipeline import curated, exports, held_out
from flows.run_names import short
from tasks.runs.allowed_paths import admitted_output
from tasks.runs.copy_exports import Output, hand_out, owner_of
from tasks.runs.flow_run import recorded
from tasks.runs.resolve import again


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
    """Write the merged adapter of a run, fused into its base, as GGUF files, and check that they answer as it does.

    With `packages` the fused model is written as safetensors too, or the adapter alone.

    With `ollama` the first of them becomes that model of the Ollama at OLLAMA_HOST, once it has answered a prompt.

    Args:
        ref: A run_id or the start of one, a line (its champion), line@version, or a directory with a PEFT adapter.
        quantization: Which GGUF files; an empty list for none.
        packages: Which other forms: the fused model, the adapter, the adapter as GGUF.
        imatrix: Whether what counts in each matrix, on held-out rows, decides how small files are rounded.
        output: Directory to copy the files to, GGUF files with a Modelfile; they are kept in the store anyway.
        name: How their names begin there; the line's name if not given.
        force: Overwrite files there that are not earlier exports of the same model.
        ollama: Name of the model.
        num_ctx: Tokens of context that Ollama keeps; the model's own, at most 8192, if not given.
        system: System prompt of the served model.
        license: Licence of the served model.
        model: Base of the adapter in a directory, whatever its config names; that one if not given.
        run_id: Of an interrupted export that shall go on.
        fresh: Do every stage again, whatever the cache has.
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
    with recorded(lambda store: again("export", ref, wanted, store, model=model), run_id=run_id, fresh=fresh) as run:
        owner, local = owner_of(ref, run.prepared, run.store), None if run.base.revision else run.base.name
        target = place and Output(place, name or run.spec.line, owner, force, local)
        if target:
            target.check(wanted)
        heldout = held_out(run, curated(run))
        exports(run, run.prepared.adapter, heldout[(run.prepared.sources or run.prepared.watch)[-1].task])
        if target:
            run.written = hand_out(run.gguf, run.packages, run.spec.export, target)
    assert run.outcome is not None
    return run.outcome
