"""Lines that were deleted or renamed, in MLflow: in the order in which it happened, each once."""

from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from backprop_core.lines.deletion import DeletedLine
from backprop_core.lines.renaming import RenamedLine, noted
from backprop_core.runtime.settings import Settings
from backprop_core.store.artifacts import write_atomic
from backprop_core.store.layout import DeletedLayout, RenamedLayout, StoreLayout
from tasks.tracking import artifact_copies, line_curve
from tasks.tracking.connection import LINE, NAMESPACE, PAGE, paged

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

LIVE = "backprop.live"  # tag of a registered model: which version is live
LONGEST = 5000  # characters of a description in MLflow


def catch_up(client: "MlflowClient", settings: Settings) -> None:
    """Bring the names in MLflow up to date, so that a new line may have the name of an earlier one."""
    for _, act in sorted(left(client, settings), key=lambda each: each[0]):
        act()


def left(client: "MlflowClient", settings: Settings) -> Iterator[tuple[datetime, Callable[[], None]]]:
    """What MLflow does not know yet, with its time."""
    layout = StoreLayout(settings.store_path)
    for gone in layout.deletions():
        if not gone.retired.is_file():
            deleted = DeletedLine.model_validate_json(gone.tombstone.read_bytes())
            yield deleted.at, partial(retire, client, settings, deleted, gone)
    for renamed, place in noted(layout):
        if renamed.done and not place.mirrored.is_file():
            yield renamed.at, partial(rename, client, settings, renamed, place)


def retire(client: "MlflowClient", settings: Settings, deleted: DeletedLine, gone: DeletedLayout) -> None:
    """Rename the registered model and the curve of a deleted line; they and its experiment say that it was deleted."""
    name, text = f"{settings.namespace}.{deleted.line}", said_of(deleted)
    if known := own_model(client, settings, name):
        client.update_registered_model(name, f"{text}\n\nUntil then:\n\n{known.description or ''}"[:LONGEST])
        client.set_registered_model_tag(name, LIVE, "none")
        client.rename_registered_model(name, f"{settings.namespace}.{gone.root.name}.deleted")
    line_curve.retire(client, settings, deleted.line, gone.root.name, text)
    write_atomic(gone.retired, name)


def said_of(deleted: DeletedLine) -> str:
    """What MLflow's pages say of a deleted line."""
    return f"Line {deleted.line} was deleted on {deleted.at:%Y-%m-%d at %H:%M} UTC by {deleted.by}. Nothing is live."


def rename(client: "MlflowClient", settings: Settings, renamed: RenamedLine, place: RenamedLayout) -> None:
    """Rename experiment, registered model, curve and runs of a line. A name that is taken in MLflow stays as it is."""
    old, new = (f"{settings.namespace}.{name}" for name in (renamed.line, renamed.to))
    if own_model(client, settings, old) and not client.search_registered_models(f"name = '{new}'"):
        client.rename_registered_model(old, new)
        client.set_registered_model_tag(new, LINE, renamed.to)
    if known := client.get_experiment_by_name(old):
        for run in runs_of(client, known.experiment_id, renamed.line, since=deleted_before(settings, renamed)):
            client.set_tag(run, LINE, renamed.to)
        if client.get_experiment_by_name(new) is None:
            client.rename_experiment(known.experiment_id, new)
            client.set_experiment_tag(known.experiment_id, LINE, renamed.to)
            line_curve.renamed(client, known.experiment_id, renamed.to)
            artifact_copies.renamed(client, known.experiment_id, renamed.to)
    write_atomic(place.mirrored, new)


def own_model(client: "MlflowClient", settings: Settings, name: str) -> "RegisteredModel | None":
    """The registered model of this name, if it is ours."""
    [known] = client.search_registered_models(f"name = '{name}'") or [None]
    return known if known and known.tags.get(NAMESPACE) == settings.namespace else None


def deleted_before(settings: Settings, renamed: RenamedLine) -> datetime | None:
    """When an earlier line of the same name was deleted; None if none was."""
    gone = StoreLayout(settings.store_path).deletions()
    tombstones = (DeletedLine.model_validate_json(one.tombstone.read_bytes()) for one in gone)
    return max((one.at for one in tombstones if one.line == renamed.line and one.at < renamed.at), default=None)


def runs_of(client: "MlflowClient", experiment: str, line: str, *, since: datetime | None) -> list[str]:
    """MLflow's ids of the runs of a line that began since then, child runs and the curve among them."""
    start = int(since.timestamp() * 1000) if since else 0
    condition = f"tags.`{LINE}` = '{line}'"
    found = paged(lambda token: client.search_runs([experiment], condition, max_results=PAGE, page_token=token))
    return [run.info.run_id for run in found if run.info.start_time >= start]
