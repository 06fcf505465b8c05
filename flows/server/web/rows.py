"""Adds rows from a browser to the data of a line: `backprop data put`, in a process of its own."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import Field
from starlette.concurrency import run_in_threadpool

from backprop_core.errors import BackpropError, ConfigInvalid, InputTooLarge
from backprop_core.errors.root import rebuild
from backprop_core.schema.field_types import line_name
from backprop_core.schema.records import Record
from flows.cli import lines_file
from flows.server.web import verbs
from flows.server.web.line_runs import deployment_of
from flows.server.web.state import Sources, checked
from tasks.runs.line_renaming import directory_of_rows

LARGEST = 512 * 2**20  # bytes of a file
LONGEST_NAME = 120  # characters


class Added(Record):
    """Rows that were added."""

    file: str = Field(description="Its name in the line's directory of data.")
    rows: int = Field(description="Rows that can be read.")
    malformed: int = Field(description="Rows that cannot, at most the allowed share.")
    already_there: bool = Field(description="Whether the same file was there before.")


def directory(line: str, data: str | None, sources: Sources) -> Path | None:
    """Where `data put` puts rows of a line, if its job reads them from there."""
    wanted = directory_of_rows(line, sources.config)
    return wanted if data and Path(data).expanduser().resolve() == wanted.resolve() else None


async def add(line: str, filename: str, body: AsyncIterator[bytes], sources: Sources) -> Added:
    """Check a file of rows and put it beside the others of a line, whole or not at all.

    Raises RunUnknown, InputTooLarge, ConfigInvalid if the job reads from elsewhere, and what `data put` raises.
    """
    known = await run_in_threadpool(deployment_of, checked(line, sources), sources.prefect)
    place = directory_of_rows(line, sources.config)
    if known is None or directory(line, known.data, sources) is None:
        raise ConfigInvalid(
            f"the job of line {line} does not read {place}", hint=f"set datasets: [{{path: {place}}}] in its job file"
        )
    return await receive(line, filename, body, sources)


async def begin(line: str, filename: str, body: AsyncIterator[bytes], sources: Sources) -> Added:
    """The same for a line that is to be made. Raises ConfigInvalid if it has a job file already."""
    if lines_file.place(line_name(line), sources.config).is_file():
        raise ConfigInvalid(f"there is a line {line} already", hint="add the rows on its page, or use another name")
    return await receive(line, filename, body, sources)


async def receive(line: str, filename: str, body: AsyncIterator[bytes], sources: Sources) -> Added:
    """Write what comes to a file, and put that. Raises InputTooLarge and what `data put` raises."""
    with TemporaryDirectory(prefix="backprop-rows-") as scratch:
        path = Path(scratch) / cleaned(filename)
        await write(path, body)
        return await run_in_threadpool(put, line, path, sources)


async def write(path: Path, body: AsyncIterator[bytes]) -> None:
    """Write what comes to a file. Raises InputTooLarge as soon as it is too much."""
    size = 0
    with path.open("xb") as file:
        async for part in body:
            size += len(part)
            check_size(size)
            file.write(part)


def check_size(size: int) -> None:
    """Raise InputTooLarge for more bytes than a page takes."""
    if size > LARGEST:
        raise InputTooLarge(f"a file of rows may have {LARGEST // 2**20} MiB here", hint="use `backprop data put FILE`")


def cleaned(filename: str) -> str:
    """A file's name without directories and special characters."""
    name = filename.replace("\\", "/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[-LONGEST_NAME:].strip("-.") or "rows"


def put(line: str, path: Path, sources: Sources) -> Added:
    """Run the verb. Raises its error."""
    of_line = ("--line", line) if lines_file.place(line, sources.config).is_file() else ()
    try:
        said = verbs.run("data", "put", str(path), *of_line, "--to", line)
    except BackpropError as error:
        text = {part: getattr(error, part).replace(f"{path.parent}/", "") for part in ("message", "hint")}
        raise rebuild(error.code, text["message"], hint=text["hint"]) from error
    return Added(file=Path(said["path"]).name, **{name: said[name] for name in ("rows", "malformed", "already_there")})
