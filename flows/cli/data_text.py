"""Results of the `data` verbs as text for stdout."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from backprop_core.runtime.printable_text import printable
from flows.cli.console import one_line
from flows.cli.tables import table, whole_line

if TYPE_CHECKING:
    from backprop_core.data.preview import Preview, ShownExample, ShownRow
    from backprop_core.data.put_rows import Put
    from backprop_core.data.report import DatasetReport, Lengths
    from backprop_core.data.restored_rows import QuarantinedRow
    from backprop_core.data.row_search import TracedFile
    from backprop_core.data.split_files import SplitFiles
    from backprop_core.lines.row_trace import Trace, TracedRow
    from backprop_core.schema.dataset_reports import Dropped
    from flows.rebuild import Rebuilt
    from tasks.runs.data_forget import Forgotten
    from tasks.runs.data_restore import Restored

LABEL, CUT = "green", "strike dim"
OPEN, CLOSE = "⟦", "⟧"  # around label tokens, where there are no colours
SCISSORS = "✂"  # where the maximum length cuts
TOO_LONG = {  # what training does with an example whose answer does not fit
    "drop": "Its answer does not fit: it is left out (training.too_long=drop).",
    "cut_left": "Its answer does not fit: its earliest turns are left out (training.too_long=cut_left).",
    "windows": "Its answer does not fit: it is made into several examples (training.too_long=windows).",
}
LANGUAGES = 6  # of a report
SHOWN_ROWS = 10  # forgotten rows
KINDS = {"rows": "sets of rows", "tokens": "token caches", "generations": "sets of answers"}
LEARNED = {"trained": "has learned it", "held out": "was scored on it", "used": "has used it"}
LONGEST = 1600  # characters of a span; of a longer one the middle is left out


def preview(found: "Preview") -> RenderableType:
    """Rendered rows with the label tokens marked."""
    colored = has_colors()
    head = (
        f"{found.data}: {found.rows_read:,} rows, format {found.format}, rendered with the template of {found.model}, "
        f"at most {found.max_length} tokens"
    )
    blocks = [block for row in found.rows for block in (Text(""), *row_blocks(row, found.too_long, colored))]
    return Group(Text(one_line(head)), legend(colored), *blocks)


def has_colors() -> bool:
    """Whether stdout is a terminal that shows colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def legend(colored: bool) -> Text:
    """How label tokens and what is cut look."""
    if colored:
        return Text.assemble("Learned: ", ("label tokens", LABEL), ". Beyond the maximum length: ", ("cut", CUT), ".")
    return Text(f"Learned: {OPEN}label tokens{CLOSE}. After {SCISSORS}: beyond the maximum length, cut.")


def row_blocks(row: "ShownRow", too_long: str, colored: bool) -> Iterator[RenderableType]:
    """A row's place and counts, and its text; for each of its examples."""
    if row.refused is not None:
        yield Text.assemble((row.place, "bold"), (f" · not used: {one_line(row.refused)}", "yellow"))
    for number, example in enumerate(row.examples, 1):
        part = f", answer {number} of {len(row.examples)}" if len(row.examples) > 1 else ""
        yield Text.assemble((one_line(row.place) + part, "bold"), f" · {counts(example)}")
        if example.cut_label_tokens:
            yield Text(TOO_LONG[too_long], style="yellow")
        yield marked(example, colored)


def counts(example: "ShownExample") -> str:
    """`84 tokens, 20 label tokens, 12 cut (4 of them label tokens)`"""
    parts = [f"{example.tokens} tokens", f"{example.label_tokens} label tokens"]
    if example.cut_tokens:
        lost = f" ({example.cut_label_tokens} of them label tokens)" if example.cut_label_tokens else ""
        parts.append(f"{example.cut_tokens} cut{lost}")
    return ", ".join(parts)


def marked(example: "ShownExample", colored: bool) -> Text:
    """The text of an example."""
    text, is_cut = Text(), False
    for span in example.spans:
        if span.cut and not is_cut and not colored:
            text.append(SCISSORS)
        is_cut = span.cut
        shown = shortened(printable(span.text))
        if colored:
            text.append(shown, style=" ".join(filter(None, [LABEL if span.label else "", CUT if span.cut else ""])))
        else:
            text.append(f"{OPEN}{shown}{CLOSE}" if span.label else shown)
    text.rstrip()
    return text


def shortened(text: str) -> str:
    """A long text without its middle."""
    if len(text) <= LONGEST:
        return text
    part = LONGEST // 2
    return f"{text[:part]} [… {len(text) - 2 * part} characters …] {text[-part:]}"


# Reports


def reports(found: Sequence["DatasetReport"], page: Path | None) -> RenderableType:
    """What is in datasets."""
    parts = [part for one in found for part in (*report(one), Text(""))]
    return Group(*parts[:-1], *([Text(""), Text(f"Written: {one_line(str(page))}")] if page else []))


def report(found: "DatasetReport") -> Iterator[RenderableType]:
    """What is in one dataset."""
    formats = ", ".join(one_line(name) for name in found.row_formats)
    yield Text.assemble((one_line(found.data), "bold"), f": {found.usable:,} of {found.read:,} rows usable, {formats}")
    for title, some in (("dropped", found.dropped), ("usable, but", found.found)):
        if some:
            yield Text("")
            yield by_reason(title, some, found.read)
    yield Text("")
    yield lengths(found)
    if found.tokens:
        yield Text(in_tokens(found))
    if found.languages:
        total = sum(found.languages.values())
        shares = [f"{name} {percent(rows, total)}" for name, rows in islice(found.languages.items(), LANGUAGES)]
        yield Text(f"languages of {total:,} rows: {', '.join(shares)}")


def by_reason(title: str, found: Sequence["Dropped"], read: int) -> RenderableType:
    """Rows by reason, with the first of each."""
    made = table(title, "rows", "share", "first", right=("rows", "share"))
    for one in found:
        first = one.samples[0]
        name = one_line(one.reason.replace("_", " "))
        example = one_line(f"{first.place}: {first.detail}")
        made.add_row(name, f"{one.rows:,}", percent(one.rows, read), example)
    return made


def percent(part: float, whole: float) -> str:
    """`4.2 %`; more exact below one percent."""
    share = 100 * part / whole
    return f"{share:.1f} %" if share >= 1 else f"{share:.2g} %"


def lengths(found: "DatasetReport") -> RenderableType:
    """Quantiles of the lengths."""
    columns = ("rows", "mean", "median", "90 %", "99 %", "longest")
    made = table("length in", *columns, right=columns)
    add_lengths(made, "characters", found.characters)
    if found.tokens:
        add_lengths(made, "tokens", found.tokens.lengths)
    return made


def add_lengths(made: Table, name: str, one: "Lengths") -> None:
    values = (one.rows, round(one.mean), one.median, one.p90, one.p99, one.longest)
    made.add_row(name, *(f"{value:,}" for value in values))


def in_tokens(found: "DatasetReport") -> str:
    """How many tokens are learned, and what the maximum length cuts."""
    tokens = found.tokens
    assert tokens
    about = "" if tokens.exact and tokens.lengths.rows == found.usable else "about "
    cut = f"{about}{tokens.cut:,} rows" if tokens.cut else "no row that was counted"
    lost = f", {about}{tokens.without_answer:,} before the answer begins" if tokens.without_answer else ""
    return (
        f"{100 * tokens.label_share:.1f} % of the tokens are learned; a maximum length of {tokens.max_length:,} cuts "
        f"{cut}{lost}"
    )


# Files of rows


def put(done: "Put") -> RenderableType:
    """How many rows were put where."""
    rows = f"{done.rows:,} rows" + (f", {done.malformed:,} more are malformed" if done.malformed else "")
    said = f"{rows}: already in" if done.already_there else f"{rows}: now in"
    path = one_line(done.path)
    return Group(
        whole_line(f"{said} {path}"), whole_line(f"A line reads them with datasets.0.path={Path(path).parent}")
    )


def split(made: "SplitFiles") -> RenderableType:
    """How many rows are in which file."""
    parts = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in made.dropped.items()]
    lines = [f"{made.heldout_rows:,} rows held out: {made.heldout}", f"{made.train_rows:,} rows to train on"]
    lines[-1] += f": {made.train}" if made.train else " (name a file with --train to write them)"
    if made.left_out:
        lines.append(f"{made.left_out:,} rows in neither, too close to a held-out row")
    if parts:
        lines.append(f"dropped of {made.read:,}: {', '.join(parts)}")
    return Group(*(whole_line(one_line(line)) for line in lines))


# Traces


def trace(found: "Trace") -> RenderableType:
    """Where rows are."""
    if not found.rows:
        return Text(f"No row in this store has {one_line(found.asked)}.")
    more = f"{found.found:,} rows; the first {len(found.rows)}:" if found.found > len(found.rows) else ""
    blocks = [block for row in found.rows for block in (*traced(row), Text(""))]
    return Group(*([Text(more), Text("")] if more else []), *blocks[:-1])


def in_file(one: "TracedFile") -> str:
    """Where a row stands, and what became of it there."""
    because = f" ({one.reason.replace('_', ' ')})" if one.reason else ""
    return one_line(f"{one.path or f'source {one.source[:12]}'}, {one.place}: {one.outcome}{because}")


def traced(row: "TracedRow") -> Iterator[RenderableType]:
    """One row."""
    yield Text.assemble((row.row, "bold"))
    yield Text(one_line(row.text))
    made = table("", "")
    made.show_header = False
    for one in row.files:
        made.add_row("file", in_file(one))
    for dataset in row.datasets:
        made.add_row("dataset", f"{dataset.digest[:12]}, {dataset.rows:,} rows")
    for run in row.runs:
        made.add_row("run", one_line(f"{run.run_id[:12]} ({run.flow}, line {run.line}, {run.status}): {run.side}"))
    for version in row.versions:
        live = ", live" if version.champion else ""
        made.add_row("version", f"{version.line}@{version.number}{live}: {version.side}")
        if version.published:
            made.add_row("release", one_line(f"{version.line}@{version.number}: {', '.join(version.published)}"))
    yield made


# Rows in quarantine


def restored(done: "Restored") -> RenderableType:
    """Which rows were put back; without any, those in quarantine."""
    if not done.restored and not done.quarantined:
        return Text("No row is in quarantine.")
    shown = done.restored or done.quarantined
    head = "put back" if done.restored else "in quarantine"
    left = f"{len(done.quarantined):,} more in quarantine" if done.restored else "Put back: backprop data restore ID …"
    blocks = [block for row in shown for block in (*set_apart(row), Text(""))]
    kept = [Text("The next run that reads them keeps them.")] if done.restored else []
    return Group(Text(f"Rows {head}: {len(shown):,}", style="bold"), *kept, Text(""), *blocks, Text(left))


def set_apart(row: "QuarantinedRow") -> Iterator[RenderableType]:
    """A row to look at, whole."""
    yield Text.assemble((row.row, "bold"))
    for file in row.files:
        yield Text(in_file(file))
    for turn in row.content.get("messages", [{"role": "text", "content": row.content.get("text", "")}]):
        yield Text(f"{turn['role']}: {one_line(turn['content'])}")
        yield from beside(turn, {"role", "content"})
    yield from beside(row.content, {"messages", "text"})


def beside(shown: dict[str, Any], known: set[str]) -> Iterator[RenderableType]:
    """What else a turn or a row carries: calls, reasoning, tools, chosen and rejected answers."""
    for name in sorted(shown.keys() - known):
        yield Text(f"  {name}: {one_line(json.dumps(shown[name], ensure_ascii=False))}")


# Forgotten rows


def forgotten(done: "Forgotten") -> RenderableType:
    """What was removed, or would be, and what has learned the rows."""
    kinds = Counter(one.kind for one in done.artifacts)
    counts = [f"{KINDS.get(kind, kind)}: {count}" for kind, count in sorted(kinds.items())]
    counts += [f"cached results: {done.cached}", f"checkpoints: {done.checkpoints}"]
    head = f"Rows {'that would be forgotten' if done.planned else 'forgotten'}: {len(done.rows):,}"
    if not done.rows:
        return Text("These rows were forgotten before; nothing of them is left.")
    made = table("", "")
    made.show_header = False
    for row in done.rows[:SHOWN_ROWS]:
        made.add_row("row", one_line(f"{row.row[:12]} {row.text}"))
    made.add_row("would remove" if done.planned else "removed", ", ".join(counts))
    for file in done.files:
        made.add_row("from file", one_line(f"{file.path} (rows: {file.rows:,})"))
    for path in done.quoted:
        made.add_row("text blanked in", one_line(path))
    for learner in done.learned:
        live = ", live" if learner.champion else ""
        places = f": {', '.join(learner.places)}" if learner.places else ""
        made.add_row(LEARNED.get(learner.side, learner.side), one_line(f"{learner.name}{live}{places}"))
    for one in done.outside:
        made.add_row("not changed", in_file(one))
    for copy in done.exported:
        where = f"{copy.path} on {copy.host}: line {copy.line}, exported {copy.at:%Y-%m-%d}"
        made.add_row("not changed", one_line(where))
    for words in done.left:
        made.add_row("still there", one_line(words))
    return Group(Text(head, style="bold"), made, *stays(done))


def stays(done: "Forgotten") -> Iterator[RenderableType]:
    """What a user has to know of exported lines with the rows, and of adapters that were trained on them."""
    if done.exported:
        yield Text("Exported lines above have these rows: delete the files, and export the lines again.")
    if any(learner.side == "trained" for learner in done.learned):
        yield Text(
            "The versions and runs above have learned from these rows. They are not changed: an adapter cannot unlearn."
        )


def rebuilt(shown: RenderableType, lines: Sequence["Rebuilt"], *, planned: bool) -> RenderableType:
    """What became of the lines that had learned the rows."""
    return Group(shown, Text(""), *(whole_line(one_line(text)) for one in lines for text in of_line(one, planned)))


def of_line(one: "Rebuilt", planned: bool) -> Iterator[str]:
    """A line, in sentences."""
    old, new = (", ".join(map(str, numbers)) for numbers in (one.versions, one.rebuilt))
    if one.error:
        yield f"Line {one.line} cannot be rebuilt: [{one.error.code}] {one.error.message}; {one.error.hint}"
    elif planned:
        yield (
            f"Line {one.line}: versions {old} would be trained again without them."
            if old
            else (f"Line {one.line}: no version behind its champion has seen them.")
        )
    elif one.reason:
        yield f"Line {one.line}: the champion stays, because {one.reason}. Versions without the rows: {new or 'none'}."
        if one.rebuilt:
            yield f"To make the last one live anyway: backprop rollback {one.line} --to {one.rebuilt[-1]}"
    elif one.rebuilt:
        yield f"Line {one.line}: version {one.rebuilt[-1]} is live, without the rows. Withdrawn: {old}."
    else:
        yield f"Line {one.line}: no version behind its champion has seen them. Withdrawn: {old or 'none'}."
    yield from (f"Line {one.line}: still there: {words}" for words in one.left)
