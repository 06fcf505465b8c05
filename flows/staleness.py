"""The flow `drift`: tests whether a line's champion still fits new rows."""

import logging
from typing import Annotated

from pydantic import Field

from backprop_core.data.stages import first, unseen
from backprop_core.runtime.settings import settings
from backprop_core.schema.field_types import LineName
from backprop_core.schema.records import Record
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import DatasetSpec
from flows.declared import declared
from flows.server.automations import announce
from flows.steps.rows import curated
from flows.steps.scores import scores
from tasks.runs.allowed_paths import admit
from tasks.runs.flow_run import Run, new_run_id, recorded
from tasks.runs.line_state import has_champion
from tasks.runs.resolve_earlier import to_compare

log = logging.getLogger(__name__)
FEWEST = 50  # fresh rows: the mean loss of fewer says too little


class Staleness(Record):
    """The champion's mean loss per label token, on fresh rows and on held-out rows."""

    fresh: float
    heldout: float
    rows: int
    max_loss_ratio: float

    @property
    def is_stale(self) -> bool:
        return self.fresh > self.max_loss_ratio * self.heldout

    @property
    def sentence(self) -> str:
        """The two losses, and what follows from them."""
        verdict = "more than" if self.is_stale else "not more than"
        told = "; a retrain is requested" if self.is_stale else ""
        return (
            f"loss {self.fresh:.4f} on {self.rows} fresh rows and {self.heldout:.4f} on held-out rows, "
            f"{verdict} {self.max_loss_ratio:g} times as much{told}"
        )


@declared("drift", title=lambda given: f"drift of {given['line']}")
def drift(
    line: LineName,
    data: str | DatasetSpec,
    max_loss_ratio: Annotated[float, Field(gt=1)] = 1.3,
    fresh: bool = False,
) -> RunResult:
    """Score a line's champion on new rows; if it no longer fits them, send the event that new data is there.

    The event starts the line's retrain if its file is deployed. With fewer than 50 new rows, or without a champion, the
    result is `unchanged`.

    Args:
        line: The line whose champion is scored.
        data: File or URL of rows, or a dataset with all its fields. Its task is the line's name by default.
        max_loss_ratio: Loss on new rows / loss on held-out rows, above which the champion no longer fits.
        fresh: Run every stage again, ignoring the cache.
    """
    dataset = DatasetSpec(path=data) if isinstance(data, str) else data
    admit([dataset])
    if not has_champion(line):
        return nothing_to_try(line)
    with recorded(lambda store: to_compare(line, dataset, store), run_id=None, fresh=fresh) as (run, outcome):
        found = compared(run, max_loss_ratio)
        if found and found.is_stale:
            announce(settings().namespace, line, {**found.model_dump(), "run_id": run.run_id})
    return outcome.result


def nothing_to_try(line: str) -> RunResult:
    """The result for a line without a champion. Without a base, the run has no record."""
    reason = f"cannot tell: line {line} has no champion yet"
    log.info(reason)
    return RunResult(run_id=new_run_id(), flow="drift", line=line, status="unchanged", reason=reason, spec={})


def compared(run: Run, max_loss_ratio: float) -> Staleness | None:
    """Measure and record the two losses; None if they would say too little."""
    assert run.prepared.live
    champion = run.prepared.live.version
    [dataset] = curated(run).datasets
    rows = run.call(unseen, rows=dataset.train, learned=run.learned)
    heldout = champion.scores.get(dataset.task)
    if heldout is None:
        run.notes.concludes(f"cannot tell: line {run.spec.line} holds out no rows of {dataset.task}", "unchanged")
        return None
    if rows.rows < FEWEST:
        run.notes.concludes(f"cannot tell: {rows.rows} rows are new to line {run.spec.line}, not {FEWEST}", "unchanged")
        return None
    sample = run.call(first, rows=rows, most=max(FEWEST, run.spec.evaluation.heldout_max))
    loss = scores(run, champion.merged, sample).loss
    found = Staleness(fresh=loss, heldout=heldout.loss, rows=sample.rows, max_loss_ratio=max_loss_ratio)
    run.notes.concludes(found.sentence, "finished")
    return found
