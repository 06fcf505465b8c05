"""A path is a path: whatever characters are in a name, it is what it names, and nothing is written beside it."""

from pathlib import Path

import pytest

from backprop_core.data.loading import read_rows, snapshot
from backprop_core.errors import ConfigInvalid, StoreUnsupported
from backprop_core.runtime.settings import Settings
from backprop_core.schema.field_types import is_address
from backprop_core.schema.refs import Located
from backprop_core.schema.specs import DatasetSpec, RunSpec
from backprop_core.store.artifacts import Store
from flows.cli.lines_file import anchored_dataset
from tasks.runs import resolve
from tasks.runs.allowed_paths import may_read
from tasks.runs.source_fingerprint import fingerprint
from tasks.runs.sources import refuse_collisions, stem
from tasks.tracking import sync
from tasks.tracking.connection import connect
from tasks.tracking.history import is_empty
from tasks.tracking.journal import Journal
from tests.backprop_core import nano

NAMES = [
    "faq #1",
    "faq #2",
    "what?",
    "a?b=c#d",
    "100%",
    "50%41",
    "a;b",
    "a:b",
    "two words",
    "Grüße 日本",
    "~tilde",
    "[x]",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nano.build(tmp_path_factory.mktemp("base"))


def of_files(
    base: Path, store: Store, *paths: Path, watch: tuple[Path, ...] = (), flow: str = "multi-run"
) -> list[str]:
    """The tasks of a run on these files."""
    for path in (*paths, *watch):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "one"}\n{"text": "two"}\n')
    spec = {
        "model": {"name": str(base)},
        "datasets": [{"path": str(path)} for path in paths],
        "evaluation": {"watch": [{"path": str(path)} for path in watch]},
        "training": {"device": "cpu"},
    }
    prepared = resolve.prepare(flow, RunSpec.model_validate(spec), store)
    return [source.task for source in (*prepared.sources, *prepared.watch)]


# Data


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".jsonl.gz"])
def test_a_file_is_not_taken_apart_as_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ending: str
) -> None:
    """It is found, read by its ending, watched, confined and anchored under its whole name, which is its dataset's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BACKPROPAGATE_ALLOWED_PATHS", str(tmp_path))
    path = Path(name + ending)
    path.write_text("text\none\n" if ending == ".csv" else '{"text": "one"}\n')
    assert read_rows(snapshot(str(path), scratch=tmp_path), DatasetSpec(path=str(path))).rows == [{"text": "one"}]
    assert stem(str(path)) == stem(f"/some where#/else?/{path}") == name
    assert may_read(str(path)) and fingerprint(DatasetSpec(path=str(path)))
    anchored = anchored_dataset(DatasetSpec(path=str(path)), tmp_path).path
    assert Path(anchored) == tmp_path / path


def test_names_that_differ_are_tasks_that_differ(base: Path, tmp_path: Path) -> None:
    """Each file is its own task; files of one name in several directories are one, as they are meant to be."""
    store = Store(tmp_path / "store")
    tasks = of_files(base, store, tmp_path / "faq #1.jsonl", tmp_path / "faq #2.jsonl", tmp_path / "faq.jsonl")
    assert tasks == ["faq--1", "faq--2", "faq"]
    assert of_files(base, store, tmp_path / "a" / "faq.jsonl", tmp_path / "b" / "faq.csv") == ["faq", "faq"]


@pytest.mark.parametrize(
    ("one", "other"), [("faq #.jsonl", "faq ?.jsonl"), ("FAQ.jsonl", "faq.jsonl"), ("问题.jsonl", "答案.jsonl")]
)
def test_names_that_would_become_one_task_are_an_error(base: Path, tmp_path: Path, one: str, other: str) -> None:
    """Two files whose names are cleaned to one task are named, trained or watched; given a task, they are not."""
    store = Store(tmp_path / "store")
    for watch in ((), (tmp_path / other,)):
        with pytest.raises(ConfigInvalid, match="would both be the task") as caught:
            of_files(base, store, *[tmp_path / name for name in (one, other)[: 2 - len(watch)]], watch=watch)
        assert "datasets.0.task" in caught.value.hint
    assert of_files(base, store, tmp_path / one, flow="retrain") == ["default"]


def test_addresses_that_differ_in_their_query_are_not_one_task() -> None:
    """Files that one address gives by its query are named; one file under two signatures in two places is one task."""
    place = "https://host/download.php"
    with pytest.raises(ConfigInvalid, match="would both be the task download"):
        refuse_collisions([DatasetSpec(path=f"{place}?file={name}") for name in ("faq", "orders")])
    refuse_collisions([DatasetSpec(path=f"{place}?file={name}", task=name) for name in ("faq", "orders")])
    refuse_collisions([DatasetSpec(path=f"https://host/{place}/data.jsonl?sig={place}") for place in "ab"])
    refuse_collisions([DatasetSpec(path=f"{place}?file=faq")] * 2)


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("http://host/a.jsonl", True),
        ("s3://bucket/faq #1.jsonl", True),
        ("zip://a::http://h/b", True),
        ("simplecache::file:///etc/hostname", True),
        ("a:b.jsonl", False),
        ("dir/http://x.jsonl", False),
        ("C:\\data\\a.jsonl", False),
        ("#://x", False),
    ],
)
def test_what_is_an_address(path: str, known: bool) -> None:
    """An address begins with a protocol and `://`; everything else is a path."""
    assert is_address(path) is known


def test_names_of_addresses() -> None:
    """A web address has a query and a fragment that are no part of its name; keys of object stores have none."""
    assert stem("https://host/data/faq.jsonl.gz?key=a/b.c#top") == "faq"
    assert stem("s3://bucket/dir/faq #1.jsonl") == "faq #1"
    assert stem("https://host/") == "data"


# Homes and stores


@pytest.mark.parametrize("name", ["b?c", "a #1", "100% of 50%41", "a?b=c;d #1 %3F ü"])
def test_everything_of_a_home_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """MLflow's tables and artifacts of a home with any name lie in the home, and are found again."""
    home = tmp_path / "there" / name
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    config = Settings(home=home)
    adapter = home / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "weights").write_text("one")
    assert is_empty(config)
    with Journal(config.journal_path, "a" * 32) as journal:
        journal.start(line="support", name="train")
        journal.directory("merged", Located(digest="1" * 64, path=str(adapter)))
        journal.end("finished")
    assert sync(config).error is None and not is_empty(config)
    client = connect(config)
    [experiment] = [one for one in client.search_experiments() if one.name == "backprop.support"]
    [run] = client.search_runs([experiment.experiment_id])
    got = client.download_artifacts(run.info.run_id, "merged/weights", str(work))
    assert Path(got).read_text() == "one"
    assert {path.name for path in home.iterdir()} >= {"mlflow.db", "mlruns"}
    assert [path.name for path in home.parent.iterdir()] == [name]
    assert [path.name for path in work.iterdir()] == ["weights"]


@pytest.mark.parametrize("name", ["a#b", "b?c", "100%", "50%41", "two words", "a:b"])
def test_a_store_is_where_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A path is taken as it is written, a `file:` address as it decodes."""
    place = tmp_path / name
    assert Settings(store=str(place)).store_path == place
    assert Settings(store=place.as_uri()).store_path == place
    assert Settings(store=place.as_uri().replace("file://", "file:")).store_path == place
    monkeypatch.chdir(tmp_path)
    assert Settings(store=name).store_path == place


def test_a_store_under_an_address_that_was_not_decoded_is_found(tmp_path: Path) -> None:
    """A store that earlier versions made under the letters of a `file:` address is still that store."""
    (tmp_path / "my%20store").mkdir()
    assert Settings(store=f"file://{tmp_path}/my%20store").store_path == tmp_path / "my%20store"


@pytest.mark.parametrize("store", ["gs://bucket/store", "memory://x"])
def test_a_store_elsewhere_is_refused(store: str) -> None:
    """A store at an address of another protocol is not supported, by name."""
    with pytest.raises(StoreUnsupported, match=store.partition(":")[0]):
        _ = Settings(store=store).store_path


@pytest.mark.parametrize("store", ["s3://KEY:geheimnis@bucket/store", "s3://bucket/a?b=geheimnis", "s3:///geheimnis"])
def test_an_address_of_a_bucket_has_no_credentials(store: str) -> None:
    """They would stand in the name of the local copy and in messages; the refusal does not repeat them."""
    with pytest.raises(ConfigInvalid, match="bucket and a prefix") as refused:
        _ = Settings(store=store).store_path
    assert "geheimnis" not in f"{refused.value.message} {refused.value.hint}"
