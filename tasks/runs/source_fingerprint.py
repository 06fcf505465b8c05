"""Fingerprints of data sources (ETag, size, time), to detect changes without reading the data. No Prefect."""

import os.path
from collections.abc import Sequence
from pathlib import Path

import httpx

from backprop_core.data import remote_files, sql_query
from backprop_core.data.remote_files import filesystem
from backprop_core.data.sources import PATIENCE, holds_rows, is_prefix, is_web, members, unreadable
from backprop_core.errors import InputNotFound, InputValidationFailed, NoRows
from backprop_core.runtime.url_guard import client
from backprop_core.schema.field_types import is_address, is_sql
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.cache_keys import digest_of

SAYING = ("ETag", "Last-Modified", "Content-Length")  # HTTP headers that change with the content


def fingerprint(dataset: DatasetSpec) -> str:
    """A fingerprint of 64 hex digits that changes when the source changes.

    Made of names, sizes and times of local files, of the Hub's commit, of a web page's headers, of a database file,
    of the rows of a query on a server, or of what fsspec reports. Raises InputNotFound, NoRows for a directory without
    row files, InputValidationFailed if the source reports nothing that shows a change, and what reading it raises.
    """
    return digest_of(state(dataset))


def state(dataset: DatasetSpec) -> Sequence[object]:
    path = dataset.path
    if dataset.on_hub():
        from backprop_core.data import hub_datasets

        return [hub_datasets.state(dataset).commit]
    if is_web(path):
        return page(path)
    if is_sql(path):
        return sql_query.state(path)
    return remote(path) if is_address(path) else local(path)


def local(path: str) -> list[object]:
    """Name, size and time of a file, or of each row file in a directory."""
    place = Path(os.path.expanduser(path))
    files = members(path) if os.path.isdir(place) else [place]
    if not files:
        raise NoRows(f"{path} has no row files yet", hint="add one")
    try:
        known = [(file.name, file.stat()) for file in files]
    except FileNotFoundError as error:
        raise InputNotFound(f"no such file: {path!r}", hint="create it, or correct the line file") from error
    except OSError as error:
        raise unreadable(path, error) from error
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in known]


def page(url: str) -> list[object]:
    """The HTTP headers of a URL, without downloading its content."""
    try:
        with client(follow_redirects=True, timeout=PATIENCE) as http:
            answer = http.head(url, headers={"Accept-Encoding": "identity"}).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InputNotFound(f"cannot get the headers of {url}: {error}", hint="check the URL") from error
    said: list[object] = [answer.headers.get(name) for name in SAYING]
    if not any(said):
        raise InputValidationFailed(
            f"cannot detect changes of {url}", hint=f"its server must send {' or '.join(SAYING[:2])}"
        )
    return said


def remote(url: str) -> list[object]:
    """fsspec's current information about a file, or about each row file below a prefix."""
    if not is_prefix(url):
        with filesystem(url) as (system, path):
            return [system.ukey(path)]
    names = list(filter(holds_rows, remote_files.members(url)))
    if not names:
        raise NoRows(f"{url} has no row files yet", hint="add one")
    with filesystem(url) as (system, path):
        return [[name, system.ukey(f"{path}/{name}")] for name in names]
