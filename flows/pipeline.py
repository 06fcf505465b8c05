"""The main job: curate → train one LoRA run after another → merge → evaluate on every task so far → GGUF."""

import logging

from backprop_core.data import stages as data
from backprop_core.errors import NoRows
from backprop_core.schema.refs import AdapterRef, RowsRef, Split, heldout_of
from flows.steps.files import exports
from flows.steps.rows import curated, held_out, others, part, rows_apart, tasks_of
from flows.steps.scores import champion, harness, judged, score_all
from flows.steps.training import backed_off, drift, merge, trained
from tasks.runs.flow_run import Run
from tasks.runs.held_out_power import power_of
from tasks.runs.line_splits import held_by
from tasks.runs.line_state import Made
from tasks.runs.rejections import attempt
from tasks.runs.results import LoraRun
from tasks.runs.unchanged import rejected_before, too_few_held_out, too_few_new

log = logging.getLogger(__name__)


def pipeline(run: Run) -> Made:
    """All stages of a run, in order; cached stages are skipped."""
    made = lora_runs(run)
    exports(run, made.merged, made.last_heldout)
    return made


def lora_runs(run: Run, stored: Split | None = None) -> Made:
    """A LoRA run on each dataset, merged and scored after each; the datasets are the run's own, or `stored` ones."""
    rows = stored or curated(run)
    datasets, heldout = rows.datasets, held_out(run, rows)
    trained_tasks = {task for dataset in datasets for task in dataset.tasks}
    watched = {*tasks_of(run.prepared.watch), *heldout.keys() - trained_tasks}
    scored, to_choose_by = (part(run, heldout, datasets, to_choose_by=side) for side in (False, True))
    base_row = score_all(run, None, scored)
    untouched = harness(run, None)
    history: list[AdapterRef] = []
    merged: AdapterRef | None = None
    for index, dataset in enumerate(datasets):
        with run.notes.lora_run(dataset):
            tuned = trained(run, dataset, datasets[:index], history[-1] if history else None, heldout, merged)
            seen = {*watched, *(task for earlier in datasets[: index + 1] for task in earlier.tasks)}
            likes = [rows for task, rows in to_choose_by.items() if task in seen]
            old, merged = merged, merge(run, merged, tuned, history, index + 1, likes)
            merged, taken = backed_off(run, old, merged, likes)
            history.append(tuned.adapter)
            cells = score_all(run, merged, {task: rows for task, rows in scored.items() if task in seen})
            moved = drift(run, old, tuned, merged)
            run.notes.lora_run_done(LoraRun(dataset, tuned, merged, moved, cells, base_row, taken=taken))
    assert merged, "a run has at least one dataset"
    run.notes.harnessed(untouched, harness(run, merged))
    return Made(datasets, heldout, tuned, history[:-1], merged, cells, rows.aside, scored)


def promotion(run: Run) -> Made | None:
    """The adapter of an earlier run as a line's next version; None if the gate refuses it, without an override."""
    made = lora_runs(run)
    if run.prepared.live:
        made = beside_the_champion(run, made)
    base_row = score_all(run, None, made.scored)
    report = judged(run, made.merged, made.cells, base_row, champion(run, made.scored))
    run.notes.gated(report)
    if not (report.accepted or run.prepared.forced):
        return None
    exports(run, made.merged, made.last_heldout)
    return made


def beside_the_champion(run: Run, made: Made) -> Made:
    """An adapter from outside a line, scored on the held-out rows of the line and its own.

    Rows that either has learned in any form do not score, nor others of their group. Raises NoRows if no row of a task
    is left to score.
    """
    assert run.prepared.live
    line = run.prepared.live.version
    every = {*line.learned, *run.learned_before, *(each.train for each in made.datasets)}
    learned = sorted(every, key=lambda rows: rows.digest)
    held = held_by(run.spec.line, run.prepared.live, run.store)
    heldout, aside = {}, {}
    for task in dict.fromkeys([*line.heldout, *made.heldout]):
        sets = [known[task] for known in (line.heldout, made.heldout) if task in known]
        heldout[task] = others(run, sets, learned=learned)
        if not heldout[task].rows:
            raise NoRows(f"every held-out row of {task} was trained on", hint="train it without those rows")
        ever = [*held.get(task, []), *sets, *([made.aside[task]] if task in made.aside else [])]
        if (rest := others(run, ever, learned=learned, besides=[heldout[task]])).rows:
            aside[task] = rest
    choosing = {*line.scored, *(task for task, rows in made.scored.items() if rows != made.heldout[task])}
    scored = {
        task: rows_apart(run, rows, to_choose_by=False) if line.merge.chooses or task in choosing else rows
        for task, rows in heldout.items()
    }
    cells = score_all(run, made.merged, scored)
    return made._replace(heldout=heldout, aside=aside, scored=scored, cells=cells)


def next_version(run: Run) -> Made | None:
    """One more LoRA run from the line's champion; None if there is no version to go live."""
    live = run.prepared.live
    before = live.version if live else None
    rows = curated(run)
    [dataset] = rows.datasets
    if reason := too_few_new(dataset.train, run.spec):
        run.notes.concludes(reason, "unchanged")
        return None
    heldout = held_out(run, rows)
    scored, to_choose_by = (part(run, heldout, [dataset], to_choose_by=side) for side in (False, True))
    tried = attempt(run.run_id, run.prepared, dataset.train, heldout, run.store)
    if reason := too_few_held_out(scored, run.prepared) or rejected_before(tried, run.prepared, run.store):
        run.notes.concludes(reason, "unchanged")
        return None
    run.notes.can_show(power_of(run.prepared, scored, run.store))
    base_row = score_all(run, None, scored)
    untouched = harness(run, None)
    with run.notes.lora_run(dataset):
        known = before.datasets if before else []
        old, count = (before.merged, before.count + 1) if before else (None, 1)
        tuned = trained(run, dataset, known, before.tuned if before else None, heldout, old)
        history = [*before.earlier, before.tuned] if before else []
        likes = list(to_choose_by.values())
        merged, taken = backed_off(run, old, merge(run, old, tuned, history, count, likes), likes)
        cells = score_all(run, merged, scored)
        rivals = champion(run, scored)
        moved = drift(run, old, tuned, merged)
        run.notes.lora_run_done(LoraRun(dataset, tuned, merged, moved, cells, base_row, rivals, taken))
    run.notes.harnessed(untouched, harness(run, merged))
    report = judged(run, merged, cells, base_row, rivals, taken=taken)
    run.notes.gated(report, tried)
    if not report.accepted:
        return None
    exports(run, merged, heldout_of(dataset.task, heldout))
    return Made([dataset], heldout, tuned, history, merged, cells, rows.aside, scored)


def score_again(run: Run) -> None:
    """The matrix of an existing adapter, on the run's held-out rows or on other rows."""
    rows = curated(run)
    heldout = held_out(run, rows)
    if not rows.datasets:
        say_what_was_learned(run, heldout)
    scored = part(run, heldout, rows.datasets, to_choose_by=False) if rows.datasets else heldout
    base_row = score_all(run, None, scored)
    run.notes.harnessed(harness(run, None), harness(run, run.prepared.adapter))
    run.notes.evaluated(score_all(run, run.prepared.adapter, scored), base_row)


def say_what_was_learned(run: Run, heldout: dict[str, RowsRef]) -> None:
    """Warn if an adapter is scored on rows that it was trained on."""
    learned = run.learned_before
    for task, rows in heldout.items() if learned else ():
        if known := rows.rows - run.call(data.unseen, rows=rows, learned=learned).rows:
            log.warning("%s: %d of these %d rows were trained, so the score says little", task, known, rows.rows)
