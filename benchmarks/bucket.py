"""Commit and read of one large artifact through a bucket, against a plain transfer of the same file."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backprop_core.schema.refs import GGUFRef
from backprop_core.store import sharing
from backprop_core.store.artifacts import Store
from benchmarks.measure import REPEATS, Row, medians
from tests.wire.s3_server import BUCKET, environment

NAME = "commit and read of 1 GB through S3, against a plain transfer"
SIZE = 10**9  # bytes
CHUNK = 10**7


def against_transfer(size: int = SIZE, repeats: int = REPEATS) -> Row:
    """Up and down again, synced to the disk: as an artifact, and with boto3's parallel transfer."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, served() as address:
        os.environ.update(environment(address))
        place = Path(name)
        payload = random_file(place / "payload", size)
        turns = {"store": lambda: through_store(payload, place), "plain": lambda: plain(payload, place, address)}
        rates = medians(turns, repeats=repeats)
    return Row(NAME, rates["store"], rates["plain"], "boto3 up and down", "bytes/s", "more", repeats)


@contextmanager
def served() -> Iterator[str]:
    """The address of an S3 server in a process of its own."""
    command = [sys.executable, "-m", "tests.wire.s3_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin and server.stdout
        yield server.stdout.readline().strip()
        server.stdin.close()


def random_file(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        for start in range(0, size, CHUNK):
            file.write(os.urandom(min(CHUNK, size - start)))
    return path


def through_store(payload: Path, place: Path) -> float:
    """Bytes a second: committed on one machine, read on another."""
    one = opened(place / "one")
    began = time.perf_counter()
    with one.begin("gguf") as directory:
        os.link(payload, directory / "model.gguf")
        ref = one.commit(directory, GGUFRef, record={}, quantization="f16", bytes=payload.stat().st_size)
    two = opened(place / "two")  # after that: the turn before has removed the same artifact
    two.local(ref)
    seconds = time.perf_counter() - began
    one.remove(ref.digest, "measured")
    for store in (one, two):
        store.close()
        shutil.rmtree(store.root)
    return 2 * payload.stat().st_size / seconds


def opened(root: Path) -> Store:
    sharing.begin(root, f"s3://{BUCKET}/bench")
    return Store(root)


def plain(payload: Path, place: Path, address: str) -> float:
    """Bytes a second: sent, and fetched again."""
    import boto3

    client: Any = boto3.client("s3", endpoint_url=address)
    copy = place / "copy"
    began = time.perf_counter()
    client.upload_file(str(payload), BUCKET, "plain")
    client.download_file(BUCKET, "plain", str(copy))
    with copy.open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    client.delete_object(Bucket=BUCKET, Key="plain")
    copy.unlink()
    return 2 * payload.stat().st_size / seconds
