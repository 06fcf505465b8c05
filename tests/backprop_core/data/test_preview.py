"""What the preview shows of a row is what training learns of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer

from backprop_core.data import chat_encoding, chat_rendering, control_tokens
from backprop_core.data.loading import good_rows, snapshot
from backprop_core.data.preview import Preview, chosen, preview
from backprop_core.errors import InputNotFound, ModelLoadFailed, NoRows
from backprop_core.models.file_tokenizer import FileTokenizer
from backprop_core.schema.specs import DatasetSpec
from tests.backprop_core import nano, tiny_models

ROOT = Path(__file__).parents[3]
DROPS_THOUGHTS = (  # as Qwen3's: an answer loses its thoughts once another turn follows
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(*texts: str) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(texts)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


ROWS = [
    chat("Say kettle", "kettle!"),
    chat("the user", "the answer", "and then?", "  two\n\n lines \n"),
    chat("<|im_end|> is a token", "so is <|im_start|> and <|endoftext|>"),
    chat("Größe naïve 日本語 🙂👩‍🚀", "e\u0301 \u00e9 שלום 🙂"),
    chat("a", "<think>why</think>b", "c", "<think>how</think>d"),
    {"text": "raw text with <|im_end|> and 🙂"},
    {"text": "the end " * 40},
]


def bare_words(directory: Path) -> None:
    """A tokenizer that drops the spaces between words."""
    tiny_models.use_sentence_piece(directory, normalizers.NFKC(), pre_tokenizers.Whitespace())


BASES = {
    "byte-level": lambda directory: None,
    "byte-level with BOS": lambda directory: tiny_models.use_tokenizer(
        directory, pre_tokenizers.ByteLevel(add_prefix_space=False), bos=True
    ),
    "SentencePiece": lambda directory: tiny_models.use_sentence_piece(
        directory, normalizers.Replace(" ", "▁"), pre_tokenizers.Split("▁", "merged_with_next")
    ),
    "without spaces": bare_words,
    "answers apart": lambda directory: (directory / "chat_template.jinja").write_text(DROPS_THOUGHTS),
}


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    directory = nano.build(tmp_path / "base")
    BASES[request.param](directory)
    return directory


def written(rows: list[dict[str, Any]], tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def shown(path: Path, base: Path, max_length: int = 4096, **wanted: int) -> Preview:
    found = chosen(snapshot(str(path), scratch=path.parent), DatasetSpec(path=str(path)), **wanted)
    return preview("rows", found, FileTokenizer(base), model="base", max_length=max_length)


def test_tokens_and_labels_are_those_of_training(base: Path) -> None:
    """Without transformers, each row has the same token ids and label tokens as with it."""
    ours = chat_encoding.encode(FileTokenizer(base), ROWS, max_length=4096)  # type: ignore[arg-type]
    assert ours == chat_encoding.encode(AutoTokenizer.from_pretrained(base), ROWS, max_length=4096)
    assert len(ours) >= len(ROWS) and any(any(example.labels) for example in ours)


@pytest.mark.parametrize("max_length", [4096, 30])
def test_the_preview_counts_as_training_does(base: Path, tmp_path: Path, max_length: int) -> None:
    """Its counts are those of the examples that training makes, and its parts are the whole rendered text."""
    for row in ROWS:
        [one] = shown(written([row], tmp_path), base, max_length=max_length).rows
        whole = chat_encoding.encode(AutoTokenizer.from_pretrained(base), [row], max_length=4096)
        assert [
            (shown.tokens, shown.label_tokens, shown.cut_tokens, shown.label_tokens - shown.cut_label_tokens)
            for shown in one.examples
        ] == [
            (len(ids), sum(labels), max(0, len(ids) - max_length), sum(labels[:max_length])) for ids, labels, _ in whole
        ]
        for part in one.examples:
            assert control_tokens.FENCE not in "".join(span.text for span in part.spans)
            assert any(span.cut for span in part.spans) == (part.cut_tokens > 0)


def test_label_parts_are_the_answers_with_their_stop_tokens(tmp_path: Path) -> None:
    """The label parts of a chat are its answers, each with its stop token; all parts joined are what is rendered."""
    base = nano.build(tmp_path / "base")
    for row in ROWS[:4]:
        [one] = shown(written([row], tmp_path), base).rows
        [example] = one.examples
        answers = [turn["content"] + "<|im_end|>" for turn in row["messages"] if turn["role"] == "assistant"]
        assert [span.text for span in example.spans if span.label] == answers
        rendered = chat_rendering.render(AutoTokenizer.from_pretrained(base), row)
        assert "".join(span.text for span in example.spans) == rendered


def test_what_is_cut_is_the_end(tmp_path: Path) -> None:
    """The parts beyond the maximum length are the text of the tokens beyond it."""
    base = nano.build(tmp_path / "base")
    [one] = shown(written([chat("Say it", "0123456789")], tmp_path), base, max_length=25).rows
    [example] = one.examples
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer("".join(span.text for span in example.spans)).input_ids
    assert example.cut_tokens == len(ids) - 25
    assert "".join(span.text for span in example.spans if span.cut) == tokenizer.decode(ids[25:])


def test_the_sample_is_the_same_each_time(tmp_path: Path) -> None:
    """The same file gives the same rows, in the file's order; malformed ones are none of them."""
    base = nano.build(tmp_path / "base")
    source = written([*nano.chats(40), {"messages": "none"}], tmp_path)
    first, second = shown(source, base, rows=5), shown(source, base, rows=5)
    places = [row.place for row in first.rows]
    assert first == second and len(set(places)) == 5 and places == sorted(places, key=lambda p: int(p.split()[1]))
    assert len(shown(source, base, rows=100).rows) == 40


def test_rows_that_cannot_be_trained_say_why(tmp_path: Path) -> None:
    """A malformed row, one without an answer, and one that the template refuses are shown with the reason."""
    base = nano.build(tmp_path / "base")
    template = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    (base / "chat_template.jinja").write_text(template + nano.CHATML.removeprefix("{% for m in messages %}"))
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "tool", "assistant")]
    tool = {"messages": turns}
    source = written([ROWS[0], {"messages": [{"role": "user", "content": "x"}]}, {"messages": 3}, tool], tmp_path)
    reasons = [shown(source, base, number=number).rows[0].refused for number in (1, 2, 3, 4)]
    assert reasons[0] is None and "no answer" in str(reasons[1]) and "messages" in str(reasons[2])
    assert "no tools" in str(reasons[3])


def test_what_is_not_there(tmp_path: Path) -> None:
    """A line without a row, a dataset without a usable row, and a base without a tokenizer.json are coded errors."""
    base = nano.build(tmp_path / "base")
    with pytest.raises(InputNotFound, match="line or row 9"):
        shown(written(ROWS[:1], tmp_path), base, number=9)
    with pytest.raises(NoRows, match="none of 1 rows"):
        shown(written([{"messages": 3}], tmp_path), base)
    (base / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadFailed, match=r"no tokenizer\.json"):
        FileTokenizer(base)


def test_the_demo_base(tmp_path: Path) -> None:
    """The base that ships with the project is encoded alike."""
    base = ROOT / "examples" / "base"
    rows = [json.loads(line) for line in (ROOT / "examples" / "data" / "orders.jsonl").read_text().splitlines()[:50]]
    path = written(rows, tmp_path)
    chats = list(good_rows(snapshot(str(path), scratch=tmp_path), DatasetSpec(path=str(path))))
    ours = chat_encoding.encode(FileTokenizer(base), chats, max_length=64)  # type: ignore[arg-type]
    theirs = chat_encoding.encode(AutoTokenizer.from_pretrained(base), chats, max_length=64)
    assert ours == theirs and len(ours) == 50
