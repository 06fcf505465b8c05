"""A source as it was at one moment: its bytes, and the sha256 that names them."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

from backprop_core.data.decompression import CHUNK, unpacked
from backprop_core.data.file_format import reading_of
from backprop_core.errors import ExtraMissing, InputNotFound, InputValidationFailed, NoRows
from backprop_core.schema.field_types import ROWS_FILE, is_address
from backprop_core.schema.refs import SourceFile, SourceRef
from backprop_core.store.artifacts import file_digest
from backprop_core.store.cache_keys import digest_of

ON_HUB = "hf://datasets/"  # how the path of a source begins that is a dataset of the Hub
HOST_V6 = re.compile(r"//\[[0-9a-fA-F:.]+\]")
PATIENCE = 60  # seconds that a web server may be silent


def snapshot(path: str, *, scratch: Path) -> SourceRef:
    """The source as it is now, named by the sha256 of its bytes. A URL is copied into `scratch` first.

    A directory is the files of rows in it, named by the list of their names and sha256. Raises InputNotFound; NoRows
    for a directory without such files; InputValidationFailed for what cannot be read; AddressForbidden; ExtraMissing
    for a protocol whose package is not installed.
    """
    local = fetch(path, scratch) if is_address(path) else Path(os.path.expanduser(path)).absolute()
    try:
        if local.is_dir():
            return listed(str(local), {file.name: file for file in members(path)}, path)
        if not local.exists():
            raise InputNotFound(f"no such file: {path!r}", hint=did_you_mean(local))
        if not local.is_file():
            raise InputValidationFailed(f"{path} is not a file", hint="name a file of rows, or a directory of them")
        return SourceRef(digest=file_digest(local), path=str(local), reading=reading_of(local, local.name))
    except OSError as error:
        raise unreadable(path, error) from error


def listed(place: str, paths: Mapping[str, Path], name: str) -> SourceRef:
    """A source of several files, in the order of their names; errors call it `name`. Raises NoRows if there is none."""
    if not paths:
        raise NoRows(
            f"{name} has no file of rows", hint="names of such files end in .jsonl, .json, .csv, .tsv, .parquet, .txt"
        )
    files = [
        SourceFile(name=file, digest=file_digest(path), reading=reading_of(path, file))
        for file, path in sorted(paths.items())
    ]
    return SourceRef(digest=digest_of([[file.name, file.digest] for file in files]), path=place, files=files)


def members(path: str) -> list[Path]:
    """The files of rows in a directory, hidden ones left out; of what is no directory none.

    A file that is still being written has another ending, or a dot before its name. Raises InputValidationFailed.
    """
    directory = os.path.expanduser(path)
    if not os.path.isdir(directory):
        return []
    try:
        with os.scandir(directory) as entries:
            return sorted(
                Path(entry.path).absolute() for entry in entries if holds_rows(entry.name) and entry.is_file()
            )
    except OSError as error:
        raise unreadable(path, error) from error


def holds_rows(name: str) -> bool:
    """Whether a file of this name is one of rows."""
    return not name.startswith(".") and bool(ROWS_FILE.search(name))


def fetch(url: str, scratch: Path) -> Path:
    """What the URL names, copied into `scratch` unless it is there. Of its name only the suffixes are kept that say how
    to read it.
    """
    if is_chain(url):
        raise InputValidationFailed(f"{url} is a chain of addresses", hint="name one address, or copy the file")
    suffix = ROWS_FILE.search(urlsplit(url).path) or ROWS_FILE.search(url)
    target = scratch / (hashlib.sha256(url.encode()).hexdigest()[:16] + (suffix[0] if suffix else ""))
    if not target.is_file():
        part = target.with_name(f"{target.name}.part")
        with coded(url), part.open("wb") as file:
            for chunk in web(url) if is_web(url) else remote(url):
                file.write(chunk)
        part.replace(target)
    return target


@contextmanager
def coded(url: str) -> Iterator[None]:
    """Whatever reading an address raises, with its code."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputNotFound(f"nothing at {url}: {error.__cause__ or error}", hint="check the address") from error
    except ImportError as error:
        raise ExtraMissing(f"{url} cannot be read: {error}", hint="install that package, or copy the file") from error
    except (OSError, ValueError, TypeError) as error:  # TypeError: the protocol wants options
        raise unreadable(url, error) from error


def is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def is_chain(url: str) -> bool:
    """Whether it is several addresses, so that fetched bytes choose what is opened next; `[::1]` is a host."""
    return "::" in HOST_V6.sub("//host", url)


def web(url: str) -> Iterator[bytes]:
    """What a web server answers, redirects followed. Raises AddressForbidden; FileNotFoundError for any failure."""
    import httpx

    from backprop_core.runtime.url_guard import client

    try:
        with (
            client(follow_redirects=True, timeout=PATIENCE) as http,
            http.stream("GET", url, headers={"Accept-Encoding": "identity"}) as answer,
        ):
            answer.raise_for_status()
            yield from answer.iter_bytes(CHUNK)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FileNotFoundError(url) from error


def remote(url: str) -> Iterator[bytes]:
    """What fsspec finds there."""
    import fsspec

    with fsspec.open(url, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def did_you_mean(missing: Path) -> str:
    """A hint with the names beside it that come close."""
    beside = [path.name for path in missing.parent.iterdir()] if missing.parent.is_dir() else []
    close = get_close_matches(missing.name, beside, n=3)
    return f"did you mean {' or '.join(close)}?" if close else "check the name and the directory"


def unreadable(name: str, error: Exception) -> InputValidationFailed:
    return InputValidationFailed(f"{name} cannot be read: {error}", hint="check the name and who may read it")


def content(path: Path, digest: str, name: str) -> bytes:
    """A file's bytes, read once, compared with its digest, unpacked if they are compressed.

    Raises InputNotFound if it is gone, InputValidationFailed if it has changed or cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        hint = "start it again" if is_address(name) else "it was there when the run began; put it back"
        raise InputNotFound(f"{name} is gone", hint=hint) from error
    except OSError as error:
        raise unreadable(name, error) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise InputValidationFailed(f"{name} has changed since the run began", hint="start a new run on what it is now")
    return unpacked(data, name)
