"""Tables at the width of a terminal: columns wrap, and no letter is lost."""

import io
from collections import Counter

import pytest
from rich.console import Console, RenderableType

from flows.cli import tables
from tasks.runs.line_state import LineSummary
from tasks.tracking import RunSummary

LINE = LineSummary(
    line="support",
    champion=1,
    versions=[1, 2],
    tasks=["quickstart", "orders"],
    runs=13,
    base="/srv/models/a-base-with-a-name/that-is-long",
    run_id="4d8e3d04eb1648f398d4f6d5557d15b4",
    adapter="0" * 64,
    live=["ollama:support", "hub:team/support"],
    bytes=818_000,
    by_hand=None,
)
RUN = RunSummary(
    run_id="4d8e3d04eb1648f398d4f6d5557d15b4",
    line="support",
    status="interrupted",
    started="2026-12-01T11:27:00+00:00",
    seconds=4000.0,
    datasets=["quickstart.jsonl", "a-file-with-a-long-name.jsonl"],
    average=0.924,
    error=None,
)
LONG = "a-line-whose-name-has-sixty-four-letters-which-is-the-most-it-may"


def printed(renderable: RenderableType, width: int) -> str:
    """What a terminal of so many columns shows."""
    file = io.StringIO()
    Console(file=file, width=width, markup=False, emoji=False, highlight=False).print(renderable, crop=False)
    return file.getvalue()


@pytest.mark.parametrize("line", ["support", LONG])
@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("kind", ["lines", "runs"])
def test_no_letter_is_lost(kind: str, width: int, line: str) -> None:
    """The same letters as where there is room for all, in lines that fit."""

    def shown(width: int) -> str:
        made = tables.lines([LINE | {"line": line}]) if kind == "lines" else tables.runs([RUN | {"line": line}])
        return printed(made, width)

    narrow = shown(width)
    assert Counter("".join(narrow.split())) == Counter("".join(shown(1000).split()))
    assert all(len(row) <= width for row in narrow.splitlines())


def test_short_columns_stay_whole() -> None:
    """Long ones give way: a run can be copied, and the words of the header are words."""
    narrow = printed(tables.lines([LINE]), 80)
    for word in ("champion", "versions", "4d8e3d04eb16", "support", "798.8 KiB"):
        assert word in narrow
