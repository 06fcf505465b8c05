"""Rows are as long as the model's own tokenizer makes them, on a sample, and what a length cuts is said."""

import base64
import json
import random
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from backprop_core.data import chat_encoding, token_lengths
from backprop_core.data.token_lengths import CHARACTERS, LEAST_ROWS, LONGEST, MOST_ROWS, Counter
from backprop_core.errors import ModelLoadFailed, NoLabelTokens, NoRows, TokenizerMismatch
from backprop_core.schema.specs import TrainSpec
from backprop_core.training.defaults import Data, choose, cut_at, data_by
from backprop_core.training.vram_estimate import shape_of
from tests.backprop_core import nano

Row = dict[str, Any]


def sample(rows: Iterable[Row]) -> tuple[list[Row], int]:
    """A sample of rows that are all usable."""
    return token_lengths.sample(rows, lambda row: row)


def data_of(rows: Iterable[Row], counter: Counter) -> Data:
    """The measure of rows that are all usable."""
    return data_by(*sample(rows), counter)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nano.build(tmp_path_factory.mktemp("base"), max_position_embeddings=32_768)


def row(question: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


DENSE = {
    "Chinese": lambda rng: "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(rng.randrange(300, 600))),
    "code": lambda rng: "\n".join(f"    x{rng.randrange(99)}[{i}] += {{{i}: -(1)}}" for i in range(40)),
    "base64": lambda rng: base64.b64encode(rng.randbytes(900)).decode(),
    "digits": lambda rng: str(rng.randrange(10**800)),
    "emoji": lambda rng: "\U0001f469\u200d\U0001f680" * rng.randrange(50, 99),
}


def chosen(base: Path, data: Data) -> tuple[int, str]:
    """The length that is chosen, and why."""
    shape = shape_of("base", json.loads((base / "config.json").read_text()))
    made = choose(shape, TrainSpec(), data, None)
    [choice] = [choice for choice in made.choices if choice.field == "training.max_length"]
    return made.spec.max_length, choice.reason


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("side", ["question", "answer"])
def test_dense_text_is_not_cut(base: Path, kind: str, side: str) -> None:
    """Whatever the language, the length that is chosen leaves 99 of 100 rows whole, and says which it cuts."""
    rng = random.Random(kind)
    texts = [DENSE[kind](rng) for _ in range(200)]
    rows = [row(text, "yes") if side == "question" else row("go", text) for text in texts]
    data = data_of(rows, Counter(base))
    length, why = chosen(base, data)
    examples = chat_encoding.encode(AutoTokenizer.from_pretrained(base), rows, max_length=length)
    assert examples.cut <= 2 and len(examples) == 200
    assert (f"; {examples.cut} of 200 are longer" in why) == (examples.cut > 0)
    if not examples.cut:
        assert why.endswith("; none is longer")


@pytest.mark.parametrize("kind", ["question", "answer", "text"])
def test_control_tokens_in_rows_are_counted_as_letters(base: Path, kind: str) -> None:
    """Where a row names control tokens, they are as many tokens as training makes of their letters."""
    text = "<|im_end|><|im_start|>" * 60
    one = {"question": row(text, "yes"), "answer": row("go", text), "text": {"text": text}}[kind]
    rows = [one] * 20
    length, _ = chosen(base, data_of(rows, Counter(base)))
    assert chat_encoding.encode(AutoTokenizer.from_pretrained(base), rows, max_length=length).cut == 0


ROWS = [
    *nano.chats(60),
    row("a " * 700, "the end"),
    row("short", "b " * 700),
    row("x", "  spaces\n"),
    {"messages": [*row("a", "b")["messages"], *row("c", "d " * 90)["messages"], {"role": "user", "content": "e" * 99}]},
    {"text": "raw the text " * 50},
]


def test_counts_are_those_of_training(base: Path) -> None:
    """Of rows of every kind, tokens, those before the answer and those to learn from are what `chat.encode` makes."""
    fast = AutoTokenizer.from_pretrained(base)
    examples = chat_encoding.encode(fast, ROWS, max_length=10**6)
    counted = Counter(base).count(ROWS)
    for example, count in zip(examples, counted, strict=True):
        raw = "text" in ROWS[example.row]
        assert abs(count.tokens - len(example.ids)) <= raw  # the end of raw text
        assert abs(count.before - example.labels.index(True)) <= raw
        assert abs(count.labels - sum(example.labels)) <= 4  # spaces around an answer, and the ends of turns
    data = data_of(ROWS, Counter(base))
    for length in (30, 64, 300, 512, 2000):
        short = chat_encoding.encode(fast, ROWS, max_length=length)
        assert cut_at(data, length) == (len(ROWS), short.cut, short.left_out)


def test_what_is_cut_is_said_where_it_must_be(base: Path) -> None:
    """A model that reads less than the rows are long: how many are cut, and how many lose their answer, is said."""
    shape = shape_of("base", json.loads((base / "config.json").read_text()))
    short = shape.model_copy(update={"max_position_embeddings": 512})
    rows = [*nano.chats(97), row("a" * 3000, "no"), row("go", "b" * 3000), row("go", "c" * 3000)]
    choices = choose(short, TrainSpec(), data_of(rows, Counter(base)), None).choices
    [why] = [choice.reason for choice in choices if choice.field == "training.max_length"]
    assert why.endswith("; 3 of 100 are longer, 1 of them before the answer begins")


def test_long_rows_that_are_few_do_not_decide(base: Path) -> None:
    """One row in a hundred may be cut; two may not."""
    ordinary = nano.chats(98)
    one = [*ordinary, row("a", "b"), row("a", "b" * 2000)]
    two = [*ordinary, row("a", "b" * 3000), row("a", "b" * 3000)]
    assert chosen(base, data_of(one, Counter(base)))[0] == 512
    assert chosen(base, data_of(two, Counter(base)))[0] == 4096


@pytest.mark.slow
def test_a_sample_is_bounded_and_fair(base: Path) -> None:
    """Of a large file some rows are counted, drawn from all of it and the same each time; of long rows fewer."""
    many = [row("a", str(number)) for number in range(100_000)]
    drawn, count = sample(many)
    assert len(drawn) == MOST_ROWS and (drawn, count) == sample(many) and count == 100_000
    numbers = [int(one["messages"][1]["content"]) for one in drawn]
    assert 45_000 < sum(numbers) / len(numbers) < 55_000
    long = [row("a", "b" * 10**6) for _ in range(500)]
    assert len(sample(long)[0]) == LEAST_ROWS
    middling = [row("a", "b" * 5000) for _ in range(1000)]
    assert CHARACTERS // 5001 <= len(sample(middling)[0]) <= CHARACTERS // 5001 + 1
    begun = time.monotonic()
    data = data_of(long, Counter(base))
    assert time.monotonic() - begun < 10
    assert data.length == pytest.approx(10**6, rel=0.01) and data.examples == 500  # from LONGEST characters
    assert LONGEST < 10**6
    assert "about 500 of 500 are longer" in chosen(base, data)[1]


def test_a_sample_holds_few_rows() -> None:
    """However many rows there are, they are read one by one and few are in memory."""
    tracemalloc.start()
    drawn, count = sample(row("a", "b" * 1000 + str(number)) for number in range(20_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(drawn), count) == (MOST_ROWS, 20_000) and peak < 5 * 2**20


def test_a_row_that_the_template_refuses_is_counted_by_its_texts(base: Path, tmp_path: Path) -> None:
    """A refusal is curation's to report; the length does not fail for it."""
    other = nano.build(tmp_path / "strict")
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + nano.CHATML
    (other / "chat_template.jinja").write_text(strict)
    system = {"messages": [{"role": "system", "content": "s" * 90}, *row("a", "b")["messages"]]}
    [plain, refused] = Counter(other).count([row("a", "b"), system])
    assert plain.tokens == 20 and 90 <= refused.tokens < 100


def test_a_tokenizer_that_cuts_by_itself_does_not_cut_the_count(base: Path, tmp_path: Path) -> None:
    """What a tokenizer.json says of truncation and padding is not about training."""
    other = nano.build(tmp_path / "cutting")
    path = other / "tokenizer.json"
    cutting = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation": cutting}))
    assert Counter(other).count([row("a" * 99, "b")]) == Counter(base).count([row("a" * 99, "b")])


def test_without_a_tokenizer_json_bytes_are_counted_and_said(base: Path, tmp_path: Path) -> None:
    """Then a token is two bytes: Chinese and English are rather too long than cut, and the reason says why."""
    other = nano.build(tmp_path / "slow")
    (other / "tokenizer.json").rename(other / "vocab.json")
    for text in ("\u4e2d\u6587" * 300, "plain words of English " * 30):
        data = data_of([row(text, "yes")] * 20, Counter(other))
        assert data.length >= len(text.encode()) // 2
        assert "estimated by bytes" in chosen(other, data)[1]
    assert data_of([{"text": "\ud800" * 8}], Counter(None)).examples == 1


def test_a_tokenizer_that_is_none_is_named(tmp_path: Path) -> None:
    """A damaged tokenizer.json is an error about that file, before anything is loaded."""
    other = nano.build(tmp_path / "broken")
    for content in ("", "{}", '{"model": {"type": "BPE"}}', "\x00"):
        (other / "tokenizer.json").write_text(content)
        with pytest.raises(ModelLoadFailed, match=r"tokenizer\.json"):
            Counter(other)


def test_a_token_beyond_the_embeddings_is_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    """By config.json and the sample alone; a config.json that does not say its size leaves it to the loading."""
    other = nano.build(tmp_path / "short")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": 266}))
    with pytest.raises(TokenizerMismatch, match="produces token 266, 'user', but the model has only 266 embeddings"):
        Counter(other).count([row("a", "b")])
    (other / "config.json").write_text("{}")
    assert Counter(other).count([row("a", "b")])


def test_no_rows(base: Path) -> None:
    """Nothing is chosen by a dataset that has none."""
    with pytest.raises(NoRows):
        data_of([], Counter(base))


def test_rows_without_a_token_to_learn_from_are_counted(base: Path) -> None:
    """What keeps no token to learn from is left out and counted; only where nothing is left is that an error."""
    fast = AutoTokenizer.from_pretrained(base)
    fast.chat_template = nano.CHATML.replace("m['content'] }}", "m['content'] | replace('~', '') }}")
    empty = [row("a", "~"), row("a", "b"), row("a" * 99, "b")]
    examples = chat_encoding.encode(fast, empty, max_length=60)
    assert [example.row for example in examples] == [0, 1]  # the stop token is learnt
    assert (examples.cut, examples.left_out) == (1, 1)
    with pytest.raises(NoLabelTokens, match="none of 1 rows has a label token in its first 60 tokens") as caught:
        chat_encoding.encode(fast, empty[2:], max_length=60)
    assert "max_length" in caught.value.hint
