"""Plots of what was measured."""

import io

import matplotlib.image
import pytest

from backprop_core.schema.refs import Evaluation
from tasks.tracking.plots import forgetting_matrix


def evaluation(tasks: list[str], score: float) -> Evaluation:
    """As many runs as tasks: each run brings a task, the last task is only watched."""
    rows = [[score if task <= run else None for task in range(len(tasks))] for run in range(len(tasks))]
    return Evaluation(
        tasks=tasks,
        watch=tasks[-1:],
        metric="token_accuracy",
        matrix=rows,
        loss=rows,
        exact_match=rows,
        base=[0.1] * len(tasks),
        base_exact_match=[0.0] * len(tasks),
        average=score,
        backward_transfer=None,
        forgetting=[0.0] * len(tasks),
    )


@pytest.mark.parametrize(
    "tasks", [["news"], ["news", "chat", "skills"], ["a$b_$c", "语言", "long-" * 12, "<b>", "e", "f"]]
)
def test_the_matrix_is_a_readable_picture(tasks: list[str]) -> None:
    """Any number of tasks of any name gives a PNG that grows with them and in which scores have their colours."""
    picture = matplotlib.image.imread(io.BytesIO(forgetting_matrix(evaluation(tasks, 0.9))), format="png")
    height, width, _ = picture.shape
    assert width > 200 + 80 * len(tasks) and height > 150 + 40 * len(tasks)
    other = matplotlib.image.imread(io.BytesIO(forgetting_matrix(evaluation(tasks, 0.3))), format="png")
    assert (picture.shape != other.shape) or (picture != other).any()
