"""What begins and ends a sequence is the same in training, in the fidelity check and in a server of the file."""

import itertools
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from gguf.vocab import SpecialVocab
from tokenizers import Tokenizer, normalizers, processors
from transformers import AutoConfig, AutoTokenizer

from backprop_core.data.chat_encoding import encode, encode_prompts
from backprop_core.errors import ExportFidelity
from backprop_core.export.fidelity import Reader, measure
from backprop_core.export.fidelity_reference import refer
from backprop_core.export.gguf import convert
from backprop_core.export.gguf.tokenizer import LLAMA3
from backprop_core.export.gguf.vocabulary import declare
from backprop_core.models.base import dated, resolve
from backprop_core.schema.specs import ModelSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import part
from tests.backprop_core import nano
from tests.backprop_core import tiny_models as tiny
from tests.wire.llama_server import read_as

PREPENDED = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
ASKED = [{"role": "user", "content": "What is a kettle?"}]
ROWS: list[dict[str, Any]] = [
    {"messages": [*ASKED, {"role": "assistant", "content": "It boils water."}]},
    {"text": "Größe, naïve café: a kettle boils water."},
]
KINDS = ["llama", "bytes"]


def base_with(directory: Path, kind: str, *, bos: bool, eos: bool, written: bool) -> Path:
    """A base whose tokenizer adds BOS or EOS to a text or not, and whose template writes BOS or not."""
    base = tiny.build(directory, "mistral", vocab_size=600)
    if kind == "llama":
        tiny.use_sentence_piece(base, PREPENDED, None)
    else:
        tiny.use_tokenizer(base, tiny.split_by(LLAMA3), ignore_merges=True, bos=True)
    config = json.loads((base / "tokenizer_config.json").read_text())
    backend = Tokenizer.from_file(str(base / "tokenizer.json"))
    begin, end = [config["bos_token"]] * bos, [config["eos_token"]] * eos
    if begin or end:
        ids = [(token, backend.token_to_id(token)) for token in {*begin, *end}]
        backend.post_processor = processors.TemplateProcessing(
            single=[*begin, "$A", *end], pair=[*begin, "$A", *begin, "$B:1"], special_tokens=ids
        )
        backend.save(str(base / "tokenizer.json"))
    template = "{{ bos_token }}" * written + nano.CHATML
    (base / "chat_template.jinja").write_text(template, encoding="utf-8")
    return base


def trained(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids of a chat up to its answer, and those of raw text without its end."""
    [raw] = encode(tokenizer, ROWS[1:], max_length=999)
    return encode_prompts(tokenizer, [ASKED])[0], raw.ids[:-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bos", "eos", "written"), list(itertools.product([False, True], repeat=3)))
def test_trained_measured_and_served_ids_are_the_same(
    kind: str, bos: bool, eos: bool, written: bool, tmp_path: Path
) -> None:
    """Chats and raw text are the same ids in training, in the fidelity check and in llama-server, whoever adds BOS."""
    base, file = base_with(tmp_path / "base", kind, bos=bos, eos=eos, written=written), tmp_path / "model.gguf"
    convert(base, None, file, outtype="f32")
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert (tokenizer("a").input_ids[0] == tokenizer.bos_token_id) == bos
    chat, raw = trained(tokenizer)
    assert chat.count(tokenizer.bos_token_id) == written
    assert raw.count(tokenizer.bos_token_id) == (bos and written)
    assert read_as(file, ASKED, ROWS[1]["text"]) == (chat, raw)
    known = refer(tiny.load(base), tokenizer, ROWS)
    assert [text.ids for text in known.notes.texts] == [encode(tokenizer, ROWS[:1], max_length=999)[0].ids, raw]
    assert measure(known, file, quantization="f32").ids_equal


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("row", [0, 1], ids=["chat", "raw"])
def test_a_file_that_begins_otherwise_is_stopped(kind: str, written: bool, row: int, tmp_path: Path) -> None:
    """A file that adds a BOS that training had not, or adds none where training had one, does not pass."""
    base, file = base_with(tmp_path / "base", kind, bos=True, eos=False, written=written), tmp_path / "model.gguf"
    convert(base, None, file, outtype="f32")
    known = refer(tiny.load(base), AutoTokenizer.from_pretrained(base), ROWS[row : row + 1])
    tiny.spoil(file, "tokenizer.ggml.add_bos_token", not written)
    if written and row == 0:  # without the setting it is the template that writes BOS: the ids stay
        measure(known, file, quantization="f32")
    else:
        with pytest.raises(ExportFidelity, match="from token 0 on"):
            measure(known, file, quantization="f32")


def test_a_chat_has_one_bos(tmp_path: Path) -> None:
    """A server takes away the BOS that a template has written before it adds its own; of raw text it takes nothing."""
    base, file = base_with(tmp_path / "base", "llama", bos=True, eos=False, written=True), tmp_path / "model.gguf"
    convert(base, None, file, outtype="f32")
    with closing(Reader(file, length=64)) as reader:
        bos = reader.llama.token_bos()
        assert reader.ids("<s>a", chat=True).count(bos) == reader.ids("a").count(bos) == 1
        assert reader.ids("<s>a").count(bos) == 2


@pytest.mark.parametrize(("bos", "eos", "written"), list(itertools.product([False, True], repeat=3)))
def test_llama_cpps_own_converter_is_told_the_same(bos: bool, eos: bool, written: bool, tmp_path: Path) -> None:
    """What llama.cpp's converter reads of BOS, EOS and template is what our own writer writes."""
    base, file = base_with(tmp_path / "base", "llama", bos=bos, eos=eos, written=written), tmp_path / "model.gguf"
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "another"}))
    convert(base, None, file, outtype="f16")
    declare(base, AutoConfig.from_pretrained(base))
    read, ours = SpecialVocab(base), {name: field.contents() for name, field in GGUFReader(file).fields.items()}
    assert read.add_special_token["bos"] == ours["tokenizer.ggml.add_bos_token"]
    assert read.add_special_token["eos"] is False and "tokenizer.ggml.add_eos_token" not in ours  # llama.cpp's default
    assert read.special_token_ids["eos"] == ours["tokenizer.ggml.eos_token_id"]
    assert read.chat_template == ours["tokenizer.chat_template"]


@pytest.mark.parametrize(("named", "written"), list(itertools.product([False, True], repeat=2)))
def test_only_where_raw_text_begins_otherwise_is_the_key_another(named: bool, written: bool, tmp_path: Path) -> None:
    """A base that names a BOS which its chats do not begin with is trained under a key of its own; no other base is."""
    base = base_with(tmp_path / "base", "llama", bos=named, eos=False, written=written)
    if not named:
        config = json.loads((base / "tokenizer_config.json").read_text())
        (base / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": None}))
    found = resolve(ModelSpec(name=str(base)), Store(tmp_path / "store"))
    assert found.bare == (named and not written)
    assert part(found) == ([found.digest, "no bos"] if found.bare else found.digest)
    assert dated(found.model_copy(update={"bare": False})) == found
