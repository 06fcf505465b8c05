"""Results as tables and short texts for stdout."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from backprop_core.runtime.printable_text import printable
from backprop_core.schema.flows import flow_info
from backprop_core.schema.gate_report import GateReport
from backprop_core.schema.refs import (
    Answers,
    Choice,
    DatasetSummary,
    Drift,
    Evaluation,
    GGUFRecord,
    HarnessRecord,
    RunRecord,
    RunResult,
    StageRecord,
)
from flows.cli.console import one_line
from tasks.stages.labels import NOT_TRAINED

if TYPE_CHECKING:
    from backprop_core.lines.prune import Pruned
    from tasks.runs.estimate import Estimate
    from tasks.runs.line_state import LineSummary
    from tasks.runs.plan import Plan
    from tasks.tracking import RunSummary

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
STYLES = {
    "finished": "green",
    "accepted": "green",
    "ok": "green",
    "missing": "yellow",
    "wrong": "red",
    "failed": "red",
    "interrupted": "yellow",
    "rejected": "yellow",
    "running": "cyan",
}
HEAT = ("#ffffcc", "#c7e9b4", "#7fcdbb", "#1d91c0", "#225ea8", "#0c2c84")  # from 0 to 1
BARS = "▁▂▃▄▅▆▇█"
BESIDE_A_TERMINAL = 1000  # columns: lines in a file or a pipe are not wrapped


class Stdout(Console):
    """A console whose output may be closed."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise for the outermost frame; rich would exit with the status of an error."""
        raise BrokenPipeError


def show(renderable: RenderableType) -> None:
    """Print to stdout, with styles on a terminal, with unwrapped lines elsewhere."""
    width = None if sys.stdout.isatty() else BESIDE_A_TERMINAL
    Stdout(markup=False, emoji=False, highlight=False, width=width).print(
        renderable, crop=False, soft_wrap=isinstance(renderable, str | Text)
    )


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table. Only cells of its last column wrap."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        made.add_column(
            name, justify="right" if name in right else "left", overflow="fold", no_wrap=name != columns[-1]
        )
    return made


def whole_line(text: str) -> Text:
    """A line that only the terminal wraps, so that a path can be copied."""
    return Text(text, no_wrap=True, overflow="ignore")


def number(value: float | None, digits: int = 3) -> str:
    """A number, or an empty cell."""
    return "" if value is None else f"{value:.{digits}f}"


def known(value: float | None) -> str:
    """A number, or a dash if it is not known."""
    return "–" if value is None else number(value)


def duration(seconds: float | None) -> str:
    """`48 s`, `3:05 min`, `2:07 h`."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, part = divmod(minutes, 60)
    if hours:
        return f"{hours}:{part:02} h"
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"


def about(seconds: float) -> str:
    """`under a minute`, `about 12 min`, `about 3.5 h`."""
    if seconds < 60:
        return "under a minute"
    return f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"


def size(count: int) -> str:
    """`3.1 MiB`"""
    power = min(int(math.log(max(count, 1), 1024)), len(UNITS) - 1)
    return f"{count / 1024**power:.{1 if power else 0}f} {UNITS[power]}"


def status_text(status: str) -> Text:
    return Text(status, style=STYLES.get(status, ""))


def runs(summaries: Sequence["RunSummary"]) -> RenderableType:
    """The history, newest first."""
    if not summaries:
        return "No runs yet. Start one: backprop demo"
    made = table("run", "line", "status", "started", "took", "average", "data, error", right=("took", "average"))
    for run in summaries:
        made.add_row(
            run["run_id"][:12],
            run["line"],
            status_text(run["status"]),
            f"{datetime.fromisoformat(run['started']).astimezone():%m-%d %H:%M}",
            duration(run["seconds"]),
            number(run["average"]),
            run["error"] if run["error"] and run["status"] == "failed" else one_line(", ".join(run["datasets"])),
        )
    return made


def lines(summaries: Sequence["LineSummary"]) -> RenderableType:
    """Every line with its champion."""
    if not summaries:
        return "No lines yet. Start one: backprop retrain --line NAME --data FILE"
    figures = ("champion", "versions", "runs", "size")
    made = table("line", *figures, "run", "live as", "base", "tasks", right=figures)
    for one in summaries:
        made.add_row(
            one["line"],
            str(one["champion"] or "none"),
            str(len(one["versions"])),
            str(one["runs"]),
            size(one["bytes"]),
            one["run_id"][:12],
            one_line(", ".join(one["live"])),
            one_line(one["base"]),
            ", ".join(one["tasks"]),
        )
    by_hand = [
        Text(f"{one['line']}, version {one['champion']}: {one_line(one['by_hand'])}")
        for one in summaries
        if one["by_hand"]
    ]
    return Group(made, *by_hand) if by_hand else made


def pruned(done: "Pruned", *, dry_run: bool) -> RenderableType:
    """What a prune deleted, or would delete, by the run or version that made it."""
    listed = table("made by", "ended", "artifacts", "size", right=("artifacts", "size"))
    for item in done.items:
        ended = "" if item.ended is None else time.strftime("%Y-%m-%d", time.localtime(item.ended))
        listed.add_row(one_line(item.what), ended, str(len(item.artifacts)), size(item.bytes))
    text = f"{'would delete' if dry_run else 'deleted'} {done.artifacts} artifacts, {done.checkpoints} checkpoints: "
    total = Text(f"{text}{size(done.bytes)}, {size(done.left)} left")
    return Group(listed, "", total) if done.items else total


def explained(shown: RenderableType, stages: Sequence[StageRecord]) -> RenderableType:
    """What is shown of a run or plan, and why each stage is not taken from the cache."""
    made = table("stage", "not cached, because this changed")
    for stage in stages:
        for number, line in enumerate(stage.changed):
            made.add_row(stage.stage if number == 0 else "", one_line(line))
    return Group(shown, "", made if any(stage.changed for stage in stages) else Text("every stage is cached"))


def run(result: RunResult) -> RenderableType:
    """One run: its outcome, the forgetting matrix, the files."""
    parts: list[RenderableType] = [heading(result)]
    if result.defaults:
        parts.append(Text(f"chosen defaults: {', '.join(map(chosen, result.defaults))}"))
    if result.runs:
        parts += ["", lora_runs(result), *(line for one in result.runs if (line := not_trained(one.dataset)))]
        parts += map(Text, cut_rows(result))
    if result.evaluation:
        parts += ["", *matrix(result.evaluation, result.runs)]
    if result.harness:
        parts += ["", harness(result.harness)]
    if result.gate:
        parts += ["", *gate(result.gate)]
    parts += ["", *files(result)]
    return Group(*parts)


def harness(records: Sequence[HarnessRecord]) -> Table:
    """The scores of lm-evaluation-harness, beside those of the base."""
    made = table("lm-evaluation-harness", "metric", "base", "merged", right=("base", "merged"))
    for record in records:
        made.add_row(one_line(record.task), record.metric, number(record.base), number(record.score))
    return made


def heading(result: RunResult) -> Text:
    """Id, status, line, version, base and error of a run."""
    text = Text.assemble("run ", (result.run_id, "bold"), "  ", status_text(result.status))
    text.append(f"  line {result.line}")
    if result.version:
        text.append(f", live: version {result.version}")
    if result.reason:
        text.append(f"\n{result.reason}")
    if result.act:
        text.append(f"\n{one_line(result.act.sentence)}")
    if result.base:
        day = f", its chat template dated {result.base.day}" if result.base.day else ""
        text.append(f"\nbase {one_line(result.base.name)}  {result.base.digest[:12]}{day}")
    if result.error:
        text.append(f"\n[{result.error.code}] {one_line(result.error.message)}\n{one_line(result.error.hint)}", "red")
    return text


def chosen(choice: Choice) -> str:
    """A field with the value that was chosen for it; the reason is in the JSON."""
    return f"{choice.field.removeprefix('training.')} {choice.value}"


def cut_rows(result: RunResult) -> Iterator[str]:
    """How many rows were shortened or left out, per dataset that has any."""
    length = result.spec.get("training", {}).get("max_length")
    for record in result.runs:
        if record.cut or record.left_out:
            counts = {"shortened": record.cut, "left out": record.left_out}
            said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
            yield f"{one_line(record.dataset.name)}: of rows longer than {length} tokens {said}"


def lora_runs(result: RunResult) -> Table:
    """One row per LoRA run."""
    figures = ("rows", "held-out", "dropped", "steps", "tokens", "loss", "took")
    made = table("dataset", "task", *figures, "", right=figures)
    for record in result.runs:
        dataset = record.dataset
        made.add_row(
            one_line(dataset.name),
            dataset.task,
            str(dataset.train_rows),
            str(dataset.heldout_rows),
            str(sum(dataset.dropped.values())),
            str(record.steps),
            str(record.tokens),
            number(record.train_loss),
            duration(record.seconds),
            "cached" if record.cached else "",
        )
    return made


def not_trained(dataset: DatasetSummary) -> Text | None:
    """Why rows of a dataset were not trained; None if the table says it all."""
    said = [f"{count} {NOT_TRAINED.get(reason, reason)}" for reason, count in dataset.not_trained.items()]
    bad = [f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(dataset.dropped.items())]
    if not bad and dataset.not_trained.keys() <= {"held_out"}:
        return None
    parts = [*said, f"{sum(dataset.dropped.values())} dropped ({', '.join(bad)})"] if bad else said
    return Text(f"{one_line(dataset.name)}, not trained: {', '.join(parts)}")


def matrix(evaluation: Evaluation, runs: Sequence[RunRecord]) -> Iterator[RenderableType]:
    """The forgetting matrix: the score of every task after every run, with averages.

    In token accuracy, and in the metric of the averages if that is another one.
    """
    tables = {"token accuracy on held-out rows": (evaluation.base, evaluation.matrix)}
    if evaluation.metric != "token_accuracy" and evaluation.scores:
        tables[evaluation.metric.replace("_", " ")] = evaluation.base_scores, evaluation.scores
    for title, (base, rows) in tables.items():
        yield Text(title, style="bold")
        made = heat_map(evaluation, base, rows, runs)
        if title == list(tables)[-1]:
            made.add_row("forgotten", *map(known, evaluation.forgetting), style="dim")
        yield made
    transfer = evaluation.backward_transfer
    yield Text(
        f"{evaluation.metric.replace('_', ' ')}: average {number(evaluation.average)}"
        + ("" if transfer is None else f"  backward transfer {transfer:+.3f}")
    )
    yield from (drift(record.dataset.name, record.drift) for record in runs if record.drift)


def heat_map(
    evaluation: Evaluation, base: Sequence[float], rows: Sequence[Sequence[float | None]], runs: Sequence[RunRecord]
) -> Table:
    """The base first, then a row per run; empty before a task's first run. The last row draws each task's curve."""
    tasks = [f"({task})" if task in evaluation.watch else task for task in evaluation.tasks]
    names = [record.dataset.name for record in runs]
    earlier = [f"run {number}" for number in range(1, len(rows) - len(names) + 1)]
    made = table("after", *tasks, right=tasks)
    made.add_row("base", *map(heat, base))
    for name, row in zip([*earlier, *names], rows, strict=True):
        made.add_row(one_line(name), *map(heat, row))
    if len(rows) > 1:
        made.add_row(*map(Text, ("", *map(curve, zip(base, *rows, strict=True)))), style="dim")
    return made


def heat(score: float | None) -> Text:
    """A score from 0 to 1, on a colour."""
    if score is None or score < 0:
        return Text(number(score))
    step = min(int(score * len(HEAT)), len(HEAT) - 1)
    return Text(number(score), style=f"{'black' if step < len(HEAT) / 2 else 'white'} on {HEAT[step]}")


def curve(scores: Sequence[float | None]) -> str:
    """One bar per score, a space for a missing one. Empty for losses."""
    known = [score for score in scores if score is not None]
    if min(known) < 0:
        return ""
    return "".join(" " if score is None else BARS[min(int(score * len(BARS)), len(BARS) - 1)] for score in scores)


def drift(name: str, drift: Drift) -> Text:
    """How far the merge moved the adapter."""
    return Text(f"{one_line(name)} merged: λ {drift.weight:.3f}, A moved by {drift.a:.1%}, B by {drift.b:.1%}")


def answers(said: Answers) -> RenderableType:
    """The generated answers, separated by lines."""
    return Text("\n---\n".join(printable(one.text) for one in said.answers))


def gate(report: GateReport) -> Iterator[RenderableType]:
    """The gate's decision and reason, and each task's difference with its bounds."""
    yield Text.assemble("gate: ", status_text("accepted" if report.accepted else "rejected"), f", {report.reason}")
    figures = ("rows", f"the {report.against}", "candidate", "difference", "at least", "at most", "shows a drop of")
    made = table("task", *figures, "", right=figures)
    for one in report.tasks:
        scores = map(number, (one.rival, one.candidate, one.difference))
        bounds = map(known, (one.low, one.high, one.detectable))
        made.add_row(one.task, str(one.rows), *scores, *bounds, "worse" if one.worse else "")
    yield made
    for canary in report.canaries:
        verdict = "" if canary.passed else "  as the champion" if canary.rival_passed is False else "  lost"
        yield Text(f"canary {one_line(canary.prompt)} → {one_line(canary.answer)}{verdict}")


def files(result: RunResult) -> Iterator[Text]:
    """The files of a run, and the next command."""
    yield from files_of(result)
    match result.status:
        case "failed" | "interrupted" if not flow_info(result.flow or "").resumable:
            yield Text("to try again, start it again")
        case "failed" | "interrupted":
            yield Text(f"to continue: backprop resume {result.run_id}")
        case "unchanged":
            yield Text("nothing changed")
        case "finished" if not result.gguf and result.runs:
            yield Text(f"next: backprop export {result.run_id[:12]} --quantization q4_k_m")
        case "finished" | "running":
            yield Text(f"show it again: backprop show-run {result.run_id[:12]}")


def files_of(result: RunResult) -> Iterator[Text]:
    """The merged adapter and the GGUF files, with size and quality."""
    if result.merged:
        yield whole_line(f"adapter  {result.merged.path}  {size_on_disk(result.merged.path)}")
    for file in result.gguf:
        yield whole_line(f"{file.quantization:<8} {file.path}  {size(file.bytes)}{quality(file)}")
    for package in result.packages:
        yield whole_line(f"{package.package:<8} {package.path}  {size(package.bytes)}")
    for path in result.written:
        yield whole_line(f"written  {path}")
    if result.hub:
        yield Text(f"hub      {result.hub['repo']}  commit {result.hub['commit'][:12]}")
    if result.ollama:
        yield Text(f"ollama   {result.ollama['model']}  answers: {one_line(result.ollama['answer'])[:60]}")


def size_on_disk(path: str) -> str:
    """The size of a directory of this machine."""
    files = [file for file in Path(path).rglob("*") if file.is_file()]
    return size(sum(file.stat().st_size for file in files)) if files else "no longer on this machine"


def quality(file: GGUFRecord) -> str:
    """How closely a GGUF file answers like its model."""
    if not file.fidelity:
        return ""
    answers = f", same answers {file.same_answers}" if file.answers else ""
    top1, kl = file.fidelity["top1"], max(0.0, float(file.fidelity["kl"]))
    return f"  same next token {top1:.1%}, KL {kl:.2g} nats{answers}"


def vram(estimate: "Estimate") -> RenderableType:
    """The memory of each way to train, in GiB, whether it fits, and what a run would choose."""
    parts = [name for name in estimate.ways[0].parts if any(way.parts[name] for way in estimate.ways)]
    figures = [*parts, "total", "longest"]
    made = table("base", "checkpointing", *figures, "fits", right=figures)
    for way in estimate.ways:
        made.add_row(
            way.precision,
            "on" if way.checkpointing else "off",
            *(number(way.parts[name], 2) for name in parts),
            number(way.total, 2),
            "" if way.longest is None else str(way.longest),
            way.fits or "",
        )
    choices = table("a run would choose", "", "reason")
    for choice in estimate.choices:
        choices.add_row(choice.field, str(choice.value), one_line(choice.reason))
    time = [] if estimate.seconds is None else ["", f"one training: {about(estimate.seconds)} on this machine"]
    return Group(vram_heading(estimate), "", made, "", choices, *time)


def plan(plan: "Plan") -> RenderableType:
    """How many of each stage are cached and how many would run, and what they need."""
    made = table("stage", "cached", "would run", right=("cached", "would run"))
    for name in dict.fromkeys(stage.stage for stage in plan.stages):
        cached = [stage.cached for stage in plan.stages if stage.stage == name]
        made.add_row(name, str(sum(cached)), str(len(cached) - sum(cached)))
    choices = table("chosen default", "", "reason")
    for choice in plan.defaults:
        choices.add_row(choice.field, str(choice.value), one_line(choice.reason))
    reasons: list[RenderableType] = [choices, ""] if plan.defaults else []
    return Group(planned_rows(plan), "", made, "", *reasons, *needs(plan))


def planned_rows(plan: "Plan") -> RenderableType:
    """How many rows of each dataset are read, trained and scored."""
    figures = ("read", "train", "score", "tokens")
    made = table("dataset", "task", *figures, "left out", right=figures)
    for rows in plan.rows:
        counted = {**rows.dropped, **{NOT_TRAINED.get(reason, reason): n for reason, n in rows.not_trained.items()}}
        left_out = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in counted.items())
        counts = (str(rows.read), str(rows.train), str(rows.heldout), "" if rows.tokens is None else str(rows.tokens))
        made.add_row(one_line(rows.name), rows.task, *counts, left_out)
    return made


def needs(plan: "Plan") -> Iterator[Text]:
    """Time, memory and disk, if known."""
    unknown = "unknown for a model of this kind"
    device = "GPU" if plan.device == "cuda" else "CPU"
    yield Text("time  unknown" if plan.seconds is None else f"time  {about(plan.seconds)} on this {device}")
    if plan.device == "cuda":
        yield Text(f"VRAM  {unknown if plan.vram is None else f'{plan.vram:.1f} GiB'}, {plan.vram_free:.1f} GiB free")
    else:
        yield Text("VRAM  none: the run uses the CPU")
    yield Text(f"disk  {unknown if plan.disk is None else f'{plan.disk:.2f} GiB'}, {plan.disk_free:.1f} GiB free")


def vram_heading(estimate: "Estimate") -> Text:
    card = "no GPU found; set its memory with --vram" if estimate.vram_gib is None else f"{estimate.vram_gib:.1f} GiB"
    return Text(
        f"{one_line(estimate.model)}: {estimate.parameters / 1e9:.2f}B parameters, "
        f"{estimate.lora_parameters / 1e6:.1f}M of LoRA; {estimate.tokens} tokens at a time; GPU: {card}\nin GiB:"
    )
