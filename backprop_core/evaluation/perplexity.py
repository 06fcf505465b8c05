"""Scores rows by their perplexity under the base: e to the mean loss of a row's label tokens, in nats."""

import math

from backprop_core.data.batching import load
from backprop_core.errors import LossNotFinite
from backprop_core.evaluation.row_score import RowScore
from backprop_core.evaluation.scoring import score
from backprop_core.models.loading import LoadedBase
from backprop_core.runtime.progress import OnProgress
from backprop_core.schema.refs import Perplexities, RowsRef
from backprop_core.schema.specs import Limit
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical

DIGITS = 4  # kept of each: the last bits depend on which rows are in a batch
LARGEST = 700.0  # nats per token: e to more than this is no float


def perplexities(
    base: LoadedBase,
    rows: RowsRef,
    *,
    max_length: int | Limit,
    store: Store,
    on_progress: OnProgress | None = None,
) -> Perplexities:
    """Score every row that fits into `max_length`, and commit the perplexities.

    Raises LossNotFinite, and what `batching.load` raises.
    """
    scores = score(base, load(base, rows, max_length=max_length, store=store), on_progress)
    if not math.isfinite(sum(row.loss for row in scores)):
        raise LossNotFinite("the loss of the base is not finite", hint="download the base's files again")
    with store.begin("perplexity") as directory:
        lines = [canonical({"row": one.row, "perplexity": perplexity(one)}) + "\n" for one in scores]
        (directory / Perplexities.FILE).write_text("".join(lines), encoding="utf-8", newline="\n")
        return store.commit(
            directory, Perplexities, record={"stage": "perplexity", "rows": rows.digest}, rows=len(scores)
        )


def perplexity(row: RowScore) -> float:
    """A row's perplexity, rounded."""
    return float(f"{math.exp(min(row.loss / row.tokens, LARGEST)):.{DIGITS}g}")
