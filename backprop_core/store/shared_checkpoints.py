"""Copies a training's checkpoints to the bucket of its store while it runs, so that another machine can continue it."""

import json
import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backprop_core.errors import ArtifactDamaged, BackpropError
from backprop_core.store.artifacts import Store
from backprop_core.store.disk_files import size_of
from backprop_core.store.layout import MANIFEST, BucketLayout
from backprop_core.store.sharing import Shared

log = logging.getLogger(__name__)
KEYS = BucketLayout()
BEAT = 0.5  # seconds between two looks for a new checkpoint


@contextmanager
def kept(shared: Shared, key: str) -> Iterator[None]:
    """Begin with the newest checkpoint of any machine, and copy new ones to the bucket while the block runs."""
    try:
        fetch(shared, key)
    except ArtifactDamaged as error:
        log.warning("the training begins without the checkpoint of another machine: %s", error.message)
        drop(shared, key)
    done = threading.Event()
    thread = threading.Thread(target=follow, args=(shared, key, done), daemon=True, name="store-checkpoints")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def follow(shared: Shared, key: str, done: threading.Event) -> None:
    """Copy the newest checkpoint whenever there is a new one; a last time when the training has ended."""
    folder, sent = shared.layout.checkpoints(key), newest(shared, key)
    while True:
        last = done.wait(BEAT)
        steps = sorted(path.name for path in folder.glob("step-*") if path.suffix != ".tmp")
        if steps and steps[-1] > sent:
            try:
                send(shared, key, folder / steps[-1])
                sent = steps[-1]
            except FileNotFoundError:  # the training has a newer one, and has removed this one
                pass
            except BackpropError as error:
                log.warning("a checkpoint was not copied to the store, the next one will be: %s", error.message)
        if last:
            return


def send(shared: Shared, key: str, directory: Path) -> None:
    """Copy a checkpoint, its manifest last, then delete older ones."""
    prefix = f"{KEYS.checkpoints(key)}/{directory.name}"
    text = (directory / MANIFEST).read_bytes()
    for name, _, _ in json.loads(text)["files"]:
        if not (directory / name).is_file():
            raise FileNotFoundError(name)
        shared.objects.send(f"{prefix}/{name}", directory / name)
    shared.objects.write(f"{prefix}/{MANIFEST}", text)
    there = [one.key for one in shared.objects.list(KEYS.checkpoints(key))]
    older = [name for name in there if name.partition("/")[0] < directory.name]
    shared.objects.delete([f"{KEYS.checkpoints(key)}/{name}" for name in older])


def newest(shared: Shared, key: str) -> str:
    """The newest whole checkpoint in the bucket; empty if there is none."""
    there = [one.key.partition("/") for one in shared.objects.list(KEYS.checkpoints(key))]
    return max((step for step, _, name in there if name == MANIFEST), default="")


def fetch(shared: Shared, key: str) -> None:
    """Copy the newest checkpoint of the bucket here, unless there is a newer one here."""
    step, folder = newest(shared, key), shared.layout.checkpoints(key)
    if not step or any(path.name >= step for path in folder.glob("step-*") if path.suffix != ".tmp"):
        return
    prefix, beside = f"{KEYS.checkpoints(key)}/{step}", folder / f"{step}.tmp"
    found = shared.objects.read(f"{prefix}/{MANIFEST}")
    if found is None:
        return
    shutil.rmtree(beside, ignore_errors=True)
    try:
        for name, size, sha256 in json.loads(found.content)["files"]:
            shared.objects.fetch(f"{prefix}/{name}", beside / name, size, sha256)
        (beside / MANIFEST).write_bytes(found.content)
        beside.rename(folder / step)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    log.info("continuing from a checkpoint of another machine: %s", step)


def drop(shared: Shared, key: str) -> None:
    """Delete the checkpoints of a training that has ended."""
    prefix = KEYS.checkpoints(key)
    names = sorted((one.key for one in shared.objects.list(prefix)), key=lambda name: not name.endswith(MANIFEST))
    shared.objects.delete([f"{prefix}/{name}" for name in names])


def sizes(store: Store) -> dict[str, int]:
    """The trainings that have checkpoints, here or in the bucket, with their bytes."""
    found = dict[str, int]()
    for one in store.shared.objects.list(KEYS.CHECKPOINTS) if store.shared else []:
        key = one.key.partition("/")[0]
        found[key] = found.get(key, 0) + one.size
    return found | {path.name: size_of(path) for path in store.layout.trainings.glob("*")}


def remove(store: Store, key: str) -> None:
    """Delete the checkpoints of a training, here and in the bucket. Raises LeaseLost if this process lost the store."""
    store.confirm("prune")
    shutil.rmtree(store.layout.checkpoints(key), ignore_errors=True)
    if store.shared:
        drop(store.shared, key)
