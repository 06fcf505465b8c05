"""What a command finds is found once, handed on to its run, and held from its begin to its end."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backprop_core.data.loading import read_rows
from backprop_core.errors import InputNotFound
from backprop_core.lines.prune import prune
from backprop_core.schema.specs import RunSpec
from backprop_core.store.artifacts import Store
from tasks.runs import prepared_run, resolve, sources
from tests.backprop_core import nano
from tests.wire.rows_server import Rows

ROWS = "".join(json.dumps(row) + "\n" for row in nano.chats(40)).encode()
RUN = "a1" * 16


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nano.build(tmp_path_factory.mktemp("base"))


@pytest.fixture
def server() -> Iterator[Rows]:
    with Rows({"/a.jsonl": ROWS, "/b.csv": b"question,answer\nWhy?,So.\n"}).running() as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_handed_on() -> Iterator[None]:
    yield
    sources.let_go()


def prepared(base: Path, store: Store, *datasets: dict[str, Any], watch: tuple[str, ...] = ()) -> prepared_run.Prepared:
    spec = {
        "model": {"name": str(base)},
        "datasets": datasets,
        "evaluation": {"watch": [{"path": path} for path in watch]},
        "training": {"device": "cpu"},
    }
    return resolve.prepare("multi-run", RunSpec.model_validate(spec), store)


def test_an_address_is_fetched_once_a_command(base: Path, tmp_path: Path, server: Rows) -> None:
    """The check before the run and the run have one download, however often the address is named; the next command
    has its own.
    """
    url = f"{server.url}/a.jsonl"
    datasets = [{"path": url, "task": "a"}, {"path": url, "task": "b", "heldout": url}]
    early, store = Store(tmp_path / "store"), Store(tmp_path / "store")
    sources.hand_on(early)
    checked = prepared(base, early, *datasets, watch=(url,))
    again = prepared(base, store, *datasets, watch=(url,))
    assert server.count("GET /a.jsonl") == 1
    assert checked.digest() == again.digest()
    begun = prepared_run.begun(again, RUN, store)
    sources.let_go()
    assert read_rows(begun.sources[1].data, begun.spec.datasets[1]).rows
    prepared(base, store, *datasets)
    assert server.count("GET /a.jsonl") == 2


def opened(path: Path, work: Callable[[], object]) -> int:
    """How often `work` opens a file of this process."""
    seen: list[object] = []
    sys.addaudithook(lambda event, args: seen.append(args[0]) if event == "open" and watching else None)
    watching = True
    work()
    watching = False
    return sum(str(name) == str(path) for name in seen)


def test_a_file_is_read_once_before_its_run(base: Path, tmp_path: Path) -> None:
    """What the check before the run has hashed is not hashed again by the run, unless the file has changed meanwhile;
    the next command hashes it anew.
    """
    file, store = tmp_path / "a.jsonl", Store(tmp_path / "store")
    file.write_bytes(ROWS)
    sources.hand_on(Store(tmp_path / "store"))
    look = lambda: prepared(base, store, {"path": str(file)})  # noqa: E731
    assert opened(file, look) > 0
    before = look()
    assert opened(file, look) == 0
    file.write_bytes(ROWS + ROWS)
    assert look().sources[0].data.digest != before.sources[0].data.digest
    sources.let_go()
    assert opened(file, look) > 0


def test_a_run_holds_what_it_has_downloaded(base: Path, tmp_path: Path, server: Rows) -> None:
    """From its begin the bytes are the run's own, on disk: another process reads them from its record, without a server
    and after the process that fetched them; the run's end frees them.
    """
    store = Store(tmp_path / "store")
    url = f"{server.url}/b.csv"
    prepared_run.begun(prepared(base, store, {"path": url}, watch=(f"{server.url}/a.jsonl",)), RUN, store)
    store.close()
    server.files.clear()
    loaded = prepared_run.load(RUN, Store(tmp_path / "store"))
    rows = read_rows(loaded.sources[0].data, loaded.spec.datasets[0]).rows
    assert rows == [{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}]
    assert len(read_rows(loaded.watch[0].data, loaded.spec.evaluation.watch[0]).rows) == 40
    sources.free(RUN, store)
    assert not store.layout.run(RUN).sources.exists()
    with pytest.raises(InputNotFound, match="gone") as caught:
        read_rows(loaded.sources[0].data, loaded.spec.datasets[0])
    assert caught.value.hint == "start a new run"


def test_files_that_are_here_are_left_where_they_are(base: Path, tmp_path: Path) -> None:
    """A run reads a local file from its place; it holds no copy."""
    store, path = Store(tmp_path / "store"), tmp_path / "a.jsonl"
    path.write_bytes(ROWS)
    begun = prepared_run.begun(prepared(base, store, {"path": str(path)}), RUN, store)
    assert begun.sources[0].data.path == str(path) and path.is_file()
    assert not store.layout.run(RUN).sources.exists()


def test_prune_leaves_what_an_unfinished_run_holds(base: Path, tmp_path: Path, server: Rows) -> None:
    """Prune keeps the data of runs that can be resumed, and frees that of runs that ended or never began."""
    store = Store(tmp_path / "store")
    found = prepared(base, store, {"path": f"{server.url}/a.jsonl"})
    finished, never_began = "b2" * 16, "c3" * 16
    for run in (RUN, finished, never_began):
        source = tmp_path / "store" / "tmp" / "copy"
        shutil.copy(found.sources[0].data.path, source)
        moved = found.sources[0].moved(lambda ref, source=source: ref.model_copy(update={"path": str(source)}))
        prepared_run.begun(found.model_copy(update={"sources": [moved]}), run, store)
    store.layout.run(finished).result.write_text('{"status": "finished"}')
    store.layout.run(never_began).spec.unlink()
    prune(store, remove_tag=lambda line, number: True)
    assert [store.layout.run(run).sources.is_dir() for run in (RUN, finished, never_began)] == [True, False, False]
