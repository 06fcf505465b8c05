"""What a training does without when memory runs out: one rung after another; none changes the result."""

from dataclasses import dataclass, replace

from backprop_core.errors import GPUOutOfMemory
from backprop_core.schema.specs import TrainSpec


@dataclass(frozen=True)
class Limits:
    """How much of a step is in memory at once: padded tokens of a micro-batch, and whether activations are kept."""

    token_budget: int
    gradient_checkpointing: bool

    def metrics(self) -> dict[str, float]:
        return {"token_budget": self.token_budget, "gradient_checkpointing": float(self.gradient_checkpointing)}


def top(spec: TrainSpec) -> Limits:
    """Where a run starts."""
    return Limits(spec.token_budget, spec.gradient_checkpointing == "on")


def below(limits: Limits, examples: int, tokens: int, spec: TrainSpec) -> Limits:
    """The next rung after a micro-batch of `examples`, the longest of `tokens`, did not fit.

    Half of what did not fit, down to one example; then gradient checkpointing. Raises GPUOutOfMemory below that.
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
    """What makes one example fit, the least loss first."""
    first = "" if limits.gradient_checkpointing else "training.gradient_checkpointing=auto, "
    then = "" if spec.precision == "nf4" else "model.quantization=nf4, "
    return f"try {first}{then}training.max_length={tokens // 2}, a smaller base, or a GPU with more memory"
