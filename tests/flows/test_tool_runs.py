"""A run on tool rows: trained, scored and generated with the base's own template; long rows as the spec says."""

import json
from pathlib import Path
from typing import Any

import pytest

from backprop_core.data.row_files import load
from backprop_core.errors import InputValidationFailed
from backprop_core.evaluation.metrics import read_generations
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import Generations
from backprop_core.schema.specs import DatasetSpec, EvaluationSpec, GenerationSpec, LoraSpec, TrainSpec
from backprop_core.store.artifacts import Store
from flows.train import train
from tests.backprop_core import nano

TEMPLATE = (  # as Qwen's, in short
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
SHORT = TrainSpec(steps=2, batch_size=4, learning_rate=1e-2, lora=LoraSpec(rank=4), max_length=400)
pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")


def row(number: int) -> dict[str, Any]:
    call = {"id": f"c{number}", "function": {"name": "add", "arguments": json.dumps({"a": number})}}
    question = {"role": "user", "content": f"Add {number}." + " please" * 200 * (number % 10 == 9)}
    return {"messages": [question, {"role": "assistant", "content": None, "tool_calls": [call]}], "tools": [TOOL]}


@pytest.fixture
def data(tmp_path: Path) -> str:
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(row(number)) + "\n" for number in range(60)))
    return str(tmp_path / "calls.jsonl")


@pytest.fixture
def base_with_tools(tmp_path: Path) -> Path:
    directory = nano.build(tmp_path / "base")
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def test_tool_rows_are_trained_scored_and_generated(base_with_tools: Path, data: str) -> None:
    """Calls are stored as objects, a generated one is compared with the reference's text, long rows are counted."""
    made = train(
        DatasetSpec(path=data),
        model=str(base_with_tools),
        training=SHORT,
        evaluation=EvaluationSpec(metric="contains", generation=GenerationSpec(max_new_tokens=4)),
    )
    [run] = made.runs
    assert made.split and run.left_out > 0 and run.cut == 0
    assert made.spec["training"]["too_long"] == "drop"
    store = Store(settings().store_path)
    first = load(store.local(made.split.datasets[0].train))[0]
    assert isinstance(first["messages"][1]["tool_calls"][0]["function"]["arguments"], dict) and first["tools"]
    digest = next(one.digest for one in made.stages if one.stage == "generate" and one.digest)
    answers = read_generations(Generations(digest=digest, rows=1, stopped=0), store)
    assert next(iter(answers))["reference"].startswith('<tool_call>{"arguments": {"a": ')
    store.close()


def test_without_a_place_for_tools_they_are_written_as_text(data: str, tmp_path: Path) -> None:
    """On a base whose template has no tools, `tools: as_text` trains their text; without it the rows are refused."""
    base = str(nano.build(tmp_path / "base", max_position_embeddings=1024))
    long = SHORT.model_copy(update={"max_length": 1000})
    with pytest.raises(InputValidationFailed, match="does not write tools"):
        train(DatasetSpec(path=data), model=base, training=long)
    made = train(DatasetSpec(path=data, tools="as_text"), model=base, training=long)
    assert made.status == "finished" and made.runs[0].dataset.train_rows > 30
