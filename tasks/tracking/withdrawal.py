"""Removes from MLflow the adapters of withdrawn versions, and copies of artifacts that the store has removed."""

from collections.abc import Callable, Mapping

from backprop_core.errors import BackpropError
from backprop_core.runtime.settings import Settings
from tasks.tracking import artifact_copies, history, line_curve
from tasks.tracking.connection import answering, connect
from tasks.tracking.registry import known_versions, run_of

ADAPTER = "merged"  # directory of a run's artifacts


def remove_versions(settings: Settings, line: str, runs: Mapping[int, str]) -> list[str]:
    """Remove versions of a line, by number with their run_ids; what is left, in words."""
    name = f"{settings.namespace}.{line}"
    try:
        client = connect(settings)
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with answering(settings):
            known = known_versions(client, name)
            for number, run_id in runs.items():
                if number in known:
                    client.delete_model_version(name, known[number])
                if (run := run_of(client, settings, run_id)) and client.list_artifacts(run.info.run_id, ADAPTER):
                    get_artifact_repository(run.info.artifact_uri).delete_artifacts(ADAPTER)
    except BackpropError as error:
        return [f"{error.message}: the adapters of {line} that have learned the rows are still there"]
    return []


def remove_copies(settings: Settings, was_removed: Callable[[str], bool], *, rows: bool) -> list[str]:
    """Remove the copies of artifacts that the store has removed; what is left, in words.

    With `rows`, also all copies of files of rows, and all checkpoints.
    """
    if history.is_empty(settings):
        return []
    try:
        client = connect(settings)
        with answering(settings):
            artifact_copies.remove_artifacts(client, settings, was_removed)
            if rows:
                artifact_copies.remove_rows(client, settings)
    except BackpropError as error:
        return [f"{error.message}: MLflow still has copies of what was removed; run this again once it answers"]
    return []


def remove_model(settings: Settings, line: str) -> None:
    """Remove the model and the curve of a line that is no more; what MLflow cannot remove now does no harm."""
    try:
        client = connect(settings)
        with answering(settings):
            if client.search_registered_models(f"name = '{settings.namespace}.{line}'"):
                client.delete_registered_model(f"{settings.namespace}.{line}")
            line_curve.remove(client, settings, line)
        settings.layout.journal.registry.unlink(missing_ok=True)  # else its alias counts as moved
    except BackpropError:
        pass
