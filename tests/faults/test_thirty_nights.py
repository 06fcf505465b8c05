"""A month of retrains with release, pruned after each: real training, a stand-in Ollama, and the disk stays small.

Runs where `BACKPROP_FAULTS` is set: it takes minutes.
"""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from backprop_core.lines.prune import size_of
from backprop_core.lines.versions import Lines
from backprop_core.publishing.release_transaction import released
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import (
    DatasetSpec,
    EvaluationSpec,
    ExportSpec,
    GateSpec,
    LoraSpec,
    MergeSpec,
    PublishSpec,
    TrainSpec,
)
from backprop_core.store.artifacts import Store
from flows.demo import EXAMPLES
from flows.retrain import retrain
from flows.rollback import rollback
from tests.wire.ollama_server import OllamaServer

LINE, NIGHTS, KEPT, ROWS, RELEASED = "orders", 30, 3, 8, 20  # at least so many of the nights have to go live
KILLED_PRUNE = """
import os, signal, sys
from itertools import count
from backprop_core.runtime.settings import settings
from tasks.runs.prune import prune
seen, moment = count(1), int(sys.argv[1])
def audit(event, args):
    if event not in ("os.rename", "os.remove", "os.rmdir"):
        return
    missing = event == "os.remove" and args[1] == -1 and not os.path.lexists(args[0])  # such as a record that has gone
    if not missing and next(seen) == moment:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(audit)
prune(settings(), keep=1, dry_run=False)
"""


@pytest.fixture
def prefect_server() -> Iterator[None]:
    """Prefect's own temporary server and database."""
    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.fixture
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Eight new rows of one task for each night; every night has rows that no other has."""
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "home"))
    rows = (EXAMPLES / "data" / "orders.jsonl").read_text().splitlines()
    files = [tmp_path / f"{night}.jsonl" for night in range(NIGHTS)]
    for night, file in enumerate(files):
        file.write_text("\n".join(rows[night * ROWS : (night + 1) * ROWS]))
    return files


def retrained(data: Path, heldout: Path | None) -> RunResult:
    """Two steps more; a candidate goes live if its loss is more likely lower than higher."""
    return retrain(
        LINE,
        DatasetSpec(path=str(data), task="orders", heldout=str(heldout) if heldout else None),
        str(EXAMPLES / "base"),
        TrainSpec(steps=2, batch_size=4, learning_rate=2e-4, lora=LoraSpec(rank=8)),
        MergeSpec(strategy="sequential"),
        evaluation=EvaluationSpec(metric="loss", heldout_max=20),
        gate=GateSpec(max_drop=1, confidence=0.5),
        export=ExportSpec(quantizations=["q8_0"]),
        publish=PublishSpec(ollama=LINE, keep=KEPT),
    )


def taken(ollama: OllamaServer) -> int:
    """Bytes of all files of the store, records and caches too, and of Ollama's blobs."""
    return size_of(settings().store_path) + sum(map(len, ollama.blobs.values()))


def named_by(number: int, store: Store) -> list[str]:
    """Digests of what a version has to have: its adapters, what it is scored on, and the files that went live."""
    version, went_out = Lines(store).version(LINE, number), released(LINE, number, store)
    assert went_out
    rows = [rows.digest for rows in version.heldout.values()]
    return [version.tuned.digest, version.merged.digest, *rows, *(file.digest for file in went_out.gguf)]


@pytest.mark.usefixtures("warm_worker")
@pytest.mark.skipif("BACKPROP_FAULTS" not in os.environ, reason="only in make faults")
@pytest.mark.timeout(5400)
def test_thirty_nights_take_the_room_of_three(
    nights: list[Path], prefect_server: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """After thirty, store and Ollama hold under 1.2 times what they held after three versions; those three work."""
    room: dict[int, int] = {}
    with OllamaServer().running() as ollama, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_HOST", ollama.url)
        for night, data in enumerate(nights):
            made = retrained(data, None if night else EXAMPLES / "data" / "heldout" / "orders.jsonl")
            assert made.status in ("finished", "rejected"), made.error
            if made.status == "finished":
                assert made.version == len(room) + 1
                room[made.version] = taken(ollama)
            with capsys.disabled():
                print(f"night {night + 1}: {made.status}, {taken(ollama) / 2**20:.2f} MiB", flush=True)
        last = len(room)
        assert last >= RELEASED
        assert room[last] < 1.2 * room[KEPT]
        kept = range(last - KEPT + 1, last + 1)
        assert ollama.models.keys() == {f"{LINE}:latest", *(f"{LINE}:v{number}" for number in kept)}
        assert len(ollama.blobs) == KEPT
        assert_holds(kept, champion=last)

        assert rollback(LINE, kept[0]).status == "finished"
        assert ollama.models[f"{LINE}:latest"] == ollama.models[f"{LINE}:v{kept[0]}"]
        assert_holds(kept, champion=kept[0])
        moments, kills = random.Random(30), 0
        while killed(moments.randint(1, 12)):
            kills += 1
            assert_holds([kept[0], last], champion=kept[0])
        assert kills > 2
        assert ollama.models.keys() == {f"{LINE}:latest", f"{LINE}:v{kept[0]}", f"{LINE}:v{last}"}
        assert_holds([kept[0], last], champion=kept[0])


def killed(moment: int) -> bool:
    """Whether a prune that keeps champion and newest was killed before that change to the disk, or came to its end."""
    done = subprocess.run([sys.executable, "-c", KILLED_PRUNE, str(moment)], capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def assert_holds(numbers: list[int] | range, *, champion: int) -> None:
    """All that these versions name is whole, and so is the rest of the store."""
    store = Store(settings().store_path)
    assert Lines(store).champion(LINE) == champion
    for number in numbers:
        for digest in named_by(number, store):
            store.verify(digest)
    assert list(store.check()) == []
    store.close()
