"""A conversation that is written as a row is read as the same conversation."""

import json
from pathlib import Path

import pytest

from backprop_core.data.loading import read_rows, snapshot
from backprop_core.data.row_turns import learned
from backprop_core.data.written_rows import format_in, written
from backprop_core.errors import ConfigInvalid
from backprop_core.schema.specs import DatasetSpec

ASKED = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "On its way.\n"}]
SYSTEM = {"role": "system", "content": "Be brief."}
LONGER = [SYSTEM, *ASKED, {"role": "user", "content": "When?"}, {"role": "assistant", "content": "Today."}]
OF_ONE_TURN = ["alpaca", "question-answer"]
ALL = ["messages", "sharegpt", "prompt-completion", *OF_ONE_TURN]


@pytest.mark.parametrize(
    ("format", "messages"),
    [*((name, [*begin, *ASKED]) for name in ALL for begin in ([], [SYSTEM])), *((name, LONGER) for name in ALL[:3])],
)
def test_a_row_says_its_conversation(tmp_path: Path, format: str, messages: list[dict[str, str]]) -> None:
    """Each format gives the turns back, is detected as itself, and has one answer that is learned: the last."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(written(format, messages)))
    spec = DatasetSpec(path=str(file))
    [row] = read_rows(snapshot(str(file), scratch=tmp_path), spec).rows
    plain = [{name: turn[name] for name in ("role", "content")} for turn in row["messages"]]
    assert plain == messages and [turn for turn in row["messages"] if learned(turn)] == row["messages"][-1:]
    assert format_in(tmp_path) == format


@pytest.mark.parametrize("format", [*OF_ONE_TURN, "text", "preference"])
def test_what_a_format_cannot_say_is_refused(format: str) -> None:
    """A longer conversation is not cut, and an answer is no raw text."""
    with pytest.raises(ConfigInvalid, match=f"format {format} cannot say"):
        written(format, LONGER)


def test_an_empty_directory_takes_messages(tmp_path: Path) -> None:
    """Without rows beside it, a row is of the first format that users know."""
    assert format_in(tmp_path) == format_in(tmp_path / "none") == "messages"
