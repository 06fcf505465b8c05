"""The merged model as safetensors: what transformers loads is base plus adapter, and nothing else has moved."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from backprop_core.errors import AdapterMismatch
from backprop_core.export.merged_checkpoint import fuse
from tests.backprop_core import tiny_models as tiny

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in several files."""
    return tiny.build(tmp_path_factory.mktemp("fused") / "base", "qwen2", shard="100KB")


def test_loaded_again_it_is_pefts_merge(base: Path, tmp_path: Path) -> None:
    """Every parameter is that of merge_and_unload, bit for bit, and the files are named as the base's."""
    adapter, output = tiny.add_adapter(base, tmp_path / "adapter"), tmp_path / "out"
    output.mkdir()
    fuse(base, adapter, output)
    expected = PeftModel.from_pretrained(tiny.load(base), adapter).merge_and_unload().state_dict()
    found = tiny.load(output).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {path.name for path in output.iterdir()} == {path.name for path in base.iterdir()}
    assert len(list(output.glob("*.safetensors"))) > 2


def test_a_bf16_base_stays_bf16(base: Path, tmp_path: Path) -> None:
    """Changed matrices are rounded once to the base's type; what no adapter touches is the same bytes."""
    half, output = tmp_path / "half", tmp_path / "out"
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    output.mkdir()
    adapter = tiny.add_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    fuse(half, adapter, output)
    before, after = load_file(half / "model.safetensors"), load_file(output / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("q_proj.weight")}
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}


def test_quantized_weights_are_refused(base: Path, tmp_path: Path) -> None:
    """An adapter is not added to integers."""
    quantized, output = tmp_path / "quantized", tmp_path / "out"
    quantized.mkdir()
    output.mkdir()
    names = {name: tensor for path in base.glob("*.safetensors") for name, tensor in load_file(path).items()}
    save_file({name: tensor.to(torch.int8) for name, tensor in names.items()}, quantized / "model.safetensors")
    with pytest.raises(AdapterMismatch, match="is stored as I8"):
        fuse(quantized, tiny.add_adapter(base, tmp_path / "adapter"), output)
