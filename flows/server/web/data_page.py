"""Pages of datasets: one that a line has learned, and what a line would read now (`backprop data report`)."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from backprop_core.errors import InputNotFound, ModelLoadFailed, RunActive
from flows.cli import lines_file
from flows.server.web import verbs
from flows.server.web.frame import page, sources_of
from flows.server.web.state import Sources, checked
from tasks.runs.stored_dataset import StoredDataset, stored_dataset

READING: set[str] = set()  # the lines whose rows are being read
GUARD = threading.Lock()


def dataset(request: Request) -> Response:
    """A dataset in the store."""
    known = stored_dataset(request.path_params["digest"], sources_of(request).config)
    return page(request, "dataset.html", data=known, refresh=0)


def line_data(request: Request) -> Response:
    """The rows that the job of a line reads, as they are now. It reads all of them."""
    name = request.path_params["name"]
    return page(request, "line_data.html", line=name, report=report(name, sources_of(request)), refresh=0)


def report(line: str, sources: Sources) -> dict[str, Any]:
    """`backprop data report --line`. Raises RunUnknown, RunActive, InputNotFound, and what the verb raises."""
    known = lines_file.find(checked(line, sources), sources.config)
    if known is None:
        raise InputNotFound(f"line {line} has no job file", hint=f"write one: backprop init {line}")
    data = known.job.datasets[0]
    with alone(line):
        try:
            said = verbs.run("data", "report", "--line", line)
        except (ModelLoadFailed, InputNotFound):  # the base is not on this machine yet
            if data.model_fields_set != {"path"}:
                raise
            said = verbs.run("data", "report", data.path)
    found: dict[str, Any] = said["datasets"][0]
    return found


@contextmanager
def alone(line: str) -> Iterator[None]:
    """Read the rows of a line once at a time: it may take minutes. Raises RunActive."""
    with GUARD:
        if line in READING:
            raise RunActive(f"the rows of line {line} are being read already", hint="load the page again in a minute")
        READING.add(line)
    try:
        yield
    finally:
        READING.discard(line)


def add_routes(api: FastAPI, sources: Sources) -> None:
    """Datasets in the API."""

    @api.get("/data/{digest}")
    def stored(digest: str) -> StoredDataset:
        """A dataset that a line has learned, by the digest of its training rows."""
        return stored_dataset(digest, sources.config)

    @api.get("/lines/{name}/data")
    def now(name: str) -> dict[str, Any]:
        """What the job of a line reads now: the document of `backprop data report`. It reads all rows."""
        return report(name, sources)


ROUTES = [Route("/data/{digest}", dataset), Route("/lines/{name}/data", line_data)]
