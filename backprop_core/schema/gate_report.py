"""What the gate and a person said of a candidate."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from backprop_core.schema.records import Record


class TaskVerdict(Record):
    """One task in the gate: the candidate beside its rival, and the bounds of the difference."""

    task: str
    rows: int = Field(description="Held-out rows.")
    candidate: float
    rival: float
    difference: float
    low: float | None = Field(
        None, description="The difference is above this with the asked confidence; null: too few rows to tell."
    )
    high: float | None = Field(None, description="And below this.")
    worse: bool = Field(description="Clearly worse than allowed: a reason to reject.")
    too_small: bool = Field(
        description="Too few rows to tell anything, or to notice a drop as large as the allowed one."
    )
    detectable: float | None = Field(
        None, description="The least drop that these rows would have shown as clearly worse; null: none."
    )


class CanaryVerdict(Record):
    """What the candidate says to one canary prompt."""

    prompt: str
    expect: str
    answer: str
    passed: bool
    rival_passed: bool | None = Field(description="Whether the champion passes it; null without one.")


class GateReport(Record):
    """Whether a candidate may go live, and why."""

    accepted: bool
    reason: str
    against: Literal["champion", "base"] = Field(description="The rival.")
    metric: str
    average: float = Field(description="Mean over the trained tasks with enough rows, of the candidate.")
    rival_average: float
    base_average: float
    gain_low: float | None = Field(None, description="The average gained more than this, with the asked confidence.")
    tasks: list[TaskVerdict]
    canaries: list[CanaryVerdict] = Field(default_factory=list)


class Act(Record):
    """Who made a version the champion by hand, when, and why."""

    by: str = Field(description="Name of the user, or of the flow run's author.")
    at: datetime
    reason: str = ""
    forced: bool = Field(False, description="Although the gate had refused it, or never judged it.")

    @property
    def sentence(self) -> str:
        """The same in words."""
        said = f"{'forced past the gate' if self.forced else 'made live'} by {self.by} on {self.at:%Y-%m-%d}"
        return f"{said}: {self.reason}" if self.reason else said


class Decision(Record):
    """What was said of a version that waited to go live; by nobody if the time was over."""

    approved: bool
    reason: str = ""
    by: Literal["person", "time"] = "person"

    @property
    def sentence(self) -> str:
        """The same in words."""
        said = f"{'approved' if self.approved else 'rejected'}{' by a person' if self.by == 'person' else ''}"
        return f"{said}: {self.reason}" if self.reason else said
