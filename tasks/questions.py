"""Questions that wait for a person: which flow run of Prefect's asks for which run. Kept in the store, so that a run
that is resumed goes on with the question that was asked before, on the same page.

questions/<run_id>   Prefect's id of the flow run that asks; older stores have one for each line: questions/<line>
"""

from collections.abc import Iterator
from pathlib import Path

from backprop_core.store import Store, write_atomic
from tasks import prepare
from tasks.tries import can_go_on


def note(run_id: str, flow_run: str, store: Store) -> None:
    """A flow run asks about what this run made."""
    write_atomic(place(run_id, store), flow_run)


def forget(run_id: str, store: Store) -> None:
    """The question is answered."""
    place(run_id, store).unlink(missing_ok=True)


def waiting(store: Store) -> Iterator[tuple[str, str]]:
    """Each run that goes on once it is answered, and the flow run that asks."""
    return ((name, asked) for name, asked in every(store) if is_resumable(name, store))


def abandoned(line: str, store: Store) -> Iterator[tuple[str, str]]:
    """Questions of a line about runs that cannot go on, and the one that an older store has noted, under its name."""
    for name, asked in every(store):
        if name == line or (is_run(name, store) and of_line(name, line, store) and not can_go_on(name, store)):
            yield name, asked


def is_resumable(run_id: str, store: Store) -> bool:
    """Whether this is a run that can go on."""
    return is_run(run_id, store) and can_go_on(run_id, store)


def every(store: Store) -> list[tuple[str, str]]:
    return [(path.name, path.read_text(encoding="utf-8")) for path in (store.root / "questions").glob("[!.]*")]


def of_line(run_id: str, line: str, store: Store) -> bool:
    return prepare.load(run_id, store).spec.line == line


def is_run(name: str, store: Store) -> bool:
    return (store.run(name) / "spec.json").is_file()


def place(name: str, store: Store) -> Path:
    return store.root / "questions" / name
