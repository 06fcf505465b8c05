"""The figures of the benchmark: means over orders and seeds, paired differences, a table for the docs."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from backprop_core.evaluation.paired_differences import paired
from benchmarks.continual_cell import AT_ONCE, Plan, Result

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "continual.md"
RECOMMENDED = "slao, A merged"
Rows = list[dict[str, Any]]


def keep(plan: Plan, results: Sequence[Result], base: dict[str, float], name: str) -> None:
    """Write the figures, and their table into the docs where they have a place for this name.

    They replace no figures of more cells.
    """
    rows = figures(plan, results, base)
    if measured_in(rows) < measured_in(kept(HERE / f"{name}.json")):
        return
    (HERE / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    tables = [table_of(rows, rate, value) for rate, value in plan.rates.items()]
    text = "\n\n".join([*tables, "\n".join(f"- {claim}" for claim in claims(rows))])
    begin, end = f"<!-- {name}: measured -->\n", f"<!-- {name}: end -->"
    document = DOCS.read_text(encoding="utf-8")
    if begin in document:
        before, _, rest = document.partition(begin)
        DOCS.write_text(before + begin + text + "\n" + end + rest.partition(end)[2], encoding="utf-8")


def kept(file: Path) -> Rows:
    """The figures that were measured before."""
    found: Rows = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return found


def measured_in(rows: Rows) -> int:
    """In how many cells methods were measured."""
    return sum(row.get("cells", 0) for row in rows)


def figures(plan: Plan, results: Sequence[Result], base: dict[str, float]) -> Rows:
    """One record for each method, rate and share of replay, of what is measured so far; scores in percent."""
    rows: Rows = []
    for rate in plan.rates:
        here = [result for result in results if result.cell.rate == rate]
        rows.append({"strategy": "base", "rate": rate, "replay": 0, "average": percent(mean(base.values()))})
        rows[-1] |= {"worst": percent(min(base.values())), "backward_transfer": None, "learned": None, "std": 0.0}
        for method, replay in dict.fromkeys((result.method, result.cell.replay) for result in here):
            chosen = [result for result in here if (result.method, result.cell.replay) == (method, replay)]
            rows.append(figures_of(chosen, here))
            if method == RECOMMENDED:
                rows.append({**rows[-1], "strategy": "recommended"})
    orders, seeds = ({getattr(result.cell, name) for result in results} - {None} for name in ("order", "seed"))
    return [row | {"orders": len(orders), "seeds": len(seeds)} for row in rows]


def figures_of(chosen: list[Result], here: list[Result]) -> dict[str, Any]:
    """Means of one method; differences to sequential and SLAO in the same cell, without replay."""
    one, averages = chosen[0], [result.average for result in chosen]
    alone = one.cell.order is None
    return {
        "strategy": one.method,
        "rate": one.cell.rate,
        "replay": one.cell.replay,
        "average": percent(mean(averages)),
        "backward_transfer": None if alone else percent(mean(result.transfer for result in chosen)),
        "learned": None if alone else percent(mean(result.learned for result in chosen)),
        "worst": percent(mean(min(result.last) for result in chosen)),
        "std": percent(stdev(averages)) if len(averages) > 1 else 0.0,
        "cells": len(chosen),
        "by_order": None if alone else by_order(chosen),
        "over_sequential": None if alone or one.method == "sequential" else over("sequential", chosen, here),
        "over_slao": None if alone or one.method == "slao" else over("slao", chosen, here),
        "over_published": None if alone or not one.cell.replay else over("slao", chosen, here, replay=0),
    }


def by_order(chosen: list[Result]) -> list[float]:
    """The mean of each order."""
    numbers = sorted({result.cell.order for result in chosen if result.cell.order is not None})
    return [percent(mean(r.average for r in chosen if r.cell.order == number)) for number in numbers]


def over(rival: str, chosen: list[Result], here: list[Result], *, replay: float | None = None) -> dict[str, Any] | None:
    """How much better than a rival, cell by cell, in the cells that both have; with the rival's own replay if given."""
    theirs = {result.cell: result.average for result in here if result.method == rival}
    twins = [(one, one.cell if replay is None else one.cell.model_copy(update={"replay": replay})) for one in chosen]
    pairs = [(one.average, theirs[twin]) for one, twin in twins if twin in theirs]
    if not pairs:
        return None
    found = paired(*zip(*pairs, strict=True))
    low, high = (percent(found.low), percent(found.high)) if found.is_known else (None, None)
    return {"mean": percent(found.mean), "low": low, "high": high, "won": found.won, "cells": found.cells}


def claims(rows: Rows) -> Iterator[str]:
    """What the figures say of the questions that matter, as far as they are measured."""
    found = {(row["strategy"], row["rate"], row["replay"]): row for row in rows}
    for (strategy, rate, replay), row in found.items():
        if strategy != "recommended":
            continue
        published = row["over_published"] if replay else row["over_slao"]
        said = f"{rate}: {RECOMMENDED}, {replay_of(replay)}: {row['average']:.1f} %"
        said += f", over SLAO as published {difference(published)}" if published else ""
        if bound := found.get((AT_ONCE, rate, 0)):
            said += f", {row['average'] / bound['average']:.1%} of all at once"
        yield f"{said}; the untouched base {found['base', rate, 0]['average']:.1f} %"


def replay_of(replay: float) -> str:
    """Replay in words."""
    return f"{replay:.0%}" if replay < 1 else f"{replay:.0f} rows"


def percent(share: float) -> float:
    return round(100 * share, 2)


def table_of(rows: Rows, rate: str, value: float) -> str:
    """Markdown, one line a method."""
    here = [row for row in rows if row["rate"] == rate and row["strategy"] != "recommended"]
    lines = [
        f"**{rate}: learning rate {value:g}**",
        "",
        "| Method | Replay | AA | BWT | a[i,i] | Worst task | over sequential | over SLAO | over SLAO without replay |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *(line(row) for row in here)])


def line(row: dict[str, Any]) -> str:
    """A line of the table."""
    name = f"**{row['strategy']}**" if row["strategy"] == RECOMMENDED else row["strategy"]
    spread = f"{row['average']:.1f} ± {row['std']:.1f}"
    known = [f"{row[field]:.1f}" if row[field] is not None else "" for field in ("backward_transfer", "learned")]
    pairs = [difference(row.get(field)) for field in ("over_sequential", "over_slao", "over_published")]
    cells = [name, replay_of(row["replay"]), spread, *known, f"{row['worst']:.1f}", *pairs]
    return f"| {' | '.join(cells)} |"


def difference(over: dict[str, Any] | None) -> str:
    """A difference, its 95 % interval, and the cells won."""
    if over is None:
        return ""
    interval = f"{over['low']:+.1f} to {over['high']:+.1f}; " if over["low"] is not None else ""
    return f"{over['mean']:+.1f} ({interval}{over['won']} of {over['cells']})"
