"""Scores of what an earlier run made."""

from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import DatasetSpec, EvaluationSpec
from flows.declared import declared
from flows.pipeline import score_again
from flows.run_names import short
from tasks.runs.allowed_paths import admit
from tasks.runs.flow_run import recorded
from tasks.runs.resolve import evaluated


@declared("evaluate", title=lambda given: f"evaluate {short(given['ref'])}")
def evaluate(
    ref: str,
    data: list[str | DatasetSpec] | None = None,
    evaluation: EvaluationSpec = EvaluationSpec(),
    model: str | None = None,
    run_id: str | None = None,
    fresh: bool = False,
) -> RunResult:
    """Score the merged adapter of a run beside its base, on the run's held-out rows or on other ones.

    Args:
        ref: A run_id or the start of one, a line (its champion), line@version, or a directory with a PEFT adapter.
        data: Files or addresses of rows, all of which are scored; the held-out sets of the run if not given.
        evaluation: What is measured otherwise than the run itself did.
        model: Base of the adapter in a directory, whatever its config names; that one if not given.
        run_id: Of an interrupted evaluation that shall go on; everything else is then taken from its record.
        fresh: Do every stage again, whatever the cache has.
    """
    datasets = [DatasetSpec(path=one) if isinstance(one, str) else one for one in data or []]
    admit([*datasets, *evaluation.watch])
    with recorded(
        lambda store: evaluated(ref, datasets, evaluation, store, model=model), run_id=run_id, fresh=fresh
    ) as run:
        score_again(run)
    assert run.outcome is not None
    return run.outcome
