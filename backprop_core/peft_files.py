"""An adapter's files in PEFT's layout: their names, their config, and whether they fit a base. No torch."""

import json
from pathlib import Path
from typing import Any

from backprop_core import base as bases
from backprop_core.errors import AdapterMismatch, InputNotFound, InputValidationFailed
from backprop_core.headers import shapes

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FILES = (CONFIG, WEIGHTS)
FILE_PREFIX = "base_model.model."  # of the base's names in an adapter's file
LEFT_OUT = {"peft_version", "revision", "runtime_config"}  # of the machine that wrote it, not of the adapter
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
MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to start that change the base's own weights
OTHER_BASE = "give the base that the adapter was trained on: --model"
HINT = "export an adapter that this tool trained, or train with plain LoRA"


def read_config(directory: Path) -> dict[str, Any]:
    """PEFT's config of the adapter in a directory, without what differs from machine to machine.

    Raises InputNotFound if a file is missing, InputValidationFailed if it cannot be read, AdapterMismatch if it holds
    no LoRA adapter. Pickled weights are never opened.
    """
    for name in FILES:
        if not (directory / name).is_file():
            raise InputNotFound(f"{directory} has no {name}", hint="give a PEFT adapter saved as safetensors")
    try:
        config: dict[str, Any] = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise unreadable(directory, error) from error
    if config.get("peft_type") != "LORA":
        raise AdapterMismatch(f"{directory} holds a {config.get('peft_type')} adapter", hint="give a LoRA adapter")
    return config


def unreadable(directory: Path, error: Exception) -> InputValidationFailed:
    return InputValidationFailed(f"{directory} cannot be read: {error}", hint="save the adapter again")


def portable(config: dict[str, Any]) -> dict[str, Any]:
    """A PEFT config without what differs from machine to machine, its target modules sorted."""
    targets = config.get("target_modules")
    kept = {key: value for key, value in config.items() if key not in LEFT_OUT}
    return {
        **kept,
        "base_model_name_or_path": "",
        "inference_mode": True,
        "target_modules": targets if targets is None or isinstance(targets, str) else sorted(targets),
    }


def tokenizer_home(base: Path, adapter: Path | None) -> Path:
    """The directory with the tokenizer and chat template of a model: the adapter's, where they came with it."""
    own = adapter and any((adapter / name).is_file() for name in bases.TOKENIZER_FILES)
    return adapter if adapter and own else base


def check_fusable(config: dict[str, Any]) -> None:
    """Raise AdapterMismatch for an adapter that is more than B·A, or DoRA, on linear layers."""
    if found := [key for key in UNFUSABLE if config.get(key)]:
        raise AdapterMismatch(f"an adapter with {found[0]} cannot be fused", hint=HINT)
    if config.get("bias", "none") != "none":
        raise AdapterMismatch("an adapter with biases cannot be fused", hint=HINT)
    if str(start := config.get("init_lora_weights")).startswith(MOVES_BASE):
        raise AdapterMismatch(
            f"an adapter that began as {start} belongs to a changed base",
            hint="save it converted to plain LoRA: PEFT's path_initial_model_for_weight_conversion",
        )


def check_fits(directory: Path, base: Path) -> None:
    """Raise AdapterMismatch unless the base has each layer that an adapter changes, in its shape. Reads headers.

    Raises InputValidationFailed or ModelLoadFailed where those of the adapter or of the base cannot be read.
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


def shapes_of(base: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a base. Raises ModelLoadFailed."""
    known: dict[str, tuple[int, ...]] = {}
    for file in bases.weights(base):
        try:
            known |= shapes(file)
        except ValueError as error:
            raise bases.unreadable(file, error) from error
    return known
