"""Lists, plans and estimates as tables for stdout, and what all tables are made with."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NoReturn

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Column, Table
from rich.text import Text

from backprop_core.runtime.printable_text import printable
from backprop_core.schema.refs import Answers
from flows.cli.console import one_line
from tasks.stages.labels import NOT_TRAINED, preferences

if TYPE_CHECKING:
    from backprop_core.lines.prune import Pruned
    from backprop_core.store.copying import Copied
    from tasks.runs.estimate import Estimate
    from tasks.runs.line_state import LineSummary
    from tasks.runs.plan import Plan, PlannedRows
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
LEAST = 5  # letters a line that a column which wraps should have
GAP = 2  # spaces between two columns
ENDLESS = 10**6  # columns of a file or a pipe: lines are not wrapped


class Stdout(Console):
    """A console whose output may be closed."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise for the outermost frame; rich would exit with the status of an error."""
        raise BrokenPipeError


class WholeTable(Table):
    """A table that cuts no letter.

    Where its columns do not fit, all of them wrap, the widest first. Where there are too many of them for that, the
    terminal wraps its lines.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rigid = [column for column in self.columns if column.no_wrap]
        widest = (max(cell_len(line) for line in texts(column)) for column in rigid)
        gaps = GAP * (len(self.columns) - 1)
        if len(self.columns) * LEAST + gaps > options.max_width:
            options = options.update(max_width=ENDLESS)
        if sum(widest) + gaps + (len(self.columns) - len(rigid)) * LEAST > options.max_width:
            for column in rigid:
                column.no_wrap = False
        yield from super().__rich_console__(console, options)


def texts(column: Column) -> Iterator[str]:
    """The lines of the header and the cells of a column."""
    for cell in (column.header, *column.cells):
        yield from str(cell).splitlines() or [""]


def show(renderable: RenderableType) -> None:
    """Print to stdout, with styles on a terminal, with unwrapped lines elsewhere."""
    width = None if sys.stdout.isatty() else ENDLESS
    Stdout(markup=False, emoji=False, highlight=False, width=width).print(
        renderable, crop=False, soft_wrap=isinstance(renderable, str | Text)
    )


def table(*columns: str, right: Sequence[str] = (), wrap: Sequence[str] = ()) -> Table:
    """An empty table. Only cells of its last column wrap, and those of `wrap`."""
    made = WholeTable(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        made.add_column(
            name,
            justify="right" if name in right else "left",
            overflow="fold",
            no_wrap=name not in (columns[-1], *wrap),
        )
    return made


def whole_line(text: str) -> Text:
    """A line that only the terminal wraps, so that a path can be copied."""
    return Text(text, no_wrap=True, overflow="ignore")


def number(value: float | None, digits: int = 3) -> str:
    """A number, or an empty cell."""
    return "" if value is None else f"{value:.{digits}f}"


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
    served = ["live as"] if any(one["live"] for one in summaries) else []
    made = table("line", *figures, "run", *served, "base", "tasks", right=figures, wrap=("live as", "base"))
    for one in summaries:
        made.add_row(
            one["line"],
            str(one["champion"] or "none"),
            str(len(one["versions"])),
            str(one["runs"]),
            size(one["bytes"]),
            one["run_id"][:12],
            *(one_line(", ".join(one["live"])) for _ in served),
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


def copied(done: "Copied") -> RenderableType:
    """What a copy of a store did, and what it left as it was."""
    text = f"copied {done.artifacts} artifacts ({size(done.bytes)}) and {done.records} records"
    kept = [Text(f"differs there, and stays: {printable(name)}") for name in done.kept]
    left = [Text(f"forgotten, and still there: row {row}; backprop data forget {row[:12]}") for row in done.forgotten]
    return Group(Text(text), *kept, *left)


def answers(said: Answers) -> RenderableType:
    """The generated answers, separated by lines."""
    return Text("\n---\n".join(printable(one.text) for one in said.answers))


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
    shows: list[RenderableType] = [Text(plan.power.sentence), ""] if plan.power else []
    cells: list[RenderableType] = [Text(f"{len(plan.cells)} cells, the base apart"), ""] if plan.cells else []
    return Group(planned_rows(plan), "", *cells, made, "", *reasons, *shows, *needs(plan))


def planned_rows(plan: "Plan") -> RenderableType:
    """How many rows of each dataset are read, trained and scored."""
    figures = ("read", "train", "score", "tokens")
    made = table("dataset", "task", *figures, "left out", right=figures)
    for rows in plan.rows:
        counted = {**rows.dropped, **{NOT_TRAINED.get(reason, reason): n for reason, n in rows.not_trained.items()}}
        left_out = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in counted.items())
        counts = (str(rows.read), str(rows.train), str(rows.heldout), "" if rows.tokens is None else str(rows.tokens))
        made.add_row(one_line(rows.name), rows.task, *counts, left_out)
    return Group(made, *filter(None, map(judged_rows, plan.rows)))


def judged_rows(rows: "PlannedRows") -> Text | None:
    """How many of the rows of a dataset are preferences; None if none is."""
    if not (trained := preferences(rows.pairs, rows.ratings)):
        return None
    return Text(f"{one_line(rows.name)}: {trained} of the rows to train; {rows.heldout_preferences} others score")


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
