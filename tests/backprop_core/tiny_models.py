"""Small real models of every architecture that is exported, with every parameter random, and adapters on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.backprop_core import nano

ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3"]
PROMPTS = [
    "<|im_start|>user\nWhat is a kettle?<|im_end|>\n<|im_start|>assistant\nIt boils water.<|im_end|>\n",
    "Größe, naïve café, Ångström: ¿qué tal? “quoted” — it’s 100 %…",
    "日本語のテキスト、中文文本。 한국어 Привет мир, שלום עולם, नमस्ते दुनिया 🙂👩‍👩‍👧‍👦",
    "def f(x: int) -> int:\n    return x**2 + 12345  # ok\n\n\n\tif a <= b:\n\t\tpass",
    "WE'LL don't I've  two   spaces    \n \n  trailing  ",
    "<|endoftext|>plain<|im_end|><|im_end|>\n<|im_start|>user\n<|not_special|> 3.14 1,000,000",
]
K_QUANT_SHAPE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": 512}


def build(directory: Path, architecture: str, *, shard: str = "1GB", **config: Any) -> Path:
    """A base whose every parameter is random, biases and norms too, large enough that attention and rope matter."""
    nano.build(directory, architecture=architecture, **config)
    model = load(directory)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.copy_(torch.randn_like(parameter) * 1.5 / parameter.shape[1] ** 0.5)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size=shard)
    return directory


def load(directory: Path) -> Any:
    """The base in float32."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def add_adapter(base: Path, directory: Path, **lora: Any) -> Path:
    """A LoRA adapter by PEFT itself on every linear layer, with non-zero B."""
    torch.manual_seed(2)
    model = get_peft_model(load(base), LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **lora}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
            if "lora_magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    model.save_pretrained(directory, save_embedding_layers=False)
    return directory


def use_tokenizer(directory: Path, pre_tokenizer: Any, *, ignore_merges: bool = False, bos: bool = False) -> None:
    """Give a base another byte-level BPE tokenizer, trained on PROMPTS."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|bos|>"]
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        PROMPTS * 4,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<|bos|>" if bos else None,
    )
    fast.chat_template = nano.CHATML
    fast.save_pretrained(directory)


def use_sentence_piece(directory: Path, normalizer: Any, pre_tokenizer: Any) -> None:
    """Give a base a SentencePiece vocabulary, as transformers has it: BPE on characters, ▁ for spaces."""
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer, trained.pre_tokenizer = normalizer, pre_tokenizer
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trained.train_from_iterator(
        [PROMPTS[0], PROMPTS[1], PROMPTS[3]] * 4,
        trainers.BpeTrainer(vocab_size=500, special_tokens=[*special, *bytes_], show_progress=False),
    )
    state = json.loads(trained.to_str())
    state["model"] |= {"byte_fallback": True, "fuse_unk": True}
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|im_end|>",
    )
    fast.chat_template = nano.CHATML
    fast.save_pretrained(directory)


def split_by(regex: str) -> Any:
    """Split by a regex, then byte-level."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def spoil(file: Path, key: str, value: str | int) -> Path:
    """The GGUF file with another value in its metadata, as long as the old one: a string is filled up with spaces."""
    field = GGUFReader(file, "r+").fields[key]
    part = field.parts[field.data[0]]
    part[:] = np.frombuffer(value.encode().ljust(len(part)), np.uint8) if isinstance(value, str) else value
    return file
