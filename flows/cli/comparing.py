"""The verb that shows two runs side by side."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from pydantic import Field
from rich.console import Group, RenderableType
from rich.text import Text

from backprop_core.runtime.settings import settings
from backprop_core.schema.records import Record
from backprop_core.schema.refs import DatasetSummary, Evaluation, RunResult, Status
from backprop_core.schema.score_text import change, level
from flows.cli import run_text
from flows.cli.console import configure_logging, one_line
from flows.cli.flags import PLAIN, OutputFlags, RunRef
from flows.cli.main import Answer
from flows.cli.tables import duration, status_text, table
from tasks import tracking

SHORT = 12  # digits of a run_id or digest in a table


class Compared(Record):
    """One of the two runs."""

    run_id: str
    line: str
    status: Status
    base: str | None
    average: float | None
    backward_transfer: float | None
    seconds: float = Field(description="Of its trainings.")


class FieldDifference(Record):
    """A field of the spec that differs; null where a run has no such field."""

    field: str
    a: Any
    b: Any


class DataDifference(Record):
    """The datasets at one place of both runs."""

    place: int = Field(description="From 1.")
    same: bool
    a: DatasetSummary | None
    b: DatasetSummary | None


class ScoreDifference(Record):
    """The last score of a task in both runs, in the metric of the runs."""

    task: str
    metric: str
    a: float | None
    b: float | None
    difference: float | None = Field(description="b - a; null unless both have one in the same metric.")


class RunsCompared(Record):
    """Two runs side by side."""

    a: Compared
    b: Compared
    spec: list[FieldDifference]
    data: list[DataDifference]
    scores: list[ScoreDifference]
    matrix: dict[str, Evaluation | None] = Field(description="The forgetting matrix of `a` and of `b`.")


def diff_runs(a: RunRef, b: RunRef, /, *, output: OutputFlags = PLAIN) -> Answer:
    config = settings()
    configure_logging(config, verbose=output.verbose)
    first, second = tracking.show_run(config, a), tracking.show_run(config, b)
    made = compared(first, second)
    return Answer(made.model_dump(mode="json"), text(made, first, second))


def compared(a: RunResult, b: RunResult) -> RunsCompared:
    """What differs between two runs."""
    return RunsCompared(
        a=one(a),
        b=one(b),
        spec=list(fields(flat(a.spec), flat(b.spec))),
        data=list(datasets(a, b)),
        scores=list(scores(a.evaluation, b.evaluation)),
        matrix={"a": a.evaluation, "b": b.evaluation},
    )


def one(run: RunResult) -> Compared:
    found = run.evaluation
    return Compared(
        run_id=run.run_id,
        line=run.line,
        status=run.status,
        base=run.base.name if run.base else None,
        average=found.average if found else None,
        backward_transfer=found.backward_transfer if found else None,
        seconds=sum(part.seconds for part in run.runs),
    )


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every field of a spec by its path; `datasets.0.path` is the path of the first dataset."""
    parts = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(parts, dict) or not parts:
        return {path: value}
    found: dict[str, Any] = {}
    for name, part in parts.items():
        found |= flat(part, f"{path}.{name}" if path else str(name))
    return found


def fields(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[FieldDifference]:
    for name in sorted(a.keys() | b.keys()):
        if a.get(name) != b.get(name):
            yield FieldDifference(field=name, a=a.get(name), b=b.get(name))


def datasets(a: RunResult, b: RunResult) -> Iterator[DataDifference]:
    pairs = zip_longest((run.dataset for run in a.runs), (run.dataset for run in b.runs))
    for place, (left, right) in enumerate(pairs, 1):
        same = left is not None and right is not None and left.digest == right.digest
        yield DataDifference(place=place, same=same, a=left, b=right)


def scores(a: Evaluation | None, b: Evaluation | None) -> Iterator[ScoreDifference]:
    left, right = last(a), last(b)
    metrics = [found.metric for found in (a, b) if found]
    comparable = len(set(metrics)) == 1
    for task in dict.fromkeys([*left, *right]):
        pair = left.get(task), right.get(task)
        difference = pair[1] - pair[0] if comparable and pair[0] is not None and pair[1] is not None else None
        yield ScoreDifference(task=task, metric=metrics[0], a=pair[0], b=pair[1], difference=difference)


def last(found: Evaluation | None) -> dict[str, float | None]:
    """The scores after the last run, by task."""
    rows = (found.scores or found.matrix) if found else []
    return dict(zip(found.tasks, rows[-1], strict=True)) if found and rows else {}


def text(made: RunsCompared, a: RunResult, b: RunResult) -> RenderableType:
    """The comparison as tables, the matrices one under the other."""
    parts: list[RenderableType] = [heads(made, a, b)]
    parts += ["", field_table(made.spec) if made.spec else Text("the specs are the same")]
    if made.data:
        parts += ["", data_table(made.data)]
    if made.scores:
        parts += ["", score_table(made.scores)]
    for name, run in (("a", a), ("b", b)):
        if run.evaluation and run.runs:
            parts += [
                "",
                Text(f"{name}: {run.run_id[:SHORT]}", style="bold"),
                *run_text.matrix(run.evaluation, run.runs),
            ]
    return Group(*parts)


def heads(made: RunsCompared, a: RunResult, b: RunResult) -> RenderableType:
    figures = ("average", "transfer", "trained for")
    shown = table("", "run", "status", *figures, "line", right=figures)
    for name, run, full in (("a", made.a, a), ("b", made.b, b)):
        metric = full.evaluation.metric if full.evaluation else ""
        numbers = level(run.average, metric), change(run.backward_transfer, metric), duration(run.seconds)
        shown.add_row(name, run.run_id[:SHORT], status_text(run.status), *numbers, run.line)
    return shown


def field_table(found: Sequence[FieldDifference]) -> RenderableType:
    shown = table("field", "a", "b", wrap=("field", "a", "b"))
    for each in found:
        shown.add_row(each.field, one_line(str(each.a)), one_line(str(each.b)))
    return shown


def data_table(found: Sequence[DataDifference]) -> RenderableType:
    shown = table("data", "a", "b", wrap=("a", "b"))
    for each in found:
        said = "same rows" if each.same else "other rows"
        shown.add_row(f"{each.place}, {said}", *(described(part) for part in (each.a, each.b)))
    return shown


def described(dataset: DatasetSummary | None) -> str:
    if dataset is None:
        return "none"
    return (
        f"{one_line(dataset.name)} {dataset.digest[:SHORT]}: {dataset.train_rows} train, {dataset.heldout_rows} score"
    )


def score_table(found: Sequence[ScoreDifference]) -> RenderableType:
    figures = ("a", "b", "b - a")
    shown = table(f"{found[0].metric.replace('_', ' ')} at the end", *figures, right=figures)
    for each in found:
        metric = each.metric
        difference = "" if each.difference is None else change(each.difference, metric)
        shown.add_row(each.task, *("" if one is None else level(one, metric) for one in (each.a, each.b)), difference)
    return shown
