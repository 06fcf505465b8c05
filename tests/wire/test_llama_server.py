"""What was exported, in a real llama-server: it chats as the fused model does in transformers, and stops."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoTokenizer

from backprop_core.export.gguf import convert
from tests.backprop_core import tiny_models as tiny
from tests.wire.llama_server import ask, chat, serving, written

# PEFT asks transformers for a property that it renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
EXAMPLE_BASE = Path(__file__).parents[2] / "examples" / "base"
QUESTIONS = [
    "Which team takes this request?\nHi, the speaker stays dark when I press the button. Best wishes.",
    "Excuse me, what colour does the Maple juicer come in?",
    "Which day?\nOn Friday we ship 17 iron units to Oslo, for Léo.",
]
LONGEST = 48  # tokens of an answer


def rename_stop_token(base: Path) -> None:
    """A stop token whose name llama.cpp does not know: only the file's metadata says that it is one."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        text = (base / name).read_text(encoding="utf-8")
        (base / name).write_text(text.replace("<|im_end|>", "<|so_be_it|>"), encoding="utf-8")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = shutil.copytree(EXAMPLE_BASE, tmp_path_factory.mktemp("chat") / "base")
    rename_stop_token(base)
    return base


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """Large enough to change what the base says, small enough that it still ends."""
    return tiny.add_adapter(base, base.parent / "adapter", lora_alpha=24)


def greedy(model: Any, tokenizer: Any, prompt: str, *, tokens: int) -> list[int]:
    """What transformers says, by the HF template, without the stop token."""
    asked = [{"role": "user", "content": prompt}]
    batch = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    stop = tokenizer.eos_token_id
    out = model.generate(**batch, max_new_tokens=tokens, do_sample=False, eos_token_id=stop, pad_token_id=stop)
    return [token for token in out[0, batch.input_ids.shape[1] :].tolist() if token != stop]


@pytest.mark.parametrize("outtype", ["f32", "f16"])
def test_server_answers_as_the_fused_model(outtype: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    """Rendered chat and greedy answers are transformers', word for word, and every answer ends by itself."""
    model, tokenizer = PeftModel.from_pretrained(tiny.load(base), adapter), AutoTokenizer.from_pretrained(base)
    convert(base, adapter, tmp_path / "model.gguf", outtype=outtype)
    changed = 0
    with serving(tmp_path / "model.gguf") as server:
        for question in QUESTIONS:
            asked = [{"role": "user", "content": question}]
            rendered = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
            assert ask(server, "/apply-template", question)["prompt"] == rendered
            expected = greedy(model, tokenizer, question, tokens=LONGEST)
            assert chat(server, question, tokens=LONGEST) == (tokenizer.decode(expected), "stop")
            with model.disable_adapter():
                changed += greedy(model, tokenizer, question, tokens=LONGEST) != expected
    assert changed  # or the adapter could be missing


@pytest.mark.parametrize(
    ("key", "value"), [("tokenizer.chat_template", "{{ messages[0].content }}"), ("tokenizer.ggml.eos_token_id", 7)]
)
def test_check_sees_another_chat(key: str, value: str | int, base: Path, tmp_path: Path) -> None:
    """Negative control: a file with another template or stop token is one whose answers do not pass the test above."""
    convert(base, None, tmp_path / "model.gguf", outtype="f32")
    with serving(tmp_path / "model.gguf") as server:
        assert chat(server, QUESTIONS[0], tokens=LONGEST) == ("This goes to Repairs.", "stop")
    with serving(tiny.spoil(tmp_path / "model.gguf", key, value)) as server:
        assert chat(server, QUESTIONS[0], tokens=LONGEST) != ("This goes to Repairs.", "stop")


@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "qwen3"])
def test_every_architecture_chats(architecture: str, tmp_path: Path) -> None:
    """Random weights of other architectures give the server the tokens that they give transformers."""
    base = tiny.build(tmp_path / "base", architecture)
    convert(base, None, tmp_path / "model.gguf", outtype="f32")
    expected = greedy(tiny.load(base), AutoTokenizer.from_pretrained(base), QUESTIONS[0], tokens=8)
    with serving(tmp_path / "model.gguf") as server:
        assert written(server, QUESTIONS[0], tokens=8) == expected
