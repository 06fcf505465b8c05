"""What `bench` found: settings, their results in each cell, and the comparison."""

from pydantic import Field

from backprop_core.schema.records import Record


class BenchSetting(Record):
    """One way to train a line. A cell is this setting with one order of the datasets and one seed."""

    strategy: str = Field(description="As in BenchSpec.strategies.")
    replay: float = Field(description="Rows of each earlier task; below 1: share of each earlier dataset's rows.")
    rate: float = Field(description="Learning rate.")


class BenchResult(Record):
    """One setting in one cell."""

    setting: BenchSetting
    order: int | None = Field(description="Number of the order; null: all datasets in one run.")
    seed: int
    tasks: list[str] = Field(description="Task of each run, in order.")
    then: list[float] = Field(description="By run: the score of its task right after it.")
    last: list[float] = Field(description="By run: the score of its task after the last run.")
    seconds: float = Field(description="Of training, when it was trained.")


class PairedDifference(Record):
    """The mean of differences between two settings, cell by cell, with an interval."""

    mean: float
    low: float = Field(description="As high as `high` with one cell, which has no interval.")
    high: float
    cells: int
    won: int = Field(description="Cells in which the difference is above 0.")

    @property
    def is_gain(self) -> bool:
        """Whether it is above 0 by more than noise."""
        return self.is_known and self.low > 0

    @property
    def is_known(self) -> bool:
        """Whether there is an interval."""
        return self.cells > 1


class BenchRow(Record):
    """One line of the table; scores in units of the metric."""

    name: str
    setting: BenchSetting | None = Field(description="Null for the untouched base.")
    average: float = Field(description="Mean score over tasks after the last run.")
    std: float | None = Field(description="Standard deviation of the average over cells.")
    backward_transfer: float | None = Field(description="Mean change of a task's score since its own run.")
    worst: float = Field(description="Lowest score of a task, mean over cells.")
    over_present: PairedDifference | None = Field(
        description="Difference of the average to the present settings; all rows' intervals hold together with 95 %."
    )
    seconds: float | None = Field(description="Of training, mean over cells.")
    cells: int


class BenchReport(Record):
    """The comparison, as far as it is measured."""

    metric: str
    orders: list[list[str]] = Field(description="Names of the datasets, in each order.")
    present: BenchSetting
    rows: list[BenchRow]
    advice: str = Field(description="What to set, and what it costs.")
    results: list[BenchResult]
