"""A line in one file, a tar archive: its versions, the artifacts that they use, its votes and promotions, its job file.

The same line gives the same bytes. What was published elsewhere (Ollama, the Hub) and the base model are not in it:
they are named by name and digest. A file from elsewhere is read with suspicion: names of members are checked, every
artifact is verified before it is committed, and the line appears at the end, whole or not at all.
"""

import errno
import hashlib
import io
import re
import shutil
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from backprop_core.data.forgotten_rows import forgotten, names
from backprop_core.data.row_files import ROWS, lines
from backprop_core.errors import (
    ConfigInvalid,
    InputNotFound,
    InputValidationFailed,
    NotGated,
    PlaceUnusable,
    RunActive,
    RunUnknown,
)
from backprop_core.lines import exports
from backprop_core.lines.deletion import has_records
from backprop_core.lines.renaming import first_name
from backprop_core.lines.versions import Lines, LineVersion, Move, why_not_live
from backprop_core.schema.field_types import LineName
from backprop_core.schema.gate_report import Act
from backprop_core.schema.records import Record
from backprop_core.schema.refs import ArtifactRef, Digest, RowsRef, artifacts_in
from backprop_core.store.artifacts import Store, fsync, manifest_of, write_atomic
from backprop_core.store.cache_keys import canonical
from backprop_core.store.layout import MANIFEST, LineLayout
from backprop_core.store.locks import is_acquired

FORMAT: Literal[1] = 1
HEAD, JOB, RECORDS, ARTIFACTS = "line.json", "job.yaml", "records", "artifacts"  # members; the head comes first
MEMBER = re.compile(r"(?:artifacts/([0-9a-f]{64})/|line/)((?:[\w.+@=,-]+/)*[\w.+@=,-]+)", re.ASCII)
RECORD = re.compile(r"(?:versions/[0-9]{6}|moves/[0-9a-f]{32}|votes/[0-9a-f]{32}/[\w-]+)\.json", re.ASCII)
# of a name that is there twice, is also that of a directory, or is too long
NO_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
# what tarfile raises for a sparse member whose map has no numbers, and for thousands of headers of one member
MALFORMED = (ValueError, RecursionError)
LARGEST_RECORD = 64 * 2**20  # bytes of a member that is read into memory
HINT = "write the file again: backprop line export LINE --output FILE"


class LineFile(Record):
    """What is in the file of a line."""

    format: Literal[1] = FORMAT
    line: LineName
    first_name: LineName = Field(description="The name under which it was made; its rows' task, unless they name one.")
    champion: int | None
    versions: list[int]
    artifacts: list[Digest]
    pruned: list[Digest] = Field(description="Artifacts that its versions name, and the store does not have any more.")
    job: bool = Field(description="Whether its job file is in it.")


class Written(NamedTuple):
    """A file that was written or read."""

    head: LineFile
    bytes: int


def write(line: str, job: Path | None, file: Path, store: Store) -> Written:
    """Write a line into a file. Raises RunUnknown, ArtifactDamaged, PlaceUnusable."""
    known = Lines(store)
    numbers = known.versions(line)
    if not numbers:
        raise RunUnknown(f"line {line} has no version", hint="`backprop lines` lists all lines")
    refs = refs_of([known.version(line, number) for number in numbers])
    there = [digest for digest in sorted(refs) if store.layout.artifact(digest).is_dir()]
    head = LineFile(
        line=line,
        first_name=first_name(line, store.layout),
        champion=known.champion(line),
        versions=numbers,
        artifacts=there,
        pruned=sorted(refs.keys() - set(there)),
        job=job is not None,
    )
    beside = file.with_name(f".{file.name}.part")
    try:
        if file.exists() and not file.is_file():
            raise OSError(errno.EINVAL, "it is no regular file")
        with tarfile.open(beside, "w", format=tarfile.PAX_FORMAT) as archive:
            put(archive, HEAD, canonical(head.model_dump()).encode())
            if job:
                put(archive, JOB, job.read_bytes())
            for path in records_of(line, store):
                put(archive, f"line/{path.relative_to(store.layout.line(line).root).as_posix()}", path.read_bytes())
            for digest in there:
                put_artifact(archive, refs[digest], store)
        fsync(beside)
        exports.note(line, file, there, store)
        beside.replace(file)
    except OSError as error:
        raise PlaceUnusable(
            f"{file} cannot be written: {error.strerror}", hint="choose another file with --output"
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return Written(head, file.stat().st_size)


def refs_of(versions: list[LineVersion]) -> dict[str, ArtifactRef]:
    """Every artifact that versions use, by digest."""
    return {ref.digest: ref for version in versions for ref in artifacts_in(version)}


def records_of(line: str, store: Store) -> Iterator[Path]:
    """The records of a line that go along: versions, manual promotions, votes; not what was published."""
    root = store.layout.line(line)
    for folder in (root.versions, root.moves, root.votes):
        yield from sorted(path for path in folder.rglob("*.json") if not path.name.startswith("."))


def put_artifact(archive: tarfile.TarFile, ref: ArtifactRef, store: Store) -> None:
    """Add an artifact and the record of its origin. Raises ArtifactDamaged."""
    directory = store.local(ref)
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            add(
                archive, f"{ARTIFACTS}/{ref.digest}/{path.relative_to(directory).as_posix()}", path.stat().st_size, file
            )


def put(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    add(archive, name, len(content), io.BytesIO(content))


def add(archive: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> None:
    """Add a member that says nothing of the machine: the same content is the same bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    archive.addfile(member, content)


@contextmanager
def opened(file: Path) -> Iterator[tuple[tarfile.TarFile, LineFile]]:
    """The archive and its head. Raises InputNotFound, InputValidationFailed."""
    try:
        stream = file.open("rb")
    except OSError as error:
        raise InputNotFound(
            f"{file} cannot be read: {error.strerror}", hint="name a file that `backprop line export` has written"
        ) from error
    try:
        with stream, archive_in(stream, file) as archive:
            yield archive, head_of(archive, file)
    except (tarfile.TarError, EOFError) as error:
        raise damaged(file, str(error)) from error


def archive_in(stream: IO[bytes], file: Path) -> tarfile.TarFile:
    """The archive, with its first member read. Raises InputValidationFailed, TarError."""
    try:
        return tarfile.open(fileobj=stream, mode="r:")
    except MALFORMED as error:
        raise damaged(file, str(error)) from error


def next_member(archive: tarfile.TarFile, file: Path) -> tarfile.TarInfo | None:
    """The next member; None at the end. Raises InputValidationFailed, TarError."""
    try:
        return archive.next()
    except MALFORMED as error:
        raise damaged(file, str(error)) from error


def damaged(file: Path, what: str) -> InputValidationFailed:
    return InputValidationFailed(f"{file} is not the whole file of a line: {what}", hint=HINT)


def head_of(archive: tarfile.TarFile, file: Path) -> LineFile:
    """What is said to be in an archive. Raises InputValidationFailed."""
    first = next_member(archive, file)
    if first is None or first.name != HEAD:
        raise damaged(file, f"it does not begin with {HEAD}")
    try:
        return LineFile.model_validate_json(content_of(archive, first, file))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise damaged(file, f"{HEAD}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from error


def is_plain(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file with all its bytes in the archive: a sparse one can say that it has any size."""
    return member.isreg() and not member.issparse()


def content_of(archive: tarfile.TarFile, member: tarfile.TarInfo, file: Path) -> bytes:
    """A small member. Raises InputValidationFailed."""
    content = archive.extractfile(member) if is_plain(member) and member.size <= LARGEST_RECORD else None
    if content is None:
        raise damaged(file, f"{member.name} is no file, or too large")
    return content.read()


def check_free(line: str, store: Store) -> None:
    """Raise ConfigInvalid if the store has a line of this name."""
    if has_records(line, store):
        raise ConfigInvalid(f"there is a line {line} already", hint="choose another name with --to")


class Import:
    """Reads the file of a line into a store, under a name that is free."""

    def __init__(self, file: Path, archive: tarfile.TarFile, head: LineFile, to: str, store: Store) -> None:
        self._file, self._archive, self._head, self._to, self._store = file, archive, head, to, store
        self._records: dict[str, bytes] = {}
        self.job: str | None = None

    def carry_out(self, by: dict[str, Any], act: Act) -> None:
        """Commit every artifact, then the line. `by` says in the artifacts' records where they came from.

        A champion that did not pass its gate is only made live by an `act` that forces it. Raises ConfigInvalid,
        RunActive, InputValidationFailed, NotGated.
        """
        lock = self._store.lock(f"line-{self._to}")
        if not is_acquired(lock, timeout=0):
            raise RunActive(f"a run is working on line {self._to}", hint="wait for it, or stop it")
        try:
            check_free(self._to, self._store)
            with self._store.begin("import") as directory:
                self._unpack(directory)
                refs = self._refs()
                self._check_gate(act)
                self._check_rows(directory, refs)
                for digest in self._head.artifacts:
                    self._commit(directory / digest, refs, digest, by)
                self._publish(directory / "line")
        finally:
            lock.release()

    def _unpack(self, directory: Path) -> None:
        while member := next_member(self._archive, self._file):
            if member.name == HEAD:
                continue
            if member.name == JOB:
                self.job = content_of(self._archive, member, self._file).decode(errors="replace")
                continue
            match = MEMBER.fullmatch(member.name)
            if match is None or ".." in match[2].split("/"):
                raise damaged(self._file, f"a member is named {member.name[:100]!r}")
            if match[1] is None:
                if not RECORD.fullmatch(match[2]):
                    raise damaged(self._file, f"{match[2][:100]} is no record of a line")
                self._records[match[2]] = content_of(self._archive, member, self._file)
            elif match[1] in self._head.artifacts:
                self._write(member, directory / match[1] / match[2])

    def _write(self, member: tarfile.TarInfo, path: Path) -> None:
        content = self._archive.extractfile(member) if is_plain(member) else None
        if content is None:
            raise damaged(self._file, f"{member.name} is no file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                shutil.copyfileobj(content, file)
        except OSError as error:
            if error.errno in NO_PLACE:
                raise damaged(self._file, f"{member.name[:100]}: {error.strerror}") from error
            raise

    def _refs(self) -> dict[str, ArtifactRef]:
        """The artifacts that the versions use. Raises InputValidationFailed if one is not in it."""
        try:
            versions = [
                LineVersion.model_validate_json(self._records[f"versions/{number:06d}.json"])
                for number in self._head.versions
            ]
            for name, content in self._records.items():
                if name.startswith("moves/"):
                    Move.model_validate_json(content)
        except (KeyError, ValidationError) as error:
            raise damaged(self._file, f"a version or promotion cannot be read ({type(error).__name__})") from error
        known = {f"versions/{number:06d}.json" for number in self._head.versions}
        if more := {name for name in self._records if name.startswith("versions/")} - known:
            raise damaged(self._file, f"{HEAD} does not name {min(more)}")
        for number, version in zip(self._head.versions, versions, strict=True):
            if version.parent is not None and version.parent >= number:
                raise damaged(self._file, f"version {number} continues version {version.parent}")
        refs = refs_of(versions)
        if lacking := refs.keys() ^ {*self._head.artifacts, *self._head.pruned}:
            raise damaged(self._file, f"artifact {min(lacking)[:12]} is not in it, or not of the line")
        return refs

    def _check_gate(self, act: Act) -> None:
        """Let the champion be live only if it passed its gate, or was forced past it; note an act that forces it.

        Raises NotGated.
        """
        number = self._head.champion
        if number not in self._head.versions:
            return
        version = LineVersion.model_validate_json(self._records[f"versions/{number:06d}.json"])
        moves = [Move.model_validate_json(text) for name, text in self._records.items() if name.startswith("moves/")]
        why_not = why_not_live(number, version, moves)
        if why_not is None:
            return
        if not act.forced:
            raise NotGated(
                f"{self._file}: version {number}, which it makes live, {why_not}",
                hint=f"to make it live anyway: backprop line import {self._file} --force --reason TEXT",
            )
        move = Move(number=number, before=None, run_id=uuid.uuid4().hex, act=act)
        self._records[f"moves/{move.run_id}.json"] = move.model_dump_json().encode()

    def _commit(self, directory: Path, refs: dict[str, ArtifactRef], digest: str, by: dict[str, Any]) -> None:
        """Commit an artifact if its files are what its digest says. Raises InputValidationFailed."""
        ref = type(refs[digest])
        found = canonical(manifest_of(directory, ref.artifact, ref.format)).encode() if directory.is_dir() else b""
        if hashlib.sha256(found).hexdigest() != digest:
            raise damaged(self._file, f"artifact {digest[:12]} is not what was exported")
        (directory / MANIFEST).unlink(missing_ok=True)
        fields = refs[digest].model_dump(exclude={"digest"})
        self._store.commit(directory, ref, record=by, **fields)

    def _check_rows(self, directory: Path, refs: dict[str, ArtifactRef]) -> None:
        """Raise InputValidationFailed if the line has rows that this home has forgotten, in any form."""
        known = forgotten(self._store).keys()
        for ref in refs.values() if known else ():
            path = directory / ref.digest / ROWS
            if isinstance(ref, RowsRef) and path.is_file() and any(names(row) & known for row in lines(path)):
                raise InputValidationFailed(
                    f"{self._file} has rows that were forgotten here",
                    hint="forget them where the line comes from, with `backprop data forget ROW --rebuild`, and export "
                    "it again",
                )

    def _publish(self, directory: Path) -> None:
        """Write the records of the line, and move them to their place at once."""
        made = LineLayout(directory)
        for name, content in self._records.items():
            write_atomic(directory / name, content)
        if self._head.first_name != self._to:
            write_atomic(made.first_name, self._head.first_name)
        if self._head.champion in self._head.versions:
            write_atomic(made.champion, str(self._head.champion))
        self._store.layout.lines.mkdir(exist_ok=True)
        directory.rename(self._store.layout.line(self._to).root)
        fsync(self._store.layout.lines)
