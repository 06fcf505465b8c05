"""Work done before the slow import of Prefect: check the inputs, and start the worker if a stage is not cached."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from backprop_core.errors import RunUnknown
from backprop_core.runtime.settings import settings
from backprop_core.schema.flows import FLOWS, flow_info
from backprop_core.schema.specs import DatasetSpec, RunSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.layout import REBUILD
from tasks.runs import prepared_run, resolve, sources, worker_process
from tasks.runs.recorded_sources import RecordedSources
from tasks.tracking.connection import prepare as import_mlflow


@contextmanager
def checked(datasets: Iterable[DatasetSpec], elsewhere: sources.Elsewhere | None = None) -> Iterator[None]:
    """Refuse bad data before anything starts. Hands what was found on to the run in the block.

    `elsewhere` finds files of rows that are missing.
    """
    store = Store(settings().store_path)
    sources.hand_on(store, elsewhere)
    try:
        sources.check(datasets, sources.downloads(store))
        yield
    finally:
        sources.let_go()


def start(flow: str, spec: RunSpec, *, fresh: bool) -> None:
    """Check the inputs; start the worker unless everything is cached. Leaves downloads to the run."""
    config = settings()
    store = Store(config.store_path)
    prepared = resolve.prepare(flow, spec, store)
    if fresh or not prepared_run.is_warm(prepared, store):
        worker_process.start_early(config, prepared.spec.training)
    else:
        threading.Thread(target=import_mlflow, daemon=True).start()  # while Prefect's server starts


def asked(prefix: str) -> tuple[prepared_run.Prepared, RecordedSources]:
    """The resolved spec of the run that starts with `prefix`, and its files. Raises RunUnknown or RefAmbiguous."""
    store = Store(settings().store_path)
    run_id = prepared_run.full_run_id(prefix, store)
    prepared = prepared_run.load(run_id, store)
    if not flow_info(prepared.flow).trains:
        training = ", ".join(flow.name for flow in FLOWS.values() if flow.trains)
        raise RunUnknown(f"run {run_id} is a {prepared.flow} run", hint=f"choose a run of {training}")
    return prepared, RecordedSources(run_id, prepared)


def restart(prefix: str, *, inexact: bool) -> tuple[str, prepared_run.Prepared]:
    """Prepare to resume the run that starts with `prefix`, and start its worker; its spec records `inexact`."""
    config = settings()
    store = Store(config.store_path)
    run_id = prepared_run.full_run_id(prefix, store)
    prepared = prepared_run.load(run_id, store)
    if not flow_info(prepared.flow).resumable:
        raise RunUnknown(f"run {run_id} was a {prepared.flow} check, which cannot be resumed", hint="start a new one")
    if REBUILD.search(prepared.spec.line):
        raise RunUnknown(
            f"run {run_id} is part of a rebuild, which cannot be resumed run by run",
            hint="run the same `backprop data forget ROW --rebuild` again: what is done is in the cache",
        )
    if inexact:
        prepared = prepared_run.allow_inexact(prepared)
        prepared_run.save(prepared, run_id, store)
    if not prepared_run.is_warm(prepared, store):
        worker_process.start_early(config, prepared.spec.training)
    return run_id, prepared
