"""Records of the store that cannot be read are a coded error, which names whose they are."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from backprop_core.errors import ArtifactDamaged

UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError)  # what a damaged record raises


@contextmanager
def readable(of: str, folders: str) -> Iterator[None]:
    """Raise ArtifactDamaged if a record of a line or a run, in these folders, is missing or cannot be read."""
    try:
        yield
    except UNREADABLE as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, OSError):
            said = f"{Path(error.filename or '').name}: {error.strerror}"
        raise ArtifactDamaged(
            f"a record of {of} cannot be read: {said}", hint=f"put {folders} of the store back from a backup"
        ) from error


def of_line(name: str) -> AbstractContextManager[None]:
    """Raise ArtifactDamaged if a record of a line is missing or cannot be read."""
    return readable(f"line {name}", f"lines/{name} and runs")
