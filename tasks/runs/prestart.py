"""What can be done before Prefect is imported: check the inputs, and start the worker if there is work for it."""

import threading

from backprop_core.errors import RunUnknown
from backprop_core.runtime.settings import settings
from backprop_core.schema.specs import RunSpec
from backprop_core.store.artifacts import Store
from tasks.runs import resolve, sources, worker_process
from tasks.tracking.connection import prepare as import_mlflow


def start(flow: str, spec: RunSpec, *, fresh: bool) -> None:
    """Refuse what cannot work; start the worker unless the caches have everything. Downloads are left for the run."""
    config = settings()
    store = Store(config.store_path)
    sources.hand_on(store)
    try:
        prepared = resolve.prepare(flow, spec, store)
    except BaseException:
        sources.let_go()
        raise
    if fresh or not resolve.is_warm(prepared, store):
        worker_process.start_early(config, prepared.spec.training)
    else:
        threading.Thread(target=import_mlflow, daemon=True).start()  # while Prefect's server starts


def asked(prefix: str) -> resolve.Prepared:
    """What the run that `prefix` means was asked to do, complete. Raises RunUnknown or RefAmbiguous."""
    store = Store(settings().store_path)
    run_id = resolve.full_run_id(prefix, store)
    prepared = resolve.load(run_id, store)
    if prepared.flow not in resolve.TRAINING:
        raise RunUnknown(f"run {run_id} is one of {prepared.flow}", hint=f"name a run of {', '.join(resolve.TRAINING)}")
    return prepared


def restart(prefix: str, *, inexact: bool) -> tuple[str, resolve.Prepared]:
    """The run that `prefix` means, its worker on the way; `inexact` is noted in its spec."""
    config = settings()
    store = Store(config.store_path)
    run_id = resolve.full_run_id(prefix, store)
    prepared = resolve.load(run_id, store)
    if prepared.flow == "drift":
        raise RunUnknown(f"run {run_id} only tried a line on fresh rows", hint="start it again")
    if inexact:
        prepared = resolve.allow_inexact(prepared)
        resolve.save(prepared, run_id, store)
    if not resolve.is_warm(prepared, store):
        worker_process.start_early(config, prepared.spec.training)
    return run_id, prepared
