"""A base's tensors with an adapter fused into them, one at a time."""

import math
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from backprop_core.adapter import Tensors, read
from backprop_core.base import weights
from backprop_core.errors import AdapterMismatch

UNFUSABLE = (
    "use_dora",
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
PREFIX = "base_model.model."
HINT = "export an adapter that this tool trained, or train with plain LoRA"


class Fused:
    """W + s·B·A of every tensor W of `base` that `adapter` changes; the others as they are.

    W is (o, i), A is (r, i), B is (o, r), s is alpha/r, or alpha/√r for rsLoRA. [arXiv 2106.09685, 2312.03732]
    Raises AdapterMismatch for what is not plain LoRA on linear layers of this base.
    """

    def __init__(self, base: Path, adapter: Path | None) -> None:
        self.sources: dict[str, Any] = {}
        for path in weights(base):
            file: Any = safe_open(path, "pt")
            self.sources.update(dict.fromkeys(file.keys(), file))
        self.scaling, self.lora = read_adapter(adapter) if adapter else (0.0, {})
        for name, (A, B) in self.lora.items():
            self._check(name, A, B)

    def _check(self, name: str, A: Tensor, B: Tensor) -> None:
        if name not in self.sources:
            raise AdapterMismatch(f"the adapter changes {name}, which the base does not have", hint=HINT)
        if (B.shape[0], A.shape[1]) != self.shape(name) or A.shape[0] != B.shape[1]:
            raise AdapterMismatch(
                f"the adapter's {tuple(B.shape)}·{tuple(A.shape)} does not fit {name} {self.shape(name)}",
                hint="give the base that the adapter was trained on",
            )

    def refuse_head(self) -> None:
        """Raise AdapterMismatch if only one of two tied matrices is changed."""
        if "lm_head.weight" in self.lora:
            raise AdapterMismatch("the adapter changes lm_head, which is tied to the embeddings", hint=HINT)

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self.sources)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self.sources[name].get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """A tensor: in the file's type where nothing is fused, else float32."""
        W: Tensor = self.sources[name].get_tensor(name)
        if name not in self.lora:
            return W
        A, B = self.lora[name]
        return W.float() + (B.float() @ A.float()) * self.scaling


def read_adapter(directory: Path) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
    """The scale s, and A and B by the name of the base's tensor that they change."""
    adapter = read(directory)
    config = adapter.config
    if found := [key for key in UNFUSABLE if config.get(key)]:
        raise AdapterMismatch(f"an adapter with {found[0]} cannot be fused", hint=HINT)
    if config.get("bias", "none") != "none":
        raise AdapterMismatch("an adapter with biases cannot be fused", hint=HINT)
    rank, alpha = config["r"], config["lora_alpha"]
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), pairs_of(adapter.tensors)


def pairs_of(tensors: Tensors) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by the name of the base's tensor."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, part = key.removeprefix(PREFIX).rpartition(".lora_")
        if part not in ("A.weight", "B.weight"):
            raise AdapterMismatch(f"the adapter's {key} is no LoRA matrix of a linear layer", hint=HINT)
        pairs.setdefault(f"{module}.weight", {})[part[0]] = tensor
    if lonely := [name for name, pair in pairs.items() if len(pair) != 2]:
        raise AdapterMismatch(f"the adapter has only one of A and B for {lonely[0]}", hint=HINT)
    return {name: (pair["A"], pair["B"]) for name, pair in pairs.items()}
