"""A line gets another name: everything of it moves, nothing of it changes, and a kill at any moment is made good."""

import json
import os
from pathlib import Path

import pytest

from backprop_core.data.forgotten_rows import forget, forgotten
from backprop_core.errors import ConfigInvalid, RunActive
from backprop_core.lines import renaming
from backprop_core.lines.renaming import RenamedLine, first_name, name_now, rename
from backprop_core.lines.versions import Lines
from backprop_core.store import pins
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.leases import Lease
from tests.backprop_core.lines.test_versions import version

RUN, OTHER = f"{1:032x}", f"{2:032x}"
LONG_AGO = 1_700_000_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with the line `support` of one version, its run, release, pin and a forgotten row; and another line."""
    store = Store(tmp_path / "store")
    lines = Lines(store)
    for line in ("support", "billing"):
        lines.append(line, version(1), after=0)
    lines.set_champion("support", 1)
    for run, line in ((RUN, "support"), (OTHER, "billing")):
        write_atomic(store.layout.run(run).spec, json.dumps({"flow": "retrain", "spec": {"line": line, "note": "ü"}}))
        write_atomic(store.layout.run(run).result, json.dumps({"line": line, "spec": {"line": line}, "loss": 0.1}))
        os.utime(store.layout.run(run).result, (LONG_AGO, LONG_AGO))
        write_atomic(store.layout.line(line).release(1), json.dumps({"line": line, "number": 1}))
    write_atomic(store.layout.line("support").vote(RUN, "a"), "{}")
    pins.pin("support@1", ["a" * 64], store)
    forget(["b" * 64], ["support@1", "support-2@1", "billing@1"], store)
    return store


def seen(store: Store, line: str) -> dict[str, bytes]:
    """Every record of a line, by its place."""
    root = store.layout.line(line).root
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def assert_renamed(store: Store) -> None:
    """All that was support's is helpdesk's, and billing is as it was."""
    lines, layout = Lines(store), store.layout
    assert lines.names() == ["billing", "helpdesk"] and lines.champion("helpdesk") == 1
    assert not layout.line("support").root.exists()
    assert json.loads(layout.run(RUN).spec.read_bytes()) == {
        "flow": "retrain",
        "spec": {"line": "helpdesk", "note": "ü"},
    }
    made = json.loads(layout.run(RUN).result.read_bytes())
    assert made == {"line": "helpdesk", "spec": {"line": "helpdesk"}, "loss": 0.1}
    assert layout.run(RUN).result.stat().st_mtime_ns == LONG_AGO * 10**9 + 2  # written twice
    assert json.loads(layout.run(OTHER).result.read_bytes())["line"] == "billing"
    assert json.loads(layout.line("helpdesk").release(1).read_bytes()) == {"line": "helpdesk", "number": 1}
    assert len(list(layout.line("helpdesk").votes_on(RUN).iterdir())) == 1
    assert pins.pinned(store) == {"helpdesk@1": {"a" * 64}}
    assert forgotten(store)["b" * 64].versions == ["billing@1", "helpdesk@1", "support-2@1"]
    assert (first_name("helpdesk", layout), name_now("support", layout)) == ("support", "helpdesk")
    [(note, _)] = renaming.noted(layout)
    assert (note.line, note.to, note.by, note.done) == ("support", "helpdesk", "ann", True)


def test_everything_of_a_line_has_the_new_name(store: Store) -> None:
    """Versions, champion, votes, runs, releases, pins and forgotten rows; times of records stay."""
    billing, before = seen(store, "billing"), seen(store, "support")
    rename("support", "helpdesk", "ann", store)
    assert_renamed(store)
    after = seen(store, "helpdesk")
    assert seen(store, "billing") == billing
    assert {name for name in after if after[name] != before.get(name)} == {"first-name", "releases/000001.json"}


def test_the_first_name_outlives_a_second_renaming(store: Store) -> None:
    """The task of its rows is that of its first name; both old names lead to the new one, until one is used again."""
    rename("support", "helpdesk", "ann", store)
    rename("helpdesk", "desk", "ann", store)
    layout = store.layout
    assert first_name("desk", layout) == "support"
    assert [name_now(name, layout) for name in ("support", "helpdesk", "desk", "billing")] == [
        "desk",
        "desk",
        None,
        None,
    ]
    Lines(store).append("support", version(1), after=0)
    assert (first_name("support", layout), name_now("support", layout)) == ("support", None)


@pytest.mark.parametrize("cut", ["noted", "moved", "half"])
def test_a_renaming_that_was_cut_off_is_finished_by_the_same_command(store: Store, cut: str) -> None:
    """After the note, after the directory, in the middle of the runs: again, all of it is done, once."""
    place = store.layout.renamed("support", "20261130T180000Z")
    note = RenamedLine(line="support", to="helpdesk", at="2026-11-30T18:00:00Z", by="ann")  # type: ignore[arg-type]
    write_atomic(place.note, note.model_dump_json())
    if cut != "noted":
        write_atomic(store.layout.line("support").first_name, "support")
        store.layout.line("support").root.rename(store.layout.line("helpdesk").root)
    if cut == "half":
        renaming.written_again(store.layout.run(RUN).spec, "support", "helpdesk", "spec")
    rename("support", "helpdesk", "eve", store)
    assert_renamed(store)


@pytest.mark.parametrize("to", ["billing", "support"])
def test_a_name_that_is_taken_is_refused(store: Store, to: str) -> None:
    """Nothing has changed then; what comes first is not done either."""
    before, done = seen(store, "support"), list[int]()
    with pytest.raises(ConfigInvalid, match=f"there is a line {to} already"):
        rename("support", to, "ann", store, lambda: done.append(1))
    assert seen(store, "support") == before and done == [] and list(store.layout.renamings()) == []


@pytest.mark.parametrize("how", ["works", "asks", "releases", "locks"])
def test_while_something_of_it_has_not_ended_it_keeps_its_name(store: Store, how: str) -> None:
    """A run that works, a question that waits, a release that was cut off, a lock: refused with a code."""
    layout, lock = store.layout, Store(store.root).lock("line-support")
    if how == "asks":
        write_atomic(layout.question(RUN), "f" * 32)
    if how == "releases":
        write_atomic(layout.line("support").transaction, "{}")
    if how == "locks":
        lock.acquire()
    lease = Lease(RUN, store) if how == "works" else None
    with pytest.raises(RunActive):
        rename("support", "helpdesk", "ann", store)
    if lease:
        lease.end(finished=True)
    lock.release(force=True)
    assert Lines(store).names() == ["billing", "support"]
