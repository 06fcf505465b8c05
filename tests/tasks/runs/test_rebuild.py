"""What a version is trained again with: its own spec as it was asked for, on its own files, without the rows."""

import json
import shutil
from pathlib import Path

import pytest

from backprop_core.data.forgotten_rows import forget
from backprop_core.data.loading import good_rows, snapshot
from backprop_core.data.row_files import index
from backprop_core.data.row_identity import identity
from backprop_core.errors import RebuildImpossible, RunUnknown
from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import SourceRef
from backprop_core.schema.specs import DatasetSpec, ExportSpec, PublishSpec
from backprop_core.store.artifacts import Store
from tasks.runs import prepared_run, prestart
from tasks.runs.data_forget import data_forget
from tasks.runs.rebuild import adopt, begin, concerned, dataset_of, end, nights, place_of
from tasks.runs.sources import Source
from tasks.runs.unfinished_rebuild import UnfinishedRebuild, unfinished
from tests.tasks.runs.test_data_forget import TEXT, home, store

__all__ = ["home", "store"]  # fixtures
SEEN = ["support@1", "support@2"]


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home, as if it had been made where it lies now."""
    for path in (home / "store" / "runs").rglob("spec.json"):
        path.write_text(path.read_text().replace("/tmp/old-home", str(home)))
    monkeypatch.chdir(home)
    return home


def test_versions_are_replayed_from_the_first_that_has_seen_a_row(here: Path, store: Store) -> None:
    """From there to the champion, also those that nobody knew of then; none if the champion's chain has not seen it."""
    assert concerned("support", SEEN, store) == concerned("support", SEEN[:1], store) == [1, 2]
    assert concerned("support", SEEN[1:], store) == [2] and concerned("billing", SEEN, store) == []
    Lines(store).set_champion("support", 1)
    assert concerned("support", SEEN[1:], store) == []


def test_what_was_chosen_is_left_open_and_nothing_is_published(here: Path, store: Store) -> None:
    """The data choose again: what they chose may have come from the row. Files and releases are for the line itself."""
    first, second = nights("support", [1, 2], store)
    assert (first.flow, first.promoted, first.spec.training.steps) == ("retrain", False, 8)
    assert not {"device", "max_length"} & first.spec.training.model_fields_set
    assert (
        "alpha" not in first.spec.training.lora.model_fields_set
        and "batch_size" in first.spec.training.model_fields_set
    )
    assert (first.spec.export, first.spec.publish) == (ExportSpec(), PublishSpec())
    assert [one.spec.datasets[0].path for one in (first, second)] == [
        str(here / "data" / f"night-{number}.jsonl") for number in (1, 2)
    ]
    [promoted] = nights("billing", [1], store)
    assert (promoted.flow, promoted.promoted) == ("multi-run", True) and len(promoted.spec.datasets) > 1


def test_a_file_that_forgetting_has_changed_is_still_the_one(here: Path, store: Store) -> None:
    """Its other rows are read; a file that was changed otherwise is not, and the rows that are left are taken."""
    data_forget([TEXT], settings(), plan=False)
    path = here / "data" / "night-1.jsonl"
    assert nights("support", [1], store)[0].spec.datasets[0].path == str(path)
    version = Lines(store).version("support", 1)
    with path.open("a") as file:
        file.write('{"prompt": "another row", "completion": "of another night"}\n')
    rows = nights("support", [1], store)[0].spec.datasets[0].path
    assert rows.endswith("rows.jsonl")
    read = {identity(row) for row in good_rows(snapshot(rows, scratch=here), DatasetSpec(path=rows))}
    left = [version.datasets[0].train, version.datasets[0].heldout]
    assert read == {one for ref in left for one in index(ref, store).identities()}


def test_of_a_directory_the_files_of_the_night_are_read(here: Path, store: Store) -> None:
    """Files that came later belong to later nights."""
    folder = here / "data" / "inbox"
    folder.mkdir()
    shutil.copy(here / "data" / "night-1.jsonl", folder / "a.jsonl")
    source = snapshot(str(folder), scratch=here)
    shutil.copy(here / "data" / "night-2.jsonl", folder / "b.jsonl")
    place = place_of(source, store)
    assert place and snapshot(place, scratch=here).digest == source.digest
    (folder / "a.jsonl").unlink()
    assert place_of(source, store) is None


def test_rows_whose_groups_only_the_file_says_are_not_guessed(here: Path, store: Store) -> None:
    """Without the file, rows that are split by one of its fields are not trained again."""
    dataset = Lines(store).version("support", 1).datasets[0]
    gone = SourceRef(digest="0" * 64, path=str(here / "data" / "gone.jsonl"))
    source = Source(name="night-1", task="support", data=gone, heldout=None)
    with pytest.raises(RebuildImpossible, match="by what only it says"):
        dataset_of(DatasetSpec(path=gone.path, group_by="customer"), source, dataset, store)


def test_a_run_of_a_rebuild_is_not_resumed_alone(here: Path, store: Store) -> None:
    """Its line is gone, or not what the rebuild needs: the same command does all of it again, from the cache."""
    run_id = Lines(store).version("support", 1).run_id
    prepared = prepared_run.load(run_id, store)
    spec = prepared.spec.model_copy(update={"line": "support.rebuild-0123456789ab"})
    prepared_run.save(prepared.model_copy(update={"spec": spec}), run_id, store)
    with pytest.raises(RunUnknown, match="part of a rebuild") as caught:
        prestart.restart(run_id, inexact=False)
    assert "data forget ROW --rebuild" in caught.value.hint


def test_the_rebuild_of_an_interrupted_run_is_found(here: Path, store: Store) -> None:
    """Line, rows and versions are known by the run alone; a run that belongs to none, and a line that is gone."""
    run_id = Lines(store).version("support", 1).run_id
    assert unfinished(run_id, settings()) is None
    begin("support", [1, 2], ["0" * 64], store)
    forget(["1" * 64], ["billing@1"], store)
    prepared = prepared_run.load(run_id, store)
    for line in ("support", "gone"):
        spec = prepared.spec.model_copy(update={"line": f"{line}.rebuild-0123456789ab"})
        prepared_run.save(prepared.model_copy(update={"spec": spec}), run_id, store)
        if line == "gone":
            with pytest.raises(RunUnknown, match="not known any more"):
                unfinished(run_id, settings())
        else:
            expected = UnfinishedRebuild(line="support", rows=["0" * 64], seen=["support@1", "support@2"])
            assert unfinished(run_id[:8], settings()) == expected


def test_a_rebuild_that_was_killed_is_adopted_once(here: Path, store: Store) -> None:
    """Its line is removed by the next one; versions that were appended are found again, whatever their run."""
    lines = Lines(store)
    name = begin("support", [2], ["0" * 64], store)
    assert lines.versions(name) == [1] and lines.champion(name) == 1
    made = lines.version("support", 2).model_copy(update={"run_id": "1" * 32, "parent": 1, "count": 7})
    lines.add(name, made, champion=1)
    assert adopt("support", name, [2], store) == [1, 3]
    other = begin("support", [2], ["0" * 64], store)
    assert name not in lines.names()
    lines.add(other, made.model_copy(update={"run_id": "2" * 32}), champion=1)
    assert adopt("support", other, [2], store) == [1, 3] and lines.versions("support") == [1, 2, 3]
    assert lines.version("support", 3).parent == 1 and lines.champion("support") == 2
    end(other, store, settings())
    assert lines.names() == ["billing", "support"]
    assert json.loads((here / "store" / "forgotten.jsonl").read_text())["versions"] == ["support@2"]
