"""Snapshots a data source (file, directory or URL): fetches it if remote, and names it by the sha256 of its bytes."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

from backprop_core.data import remote_files, sql_query
from backprop_core.data.decompression import CHUNK
from backprop_core.data.file_format import reading_of
from backprop_core.errors import InputNotFound, InputValidationFailed, NoRows
from backprop_core.schema.field_types import ROWS_FILE, is_address, is_sql
from backprop_core.schema.refs import SourceFile, SourceRef
from backprop_core.store.artifacts import file_digest
from backprop_core.store.cache_keys import digest_of

ON_HUB = "hf://datasets/"  # prefix of a source's path if it is a Hub dataset
HOST_V6 = re.compile(r"//\[[0-9a-fA-F:.]+\]")
SUFFIXES = ".jsonl, .json, .csv, .tsv, .parquet, .arrow, .feather, .txt, each also compressed, and .zip"
PATIENCE = 60  # read timeout of web servers in seconds


def snapshot(path: str, *, scratch: Path, encoding: str | None = None) -> SourceRef:
    """Hash a source; a URL is first downloaded into `scratch`. `encoding` is that of text without a byte order mark.

    A directory, or a URL of an object store that ends in a slash, means the row files in it, identified by their names
    and sha256. Raises InputNotFound; NoRows for a directory without row files; InputValidationFailed if it cannot be
    read; AddressForbidden; ExtraMissing for a protocol whose package is not installed.
    """
    local = fetch(path, scratch) if is_address(path) else Path(os.path.expanduser(path)).absolute()
    try:
        if local.is_dir():
            return listed(str(local), {file.name: file for file in members(str(local))}, path, encoding)
        if not local.exists():
            raise InputNotFound(f"no such file: {path!r}", hint=did_you_mean(local))
        if not local.is_file():
            raise InputValidationFailed(
                f"{path} is not a file", hint="use a file of rows, or a directory of such files"
            )
        return SourceRef(
            digest=file_digest(local), path=str(local), reading=reading_of(local, local.name, said=encoding)
        )
    except OSError as error:
        raise unreadable(path, error) from error


def listed(place: str, paths: Mapping[str, Path], name: str, encoding: str | None = None) -> SourceRef:
    """A source of several files, sorted by name. `name` is its name in errors. Raises NoRows if there are none."""
    if not paths:
        raise NoRows(f"{name} has no row files", hint=f"supported suffixes: {SUFFIXES}")
    files = [
        SourceFile(name=file, digest=file_digest(path), reading=reading_of(path, file, said=encoding))
        for file, path in sorted(paths.items())
    ]
    return SourceRef(digest=digest_of([[file.name, file.digest] for file in files]), path=place, files=files)


def members(path: str) -> list[Path]:
    """The row files in a directory, without hidden ones; empty if `path` is not a directory.

    Name a file that is still being written with another suffix or a leading dot. Raises InputValidationFailed.
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


def in_order(name: str) -> str:
    """A name whose numbers sort as numbers: part-9 comes before part-10."""
    return re.sub(r"\d+", lambda number: number[0].zfill(20), name)


def holds_rows(name: str) -> bool:
    """Whether the name is that of a row file."""
    return not name.startswith(".") and bool(ROWS_FILE.search(name))


def fetch(url: str, scratch: Path) -> Path:
    """Download a URL into `scratch`, as a file whose name keeps its suffixes or as a directory, unless it is there."""
    if is_chain(url) and not is_sql(url):
        raise InputValidationFailed(f"{url} is a chain of URLs", hint="use a single URL, or copy the file")
    suffix = ROWS_FILE.search(urlsplit(url).path) or ROWS_FILE.search(url)
    ending = ".jsonl" if is_sql(url) else suffix[0] if suffix else ""
    target = scratch / (hashlib.sha256(url.encode()).hexdigest()[:16] + ending)
    if not is_prefix(url):
        download(url, target)
        return target
    target.mkdir(exist_ok=True)
    for name in filter(holds_rows, remote_files.members(url)):
        download(url + name, target / name)
    return target


def download(url: str, target: Path) -> None:
    """Download a URL into a file unless it is there already."""
    if target.is_file():
        return
    part = target.with_name(f"{target.name}.part")
    with part.open("wb") as file:
        for chunk in downloaded(url):
            file.write(chunk)
    part.replace(target)


def is_prefix(url: str) -> bool:
    """Whether a URL means the files below it: one that ends in a slash, of an object store or another file system."""
    return url.endswith("/") and not is_web(url) and not is_sql(url)


def downloaded(url: str) -> Iterator[bytes]:
    """The bytes of what is at a URL: a page, a file in a store, or the rows of a query."""
    if is_sql(url):
        return sql_query.lines(url)
    return web(url) if is_web(url) else remote_files.chunks(url)


def is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def is_chain(url: str) -> bool:
    """Whether it is an fsspec chain, in which fetched bytes decide what is opened next; `[::1]` is a host."""
    return "::" in HOST_V6.sub("//host", url)


def web(url: str) -> Iterator[bytes]:
    """Download over HTTP, following redirects. Raises AddressForbidden; InputNotFound for any failure."""
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
        raise InputNotFound(f"cannot get {url}: {error}", hint="check the URL") from error


def did_you_mean(missing: Path) -> str:
    """A hint with similar names in the same directory."""
    beside = [path.name for path in missing.parent.iterdir()] if missing.parent.is_dir() else []
    close = get_close_matches(missing.name, beside, n=3)
    return f"did you mean {' or '.join(close)}?" if close else "check the name and the directory"


def unreadable(name: str, error: Exception) -> InputValidationFailed:
    return InputValidationFailed(f"{name} cannot be read: {error}", hint="check the name and its read permission")
