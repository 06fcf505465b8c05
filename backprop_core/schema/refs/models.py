"""Refs to models: the base, adapters, and what training and merging return."""

from typing import ClassVar, Literal

from pydantic import Field

from backprop_core.schema.records import Record
from backprop_core.schema.refs.artifact import ArtifactRef, Digest


class BaseRef(Record):
    """The base model. `digest` covers names and hashes of config, tokenizer, chat template and weights."""

    name: str
    revision: str | None = None
    digest: Digest
    day: str | None = Field(
        None, description="ISO date that its chat template renders as today; None if it uses no date."
    )
    bare: bool = Field(
        False, description="The tokenizer has a BOS token, but chats start without it; so does raw text."
    )


class ChatTemplate(Record):
    """A chat template, and the special tokens it can use, by name."""

    text: str
    special: dict[str, str]


class AdapterRef(ArtifactRef):
    """A LoRA adapter in PEFT layout: `adapter_config.json` and `adapter_model.safetensors`."""

    artifact: ClassVar[str] = "adapter"
    kind: Literal["tuned", "merged"]


class Start(Record):
    """The adapter that a run starts from: the last tuned one, unchanged or with orthonormal rows of A (SLAO)."""

    tuned: AdapterRef
    orthonormal: bool
    keep: bool = Field(
        False, description="Rotate B accordingly, so that B·A stays as tuned.", json_schema_extra={"key": "if set"}
    )


class Drift(Record):
    """How much a merge changed the merged adapter."""

    a: float = Field(description="Frobenius norm of the change of A, relative to that of A before.")
    b: float = Field(description="The same for B.")
    weight: float = Field(description="λ: how far B moved towards the tuned adapter.")


class Searched(Record):
    """The λ with the lowest loss on held-out rows."""

    weight: float
    tried: dict[str, float] = Field(description="λ -> loss per label token in nats, averaged over the tasks.")


class BackedOff(Record):
    """The candidate after back-off, and the share of the run's change that it has."""

    adapter: AdapterRef
    share: float
    tried: dict[str, float] = Field(description="Share -> score on the rows kept for it, averaged over the tasks.")


class KeptStep(Record):
    """The step of a LoRA run whose adapter early stopping kept."""

    step: int
    loss: float = Field(description="Per label token, in nats, on held-out rows that do not score.")
    planned: int = Field(description="Steps of the whole run.")

    def after(self, steps: int) -> str:
        """What early stopping did in a run that trained so many steps."""
        stopped = f"stopped at step {steps} of {self.planned}, " if steps < self.planned else ""
        return f"{stopped}best step {self.step}" + ("" if stopped else f" of {self.planned}")


class TrainResult(Record):
    """The adapter that one LoRA run produced, with steps, tokens, loss and time."""

    adapter: AdapterRef
    steps: int
    tokens: int = Field(description="Tokens seen, without padding.")
    train_loss: float = Field(description="Mean loss per label token over the last tenth of the steps.")
    seconds: float
    cut: int = Field(0, description="Rows shortened to max_length.")
    left_out: int = Field(0, description="Rows or answers left out, mostly because they are too long.")
    kept: KeptStep | None = Field(None, description="The best step; null without early stopping.")
    peak_memory_gib: float | None = Field(
        None, description="Of the GPU, or of the process on a CPU; null in older records."
    )
