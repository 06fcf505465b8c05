"""A run's result as tables and short texts: LoRA runs, forgetting matrix, verdict, files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from backprop_core.schema.flows import flow_info
from backprop_core.schema.gate_report import GateReport
from backprop_core.schema.refs import (
    Choice,
    DatasetSummary,
    Drift,
    Evaluation,
    GGUFRecord,
    HarnessRecord,
    RunRecord,
    RunResult,
    StageRecord,
    Standing,
    SweepReport,
    SweepRow,
)
from backprop_core.schema.score_text import WITHOUT_LIMIT, amount, bare, change, gain, level, titled
from flows.cli.bench_text import comparison
from flows.cli.console import one_line
from flows.cli.tables import duration, number, size, status_text, table, whole_line
from tasks.runs.results import early_stopping
from tasks.stages.labels import NOT_TRAINED, preferences

HEAT = ("#ffffcc", "#c7e9b4", "#7fcdbb", "#1d91c0", "#225ea8", "#0c2c84")  # from 0 to 1
BARS = "▁▂▃▄▅▆▇█"


def run(result: RunResult) -> RenderableType:
    """One run: its outcome, the forgetting matrix, the files."""
    parts: list[RenderableType] = [heading(result)]
    if result.defaults:
        parts.append(Text(f"chosen defaults: {', '.join(map(chosen, result.defaults))}"))
    if result.runs:
        parts += ["", lora_runs(result), *(line for one in result.runs if (line := not_trained(one.dataset)))]
        stopped = map(one_line, early_stopping(result.runs))
        parts += map(Text, [*judged_rows(result), *cut_rows(result), *stopped])
    if result.sweep:
        parts += ["", sweep(result.sweep)]
    if result.evaluation:
        parts += ["", *matrix(result.evaluation, result.runs)]
    if result.bench:
        parts += ["", comparison(result.bench)]
    if result.harness:
        parts += ["", harness(result.harness)]
    if result.gate:
        parts += ["", *gate(result.gate)]
    parts += ["", *files(result)]
    return Group(*parts)


def explained(shown: RenderableType, stages: Sequence[StageRecord]) -> RenderableType:
    """What is shown of a run or plan, and why each stage is not taken from the cache."""
    made = table("stage", "not cached, because this changed")
    for stage in stages:
        for place, line in enumerate(stage.changed):
            made.add_row(stage.stage if place == 0 else "", one_line(line))
    return Group(shown, "", made if any(stage.changed for stage in stages) else Text("every stage is cached"))


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


def judged_rows(result: RunResult) -> Iterator[str]:
    """How many of the trained rows were preferences, per dataset that has any."""
    for dataset in (record.dataset for record in result.runs):
        if trained := preferences(dataset.pairs, dataset.ratings):
            yield f"{one_line(dataset.name)}: {trained} of the trained rows"


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


def sweep(report: SweepReport) -> RenderableType:
    """One row per combination of settings, compared with the best."""
    figures = ("score", "±", "to the best", "from", "to", "steps", "took", "tokens/s")
    made = table("settings", *figures, "", right=figures)
    for row in report.cells:
        settings = ", ".join(f"{name.removeprefix('training.')}={value}" for name, value in row.settings.items())
        took = ("", "", "") if row.code else (str(row.steps), duration(row.seconds), number(row.tokens_per_second, 0))
        made.add_row(one_line(settings), *standing(row.standing), *took, remark(row, report))
    heading = f"{report.rows} training rows score, in {report.metric}; {report.confidence:.0%} confidence for all pairs"
    return Group(Text(heading), made)


def standing(found: Standing | None) -> tuple[str, ...]:
    """A score, half the width of its interval, and its difference to the best with bounds."""
    if found is None:
        return ("",) * 5
    width = (found.high - found.low) / 2
    figures = (found.score, width, found.difference, found.difference_low, found.difference_high)
    return tuple(number(value, 4) for value in figures)


def remark(row: SweepRow, report: SweepReport) -> str:
    """What is special about a combination."""
    said = [f"[{row.code}]"] if row.code else []
    said += ["take this"] if row.settings == report.take else []
    said += ["default"] if row.is_default else []
    return ", ".join([*said, *(["cached"] if row.cached else [])])


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
    metric = evaluation.metric
    words = metric.replace("_", " ")
    tables = {"token_accuracy": ("token accuracy on held-out rows", evaluation.base, evaluation.matrix)}
    if metric != "token_accuracy" and evaluation.scores:
        tables[metric] = words, evaluation.base_scores, evaluation.scores
    for name, (title, base, rows) in tables.items():
        yield Text(titled(title, name), style="bold")
        made = heat_map(evaluation, base, rows, runs, name)
        if name == list(tables)[-1]:
            lost = ("–" if one is None else bare(amount(one, metric)) for one in evaluation.forgetting)
            made.add_row("forgotten", *lost, style="dim")
        yield made
    transfer = evaluation.backward_transfer
    yield Text(
        f"{words}: average {level(evaluation.average, metric)}"
        + ("" if transfer is None else f"  backward transfer {gain(transfer, metric)}")
    )
    yield from (drift(record, record.drift) for record in runs if record.drift)


def heat_map(
    evaluation: Evaluation,
    base: Sequence[float],
    rows: Sequence[Sequence[float | None]],
    runs: Sequence[RunRecord],
    metric: str,
) -> Table:
    """The base first, then a row per run; empty before a task's first run. The last row draws each task's curve."""
    tasks = [f"({task})" if task in evaluation.watch else task for task in evaluation.tasks]
    names = [record.dataset.name for record in runs]
    earlier = [f"run {number}" for number in range(1, len(rows) - len(names) + 1)]
    made = table("after", *tasks, right=tasks)
    made.add_row("base", *(heat(score, metric) for score in base))
    for name, row in zip([*earlier, *names], rows, strict=True):
        made.add_row(one_line(name), *(heat(score, metric) for score in row))
    if len(rows) > 1:
        made.add_row(*map(Text, ("", *map(curve, zip(base, *rows, strict=True)))), style="dim")
    return made


def heat(score: float | None, metric: str = "token_accuracy") -> Text:
    """A score, on a colour if it is one from 0 to 1; empty for None."""
    text = "" if score is None else bare(level(score, metric))
    if score is None or metric in WITHOUT_LIMIT:
        return Text(text)
    step = min(int(score * len(HEAT)), len(HEAT) - 1)
    return Text(text, style=f"{'black' if step < len(HEAT) / 2 else 'white'} on {HEAT[step]}")


def curve(scores: Sequence[float | None]) -> str:
    """One bar per score, a space for a missing one. Empty for losses."""
    known = [score for score in scores if score is not None]
    if min(known) < 0:
        return ""
    return "".join(" " if score is None else BARS[min(int(score * len(BARS)), len(BARS) - 1)] for score in scores)


def drift(record: RunRecord, drift: Drift) -> Text:
    """How far the merge moved the adapter, and how much of that was taken."""
    moved = f"λ {drift.weight:.3f}, A moved by {drift.a:.1%}, B by {drift.b:.1%}"
    taken = "" if record.taken is None else f"; back-off took {record.taken:.0%} of the change"
    return Text(f"{one_line(record.dataset.name)} merged: {moved}{taken}")


def gate(report: GateReport) -> Iterator[RenderableType]:
    """The gate's decision and reason, and each task's difference with its bounds."""
    yield Text.assemble("gate: ", status_text("accepted" if report.accepted else "rejected"), f", {report.reason}")
    figures = ("rows", f"the {report.against}", "candidate", "difference", "at least", "at most", "shows a drop of")
    metric = report.metric
    made = table(titled("task", metric), *figures, "", right=figures)
    for one in report.tasks:
        scores = (level(score, metric) for score in (one.rival, one.candidate))
        bounds = (change(each, metric) for each in (one.difference, one.low, one.high))
        shows = "–" if one.detectable is None else amount(one.detectable, metric)
        numbers = map(bare, (*scores, *bounds, shows))
        made.add_row(one.task, str(one.rows), *numbers, "worse" if one.worse else "")
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
