"""One LoRA run, and its merge into the runs before it."""

import logging
import math

from backprop_core.data import stages as data
from backprop_core.evaluation import stages as evaluation
from backprop_core.merging import stages as merging
from backprop_core.schema.general_prompts import PROMPTS
from backprop_core.schema.refs import AdapterRef, DatasetRef, Drift, ReferenceLogProbs, RowsRef, Start, TrainResult
from backprop_core.schema.specs import TEACHER_FORCED, GenerationSpec, PreferenceSpec, TrainSpec
from backprop_core.training import stages as training
from flows.steps.models import base_model
from tasks.runs.flow_run import Run

LONGEST = 256  # tokens of an answer of the base
log = logging.getLogger(__name__)


def trained(
    run: Run,
    dataset: DatasetRef,
    before: list[DatasetRef],
    tuned: AdapterRef | None,
    heldout: dict[str, RowsRef],
    merged: AdapterRef | None,
) -> TrainResult:
    """One LoRA run on a dataset and rows of earlier ones, starting from the last tuned adapter.

    Preferences are compared with the merged adapter so far, or with the base. With early stopping, a part of the task's
    held-out rows, which never scores, chooses the best step; of preferences alone, all steps are trained.
    """
    spec = run.spec.training
    again = replayable(run, before)
    rows = with_replay(run, dataset.train, again, list(heldout.values()))
    merge = run.spec.merge
    start = Start(tuned=tuned, orthonormal=merge.orthonormal_start, keep=merge.keeps_function) if tuned else None
    own = spec.of_run(later=bool(before))
    alone = own.model_copy(update={"replay": 0, "replay_rows": 0, "replay_general": 0})  # `rows` contain the replay
    judges = any(one.judges for one in (dataset, *again))
    return run.call(
        training.train,
        base=run.base,
        rows=rows,
        spec=alone if judges else without_preferences(alone),
        start=start,
        reference=reference(run, rows, merged) if judges else None,
        heldout=stopping_rows(run, heldout.get(dataset.task)) if dataset.learns_answers else None,
    )


def stopping_rows(run: Run, heldout: RowsRef | None) -> RowsRef | None:
    """The held-out rows by which early stopping chooses; None without it."""
    if not run.spec.training.early_stopping or heldout is None:
        return None
    return run.call(data.apart, heldout=heldout, to_choose_by=True)


def without_preferences(spec: TrainSpec) -> TrainSpec:
    """The spec for rows without preferences: how those are trained decides nothing."""
    return spec.model_copy(update={"preference": PreferenceSpec()})


def reference(run: Run, rows: RowsRef, merged: AdapterRef | None) -> ReferenceLogProbs:
    """What the preferences among the rows are compared with."""
    spec = run.spec.training
    assert spec.preference.loss, "without one, no dataset has preferences to train"
    return run.call(
        training.reference_log_probs,
        **base_model(run),
        adapter=merged,
        rows=rows,
        loss=spec.preference.loss,
        max_length=spec.limit,
    )


def replayable(run: Run, before: list[DatasetRef]) -> list[DatasetRef]:
    """The earlier datasets to replay, without their preferences where no loss is set for them."""
    spec = run.spec.training
    if not (spec.replay or spec.replay_rows):
        return []
    if spec.preference.loss:
        return before
    if judged := [dataset.name for dataset in before if dataset.judges]:
        log.warning("preferences are not replayed, as training.preference.loss is not set: %s", ", ".join(judged))
    return [answers_of(run, dataset) for dataset in before if dataset.learns_answers]


def answers_of(run: Run, dataset: DatasetRef) -> DatasetRef:
    """A dataset without its preferences."""
    if not dataset.judges:
        return dataset
    rows = run.call(data.answers, rows=dataset.train)
    return dataset.model_copy(update={"train": rows, "pairs": 0, "ratings": 0})


def with_replay(run: Run, rows: RowsRef, before: list[DatasetRef], heldout: list[RowsRef]) -> RowsRef:
    """New rows, mixed with a share of each earlier dataset, or with rows of each earlier task and the base's own."""
    spec = run.spec.training
    if not (before or spec.replay_general):
        return rows
    drawn = {"rows": rows, "heldout": heldout, "share": spec.replay, "passes": passes(spec, rows), "seed": spec.seed}
    if spec.replay_rows or spec.replay_general:
        general = {"general": own_answers(run), "of_general": spec.replay_general} if spec.replay_general else {}
        return run.call(data.replay_by_task, **drawn, **general, earlier=by_task(before), least=spec.replay_rows)
    return run.call(data.replay, **drawn, earlier=[dataset.train for dataset in before])


def own_answers(run: Run) -> RowsRef:
    """The answers of the untouched base to general prompts, as rows."""
    asked = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    spec = GenerationSpec(max_new_tokens=LONGEST)
    answers = run.call(evaluation.answer, **base_model(run), adapter=None, conversations=asked, spec=spec)
    rows: RowsRef = run.call(data.own_answers, questions=list(PROMPTS), answers=answers)
    if rows.rows < run.spec.training.replay_general:
        log.warning("replay_general: the base has only %d complete answers to %d prompts", rows.rows, len(PROMPTS))
    run.notes.replays(rows)
    return rows


def by_task(datasets: list[DatasetRef]) -> list[list[RowsRef]]:
    """The training rows of datasets, those of a task together."""
    tasks: dict[str, list[RowsRef]] = {}
    for dataset in datasets:
        tasks.setdefault(dataset.task, []).append(dataset.train)
    return list(tasks.values())


def passes(spec: TrainSpec, rows: RowsRef) -> int:
    """The number of passes over new rows, rounded up."""
    return math.ceil(spec.epochs if spec.steps is None else spec.steps * spec.batch_size / rows.rows)


def merge(
    run: Run,
    merged: AdapterRef | None,
    tuned: TrainResult,
    history: list[AdapterRef],
    count: int,
    to_choose_by: list[RowsRef],
) -> AdapterRef:
    """Merge a tuned adapter into the merged one; `history` has the earlier tuned ones."""
    spec = run.spec.merge
    if merged and spec.searches:
        found = run.call(
            evaluation.search,
            **base_model(run),
            merged=merged,
            tuned=tuned.adapter,
            count=count,
            spec=spec,
            heldout=to_choose_by,
            max_length=run.scored_length,
        )
        spec = spec.model_copy(update={"weight": found.weight})
    earlier = history if spec.takes_all else []
    return run.call(merging.merge, merged=merged, tuned=tuned.adapter, earlier=earlier, count=count, spec=spec)


def backed_off(
    run: Run, before: AdapterRef | None, merged: AdapterRef, to_choose_by: list[RowsRef]
) -> tuple[AdapterRef, float | None]:
    """The merged adapter after back-off, and the share of the change that it has; None without back-off."""
    if not (before and run.spec.merge.back_off):
        return merged, None
    found = run.call(
        evaluation.back_off,
        **base_model(run),
        champion=before,
        candidate=merged,
        heldout=to_choose_by,
        metric=run.spec.evaluation.metric if run.spec.evaluation.metric in TEACHER_FORCED else "token_accuracy",
        max_length=run.scored_length,
    )
    return found.adapter, found.share


def drift(run: Run, before: AdapterRef | None, tuned: TrainResult, merged: AdapterRef) -> Drift | None:
    """How far a merge moved the merged adapter; None for the first."""
    return run.call(merging.drift, before=before, tuned=tuned.adapter, after=merged) if before else None
