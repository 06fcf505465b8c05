"""The figures of the benchmark: means over orders and seeds, paired differences, a table for the docs."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.continual_cell import Plan, Result

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "continual.md"
RECOMMENDED = "average of A and B"
Rows = list[dict[str, Any]]


def keep(plan: Plan, results: Sequence[Result], base: dict[str, float], tasks: Path) -> None:
    """Write the figures, print the table, put it into the docs where they have a place for these tasks."""
    rows = figures(plan, results, base)
    name = "continual" if tasks.resolve() == HERE / "intents" else f"continual-{tasks.resolve().name}"
    (HERE / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    text = "\n\n".join(table_of(rows, rate, value) for rate, value in plan.rates.items())
    print(text)
    begin, end = f"<!-- {name}: measured -->\n", f"<!-- {name}: end -->"
    document = DOCS.read_text(encoding="utf-8")
    if begin in document:
        before, _, rest = document.partition(begin)
        DOCS.write_text(before + begin + text + "\n" + end + rest.partition(end)[2], encoding="utf-8")


def figures(plan: Plan, results: Sequence[Result], base: dict[str, float]) -> Rows:
    """One record for each method, rate and share of replay; scores in percent."""
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
    shape = {"orders": len(plan.orders), "seeds": plan.seeds}
    return [row | shape for row in rows]


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
        "over_sequential": None if alone else over("sequential", chosen, here),
        "over_slao": None if alone else over("slao", chosen, here),
    }


def by_order(chosen: list[Result]) -> list[float]:
    """The mean of each order."""
    numbers = sorted({result.cell.order for result in chosen if result.cell.order is not None})
    return [percent(mean(r.average for r in chosen if r.cell.order == number)) for number in numbers]


def over(rival: str, chosen: list[Result], here: list[Result]) -> dict[str, Any]:
    """How much better than the rival with the same replay, cell by cell, and in how many cells."""
    theirs = {result.cell: result.average for result in here if result.method == rival}
    differences = [result.average - theirs[result.cell] for result in chosen]
    return {
        "mean": percent(mean(differences)),
        "std": percent(stdev(differences)) if len(differences) > 1 else 0.0,
        "won": sum(difference > 0 for difference in differences),
    }


def percent(share: float) -> float:
    return round(100 * share, 2)


def table_of(rows: Rows, rate: str, value: float) -> str:
    """Markdown, one line a method."""
    here = [row for row in rows if row["rate"] == rate and row["strategy"] != "recommended"]
    lines = [
        f"**{rate}: learning rate {value:g}**",
        "",
        "| Method | Replay | AA | BWT | a[i,i] | Worst task | over sequential | over SLAO | cells won over each |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *(line(row) for row in here)])


def line(row: dict[str, Any]) -> str:
    """A line of the table."""
    name = f"**{row['strategy']}**" if row["strategy"] == RECOMMENDED else row["strategy"]
    spread = f"{row['average']:.1f} ± {row['std']:.1f}"
    known = [f"{row[field]:.1f}" if row[field] is not None else "" for field in ("backward_transfer", "learned")]
    rivals = [row.get("over_sequential"), row.get("over_slao")]
    pairs = [f"{rival['mean']:+.1f} ± {rival['std']:.1f}" if rival else "" for rival in rivals]
    won = ", ".join(f"{rival['won']} of {row['cells']}" for rival in rivals if rival)
    cells = [name, f"{row['replay']:.0%}", spread, *known, f"{row['worst']:.1f}", *pairs, won]
    return f"| {' | '.join(cells)} |"
