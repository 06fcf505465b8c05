"""Tokens that are kept are those that tokenizing gives; what is not sound is made again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from backprop_core.data import batching, chat_encoding, token_cache
from backprop_core.data.batching import Item
from backprop_core.models.loading import LoadedBase
from backprop_core.schema.refs import RowsRef
from backprop_core.store.artifacts import Store
from tests.backprop_core import nano
from tests.backprop_core.store.test_artifacts import rewrite

ROWS = [*nano.chats(20), {"text": "a text of its own"}]
LENGTH = 90  # some are cut


@pytest.fixture
def rows(store: Store) -> RowsRef:
    return nano.commit_rows(store, ROWS)


Plain = tuple[list[int], list[int], int]


def items(base: LoadedBase, rows: RowsRef, store: Store, length: int = LENGTH) -> list[Plain]:
    found: list[Item] = batching.load(base, rows, max_length=length, store=store)
    return [(item.ids_t.tolist(), item.at_n.tolist(), item.row) for item in found]


def without_tokenizer(base: LoadedBase) -> LoadedBase:
    """A base that has its tokenizer's name and template, and nothing to tokenize with."""
    real = base.tokenizer
    return replace(base, tokenizer=SimpleNamespace(name_or_path=real.name_or_path, chat_template=real.chat_template))


def artifact(store: Store) -> str:
    """The digest of the only tokens in the store."""
    [note] = store.root.glob("notes/tokens/*.json")
    return str(json.loads(note.read_text())["digest"])


def test_what_is_kept_is_what_tokenizing_gives(
    base: LoadedBase, rows: RowsRef, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Made or opened, in this process or another: every id, label and row of `chat.encode`, and its warning."""
    examples = chat_encoding.encode(base.tokenizer, ROWS, max_length=LENGTH)
    expected = [(ids, [at for at, label in enumerate(labels) if label], row) for ids, labels, row in examples]
    assert items(base, rows, store) == expected
    assert items(without_tokenizer(base), rows, Store(store.root)) == expected
    [first, second] = [record.getMessage() for record in caplog.records]
    assert first == second and f"{examples.cut} rows" in first and f"{examples.left_out} rows or" in first
    with pytest.raises(AttributeError):  # what was not kept needs a tokenizer
        items(without_tokenizer(base), rows, store, LENGTH + 1)


def test_whatever_decides_the_tokens_is_in_their_key(
    base: LoadedBase, rows: RowsRef, store: Store, tmp_path: Path
) -> None:
    """Rows, length, template and tokenizer files; not the place of the base, nor its weights."""

    def key(base: LoadedBase = base, rows: RowsRef = rows, length: int = LENGTH) -> str:
        return token_cache.key_of(base, rows, length, store)

    def at(place: Path) -> LoadedBase:
        return replace(base, tokenizer=AutoTokenizer.from_pretrained(place))

    for name in ("moved", "other"):
        shutil.copytree(base.tokenizer.name_or_path, tmp_path / name)
    (tmp_path / "moved" / "model.safetensors").write_bytes(b"other weights")
    text = (tmp_path / "other" / "tokenizer.json").read_text()
    (tmp_path / "other" / "tokenizer.json").write_text(text + "\n")
    template = at(tmp_path / "moved")
    template.tokenizer.chat_template += " "
    fewer = nano.commit_rows(store, ROWS[1:])
    assert key(at(tmp_path / "moved")) == key()
    assert len({key(), key(rows=fewer), key(length=91), key(at(tmp_path / "other")), key(template)}) == 5


def test_damaged_tokens_are_made_again(
    base: LoadedBase, rows: RowsRef, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A flipped bit is found by `store check` and before a token is used: set aside, said, and tokenized again."""
    expected = items(base, rows, store)
    path = store.layout.artifact(artifact(store)) / token_cache.FILE
    whole = path.read_bytes()
    rewrite(path, whole[:-1] + bytes([whole[-1] ^ 1]))
    assert [finding.digest for finding in store.check()] == [artifact(store)]
    assert items(base, rows, Store(store.root)) == expected
    assert "set aside, tokenizing again" in caplog.text and path.read_bytes() == whole
    assert list(store.check()) == []


def test_tokens_that_were_removed_are_made_again(
    base: LoadedBase, rows: RowsRef, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A tombstone, or a note that cannot be read, is as if nothing had been kept."""
    expected = items(base, rows, store)
    store.remove(artifact(store), "to see what happens")
    assert items(base, rows, store) == expected
    [note] = store.root.glob("notes/tokens/*.json")
    note.write_text("{")
    assert items(base, rows, store) == expected and "token cache entry" in caplog.text


def test_golden_tokens(base: LoadedBase, rows: RowsRef, store: Store) -> None:
    """Who changes what is kept has to raise tokens.VERSION, and this digest with it."""
    items(base, rows, store)
    assert token_cache.VERSION == 2
    assert artifact(store) == "335aeb4fb8311a725ae6100652553ba07fe3b27478e935acac4e7188ff27b2a6"
