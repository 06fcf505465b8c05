"""A training on a disk that fails, is full, or has changed what was written: the same bits, or a coded error."""

import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backprop_core.errors import Interrupted, rebuild
from backprop_core.worker.main import attempt
from tests.backprop_core.broken_disk import broken
from tests.faults.small_job import STEPS, SmallJob

EVERY = "BACKPROP_FAULTS" in os.environ  # `make faults`
PAGE = 4096
CODES = {errno.ENOSPC: "RUNTIME_DISK_FULL", errno.EIO: "RUNTIME_STORAGE_FAILED"}


@pytest.fixture(scope="module")
def digest(world, tmp_path_factory) -> str:
    """What comes out when nothing fails."""
    return SmallJob(world / "base", tmp_path_factory.mktemp("whole")).run()[0]


def last_step(job: SmallJob) -> int:
    """The newest checkpoint with its final name; 0 if there is none."""
    return max((int(path.name[5:]) for path in job.checkpoints.glob("step-??????")), default=0)


def test_a_training_whose_record_was_lost_is_not_done_again(world, tmp_path, digest):
    """A kill after the adapter is committed and before its result is noted costs no step."""
    job = SmallJob(world / "base", tmp_path)
    job.run()
    assert job.run() == (digest, [])


def assert_goes_on(job: SmallJob, digest: str) -> None:
    """Run again: from the newest checkpoint, to the unbroken digest, and nothing is left over."""
    steps = list(range(last_step(job) + 1, STEPS + 1))
    assert job.run() == (digest, steps)
    job.assert_nothing_left()


@pytest.mark.skipif(sys.platform != "linux", reason="names open files by /proc")
@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_any_operation_of_a_training_may_fail(world, tmp_path, digest, code):
    """One write, fsync, rename, open or mkdir in the store fails, in a checkpoint or in the commit; run again."""
    total = operations_of_a_training(world / "base", tmp_path / "count")
    numbers = range(1, total + 1) if EVERY else sorted(random.Random(code).sample(range(1, total + 1), 5))
    for n in numbers:
        job = SmallJob(world / "base", tmp_path / str(n))
        with broken(job.store.root, n, code):
            error = attempt(job.train)["error"]
        assert error["code"] == CODES[code] and rebuild(**error).retryable, error
        assert list(job.store.check()) == []
        assert_goes_on(job, digest)
        shutil.rmtree(job.store.root)


def operations_of_a_training(base: Path, root: Path) -> int:
    job = SmallJob(base, root)
    with broken(job.store.root, sys.maxsize, errno.EIO) as disk:
        job.run()
    return len(disk.operations)


@pytest.mark.parametrize("damage", ["cut", "flip", "both", "remove"])
def test_damaged_checkpoints_are_named_and_passed_over(world, tmp_path, digest, damage, caplog):
    """A file of the newest checkpoint, or of both of them: the older one is used, or none, and the digest is whole."""
    job = SmallJob(world / "base", tmp_path)
    with pytest.raises(Interrupted):
        job.train(stop_after=4)
    for step in [3, 4] if damage == "both" else [4]:
        directory = job.checkpoints / f"step-{step:06d}"
        path = random.Random(damage).choice(sorted(directory.iterdir()))
        match damage:
            case "cut" | "both":
                os.truncate(path, path.stat().st_size // 2)
            case "flip":
                data = bytearray(path.read_bytes())
                data[len(data) // 3] ^= 16
                path.write_bytes(data)
            case "remove":
                path.unlink()
    first = 1 if damage == "both" else 4
    assert job.run() == (digest, list(range(first, STEPS + 1)))
    assert "step-000004" in caplog.text
    job.assert_nothing_left()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a small file system")
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def leave(pages: int, ballast: Path) -> None:
    """Fill the file system but for some pages."""
    with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(PAGE))
    os.truncate(ballast, ballast.stat().st_size - pages * PAGE)


def test_a_full_disk_ends_it_with_a_code_and_space_lets_it_go_on(world, small_disk, digest):
    """For every amount of space until it is enough: DiskFull, nothing half-written, and the unbroken digest later."""
    failed = []
    for pages in itertools.count(0, 2 if EVERY else 6):
        job = SmallJob(world / "base", small_disk / "store")
        leave(pages, small_disk / "ballast")
        outcome = attempt(job.train)
        if "ok" in outcome:
            break
        assert outcome["error"]["code"] == "RUNTIME_DISK_FULL", outcome
        failed.append(last_step(job))
        assert list(job.store.check()) == []
        assert not list(job.checkpoints.glob("*.tmp"))
        (small_disk / "ballast").unlink()
        assert_goes_on(job, digest)
        shutil.rmtree(small_disk / "store")
    assert failed[0] == 0 and len(failed) > 3, "it was full from the first checkpoint on"
    job.store.close()
