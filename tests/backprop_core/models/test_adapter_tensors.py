"""Adapters on disk: PEFT reads them, and the same content is the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from backprop_core.errors import AdapterMismatch, BackpropError, InputNotFound, InputValidationFailed
from backprop_core.models import adapter_tensors as adapters
from backprop_core.models import peft_files
from backprop_core.models.adapter_tensors import Adapter
from backprop_core.models.loading import injected, linear_names, load, taken
from backprop_core.schema.specs import LoraSpec
from tests.backprop_core import nano

CONFIG = adapters.config_of(LoraSpec(rank=2, alpha=4), ["up_proj", "q_proj", "v_proj"])
KEYS = [f"base_model.model.model.layers.0.mlp.up_proj.lora_{part}.weight" for part in "AB"]
TARGETS = ["gate_proj", "up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "o_proj"]
NAMES = ["lora_A", "lora_B", "lora_C", "lora_D"]
SCRIPT = f"""
import sys, torch
from pathlib import Path
from backprop_core.models import adapter_tensors as adapter
config = {{"lora_alpha": 4, "r": 2, "peft_type": "LORA", "target_modules": set({TARGETS}), "peft_version": "0.1"}}
tensors = {{f"layer.{{name}}.weight": torch.full((2, 3), float(ord(name[-1]))) for name in set({NAMES})}}
adapter.write_adapter(adapter.Adapter(config, tensors), Path(sys.argv[1]))
"""


def some() -> Adapter:
    torch.manual_seed(0)
    return Adapter(CONFIG, {KEYS[0]: torch.randn(2, 5), KEYS[1]: torch.randn(3, 2)})


def test_read_gives_what_was_written(tmp_path: Path) -> None:
    """Writing and reading returns the same tensors bit for bit, and a config that changes no more."""
    adapters.write_adapter(some(), tmp_path)
    found = adapters.read_adapter(tmp_path)
    assert found.config == peft_files.portable(CONFIG)
    assert all(torch.equal(found.tensors[key], some().tensors[key]) for key in KEYS)


@pytest.mark.slow
def test_same_content_same_bytes_in_any_process(tmp_path: Path) -> None:
    """A process with another hash seed, directory and library version writes the same two files as this one."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    config = {"peft_type": "LORA", "r": 2, "target_modules": TARGETS, "peft_version": "0.2", "lora_alpha": 4}
    tensors = {f"layer.{name}.weight": torch.full((2, 3), float(ord(name[-1]))) for name in reversed(NAMES)}
    adapters.write_adapter(Adapter(config, tensors), here)
    subprocess.run([sys.executable, "-c", SCRIPT, str(there)], check=True, env={**os.environ, "PYTHONHASHSEED": "1"})
    for name in (peft_files.CONFIG, peft_files.WEIGHTS):
        assert (here / name).read_bytes() == (there / name).read_bytes()
        assert str(tmp_path).encode() not in (here / name).read_bytes()


def test_half_precision_is_written_as_float32(tmp_path: Path) -> None:
    """Whatever the tensors' type and layout, the file holds float32."""
    half = {KEYS[0]: torch.ones(5, 2).T.bfloat16()}
    adapters.write_adapter(Adapter(CONFIG, half), tmp_path)
    assert adapters.read_adapter(tmp_path).tensors[KEYS[0]].dtype == torch.float32


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT reads it
def test_peft_answers_as_we_do(tmp_path: Path) -> None:
    """PeftModel.from_pretrained loads the directory, and gives the logits of the adapter in our hands."""
    base = load(nano.build(tmp_path / "base"), precision="fp32", device="cpu")
    config = adapters.config_of(LoraSpec(rank=4), linear_names(base.model))
    ids = torch.arange(20)[None]
    torch.manual_seed(0)
    with injected(base, config, None) as model:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        tensors, ours = taken(model), base.model(ids).logits
    bare = base.model(ids).logits
    (tmp_path / "adapter").mkdir()
    adapters.write_adapter(Adapter(config, tensors), tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(base.model, tmp_path / "adapter")(ids).logits
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, bare)


def spoil(directory: Path, how: str) -> None:
    config, weights = directory / peft_files.CONFIG, directory / peft_files.WEIGHTS
    match how:
        case "no config":
            config.unlink()
        case "pickle":
            weights.rename(directory / "adapter_model.bin")
        case "not JSON":
            config.write_text("{")
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-8])
        case "other method":
            config.write_text(json.dumps({**CONFIG, "peft_type": "IA3"}))


@pytest.mark.parametrize(
    "how, error",
    [
        ("no config", InputNotFound),
        ("pickle", InputNotFound),
        ("not JSON", InputValidationFailed),
        ("truncated", InputValidationFailed),
        ("other method", AdapterMismatch),
    ],
)
def test_what_is_no_adapter_is_refused(tmp_path: Path, how: str, error: type[BackpropError]) -> None:
    """A missing, damaged or foreign file is a coded error; a pickle is not opened."""
    adapters.write_adapter(some(), tmp_path)
    spoil(tmp_path, how)
    with pytest.raises(error):
        adapters.read_adapter(tmp_path)
