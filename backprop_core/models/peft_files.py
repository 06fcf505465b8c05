"""A LoRA adapter's PEFT files: names, config, and checks that they fit a base and can be fused. No torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backprop_core.errors import AdapterMismatch, InputNotFound, InputValidationFailed
from backprop_core.models import base as bases
from backprop_core.models.safetensors_header import shapes
from backprop_core.store.cache_keys import canonical

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
BASE = "base.json"  # beside an exported adapter: the digest of its base
FILE_PREFIX = "base_model.model."  # PEFT's prefix of tensor names
LEFT_OUT = {"peft_version", "revision", "runtime_config"}  # describe the machine that wrote it, not the adapter
UNFUSABLE = (
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
)
MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initializations that change the base's weights
OTHER_BASE = "use the base that the adapter was trained on: --model"
TARGETS = "remove it from training.lora.target_modules, or train without an export"
EMBEDDINGS = ("embed_tokens", "wte")  # names of the embedding layer
HINT = "export an adapter that this tool trained, or train with plain LoRA"


def read_config(directory: Path) -> dict[str, Any]:
    """Read PEFT's config of the adapter in a directory.

    Raises InputNotFound if a file is missing, InputValidationFailed if it cannot be read, AdapterMismatch if it is not
    a LoRA adapter. Never opens pickled weights.
    """
    for name in FILES:
        if not (directory / name).is_file():
            raise InputNotFound(f"{directory} has no {name}", hint="use a PEFT adapter saved as safetensors")
    try:
        config: dict[str, Any] = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise unreadable(directory, error) from error
    if config.get("peft_type") != "LORA":
        raise AdapterMismatch(f"{directory} has a {config.get('peft_type')} adapter", hint="use a LoRA adapter")
    return config


def unreadable(directory: Path, error: Exception) -> InputValidationFailed:
    return InputValidationFailed(f"{directory} cannot be read: {error}", hint="save the adapter again")


def portable(config: dict[str, Any]) -> dict[str, Any]:
    """A PEFT config without machine-specific fields, with sorted target modules."""
    targets = config.get("target_modules")
    kept = {key: value for key, value in config.items() if key not in LEFT_OUT}
    return {
        **kept,
        "base_model_name_or_path": "",
        "inference_mode": True,
        "target_modules": targets if targets is None or isinstance(targets, str) else sorted(targets),
    }


def tokenizer_home(base: Path, adapter: Path | None) -> Path:
    """The directory of the tokenizer and chat template: the adapter's if it has its own, else the base's."""
    own = adapter and any((adapter / name).is_file() for name in bases.TOKENIZER_FILES)
    return adapter if adapter and own else base


def name_base(directory: Path, name: str, revision: str | None) -> None:
    """Write the base's name into an adapter's config, where PEFT looks for it."""
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    named = {**config, "base_model_name_or_path": name, **({"revision": revision} if revision else {})}
    (directory / CONFIG).write_text(canonical(named) + "\n", encoding="utf-8", newline="\n")


def check_fusable(config: dict[str, Any]) -> None:
    """Raise AdapterMismatch unless the adapter is plain B·A or DoRA on linear layers."""
    if found := [key for key in UNFUSABLE if config.get(key)]:
        raise AdapterMismatch(f"an adapter with {found[0]} cannot be fused", hint=HINT)
    if config.get("bias", "none") != "none":
        raise AdapterMismatch("an adapter with biases cannot be fused", hint=HINT)
    if str(start := config.get("init_lora_weights")).startswith(MOVES_BASE):
        raise AdapterMismatch(
            f"an adapter initialized with {start} only fits a modified base",
            hint="convert it to plain LoRA with PEFT's path_initial_model_for_weight_conversion",
        )


def check_fits(directory: Path, base: Path) -> None:
    """Raise AdapterMismatch unless the base has each of the adapter's layers in the same shape. Reads headers only.

    Raises InputValidationFailed or ModelLoadFailed if the header of the adapter or the base cannot be read.
    """
    known = shapes_of(base)
    try:
        found = shapes(directory / WEIGHTS)
    except ValueError as error:
        raise unreadable(directory, error) from error
    for key, shape in found.items():
        module, _, part = key.removeprefix(FILE_PREFIX).partition(".lora_")
        outer = known.get(f"{module}.weight")
        if outer is None:
            raise AdapterMismatch(f"the adapter changes {module}, which {base} does not have", hint=OTHER_BASE)
        if (shape[1:] != outer[1:]) if part == "A.weight" else (shape[:1] != outer[:1]):
            raise AdapterMismatch(f"the adapter's {key} {shape} does not fit {module} {outer}", hint=OTHER_BASE)


def check_fusable_into(directory: Path, base: Path) -> None:
    """Raise AdapterMismatch if the adapter in a directory is on a layer that cannot be fused."""
    targets = read_config(directory).get("target_modules")
    if isinstance(targets, list):
        check_targets(base, targets, exported=True)


def check_targets(base: Path, targets: Sequence[str], *, exported: bool) -> None:
    """Raise AdapterMismatch unless the base has a linear layer of each name, matched as PEFT does. Reads headers only.

    With `exported`, the layer must support fusing and llama.cpp adapters: not the embeddings, nor an output head tied
    to them.
    """
    known = shapes_of(base)
    layers = {name.removesuffix(".weight"): len(shape) for name, shape in known.items() if name.endswith(".weight")}
    tied = "lm_head" not in layers or bool(bases.read_json(base / "config.json").get("tie_word_embeddings"))
    layers.setdefault("lm_head", 2)
    linear = [name for name, dimensions in layers.items() if dimensions == 2 and not name.endswith(EMBEDDINGS)]
    for target in targets:
        matched = [name for name in layers if name == target or name.endswith(f".{target}")]
        if not any(layers[name] > 1 for name in matched):
            named = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise AdapterMismatch(f"{base} has no linear layer named {target}", hint=f"it has {named}")
        if exported and any(name.endswith(EMBEDDINGS) for name in matched):
            raise AdapterMismatch(f"an adapter on the embeddings ({target}) cannot be exported", hint=TARGETS)
        if exported and tied and "lm_head" in matched:
            raise AdapterMismatch(
                f"an adapter on {target} cannot be exported: {base} ties it to the embeddings", hint=TARGETS
            )


def shapes_of(base: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a base. Raises ModelLoadFailed."""
    known: dict[str, tuple[int, ...]] = {}
    for file in bases.weights(base):
        try:
            known |= shapes(file)
        except ValueError as error:
            raise bases.unreadable(file, error) from error
    return known
