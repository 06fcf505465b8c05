"""Prefect artifacts of a flow run: datasets, forgetting matrix, GGUF files, link to MLflow, approval, result."""

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import MarkdownArtifact, create_link_artifact, create_markdown_artifact
from prefect.context import FlowRunContext

from backprop_core.publishing.model_card import fidelity, plain, table
from backprop_core.schema.dataset_reports import CuratedReport
from backprop_core.schema.gate_report import GateReport, TaskVerdict
from backprop_core.schema.refs import Answers, BenchReport, Evaluation, GGUFRecord, RunRecord, RunResult
from backprop_core.schema.score_text import WITHOUT_LIMIT, amount, change, gain, level
from tasks.runs.bench_figures import points
from tasks.runs.results import early_stopping
from tasks.tracking.plots import forgetting_matrix


def flow_run_id() -> str | None:
    """Prefect's id of this flow run; None outside a flow run."""
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else None


def publish(result: RunResult, reports: Sequence[CuratedReport], *, namespace: str, mlflow_link: str | None) -> None:
    """Create the artifacts of a run's result on its Prefect flow run, with keys prefixed by the namespace."""
    prefix, said = key(namespace), sentence(result)
    if reports:
        create_markdown_artifact(datasets(reports, mlflow_link), key=f"{prefix}-data", description=rows_said(reports))
    if result.evaluation:
        create_markdown_artifact(report(result, result.evaluation), key=f"{prefix}-matrix", description=said)
    if result.bench:
        create_markdown_artifact(text(result), key=f"{prefix}-comparison", description=said)
    if result.gguf:
        create_markdown_artifact(files(result.gguf), key=f"{prefix}-files", description=said)
    if mlflow_link:
        words = f"Curves, figures, files and where they come from: [the run in MLflow]({mlflow_link})"
        create_link_artifact(mlflow_link, link_text="The run in MLflow", key=f"{prefix}-mlflow", description=words)
    create_markdown_artifact(as_json(result), key=f"{prefix}-result", description=said)


def rows_said(reports: Sequence[CuratedReport]) -> str:
    """The rows of a run in one sentence."""
    read, train, dropped = (sum(counts) for counts in zip(*map(counts_of, reports), strict=True))
    return f"{read} rows read, {train} trained, {dropped} dropped"


def counts_of(report: CuratedReport) -> tuple[int, int, int]:
    return report.read, report.train, sum(one.rows for one in report.dropped)


def datasets(reports: Sequence[CuratedReport], mlflow_link: str | None) -> str:
    """What was made of a run's datasets, in Markdown: counts, and a link to the page in MLflow."""
    head = ["dataset", "task", "read", "usable", "trained", "held out", "in quarantine"]
    counts = [
        [one.name, one.task, *map(str, (one.read, one.usable, one.train, one.heldout, one.quarantined))]
        for one in reports
    ]
    left = [
        [one.name, dropped.reason, str(dropped.rows), dropped.first[0] if dropped.first else ""]
        for one in reports
        for dropped in one.dropped
    ]
    kept = [[one.name, reason, str(rows)] for one in reports for reason, rows in one.not_trained.items()]
    steps = [
        [one.name, step.step, *map(str, (step.rows, step.dropped, step.quarantined, step.noted, step.seconds))]
        for one in reports
        for step in one.steps
    ]
    parts = [
        (["dataset", "dropped", "rows", "first"], left),
        (["dataset", "not trained", "rows"], kept),
        (["dataset", "step", "rows", "dropped", "quarantined", "changed or flagged", "seconds"], steps),
    ]
    lines = [*table(head, counts), *(line for names, rows in parts if rows for line in ("", *table(names, rows)))]
    if mlflow_link:
        lines += ["", f"[The same as a page in MLflow]({mlflow_link}/artifacts/dataset-report.html)"]
    return "\n".join(lines)


def answers(said: Answers, *, namespace: str) -> None:
    """Create the artifact of a model's answers on this flow run."""
    create_markdown_artifact(as_json(said), key=f"{key(namespace)}-answers", description=f"{len(said.answers)} answers")


def as_json(result: RunResult | Answers) -> str:
    """A result as a block of JSON, in Markdown."""
    return f"```json\n{json.dumps(result.model_dump(mode='json'), indent=1)}\n```"


def sentence(result: RunResult) -> str:
    """Status and reason in one sentence, for the list of artifacts."""
    if result.error:
        return f"{result.status}: [{result.error.code}] {result.error.message}; {result.error.hint}"
    if result.gate:
        gate = f"{'accepted' if result.gate.accepted else 'rejected'}: {result.gate.reason}"
        return f"{result.reason} (the gate: {gate})" if result.reason else gate
    scores = result.evaluation
    average = f", average {level(scores.average, scores.metric)}" if scores else ""
    return f"{result.status}{f': {result.reason}' if result.reason else average}"


def report(result: RunResult, evaluation: Evaluation) -> str:
    """A run's report in Markdown, with a picture of the matrix."""
    return f"{text(result)}\n{picture(evaluation)}"


def text(result: RunResult) -> str:
    """What came of a run, in Markdown: how it ended, the gate's verdict by task, the matrix, merges and files."""
    name = f"{result.line} v{result.version}: " if result.flow == "retrain" and result.status == "finished" else ""
    parts = [
        f"**{plain(name + sentence(result))}**\n",
        gate_table(result.gate) if result.gate else "",
        matrix_table(result.evaluation) if result.evaluation else "",
        comparison(result.bench) if result.bench else "",
        merges(result.runs),
        "".join(f"{plain(said)}\n" for said in early_stopping(result.runs)),
        "\n".join(fidelity(result.gguf, [file.quantization for file in result.gguf])),
    ]
    return "\n".join(filter(None, parts))


def comparison(report: BenchReport) -> str:
    """The settings that were compared, the present one first, in Markdown."""
    head = ["setting", "average", "backward transfer", "worst task", "over present", "cells"]
    rows = [
        [
            row.name,
            level(row.average, report.metric),
            "" if row.backward_transfer is None else gain(row.backward_transfer, report.metric),
            level(row.worst, report.metric),
            points(row.over_present, report.metric) if row.over_present else "",
            str(row.cells) if row.setting else "",
        ]
        for row in report.rows
    ]
    return "\n".join(table(head, rows))


def picture(evaluation: Evaluation) -> str:
    """The forgetting matrix as a picture, in Markdown."""
    data = base64.b64encode(forgetting_matrix(evaluation)).decode()
    return f"![The forgetting matrix, and a curve a task](data:image/png;base64,{data})\n"


def ask(result: RunResult, *, namespace: str, flow_run: UUID) -> str:
    """Publish what an approval is about on a Prefect flow run: as a report, and as JSON for the page of the line.

    Returns the report in Markdown, without the picture, for the form.
    """
    assert result.evaluation and result.gate
    title = f"# May this go live in line {result.line}?\n"
    words = [title, verdict(result.gate), matrix_table(result.evaluation), merges(result.runs), files(result.gguf)]
    asked = "\n".join(filter(None, words))
    shown = f"{asked}\n{picture(result.evaluation)}"
    for name, markdown in (("approval", shown), ("candidate", as_json(result))):
        artifact = MarkdownArtifact(
            key=f"{key(namespace)}-{name}", markdown=markdown, description=sentence(result), flow_run_id=flow_run
        )
        create: Any = artifact.create  # its type includes a coroutine
        create()
    return asked


def files(gguf: Sequence[GGUFRecord]) -> str:
    """How closely each GGUF file matches the fused model, with sample answers, in Markdown; empty without files."""
    if not gguf:
        return ""
    answers = [
        [file.quantization, one.prompt, one.answer, "the same" if one.same else one.reference]
        for file in gguf
        for one in file.answers
    ]
    asked = table(["file", "asked", "it answers", "the model answers"], answers) if answers else ()
    return "\n".join([*fidelity(gguf, [file.quantization for file in gguf]), "", *asked, ""])


def key(namespace: str) -> str:
    """The namespace as Prefect allows it in an artifact's key: letters, digits and dashes."""
    return namespace.replace(".", "-").replace("_", "-")


def matrix_table(evaluation: Evaluation) -> str:
    """The forgetting matrix as Markdown, in percent."""
    rows: list[tuple[str, Sequence[float | None]]] = [("base", evaluation.base)]
    rows += [(f"after run {i + 1}", row) for i, row in enumerate(evaluation.matrix)]
    forgotten = " | ".join("–" if lost is None else amount(lost, evaluation.metric) for lost in evaluation.forgetting)
    lines = [
        f"| token accuracy, % | {' | '.join(map(plain, evaluation.tasks))} |",
        f"| --- |{' ---: |' * len(evaluation.tasks)}",
        *(f"| {name} | {' | '.join(percent(score) for score in row)} |" for name, row in rows),
        f"| *forgotten, in {evaluation.metric}* | {forgotten} |",
    ]
    moved = evaluation.backward_transfer
    transfer = "" if moved is None else f", backward transfer {gain(moved, evaluation.metric)}"
    average = level(evaluation.average, evaluation.metric)
    return "\n".join(lines) + f"\n\naverage {average} ({evaluation.metric}){transfer}\n"


def merges(runs: Sequence[RunRecord]) -> str:
    """λ of each merge, and how much it changed the merged adapter's factors; empty without merges."""
    rows = [
        f"| {record.dataset.task} | {record.drift.weight:.3f} | {percent(record.drift.a)} | {percent(record.drift.b)} |"
        for record in runs
        if record.drift
    ]
    return (
        "\n".join(["| merged | λ | A moved, % | B moved, % |", "| --- | ---: | ---: | ---: |", *rows, ""])
        if rows
        else ""
    )


def verdict(report: GateReport) -> str:
    """The gate's decision and reason, with each task's difference and bounds, in Markdown."""
    decided = f"**{'accepted' if report.accepted else 'rejected'}**: {report.reason}\n"
    return f"{decided}\n{gate_table(report)}"


def gate_table(report: GateReport) -> str:
    """Each task's difference and bounds, in Markdown."""
    head = f"| task | rows | the {report.against} | candidate | difference | at least | at most | a fall shows from | |"
    rows = [f"| {plain(one.task)} | {one.rows} | {' | '.join(figures(one, report.metric))} |" for one in report.tasks]
    return "\n".join([head, "| --- |" + " ---: |" * 7 + " --- |", *rows, ""])


def figures(task: TaskVerdict, metric: str) -> Iterator[str]:
    """The cells of a task: scores, difference, its bounds, the smallest fall that its rows can show, and a remark."""
    yield from (level(score, metric) for score in (task.rival, task.candidate))
    yield from (change(one, metric) for one in (task.difference, task.low, task.high))
    possible = task.detectable is not None and (metric in WITHOUT_LIMIT or task.detectable <= 1)
    yield amount(task.detectable, metric) if possible and task.detectable else "–"
    yield remark(task)


def remark(verdict: TaskVerdict) -> str:
    """The remark in a task's row."""
    if verdict.low is None:
        return "too few rows"
    return "**worse**" if verdict.worse else ""


def percent(score: float | None) -> str:
    """A share as percent with one decimal; empty for None."""
    return "" if score is None else f"{100 * score:.1f}"
