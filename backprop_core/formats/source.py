"""A source as it was at one moment: its bytes, and the sha256 that names them."""

import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

from backprop_core.errors import ExtraMissing, InputNotFound, InputValidationFailed
from backprop_core.refs import SourceRef
from backprop_core.store import file_digest

SUFFIXES = {".json", ".jsonl", ".ndjson", ".csv", ".txt", ".parquet", ".gz"}
CHUNK = 1 << 20
HOST_V6 = re.compile(r"//\[[0-9a-fA-F:.]+\]")
GIB = 1 << 30
UNPACKED = 100  # times its size, at most: rows shrink to a tenth or a twentieth
PATIENCE = 60  # seconds that a web server may be silent


def snapshot(path: str, *, scratch: Path) -> SourceRef:
    """The source as it is now, named by the sha256 of its bytes. A URL is copied into `scratch` first.

    Raises InputNotFound; InputValidationFailed for a directory or what cannot be read; AddressForbidden; ExtraMissing
    for a protocol whose package is not installed.
    """
    local = fetch(path, scratch) if "://" in path else Path(path).expanduser().absolute()
    try:
        if not local.exists():
            raise InputNotFound(f"no such file: {path!r}", hint=did_you_mean(local))
        if not local.is_file():
            raise InputValidationFailed(f"{path} is not a file", hint="name one file of rows")
        return SourceRef(digest=file_digest(local), path=str(local))
    except OSError as error:
        raise unreadable(path, error) from error


def fetch(url: str, scratch: Path) -> Path:
    """Copy what the URL names into `scratch`. Of its name only the suffixes are kept that say how to read it."""
    if is_chain(url):
        raise InputValidationFailed(f"{url} is a chain of addresses", hint="name one address, or copy the file")
    suffixes = [suffix for suffix in Path(urlsplit(url).path).suffixes if suffix in SUFFIXES]
    target = scratch / (hashlib.sha256(url.encode()).hexdigest()[:16] + "".join(suffixes))
    try:
        copy(url, target)
    except FileNotFoundError as error:
        raise InputNotFound(f"nothing at {url}: {error.__cause__ or error}", hint="check the address") from error
    except ImportError as error:
        raise ExtraMissing(f"{url} cannot be read: {error}", hint="install that package, or copy the file") from error
    return target


def is_chain(url: str) -> bool:
    """Whether it is several addresses, so that fetched bytes choose what is opened next; `[::1]` is a host."""
    return "::" in HOST_V6.sub("//host", url)


def copy(url: str, target: Path) -> None:
    """The bytes at `url` into `target`, a MiB at a time."""
    read = web if url.lower().startswith(("http://", "https://")) else remote
    try:
        with target.open("wb") as file:
            for chunk in read(url):
                file.write(chunk)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError) as error:  # TypeError: the protocol wants options
        raise unreadable(url, error) from error


def web(url: str) -> Iterator[bytes]:
    """What a web server answers, redirects followed. Raises AddressForbidden; FileNotFoundError for any failure."""
    import httpx

    from backprop_core.addresses import client

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


def content(source: SourceRef, name: str) -> bytes:
    """The source's bytes, read once, compared with its digest, gunzipped if they are gzip.

    Raises InputNotFound if it is gone, InputValidationFailed if it has changed or cannot be read.
    """
    try:
        data = Path(source.path).read_bytes()
    except FileNotFoundError as error:
        raise InputNotFound(f"{name} is gone", hint="it was there when the run began; put it back") from error
    except OSError as error:
        raise unreadable(name, error) from error
    if hashlib.sha256(data).hexdigest() != source.digest:
        raise InputValidationFailed(f"{name} has changed since the run began", hint="start a new run on what it is now")
    return gunzipped(data, name) if data.startswith(b"\x1f\x8b") else data


def gunzipped(data: bytes, name: str, *, least: int = GIB) -> bytes:
    """The content of a gzip file; at most UNPACKED times its size, or `least` bytes if that is more."""
    limit = max(UNPACKED * len(data), least)
    try:
        with gzip.open(io.BytesIO(data)) as file:
            unpacked = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputValidationFailed(f"{name} is damaged gzip: {error}", hint="make or copy the file again") from error
    if len(unpacked) > limit:
        hint = "if you trust it, unpack it and name the file"
        raise InputValidationFailed(f"{name} unpacks to more than {UNPACKED} times its size", hint=hint)
    return unpacked
