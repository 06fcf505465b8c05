"""What the operating system or SQLite refuses, as a coded error, wherever it comes up."""

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
    """The coded error for what the system says of a disk, a file or a directory; None for all else."""
    for each in chain(error):
        if isinstance(each, BackpropError):
            return each
        if coded := of_one(each):
            return coded
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or getattr(error, "orig", None)  # SQLAlchemy's name for what the database said


def of_one(error: BaseException) -> BackpropError | None:
    """The coded error for this one error alone."""
    if isinstance(error, RuntimeError) and str(error).startswith("Could not determine home directory"):  # pathlib's
        return InputNotFound("a path begins with ~ and a user who is not there", hint="write the path out")
    number, place = number_of(error), place_of(error)
    if number in FULL:
        return DiskFull(f"no space left{place}: {error}", hint="free some space and run it again")
    if number == errno.EIO:
        return StorageFailed(
            f"the disk failed{place}: {error}", hint="see what the system's log says, then run it again"
        )
    if number in UNUSABLE:
        return PlaceUnusable(
            f"{place.strip() or 'a place'} cannot be used: {error.strerror if isinstance(error, OSError) else error}",
            hint="make it readable and writable, or name another place: BACKPROPAGATE_HOME, BACKPROPAGATE_STORE",
        )
    if number == errno.ENOENT and place:
        return InputNotFound(f"there is no{place}", hint="put it back, or name another one")
    return None


def number_of(error: BaseException) -> int | None:
    """The system's number for it."""
    if isinstance(error, OSError):
        return error.errno
    name = str(getattr(error, "sqlite_errorname", ""))
    return next((number for known, number in SQLITE.items() if name.startswith(known)), None)


def place_of(error: BaseException) -> str:
    """` PATH`, if it is known."""
    named = getattr(error, "filename", None)
    return f" {os.fsdecode(named)}" if isinstance(named, str | bytes | os.PathLike) else ""
