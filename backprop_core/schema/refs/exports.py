"""Refs to what is shipped: GGUF files, adapter packages, and how faithful they are."""

from typing import ClassVar

from pydantic import Field

from backprop_core.schema.records import Record
from backprop_core.schema.refs.artifact import ArtifactRef, Digest


class ConverterRef(Record):
    """The converter of a llama.cpp checkout as it was when it was hashed, identified by the digest alone."""

    digest: Digest
    path: str
    python: str = Field(description="Python interpreter that runs it.")


class GGUFRef(ArtifactRef):
    """One GGUF file, `model.gguf`."""

    artifact: ClassVar[str] = "gguf"
    quantization: str
    bytes: int


class ReferenceRef(ArtifactRef):
    """The fused model's outputs that GGUF files are compared with: `reference.json` and `likely.safetensors`."""

    artifact: ClassVar[str] = "reference"
    positions: int = Field(description="Tokens read by the model.")


class ImportanceRef(ArtifactRef):
    """Importance matrix (imatrix) of a model, computed on held-out text: `importance.safetensors`."""

    artifact: ClassVar[str] = "importance"
    rows: int = Field(description="Rows it was computed on.")


class PackageRef(ArtifactRef):
    """The trained model or adapter in a format for other programs: a directory, or `adapter.gguf`."""

    artifact: ClassVar[str] = "package"
    package: str
    bytes: int


class FileAnswer(Record):
    """A GGUF file's answer through llama.cpp and its own chat template, beside the fused model's answer."""

    prompt: str = Field(description="The last user message.")
    answer: str
    reference: str = Field(description="The fused model's answer.")
    stopped: bool = Field(description="Whether the file's answer ended with a stop token, not at the length limit.")

    @property
    def same(self) -> bool:
        """Whether both are equal, ignoring trailing whitespace and the one leading space some tokenizers add."""
        return self.answer.rstrip().removeprefix(" ") == self.reference.rstrip().removeprefix(" ")


class Fidelity(Record):
    """How closely a GGUF file matches the fused model it was made from, on held-out rows."""

    positions: int = Field(description="Tokens compared.")
    ids_equal: bool = Field(description="Whether every text gave the same token ids.")
    top1: float = Field(ge=0, le=1, description="Share of positions with the same most likely token.")
    kl: float = Field(description="Mean KL divergence from the fused model, in nats per token.")
    answers: list[FileAnswer] = Field(
        default_factory=list, description="Greedy answers to the canaries, or else to the first held-out rows."
    )
