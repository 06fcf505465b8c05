"""A changed value is the only difference of a text: comments, order and everything else stay."""

import difflib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backprop_core.errors import ConfigInvalid
from flows.cli.yaml_edits import inline, with_value, without_value
from flows.cli.yaml_values import parse

TEXT = """\
# the job of support
model:
  name: acme/base  # the team's base

datasets:  # new rows
  - path: data/night.jsonl  # every night
    # heldout: FILE
    task: routing

training: {lora: {rank: 16}, epochs: 3}
min_new_rows:   200  # waits for more

gate:
  canaries:
    - prompt: hello
      expect: hi
  system: |
    two
    lines

# approval:
#   ask: true
export:
  quantizations: [q8_0]
"""


def lines(before: str, after: str) -> list[str]:
    """The lines that differ."""
    found = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in found if line[:2] in ("- ", "+ ")]


@pytest.mark.parametrize(
    ("place", "value", "differing"),
    [
        (
            "model.name",
            "acme/other",
            ["-   name: acme/base  # the team's base", "+   name: acme/other  # the team's base"],
        ),
        ("min_new_rows", "50", ["- min_new_rows:   200  # waits for more", "+ min_new_rows:   50  # waits for more"]),
        ("datasets.0.heldout", "a.jsonl", ["+     heldout: a.jsonl"]),
        ("training.lora.alpha", "8", None),
        ("schedule.cron", "0 3 * * *", ["+ schedule:", "+   cron: 0 3 * * *"]),
        ("approval.ask", "true", ["+ approval:", "+   ask: true", "+ "]),
        ("export.quantizations", ["q4_k_m", "f16"], None),
        ("export.system", "say: # 'yes'", ["+   system: \"say: # 'yes'\""]),
        ("gate.canaries", [{"prompt": "a: b", "expect": "c"}], None),
        ("gate.system", "one", None),
        ("gate.canaries", [], None),
        ("model", {"name": "other"}, None),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_only_the_value_changes(place: str, value: Any, differing: list[str] | None) -> None:
    """Setting a value changes its line, or adds lines where they belong; every comment is there afterwards."""
    after = with_value(TEXT, tuple(place.split(".")), value)
    assert differing is None or lines(TEXT, after) == differing
    comments = [line.partition("#")[2] for line in TEXT.splitlines() if "#" in line and "name" not in line]
    assert all(comment in after for comment in comments)


@pytest.mark.parametrize(
    ("place", "differing"),
    [
        ("min_new_rows", ["- min_new_rows:   200  # waits for more"]),
        ("datasets.0.task", ["-     task: routing"]),
        ("model.name", ["- model:", "-   name: acme/base  # the team's base"]),
        ("training.epochs", None),
        ("training.lora.rank", None),
        ("gate.system", ["-   system: |", "-     two", "-     lines"]),
        ("gate.canaries", ["-   canaries:", "-     - prompt: hello", "-       expect: hi"]),
        ("no.such.field", []),
    ],
)
def test_only_the_value_goes(place: str, differing: list[str] | None) -> None:
    """Removing a value removes its lines, and the part that it leaves empty."""
    after = without_value(TEXT, tuple(place.split(".")))
    assert differing is None or lines(TEXT, after) == differing


def test_a_text_without_values_gets_some() -> None:
    """Into an empty text, or one of comments alone, a value can be written; so under a key without a value."""
    assert with_value("", ("model", "name"), "a") == "model:\n  name: a\n"
    assert with_value("# nothing yet", ("min_new_rows",), "5") == "# nothing yet\nmin_new_rows: 5\n"
    assert with_value("schedule:\nline: a\n", ("schedule", "cron"), "x") == "schedule: {cron: x}\nline: a\n"
    assert without_value("{a: 1}", ("a",)) == "{}"
    assert without_value("datasets:\n- path: b\n", ("datasets", "0", "path")) == "datasets:\n- {}\n"
    assert without_value("datasets:\n- task: a\n  path: b\n", ("datasets", "0", "task")) == "datasets:\n- path: b\n"


def test_what_is_no_mapping_is_refused() -> None:
    """A text that is a list, and a place in a list that has no such entry, are refused with a code."""
    for text, place in (("- a\n", ("b",)), ("datasets: []\n", ("datasets", "0", "path")), ("a: *b\n", ("a",))):
        with pytest.raises(ConfigInvalid):
            with_value(text, place, "c")


PLAIN = st.recursive(st.text(max_size=12), lambda below: st.lists(below, max_size=3), max_leaves=4)


@settings(max_examples=60)
@given(PLAIN)
def test_any_value_can_be_written(value: Any) -> None:
    """What is written reads as it was, whatever characters it has."""
    after = with_value(TEXT, ("export", "license"), value)
    assert parse(after, "").value["export"]["license"] == value
    assert "\n" not in inline(value)
