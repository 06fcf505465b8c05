"""The rows to train and the rows that score."""

from collections.abc import Sequence
from functools import partial

from backprop_core.data import stages as data
from backprop_core.errors import NoRows
from backprop_core.evaluation import stages as evaluation
from backprop_core.schema.refs import Batch, Curated, DatasetRef, RowsRef, SourceRef, Split
from backprop_core.schema.specs import CurationSpec, DatasetSpec
from flows.steps.models import base_model
from tasks.runs.flow_run import Run
from tasks.runs.sources import Source

TRAIN_THEM = "set training.preference.loss=dpo to train them"
WATCH_ANSWERS = "give rows with answers in evaluation.watch, or remove the file"
NO_HELDOUT = "give more rows, or held-out rows that it has not learned (--heldout FILE)"


def others(
    run: Run, sets: list[RowsRef], *, learned: Sequence[RowsRef] = (), besides: Sequence[RowsRef] = ()
) -> RowsRef:
    """The rows of `sets` of which nothing was `learned`, and that are not in `besides`."""
    pooled = run.call(data.pool, heldouts=sets, heldout_max=sum(rows.rows for rows in sets))
    return run.call(data.unseen, rows=pooled, learned=list(learned), besides=list(besides), whole_groups=True)


def with_rows(run: Run, dataset: DatasetRef, train: RowsRef) -> DatasetRef:
    """A dataset with these training rows, and how many of them judge answers: some may have been forgotten since."""
    counts = run.call(data.judgments, rows=train).model_dump() if dataset.judges else {}
    return dataset.model_copy(update={"train": train, **counts})


def part(
    run: Run, heldout: dict[str, RowsRef], datasets: Sequence[DatasetRef], *, to_choose_by: bool
) -> dict[str, RowsRef]:
    """The held-out rows that only choose (λ, back-off, the best step), or those that score, by task.

    `datasets` are what the run trains. Of a task by which nothing is chosen, all rows score.
    """
    choosing = tasks_to_choose_by(run, heldout, datasets)
    if to_choose_by:
        return {task: rows_apart(run, heldout[task], to_choose_by=True) for task in heldout if task in choosing}
    return {
        task: rows_apart(run, rows, to_choose_by=False) if task in choosing else rows for task, rows in heldout.items()
    }


def rows_apart(run: Run, heldout: RowsRef, *, to_choose_by: bool) -> RowsRef:
    """The held-out rows of a task that only choose, or those that score."""
    rows: RowsRef = run.call(data.apart, heldout=heldout, to_choose_by=to_choose_by)
    return rows


def tasks_to_choose_by(run: Run, heldout: dict[str, RowsRef], datasets: Sequence[DatasetRef]) -> set[str]:
    """The tasks whose held-out rows choose.

    A merge chooses by all of them. Early stopping chooses by those of answers that are trained; those by which earlier
    runs of the line chose do not score either.
    """
    if run.spec.merge.chooses:
        return set(heldout)
    if not run.spec.sets_rows_apart:
        return set()
    live = run.prepared.live
    before = live.version.scored if live else {}
    return {*before, *(dataset.task for dataset in datasets if dataset.learns_answers)} & set(heldout)


def curated(run: Run) -> Split:
    """The rows to train and the rows that score, read before any GPU work; those of an earlier run, if it is about one.

    The rows that score are found first, over all inputs and the line; no dataset trains on them.
    """
    if earlier := run.earlier:
        run.notes.splits(earlier)
        return earlier
    prepared = run.prepared
    # no sources if other rows score
    datasets = list(zip(run.spec.datasets, prepared.sources, strict=bool(prepared.sources)))
    run.ahead([partial(batch, spec=spec, source=source) for spec, source in datasets])
    batches = [batch(run, spec, source) for spec, source in datasets]
    found: Split = run.call(
        data.split,
        batches=batches,
        watched=[
            batch(run, *each, trained=False) for each in zip(run.spec.evaluation.watch, prepared.watch, strict=True)
        ],
        held=run.held,
        learned=run.learned,
        heldout_max=run.spec.evaluation.heldout_max,
    )
    run.notes.splits(found)
    run.notes.curated([each.source for each in batches], found.datasets)
    return found


def batch(run: Run, spec: DatasetSpec, source: Source, *, trained: bool = True) -> Batch:
    """The rows of a dataset and of its held-out file. Raises NoRows if one of them has none that are used."""
    alone = spec.model_copy(update={"task": None, "heldout": None, "skip": 0, "rows": None})

    def rows(file: SourceRef, path: str, curation: CurationSpec) -> Curated:
        own = alone.model_copy(update={"path": path, "curation": curation})
        tokenizer = run.base if curation.counts_tokens else None
        made = run.call(
            data.curate, source=run.decided(file, own), spec=own, template=run.template, tokenizer=tokenizer
        )
        if not made.rows.rows and not trained:
            raise NoRows(f"{path}: only preferences, and watched preferences are not scored", hint=WATCH_ANSWERS)
        if not made.rows.rows and not learns:
            raise NoRows(f"{path}: only preferences, which are not trained", hint=TRAIN_THEM)
        return sifted(run, made, curation) if curation.needs_perplexity and made.rows.rows else made

    file, learns = source.heldout, trained and run.spec.training.preference.loss is not None
    own = rows(source.data, spec.path, spec.curation)
    held = rows(file, spec.heldout or file.path, spec.curation.of_heldout) if file else None
    learns = learns and own.preferences is not None
    return Batch(
        name=source.name,
        task=source.task,
        source=own,
        heldout=held.rows if held else None,
        trains_preferences=learns,
        heldout_preferences=held.preferences if held and learns else None,
        skip=spec.skip,
        rows=spec.rows,
        last=spec.time_split and spec.time_split.last,
        whole_questions=spec.curation.decontaminate is not None,
        curation=spec.curation,
    )


def sifted(run: Run, made: Curated, spec: CurationSpec) -> Curated:
    """Curated rows without those that their perplexity drops."""
    length = run.spec.training.limit
    scores = run.call(evaluation.perplexity, **base_model(run), rows=made.rows, max_length=length)
    return run.call(data.sift, curated=made, scores=scores, spec=spec)


def held_out(run: Run, rows: Split) -> dict[str, RowsRef]:
    """One held-out set per task, in order of first appearance, those of the line first.

    Raises NoRows if the run brings a task of which no row scores.
    """
    trained = (dataset.tasks[0] for dataset in rows.datasets)
    for task in (*trained, *tasks_of(run.prepared.watch)):
        if task not in rows.heldout:
            learned = f": {rows.not_scored[task]} were learned" if task in rows.not_scored else ""
            raise NoRows(f"no row of task {task} is held out{learned}, so nothing can be scored", hint=NO_HELDOUT)
    most = run.spec.evaluation.heldout_max
    return {
        task: run.call(data.first, rows=one, most=most) if one.rows > most else one
        for task, one in rows.heldout.items()
    }


def tasks_of(sources: list[Source]) -> list[str]:
    """The tasks of datasets."""
    return [source.task for source in sources]
