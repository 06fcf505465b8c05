"""What was measured, cell by cell, in a file that is committed: a fresh machine goes on where another one stopped."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from backprop_core.store.cache_keys import part
from benchmarks.continual_cell import Cell, Plan, Result

FOLDER = Path(__file__).parent / "continual_cells"


def settings(plan: Plan, base: str) -> dict[str, Any]:
    """What all results of a file have in common. `base` names how the base is made, or its digest."""
    tasks = {name: [task.train.digest, task.heldout.digest] for name, task in plan.tasks.items()}
    return {"base": base, "tasks": tasks, "orders": plan.orders, "rates": plan.rates, "training": part(plan.training)}


def agree(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether results with these settings belong together; one may have more orders or rates."""
    same = all(one[name] == other[name] for name in ("base", "tasks", "training"))
    rates = all(one["rates"][name] == other["rates"][name] for name in one["rates"].keys() & other["rates"].keys())
    return same and rates and all(order == twin for order, twin in zip(one["orders"], other["orders"], strict=False))


def both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What belongs together, as one."""
    return one | {"orders": max(one["orders"], other["orders"], key=len), "rates": one["rates"] | other["rates"]}


class Results:
    """The results in a file, by method and cell."""

    def __init__(self, file: Path, settings: dict[str, Any]) -> None:
        self._file, self._settings = file, settings
        self.base: dict[str, float] = {}
        self._found: dict[tuple[str, Cell], Result] = {}
        if file.is_file():
            self._read(json.loads(file.read_text(encoding="utf-8")))

    def _read(self, kept: dict[str, Any]) -> None:
        if not agree(kept["settings"], self._settings):
            raise SystemExit(f"{self._file} was measured with other settings: give another file with --cells")
        self._settings = both(kept["settings"], self._settings)
        self.base = kept["base"]
        for row in kept["results"]:
            result = Result.model_validate(row)
            self._found[result.method, result.cell] = result

    @property
    def every(self) -> list[Result]:
        return list(self._found.values())

    def missing(self, methods: Iterable[str], cell: Cell) -> list[str]:
        """The methods that are not measured in a cell."""
        return [method for method in methods if (method, cell) not in self._found]

    def add(self, results: Iterable[Result]) -> None:
        """Keep results, one a line."""
        self._found |= {(result.method, result.cell): result for result in results}
        head = json.dumps({"settings": self._settings, "base": self.base})
        rows = ",\n".join(result.model_dump_json() for result in self._found.values())
        self._file.parent.mkdir(parents=True, exist_ok=True)
        beside = self._file.with_suffix(".new")
        beside.write_text(f'{head[:-1]},\n"results": [\n{rows}\n]}}\n', encoding="utf-8")
        beside.replace(self._file)
