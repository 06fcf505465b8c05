"""Rows with tools, calls, reasoning and weights keep them, in one form; what is ill-formed has a reason of its own."""

import json
from pathlib import Path
from typing import Any

import pytest

from backprop_core.data.loading import Parsed, read_rows, snapshot
from backprop_core.data.row_identity import identity, teaches
from backprop_core.errors import FormatsMixed
from backprop_core.schema.specs import DatasetSpec

USER, ANSWER = {"role": "user", "content": "Is it raining in Oslo?"}, {"role": "assistant", "content": "Yes."}
BARE = {"name": "weather", "description": "Now.", "parameters": {"type": "object", "properties": {"city": {}}}}
TOOL = {"type": "function", "function": BARE}
CALL = {"type": "function", "id": "a1", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TEXT_CALL = {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "rain", "tool_call_id": "a1"}
ROW = {"messages": [USER, CALLS, RESULT, ANSWER], "tools": [TOOL]}


def parsed(directory: Path, *rows: Any, **spec: Any) -> Parsed:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_rows(snapshot(str(path), scratch=directory), DatasetSpec(path=str(path), max_bad_rows=1, **spec))


def openai(**turn: Any) -> dict[str, Any]:
    """The same conversation as OpenAI writes it, with another second turn."""
    return {"messages": [USER, turn, RESULT, ANSWER], "tools": [TOOL]}


SHAREGPT = {
    "conversations": [
        {"from": "human", "value": USER["content"]},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "Yes."},
    ],
    "tools": json.dumps([BARE]),
}
WITHOUT_IDS = {
    "messages": [
        USER,
        {**CALLS, "tool_calls": [{"type": "function", "function": CALL["function"]}]},
        {"role": "tool", "content": "rain"},
        ANSWER,
    ],
    "tools": [TOOL],
}
SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (ROW, ROW),
    (openai(role="assistant", content=None, tool_calls=[TEXT_CALL]), ROW),
    (openai(role="assistant", tool_calls=[TEXT_CALL]), ROW),
    (openai(role="assistant", content="", tool_calls=json.dumps([TEXT_CALL])), ROW),
    (openai(role="assistant", content=[], tool_calls=[TEXT_CALL], refusal=None), ROW),
    ({**openai(role="assistant", content=None, tool_calls=[TEXT_CALL]), "tools": json.dumps([TOOL])}, ROW),
    ({"messages": ROW["messages"], "functions": [BARE]}, ROW),
    (SHAREGPT, WITHOUT_IDS),
    (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "function_call": TEXT_CALL["function"]},
                {"role": "function", "name": "weather", "content": "rain"},
                ANSWER,
            ],
            "functions": [BARE],
        },
        {
            "messages": [
                *WITHOUT_IDS["messages"][:2],
                {"role": "tool", "content": "rain", "name": "weather"},
                ANSWER,
            ],
            "tools": [TOOL],
        },
    ),
]


@pytest.mark.parametrize(("row", "expected"), SAME)
def test_calls_have_one_form(tmp_path: Path, row: dict[str, Any], expected: dict[str, Any]) -> None:
    """A call is the same chat row as an object, as JSON text, in OpenAI's legacy fields and in ShareGPT's."""
    found = parsed(tmp_path, row)
    assert found.bad == [] and found.rows == [expected]


KEPT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({**ANSWER, "reasoning_content": "Clouds."}, {**ANSWER, "reasoning_content": "Clouds."}),
    ({**ANSWER, "reasoning": "Clouds."}, {**ANSWER, "reasoning_content": "Clouds."}),
    ({**ANSWER, "thinking": "Clouds.", "reasoning": "Clouds."}, {**ANSWER, "reasoning_content": "Clouds."}),
    ({**ANSWER, "content": "<think>Clouds.</think>Yes."}, {**ANSWER, "content": "<think>Clouds.</think>Yes."}),
    ({**ANSWER, "weight": 0}, {**ANSWER, "weight": 0}),
    ({**ANSWER, "weight": "1.0"}, ANSWER),
    ({**ANSWER, "name": "Bot"}, {**ANSWER, "name": "Bot"}),
    ({**ANSWER, "name": ""}, ANSWER),
    ({**CALLS, "content": "Let me see."}, {**CALLS, "content": "Let me see."}),
]


@pytest.mark.parametrize(("turn", "expected"), KEPT)
def test_an_answer_keeps_what_it_carries(tmp_path: Path, turn: dict[str, Any], expected: dict[str, Any]) -> None:
    """Reasoning, weight 0 and a name stay on their turn; a weight of 1 is every turn's."""
    assert parsed(tmp_path, {"messages": [USER, turn]}).rows == [{"messages": [USER, expected]}]


PARALLEL = [CALL, {**CALL, "id": "a2"}]


def after(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [USER, *turns, ANSWER]}


ILL_FORMED: list[tuple[str, dict[str, Any]]] = [
    ("bad_call", openai(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": "{"}}])),
    ("bad_call", openai(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}])),
    ("bad_call", openai(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": 7}}])),
    ("bad_call", openai(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": '{"a": NaN}'}}])),
    ("bad_call", openai(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": '{"a":1,"a":2}'}}])),
    ("bad_call", openai(role="assistant", tool_calls=[{"function": {"arguments": "{}"}}])),
    ("bad_call", openai(role="assistant", tool_calls=[{"id": 7, "function": {"name": "f"}}])),
    ("bad_call", openai(role="assistant", tool_calls=[{"type": "custom", "name": "f"}])),
    ("bad_call", openai(role="assistant", tool_calls=["f"])),
    ("bad_call", openai(role="assistant", tool_calls="f()")),
    ("bad_call", {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f()"}]}),
    ("not_unicode", openai(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": {"a": "\ud800"}}}])),
    ("answer_to_no_call", after(RESULT)),
    ("answer_to_no_call", after(ANSWER, RESULT)),
    ("answer_to_no_call", after(CALLS, {**RESULT, "tool_call_id": "b"})),
    ("answer_to_no_call", after(CALLS, RESULT, RESULT)),
    ("answer_to_no_call", after(CALLS, USER, RESULT)),
    ("bad_tools", {**ROW, "tools": [{"type": "function"}]}),
    ("bad_tools", {**ROW, "tools": "hammer"}),
    ("bad_tools", {**ROW, "tools": [{"type": "web_search", "function": {"name": "f"}}]}),
    ("said_twice", {**ROW, "functions": [{"name": "other"}]}),
    ("said_twice", openai(role="assistant", content="", reasoning="a", thinking="b")),
    ("weight", openai(role="assistant", content="a", weight=0.5)),
    ("reasoning_content", {"messages": [{**USER, "reasoning_content": "a"}, ANSWER]}),
]


@pytest.mark.parametrize(("reason", "row"), ILL_FORMED)
def test_what_is_ill_formed_is_dropped_by_its_reason(tmp_path: Path, reason: str, row: dict[str, Any]) -> None:
    """Arguments that are no JSON object, an answer to no call, a tool without a name: each has its reason."""
    rows, bad = parsed(tmp_path, ROW, row) if "messages" in row else parsed(tmp_path, row)
    assert [one.reason for one in bad] == [reason]
    assert len(rows) == ("messages" in row)


def test_parallel_calls_are_answered_in_any_order(tmp_path: Path) -> None:
    """Two calls of one turn are answered by their ids, whatever the order."""
    row = after({**CALLS, "tool_calls": PARALLEL}, {**RESULT, "tool_call_id": "a2"}, RESULT)
    assert parsed(tmp_path, row).rows == [row]


def test_lists_as_prompt_and_completion(tmp_path: Path) -> None:
    """Of a prompt and a completion that are lists of turns, only the completion is learned."""
    row = {"prompt": [USER, ANSWER, USER], "completion": [CALLS, RESULT, ANSWER], "tools": [TOOL]}
    before = [USER, {**ANSWER, "weight": 0}, USER]
    assert parsed(tmp_path, row).rows == [{"messages": [*before, CALLS, RESULT, ANSWER], "tools": [TOOL]}]


# Logs


def log(**choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, "tool_calls": [TEXT_CALL], "refusal": None, "annotations": []}
    request = {"model": "m", "messages": [USER, ANSWER, USER], "tools": [TOOL], "temperature": 0, "tool_choice": "auto"}
    return {"request": request, "response": {"id": "x", "choices": [{"index": 0, "message": message, **choice}]}}


def test_a_log_is_the_answer_that_was_given(tmp_path: Path) -> None:
    """Of a logged request and its response, the response is learned and the request is its context."""
    texts = {name: json.dumps(value) for name, value in log().items()}
    expected = {"messages": [USER, {**ANSWER, "weight": 0}, USER, CALLS], "tools": [TOOL]}
    assert parsed(tmp_path, log(finish_reason="tool_calls"), texts).rows == [expected] * 2


@pytest.mark.parametrize(
    ("reason", "row"),
    [
        ("unfinished", log(finish_reason="length")),
        ("missing_field", {**log(), "response": {"error": "busy"}}),
        ("choices", {**log(), "response": {"choices": log()["response"]["choices"] * 2}}),
        ("tool_choice", {**log(), "request": {**log()["request"], "tool_choice": "required"}}),
        ("documents", {**log(), "request": {**log()["request"], "documents": ["a"]}}),
        ("not_json", {**log(), "response": "<html>"}),
    ],
)
def test_a_log_without_one_finished_answer(tmp_path: Path, reason: str, row: dict[str, Any]) -> None:
    """An answer that was cut, an error, or a request with more than the model saw is dropped by its reason."""
    rows, bad = parsed(tmp_path, log(), row)
    assert (len(rows), [one.reason for one in bad]) == (1, [reason])


# Preferences

BETTER, WORSE = ANSWER, {"role": "assistant", "content": "No."}
PREFERRED = {"messages": [USER], "chosen": [BETTER], "rejected": [WORSE]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": USER["content"], "chosen": "Yes.", "rejected": "No."},
        {"prompt": [USER], "chosen": [BETTER], "rejected": [WORSE]},
        {"question": USER["content"], "chosen": "Yes.", "rejected": "No."},
        {"instruction": USER["content"], "input": "", "chosen": "Yes.", "rejected": "No."},
        {"messages": [USER], "chosen": BETTER, "rejected": WORSE},
        {"messages": [USER, BETTER], "chosen": BETTER, "rejected": WORSE},
        {"chosen": [USER, BETTER], "rejected": [USER, WORSE]},
        {"prompt": USER["content"], "chosen": [USER, BETTER], "rejected": [USER, WORSE]},
        {
            "conversations": [{"from": "human", "value": USER["content"]}],
            "chosen": {"from": "gpt", "value": "Yes."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        {
            "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [BETTER],
            "non_preferred_output": [WORSE],
        },
    ],
)
def test_a_preference_has_one_form(tmp_path: Path, row: dict[str, Any]) -> None:
    """Two answers to one question are the same preference row in every spelling, and nothing to train as it is."""
    found = parsed(tmp_path, row)
    assert found == ([PREFERRED], []) and not teaches(PREFERRED)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": USER["content"], "completion": "Yes.", "label": True},
        {"prompt": [USER], "completion": [ANSWER], "label": True},
        {"messages": [USER, ANSWER], "kto_tag": "true"},
        {"question": USER["content"], "answer": "Yes.", "thumbs": "up"},
    ],
)
def test_a_thumb_is_a_label(tmp_path: Path, row: dict[str, Any]) -> None:
    """A rated conversation is kept with its label, and is not trained as if it were good."""
    expected = {"messages": [USER, ANSWER], "label": True}
    assert parsed(tmp_path, row).rows == [expected] and not teaches(expected)


@pytest.mark.parametrize(
    ("reason", "row"),
    [
        ("no_preference", {"prompt": "a", "chosen": "b", "rejected": "b"}),
        ("no_question", {"chosen": "b", "rejected": "c"}),
        ("no_question", {"messages": [USER, ANSWER], "chosen": "b", "rejected": "c"}),
        ("no_answer", {"prompt": "a", "chosen": [USER], "rejected": "c"}),
        ("question", {"prompt": "a", "question": "z", "chosen": "b", "rejected": "c"}),
        ("score_chosen", {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 9}),
    ],
)
def test_preferences_that_prefer_nothing(tmp_path: Path, reason: str, row: dict[str, Any]) -> None:
    """Without a question, an answer or a difference there is no preference; a score is refused by its name."""
    assert [one.reason for one in parsed(tmp_path, row).bad] == [reason]


def test_an_openai_preference_keeps_its_tools(tmp_path: Path) -> None:
    """The tools of the request are those of the row; what the request says beyond them is refused by its name."""
    row = {
        "input": {"messages": [USER], "tools": [TOOL]},
        "preferred_output": [BETTER],
        "non_preferred_output": [WORSE],
    }
    assert parsed(tmp_path, row) == ([{**PREFERRED, "tools": [TOOL]}], [])
    for more in ({"tool_choice": "required"}, {"documents": ["x"]}):
        found = parsed(tmp_path, {**row, "input": {**row["input"], **more}})
        assert [one.reason for one in found.bad] == [*more]
    missing = parsed(tmp_path, {**row, "non_preferred_output": None}, row)
    assert [one.reason for one in missing.bad] == ["not_text"]


# Detection

PAIR, ASKED = {"prompt": "a", "completion": "b"}, {"question": "c", "answer": "d"}


@pytest.mark.parametrize("late", [1, 200, 10_500])
def test_a_mixed_file_names_both_kinds(tmp_path: Path, late: int) -> None:
    """A row of another format, wherever it is, is an error that names both with a line of each; `mixed` reads it."""
    rows = [*[PAIR] * late, ASKED]
    with pytest.raises(FormatsMixed, match=rf"prompt-completion \(line 1\) and question-answer \(line {late + 1}\)"):
        parsed(tmp_path, *rows)
    assert len(parsed(tmp_path, *rows, format="mixed").rows) == late + 1
    found = parsed(tmp_path, *rows, format="prompt-completion")
    assert [one.reason for one in found.bad] == ["missing_field"]


def test_of_a_mixed_file_each_row_is_of_its_best_format(tmp_path: Path) -> None:
    """With `mixed` a row without a format is dropped alone."""
    rows = [PAIR, ASKED, {"text": "e"}, {"colour": "red"}, PREFERRED]
    found = parsed(tmp_path, *rows, format="mixed")
    assert (len(found.rows), [one.reason for one in found.bad]) == (4, ["unknown_format"])


def test_columns_without_values_make_no_format(tmp_path: Path) -> None:
    """A field that is null is not there: the row is of the format that it has values for."""
    row = {"messages": None, "chosen": None, "rejected": None, **PAIR}
    assert parsed(tmp_path, row, PAIR).rows == [{"messages": [m("user", "a"), m("assistant", "b")]}] * 2


def m(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


# Identity


def test_what_is_rendered_is_in_the_identity() -> None:
    """Tools, calls, results, reasoning, weights, names, labels and both answers each make another row."""
    plain = [USER, ANSWER]
    rows: list[dict[str, Any]] = [
        {"messages": plain},
        {"messages": plain, "tools": [TOOL]},
        {"messages": [USER, CALLS]},
        {"messages": [USER, {**CALLS, "tool_calls": PARALLEL}]},
        {"messages": [USER, {**ANSWER, "reasoning_content": "a"}]},
        {"messages": [USER, {**ANSWER, "weight": 0}]},
        {"messages": [{**USER, "name": "Ada"}, ANSWER]},
        {"messages": [USER, ANSWER, {**USER, "name": "Ada"}, ANSWER]},
        {"messages": plain, "label": True},
        {"messages": plain, "label": False},
        PREFERRED,
        {**PREFERRED, "chosen": [WORSE], "rejected": [BETTER]},
        ROW,
    ]
    assert len({identity(row) for row in rows}) == len(rows)


def test_ids_of_calls_are_not_compared() -> None:
    """The same conversation logged twice, with other random ids, is one row; other matches of calls are not."""
    text = json.dumps(ROW)
    assert identity(ROW) == identity(json.loads(text.replace("a1", "zz")))
    turns = [{**RESULT, "tool_call_id": name, "content": name[::-1]} for name in ("a1", "a2")]
    one = {"messages": [USER, {**CALLS, "tool_calls": PARALLEL}, *turns, ANSWER]}
    other = json.loads(json.dumps(one))
    other["messages"][2]["tool_call_id"], other["messages"][3]["tool_call_id"] = "a2", "a1"
    assert identity(one) != identity(other)
