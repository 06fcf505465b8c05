"""Tables at the width of a terminal: columns wrap, and no letter is lost."""

import io
from collections import Counter

import pytest
from rich.cells import cell_len
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


@pytest.mark.parametrize(
    ("columns", "cell"), [(1, ""), (2, "👩‍👧e\u0301a\u0308"), (9, "顧客サポート"), (14, "92.4 %"), (31, "שלום-עולם")]
)
def test_a_table_of_any_columns_loses_no_letter(columns: int, cell: str) -> None:
    """At every width: the lines fit wherever five letters of each column do, and else the terminal wraps them."""

    def shown(width: int) -> str:
        made = tables.table(*(f"task-{number}" for number in range(columns)))
        made.add_row(*[cell] * columns)
        return printed(made, width)

    letters = Counter("".join(shown(10_000).split()))
    for width in range(4, 220, 3):
        narrow = shown(width)
        assert Counter("".join(narrow.split())) == letters, width
        has_room = width >= 5 * columns + 2 * (columns - 1)
        assert not has_room or all(cell_len(row) <= width for row in narrow.splitlines()), width


def test_a_line_in_a_pipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """However long it is: what reads it counts lines."""
    tables.show(tables.runs([RUN | {"datasets": [f"night-{number}.jsonl" for number in range(200)]}]))
    _, row = capsys.readouterr().out.splitlines()
    assert row.rstrip().endswith("night-199.jsonl")
