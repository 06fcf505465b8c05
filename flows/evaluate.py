"""Scores of the adapter of an earlier run."""

from functools import partial

from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import DatasetSpec, EvaluationSpec
from flows.declared import declared
from flows.pipeline import score_again
from flows.run_names import short
from tasks.runs.allowed_paths import admit
from tasks.runs.flow_run import recorded
from tasks.runs.resolve_earlier import evaluated


@declared("evaluate", title=lambda given: f"evaluate {short(given['ref'])}")
def evaluate(
    ref: str,
    data: list[str | DatasetSpec] | None = None,
    evaluation: EvaluationSpec = EvaluationSpec(),
    model: str | None = None,
    run_id: str | None = None,
    fresh: bool = False,
) -> RunResult:
    """Score the merged adapter of a run and its base, on the run's held-out rows or on other rows.

    Args:
        ref: A run_id or the start of one, a line (its champion), line@version, or a directory with a PEFT adapter.
        data: Files or URLs of rows to score; default: the held-out rows of the run.
        evaluation: What to measure; fields left open are as in the run.
        model: Base model of the adapter in a directory; default: the one its config names.
        run_id: The interrupted evaluation to continue; everything else is read from its record.
        fresh: Run every stage again, ignoring the cache.
    """
    datasets = [DatasetSpec(path=one) if isinstance(one, str) else one for one in data or []]
    admit([*datasets, *evaluation.watch])
    start = partial(evaluated, ref, datasets, evaluation, model=model)
    with recorded(start, run_id=run_id, fresh=fresh) as (run, outcome):
        score_again(run)
    return outcome.result
