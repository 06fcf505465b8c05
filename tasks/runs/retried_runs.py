"""Maps a deployed flow run to the run it has started, so that a Prefect retry resumes it.

It is kept in the store, so that another machine can retry, and is pruned once that run is finished.
"""

from collections.abc import Iterator

from backprop_core.runtime.settings import Settings
from backprop_core.schema.refs import RunResult
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.leases import killed
from tasks.runs import prepared_run
from tasks.runs.allowed_paths import is_deployed
from tasks.runs.prefect_artifacts import flow_run_id
from tasks.runs.run_report import can_continue


def note(run_id: str, store: Store) -> None:
    """Store the run_id for the next retry of this flow run, if it is a deployed one."""
    if is_deployed():
        write_atomic(store.layout.flow_run(flow_run_id() or ""), run_id)


def left_over(store: Store) -> str | None:
    """The run that an earlier try of this flow run has started, if it can be resumed; else None."""
    run_id = begun(flow_run_id() or "", store) if is_deployed() else None
    return run_id if run_id and can_go_on(run_id, store) else None


def can_go_on(run_id: str, store: Store) -> bool:
    """Whether a run was killed, stopped, or failed with a retryable error."""
    path = store.layout.run(run_id).result
    made = RunResult.model_validate_json(path.read_bytes()) if path.is_file() else None
    return can_continue(prepared_run.load(run_id, store).flow, made)


def has_died(flow_run: str, config: Settings) -> bool:
    """Whether the process of a flow run was killed; False if nothing is known about it."""
    store = Store(config.store_path)
    return begun(flow_run, store) in set(killed(store))


def flow_runs(store: Store) -> Iterator[tuple[str, str]]:
    """All deployed flow runs that have started a run, with the run_id."""
    for path in store.layout.flow_runs.glob("[!.]*"):
        yield path.name, path.read_text(encoding="utf-8")


def begun(flow_run: str, store: Store) -> str | None:
    path = store.layout.flow_run(flow_run)
    return path.read_text() if path.is_file() else None
