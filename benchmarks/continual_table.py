"""The figures of the benchmark: means over orders and seeds, paired differences, a table for the docs."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.continual_cell import Plan, Result

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "continual.md"
RECOMMENDED = "slao, A merged"
Rows = list[dict[str, Any]]


def keep(plan: Plan, results: Sequence[Result], base: dict[str, float], name: str) -> None:
    """Write the figures, and their table into the docs where they have a place for this name."""
    rows = figures(plan, results, base)
    (HERE / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    tables = [table_of(rows, rate, value) for rate, value in plan.rates.items()]
    text = "\n\n".join([*tables, "\n".join(f"- {claim}" for claim in claims(rows, list(plan.rates)))])
    begin, end = f"<!-- {name}: measured -->\n", f"<!-- {name}: end -->"
    document = DOCS.read_text(encoding="utf-8")
    if begin in document:
        before, _, rest = document.partition(begin)
        DOCS.write_text(before + begin + text + "\n" + end + rest.partition(end)[2], encoding="utf-8")


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


def claims(rows: Rows, rates: Sequence[str]) -> Iterator[str]:
    """What the figures say of the questions that matter, as far as they are measured."""
    found = {(row["strategy"], row["rate"], row["replay"]): row for row in rows}
    best = max(found["sequential", rate, 0]["average"] for rate in rates)
    for rate in rates:
        slao, sequential = found["slao", rate, 0]["by_order"], found["sequential", rate, 0]["by_order"]
        gains = ", ".join(f"{ours - theirs:+.1f}" for ours, theirs in zip(slao, sequential, strict=True))
        yield f"{rate}: SLAO over sequential, by order: {gains}"
        chosen = found["recommended", rate, 0]
        over, cells = chosen["over_slao"], chosen["cells"]
        yield f"{rate}: {RECOMMENDED} over SLAO {over['mean']:+.1f}, in {over['won']} of {cells} cells"
        yield f"{rate}: {RECOMMENDED} over sequential at its better rate {chosen['average'] - best:+.1f}"
        replayed, bound = found.get(("recommended", rate, 0.05)), found.get(("all-at-once", rate, 0))
        if replayed and bound:
            share = replayed["average"] / bound["average"]
            yield f"{rate}: {RECOMMENDED} with 5 % replay has {share:.1%} of all at once"


def percent(share: float) -> float:
    return round(100 * share, 2)


def table_of(rows: Rows, rate: str, value: float) -> str:
    """Markdown, one line a method."""
    here = [row for row in rows if row["rate"] == rate and row["strategy"] != "recommended"]
    lines = [
        f"**{rate}: learning rate {value:g}**",
        "",
        "| Method | Replay | AA | BWT | a[i,i] | Worst task | over sequential | over SLAO |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *(line(row) for row in here)])


def line(row: dict[str, Any]) -> str:
    """A line of the table."""
    name = f"**{row['strategy']}**" if row["strategy"] == RECOMMENDED else row["strategy"]
    spread = f"{row['average']:.1f} ± {row['std']:.1f}"
    known = [f"{row[field]:.1f}" if row[field] is not None else "" for field in ("backward_transfer", "learned")]
    pairs = [paired(row.get(field), row) for field in ("over_sequential", "over_slao")]
    replay = f"{row['replay']:.0%}" if row["replay"] < 1 else f"{row['replay']:.0f} rows"
    cells = [name, replay, spread, *known, f"{row['worst']:.1f}", *pairs]
    return f"| {' | '.join(cells)} |"


def paired(over: dict[str, Any] | None, row: dict[str, Any]) -> str:
    """A difference, its spread, and the cells won."""
    return f"{over['mean']:+.1f} ± {over['std']:.1f} ({over['won']} of {row['cells']})" if over else ""
