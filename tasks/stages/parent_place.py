"""What a stage in the parent process may use beside its parameters."""

from dataclasses import dataclass

from backprop_core.store.artifacts import Store
from tasks.runs.progress import Progress, report


@dataclass(frozen=True)
class ParentPlace:
    """See `backprop_core.stages.Workplace`."""

    store: Store
    key: str
    stage: str

    def progress(self, done: int, total: int) -> None:
        report(Progress(stage=self.stage, done=done, total=total))
