"""`line export` and `line import`: a line in one file, and the same line in another home."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backprop_core.errors import InputValidationFailed
from backprop_core.lines import line_archive
from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.schema.gate_report import Act
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical
from flows.cli import lines_file, main
from tests import tiny_line

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of a line with two versions and a job file."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("here")
        patch.setenv("BACKPROPAGATE_HOME", str(place / "home"))
        patch.chdir(place)
        tiny_line.write(settings(), versions=2)
        tiny_line.passed(settings().store_path)
        (settings().layout.jobs).mkdir()
        (settings().layout.jobs / "support.yaml").write_text("line: support\nmodel: {name: x}\n")
        assert main.main(["line", "export", "support", "--output", "one.line"]) == 0
        assert main.main(["line", "export", "support", "--output", "two.line"]) == 0
        assert (place / "one.line").read_bytes() == (place / "two.line").read_bytes()
        assert main.main(["line", "export", "support", "--output", "two.line"]) == 1
        yield place / "one.line"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The store of another home."""
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "other"))
    monkeypatch.chdir(tmp_path)
    store = Store(settings().store_path)
    yield store
    store.close()


def test_the_line_is_the_same_elsewhere(exported: Path, elsewhere: Store, capsys: Capture) -> None:
    """The same versions, champion and digests; a name that exists is refused, another name is free."""
    assert main.main(["line", "import", str(exported), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["versions"], made["champion"], made["line"]) == ([1, 2], 2, "support")
    lines = Lines(elsewhere)
    version = lines.version("support", 2)
    elsewhere.verify(version.merged.digest)
    assert lines.champion("support") == 2 and elsewhere.record(version.merged.digest)["line"] == "support"
    assert main.main(["line", "import", str(exported)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main.main(["line", "import", str(exported), "--to", "helpdesk"]) == 0
    job = lines_file.place("helpdesk", settings()).read_text()
    assert "line: helpdesk" in job and lines.version("helpdesk", 2) == version
    again = line_archive.write("support", None, Path("again.line"), elsewhere)
    assert again.head.artifacts == made_of(exported).artifacts


def made_of(file: Path) -> line_archive.LineFile:
    with line_archive.opened(file) as (_, head):
        return head


def rewritten(file: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> bytes:
    """The archive with members changed or left out."""
    out = io.BytesIO()
    with tarfile.open(file) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            taken = old.extractfile(member)
            assert taken
            if changed := change(member.name, taken.read()):
                info = tarfile.TarInfo(changed[0])
                info.size = len(changed[1])
                new.addfile(info, io.BytesIO(changed[1]))
    return out.getvalue()


def flipped(name: str, content: bytes) -> tuple[str, bytes]:
    changed = content[:-1] + bytes([content[-1] ^ 1]) if name.endswith(".safetensors") else content
    return name, changed


def added(file: Path, name: str, content: bytes = b"", *, sparse: int | str = 0) -> bytes:
    """The archive with one more member; with `sparse`, one that says that it has so many bytes, without them."""
    out = io.BytesIO(file.read_bytes())
    with tarfile.open(fileobj=out, mode="a") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        if sparse:
            info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(sparse)}
        archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def an_artifact(file: Path) -> str:
    """The folder of the first artifact in the archive."""
    return f"artifacts/{made_of(file).artifacts[0]}"


def with_headers(file: Path, count: int) -> bytes:
    """The archive with so many extended headers in a row before its end."""
    header, content = tarfile.TarInfo("x"), b"14 comment=xx\n"
    header.type, header.size = tarfile.XHDTYPE, len(content)
    with tarfile.open(file) as archive:
        last = archive.getmembers()[-1]
    end = last.offset_data + -(-last.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    block = header.tobuf(tarfile.USTAR_FORMAT) + content.ljust(tarfile.BLOCKSIZE, b"\0")
    return file.read_bytes()[:end] + block * count


def continuing(number: int) -> Callable[[str, bytes], tuple[str, bytes]]:
    """A change that lets every version continue this one."""
    return lambda name, content: (
        name,
        canonical(json.loads(content) | {"parent": number}).encode() if name.startswith("line/versions/") else content,
    )


BAD: dict[str, Callable[[Path], bytes]] = {
    "no archive": lambda file: b"not an archive",
    "empty": lambda file: b"",
    "cut off": lambda file: file.read_bytes()[: file.stat().st_size // 2],
    "a bit flipped": lambda file: rewritten(file, flipped),
    "an artifact left out": lambda file: rewritten(
        file, lambda name, content: None if name.endswith(".safetensors") else (name, content)
    ),
    "a version left out": lambda file: rewritten(
        file, lambda name, content: None if name.endswith("000002.json") else (name, content)
    ),
    "out of the directory": lambda file: rewritten(
        file, lambda name, content: (name.replace("line/versions", "line/../../versions"), content)
    ),
    "its own champion": lambda file: rewritten(
        file, lambda name, content: ("line/champion", b"1") if name == "job.yaml" else (name, content)
    ),
    "a release that has begun": lambda file: rewritten(
        file, lambda name, content: ("line/transaction.json", b"{}") if name == "job.yaml" else (name, content)
    ),
    "a version that the head does not name": lambda file: rewritten(
        file, lambda name, content: ("line/versions/000003.json", b"{}") if name == "job.yaml" else (name, content)
    ),
    "a member twice": lambda file: added(file, f"{an_artifact(file)}/artifact.json"),
    "a file that is a directory too": lambda file: added(file, f"{an_artifact(file)}/artifact.json/more"),
    "a name that is too long": lambda file: added(file, f"{an_artifact(file)}/{'x' * 300}"),
    "a sparse member of no size": lambda file: added(file, "line/hole", sparse="x"),
    "headers without end": lambda file: with_headers(file, 3000),
    "a version that continues itself": lambda file: rewritten(file, continuing(2)),
    "a newer format": lambda file: rewritten(
        file, lambda name, content: (name, content.replace(b'"format":1', b'"format":2', 1))
    ),
}


@pytest.mark.parametrize("how", BAD)
def test_a_damaged_file_leaves_no_line(exported: Path, elsewhere: Store, tmp_path: Path, how: str) -> None:
    """Whatever is wrong with it: an error that names the file, and no line."""
    file = tmp_path / "bad.line"
    file.write_bytes(BAD[how](exported))
    store = elsewhere
    with pytest.raises(InputValidationFailed, match=r"bad\.line"), line_archive.opened(file) as (archive, head):
        line_archive.Import(file, archive, head, "support", store).carry_out({}, Act(by="Ann", at=datetime.now(UTC)))
    assert Lines(store).names() == [] and not (tmp_path / "versions").exists()


@pytest.mark.parametrize("name", ["{artifact}/hole", "line/votes/" + "e" * 32 + "/ann.json", "job.yaml"])
def test_bytes_that_are_not_in_the_file_are_not_written(
    exported: Path, elsewhere: Store, tmp_path: Path, name: str
) -> None:
    """A sparse member can say that it has any size: it is refused before it fills memory or disk."""
    file = tmp_path / "bad.line"
    name = name.format(artifact=an_artifact(exported))
    file.write_bytes(added(exported, name, sparse=2**20))
    with (
        pytest.raises(InputValidationFailed, match=f"{name} is no file"),
        line_archive.opened(file) as (archive, head),
    ):
        line_archive.Import(file, archive, head, "support", elsewhere).carry_out(
            {}, Act(by="Ann", at=datetime.now(UTC))
        )


def test_a_file_is_no_way_around_the_gate(exported: Path, elsewhere: Store, tmp_path: Path, capsys: Capture) -> None:
    """A champion that its gate rejected is imported only by force, with a reason, and the record says who did it."""
    file = tmp_path / "rejected.line"
    changed = rewritten(
        exported, lambda name, content: (name, content.replace(b'"accepted":true', b'"accepted":false'))
    )
    file.write_bytes(changed)
    assert main.main(["line", "import", str(file)]) != 0
    assert "[STATE_NOT_GATED]" in capsys.readouterr().err and Lines(elsewhere).names() == []
    assert main.main(["line", "import", str(file), "--force"]) == 1
    assert main.main(["line", "import", str(file), "--force", "--reason", "a demo"]) == 0
    act = Lines(elsewhere).act("support", 2)
    assert act and act.forced and act.reason == "a demo"
    assert Lines(elsewhere).champion("support") == 2


def test_without_a_line_or_a_file(elsewhere: Store, capsys: Capture) -> None:
    """Both are the user's to name again."""
    assert main.main(["line", "export", "nothing"]) == 1
    assert main.main(["line", "import", "nothing.line"]) == 1
    assert "nothing.line cannot be read" in capsys.readouterr().err
