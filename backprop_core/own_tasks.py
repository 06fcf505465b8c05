"""Tasks of lm-evaluation-harness that a user wrote. No torch here."""

from pathlib import Path

from backprop_core.errors import ConfigInvalid
from backprop_core.keys import digest_of
from backprop_core.refs import OwnTasks
from backprop_core.store import file_digest


def find(directory: Path) -> OwnTasks:
    """A directory of task files, by name and content. Raises ConfigInvalid if it has none."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    if not any(path.suffix == ".yaml" for path in files):
        raise ConfigInvalid(f"{directory} has no task files", hint="set BACKPROPAGATE_HARNESS_TASKS to their directory")
    digest = digest_of([[path.relative_to(directory).as_posix(), file_digest(path)] for path in files])
    return OwnTasks(digest=digest, path=str(directory.absolute()))
