"""Drops the curated rows whose perplexity under the base is out of bounds or in a tail, and orders the others by it."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backprop_core.data.row_files import TIMES, commit, index, times
from backprop_core.data.row_index import Positions, RowIndex
from backprop_core.data.row_lineage import Change, Verdict, amended, sampled_places
from backprop_core.errors import NoRows
from backprop_core.schema.refs import Curated, Perplexities, StepReport
from backprop_core.schema.specs.curation import CurationSpec, PerplexitySpec
from backprop_core.store.artifacts import Store

LOW, HIGH = "low_perplexity", "high_perplexity"
Values = NDArray[np.float64]  # (rows,): NaN for a row that has no score because it is too long


def sift(curated: Curated, scores: Perplexities, spec: CurationSpec, *, store: Store) -> Curated:
    """The rows without those that `spec.perplexity` drops; a row without a score stays.

    Ties are decided by the rows' hashes. Raises NoRows if no row is left. Without any score (in a plan), nothing is
    dropped.
    """
    begun, rows = time.perf_counter(), index(curated.rows, store)
    values = values_in(store.local(scores), len(rows)) if scores.rows else np.full(len(rows), np.nan)
    reasons = dropped(values, spec.perplexity) if spec.perplexity else {}
    left = np.ones(len(rows), np.bool_)
    left[list(reasons)] = False
    if not left.any():
        raise NoRows(f"none of {len(rows)} rows is left: perplexity drops all of them", hint="drop fewer rows")
    record: dict[str, Any] = {"stage": "sift", "rows": curated.rows.digest, "perplexities": scores.digest}
    is_timed = (store.local(curated.rows) / TIMES).is_file()
    made = commit(
        rows.take(left),
        store,
        record,
        identified=True,
        times=times(curated.rows, store)[left] if is_timed else None,
        ranks=ranked(values)[left] if spec.curriculum == "perplexity" else None,
    )
    changes = {name_of(rows, row): change(rows, row, reason, values[row]) for row, reason in reasons.items()}
    lineage = curated.lineage and amended(curated.lineage, changes, {"rows": made.digest}, store)
    counts = {reason: list(reasons.values()).count(reason) for reason in sorted({*reasons.values()})}
    seconds = round(time.perf_counter() - begun, 3)
    report = StepReport(
        step="perplexity", rows=len(rows), dropped=len(reasons), quarantined=0, noted=0, seconds=seconds
    )
    update = {"rows": made, "lineage": lineage, "dropped": {**curated.dropped, **counts}}
    first = sampled_places(lineage, store) if lineage else {}
    return curated.model_copy(update={**update, "steps": [*curated.steps, report], "first": first})


def values_in(directory: Path, rows: int) -> Values:
    """Each row's perplexity."""
    made = np.full(rows, np.nan)
    for line in (directory / Perplexities.FILE).read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        made[one["row"]] = one["perplexity"]
    return made


def ranked(values: Values) -> Positions:
    """(rows,): where each row comes by its perplexity, the lowest first; rows without one last."""
    made = np.empty(len(values), np.int64)
    made[np.argsort(values, kind="stable")] = np.arange(len(values))
    return made


def dropped(values: Values, spec: PerplexitySpec) -> dict[int, str]:
    """Position -> reason of the rows to drop. The tails are shares of the rows that have a score."""
    order = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]
    low, high = round(spec.drop_lowest * len(order)), round(spec.drop_highest * len(order))
    out = dict.fromkeys(order[:low].tolist(), LOW) | dict.fromkeys(order[len(order) - high :].tolist(), HIGH)
    if spec.min is not None:
        out |= dict.fromkeys(np.flatnonzero(values < spec.min).tolist(), LOW)
    if spec.max is not None:
        out |= dict.fromkeys(np.flatnonzero(values > spec.max).tolist(), HIGH)
    return out


def change(rows: RowIndex, row: int, reason: str, value: float) -> Change:
    """What the lineage says of a dropped row."""

    def text() -> str:
        return next(rows.take(slice(row, row + 1)).lines()).decode()

    return Change(Verdict("dropped", reason), f"perplexity {value:g}", text)


def name_of(rows: RowIndex, row: int) -> str:
    """A row's identity as 64 hex digits."""
    return bytes(rows.entries["identity"][row].tobytes()).hex()
