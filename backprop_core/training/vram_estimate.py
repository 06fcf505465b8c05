"""Estimates the GPU memory (VRAM) of a LoRA run from the model's config.json, without torch or weights. In bytes.

h = hidden size, i = intermediate size, L = layers, V = vocabulary, T = padded tokens of a micro-batch, n = LoRA
parameters. The factors of activations and logits were measured; `make gpu` compares the sum with the measured peak.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from backprop_core.errors import AdapterMismatch, ArchitectureUnsupported, ModelLoadFailed
from backprop_core.schema.field_types import Precision
from backprop_core.schema.records import Record
from backprop_core.schema.specs import LoraSpec, Optimizer, TrainSpec

GIB = 1 << 30
CHUNK = 2**25  # logits that the chunked loss keeps at a time
CONTEXT = GIB // 2  # CUDA context
FRAGMENTS = 0.05  # share of everything: fragmentation of the allocator
# Per parameter: float32 value and gradient, and two moments; paged moments can leave the GPU.
ADAMW = {"adamw": 16, "adamw_8bit": 10, "paged_adamw_8bit": 8}
LOGIT = 10  # per logit: bf16 value, float32 copy and gradient
LINEAR = {"fp32": 4.0, "bf16": 2.0, "nf4": 0.516}  # per parameter of linear layers; NF4 with double quantization
OTHER = {"fp32": 4, "bf16": 2, "nf4": 2}  # per parameter of embeddings and head
KEPT = {"fp32": 14.3, "bf16": 11.1, "nf4": 11.1}  # activations per token, layer and (h + i), with a float32 adapter
DROPOUT = 3.9  # the same, added by dropout
SCALED = {"fp32": 8, "bf16": 6, "nf4": 6}  # DoRA: per token and output of an adapted layer, kept before scaling
NORMED = 12  # DoRA: per parameter of the matrix whose row norms are computed: B·A, scaled, and the sum, in float32
FROZEN = 4  # PiSSA: per parameter of the frozen start


ENDS = {"embed_tokens", "lm_head"}  # layers before and after the blocks


def last_names(targets: Iterable[str]) -> set[str]:
    """Target modules as layer names within a block: `layers.1.mlp.up_proj` is an up_proj."""
    return {target.rpartition(".")[2] for target in targets}


class Architecture(NamedTuple):
    """Properties of a model type that its config.json may omit."""

    tied: bool  # the output head is the embedding
    plain_head: bool  # logits are the head of the last hidden state alone, so the loss can be computed in chunks
    fused: bool = False  # one matrix for q, k and v, one for gate and up


ARCHITECTURES = {
    "llama": Architecture(tied=False, plain_head=True),
    "mistral": Architecture(tied=False, plain_head=True),
    "qwen2": Architecture(tied=False, plain_head=True),
    "qwen3": Architecture(tied=False, plain_head=True),
    "phi3": Architecture(tied=False, plain_head=False, fused=True),
    "smollm3": Architecture(tied=True, plain_head=False),
    "gemma2": Architecture(tied=True, plain_head=False),
    "gemma3_text": Architecture(tied=True, plain_head=False),
}


class Shape(BaseModel):
    """A decoder's size, with the field names of its config.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    model_type: str
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt
    tie_word_embeddings: bool | None = None

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.model_type]

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one block by name, (features in, features out)."""
        h, i = self.hidden_size, self.intermediate_size
        size = self.head_dim or h // self.num_attention_heads
        q, kv = self.num_attention_heads * size, (self.num_key_value_heads or self.num_attention_heads) * size
        ends = {"o_proj": (q, h), "down_proj": (i, h)}
        if self.architecture.fused:
            return {"qkv_proj": (h, q + 2 * kv), "gate_up_proj": (h, 2 * i), **ends}
        return {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "gate_proj": (h, i), "up_proj": (h, i), **ends}

    @property
    def linear_parameters(self) -> int:
        return self.num_hidden_layers * sum(into * out for into, out in self.linear.values())

    @property
    def other_parameters(self) -> int:
        """Embeddings and head, without norms and biases, which are less than a thousandth."""
        tied = self.architecture.tied if self.tie_word_embeddings is None else self.tie_word_embeddings
        return self.vocab_size * self.hidden_size * (1 if tied else 2)

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.other_parameters

    def adapted(self, lora: LoraSpec) -> list[tuple[int, int]]:
        """The layers of one block that have an adapter. Raises AdapterMismatch for unknown layers."""
        names = set(self.linear) if lora.target_modules == "all-linear" else last_names(lora.target_modules)
        if unknown := sorted(names - set(self.linear) - ENDS):
            raise AdapterMismatch(f"the model has no layer {unknown[0]}", hint=f"it has {', '.join(self.linear)}")
        return [self.linear[name] for name in names - ENDS]

    def lora_parameters(self, lora: LoraSpec) -> int:
        """n = L · Σ r (features in + features out), plus adapters of embeddings and head, plus DoRA's magnitudes.

        Raises AdapterMismatch.
        """
        factors = sum(lora.rank * (into + out) for into, out in self.adapted(lora))
        ends = 0 if lora.target_modules == "all-linear" else len(last_names(lora.target_modules) & ENDS)
        of_ends = ends * lora.rank * (self.hidden_size + self.vocab_size)
        return self.num_hidden_layers * (factors + self.magnitudes(lora)) + of_ends

    def magnitudes(self, lora: LoraSpec) -> int:
        """DoRA magnitudes of one block."""
        return sum(out for _, out in self.adapted(lora)) if lora.variant == "dora" else 0


def shape_of(name: str, config: dict[str, Any]) -> Shape:
    """The shape that a config.json describes. Raises ArchitectureUnsupported or ModelLoadFailed."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ArchitectureUnsupported(
            f"{name} is a {kind} model, whose memory use cannot be estimated",
            hint=f"supported are {', '.join(ARCHITECTURES)}",
        )
    try:
        return Shape.model_validate(config)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise ModelLoadFailed(f"the config.json of {name} has no usable {field}", hint="download it again") from error


class Setting(Record):
    """The settings, besides the model's size, that determine memory use."""

    precision: Precision
    checkpointing: bool
    lora: LoraSpec
    optimizer: Optimizer = "adamw"


class Memory(Record):
    """The parts of a run's memory."""

    weights: int = Field(description="Base weights.")
    adapter: int = Field(description="LoRA parameters, their gradients and AdamW's moments; PiSSA's start.")
    activations: int = Field(description="Activations kept for the backward pass.")
    logits: int = Field(description="Logits and their gradients.")
    dequantization: int = Field(description="NF4: the largest matrix in bf16, twice.")
    norms: int = Field(description="DoRA: the largest matrix in float32, three times.")
    context: int = Field(description="CUDA context.")
    fragments: int = Field(description="Fragmentation of the allocator.")

    @property
    def total(self) -> int:
        return sum(self.model_dump().values())


def memory(shape: Shape, setting: Setting, tokens: int) -> Memory:
    """Peak bytes of a step, for micro-batches of `tokens` padded tokens."""
    logits, dora = shape.vocab_size * tokens, setting.lora.variant == "dora"
    parts = {
        "weights": weights(shape, setting.precision),
        "adapter": (ADAMW[setting.optimizer] + (FROZEN if setting.lora.variant == "pissa" else 0))
        * shape.lora_parameters(setting.lora),
        "activations": activations(shape, setting, tokens),
        "logits": LOGIT * (min(CHUNK, logits) if shape.architecture.plain_head else logits),
        "dequantization": 4 * shape.hidden_size * shape.intermediate_size if setting.precision == "nf4" else 0,
        "norms": NORMED * max(into * out for into, out in shape.adapted(setting.lora)) if dora else 0,
        "context": CONTEXT,
    }
    return Memory(**parts, fragments=round(FRAGMENTS * sum(parts.values())))


def per_parameter(setting: Setting) -> int:
    """Bytes of an adapter's parameter, its gradient and moments, and PiSSA's frozen start."""
    return ADAMW[setting.optimizer] + (FROZEN if setting.lora.variant == "pissa" else 0)


def weights(shape: Shape, precision: Precision) -> int:
    return round(LINEAR[precision] * shape.linear_parameters) + OTHER[precision] * shape.other_parameters


def activations(shape: Shape, setting: Setting, tokens: int) -> int:
    """Activations of all layers; with checkpointing, each layer's input plus 1.5 layers' activations."""
    h, i, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    layer = (KEPT[setting.precision] + (DROPOUT if setting.lora.dropout else 0)) * (h + i)
    layer += SCALED[setting.precision] * shape.magnitudes(setting.lora)
    if setting.checkpointing:
        return round((2 * h * (layers + 2) + 1.5 * layer) * tokens)
    return round(layer * layers * tokens)


def micro_batch(spec: TrainSpec) -> int:
    """Padded tokens of a run's largest micro-batch: between one sequence and one step's examples."""
    return min(max(spec.token_budget, spec.max_length), spec.batch_size * spec.max_length)


def longest(shape: Shape, setting: Setting, limit: int) -> int:
    """The longest sequence, up to the model's maximum, whose training step fits into `limit` bytes."""
    lengths = range(1, shape.max_position_embeddings + 1)
    return bisect_right(lengths, limit, key=lambda tokens: memory(shape, setting, tokens).total)
