"""Another state of a source has another fingerprint, and nothing of it is read for that."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from backprop_core.errors import AddressForbidden, ExtraMissing, InputNotFound, InputValidationFailed, NoRows
from backprop_core.schema.specs import DatasetSpec
from tasks.runs.source_fingerprint import fingerprint
from tests.wire.stand_in import Request, Service


def of(path: str | Path) -> str:
    return fingerprint(DatasetSpec(path=str(path)))


class Pages(Service):
    """Answers HEAD for a page with these headers."""

    headers: dict[str, str]

    def answer(self, request: Request) -> None:
        request.send_response(200)
        for name, value in {**self.headers, "Connection": "close"}.items():
            request.send_header(name, value)
        request.end_headers()


@pytest.fixture
def pages() -> Iterator[Pages]:
    with Pages().running() as server:
        yield server


def test_a_file_by_size_and_time(tmp_path: Path) -> None:
    """A longer file, and one that was written again, is another; where it is not there, there is none."""
    file = tmp_path / "a.jsonl"
    with pytest.raises(InputNotFound):
        of(file)
    file.write_text("1")
    os.utime(file, ns=(1, 1))
    first = of(file)
    assert of(file) == first
    os.utime(file, ns=(1, 2))
    second = of(file)
    file.write_text("12")
    os.utime(file, ns=(1, 2))
    assert len({first, second, of(file)}) == 3


def test_what_the_disk_refuses_has_a_code(tmp_path: Path) -> None:
    """An error of the file system, here of a name that is too long, is none of Python's."""
    with pytest.raises(InputValidationFailed, match="too long"):
        of(tmp_path / ("a" * 300))
    assert not DatasetSpec(path="data/rows.jsonl").on_hub(tmp_path / ("a" * 300))
    assert DatasetSpec(path="owner/name").on_hub(tmp_path / ("a" * 300))


def test_a_directory_by_its_files(tmp_path: Path) -> None:
    """A file more, less or renamed makes it another; what is hidden, unfinished or no file of rows does not."""
    with pytest.raises(NoRows):
        of(tmp_path)
    (tmp_path / "a.jsonl").write_text("1")
    first = of(tmp_path)
    for name in (".b.jsonl", "b.jsonl.part", "notes"):
        (tmp_path / name).write_text("1")
    assert of(tmp_path) == first
    (tmp_path / "b.jsonl.part").rename(tmp_path / "b.jsonl")
    second = of(tmp_path)
    (tmp_path / "b.jsonl").rename(tmp_path / "c.jsonl")
    assert len({first, second, of(tmp_path)}) == 3
    (tmp_path / "c.jsonl").unlink()
    assert of(tmp_path) == first


@pytest.mark.parametrize("name", ["ETag", "Last-Modified", "Content-Length"])
def test_a_page_by_what_its_server_says(pages: Pages, name: str) -> None:
    """Another tag, time or length is another page; it is asked by HEAD alone."""
    seen = []
    for value in ("11", "11", "12"):
        pages.headers = {name: value}
        seen.append(of(f"{pages.url}/rows.jsonl"))
    assert seen[0] == seen[1] != seen[2]
    assert {line.split()[0] for line in pages.requests} == {"HEAD"}


def test_a_page_that_cannot_be_watched(pages: Pages) -> None:
    """A server that says nothing, fails, or is one that is forbidden: each with its code."""
    pages.headers = {}
    with pytest.raises(InputValidationFailed, match="cannot detect changes of"):
        of(f"{pages.url}/a")
    pages.fail("HEAD", "500")
    with pytest.raises(InputNotFound, match="500"):
        of(f"{pages.url}/a")
    with pytest.raises(AddressForbidden):
        of("http://169.254.169.254/a")


def test_other_addresses_by_what_is_known_of_them() -> None:
    """What fsspec knows of a file tells it apart; no file and no protocol are coded errors."""
    with fsspec.open("memory://watched/a.jsonl", "w") as file:
        file.write("1")
    first = of("memory://watched/a.jsonl")
    assert of("memory://watched/a.jsonl") == first
    with fsspec.open("memory://watched/a.jsonl", "w") as file:
        file.write("12")
    assert of("memory://watched/a.jsonl") != first
    with pytest.raises(InputNotFound):
        of("memory://watched/none")
    with pytest.raises((InputValidationFailed, ExtraMissing)):
        of("nonsense://x")
