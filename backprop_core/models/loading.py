"""Loads the base model with transformers, and attaches and detaches LoRA adapters with PEFT."""

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from backprop_core.errors import AdapterMismatch, GPUOutOfMemory, ModelLoadFailed, TokenizerMismatch
from backprop_core.models import adapter_tensors as adapters
from backprop_core.models.adapter_tensors import Adapter, Tensors
from backprop_core.models.base import OTHER_TOKENIZER, weights
from backprop_core.models.peft_files import tokenizer_home
from backprop_core.runtime.optional_packages import QLORA, require
from backprop_core.schema.field_types import Precision
from backprop_core.schema.refs import AdapterRef
from backprop_core.store.artifacts import Store

# Architectures that compute logits as lm_head of the last hidden state, with nothing in between.
PLAIN_HEAD = {"llama", "mistral", "qwen2", "qwen3"}
INCOMPLETE = "config.json and weights do not match: download the model's files again"


@dataclass(frozen=True)
class LoadedBase:
    """A frozen transformers model in evaluation mode, and its tokenizer."""

    model: Any
    tokenizer: Any
    precision: Precision
    device: torch.device

    @property
    def plain_head(self) -> bool:
        return self.model.config.model_type in PLAIN_HEAD

    @property
    def vocabulary(self) -> int:
        """Logits per token."""
        return int(self.model.config.get_text_config().vocab_size)

    def check_ids(self, ids_t: Tensor) -> None:
        """Raise TokenizerMismatch for a token that the model has no embedding for."""
        size = self.model.get_input_embeddings().num_embeddings
        if len(ids_t) and (largest := int(ids_t.max())) >= size:
            raise TokenizerMismatch(
                f"{self.model.name_or_path}: the tokenizer produces token {largest}, "
                f"{self.tokenizer.convert_ids_to_tokens(largest)!r}, but the model has only {size} embeddings",
                hint=OTHER_TOKENIZER,
            )

    def checking_ids(self) -> RemovableHandle:
        """Hook that runs `check_ids` on every model input, for inputs that a library tokenizes; call `remove` on it."""
        embeddings = self.model.get_input_embeddings()
        handle: RemovableHandle = embeddings.register_forward_pre_hook(lambda _, ids: self.check_ids(ids[0].flatten()))
        return handle

    def keep_activations(self, kept: bool) -> None:
        """Switch gradient checkpointing off (`kept`) or on."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers deprecates both names
            if kept:
                self.model.gradient_checkpointing_disable()
            else:
                self.model.gradient_checkpointing_enable({"use_reentrant": False})

    # b = rows, t = tokens, n = chosen positions, h = hidden size (or v where the head is not plain), v = vocabulary

    def states(self, ids_bt: Tensor, lengths_b: Tensor, at_n: Tensor) -> Tensor:
        """Input of `logits` at the chosen positions of the flattened, right-padded `ids_bt`: (n, h).

        Causal attention ignores later tokens, so right padding needs no mask if the head is plain.
        """
        if self.plain_head:
            states_bth = self.model.model(input_ids=ids_bt, use_cache=False).last_hidden_state
        else:
            mask_bt = torch.arange(ids_bt.shape[1], device=ids_bt.device) < lengths_b[:, None]
            states_bth = self.model(input_ids=ids_bt, attention_mask=mask_bt.long(), use_cache=False).logits
        states_nh: Tensor = states_bth.flatten(0, 1).index_select(0, at_n)
        return states_nh

    def logits(self, states_nh: Tensor) -> Tensor:
        """(n, v) in float32."""
        return (self.model.lm_head(states_nh) if self.plain_head else states_nh).float()


UNLOADABLE = (  # errors that libraries raise for damaged files
    *(OSError, ImportError, SafetensorError, StrictDataclassError, RuntimeError),
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError),
)


def load(path: Path, *, precision: Precision, device: str) -> LoadedBase:
    """Load a base from its directory: safetensors only, no remote code, no network.

    nf4: all linear layers except the head in 4 bits with double quantization; the rest and all computation in bf16 on a
    GPU, fp32 on a CPU. Raises ModelLoadFailed, ExtraMissing, and GPUOutOfMemory if the weights do not fit.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    dtype = torch.float32 if precision == "fp32" or (precision, device) == ("nf4", "cpu") else torch.bfloat16
    quantized = nf4(dtype, device) if precision == "nf4" else {}
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.from_pretrained(path, **local))]
        attention = "sdpa" if kind._supports_sdpa else "eager"
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            **{"dtype": dtype, "use_safetensors": True, "attn_implementation": attention, "output_loading_info": True},
            ignore_mismatched_sizes=True,  # `check_complete` names them
            **quantized,
            **local,
        )
        tokenizer = load_tokenizer(path, model.config)
        check_complete(path, model, info)
        model.to(device)
    except torch.OutOfMemoryError as error:
        raise GPUOutOfMemory(f"{path.name} does not fit on {device}", hint="use a smaller base, bf16 or nf4") from error
    except UNLOADABLE as error:
        raise ModelLoadFailed(f"cannot load {path}: {error}", hint="download the model's files again") from error
    if quantized:
        keep_packed(model)
    return LoadedBase(model.eval().requires_grad_(False), tokenizer, precision, torch.device(device))


def check_complete(path: Path, model: Any, info: dict[str, Any]) -> None:
    """Raise ModelLoadFailed unless the weights match config.json exactly.

    transformers only warns, then uses a part of the model or randomly initialized layers.
    """
    if missing := sorted(info["missing_keys"]):
        raise ModelLoadFailed(f"{path} has no weights for {missing[0]}", hint=INCOMPLETE)
    if unexpected := sorted(info["unexpected_keys"]):
        raise ModelLoadFailed(
            f"{path} has {len(unexpected)} weights that its config.json does not describe, first {unexpected[0]}",
            hint=INCOMPLETE,
        )
    if other := sorted(info["mismatched_keys"]):
        name, stored, described = other[0]
        raise ModelLoadFailed(
            f"{path} has {name} of shape {tuple(stored)}, but its config.json says {tuple(described)}", hint=INCOMPLETE
        )
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = model.config.get_text_config().tie_word_embeddings
    if tied and head.weight.data_ptr() != embeddings.weight.data_ptr():
        raise ModelLoadFailed(
            f"{path} has a separate output head, but its config.json says tie_word_embeddings",
            hint="set tie_word_embeddings to false in config.json, or remove the head from the weights",
        )


def load_tokenizer(directory: Path, config: Any) -> Any:
    """Load the tokenizer in a directory; `config` is given, as an adapter's directory has none."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, config=config, local_files_only=True, trust_remote_code=False)


def with_tokenizer_of(base: LoadedBase, ref: AdapterRef | None, store: Store) -> LoadedBase:
    """The base with the adapter's own tokenizer and chat template, if it has them."""
    own = Path(base.tokenizer.name_or_path)
    home = tokenizer_home(own, store.local(ref) if ref else None)
    return base if home == own else replace(base, tokenizer=load_tokenizer(home, base.model.config))


def nf4(dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` for 4-bit weights. Raises ExtraMissing."""
    from transformers import BitsAndBytesConfig

    require(QLORA, what="nf4", extra="qlora")
    importlib.import_module("bitsandbytes")
    support = importlib.import_module("peft.import_utils")
    for question in (support.is_bnb_available, support.is_bnb_4bit_available):
        question.cache_clear()  # `peft_module` may have hidden it from PEFT
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "device_map": {"": device}}


def keep_packed(model: Any) -> None:
    """Keep 4-bit weights as loaded: on some CPUs bitsandbytes would repack them for inference."""
    linear: list[Any] = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    for module in linear:
        module.support_avx512bf16_for_cpu = False


def tensor_files(path: Path) -> dict[str, Any]:
    """Tensor name -> open safetensors file, for all tensors of a base."""
    files: list[Any] = [safe_open(file, "pt") for file in weights(path)]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118 - not a dict


def linear_names(model: Any) -> list[str]:
    """Sorted last names of all linear layers except the output head: the meaning of "all-linear"."""
    head = model.get_output_embeddings()
    linear = (
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
    )
    return sorted({name.rpartition(".")[2] for name in linear})


@contextmanager
def injected(base: LoadedBase, config: dict[str, Any], tensors: Tensors | None) -> Iterator[Any]:
    """Add LoRA layers in float32 to `base.model`; on exit restore it bitwise.

    Yields the PEFT model in evaluation mode. Without `tensors`, PEFT initializes them from torch's random generator.
    Raises AdapterMismatch if the adapter does not fit the base.
    """
    peft = peft_module()
    settings = {**config, "inference_mode": False, "base_model_name_or_path": base.model.name_or_path}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT reads an attribute that transformers deprecates
            model = peft.get_peft_model(base.model, peft.LoraConfig(**settings))
    except ValueError as error:  # no such target module
        raise AdapterMismatch(
            f"the adapter does not fit the base: {error}", hint="use layer names of the base"
        ) from error
    try:
        if tensors is not None:
            put(model, tensors)
        yield model.eval()  # new layers are in training mode: their dropout would be part of each score
    finally:
        model.base_model.unload()
        base.keep_activations(True)
        base.model.eval().requires_grad_(False)


def put(model: Any, tensors: Tensors, *, name: str = "default") -> None:
    """Copy an adapter's tensors into a PEFT model. Raises AdapterMismatch unless names and shapes match exactly."""
    try:
        result = peft_module().set_peft_model_state_dict(model, tensors, adapter_name=name)
    except RuntimeError as error:  # another shape
        raise AdapterMismatch(
            f"the adapter does not fit the base: {error}", hint="use the base that it was trained on"
        ) from error
    missing = [key for key in result.missing_keys if "lora_" in key and f".{name}" in key]
    if wrong := sorted([*result.unexpected_keys, *missing]):
        raise AdapterMismatch(
            f"the adapter does not fit the base: {len(wrong)} tensors, first {wrong[0]}",
            hint="use the base that it was trained on",
        )


def taken(model: Any) -> Tensors:
    """Copies of a PEFT model's adapter tensors on the CPU, by PEFT file key."""
    tensors = peft_module().get_peft_model_state_dict(model, save_embedding_layers=False)
    return {key: tensor.detach().to("cpu", copy=True) for key, tensor in tensors.items()}


@contextmanager
def adapted(base: LoadedBase, ref: AdapterRef | None, store: Store) -> Iterator[Any]:
    """`base.model` with this adapter attached, or without any."""
    if ref is None:
        yield base.model
    else:
        adapter: Adapter = adapters.read_adapter(store.local(ref))
        with injected(base, adapter.config, adapter.tensors):
            yield base.model


def peft_module() -> Any:
    """Import PEFT without bitsandbytes, which only an nf4 base needs: it takes most of PEFT's import time."""
    if "peft" not in sys.modules and "bitsandbytes" not in sys.modules:
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
        try:
            importlib.import_module("peft.import_utils").is_bnb_available()  # PEFT asks once and keeps the answer
        finally:
            del sys.modules["bitsandbytes"]
    return importlib.import_module("peft")
