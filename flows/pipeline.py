"""The main job: curate → train one LoRA run after another → merge → evaluate on every task so far → GGUF."""

import logging
import math
from typing import Any

from backprop_core.data import stages as data
from backprop_core.errors import NoRows
from backprop_core.evaluation import stages as evaluation
from backprop_core.export import stages as exporting
from backprop_core.merging import stages as merging
from backprop_core.schema.gate_report import GateReport
from backprop_core.schema.refs import (
    AdapterRef,
    Answers,
    Batch,
    Cell,
    Curated,
    DatasetRef,
    Drift,
    GGUFRef,
    Harnessed,
    Ratings,
    ReferenceRef,
    RowsRef,
    Scores,
    SourceRef,
    Split,
    Start,
    TrainResult,
)
from backprop_core.schema.specs import TEACHER_FORCED, CurationSpec, DatasetSpec, TrainSpec
from backprop_core.training import stages as training
from tasks.runs.flow_run import Run
from tasks.runs.line_splits import held_by
from tasks.runs.line_state import Made
from tasks.runs.rejections import attempt
from tasks.runs.results import LoraRun
from tasks.runs.sources import Source
from tasks.runs.unchanged import rejected_before, too_few_held_out, too_few_new

log = logging.getLogger(__name__)
NO_HELDOUT = "give more rows, or held-out rows that it has not learned (--heldout FILE)"
FIDELITY_ROWS = 16  # held-out rows on which a GGUF file is compared with the model


def pipeline(run: Run) -> Made:
    """All stages of a run, in order; cached stages are skipped."""
    made = lora_runs(run)
    exports(run, made.merged, made.last_heldout)
    return made


def lora_runs(run: Run) -> Made:
    """A LoRA run on each dataset, merged and scored after each."""
    rows = curated(run)
    datasets, heldout, watched = rows.datasets, held_out(run, rows), tasks_of(run.prepared.watch)
    scored, to_choose_by = (part(run, heldout, to_choose_by=side) for side in (False, True))
    base_row = {task: score(run, None, rows) for task, rows in scored.items()}
    untouched = harness(run, None)
    history: list[AdapterRef] = []
    merged: AdapterRef | None = None
    for index, dataset in enumerate(datasets):
        with run.notes.lora_run(dataset):
            before = [earlier.train for earlier in datasets[:index]]
            tuned = trained(run, dataset, before, history[-1] if history else None, heldout)
            seen = {*watched, *(earlier.task for earlier in datasets[: index + 1])}
            likes = [rows for task, rows in to_choose_by.items() if task in seen]
            old, merged = merged, merge(run, merged, tuned, history, index + 1, likes)
            history.append(tuned.adapter)
            cells = {task: score(run, merged, rows) for task, rows in scored.items() if task in seen}
            moved = drift(run, old, tuned, merged)
            run.notes.lora_run_done(LoraRun(dataset, tuned, merged, moved, cells, base_row))
    assert merged, "a run has at least one dataset"
    run.notes.harnessed(untouched, harness(run, merged))
    return Made(datasets, heldout, tuned, history[:-1], merged, cells, rows.aside, scored)


def promotion(run: Run) -> Made | None:
    """The adapter of an earlier run as a line's next version; None if the gate refuses it, without an override."""
    made = lora_runs(run)
    if run.prepared.live:
        made = beside_the_champion(run, made)
    base_row = {task: score(run, None, rows) for task, rows in made.scored.items()}
    report = judged(run, made.merged, made.cells, base_row, champion(run, made.scored))
    run.notes.gated(report)
    if not (report.accepted or run.prepared.forced):
        return None
    exports(run, made.merged, made.last_heldout)
    return made


def beside_the_champion(run: Run, made: Made) -> Made:
    """An adapter from outside a line, scored on the held-out rows of the line and its own.

    Rows that either has learned do not score. Raises NoRows if no row of a task is left to score.
    """
    assert run.prepared.live
    line = run.prepared.live.version
    learned = sorted({each.train for each in (*line.datasets, *made.datasets)}, key=lambda rows: rows.digest)
    held = held_by(run.spec.line, run.prepared.live, run.store)
    heldout, aside = {}, {}
    for task in dict.fromkeys([*line.heldout, *made.heldout]):
        sets = [known[task] for known in (line.heldout, made.heldout) if task in known]
        heldout[task] = without(run, sets, learned)
        if not heldout[task].rows:
            raise NoRows(f"every held-out row of {task} was trained on", hint="train it without those rows")
        others = [*held.get(task, []), *sets, *([made.aside[task]] if task in made.aside else [])]
        if (rest := without(run, others, [*learned, heldout[task]])).rows:
            aside[task] = rest
    scored = heldout
    if run.spec.merge.searches or line.merge.searches:
        scored = {task: run.call(data.apart, heldout=rows, to_choose_by=False) for task, rows in heldout.items()}
    cells = {task: score(run, made.merged, rows) for task, rows in scored.items()}
    return made._replace(heldout=heldout, aside=aside, scored=scored, cells=cells)


def without(run: Run, sets: list[RowsRef], others: list[RowsRef]) -> RowsRef:
    """The rows of `sets` that are in none of `others`."""
    pooled = run.call(data.pool, heldouts=sets, heldout_max=sum(rows.rows for rows in sets))
    return run.call(data.unseen, rows=pooled, learned=others)


def champion(run: Run, scored: dict[str, RowsRef]) -> dict[str, Cell] | None:
    """The champion's scores on these rows; None without a champion."""
    live = run.prepared.live
    return {task: score(run, live.version.merged, rows) for task, rows in scored.items()} if live else None


def judged(
    run: Run, merged: AdapterRef, cells: dict[str, Cell], base_row: dict[str, Cell], rivals: dict[str, Cell] | None
) -> GateReport:
    """The gate's report on a candidate, compared with the champion, if any, and the base."""
    live = run.prepared.live
    return run.call(
        evaluation.gate,
        candidate=rows_of(cells),
        champion=rows_of(rivals) if rivals else None,
        base=rows_of(base_row),
        watch=run.prepared.watched,
        metric=run.spec.evaluation.metric,
        spec=run.spec.gate,
        answers=canaries(run, merged),
        champion_answers=canaries(run, live.version.merged) if live else None,
    )


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
    scored, to_choose_by = (part(run, heldout, to_choose_by=side) for side in (False, True))
    tried = attempt(run.run_id, run.prepared, dataset.train, heldout)
    if reason := too_few_held_out(scored, run.prepared) or rejected_before(tried, run.prepared, run.store):
        run.notes.concludes(reason, "unchanged")
        return None
    base_row = {task: score(run, None, rows) for task, rows in scored.items()}
    untouched = harness(run, None)
    with run.notes.lora_run(dataset):
        known = [earlier.train for earlier in before.datasets] if before else []
        tuned = trained(run, dataset, known, before.tuned if before else None, heldout)
        history = [*before.earlier, before.tuned] if before else []
        old, count = (before.merged, before.count + 1) if before else (None, 1)
        merged = merge(run, old, tuned, history, count, list(to_choose_by.values()))
        cells = {task: score(run, merged, rows) for task, rows in scored.items()}
        rivals = champion(run, scored)
        moved = drift(run, old, tuned, merged)
        run.notes.lora_run_done(LoraRun(dataset, tuned, merged, moved, cells, base_row, rivals))
    run.notes.harnessed(untouched, harness(run, merged))
    report = judged(run, merged, cells, base_row, rivals)
    run.notes.gated(report, tried)
    if not report.accepted:
        return None
    exports(run, merged, heldout[dataset.task])
    return Made([dataset], heldout, tuned, history, merged, cells, rows.aside, scored)


def trained(
    run: Run, dataset: DatasetRef, before: list[RowsRef], tuned: AdapterRef | None, heldout: dict[str, RowsRef]
) -> TrainResult:
    """One LoRA run on a dataset and a share of earlier rows, starting from the last tuned adapter."""
    spec, rows = run.spec.training, dataset.train
    if spec.replay and before:
        rows = run.call(
            data.replay,
            rows=rows,
            earlier=before,
            heldout=list(heldout.values()),
            share=spec.replay,
            passes=passes(spec, rows),
            seed=spec.seed,
        )
    merge = run.spec.merge
    start = Start(tuned=tuned, orthonormal=merge.orthonormal_start, keep=merge.keeps_function) if tuned else None
    alone = spec.model_copy(update={"replay": 0})  # `rows` contain the replay
    return run.call(training.train, base=run.base, rows=rows, spec=alone, start=start)


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
            max_length=run.spec.training.limit,
        )
        spec = spec.model_copy(update={"weight": found.weight})
    earlier = history if spec.takes_all else []
    return run.call(merging.merge, merged=merged, tuned=tuned.adapter, earlier=earlier, count=count, spec=spec)


def part(run: Run, heldout: dict[str, RowsRef], *, to_choose_by: bool) -> dict[str, RowsRef]:
    """The held-out rows that choose λ, or those that score, by task. Without a search, all score."""
    if not run.spec.merge.searches:
        return {} if to_choose_by else heldout
    return {task: run.call(data.apart, heldout=rows, to_choose_by=to_choose_by) for task, rows in heldout.items()}


def drift(run: Run, before: AdapterRef | None, tuned: TrainResult, merged: AdapterRef) -> Drift | None:
    """How far a merge moved the merged adapter; None for the first."""
    return run.call(merging.drift, before=before, tuned=tuned.adapter, after=merged) if before else None


def score_again(run: Run) -> None:
    """The matrix of an existing adapter, on the run's held-out rows or on other rows."""
    rows = curated(run)
    heldout = held_out(run, rows)
    if not rows.datasets:
        say_what_was_learned(run, heldout)
    scored = part(run, heldout, to_choose_by=False) if rows.datasets else heldout
    base_row = {task: score(run, None, rows) for task, rows in scored.items()}
    run.notes.harnessed(harness(run, None), harness(run, run.prepared.adapter))
    run.notes.evaluated({task: score(run, run.prepared.adapter, rows) for task, rows in scored.items()}, base_row)


def say_what_was_learned(run: Run, heldout: dict[str, RowsRef]) -> None:
    """Warn if an adapter is scored on rows that it was trained on."""
    learned = run.learned_before
    for task, rows in heldout.items() if learned else ():
        if known := rows.rows - run.call(data.unseen, rows=rows, learned=learned).rows:
            log.warning("%s: %d of these %d rows were trained, so the score says little", task, known, rows.rows)


def curated(run: Run) -> Split:
    """The rows to train and the rows that score, read before any GPU work; those of an earlier run, if it is about one.

    The rows that score are found first, over all inputs and the line; no dataset trains on them.
    """
    if earlier := run.earlier:
        run.notes.splits(earlier)
        return earlier
    prepared = run.prepared
    datasets = zip(run.spec.datasets, prepared.sources, strict=bool(prepared.sources))  # no sources if other rows score
    batches = [batch(run, spec, source) for spec, source in datasets]
    found: Split = run.call(
        data.split,
        batches=batches,
        watched=[batch(run, *each) for each in zip(run.spec.evaluation.watch, prepared.watch, strict=True)],
        held=run.held,
        learned=run.learned,
        heldout_max=run.spec.evaluation.heldout_max,
    )
    run.notes.splits(found)
    run.notes.curated([each.source for each in batches], found.datasets)
    return found


def batch(run: Run, spec: DatasetSpec, source: Source) -> Batch:
    """The rows of a dataset and of its held-out file."""
    alone = spec.model_copy(update={"task": None, "heldout": None, "skip": 0, "rows": None})

    def rows(file: SourceRef, path: str, curation: CurationSpec) -> Curated:
        own = alone.model_copy(update={"path": path, "curation": curation})
        tokenizer = run.base if curation.counts_tokens else None
        made = run.call(
            data.curate, source=run.decided(file, own), spec=own, template=run.template, tokenizer=tokenizer
        )
        return sifted(run, made, curation) if curation.needs_perplexity else made

    file = source.heldout
    return Batch(
        name=source.name,
        task=source.task,
        source=rows(source.data, spec.path, spec.curation),
        heldout=rows(file, spec.heldout or file.path, spec.curation.of_heldout).rows if file else None,
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
    for task in (*(dataset.task for dataset in rows.datasets), *tasks_of(run.prepared.watch)):
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


def score(run: Run, adapter: AdapterRef | None, rows: RowsRef) -> Cell:
    """One cell of the matrix."""
    return Cell(scores=scores(run, adapter, rows), rating=rating(run, adapter, rows), heldout=rows.digest)


def scores(run: Run, adapter: AdapterRef | None, rows: RowsRef) -> Scores:
    """The teacher-forced scores of an adapter on held-out rows."""
    length = run.spec.training.limit
    return run.call(evaluation.evaluate, **model(run, adapter), heldout=rows, max_length=length)


def harness(run: Run, adapter: AdapterRef | None) -> Harnessed | None:
    """The scores of lm-evaluation-harness for an adapter or the base; None if it has no tasks."""
    spec = run.spec.evaluation.harness
    return (
        run.call(evaluation.harness, **model(run, adapter), spec=spec, own=run.prepared.tasks) if spec.tasks else None
    )


def model(run: Run, adapter: AdapterRef | None) -> dict[str, Any]:
    """The base with an adapter, or without, in the precision and on the device of training."""
    return {**base_model(run), "adapter": adapter}


def base_model(run: Run) -> dict[str, Any]:
    """The base, in the precision and on the device of training."""
    spec = run.spec.training
    return {"base": run.base, "precision": spec.precision, "device": spec.device}


def rating(run: Run, adapter: AdapterRef | None, rows: RowsRef) -> Ratings | None:
    """Ratings of generated answers; None if the metric does not need them."""
    spec = run.spec.evaluation
    if spec.metric in TEACHER_FORCED:
        return None
    written = run.call(evaluation.generate, **model(run, adapter), heldout=rows, spec=spec.generation)
    if spec.metric == "judge":
        return run.call(evaluation.judge, generations=written, spec=spec.judge)
    return run.call(
        evaluation.rate,
        generations=written,
        metric=spec.metric,
        pattern=spec.pattern if spec.metric == "regex" else None,
    )


def rows_of(cells: dict[str, Cell]) -> dict[str, Scores | Ratings]:
    """The scores per row that the gate compares, by task."""
    return {task: cell.rows for task, cell in cells.items()}


def canaries(run: Run, adapter: AdapterRef) -> Answers | None:
    """The model's answers to the canary prompts; None if there are none."""
    asked = [[{"role": "user", "content": canary.prompt}] for canary in run.spec.gate.canaries]
    if not asked:
        return None
    return run.call(evaluation.answer, **model(run, adapter), conversations=asked, spec=run.spec.evaluation.generation)


def exports(run: Run, merged: AdapterRef | None, heldout: RowsRef) -> None:
    """Write every file of the export spec, and register the first GGUF file in Ollama if it says so."""
    quantizations = run.spec.export.quantizations
    known = reference(run, merged, heldout) if quantizations and run.can_read_gguf else None
    files = [export(run, merged, quantization, heldout, known) for quantization in quantizations]
    for package in run.spec.export.packages:
        hub_id = f"{run.base.name}@{run.base.revision}" if run.base.revision and package == "lora" else None
        made = run.call(exporting.package, base=run.base, adapter=merged, package=package, hub_id=hub_id)
        run.notes.packaged(made)
    if run.spec.export.ollama:
        run.notes.served(run.executor.serve(files[0], heldout))


def reference(run: Run, merged: AdapterRef | None, heldout: RowsRef) -> ReferenceRef:
    """The model's own answers, made once, to compare all files with."""
    prompts = [canary.prompt for canary in run.spec.gate.canaries]
    return run.call(
        exporting.reference, base=run.base, adapter=merged, heldout=heldout, rows=FIDELITY_ROWS, prompts=prompts
    )


def export(
    run: Run, merged: AdapterRef | None, quantization: str, heldout: RowsRef, known: ReferenceRef | None
) -> GGUFRef:
    """Write one GGUF file of the merged adapter, and compare it with the reference, if `known`."""
    if quantization in exporting.WRITTEN_DIRECTLY:
        file = converted(run, merged, quantization)
    else:
        file = quantized(run, merged, quantization, heldout)
    fidelity = None
    if known:
        fidelity = run.call(exporting.fidelity, reference=known, gguf=file, canaries=run.spec.gate.canaries)
    run.notes.exported(file, fidelity)
    return file


def converted(run: Run, merged: AdapterRef | None, outtype: str) -> GGUFRef:
    """A GGUF file in a type that needs no llama.cpp, by llama.cpp's converter for models that ours does not know."""
    wanted = {"base": run.base, "adapter": merged, "outtype": outtype}
    if run.prepared.converter:
        return run.call(exporting.convert_outside, **wanted, converter=run.prepared.converter)
    return run.call(exporting.convert, **wanted)


def quantized(run: Run, merged: AdapterRef | None, quantization: str, heldout: RowsRef) -> GGUFRef:
    """A GGUF file that llama.cpp quantizes from the f16 one, with an importance matrix if the spec says so."""
    source = converted(run, merged, "f16")
    if not run.spec.export.imatrix:
        return run.call(exporting.quantize, source=source, quantization=quantization)
    length = run.spec.training.limit
    weights = run.call(
        exporting.importance, **model(run, merged), heldout=heldout, skip=FIDELITY_ROWS, max_length=length
    )
    return run.call(exporting.quantize_weighted, source=source, quantization=quantization, importance=weights)
