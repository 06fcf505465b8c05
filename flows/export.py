"""GGUF files of what an earlier run made."""

from pathlib import Path

from prefect import flow

from backprop_core.refs import RunResult
from backprop_core.specs import ExportSpec, Quantization
from flows.pipeline import curated, held_out
from flows.pipeline import export as export_one
from tasks.exports import hand_out
from tasks.prepare import again
from tasks.run import recorded


@flow(name="export", persist_result=False)
def export(
    ref: str,
    quantization: Quantization | list[Quantization] = "q4_k_m",
    output: str | None = None,
    run_id: str | None = None,
    fresh: bool = False,
) -> RunResult:
    """Write the merged adapter of a run, fused into its base, as GGUF files, and check that they answer as it does.

    Args:
        ref: A run_id or the start of one.
        quantization: Which GGUF files.
        output: Directory to copy the files to; they are kept in the store anyway.
        run_id: Of an interrupted export that shall go on.
        fresh: Do every stage again, whatever the cache has.
    """
    wanted = ExportSpec(quantizations=[quantization] if isinstance(quantization, str) else quantization)
    with recorded(lambda store: again("export", ref, wanted, store), run_id=run_id, fresh=fresh) as run:
        datasets, watched = curated(run)
        heldout = held_out(run, [*datasets, *watched])
        for name in run.spec.export.quantizations:
            export_one(run, run.prepared.adapter, name, heldout[datasets[-1].task])
    assert run.outcome is not None
    if output:
        hand_out(run.outcome, Path(output))
    return run.outcome
