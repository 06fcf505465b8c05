"""The example data and the demo's base are what their recipes make, and fit to tell the demo's story."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.company import DEPARTMENTS, LAST_YEAR, THIS_YEAR
from examples.make_base import CHATML, base_rows, make_tokenizer, write_tokenizer
from examples.make_data import FORMATS, write_data

EXAMPLES = Path(__file__).parents[2] / "examples"
BASE = EXAMPLES / "base"
TASKS = list(DEPARTMENTS)
ROW_FIELDS = {
    "route": {"messages"},
    "catalogue": {"instruction", "input", "output"},
    "orders": {"conversations"},
    "reply": {"prompt", "completion"},
    "general": {"messages"},
    "quickstart": {"messages"},
}


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts(row: object) -> list[str]:
    """Every string in a row, whatever its format, without names of roles."""
    match row:
        case {"content": str(text)} | {"value": str(text)} | str(text):
            return [text] if text else []
        case dict():
            return [text for value in row.values() for text in texts(value)]
        case list():
            return [text for value in row for text in texts(value)]
    raise AssertionError(row)


def exchange(row: object) -> tuple[str, str]:
    question, answer = texts(row)
    return question, answer


def data_files() -> list[Path]:
    return sorted(EXAMPLES.rglob("*.jsonl"))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(BASE, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(BASE, local_files_only=True, dtype=torch.float32).eval()


def test_recipe_makes_the_committed_data(tmp_path):
    """The recipe writes the files that are committed, byte by byte, and no other."""
    write_data(tmp_path)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    assert made == {path.relative_to(EXAMPLES): path.read_bytes() for path in data_files()}


def test_recipe_makes_the_committed_tokenizer(tmp_path):
    """The recipe's tokenizer is the base's, byte by byte."""
    write_tokenizer(make_tokenizer(base_rows()), tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (BASE / path.name).read_bytes(), path.name


def test_row_counts_and_formats():
    """Four tasks of 240 rows in four formats, 100 held-out rows for each and for the general skills."""
    counts = {str(path.relative_to(EXAMPLES)): len(read(path)) for path in data_files()}
    assert counts == {
        **{f"data/{task}.jsonl": 240 for task in TASKS},
        **{f"data/heldout/{task}.jsonl": 100 for task in [*TASKS, "general"]},
        "quickstart.jsonl": 100,
    }
    for path in data_files():
        assert all(set(row) == ROW_FIELDS[path.stem] for row in read(path)), path
    assert set(FORMATS) == set(TASKS)


def test_no_question_occurs_twice():
    """No question of any file is in it twice, in another file, or among the rows that the base was trained on."""
    questions = [exchange(row)[0] for path in data_files() for row in read(path)]
    assert len(questions) == len(set(questions)) == 1560
    assert not set(questions) & {question for question, _ in base_rows()}


def test_about_half_of_the_facts_changed():
    """Of every department's facts 40 to 60 % are last year's: there is something to forget, and something to keep."""
    for field in ("team", "reply", "catalogue", "depot"):
        old, new = getattr(LAST_YEAR, field), getattr(THIS_YEAR, field)
        assert list(old) == list(new)
        assert 0.4 <= sum(old[key] == new[key] for key in old) / len(old) <= 0.6, field


def test_base_is_small_and_fits_k_quants():
    """The weights are bf16, at most 8 MB, of plain Llama, with rows that 256 divides."""
    path = BASE / "model.safetensors"
    assert path.stat().st_size <= 8_000_000
    with safe_open(path, "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - it is no mapping
        assert file.metadata() == {"format": "pt"}
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    assert all(tensor.shape[-1] % 256 == 0 for tensor in tensors)
    config = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert config["hidden_size"] % 256 == config["intermediate_size"] % 256 == 0
    assert not {"_name_or_path", "transformers_version"} & set(config)


@pytest.mark.parametrize(
    "text",
    ["Grüße aus Köln", "Ça coûte 19 €", "Здравствуйте, чайник сломан", "我的水壶坏了。", "केतली", "🫖 ok?\n\n  x = 1\t"],
)
def test_tokenizer_round_trips(tokenizer, text):
    """Any text comes back as it was, without a token at its start."""
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_template_is_chatml(tokenizer):
    """The template ends every turn with the stop token, and opens the assistant's when asked to."""
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert asked == prompt + "<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(turns, tokenize=False) == prompt
    assert tokenizer.chat_template == CHATML
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 0)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.bos_token is None


@torch.no_grad()
def exact_match(model, tokenizer, rows):
    """Share of rows whose answer and stop token are, one by one, the most likely next token; one row at a time."""
    right = 0
    for question, answer in map(exchange, rows):
        turns = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        target = tokenizer(answer + "<|im_end|>")["input_ids"]
        best = model(input_ids=torch.tensor([prompt + target])).logits[0].argmax(-1).tolist()
        right += best[len(prompt) - 1 : -1] == target
    return right / len(rows)


def test_base_knows_last_year(model, tokenizer):
    """The base has its general skills, and of this year's departments only what did not change."""
    score = {
        task: exact_match(model, tokenizer, read(EXAMPLES / "data" / "heldout" / f"{task}.jsonl")[:50])
        for task in [*TASKS, "general"]
    }
    assert score.pop("general") >= 0.8
    assert all(0.3 <= share <= 0.7 for share in score.values()), score


def test_base_answers_by_generation(model, tokenizer):
    """Asked for the team of a request that did not move, the base answers and stops."""
    turns = [{"role": "user", "content": "Which team takes this request?\nMy kettle has not arrived yet."}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
    made = model.generate(**prompt, do_sample=False, max_new_tokens=20)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(made) == "This goes to Logistics.<|im_end|>"
