"""Writes files so that they are on disk when it returns: old content or new, never a part."""

import errno
import os
import shutil
import sys
import uuid
from contextlib import suppress
from pathlib import Path


def fsync(path: Path) -> None:
    """Force a file or a directory to disk; Windows opens no directory, and syncs only what may be written."""
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a directory
            raise
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes) -> None:
    """Write beside, fsync, rename: `path` holds the old content or the new one, and keeps its mode.

    Raises OSError for a device or a directory: a rename would put a file in its place.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("xb") as file:
            with suppress(FileNotFoundError):
                shutil.copymode(path, beside)  # before there is anything to read
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        fsync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def size_of(directory: Path) -> int:
    """Bytes of a directory's files."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
