"""Checkpoints: whole or not there, and a killed run ends where an uninterrupted one does."""

import logging
import multiprocessing
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from backprop_core.errors import CheckpointInvalid, DiskFull
from backprop_core.schema.refs import RowsRef
from backprop_core.schema.specs import PreferenceLoss
from backprop_core.store.artifacts import Store
from backprop_core.training import checkpoint
from backprop_core.training.checkpoint import Checkpoint
from tests.backprop_core import nano, victim

PRINT = {"torch": "2", "threads": 1}


def at(step: int) -> Checkpoint:
    torch.manual_seed(step)
    state = {"fingerprint": PRINT, "losses": [[0.1 + step, 3]]}
    return Checkpoint(step, state, {"adapter": {"a": torch.randn(3)}, "rng": {"cpu": torch.get_rng_state()}})


def same(one: Checkpoint | None, other: Checkpoint) -> bool:
    assert one is not None
    pairs = [(one.tensors[name][key], tensor) for name, group in other.tensors.items() for key, tensor in group.items()]
    return (one.step, one.state) == (other.step, other.state) and all(torch.equal(a, b) for a, b in pairs)


def test_newest_is_what_was_saved_last(tmp_path: Path) -> None:
    """Tensors and values come back bit for bit, from the newest; the newest two are kept, nothing else is left."""
    assert checkpoint.newest(tmp_path) is None
    for step in (1, 2, 10):
        checkpoint.save(at(step), tmp_path, keep=2)
    assert same(checkpoint.newest(tmp_path), at(10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000010"]


def test_a_checkpoint_can_be_saved_over_its_like(tmp_path: Path) -> None:
    """Saving a step again, after its first checkpoint was damaged or half written, replaces it."""
    (tmp_path / "step-000001.tmp").mkdir(parents=True)
    (tmp_path / "step-000001").mkdir()
    checkpoint.save(at(1), tmp_path, keep=2)
    assert same(checkpoint.newest(tmp_path), at(1))


def test_no_space_is_known_before_anything_is_written(tmp_path: Path) -> None:
    """A checkpoint larger than the free space is refused, and the one before it stays as it is."""
    checkpoint.save(at(1), tmp_path, keep=1)
    huge = Checkpoint(2, at(1).state, {"adapter": {"a": torch.zeros(1).expand(2**50)}})
    with pytest.raises(DiskFull):
        checkpoint.save(huge, tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert same(checkpoint.newest(tmp_path), at(1))


@pytest.mark.parametrize("name", ["adapter.safetensors", "rng.safetensors", "state.json", "artifact.json"])
@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_a_damaged_one_is_named_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    """Whatever happened to a file of the newest, the one before it is used, and the log names the damaged one."""
    checkpoint.save(at(1), tmp_path, keep=2)
    checkpoint.save(at(2), tmp_path, keep=2)
    path = tmp_path / "step-000002" / name
    data = path.read_bytes()
    match how:
        case "flip":
            path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
        case "truncate":
            path.write_bytes(data[: len(data) // 2])
        case "remove":
            path.unlink()
    with caplog.at_level(logging.WARNING):
        assert same(checkpoint.newest(tmp_path), at(1))
    assert "step-000002 is damaged" in caplog.text


def test_another_fingerprint_is_refused_or_named() -> None:
    """What cannot be continued to the same bits is an error that names what differs; an inexact resume is told."""
    assert checkpoint.check_exact(PRINT, PRINT, inexact=False) == []
    other = {"threads": 2, "torch": "2", "cuda": "13"}
    with pytest.raises(CheckpointInvalid, match=r"cuda was None, is 13; threads was 1, is 2; ") as caught:
        checkpoint.check_exact(PRINT, other, inexact=False)
    assert "--inexact-resume" in caught.value.hint
    assert checkpoint.check_exact(PRINT, other, inexact=True) == ["cuda was None, is 13", "threads was 1, is 2"]


class Children:
    """Runs `victim.work` in processes forked from one that has imported everything."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = nano.build(root / "base")
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.backprop_core.victim", "transformers.models.llama.modeling_llama"])

    def rows(self, store: Path) -> RowsRef:
        return nano.commit_rows(Store(store), nano.chats(20))

    def run(
        self,
        store: Path,
        rows: RowsRef,
        kill_at: int | None = None,
        places: str = "/checkpoints/",
        loss: PreferenceLoss | None = None,
        heldout: RowsRef | None = None,
    ) -> int:
        """The child's exit status."""
        arguments = (store, self.base, rows, kill_at, places, loss, heldout)
        child = self._context.Process(target=victim.work, args=arguments)
        child.start()
        child.join(timeout=120)
        assert child.exitcode is not None
        return child.exitcode


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Children:
    return Children(tmp_path_factory.mktemp("children"))


@pytest.fixture(scope="module")
def uninterrupted(children: Children) -> tuple[str, int]:
    """Digest of a run that nobody killed, and how many operations on checkpoints it took."""
    store = children.root / "uninterrupted"
    assert children.run(store, children.rows(store)) == 0
    return (store / "digest").read_text(), int((store / "operations").read_text())


def ends_well(children: Children, store: Path, rows: RowsRef, digest: str) -> None:
    """Run again without a kill: the same adapter, and nothing of the interrupted runs left."""
    assert children.run(store, rows) == 0
    assert (store / "digest").read_text() == digest
    assert not (store / "checkpoints" / "key").exists()
    assert [path.name for path in (store / "artifacts").iterdir()].count(digest) == 1


def test_killed_at_any_operation_of_a_save(children: Children, uninterrupted: tuple[str, int], tmp_path: Path) -> None:
    """SIGKILL before each file operation of a save in turn, each run going on from what the last one left."""
    digest, operations = uninterrupted
    rows = children.rows(tmp_path)
    per_save = operations // 6
    assert per_save > 8
    for kill_at in range(2, per_save + 1, 3):
        assert children.run(tmp_path, rows, kill_at) == -signal.SIGKILL
    ends_well(children, tmp_path, rows, digest)


def test_killed_at_random_moments(children: Children, uninterrupted: tuple[str, int], tmp_path: Path) -> None:
    """SIGKILL at random operations of a run, in its saves and in its commit, and then once more."""
    digest, operations = uninterrupted
    rng = random.Random(0)
    for round in range(2):
        store = tmp_path / str(round)
        rows = children.rows(store)
        assert children.run(store, rows, rng.randrange(1, operations)) == -signal.SIGKILL
        children.run(store, rows, rng.randrange(1, operations // 2))
        ends_well(children, store, rows, digest)
        shutil.rmtree(store)


def test_killed_while_committing(children: Children, uninterrupted: tuple[str, int], tmp_path: Path) -> None:
    """SIGKILL while the finished adapter is written and moved into place."""
    digest, _ = uninterrupted
    rows = children.rows(tmp_path)
    for kill_at in (2, 6):
        assert children.run(tmp_path, rows, kill_at, places="/tmp/") == -signal.SIGKILL
    ends_well(children, tmp_path, rows, digest)


def test_killed_between_the_best_step_and_the_end(children: Children, tmp_path: Path) -> None:
    """A run that stops early, killed after the best step, and again: the best step's adapter, after as many steps."""

    def sets(store: Path) -> tuple[RowsRef, RowsRef]:
        other = [{"messages": [row["messages"][0], {"role": "assistant", "content": "no!"}]} for row in nano.chats(9)]
        return children.rows(store), nano.commit_rows(Store(store), other)

    rows, heldout = sets(tmp_path / "whole")
    assert children.run(tmp_path / "whole", rows, heldout=heldout) == 0
    best, steps = map(int, (tmp_path / "whole" / "kept").read_text().split())
    assert 0 < best < steps == best + 4 < 40
    per_save = int((tmp_path / "whole" / "operations").read_text()) // steps
    rows, heldout = sets(tmp_path / "killed")
    for kill_at in (per_save * (best + 1), per_save):
        assert children.run(tmp_path / "killed", rows, kill_at, heldout=heldout) == -signal.SIGKILL
    [newest, *_] = sorted((tmp_path / "killed" / "checkpoints" / "key").glob("step-*"), reverse=True)
    assert best <= int(newest.name.removeprefix("step-").removesuffix(".tmp")) < steps
    assert children.run(tmp_path / "killed", rows, heldout=heldout) == 0
    for name in ("digest", "kept"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()
