"""Whatever a row carries that is not trained is refused by its name and counted, never dropped without a word."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from backprop_core.data.loading import Parsed, read_rows, snapshot
from backprop_core.errors import InputValidationFailed
from backprop_core.schema.specs import DatasetSpec

USER, ASSISTANT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
EXCHANGE = {"messages": [USER, ASSISTANT]}
PAIR = {"prompt": "Why?", "completion": "Because."}
SHAREGPT = {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]}
GOOD = [
    *(EXCHANGE, SHAREGPT, PAIR, {"question": "Why?", "answer": "Because."}),
    *({"instruction": "Why?", "output": "Because."}, {"text": "Because."}),
]
CALL = {"name": "look_up", "arguments": "{}"}


def parsed(directory: Path, *rows: dict[str, Any], **spec: Any) -> Parsed:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_rows(snapshot(str(path), scratch=directory), DatasetSpec(path=str(path), max_bad_rows=1, **spec))


def answered(**turn: Any) -> dict[str, Any]:
    """A row whose answer carries something."""
    return {"messages": [USER, ASSISTANT | turn]}


def asked(**turn: Any) -> dict[str, Any]:
    """A row whose question carries something."""
    return {"messages": [USER | turn, ASSISTANT]}


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("weight", answered(weight=0.5)),
    ("weight", asked(weight=0.5)),
    ("train", answered(train=False)),
    ("train", asked(train="yes")),
    ("loss", answered(loss=False)),
    ("reasoning_details", answered(reasoning_details=[{"text": "First …"}])),
    ("tool_calls", answered(toolCalls=[CALL])),
    ("answer_to_no_call", {"messages": [USER, {"role": "tool", "content": "4", "tool_call_id": "1"}, ASSISTANT]}),
    ("refusal", answered(content=None, refusal="I cannot.")),
    ("images", asked(images=["a.png"])),
    ("not_text", asked(content=[{"type": "text", "text": "Why?"}, {"type": "image_url", "image_url": {}}])),
    ("not_text", answered(content=[{"type": "thinking", "thinking": "First …"}, {"type": "text", "text": "So."}])),
    ("said_twice", {"messages": [USER, ASSISTANT | {"value": "No."}]}),
    ("label", {"text": "A review.", "label": 0}),
    ("no_answer", {"conversations": [{"from": "human", "value": "Why?"}], "kto_tag": False}),
    ("chosen", EXCHANGE | {"chosen": "So."}),
    ("chosen", {"instruction": "Why?", "output": "Ah.", "chosen": "So.", "rejected": "No."}),
    ("rejected_response", EXCHANGE | {"rejected_response": "No."}),
    ("score_rejected", EXCHANGE | {"score_rejected": 1.5}),
    ("label", PAIR | {"label": 0}),
    ("label", PAIR | {"label": "spam"}),
    ("score", PAIR | {"score": 0}),
    ("weight", PAIR | {"weight": 0}),
    ("weight", PAIR | {"Weight": "0.5"}),
    ("documents", EXCHANGE | {"documents": [{"title": "A", "text": "B"}]}),
    ("images", PAIR | {"images": ["a.png"]}),
    ("reasoning", {"question": "Why?", "answer": "So.", "reasoning": "First …"}),
    (
        "second_system",
        {"system": "Be brief.", "messages": [{"role": "system", "content": "Be long."}, *[USER, ASSISTANT]]},
    ),
    ("second_system", {"messages": [{"role": each, "content": "Be."} for each in ("system", "developer")] + [USER]}),
    ("system_prompt", {"question": "Why?", "answer": "So.", "system_prompt": "Be brief."}),
    ("context", {"question": "Why?", "answer": "So.", "context": "It is late."}),
    ("history", PAIR | {"history": [["Hi", "Hello"]]}),
    ("input", PAIR | {"input": "It is late."}),
    ("weight", answered(content=[{"type": "text", "text": "So.", "weight": 0}])),
    ("train_on_turn", answered(train_on_turn=False)),
    ("train_mask", answered(train_mask=0)),
    ("trainable", answered(trainable=False)),
    ("ignore", answered(ignore=True)),
    ("is_masked", answered(is_masked=True)),
    ("think", answered(think="First …")),
    ("cot", PAIR | {"cot": "First …"}),
    ("tool_responses", EXCHANGE | {"tool_responses": ["4"]}),
    ("negative", PAIR | {"negative": "No."}),
    ("bad_completion", PAIR | {"bad_completion": "No."}),
    ("persona", PAIR | {"persona": "A pirate."}),
    ("passage", {"question": "Why?", "answer": "So.", "passage": "It is late."}),
    ("instruction", SHAREGPT | {"instruction": "Who?", "output": "Ada."}),
]


@pytest.mark.parametrize(
    ("reason", "row"), REFUSED, ids=[f"{number}-{name}" for number, (name, _) in enumerate(REFUSED)]
)
def test_what_is_not_trained_is_refused_by_name(tmp_path: Path, reason: str, row: dict[str, Any]) -> None:
    """A field that carries a meaning which is not trained makes its row a bad one, counted by the field's name."""
    good = next(each for each in GOOD if each.keys() & row.keys())
    rows, bad = parsed(tmp_path, good, row)
    assert [item.reason for item in bad] == [reason]
    assert str(bad[0].place) == "line 2" and len(rows) == 1


ALLOWED: list[dict[str, Any]] = [
    answered(weight=1),
    answered(weight=1.0),
    answered(weight=None),
    asked(weight=0),
    {"messages": [{"role": "system", "content": "Be.", "weight": 0}, USER, ASSISTANT | {"weight": 1}]},
    answered(train=True),
    answered(tool_calls=[], function_call=None, refusal=None, audio=None, annotations=[], name=""),
    answered(reasoning_content=None, id="x", timestamp=3),
    EXCHANGE | {"tools": None, "images": [], "label": None, "weight": 1, "chosen": None},
    EXCHANGE | {"tools": "[]", "thinking": False},
    EXCHANGE | {"id": 7, "source": "forum", "category": "why", "language": "en", "meta": {"weight": 3}, "name": "set"},
    EXCHANGE | {"prompt": "Why?", "prompt_id": "abc", "text": "Why? Because.", "input": "Why?"},
    EXCHANGE | SHAREGPT | PAIR | {"text": "Q: Why?\nA: Because."},
    answered(ignore=False, masked=False, trainable=True, content=[{"type": "text", "text": "So.", "weight": 1}]),
    {"system": "Be.", "messages": [{"role": "system", "content": "Be."}, USER, ASSISTANT]},
    {"instruction": "Why?", "input": "", "output": "So.", "text": "Why? So.", "context": None},
]


@pytest.mark.parametrize("row", ALLOWED)
def test_what_carries_nothing_may_be_there(tmp_path: Path, row: dict[str, Any]) -> None:
    """An empty field, the weight 1, and what is about the row (id, source, category) keep a row as it is."""
    rows, bad = parsed(tmp_path, row)
    assert (len(rows), bad) == (1, [])


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("prompt", {"prompt": "Who?", "completion": "Because."}),
        ("completion", {"prompt": "Why?", "completion": "Ada."}),
        ("conversations", {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada."}]}),
        ("text", {"text": "Something else."}),
    ],
)
def test_a_row_of_two_formats_says_one_thing(tmp_path: Path, name: str, other: dict[str, Any]) -> None:
    """A row that is of another format too, and says something else there, is refused: one of the two would be lost."""
    rows, bad = parsed(tmp_path, EXCHANGE, EXCHANGE | other)
    assert (len(rows), [item.reason for item in bad]) == (1, [name])


def test_a_column_that_is_named_is_used(tmp_path: Path) -> None:
    """A field that `columns` maps is trained, so it is refused no more; the worse answer goes with the better one."""
    row = {"question": "Why?", "chosen": "So.", "rejected": "No.", "system_prompt": "Be."}
    columns = {"answer": "chosen", "system": "system_prompt"}
    rows, bad = parsed(tmp_path, row, columns=columns)
    assert not bad
    assert [turn["content"] for turn in rows[0]["messages"]] == ["Be.", "Why?", "So."]


def test_too_many_of_them_are_an_error_that_names_the_field(tmp_path: Path) -> None:
    """A dataset of scores is refused with its field and its lines, not trained as if every answer were good."""
    rows = [PAIR | {"score": number} for number in range(10)]
    path = tmp_path / "scores.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputValidationFailed, match=r"line 1: the row has score 0, which is not trained"):
        read_rows(snapshot(str(path), scratch=tmp_path), DatasetSpec(path=str(path)))


def test_of_a_table_only_what_a_row_has_counts(tmp_path: Path) -> None:
    """Columns that other rows fill are empty in this one, in Parquet as in CSV."""
    file = io.BytesIO()
    rows = [EXCHANGE | {"weight": None}, EXCHANGE | {"weight": 0.0}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    (tmp_path / "rows.parquet").write_bytes(file.getvalue())
    (tmp_path / "rows.csv").write_text("prompt,completion,weight\na,b,\nc,d,1\ne,f,0\n")
    for name, good in (("rows.parquet", 1), ("rows.csv", 2)):
        path = tmp_path / name
        kept, bad = read_rows(snapshot(str(path), scratch=tmp_path), DatasetSpec(path=str(path), max_bad_rows=1))
        assert (len(kept), [item.reason for item in bad]) == (good, ["weight"])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_key_that_is_there_twice(tmp_path: Path, name: str) -> None:
    """An object that names a key twice has two answers; neither is taken."""
    row = '{"prompt": "Why?", "completion": "So.", "completion": "No."}'
    path = tmp_path / name
    path.write_text(row if name.endswith("l") else f"[{row}]")
    with pytest.raises(InputValidationFailed, match="duplicate key 'completion'"):
        read_rows(snapshot(str(path), scratch=tmp_path), DatasetSpec(path=str(path)))
