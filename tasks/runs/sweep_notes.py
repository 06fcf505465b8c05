"""What a sweep found so far, and at its end which settings to take."""

from collections.abc import Mapping
from typing import Any

from backprop_core.errors import BackpropError
from backprop_core.schema.refs import Contrast, SweepReport, SweepRow, TrainResult
from backprop_core.schema.specs import GateSpec
from tasks.runs.prepared_run import Prepared
from tasks.runs.results import child_id

CONFIDENCE = GateSpec().confidence  # as in the gate


class SweepNotes:
    """A row for each combination of a sweep."""

    def __init__(self, run_id: str, prepared: Prepared) -> None:
        self._prepared = prepared
        self._rows = [
            SweepRow(
                settings=cell.settings,
                run_id=child_id(run_id, index),
                is_default=cell.training == prepared.spec.training,
            )
            for index, cell in enumerate(prepared.cells)
        ]

    def run_id(self, index: int) -> str:
        """The run_id of a combination's own run."""
        return self._rows[index].run_id

    def done(self, index: int, made: TrainResult, *, cached: bool) -> None:
        """A combination was trained."""
        speed = made.tokens / made.seconds if made.seconds else None
        trained = {"steps": made.steps, "seconds": made.seconds, "train_loss": made.train_loss}
        self._add(index, **trained, tokens_per_second=speed, cached=cached)

    def failed(self, index: int, error: BackpropError) -> None:
        """A combination cannot be trained."""
        self._add(index, code=error.code, message=error.message)

    def _add(self, index: int, **fields: Any) -> None:
        self._rows[index] = self._rows[index].model_copy(update=fields)

    def report(self, compared: Contrast | None, rows: int) -> SweepReport:
        """All rows, with their scores, and which settings to take."""
        if compared:
            trained = [index for index, row in enumerate(self._rows) if row.code is None]
            for index, standing in zip(trained, compared.cells, strict=True):
                self._add(index, standing=standing)
        take, reason = choice(self._rows, compared)
        metric = self._prepared.spec.evaluation.metric
        return SweepReport(metric=metric, rows=rows, confidence=CONFIDENCE, cells=self._rows, take=take, reason=reason)


def choice(rows: list[SweepRow], compared: Contrast | None) -> tuple[dict[str, Any] | None, str]:
    """The settings to take, and why; None if nothing is better than anything else by more than noise."""
    scored = [row for row in rows if row.standing]
    if compared is None or not scored:
        return None, "no combination could be trained"
    good = [row for row in scored if row.standing and row.standing.as_good]
    if len(scored) == 1:
        return scored[0].settings, f"take {in_words(scored[0].settings)}: no other combination could be trained"
    if len(good) == len(scored):
        return None, "no difference beyond noise: keep the default"
    if any(row.is_default for row in good):
        return None, f"keep the default: nothing is better by more than noise, {worse(len(scored) - len(good))}"
    best = scored[compared.best]
    equal = [in_words(row.settings) for row in good if row is not best]
    as_good = f"; no difference beyond noise to {' or '.join(equal)}" if equal else ""
    return best.settings, f"take {in_words(best.settings)}: {worse(len(scored) - len(good))}{as_good}"


def worse(count: int) -> str:
    return f"{count} other{'s are' if count > 1 else ' is'} worse by more than noise"


def in_words(settings: Mapping[str, Any]) -> str:
    """`training.learning_rate=0.0005, training.lora.rank=8`"""
    return ", ".join(f"{name}={value}" for name, value in settings.items())
