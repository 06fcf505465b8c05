"""The cache: genuine records of whole artifacts are hits, everything else is a miss, and nothing is ever unpickled."""

import base64
import json
import pickle
from pathlib import Path

import pytest
from prefect.serializers import Serializer

from backprop_core.errors import FormatNewer
from backprop_core.schema.refs import RowsRef, TrainResult, artifacts_in
from backprop_core.stages import every
from backprop_core.store.artifacts import Store
from tasks.stages.cache_policy import Records, UnfitRecord, is_recorded, is_retryable, read_result, result_types

KEY = "c" * 64
SERIALIZER = {
    "type": "json",
    "jsonlib": "json",
    "object_encoder": "prefect.serializers.prefect_json_object_encoder",
    "object_decoder": "prefect.serializers.prefect_json_object_decoder",
    "dumps_kwargs": {},
    "loads_kwargs": {},
}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path))
    store = Store(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture
def ref(store) -> RowsRef:
    with store.begin("rows") as directory:
        (directory / "rows.jsonl").write_text("{}\n")
        return store.commit(directory, RowsRef, record={}, rows=1)


def record(store: Store, result: object, **metadata: object) -> None:
    """Put a record in the cache, as Prefect writes it."""
    text = json.dumps({"serializer": SERIALIZER, "storage_key": "/elsewhere", "expiration": None} | metadata)
    Records().write_path(KEY, text.encode())
    store.layout.cache_results.mkdir(parents=True, exist_ok=True)
    store.layout.cache_result(KEY).write_text(json.dumps(result))


def genuine(ref: RowsRef) -> dict[str, object]:
    return {"__class__": "backprop_core.schema.refs.RowsRef", "data": ref.model_dump()}


def test_a_genuine_record_is_a_hit_and_points_into_this_store(store, ref):
    """A store that was moved, or is mounted elsewhere, still serves its records."""
    record(store, genuine(ref))
    assert json.loads(Records().read_path(KEY))["storage_key"] == str(store.layout.cache_result(KEY))


@pytest.mark.parametrize("module", ["backprop_core.refs", "backprop_core.schema.refs"])
def test_a_record_outlives_the_module_of_its_class(store, ref, module):
    """What was noted when the class lay in another module is a hit, and Prefect reads it."""
    record(store, genuine(ref) | {"__class__": f"{module}.RowsRef"})
    metadata = json.loads(Records().read_path(KEY))
    assert Serializer(**metadata["serializer"]).loads(Path(metadata["storage_key"]).read_bytes()) == ref


@pytest.mark.parametrize(
    "changes",
    [
        {"serializer": {"type": "pickle", "picklelib": "cloudpickle"}},
        {"serializer": {"type": "compressed/pickle", "serializer": {"type": "pickle"}}},
        {"serializer": SERIALIZER | {"object_decoder": "os.system"}},
        {"serializer": None},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_a_record_that_asks_for_another_deserializer_is_a_miss(store, ref, changes, caplog):
    """Whoever can write the cache cannot make us run code; the miss is said aloud."""
    record(store, genuine(ref), **changes)
    with pytest.raises(UnfitRecord):
        Records().read_path(KEY)
    assert "runs again" in caplog.text


@pytest.mark.parametrize(
    "result",
    [
        {"__class__": "subprocess.Popen", "data": ["touch", "/tmp/pwned"]},
        {"__exc_type__": "builtins.SystemExit", "message": "x"},
        {"__class__": "backprop_core.schema.refs.RowsRef", "data": {"digest": "x"}},
        {"__class__": "backprop_core.schema.refs.RowsRef"},
        ["__class__"],
        "text",
        None,
    ],
    ids=lambda result: str(result)[:40],
)
def test_a_result_that_is_none_of_our_refs_is_a_miss(store, result):
    """Only our own frozen records come back from a cache."""
    record(store, result)
    with pytest.raises(UnfitRecord):
        Records().read_path(KEY)


def test_a_torn_result_is_a_miss(store, ref):
    """Prefect writes results in place: what a crash leaves is not taken."""
    record(store, genuine(ref))
    path = store.layout.cache_result(KEY)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UnfitRecord):
        Records().read_path(KEY)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        Records().read_path(KEY)


def test_a_record_without_its_artifact_is_a_miss(store, ref):
    """A tombstone and a damaged artifact count as absent; the damaged one is set aside to be made again."""
    record(store, genuine(ref))
    path = store.layout.artifact(ref.digest) / "rows.jsonl"
    path.chmod(0o644)
    path.write_text("[]\n")
    with pytest.raises(UnfitRecord):
        Records().read_path(KEY)
    assert not store.layout.artifact(ref.digest).exists()
    assert len(list((store.root / "damaged").iterdir())) == 1
    with pytest.raises(UnfitRecord):
        Records().read_path(KEY)


def test_a_record_has_the_number_of_its_format(store, ref):
    """Prefect is not shown it; a record without one, as earlier trees wrote it, is of format 1."""
    record(store, genuine(ref))
    path = store.layout.cache_key(KEY)
    written = json.loads(path.read_bytes())
    assert written.pop("format") == 1 and "format" not in json.loads(Records().read_path(KEY))
    path.write_text(json.dumps(written))
    assert is_recorded(store, KEY) and json.loads(Records().read_path(KEY))["storage_key"]


def test_a_record_of_a_newer_version_is_refused(store, ref):
    """It is neither read nor computed again in its place."""
    record(store, genuine(ref))
    path = store.layout.cache_key(KEY)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"format": 2}))
    for read in (lambda: is_recorded(store, KEY), lambda: Records().read_path(KEY)):
        with pytest.raises(FormatNewer, match="format 2"):
            read()


class Bomb:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("exploded"),))


def test_a_real_pickle_in_the_cache_never_runs(store, ref, tmp_path, monkeypatch):
    """The record that made Prefect's own storage run code is a miss here, and the negative control explodes."""
    monkeypatch.chdir(tmp_path)
    payload = base64.encodebytes(pickle.dumps(Bomb())).decode()
    record(store, payload, serializer={"type": "pickle", "picklelib": "cloudpickle"})
    with pytest.raises(UnfitRecord):
        Records().read_path(KEY)
    assert not Path("exploded").exists()
    pickle.loads(base64.decodebytes(payload.encode()))  # noqa: S301 - the control
    assert Path("exploded").exists()


def test_nested_artifacts_are_found(ref):
    """What a record names inside itself is verified too."""
    from backprop_core.schema.refs import AdapterRef, DatasetRef

    dataset = DatasetRef(name="a", task="a", train=ref, heldout=ref, read=2)
    assert [artifact.digest for artifact in artifacts_in(dataset)] == [ref.digest, ref.digest]
    trained = TrainResult(adapter=AdapterRef(digest="d" * 64, kind="tuned"), steps=1, tokens=1, train_loss=1, seconds=1)
    assert [artifact.digest for artifact in artifacts_in(trained)] == ["d" * 64]
    content = json.dumps({"__class__": "backprop_core.schema.refs.TrainResult", "data": trained.model_dump()}).encode()
    assert read_result(content) == trained


def test_only_what_can_pass_is_tried_again():
    """A killed worker is worth another try, a wrong format is not, an unknown fault is not."""
    from prefect.states import Failed

    from backprop_core.errors import FormatUnknown, WorkerDied

    def retried(error: Exception) -> bool:
        return is_retryable(None, None, Failed(data=error))

    assert retried(WorkerDied("x", hint="y"))
    assert not retried(FormatUnknown("x", hint="y"))
    assert not retried(RuntimeError("x"))


def test_what_every_stage_gives_can_be_read_back():
    """A result of a type that the cache does not know would be a miss for ever."""
    assert len(every()) > 20 and {stage.result for stage in every().values()} == set(result_types().values())
