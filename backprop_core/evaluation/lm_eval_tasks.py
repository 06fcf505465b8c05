"""Finds and hashes a directory of custom lm-evaluation-harness tasks. No torch."""

from pathlib import Path

from backprop_core.errors import ConfigInvalid
from backprop_core.schema.refs import OwnTasks
from backprop_core.store.artifacts import file_digest
from backprop_core.store.cache_keys import digest_of


def find(directory: Path) -> OwnTasks:
    """Hash a directory of task files and their data. Raises ConfigInvalid if it has no task files.

    Ignores hidden files and `__pycache__`.
    """
    names = {path: path.relative_to(directory) for path in sorted(directory.rglob("*")) if path.is_file()}
    files = [path for path, name in names.items() if not any(map(is_left_out, name.parts))]
    if not any(path.suffix == ".yaml" for path in files):
        raise ConfigInvalid(f"{directory} has no task files", hint="set BACKPROPAGATE_HARNESS_TASKS to their directory")
    digest = digest_of([[names[path].as_posix(), file_digest(path)] for path in files])
    return OwnTasks(digest=digest, path=str(directory.absolute()))


def is_left_out(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"
