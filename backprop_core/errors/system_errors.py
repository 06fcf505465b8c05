"""Turns OSError and SQLite errors (disk full, I/O error, no permission, missing file) into coded errors."""

import errno
import os
from collections.abc import Iterator

from backprop_core.errors.root import BackpropError
from backprop_core.errors.runtime_errors import DiskFull, StorageFailed
from backprop_core.errors.user_errors import InputNotFound, PlaceUnusable

FULL = {errno.ENOSPC, errno.EDQUOT}
UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}
UNUSABLE |= {errno.ENAMETOOLONG, errno.ENODEV, errno.ENXIO}
SQLITE = {"SQLITE_FULL": errno.ENOSPC, "SQLITE_IOERR": errno.EIO, "SQLITE_READONLY": errno.EROFS}
SQLITE |= {"SQLITE_CANTOPEN": errno.EACCES, "SQLITE_PERM": errno.EACCES}


def system_error(error: BaseException) -> BackpropError | None:
    """The coded error for an operating system or SQLite error about a disk or file; None for any other error."""
    for each in chain(error):
        if isinstance(each, BackpropError):
            return each
        if coded := of_one(each):
            return coded
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, outermost first."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or getattr(error, "orig", None)  # SQLAlchemy's name for the database's error


def of_one(error: BaseException) -> BackpropError | None:
    """The coded error for this one error alone."""
    if isinstance(error, RuntimeError) and str(error).startswith("Could not determine home directory"):  # pathlib's
        return InputNotFound("a path starts with ~ and an unknown user", hint="use the full path")
    number, place = number_of(error), place_of(error)
    if number in FULL:
        return DiskFull(f"no space left{place}: {error}", hint="free some disk space and run it again")
    if number == errno.EIO:
        return StorageFailed(f"disk I/O error{place}: {error}", hint="check the system log, then run it again")
    if number in UNUSABLE:
        return PlaceUnusable(
            f"cannot use {place.strip() or 'a path'}: {error.strerror if isinstance(error, OSError) else error}",
            hint="make it readable and writable, or choose another path with BACKPROPAGATE_HOME or BACKPROPAGATE_STORE",
        )
    if number == errno.ENOENT and place:
        return InputNotFound(f"not found:{place}", hint="restore it, or choose another path")
    return None


def number_of(error: BaseException) -> int | None:
    """The errno of an OSError or SQLite error."""
    if isinstance(error, OSError):
        return error.errno
    name = str(getattr(error, "sqlite_errorname", ""))
    return next((number for known, number in SQLITE.items() if name.startswith(known)), None)


def place_of(error: BaseException) -> str:
    """` PATH` of the file the error is about, or an empty string."""
    named = getattr(error, "filename", None)
    return f" {os.fsdecode(named)}" if isinstance(named, str | bytes | os.PathLike) else ""
