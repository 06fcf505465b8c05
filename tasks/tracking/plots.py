"""Plots the forgetting matrix with matplotlib."""

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from backprop_core.schema.refs import Evaluation
from backprop_core.schema.score_text import amount, gain, level

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CURVES = 12  # tasks that get a name of their own beside their curve


def forgetting_matrix(evaluation: Evaluation) -> bytes:
    """The forgetting matrix as a PNG, and beside it each task's curve from the base over the runs: token accuracy."""
    return drawn(evaluation.model_dump_json())


@lru_cache(maxsize=4)
def drawn(evaluation_json: str) -> bytes:
    """The picture. The last few are cached, because MLflow and Prefect get the same one."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    evaluation = Evaluation.model_validate_json(evaluation_json)
    rows: list[list[float] | list[float | None]] = [evaluation.base, *evaluation.matrix]
    # [run, task], NaN where the task came later
    scores = np.array([[np.nan if score is None else score for score in row] for row in rows])
    width = 2.6 + 1.1 * scores.shape[1]
    figure = Figure(figsize=(width + 5.5, max(3.6, 1.8 + 0.45 * scores.shape[0])), layout="constrained")
    matrix, curves = figure.subplots(1, 2, width_ratios=[width, 5.5])
    names = [drawable(f"{name} (watched)" if name in evaluation.watch else name) for name in evaluation.tasks]
    draw_matrix(matrix, scores, names, watched=len(evaluation.watch))
    draw_curves(curves, scores, names)
    figure.suptitle(drawable(summary(evaluation)), fontsize=11, parse_math=False)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def draw_matrix(axes: Any, scores: "NDArray[np.float64]", names: Sequence[str], *, watched: int) -> None:
    """A heat map: the base, then a row a run; a line before the watched tasks."""
    import numpy as np

    image = axes.imshow(scores, vmin=0, vmax=1, cmap="YlGnBu", aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", parse_math=False)
    axes.set_yticks(range(len(scores)), run_names(len(scores)))
    axes.axhline(0.5, color="black", linewidth=1)
    if watched:
        axes.axvline(len(names) - watched - 0.5, color="black", linewidth=1)
    for (row, column), score in np.ndenumerate(scores):
        if not np.isnan(score):
            color = "white" if score > 0.6 else "black"
            axes.text(column, row, f"{100 * score:.1f}", ha="center", va="center", color=color)
    axes.figure.colorbar(image, ax=axes)


def draw_curves(axes: Any, scores: "NDArray[np.float64]", names: Sequence[str]) -> None:
    """A curve a task: dotted from the base to the first run that scored it, then from run to run."""
    import numpy as np
    from matplotlib import colormaps

    for task, name in enumerate(names):
        known = np.flatnonzero(~np.isnan(scores[:, task]))
        color = colormaps["tab10"](task % 10)
        axes.plot(known[:2], scores[known[:2], task], ":", color=color)
        axes.plot(known[1:], scores[known[1:], task], "o-", color=color, label=name if task < CURVES else None)
    axes.set_xticks(range(len(scores)), run_names(len(scores)), rotation=30, ha="right")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)
    legend = axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)


def run_names(rows: int) -> list[str]:
    return ["base", *(f"run {run}" for run in range(1, rows))]


def summary(evaluation: Evaluation) -> str:
    """The averages of the matrix, in one line."""
    transfer = evaluation.backward_transfer
    lost = max((value for value in evaluation.forgetting if value is not None), default=None)
    return (
        f"Token accuracy on held-out rows, in percent. In {evaluation.metric.replace('_', ' ')}: "
        f"average {level(evaluation.average, evaluation.metric)}"
        + ("" if lost is None else f", most forgotten {amount(lost, evaluation.metric)}")
        + ("" if transfer is None else f", backward transfer {gain(transfer, evaluation.metric)}")
    )


def drawable(text: str) -> str:
    """The text with a box for every character that matplotlib's own font lacks."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(character if ord(character) in known else "□" for character in text)
