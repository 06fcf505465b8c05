"""Checkpoints on a disk that fails, and checkpoints that were damaged: what is used is whole, or nothing is."""

import errno
import itertools
import logging
import os
import random
import sys
from pathlib import Path

import pytest
import torch

from backprop_core.errors import DiskFull
from backprop_core.training import checkpoint
from backprop_core.training.checkpoint import Checkpoint
from tests.backprop_core.broken_disk import broken

FILES = ["adapter.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json", "artifact.json"]


def at(step: int) -> Checkpoint:
    torch.manual_seed(step)
    groups = {name: {"a": torch.randn(7), "b": torch.randn(2, 3)} for name in ("adapter", "optimizer")}
    return Checkpoint(step, {"losses": [[0.1 + step, 3]]}, {**groups, "rng": {"cpu": torch.get_rng_state()}})


def save(step: int, folder: Path) -> None:
    checkpoint.save(at(step), folder, keep=2)


def found(folder: Path) -> int | None:
    """The step of the newest checkpoint, once it is seen to be what was saved, bit for bit."""
    newest = checkpoint.newest(folder)
    if newest is None:
        return None
    saved = at(newest.step)
    assert newest.state == saved.state
    for name, group in saved.tensors.items():
        assert all(torch.equal(newest.tensors[name][key], tensor) for key, tensor in group.items())
    return newest.step


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.skipif(sys.platform != "linux", reason="names open files by /proc")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_every_operation_of_a_save_may_fail(tmp_path, code):
    """For each of them: the save says that it failed and does nothing further; what is there is whole; the next works.

    Only what fails after the rename, the sync of the folder, leaves the new checkpoint, which is then complete.
    """
    for n in itertools.count(1):
        folder = tmp_path / str(n)
        save(1, folder)
        with broken(folder, n, code) as disk:
            if fails(code, folder):
                assert len(disk.operations) == n, "an operation after the one that failed"
        if not disk.failed:
            break
        renamed = "rename step-000002.tmp" in disk.operations[:-1]
        assert found(folder) == (2 if renamed else 1)
        assert names(folder) == {"step-000001", "step-000002"} if renamed else {"step-000001"}
        save(3, folder)
        assert found(folder) == 3
        assert not any(name.endswith(".tmp") for name in names(folder))
    assert n > 18, "a mkdir, five files of three operations each, the folders' syncs and a rename"
    assert found(folder) == 2


def fails(code: int, folder: Path) -> bool:
    """Whether saving the second checkpoint failed, which it may with the error that fits `code` alone."""
    try:
        save(2, folder)
    except DiskFull:
        assert code != errno.EIO
    except OSError as error:
        assert error.errno == code == errno.EIO
    else:
        return False
    return True


@pytest.mark.parametrize("name", FILES)
def test_a_torn_file_is_seen(tmp_path, name):
    """Cut anywhere, emptied, or longer than it was: the checkpoint before is used."""
    save(1, tmp_path)
    save(2, tmp_path)
    path = tmp_path / "step-000002" / name
    data = path.read_bytes()
    cuts = {0, 1, 8, len(data) // 2, len(data) - 1, *random.Random(name).sample(range(len(data)), 12)}
    for torn in [*(data[:cut] for cut in sorted(cuts)), data + b"\0", data[:-1] + b"\0" * 4096]:
        path.write_bytes(torn)
        assert not checkpoint.verifies(path.parent), len(torn)
    path.write_bytes(data)
    assert checkpoint.verifies(path.parent), "the control"


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_seen(tmp_path, name):
    """One bit anywhere in any file."""
    save(1, tmp_path)
    path = tmp_path / "step-000001" / name
    data = bytearray(path.read_bytes())
    for bit in random.Random(name).sample(range(8 * len(data)), 100):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        assert not checkpoint.verifies(path.parent), bit
        data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    assert checkpoint.verifies(path.parent), "the control"


def test_a_lost_or_added_file_is_seen(tmp_path):
    """What the manifest does not list does not belong to a checkpoint either."""
    for step, name in enumerate(FILES, 1):
        save(step, tmp_path / name)
        (tmp_path / name / f"step-{step:06d}" / name).unlink()
        assert found(tmp_path / name) is None
    save(1, tmp_path)
    (tmp_path / "step-000001" / "more.safetensors").touch()
    assert found(tmp_path) is None


def test_damaged_ones_are_named_set_aside_and_cost_no_new_one(tmp_path, caplog):
    """With every checkpoint damaged training starts afresh, and the first that it saves then is kept and found."""
    for step in (100, 110):
        save(step, tmp_path)
        os.truncate(tmp_path / f"step-{step:06d}" / "state.json", 5)
    with caplog.at_level(logging.WARNING):
        assert found(tmp_path) is None
    assert "step-000100" in caplog.text and "step-000110" in caplog.text
    for step in (10, 20, 30):
        save(step, tmp_path)
        assert found(tmp_path) == step
    assert {"step-000020", "step-000030"} <= names(tmp_path)


def test_setting_aside_twice_is_no_error(tmp_path):
    """The same step damaged again after it was saved again."""
    for _ in range(2):
        save(5, tmp_path)
        (tmp_path / "step-000005" / "artifact.json").write_bytes(b"{}")
        assert found(tmp_path) is None
