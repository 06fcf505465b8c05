"""What a sweep found: a row for each combination of settings, and which to take."""

from typing import Any

from pydantic import Field

from backprop_core.schema.records import Record
from backprop_core.schema.refs.artifact import RunId


class Standing(Record):
    """The score of one combination, and how it compares with the best one on the same rows."""

    score: float = Field(description="In the metric of the sweep; higher is better, so loss is negated.")
    low: float = Field(description="Lower bound of the score at the sweep's confidence.")
    high: float = Field(description="Upper bound of the score.")
    difference: float = Field(description="Score minus that of the best.")
    difference_low: float = Field(description="Lower bound of the difference, for all pairs together.")
    difference_high: float = Field(description="Upper bound; below 0: worse than the best by more than noise.")
    as_good: bool = Field(description="Whether the difference to the best may be noise.")


class Contrast(Record):
    """The combinations compared with the best of them."""

    best: int = Field(description="Place of the best in `cells`.")
    cells: list[Standing]


class SweepRow(Record):
    """One combination of settings, trained and scored."""

    settings: dict[str, Any] = Field(description="The fields that were tried, with their values.")
    run_id: RunId = Field(description="Its child run in MLflow.")
    is_default: bool = Field(description="Whether it is what a run without these settings uses.")
    steps: int = 0
    seconds: float = Field(0, description="Of its training.")
    tokens_per_second: float | None = None
    train_loss: float | None = None
    cached: bool = False
    standing: Standing | None = Field(None, description="None if it failed.")
    code: str | None = Field(None, description="Code of the error that it failed with.")
    message: str | None = None


class SweepReport(Record):
    """All combinations in the order of the command, and which to take."""

    metric: str
    rows: int = Field(description="Rows that score. They are taken from the training rows, so none scores a version.")
    confidence: float = Field(description="Of all comparisons together.")
    cells: list[SweepRow]
    take: dict[str, Any] | None = Field(description="The settings to take; None: no difference beyond noise.")
    reason: str
