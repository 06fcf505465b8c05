"""Pushes the adapter of an earlier run to a repository of the Hub."""

from backprop_core.schema.refs import RunResult, heldout_of
from backprop_core.schema.specs import ExportSpec, PublishSpec, Quantization
from flows.declared import declared
from flows.run_names import short
from flows.steps.files import exports
from flows.steps.rows import curated, held_out
from tasks.runs.flow_run import recorded
from tasks.runs.resolve_earlier import published
from tasks.stages.publishing import publish as push


@declared("publish", title=lambda given: f"publish {short(given['ref'])}")
def publish(
    ref: str,
    repo: str,
    private: bool = True,
    gguf: list[Quantization] | None = None,
    run_id: str | None = None,
    fresh: bool = False,
) -> RunResult:
    """Push the merged adapter of a run to the Hub, in one commit with tokenizer, model card and record.

    The token is HF_TOKEN in the worker's environment, or the Prefect Secret block `hf-token`.

    Args:
        ref: A run_id or the start of one, a line (its champion), or line@version.
        repo: The repository, OWNER/NAME; created if it does not exist.
        private: Whether a new repository is private.
        gguf: GGUF files to push with the adapter.
        run_id: The interrupted publication to continue; everything else is read from its record.
        fresh: Run every stage again, ignoring the cache.
    """
    where, files = PublishSpec(repo=repo, private=private, gguf=bool(gguf)), ExportSpec(quantizations=gguf or [])
    with recorded(lambda store: published(ref, where, files, store), run_id=run_id, fresh=fresh) as (run, outcome):
        if run.spec.export.quantizations:
            exports(run, run.prepared.adapter, heldout_of(run.prepared.sources[-1].task, held_out(run, curated(run))))
        push(run, outcome)
    return outcome.result
