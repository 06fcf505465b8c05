"""Compares strategies, replay and learning rates on a team's own datasets, or on those of a line."""

from typing import TYPE_CHECKING, Any

from backprop_core.errors import ConfigInvalid
from backprop_core.schema.field_types import LineName
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import BenchSpec, DatasetSpec, EvaluationSpec, MergeSpec, ModelSpec, RunSpec, TrainSpec
from flows.declared import declared
from flows.run_names import tasks_of
from flows.steps.comparison import compared
from tasks.runs.allowed_paths import admitted
from tasks.runs.flow_run import recorded
from tasks.runs.prepared_run import Prepared
from tasks.runs.resolve_bench import of_datasets, of_line

if TYPE_CHECKING:
    from backprop_core.store.artifacts import Store

NAME = "bench"  # that comparisons on datasets are recorded under


@declared("bench", title=lambda given: f"compare on {given['line'] or tasks_of(given['datasets'] or [])}")
def bench(
    line: LineName | None = None,
    datasets: list[DatasetSpec] | None = None,
    compare: BenchSpec = BenchSpec(),
    model: str | ModelSpec = ModelSpec(),
    training: TrainSpec = TrainSpec(),
    merge: MergeSpec = MergeSpec(),
    evaluation: EvaluationSpec = EvaluationSpec(),
    run_id: str | None = None,
    fresh: bool = False,
) -> RunResult:
    """Train datasets in a row with several settings, over orders and seeds, and say which setting is best.

    Args:
        line: Compare on the datasets of this line, from its base and with its settings.
        datasets: Compare on these datasets instead.
        compare: Strategies, replay, learning rates, orders and seeds.
        model: Hub id or local directory of the base model, or all its fields; for datasets.
        training: How each LoRA run trains; for datasets.
        merge: The present merge settings; for datasets.
        evaluation: What to measure; for datasets.
        run_id: The interrupted comparison to continue; everything else is read from its record.
        fresh: Run every stage again, ignoring the cache.
    """

    def start(store: "Store") -> Prepared:
        if bool(line) == bool(datasets):
            raise ConfigInvalid(
                "bench takes a line, or datasets", hint="backprop bench LINE, or backprop bench DIRECTORY"
            )
        if line:
            return of_line(line, compare, store)
        base = ModelSpec(name=model) if isinstance(model, str) else model
        parts: dict[str, Any] = {"model": base, "training": training, "merge": merge, "evaluation": evaluation}
        return of_datasets(admitted(RunSpec(line=NAME, datasets=datasets or [], **parts)), compare, store)

    with recorded(start, run_id=run_id, fresh=fresh) as (run, outcome):
        compared(run)
    return outcome.result
