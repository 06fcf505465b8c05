"""The check that stands between a file and its users: it passes good files and stops bad ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from transformers import AutoTokenizer

from backprop_core.errors import ExportFidelity, GGUFExportFailed
from backprop_core.export import fidelity
from backprop_core.export.fidelity import compare
from backprop_core.export.fidelity_reference import Likely, refer
from backprop_core.export.gguf import convert
from backprop_core.export.gguf.tokenizer import QWEN2
from backprop_core.export.quantize import quantize
from backprop_core.schema.refs import Fidelity
from tests.backprop_core import tiny_models as tiny

# PEFT asks transformers for a property that it renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
Case = tuple[Any, Any, Path]


def measure(model: Any, tokenizer: Any, texts: list[str], file: Path, *, quantization: str) -> Fidelity:
    """The file against what the model makes of these texts."""
    return fidelity.measure(
        refer(model, tokenizer, [{"text": text} for text in texts]), file, quantization=quantization
    )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A model with its adapter, its tokenizer, and its F32 file."""
    root = tmp_path_factory.mktemp("case")
    base = tiny.build(root / "base", "llama", **tiny.K_QUANT_SHAPE)
    tiny.use_tokenizer(base, tiny.split_by(QWEN2))
    adapter = tiny.add_adapter(base, root / "adapter")
    convert(base, adapter, root / "model.gguf", outtype="f32")
    return PeftModel.from_pretrained(tiny.load(base), adapter).eval(), AutoTokenizer.from_pretrained(base), root


def test_exact_file_agrees(case: Case) -> None:
    """An F32 file agrees with the model and its adapter everywhere, and every token is counted."""
    model, tokenizer, root = case
    found = measure(model, tokenizer, tiny.PROMPTS, root / "model.gguf", quantization="f32")
    assert found.ids_equal and found.top1 == 1 and abs(found.kl) < 1e-7
    assert found.positions == sum(len(tokenizer(text).input_ids) for text in tiny.PROMPTS)


def test_smaller_files_are_less_exact(case: Case, tmp_path: Path) -> None:
    """KL grows from q8_0 over q6_k to q4_k_m, and all three pass."""
    model, tokenizer, root = case
    divergence = []
    for quantization in ("q8_0", "q6_k", "q4_k_m"):
        quantize(root / "model.gguf", tmp_path / quantization, quantization, threads=1)
        found = measure(model, tokenizer, tiny.PROMPTS, tmp_path / quantization, quantization=quantization)
        divergence.append(found.kl)
    assert 0 < divergence[0] < divergence[1] < divergence[2]


def test_another_model_is_stopped(case: Case) -> None:
    """Negative control: the base without its adapter is not what the file was made from."""
    model, tokenizer, root = case
    with pytest.raises(ExportFidelity, match="agrees with the model on"), model.disable_adapter():
        measure(model, tokenizer, tiny.PROMPTS, root / "model.gguf", quantization="q4_k_m")


def test_wrong_rotary_pairing_is_stopped_even_as_q2_k(case: Case, tmp_path: Path) -> None:
    """Negative control: with the rows of q and k in transformers' order, the most generous threshold fails."""
    model, tokenizer, root = case
    file = tmp_path / "model.gguf"
    file.write_bytes((root / "model.gguf").read_bytes())
    for tensor in GGUFReader(file, "r+").tensors:
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            heads = tensor.data.shape[0] // 64
            paired = tensor.data.reshape(heads, 32, 2, -1)
            tensor.data[:] = np.swapaxes(paired, 1, 2).reshape(tensor.data.shape)
    with pytest.raises(ExportFidelity):
        measure(model, tokenizer, tiny.PROMPTS, file, quantization="q2_k")


def test_another_pre_tokenizer_is_stopped(case: Case, tmp_path: Path) -> None:
    """Negative control: a file that splits text as GPT-2 gives other ids, and the message says where."""
    model, tokenizer, root = case
    file = tmp_path / "model.gguf"
    key = b"tokenizer.ggml.pre\x08\0\0\0\x05\0\0\0\0\0\0\0"  # then a string of five bytes
    file.write_bytes((root / "model.gguf").read_bytes().replace(key + b"qwen2", key + b"gpt-2"))
    with pytest.raises(ExportFidelity, match="text 1 differently"):
        measure(model, tokenizer, tiny.PROMPTS[3:], file, quantization="f32")


@pytest.mark.parametrize(
    ("key", "value"), [("tokenizer.chat_template", "{{ messages }}"), ("tokenizer.ggml.eos_token_id", 0)]
)
def test_another_chat_is_stopped(case: Case, tmp_path: Path, key: str, value: str | int) -> None:
    """Negative control: a file with another template or stop token answers well and talks wrongly."""
    model, tokenizer, root = case
    file = tmp_path / "model.gguf"
    file.write_bytes((root / "model.gguf").read_bytes())
    tiny.spoil(file, key, value)
    with pytest.raises(ExportFidelity, match=key):
        measure(model, tokenizer, tiny.PROMPTS[:1], file, quantization="f32")


def test_decomposed_text_is_normalized_first(case: Case) -> None:
    """llama.cpp has no NFC: a decomposed text is compared in the form in which the model sees it."""
    model, tokenizer, root = case
    found = measure(model, tokenizer, ["cafe\u0301 au lait"], root / "model.gguf", quantization="f32")
    assert found.ids_equal


def test_divergence_is_that_of_float64(case: Case) -> None:
    """KL per position equals the textbook sum in float64."""
    torch.manual_seed(0)
    reference, found = torch.randn(7, 50), torch.randn(7, 50)
    p, q = (np.exp(x.double().numpy()) / np.exp(x.double().numpy()).sum(-1, keepdims=True) for x in (reference, found))
    same, divergence = compare(Likely.of(reference), found)
    assert np.allclose(divergence.numpy(), (p * np.log(p / q)).sum(-1), atol=1e-6)
    assert same.tolist() == (p.argmax(-1) == q.argmax(-1)).tolist()


def test_file_that_is_none_is_refused(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What llama.cpp cannot load is a coded error, and nothing is printed."""
    model, tokenizer, _ = case
    (tmp_path / "model.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(GGUFExportFailed, match="cannot load"):
        measure(model, tokenizer, ["a"], tmp_path / "model.gguf", quantization="f32")
    assert capfd.readouterr() == ("", "")
