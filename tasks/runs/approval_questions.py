"""Pending approval requests: which Prefect flow run asks for which run.

Kept in the store, so that a resumed run continues with the same request, on the same page.
"""

from collections.abc import Iterator

from backprop_core.runtime.settings import Settings
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.leases import living
from tasks.runs import prepared_run
from tasks.runs.retried_runs import can_go_on, flow_runs


def note(run_id: str, flow_run: str, store: Store) -> None:
    """Record that a flow run asks for approval of this run's result."""
    write_atomic(store.layout.question(run_id), flow_run)


def forget(run_id: str, store: Store) -> None:
    """Remove an answered question."""
    store.layout.question(run_id).unlink(missing_ok=True)


def unattended(config: Settings) -> Iterator[tuple[str, str]]:
    """Deployed flow runs that wait for approval without a process, with the flow run that asks."""
    store = Store(config.store_path)
    alive, asked = set(living(store)), dict(every(store))
    for flow_run, run_id in flow_runs(store):
        if run_id in asked and run_id not in alive and is_resumable(run_id, store):
            yield flow_run, asked[run_id]


def abandoned(line: str, store: Store) -> Iterator[tuple[str, str]]:
    """Questions of a line about runs that cannot continue. Older stores noted a question under the line's name."""
    for name, asked in every(store):
        if name == line or (is_run(name, store) and of_line(name, line, store) and not can_go_on(name, store)):
            yield name, asked


def is_resumable(run_id: str, store: Store) -> bool:
    """Whether this run exists and can be resumed."""
    return is_run(run_id, store) and can_go_on(run_id, store)


def every(store: Store) -> list[tuple[str, str]]:
    return [(path.name, path.read_text(encoding="utf-8")) for path in store.layout.questions.glob("[!.]*")]


def of_line(run_id: str, line: str, store: Store) -> bool:
    return prepared_run.load(run_id, store).spec.line == line


def is_run(name: str, store: Store) -> bool:
    return store.layout.run(name).spec.is_file()
