"""Restricts the paths of deployed runs: files in the allowed directories, and remote URLs.

Otherwise anyone who can fill in a deployment's form could read or overwrite any file on the worker's machine. A run
started locally, from the command line or from Python, has the user's own permissions and is not restricted.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from backprop_core.data.sources import is_chain, members
from backprop_core.data.sql_query import is_sqlite, query_of
from backprop_core.errors import OutputForbidden, PathForbidden
from backprop_core.runtime.settings import settings
from backprop_core.schema.field_types import is_address, is_sql
from backprop_core.schema.specs import DatasetSpec, ModelSpec, RunSpec

REMOTE = {"http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf"}  # protocols that read no local files
HINT = "put it there, or name its directory in BACKPROPAGATE_ALLOWED_PATHS of the worker"


def is_deployed() -> bool:
    """Whether this flow run was started by a deployment."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)


def admitted(spec: RunSpec) -> RunSpec:
    """The spec, if this run may read all of its paths. Raises PathForbidden."""
    refuse(inputs(spec))
    return spec


def admit(datasets: Iterable[DatasetSpec]) -> None:
    """Raise PathForbidden unless this run may read the datasets."""
    refuse(files(datasets))


def admit_model(base: ModelSpec) -> None:
    """Raise PathForbidden unless this run may read the base model."""
    refuse(model(base.name))


def refuse(paths: Iterable[str]) -> None:
    """Raise PathForbidden if this is a deployed run and may not read one of the paths."""
    if is_deployed() and (outside := [path for path in paths if not may_read(path)]):
        raise PathForbidden(f"{outside[0]} is outside the allowed directories", hint=HINT)


def forbidden(spec: RunSpec, roots: Sequence[Path] | None = None) -> list[str]:
    """The paths of a spec that are outside these directories, or outside those of the settings."""
    return [path for path in inputs(spec) if not may_read(path, roots)]


def admitted_output(path: str | None) -> Path | None:
    """A directory to write to, if this run may. Raises OutputForbidden."""
    if path and is_deployed() and not is_below_root(path):
        raise OutputForbidden(f"{path} is outside the allowed directories", hint=HINT)
    return Path(path) if path else None


def inputs(spec: RunSpec) -> Iterator[str]:
    """All paths that a spec reads."""
    yield from model(spec.model.name)
    yield from files([*spec.datasets, *spec.evaluation.watch])


def model(name: str) -> Iterator[str]:
    """The paths that a base model's name reads: none unless it is, or looks like, a directory."""
    return directory(name) if name.startswith((".", "/", "~")) or Path(name).is_dir() else iter(())


def directory(path: str) -> Iterator[str]:
    """A directory, and each of its files, which may be a symlink."""
    yield path
    yield from sorted(str(file) for file in Path(os.path.expanduser(path)).glob("*") if file.is_file())


def files(datasets: Iterable[DatasetSpec]) -> Iterator[str]:
    """The paths and URLs that datasets read; for a directory also its files, which may be symlinks."""
    for dataset in datasets:
        for path in filter(None, (None if dataset.on_hub() else dataset.path, dataset.heldout)):
            yield path
            yield from map(str, members(path))


def may_read(path: str, roots: Sequence[Path] | None = None) -> bool:
    """Whether a path is a remote URL, a query on a server, or in an allowed directory with symlinks resolved."""
    if is_sql(path):
        return not is_sqlite(path) or is_below_root(str(query_of(path).file), roots)
    if is_address(path):
        return urlsplit(path).scheme in REMOTE and not is_chain(path)
    return is_below_root(path, roots)


def is_below_root(path: str, roots: Sequence[Path] | None = None) -> bool:
    if "\0" in path:
        return False
    real = Path(os.path.realpath(os.path.expanduser(path)))
    return any(real.is_relative_to(root) for root in roots or settings().allowed_roots)
