"""What a Prefect flow run shows: the matrix, the way to MLflow, and the result for other services."""

import json
from collections.abc import Sequence

from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.context import FlowRunContext

from backprop_core.refs import Evaluation, GateReport, RunResult


def flow_run_id() -> str | None:
    """Prefect's id of this flow run; None outside of one."""
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else None


def publish(result: RunResult, *, namespace: str, mlflow_link: str | None) -> None:
    """Put a run's result on its Prefect flow run, under keys that start with the namespace."""
    if result.evaluation:
        table = matrix_table(result.evaluation) + (verdict(result.gate) if result.gate else "")
        create_markdown_artifact(table, key=f"{key(namespace)}-matrix")
    if mlflow_link:
        create_link_artifact(mlflow_link, link_text="The run in MLflow", key=f"{key(namespace)}-mlflow")
    data = json.dumps(result.model_dump(mode="json"), indent=1)
    create_markdown_artifact(f"```json\n{data}\n```", key=f"{key(namespace)}-result")


def key(namespace: str) -> str:
    """The namespace as Prefect allows it in an artifact's key: letters, digits and dashes."""
    return namespace.replace(".", "-").replace("_", "-")


def matrix_table(evaluation: Evaluation) -> str:
    """The forgetting matrix as Markdown, in percent."""
    rows: list[tuple[str, Sequence[float | None]]] = [("base", evaluation.base)]
    rows += [(f"after run {i + 1}", row) for i, row in enumerate(evaluation.matrix)]
    lines = [
        f"| token accuracy, % | {' | '.join(evaluation.tasks)} |",
        f"| --- |{' ---: |' * len(evaluation.tasks)}",
        *(f"| {name} | {' | '.join(percent(score) for score in row)} |" for name, row in rows),
    ]
    transfer = (
        "" if evaluation.backward_transfer is None else f", backward transfer {100 * evaluation.backward_transfer:+.1f}"
    )
    return "\n".join(lines) + f"\n\naverage {percent(evaluation.average)} ({evaluation.metric}){transfer}\n"


def verdict(report: GateReport) -> str:
    """What the gate decided, in one sentence of Markdown."""
    return f"\n**{'accepted' if report.accepted else 'rejected'}**: {report.reason}\n"


def percent(score: float | None) -> str:
    """A share as percent with one decimal; nothing for a cell that is not there."""
    return "" if score is None else f"{100 * score:.1f}"
