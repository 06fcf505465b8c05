"""GateReport: the gate's verdict on a candidate, per task and canary; manual promotions and approval decisions."""

import math
from datetime import datetime
from typing import Literal, Self

from pydantic import Field

from backprop_core.schema.records import Record
from backprop_core.schema.score_text import amount, level

Question = Literal["better", "not_worse"]


class TaskVerdict(Record):
    """The gate's comparison of candidate and rival on one task, with a confidence interval of the difference."""

    task: str
    rows: int = Field(description="Held-out rows.")
    candidate: float
    rival: float
    difference: float
    low: float | None = Field(
        None, description="Lower bound of the difference at the configured confidence; null: too few rows."
    )
    high: float | None = Field(None, description="Upper bound of the difference.")
    worse: bool = Field(description="Significantly worse than max_drop allows: a reason to reject.")
    too_small: bool = Field(description="Too few rows to compare, or to detect a drop as large as max_drop.")
    detectable: float | None = Field(
        None, description="Smallest drop that this many rows can show as significantly worse; null: none."
    )


class CanaryVerdict(Record):
    """The candidate's answer to one canary prompt."""

    prompt: str
    expect: str
    answer: str
    passed: bool
    rival_passed: bool | None = Field(description="Whether the champion passes it; null without a champion.")


class GateReport(Record):
    """Whether a candidate may go live, and why."""

    accepted: bool
    reason: str
    question: Question = Field("better", description="What the candidate had to show.")
    margin: float | None = Field(
        None, description="How much lower its average may be, in units of the metric, if the question is not_worse."
    )
    taken: float | None = Field(
        None, description="Share of the run's change that back-off left in the candidate; null: no back-off."
    )
    against: Literal["champion", "base"] = Field(description="The rival that the candidate is compared with.")
    metric: str
    average: float = Field(description="The candidate's mean score over the trained tasks with enough rows.")
    rival_average: float
    base_average: float
    gain_low: float | None = Field(
        None, description="Lower bound of the gain in the average, at the configured confidence."
    )
    tasks: list[TaskVerdict]
    canaries: list[CanaryVerdict] = Field(default_factory=list)

    @property
    def passes(self) -> bool:
        """Whether it accepts, and neither a task nor the gain in it says otherwise, as in a report that was edited."""
        least = 0.0 if self.question == "better" else -math.inf if self.margin is None else -self.margin
        is_shown = self.gain_low is not None and self.gain_low > least
        return self.accepted and is_shown and not any(task.worse for task in self.tasks)

    @property
    def refusal(self) -> str:
        """Why it does not pass, after the name of a version or a run."""
        if self.accepted:
            return "has a gate report that was edited: its numbers do not show what it says"
        return f"was rejected by the gate: {self.reason}"

    def with_taken(self, share: float) -> Self:
        """The report on a candidate that has this share of a run's change."""
        said = f"{self.reason}; {share:.0%} of the run's change was taken"
        return self.model_copy(update={"taken": share, "reason": said})


class Power(Record):
    """What the held-out rows of a run can show, as far as it is known before training."""

    rows: int = Field(description="Held-out rows that count for the average.")
    metric: str
    question: Question
    difference: float = Field(
        description="better: the smallest gain that shows in 8 of 10 runs. not_worse: the smallest margin that 8 of 10 "
        "runs pass that neither gain nor lose. Assumes that a run changes three answers in ten."
    )
    margin: float = Field(description="The gate's margin.")
    score: float = Field(description="The champion's average; 0.5 if it is not known.")
    known: bool = Field(description="Whether the champion's scores are behind it; otherwise it is an upper limit.")

    @property
    def sentence(self) -> str:
        """One sentence for people."""
        rows = f"{self.rows} held-out rows"
        if self.question == "not_worse":
            margin = self._about(f"{self.difference:.2g}")  # as the field takes it
            return (
                f"{rows}: 8 of 10 runs that lose nothing pass with a gate.margin of {margin} (here: {self.margin:g}), "
                "if 3 answers in 10 change"
            )
        size = self._about(amount(self.difference, self.metric))
        if self.known and self.metric != "loss" and self.score + self.difference > 1:
            return (
                f"{rows}: the champion's {level(self.score, self.metric)} leaves no room for a gain that shows in 8 of "
                f"10 runs ({size}); see gate.question=not_worse"
            )
        return f"{rows}: a gain of {size} in {self.metric} shows in 8 of 10 runs, if 3 answers in 10 change"

    def _about(self, size: str) -> str:
        return f"about {size}" if self.known else f"{size} (perhaps less)"


class Act(Record):
    """Who made a version the champion manually, when, and why."""

    by: str = Field(description="Name of the user, or of the flow run's creator.")
    at: datetime
    reason: str = ""
    forced: bool = Field(False, description="Whether the gate had rejected the version, or never checked it.")

    @property
    def sentence(self) -> str:
        """One sentence for people."""
        said = f"{'forced past the gate' if self.forced else 'made live'} by {self.by} on {self.at:%Y-%m-%d}"
        return f"{said}: {self.reason}" if self.reason else said


class Decision(Record):
    """The answer to an approval request; `by` is `time` if none came in time."""

    approved: bool
    reason: str = ""
    by: Literal["person", "time"] = "person"
    name: str = Field("", description="The person's name, if it is known.")

    @property
    def sentence(self) -> str:
        """One sentence for people."""
        by = f" by {self.name or 'a person'}" if self.by == "person" else ""
        said = f"{'approved' if self.approved else 'rejected'}{by}"
        return f"{said}: {self.reason}" if self.reason else said
