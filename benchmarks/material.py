"""Models and rows that the benchmarks make for themselves."""

import json
import random
from pathlib import Path
from typing import Any

from tests.backprop_core import nano

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ("kettle", "toaster", "lamp", "fan", "heater", "blender", "mixer", "radio", "please", "the", "in", "a", "under")
LETTERS = 1.1  # of a token, about
TEMPLATE = 30  # tokens of it around a chat, about


def tiny_llama(directory: Path) -> Path:
    """A Llama of 4.6 million parameters; its template marks the assistant's turns, as TRL wants it."""
    nano.build(
        directory,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        vocab_size=4096,
    )
    (directory / "chat_template.jinja").write_text(CHATML)
    return directory


def tiny_qwen2(directory: Path) -> Path:
    """A Qwen2 of 151 thousand parameters."""
    return nano.build(directory, architecture="qwen2", vocab_size=1200)


def chats(count: int, *, seed: int = 27, letters: float = LETTERS) -> list[dict[str, Any]]:
    """Chats of very uneven lengths: 142 tokens of `letters` on average, 512 at most, half of each the answer."""
    return [chat(random.Random(f"{seed}:{number}"), letters) for number in range(count)]


def chat(rng: random.Random, of_token: float = LETTERS) -> dict[str, Any]:
    """A question, and an answer that repeats its words from the last to the first."""
    letters = of_token * (min(508, 26 + rng.lognormvariate(4.4, 0.95)) - TEMPLATE)
    words: list[str] = []
    while sum(map(len, words)) + len(words) < letters / 2:
        words.append(rng.choice(WORDS))
    question, answer = f"Say {' '.join(words)}", " ".join(reversed(words)) or "?"
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def sharegpt(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same chats in ShareGPT's format."""
    names = {"user": "human", "assistant": "gpt"}
    return [
        {"conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in row["messages"]]}
        for row in rows
    ]


def write_rows(rows: list[dict[str, Any]], path: Path) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
