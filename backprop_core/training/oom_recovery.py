"""Recovery from GPU out-of-memory: smaller micro-batches, then gradient checkpointing. The result stays the same."""

from dataclasses import dataclass, replace

from backprop_core.errors import GPUOutOfMemory
from backprop_core.schema.specs import TrainSpec


@dataclass(frozen=True)
class Limits:
    """What bounds a step's memory: padded tokens of a micro-batch, and whether activations are recomputed."""

    token_budget: int
    gradient_checkpointing: bool

    def metrics(self) -> dict[str, float]:
        return {"token_budget": self.token_budget, "gradient_checkpointing": float(self.gradient_checkpointing)}


def top(spec: TrainSpec) -> Limits:
    """The limits that a run starts with."""
    return Limits(spec.token_budget, spec.gradient_checkpointing == "on")


def below(limits: Limits, examples: int, tokens: int, spec: TrainSpec) -> Limits:
    """The next lower limits, after a micro-batch of `examples`, the longest with `tokens`, did not fit.

    Halves the micro-batch, down to one example; then turns on gradient checkpointing; then raises GPUOutOfMemory.
    """
    if not spec.oom_recovery:
        raise GPUOutOfMemory(
            f"{examples} examples of up to {tokens} tokens do not fit",
            hint="set training.oom_recovery=true, or lower training.token_budget",
        )
    if examples > 1:
        return replace(limits, token_budget=examples * tokens // 2)
    if spec.gradient_checkpointing == "off" or limits.gradient_checkpointing:
        raise GPUOutOfMemory(f"one example of {tokens} tokens does not fit", hint=what_would(limits, tokens, spec))
    return replace(limits, gradient_checkpointing=True)


def what_would(limits: Limits, tokens: int, spec: TrainSpec) -> str:
    """A hint with settings that make one example fit, the least harmful first."""
    first = "" if limits.gradient_checkpointing else "training.gradient_checkpointing=auto, "
    then = "" if spec.precision == "nf4" else "model.quantization=nf4, "
    return f"try {first}{then}training.max_length={tokens // 2}, a smaller base, or a GPU with more memory"
