"""Why a retrain leaves its line unchanged: each function returns the reason in a sentence, or None."""

from backprop_core.evaluation.gate import too_little
from backprop_core.schema.refs import RowsRef
from backprop_core.schema.specs import RunSpec
from backprop_core.store.artifacts import Store
from tasks.runs.prepared_run import Prepared
from tasks.runs.rejections import Attempt


def too_few_new(rows: RowsRef, spec: RunSpec) -> str | None:
    """Too few rows are new to the line."""
    least = spec.min_new_rows
    return f"{rows.rows} rows are new to line {spec.line}; it waits for {least}" if rows.rows < least else None


def too_few_held_out(heldout: dict[str, RowsRef], prepared: Prepared) -> str | None:
    """The gate could not tell anything by so few held-out rows."""
    counts = {task: rows.rows for task, rows in heldout.items()}
    reason = too_little(counts, prepared.watched, prepared.spec.gate)
    return f"{reason}; line {prepared.spec.line} waits for more rows" if reason else None


def rejected_before(tried: Attempt, prepared: Prepared, store: Store) -> str | None:
    """The same was rejected; with --fresh it is trained again."""
    earlier = None if prepared.fresh else tried.earlier(store)
    return earlier.sentence if earlier else None
