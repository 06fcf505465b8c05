"""Keeps the local copy of a store in a bucket within BACKPROPAGATE_STORE_CACHE_GB: what was read longest ago goes."""

import shutil
import time
import uuid
from pathlib import Path

from filelock import FileLock, Timeout

from backprop_core.runtime.settings import settings
from backprop_core.store.disk_files import size_of
from backprop_core.store.layout import StoreLayout
from backprop_core.store.locks import is_held
from backprop_core.store.sharing import Shared

YOUNG = 600.0  # seconds for which an artifact that was read stays, whatever the limit
GB = 10**9
USED, DIGESTS = "used", "digests.txt"  # temporary directory and file that say what a process uses


def keep(layout: StoreLayout, shared: Shared, young: float = YOUNG) -> int:
    """Remove copies of artifacts that the bucket has and no run here uses, until the rest fits; how many."""
    limit = settings().store_cache_gb
    if limit is None or is_held(layout.lock("prune")):  # who has that lock may be reading all artifacts
        return 0
    sizes = {path: size_of(path) for path in layout.artifacts.glob("*")}
    left, gone = sum(sizes.values()), 0
    used = used_here(layout)
    for path in sorted(sizes, key=read_at):
        if left <= limit * GB:
            break
        if path.name not in used and time.time() - read_at(path) > young and shared.has(path.name):
            take_away(path, layout)
            left, gone = left - sizes[path], gone + 1
    return gone


def used_here(layout: StoreLayout) -> set[str]:
    """What runs of this machine use now, and what it computes for runs of others."""
    names = [path.with_suffix(".txt") for path in layout.leases.glob("*.lock") if is_held(path)]
    names += layout.sessions.glob(f"*/{USED}-*/{DIGESTS}")
    return {name for path in names if path.is_file() for name in path.read_text(encoding="utf-8").split()}


def take_away(path: Path, layout: StoreLayout) -> None:
    """Remove an artifact at one moment: a process that has it open keeps it."""
    layout.sessions.mkdir(exist_ok=True)
    aside = layout.session(f"evicted-{uuid.uuid4().hex}")
    aside.mkdir()
    try:
        with FileLock(layout.session_lock(aside.name), timeout=0):
            path.rename(aside / path.name)
            shutil.rmtree(aside, ignore_errors=True)
    except (Timeout, FileNotFoundError):
        shutil.rmtree(aside, ignore_errors=True)


def read_at(directory: Path) -> float:
    """When an artifact was last read here."""
    return directory.stat().st_mtime
