"""What a store has lost comes back from MLflow, verified: real stores, real databases."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backprop_core.errors import ArtifactDamaged, ArtifactMissing
from backprop_core.lines.versions import Lines, Move
from backprop_core.runtime.settings import Settings
from backprop_core.schema.gate_report import Act, GateReport
from backprop_core.schema.refs import BaseRef, RowsRef, SourceRef
from backprop_core.schema.specs import DatasetSpec, RunSpec
from backprop_core.store.artifacts import Store, file_digest
from tasks.runs.data_forget import data_forget
from tasks.runs.prepared_run import Prepared, full_run_id, load
from tasks.runs.prune import prune
from tasks.runs.restored_lines import restore_line, write_line
from tasks.runs.restored_runs import bring_artifacts, relocated
from tasks.runs.sources import Source
from tasks.stages.cache_policy import SERIALIZER
from tasks.tracking import sync
from tasks.tracking.connection import connect
from tasks.tracking.journal import Journal
from tasks.tracking.sender import unsent
from tasks.tracking.withdrawal import remove_copies
from tests.backprop_core import nano
from tests.backprop_core.lines.test_versions import version
from tests.tasks.tracking.test_tracking import DATASET, config, first_use, new_database  # noqa: F401  # fixtures

RUN, KEY = "a1" * 16, "e" * 64


@pytest.fixture
def home(config: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:  # noqa: F811
    """The home of the settings that are found, where artifacts are looked up in MLflow."""
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(config.home_path))
    monkeypatch.setattr(Store, "elsewhere", None)
    bring_artifacts()
    return config


def lose(home: Settings) -> Store:
    """Remove the store and the journals."""
    shutil.rmtree(home.store_path)
    shutil.rmtree(home.journal_path)
    return Store(home.store_path)


def rows_in(home: Settings) -> tuple[RowsRef, Path]:
    """An artifact in the store, and the file that it was made of."""
    file = home.home_path / "night.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in nano.chats(5)))
    return nano.commit_rows(Store(home.store_path), nano.chats(5)), file


def journaled(home: Settings, rows: RowsRef, file: Path) -> Prepared:
    """An unfinished run: its inputs, a finished stage, and a checkpoint of a training that it has begun."""
    store = Store(home.store_path)
    source = SourceRef(digest=file_digest(file), path=str(file))
    prepared = Prepared(
        flow="train",
        spec=RunSpec(line="support", datasets=[DatasetSpec(path=str(file))]),
        base=BaseRef(name="owner/base", digest="b" * 64),
        sources=[Source(name="night", task="night", data=source, heldout=None)],
        watch=[],
    )
    with Journal(home.journal_path, RUN) as journal:
        journal.start(line="support", name="train night")
        journal.document("inputs.json", prepared.model_dump(mode="json"))
        journal.keep_source(source)
        journal.keep(rows, store.layout.artifact(rows.digest), {"stage": "curate"})
        journal.staged(KEY, {"serializer": SERIALIZER}, {"__class__": "RowsRef", "data": rows.model_dump()})
        child = journal.child("b2" * 16)
        child.start(line="support", name="train night")
        for step in range(4):
            child.metrics(step, {"loss": 1.0 / (step + 1)})
        for step in (1, 2):
            checkpoint = store.layout.checkpoints(KEY) / f"step-{step:06d}"
            checkpoint.mkdir(parents=True)
            (checkpoint / "state.json").write_text(str(step))
            (checkpoint / "artifact.json").write_text("{}")
            journal.checkpoint(KEY, checkpoint)
    return prepared


def copies(home: Settings, pattern: str) -> list[Path]:
    return sorted((home.home_path / "mlruns").glob(f"*/*/artifacts/{pattern}"))


def test_an_artifact_comes_back_with_its_record(home: Settings) -> None:
    """Its digest, its bytes and where it came from; it took no room in MLflow while the store had it."""
    rows, file = rows_in(home)
    journaled(home, rows, file)
    assert sync(home).error is None
    [copied] = copies(home, f"artifacts/rows/{rows.digest}/rows.jsonl")
    assert copied.stat().st_nlink == 2
    store = lose(home)
    store.local(rows)
    assert store.record(rows.digest) == {"stage": "curate"} and list(store.check()) == []


def test_each_home_has_its_own_mlflow(home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that used another home before looks where its settings say now."""
    rows, file = rows_in(home)
    journaled(home, rows, file)
    sync(home)
    store = lose(home)
    monkeypatch.setattr(Store, "elsewhere", None)
    for place in (tmp_path / "other", home.home_path):
        monkeypatch.setenv("BACKPROPAGATE_HOME", str(place))
        bring_artifacts()
    assert store.local(rows).is_dir()


def test_a_copy_that_was_changed_is_refused(home: Settings) -> None:
    """One byte more in MLflow: an error with a code, and nothing in the store."""
    rows, file = rows_in(home)
    journaled(home, rows, file)
    sync(home)
    [copied] = copies(home, f"artifacts/rows/{rows.digest}/rows.jsonl")
    store = lose(home)
    copied.chmod(0o644)
    copied.write_bytes(copied.read_bytes() + b"\n")
    with pytest.raises(ArtifactDamaged, match=f"MLflow's copy of rows {rows.digest[:12]} is not what was committed"):
        store.local(rows)
    assert store.count() == 0


def test_what_was_removed_on_purpose_stays_away(home: Settings) -> None:
    """An artifact with a tombstone is not fetched; the error says why it was removed."""
    rows, file = rows_in(home)
    journaled(home, rows, file)
    sync(home)
    store = Store(home.store_path)
    store.remove(rows.digest, "pruned")
    with pytest.raises(ArtifactMissing) as raised:
        store.local(rows)
    assert "pruned" in raised.value.hint


def test_copies_of_forgotten_rows_are_removed(home: Settings) -> None:
    """Those of the artifacts that were removed, with their notes, and all files of rows; other copies stay."""
    rows, file = rows_in(home)
    other = nano.commit_rows(Store(home.store_path), nano.chats(3, seed=9))
    journaled(home, rows, file)
    with Journal(home.journal_path, "c3" * 16) as journal:
        journal.start(line="support", name="train")
        journal.keep(other, Store(home.store_path).layout.artifact(other.digest), {})
        journal.end("finished")
    assert sync(home).error is None and copies(home, "artifacts/source/*")
    Store(home.store_path).remove(rows.digest, "a row in it was forgotten")
    assert remove_copies(home, Store(home.store_path).was_removed, rows=True) == []
    assert copies(home, "checkpoints/*") == []
    assert copies(home, "artifacts/source/*") == []
    assert [path.name for path in copies(home, "artifacts/rows/*")] == [other.digest]
    assert [path.name for path in copies(home, "records/*")] == [other.digest]
    store = lose(home)
    with pytest.raises(ArtifactMissing):
        store.local(rows)


@pytest.mark.parametrize("deleted", [False, True])
def test_a_prune_frees_the_disk(home: Settings, *, deleted: bool) -> None:
    """MLflow's copy is a link to the same bytes, so it goes as well, also if its run was deleted there."""
    rows, file = rows_in(home)
    journaled(home, rows, file)
    with Journal(home.journal_path, RUN) as journal:
        journal.end("finished")
    assert sync(home).error is None
    if deleted:
        client = connect(home)
        client.delete_experiment(client.get_experiment_by_name("backprop.support").experiment_id)
    held = Store(home.store_path).layout.artifact(rows.digest) / "rows.jsonl"
    witness = home.home_path.parent / "witness"
    witness.hardlink_to(held)
    Store(home.store_path).layout.run(RUN).spec.unlink(missing_ok=True)
    assert prune(home, dry_run=True).artifacts == 1 and witness.stat().st_nlink == 3
    prune(home, dry_run=False)
    assert witness.stat().st_nlink == 1 and copies(home, "artifacts/rows/*") == []


def test_forgetting_edits_no_copy(home: Settings) -> None:
    """A copy in MLflow is a link to a file of the store: it is removed whole, and its bytes are not written to."""
    rows, file = rows_in(home)
    journaled(home, rows, file)
    with Journal(home.journal_path, RUN) as journal:
        journal.end("finished")
    assert sync(home).error is None
    witness = home.home_path.parent / "witness"
    witness.hardlink_to(Store(home.store_path).layout.artifact(rows.digest) / "rows.jsonl")
    before = witness.read_bytes()
    done = data_forget([DatasetSpec(path=str(file))], home, plan=False)
    assert [one.digest for one in done.artifacts] == [rows.digest] and witness.read_bytes() == before
    assert copies(home, "artifacts/*/*") == copies(home, "checkpoints/*") == []


def test_what_is_too_large_is_named_by_its_place(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the limit nothing is copied, and the error says where the artifact was."""
    monkeypatch.setenv("BACKPROPAGATE_MLFLOW_ARTIFACT_LIMIT", "10B")
    rows, file = rows_in(home)
    journaled(home, rows, file)
    small = Settings(home=home.home_path)
    assert sync(small).error is None and copies(home, "artifacts/*") == []
    store = lose(home)
    with pytest.raises(ArtifactMissing, match="BACKPROPAGATE_MLFLOW_ARTIFACT_LIMIT") as raised:
        store.local(rows)
    assert store.layout.artifact(rows.digest).as_uri() in raised.value.hint


def test_an_outage_is_said_once(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without MLflow an artifact is missing, and the reason is in the message; it is not asked for each artifact."""
    rows, file = rows_in(home)
    journaled(home, rows, file)
    sync(home)
    store = lose(home)
    (home.home_path / "mlflow.db").write_bytes(b"no database" * 1000)
    for _ in range(2):
        with pytest.raises(ArtifactMissing, match="MLflow cannot be asked"):
            store.local(rows)


def test_an_unfinished_run_comes_back(home: Settings) -> None:
    """Inputs, cache records, the newest checkpoint, the rows that it reads, and a journal that repeats no step."""
    rows, file = rows_in(home)
    prepared = journaled(home, rows, file)
    assert sync(home).error is None
    assert [path.name for path in copies(home, f"checkpoints/{KEY}/*")] == ["step-000002"]
    store = lose(home)
    content = file.read_bytes()
    file.unlink()
    assert full_run_id(RUN[:6], store) == RUN
    back = load(RUN, store)
    [source] = back.sources
    assert Path(source.data.path).read_bytes() == content
    assert back.digest() == prepared.digest()
    assert (store.layout.checkpoints(KEY) / "step-000002" / "state.json").read_text() == "2"
    assert json.loads(store.layout.cache_result(KEY).read_bytes())["data"] == rows.model_dump()
    assert list(unsent(home)) == [] or sync(home).error is None
    with Journal(home.journal_path, RUN) as journal:
        journal.start(line="support", name="train night")
        child = journal.child("b2" * 16)
        child.start(line="support", name="train night")
        for step in range(2, 6):
            child.metrics(step, {"loss": 7.0})
        journal.checkpoint(KEY, None)
        child.end("finished")
        journal.end("finished")
    assert sync(home).error is None
    assert losses(home) == [1.0, 1 / 2, 1 / 3, 1 / 4, 7.0, 7.0]
    assert copies(home, f"checkpoints/{KEY}/*") == []


def test_a_dataset_of_mlflows_says_where_it_was_read(home: Settings) -> None:
    """Its address without a password, whether a file or a URL, beside its digest and its task."""
    with Journal(home.journal_path, RUN) as journal:
        journal.start(line="support", name="train")
        journal.inputs([DATASET], {"news": "https://ann:hunter2hunter2@data.example.com/news.jsonl"})
        journal.end("finished")
    assert sync(home).error is None
    [run] = connect(home).search_runs([connect(home).get_experiment_by_name("backprop.support").experiment_id])
    [given] = run.inputs.dataset_inputs
    assert given.dataset.source_type == "https" and "data.example.com/news.jsonl" in given.dataset.source
    assert "hunter2" not in given.dataset.source and given.dataset.digest == "1" * 36
    assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": "training", "task": "news"}


def losses(home: Settings) -> list[float]:
    client = connect(home)
    found = client.search_runs(
        [one.experiment_id for one in client.search_experiments()], f"tags.`backprop.run_id` = '{'b2' * 16}'"
    )
    assert len(found) == 1
    return [one.value for one in client.get_metric_history(found[0].info.run_id, "loss")]


def test_a_line_comes_back(home: Settings) -> None:
    """Its versions and its champion, as they were; a line that was never there does not."""
    lines = Lines(Store(home.store_path))
    for number in (1, 2):
        with Journal(home.journal_path, f"{number:032x}") as journal:
            journal.start(line="support", name="retrain")
            journal.end("finished")
        lines.append("support", version(number), after=number - 1)
    lines.set_champion("support", 1)
    assert sync(home).error is None
    before: Any = [lines.version("support", number) for number in (1, 2)]
    store = lose(home)
    assert restore_line("support", store) and not restore_line("other", store)
    again = Lines(store)
    assert [again.version("support", number) for number in again.versions("support")] == before
    assert again.champion("support") == 1


def report(*, accepted: bool) -> GateReport:
    """A gate's report on a candidate."""
    return GateReport(
        accepted=accepted,
        reason="said so",
        against="base",
        metric="loss",
        average=1.0,
        rival_average=0.0,
        base_average=0.0,
        gain_low=0.5,
        tasks=[],
    )


def a_line() -> dict[str, str]:
    """The files of a line whose champion has passed its gate."""
    first = version(1).model_copy(update={"gate": report(accepted=True)})
    second = version(2).model_copy(update={"gate": report(accepted=False), "parent": 1})
    texts = {f"versions/{number:06d}.json": one.model_dump_json() for number, one in ((1, first), (2, second))}
    act = Act(by="ann", at=datetime(2026, 1, 1, tzinfo=UTC))
    move = Move(number=1, before=None, run_id="f" * 32, act=act)
    return {**texts, "champion": "1", f"moves/{'f' * 32}.json": move.model_dump_json()}


def test_a_line_is_written_as_mlflow_has_it(home: Settings) -> None:
    """Every file of a whole line."""
    store = Store(home.store_path)
    write_line("support", a_line(), store)
    root = store.layout.line("support").root
    assert {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.json")} == {
        name: text for name, text in a_line().items() if name.endswith(".json")
    }


FIRST, SECOND = "versions/000001.json", "versions/000002.json"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"champion": "2"}, "rejected by the gate"),
        ({"champion": "3"}, "champion"),
        ({"champion": "one"}, "champion"),
        ({"first-name": "../up"}, "first-name"),
        ({"transaction.json": "{}"}, "transaction.json"),
        ({"notes.txt": "x"}, "notes.txt"),
        ({FIRST: "{}"}, FIRST),
        ({FIRST: "no JSON"}, FIRST),
        ({FIRST: version(1).model_dump_json()[:-1] + ', "more": 1}'}, FIRST),
        ({SECOND: version(2).model_copy(update={"parent": 7}).model_dump_json()}, SECOND),
        ({f"moves/{'e' * 32}.json": a_line()[f"moves/{'f' * 32}.json"]}, "moves/eeee"),
        ({"votes/" + "e" * 32 + "/x.json": "{}"}, "votes/eeee"),
        ({"releases/000001.json": "{}"}, "releases/000001.json"),
    ],
)
def test_a_line_that_was_changed_in_mlflow_is_refused(home: Settings, change: dict[str, str], named: str) -> None:
    """What does not fit its form, its name, or the gate: a code, the file, and nothing is written."""
    store = Store(home.store_path)
    with pytest.raises(ArtifactDamaged, match=r"line\.json of line support") as raised:
        write_line("support", a_line() | change, store)
    assert named in raised.value.message
    assert not store.layout.line("support").root.exists()


def test_a_line_must_fit_the_registered_model(home: Settings) -> None:
    """A version with another run or adapter than the registry has is refused; one that was not registered is not."""
    store = Store(home.store_path)
    known = {number: (version(number).run_id, version(number).merged.digest) for number in (1, 2)}
    with pytest.raises(ArtifactDamaged, match="version 2"):
        write_line("support", a_line(), store, registered=known | {2: (known[2][0], "d" * 64)})
    assert not store.layout.line("support").root.exists()
    write_line("support", a_line(), store, registered={1: known[1]})
    assert Lines(store).champion("support") == 1


def test_a_damaged_copy_of_a_line_is_refused(home: Settings) -> None:
    """A line.json that is none is named, and no line begins in its place."""
    with Journal(home.journal_path, "1" * 32) as journal:
        journal.start(line="support", name="retrain")
        journal.end("finished")
    Lines(Store(home.store_path)).append("support", version(1), after=0)
    assert sync(home).error is None
    [copied] = copies(home, "line.json")
    store = lose(home)
    for damage in ('{"format": 1, "line": "support"}', '{"format": 2, "line": "support", "files": {}}'):
        copied.write_text(damage)
        with pytest.raises(ArtifactDamaged, match=r"line\.json of line support"):
            restore_line("support", store)
    assert Lines(store).names() == []


def staged(home: Settings, result: dict[str, Any]) -> None:
    """A run in MLflow whose one stage has returned this."""
    rows, file = rows_in(home)
    journaled(home, rows, file)
    sync(home)
    [stages] = copies(home, "stages/*.json")
    stages.write_text(json.dumps([{"key": KEY, "record": {"serializer": SERIALIZER}, "result": result}]))


@pytest.mark.parametrize(
    "result",
    [
        {"__class__": "GateReport", "data": report(accepted=True).model_dump()},
        {"__class__": "Answers", "data": {"answers": [{"text": "as expected", "tokens": 2, "stopped": True}]}},
        {"__class__": "Generated", "data": {"text": "as expected", "tokens": 2, "stopped": True}},
        {"__class__": "Fidelity", "data": {"positions": 9, "ids_equal": True, "top1": 1.0, "kl": 0.0, "answers": []}},
        {"__class__": "Harnessed", "data": {"scores": {"arc_easy": {"acc": 1.0}}}},
        {"__class__": "Popen", "data": {"args": "true"}},
        {"__class__": "RowsRef", "data": {"digest": "no digest", "rows": 1}},
    ],
)
def test_what_nothing_verifies_is_computed_again(home: Settings, result: dict[str, Any]) -> None:
    """What says nothing by an artifact, a gate's report too, and what is no result of a stage: only the run is back."""
    staged(home, result)
    store = lose(home)
    assert full_run_id(RUN, store) == RUN
    assert not store.layout.cache_key(KEY).exists() and not store.layout.cache_result(KEY).exists()


@pytest.mark.parametrize("name", ["inputs.json", "result.json"])
def test_a_damaged_document_of_a_run_is_refused(home: Settings, name: str) -> None:
    """It is named, and nothing is written that says that the run is here."""
    staged(home, {"__class__": "Popen", "data": {}})
    [inputs] = copies(home, "inputs.json")
    inputs.with_name(name).write_text('{"format": 1, "spec": {}}')
    store = lose(home)
    with pytest.raises(ArtifactDamaged, match=name):
        full_run_id(RUN, store)
    assert list(store.layout.begun()) == []


def test_a_result_names_the_places_of_this_store(home: Settings) -> None:
    """Each path beside a digest is where this store has it; other paths stay."""
    store, digest = Store(home.store_path), "c" * 64
    there = {"merged": {"digest": digest, "path": f"/away/artifacts/{digest}"}, "spec": {"path": "data.jsonl"}}
    here = {"merged": {"digest": digest, "path": str(store.layout.artifact(digest))}, "spec": {"path": "data.jsonl"}}
    assert relocated(there, store) == here
    file = {"digest": digest, "path": f"/away/artifacts/{digest}/model.gguf", "bytes": 1}
    assert relocated([file], store)[0]["path"] == str(store.layout.artifact(digest) / "model.gguf")
    for outside in (f"/away/{digest}/../../up", f"/away/{digest}\\..\\..\\up"):
        assert relocated({"digest": digest, "path": outside}, store)["path"] == outside
    above = {"digest": "../..", "path": "/away/../../up"}
    assert relocated(above, store) == above


def test_a_record_cannot_name_another_place(home: Settings) -> None:
    """A stage's key and a line's files become paths: one that leads elsewhere is refused, and nothing is written."""
    rows, file = rows_in(home)
    journaled(home, rows, file)
    sync(home)
    [stages] = copies(home, "stages/*.json")
    stages.write_text(stages.read_text().replace(KEY, "../../escaped"))
    store = lose(home)
    with pytest.raises(ArtifactDamaged, match="record of run"):
        full_run_id(RUN, store)
    with pytest.raises(ArtifactDamaged, match="no record of a line"):
        write_line("support", {"../escaped": ""}, store)
    assert list(home.home_path.rglob("*escaped*")) == [] and list(store.layout.runs.glob("*/*")) == []
