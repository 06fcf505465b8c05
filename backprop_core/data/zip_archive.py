"""Checks ZIP archives: no encryption, no member outside the archive, none that is there twice."""

import lzma
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO

from backprop_core.data.sources import SUFFIXES, holds_rows
from backprop_core.errors import InputValidationFailed, NoRows

AGAIN = "create or copy the archive again"
DAMAGED = (
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError),
    *(struct.error, zlib.error, lzma.LZMAError),
)


@contextmanager
def opened(file: BinaryIO, name: str) -> Iterator[zipfile.ZipFile]:
    """Open an archive. Raises InputValidationFailed if it is damaged."""
    with undamaged(name):
        archive = zipfile.ZipFile(file)
    with archive:
        yield archive


def members(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """The row files in an archive, sorted by name, without hidden ones.

    Raises InputValidationFailed for an encrypted member, an archive in it, two members of one name, or a name that
    leads outside; NoRows if there are no row files.
    """
    every = [member for member in archive.infolist() if not member.is_dir()]
    for member in every:
        refuse(member, name)
    if twice := [file for file, count in Counter(member.filename for member in every).items() if count > 1]:
        raise InputValidationFailed(f"{name} has two members named {twice[0]!r}", hint=AGAIN)
    chosen = [member for member in every if is_visible(member.filename) and holds_rows(member.filename)]
    if not chosen:
        raise NoRows(f"{name} has no row files", hint=f"supported suffixes: {SUFFIXES}")
    return sorted(chosen, key=lambda member: member.filename)


def is_visible(member: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(member).parts)


def refuse(member: zipfile.ZipInfo, name: str) -> None:
    """Raise InputValidationFailed for a member that must not be read."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        what, hint = "is a path that leads outside the archive", "create the archive without such names"
    elif member.flag_bits & 1:
        what, hint = "is encrypted", "unpack it with its password, and use the files"
    elif member.filename.lower().endswith(".zip"):
        what, hint = "is an archive in the archive", "unpack one of them"
    else:
        return
    raise InputValidationFailed(f"{name}: member {member.filename!r} {what}", hint=hint)


@contextmanager
def undamaged(name: str) -> Iterator[None]:
    """Turn errors of the zipfile module into InputValidationFailed."""
    try:
        yield
    except DAMAGED as error:
        raise InputValidationFailed(f"{name} is a damaged ZIP archive: {error}", hint=AGAIN) from error
