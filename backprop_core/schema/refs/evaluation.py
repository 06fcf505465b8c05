"""Refs to what was measured: scores, generations, ratings, and one cell of the forgetting matrix."""

from typing import ClassVar

from pydantic import Field

from backprop_core.schema.records import Record
from backprop_core.schema.refs.artifact import ArtifactRef, Digest


class OwnTasks(Record):
    """A directory of custom lm-evaluation-harness tasks as it was when hashed, identified by the digest alone."""

    digest: Digest
    path: str


class Harnessed(Record):
    """lm-evaluation-harness scores of one adapter, or of the base."""

    scores: dict[str, dict[str, float]] = Field(description="Task or group -> metric -> score.")


class Scores(ArtifactRef):
    """Scores of one adapter (or the base) on one held-out set: one cell of the forgetting matrix.

    `scores.jsonl` has them per row. Of preferences, token_accuracy is how often the model prefers what people prefer.
    """

    artifact: ClassVar[str] = "scores"
    rows: int
    tokens: int = Field(description="Label tokens.")
    loss: float = Field(description="Mean negative log-likelihood per label token, in nats.")
    token_accuracy: float = Field(ge=0, le=1)
    exact_match: float = Field(ge=0, le=1)
    preferences: bool = Field(False, description="Whether the rows are preferences.")


class ByteScores(ArtifactRef):
    """What a model scored on held-out rows, by the bytes of the answers: models with other tokenizers compare by it.

    `bytes.jsonl` has bits and bytes of each row that both models of a comparison have scored.
    """

    artifact: ClassVar[str] = "byte_scores"
    FILE: ClassVar[str] = "bytes.jsonl"
    rows: int
    bytes: int = Field(description="Of the answers, in UTF-8.")
    bits: float = Field(description="Mean bits per byte; lower is better.")


class Perplexities(ArtifactRef):
    """Perplexities of rows under the base: `perplexity.jsonl`, one line for each row that is short enough."""

    artifact: ClassVar[str] = "perplexity"
    FILE: ClassVar[str] = "perplexity.jsonl"
    rows: int = Field(ge=0, description="Rows with a perplexity.")


class ReferenceLogProbs(ArtifactRef):
    """Log-probabilities of judged answers under a run's reference: `log_probs.jsonl`, one line for each example."""

    artifact: ClassVar[str] = "log-probs"
    FILE: ClassVar[str] = "log_probs.jsonl"
    answers: int = Field(ge=0, description="Answers with a log-probability.")


class Generated(Record):
    """A generated answer."""

    text: str = Field(description="The answer without the stop token.")
    tokens: int = Field(description="Generated tokens, including the stop token.")
    stopped: bool = Field(description="Whether it ended with a stop token, not at the length limit.")


class Answers(Record):
    """Generated answers to several prompts, in the same order."""

    answers: list[Generated]


class Generations(ArtifactRef):
    """Answers of one adapter (or the base) to one held-out set: `generations.jsonl`, one row per line."""

    artifact: ClassVar[str] = "generations"
    rows: int
    stopped: int = Field(description="Answers that ended with a stop token, not at the length limit.")


class Ratings(ArtifactRef):
    """Ratings of generated answers, from 0 to 1: `ratings.jsonl`, one row per line."""

    artifact: ClassVar[str] = "ratings"
    metric: str
    rows: int
    score: float = Field(ge=0, le=1, description="Mean over rows.")


class Cell(Record):
    """One cell of the forgetting matrix: one adapter (or the base) on one held-out set."""

    scores: Scores
    rating: Ratings | None = Field(None, description="Ratings of its generated answers, if the metric needs them.")
    heldout: Digest | None = Field(
        None, description="Digest of the scored rows; only scores on the same rows are comparable."
    )

    def score(self, metric: str) -> float | None:
        """The score in this metric, higher is better (loss is negated). None if it was not measured.

        Preferences have one score for all metrics: how often the model agrees.
        """
        if self.scores.preferences:
            return self.scores.token_accuracy
        match metric:
            case "loss":
                return -self.scores.loss
            case "token_accuracy" | "exact_match":
                return float(getattr(self.scores, metric))
        return self.rating.score if self.rating and self.rating.metric == metric else None

    @property
    def rows(self) -> "Scores | Ratings":
        """The artifact with the score of each row."""
        return self.rating or self.scores
