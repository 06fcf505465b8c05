"""Write the example data: `python -m examples.make_data [DIRECTORY]`. The same bytes every time."""

import json
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from examples.company import DEPARTMENTS, THIS_YEAR, Exchange, general, route

HERE = Path(__file__).parent
TRAINING_ROWS, HELDOUT_ROWS, QUICKSTART_ROWS = 240, 100, 100


def messages(user: str, assistant: str) -> dict[str, Any]:
    """OpenAI chat."""
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


def alpaca(user: str, assistant: str) -> dict[str, Any]:
    return {"instruction": user, "input": "", "output": assistant}


def sharegpt(user: str, assistant: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": user}, {"from": "gpt", "value": assistant}]}


def prompt_completion(user: str, assistant: str) -> dict[str, Any]:
    return {"prompt": user, "completion": assistant}


FORMATS = {"route": messages, "catalogue": alpaca, "orders": sharegpt, "reply": prompt_completion}


def draw(make: Callable[[Random], Exchange], count: int, *, seed: int, seen: set[str]) -> list[Exchange]:
    """`count` exchanges whose questions are not in `seen`, which grows by them."""
    rng = Random(seed)
    rows: list[Exchange] = []
    while len(rows) < count:
        user, assistant = make(rng)
        if user not in seen:
            seen.add(user)
            rows.append((user, assistant))
    return rows


def make_data() -> dict[str, list[Exchange]]:
    """Exchanges by file name, without extension. No question occurs twice, in any file."""
    data: dict[str, list[Exchange]] = {}
    seen: set[str] = set()
    for place, (task, make) in enumerate(DEPARTMENTS.items()):
        this_year = partial(make, company=THIS_YEAR)
        data[f"data/heldout/{task}"] = draw(this_year, HELDOUT_ROWS, seed=100 + place, seen=seen)
        data[f"data/{task}"] = draw(this_year, TRAINING_ROWS, seed=200 + place, seen=seen)
    data["data/heldout/general"] = draw(partial(general, company=THIS_YEAR), HELDOUT_ROWS, seed=300, seen=seen)
    data["quickstart"] = draw(partial(route, company=THIS_YEAR), QUICKSTART_ROWS, seed=400, seen=seen)
    return data


def jsonl(name: str, rows: Iterable[Exchange]) -> str:
    """The rows in the format of their task, one JSON object a line."""
    shape = FORMATS.get(Path(name).name, messages)
    return "".join(json.dumps(shape(*row), ensure_ascii=False) + "\n" for row in rows)


def write_data(directory: Path) -> None:
    for name, rows in make_data().items():
        path = directory / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(jsonl(name, rows), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_data(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
