"""A line that was renamed keeps where its rows stand, and what was another line's stays that line's."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backprop_core.errors import ConfigInvalid
from backprop_core.lines.deletion import DeletedLine, delete
from backprop_core.lines.renaming import RenamedLine, check_begins, check_rows, name_now, noted, rename
from backprop_core.lines.versions import Lines
from backprop_core.store.artifacts import Store, write_atomic
from tests.backprop_core.lines.test_versions import version

BEFORE, AFTER = f"{1:032x}", f"{2:032x}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    begin("support", BEFORE, store)
    return store


def begin(line: str, run: str, store: Store) -> None:
    """A line with a version, and its run."""
    Lines(store).append(line, version(1), after=0)
    write_atomic(store.layout.run(run).spec, json.dumps({"flow": "retrain", "spec": {"line": line}}))
    write_atomic(store.layout.run(run).result, json.dumps({"line": line, "spec": {"line": line}}))


def line_of(run: str, store: Store) -> set[str]:
    """Under which names a run is recorded."""
    asked, made = (json.loads(path.read_bytes()) for path in (store.layout.run(run).spec, store.layout.run(run).result))
    return {asked["spec"]["line"], made["line"], made["spec"]["line"]}


def cut_off(store: Store, *, moved: bool) -> None:
    """A renaming of support to helpdesk that a kill has ended."""
    place = store.layout.renamed("support", "20261130T180000Z")
    note = RenamedLine(line="support", to="helpdesk", at=datetime.now(UTC), by="ann")
    write_atomic(place.note, note.model_dump_json())
    if moved:
        write_atomic(store.layout.line("support").first_name, "support")
        store.layout.line("support").root.rename(store.layout.line("helpdesk").root)


def test_rows_of_a_renamed_line_stay_its_own(store: Store) -> None:
    """Under the old name no rows of a new line are put, whatever becomes of either name; other names are free."""
    rename("support", "helpdesk", "ann", store)
    begin("support", AFTER, store)
    for line in ("helpdesk", "billing"):
        check_rows(line, store.layout)
    with pytest.raises(ConfigInvalid, match="line helpdesk was called support"):
        check_rows("support", store.layout)
    rename("helpdesk", "desk", "ann", store)
    rename("support", "second", "ann", store)
    check_rows("desk", store.layout)
    for line in ("support", "second"):
        with pytest.raises(ConfigInvalid, match="line desk was called support"):
            check_rows(line, store.layout)


def test_a_line_that_has_its_name_back_has_its_rows(store: Store) -> None:
    """Renamed there and back again, it puts rows where it did at first."""
    rename("support", "helpdesk", "ann", store)
    rename("helpdesk", "support", "ann", store)
    check_rows("support", store.layout)


def test_no_line_begins_in_the_middle_of_a_renaming(store: Store) -> None:
    """Once the records have moved, the old name is free only when the renaming has ended."""
    cut_off(store, moved=True)
    with pytest.raises(ConfigInvalid, match="cut off") as caught:
        check_begins("support", store)
    assert "backprop line rename support helpdesk" in caught.value.hint
    rename("support", "helpdesk", "ann", store)
    check_begins("support", store)
    assert line_of(BEFORE, store) == {"helpdesk"}


def test_a_renaming_that_was_cut_off_at_first_is_no_obstacle(store: Store) -> None:
    """Before anything has moved, the line goes on, or gets another name instead: then the old name is free."""
    cut_off(store, moved=False)
    check_begins("support", store)
    rename("support", "desk", "ann", store)
    check_begins("support", store)
    assert name_now("support", store.layout) == "desk" and len(noted(store.layout)) == 1


@pytest.mark.parametrize("listed", [True, False])
def test_runs_of_a_deleted_line_keep_its_name(store: Store, listed: bool) -> None:
    """A new line under the name of a deleted one is renamed with its own runs; an older tombstone has a time alone."""
    os.utime(store.layout.run(BEFORE).spec, (1, 1))
    delete("support", "ann", store)
    [gone] = store.layout.deletions()
    told = DeletedLine.model_validate_json(gone.tombstone.read_bytes())
    assert told.runs == [BEFORE]
    if not listed:
        write_atomic(gone.tombstone, told.model_copy(update={"runs": None}).model_dump_json())
    begin("support", AFTER, store)
    rename("support", "helpdesk", "ann", store)
    assert (line_of(BEFORE, store), line_of(AFTER, store)) == ({"support"}, {"helpdesk"})
