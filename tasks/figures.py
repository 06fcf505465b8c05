"""Plots of what was measured."""

import io

from backprop_core.refs import Evaluation


def forgetting_matrix(evaluation: Evaluation) -> bytes:
    """The forgetting matrix as a PNG: token accuracy of each task (column) for the base and after each run (row)."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows: list[list[float] | list[float | None]] = [evaluation.base, *evaluation.matrix]
    # [run, task], NaN where the task came later
    scores = np.array([[np.nan if score is None else score for score in row] for row in rows])
    figure = Figure(figsize=(2.6 + 1.1 * scores.shape[1], 1.8 + 0.45 * scores.shape[0]), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(scores, vmin=0, vmax=1, cmap="YlGnBu", aspect="auto")
    names = [drawable(f"{name} (watched)" if name in evaluation.watch else name) for name in evaluation.tasks]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", parse_math=False)
    axes.set_yticks(range(len(rows)), ["base", *(f"run {run}" for run in range(1, len(rows)))])
    axes.axhline(0.5, color="black", linewidth=1)
    if evaluation.watch:
        axes.axvline(len(evaluation.tasks) - len(evaluation.watch) - 0.5, color="black", linewidth=1)
    for (row, column), score in np.ndenumerate(scores):
        if not np.isnan(score):
            axes.text(column, row, f"{score:.3f}", ha="center", va="center", color="white" if score > 0.6 else "black")
    axes.set_title("Token accuracy on held-out rows", fontsize=11)
    figure.colorbar(image)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def drawable(text: str) -> str:
    """The text with a box for every character that matplotlib's own font lacks."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(character if ord(character) in known else "□" for character in text)
