"""Copies of artifacts in MLflow, for a machine without the store: one MLflow run of each line's experiment has them.

artifacts/KIND/DIGEST/…    the files of an artifact, its manifest last: one without a manifest is not complete
artifacts/source/DIGEST/…  files of rows as a run has read them
records/DIGEST/copy.json   kind, size and place of an artifact, and its record
line.json                  the directory of the line in the store

A run's own directory in MLflow has stages/KEY.json, what its stages returned, and, until they are finished,
checkpoints/KEY/STEP/… of its trainings. A copy on the disk of the store is a hard link, which takes no room.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from backprop_core.schema.refs import SourceRef
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import digests_in
from backprop_core.store.layout import LINE_RECORD, MANIFEST
from tasks.tracking.connection import LINE, PAGE, experiment_of, experiments, paged
from tasks.tracking.journal_lines import AnyLine, Checkpointed, Kept, KeptSource, Staged
from tasks.tracking.record import ROLE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

OF_ARTIFACTS = "artifacts"  # role of the run, which is neither a parent nor a child
WHERE = "backprop.artifacts"  # tag of a run: the MLflow run that has copies of its artifacts
COPIES, SOURCE, LINE_FILE, STAGES, CHECKPOINTS = "artifacts", "source", "line.json", "stages", "checkpoints"
ALONE = "rows"  # name of the copy of a source that is one file


class Copy(Record):
    """What MLflow notes of an artifact."""

    format: int = 1
    kind: str
    bytes: int
    uri: str
    copied: bool
    record: dict[str, Any]


class LineCopy(Record):
    """The directory of a line in the store: its files by relative name."""

    format: Literal[1] = 1
    line: str
    files: dict[str, str]


def folder_of(kind: str, digest: str) -> str:
    """The folder of an artifact among the copies."""
    return f"{COPIES}/{kind}/{digest}"


def note_of(digest: str) -> str:
    """What is noted of an artifact, whether it was copied or not."""
    return f"records/{digest}/copy.json"


def checkpoint_folder(key: str) -> str:
    """The folder of a training's checkpoint among the artifacts of its run."""
    return f"{CHECKPOINTS}/{key}"


def repository(client: "MlflowClient", run: "Run") -> "ArtifactRepository":
    """The files of a run."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(run.info.artifact_uri, tracking_uri=client.tracking_uri)


def runs_with_copies(client: "MlflowClient", among: list[str]) -> "list[Run]":
    """The runs of these experiments that have copies."""
    condition = f"tags.`{ROLE}` = '{OF_ARTIFACTS}'"
    found = paged(lambda token: client.search_runs(among, condition, max_results=PAGE, page_token=token))
    return list(found) if among else []


def run_with_copies(client: "MlflowClient", experiment: str) -> "Run":
    """The run of an experiment that has the copies; made if needed."""
    if found := runs_with_copies(client, [experiment]):
        return found[0]
    line = client.get_experiment(experiment).tags[LINE]
    made = client.create_run(experiment, tags={ROLE: OF_ARTIFACTS, LINE: line}, run_name=title(line))
    client.set_terminated(made.info.run_id, "FINISHED")
    return made


def title(line: str) -> str:
    """The name of the run with the copies."""
    return f"{line}: artifacts"


def renamed(client: "MlflowClient", experiment: str, line: str) -> None:
    """Give the run with the copies the new name of its line."""
    for run in runs_with_copies(client, [experiment]):
        client.update_run(run.info.run_id, name=title(line))


def send_copies(
    client: "MlflowClient", settings: Settings, experiment: str, runs: dict[str, str], lines: Sequence[AnyLine]
) -> None:
    """Copy what these lines name; what is gone by now, or there already, is left out. `runs`: run_id -> MLflow's."""
    kept = [line for line in lines if isinstance(line, Kept | KeptSource)]
    if kept and settings.mlflow_artifact_limit:
        run = run_with_copies(client, experiment)
        files = repository(client, run)
        for line in kept:
            copy(files, line, settings.mlflow_artifact_limit)
        for run_id in {runs[line.run] for line in kept}:
            client.set_tag(run_id, WHERE, f"runs:/{run.info.run_id}/artifacts")
    for run_id in dict.fromkeys(line.run for line in lines):
        own = [line for line in lines if line.run == run_id]
        if any(isinstance(line, Staged | Checkpointed) for line in own):
            send_progress(repository(client, client.get_run(runs[run_id])), settings, own)


def copy(files: "ArtifactRepository", line: Kept | KeptSource, limit: int) -> None:
    """Copy an artifact or a source."""
    if isinstance(line, KeptSource):
        copy_source(files, line.source, limit)
    else:
        copy_artifact(files, line.artifact, line.digest, Path(line.path), line.record, limit)


def copy_artifact(
    files: "ArtifactRepository", kind: str, digest: str, directory: Path, record: dict[str, Any], limit: int
) -> None:
    """Copy an artifact and its record; of one that is larger than the limit, note the place only."""
    inside = sizes(directory)
    if not inside or MANIFEST in there(files, folder_of(kind, digest)):
        return
    size = sum(inside.values())
    note = Copy(kind=kind, bytes=size, uri=directory.as_uri(), copied=size <= limit, record=record)
    if note.copied:
        for name in inside:
            if name != MANIFEST:
                put(files, directory / name, folder_of(kind, digest), name)
    write(files, note_of(digest), note.model_dump_json())
    if note.copied:
        put(files, directory / MANIFEST, folder_of(kind, digest), MANIFEST)


def copy_source(files: "ArtifactRepository", source: SourceRef, limit: int) -> None:
    """Copy the files of rows of a source, unless they are too large. They may change later, so they are no links."""
    place, folder = Path(source.path), folder_of(SOURCE, source.digest)
    paths = {file.name: place / file.name for file in source.files} or {ALONE: place}
    wanted = {name: path.stat().st_size for name, path in paths.items() if path.is_file()}
    if len(wanted) < len(paths) or sum(wanted.values()) > limit:
        return
    known = there(files, folder)
    for name, size in wanted.items():
        if known.get(name) != size:
            put(files, paths[name], folder, name, link=False)


def send_progress(files: "ArtifactRepository", settings: Settings, lines: Sequence[AnyLine]) -> None:
    """Write what stages of a run returned, and copy the newest checkpoint of each training that is not finished."""
    if staged := [line for line in lines if isinstance(line, Staged)]:
        results = [line.model_dump(mode="json", include={"key", "record", "result"}) for line in staged]
        write(files, f"{STAGES}/{staged[0].key}.json", json.dumps(results))
    newest = {line.key: line.path for line in lines if isinstance(line, Checkpointed)}
    for key, path in newest.items():
        if path is None:
            remove(files, checkpoint_folder(key))
        else:
            copy_checkpoint(files, checkpoint_folder(key), Path(path), settings.mlflow_artifact_limit)


def copy_checkpoint(files: "ArtifactRepository", folder: str, directory: Path, limit: int) -> None:
    """Copy a checkpoint in place of an earlier one; nothing if a newer one has taken its place on disk by now."""
    inside = sizes(directory)
    if MANIFEST not in inside or sum(inside.values()) > limit:
        return
    place = f"{folder}/{directory.name}"
    with suppress(FileNotFoundError):
        for name in sorted(inside, key=lambda name: name == MANIFEST):
            put(files, directory / name, place, name)
        for earlier in folders(files, folder):
            if earlier != directory.name:
                remove(files, f"{folder}/{earlier}")


def send_line(client: "MlflowClient", settings: Settings, line: str) -> None:
    """Copy a line's directory, and the artifacts that its versions name and that are not copied yet."""
    store = Store(settings.store_path)
    files = repository(client, run_with_copies(client, experiment_of(client, settings, line)))
    root = store.layout.line(line).root
    texts = {name: (root / name).read_text(encoding="utf-8") for name in sizes(root) if is_record(name)}
    if settings.mlflow_artifact_limit:
        for digest in sorted(digests_in("".join(texts.values()))):
            directory = store.layout.artifact(digest)
            if (directory / MANIFEST).is_file():
                kind = json.loads((directory / MANIFEST).read_bytes())["kind"]
                copy_artifact(files, kind, digest, directory, store.record(digest), settings.mlflow_artifact_limit)
    write(files, LINE_FILE, LineCopy(line=line, files=texts).model_dump_json())


def is_record(name: str) -> bool:
    """Whether a file in the directory of a line is complete and belongs to it: not of a release that is going on."""
    return LINE_RECORD.fullmatch(name) is not None


def sizes(directory: Path) -> dict[str, int]:
    """The sizes of the files in a directory, by relative name; empty if it is gone."""
    found: dict[str, int] = {}
    with suppress(FileNotFoundError):  # it is being removed
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                found[path.relative_to(directory).as_posix()] = path.stat().st_size
    return found


def there(files: "ArtifactRepository", folder: str) -> dict[str, int]:
    """The sizes of the files that a folder of MLflow's has, by name."""
    return {Path(one.path).name: one.file_size for one in files.list_artifacts(folder or None) if not one.is_dir}


def folders(files: "ArtifactRepository", folder: str) -> list[str]:
    """The names of the folders in a folder of MLflow's."""
    return [Path(one.path).name for one in files.list_artifacts(folder) if one.is_dir]


def put(files: "ArtifactRepository", path: Path, folder: str, name: str, *, link: bool = True) -> None:
    """Copy a file into a folder of MLflow's under a relative name."""
    target = Path(folder, name)
    if root := local_root(files):
        place = root / target
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(path, place) if link else shutil.copyfile(path, place)
        except FileNotFoundError:
            raise
        except OSError:  # another disk, or one without hard links
            shutil.copyfile(path, place)
    elif target.name == path.name:
        files.log_artifact(str(path), target.parent.as_posix())
    else:
        with tempfile.TemporaryDirectory() as directory:
            under_its_name = shutil.copyfile(path, Path(directory, target.name))
            files.log_artifact(str(under_its_name), target.parent.as_posix())


def local_root(files: "ArtifactRepository") -> Path | None:
    """The directory of a run's files, if it is on this machine."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    return Path(files.artifact_dir) if isinstance(files, LocalArtifactRepository) else None


def write(files: "ArtifactRepository", name: str, content: str | bytes) -> None:
    """Write a small file of MLflow's."""
    with tempfile.TemporaryDirectory() as directory:
        path, folder = Path(directory, Path(name).name), Path(name).parent.as_posix()
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        files.log_artifact(str(path), None if folder == "." else folder)


def remove(files: "ArtifactRepository", folder: str) -> None:
    """Remove a folder of MLflow's, if it is there."""
    if files.list_artifacts(folder):
        files.delete_artifacts(folder)


def is_copy(path: Path, settings: Settings) -> bool:
    """Whether a file in the home is a copy, which may be a hard link to a file of the store: it is never edited."""
    places = settings.layout.mlflow_artifacts
    parts = path.relative_to(places).parts if path.is_relative_to(places) else ()
    return parts[2:3] == ("artifacts",) and parts[3:4] in ((COPIES,), (CHECKPOINTS,))


def remove_artifacts(client: "MlflowClient", settings: Settings, was_removed: Callable[[str], bool]) -> None:
    """Remove the copies of artifacts that the store has removed on purpose."""
    for files in everywhere(client, settings, f"tags.`{ROLE}` = '{OF_ARTIFACTS}'"):
        for kind in folders(files, COPIES):
            for digest in folders(files, f"{COPIES}/{kind}"):
                if kind != SOURCE and was_removed(digest):
                    remove(files, folder_of(kind, digest))
                    remove(files, str(Path(note_of(digest)).parent))


def remove_rows(client: "MlflowClient", settings: Settings) -> None:
    """Remove the copies of all files of rows, and all checkpoints."""
    for files in everywhere(client, settings, f"tags.`{ROLE}` = '{OF_ARTIFACTS}'"):
        remove(files, f"{COPIES}/{SOURCE}")
    for files in everywhere(client, settings, f"tags.`{ROLE}` = 'parent'"):
        remove(files, CHECKPOINTS)


def everywhere(client: "MlflowClient", settings: Settings, condition: str) -> "Iterator[ArtifactRepository]":
    """The files of all our runs that match, also of deleted ones."""
    from mlflow.entities import ViewType

    ours = experiments(client, settings, deleted=True)
    if ours:
        found = paged(lambda token: client.search_runs(ours, condition, ViewType.ALL, PAGE, page_token=token))
        yield from (repository(client, run) for run in found)


def all_copies(client: "MlflowClient", settings: Settings) -> "Iterator[ArtifactRepository]":
    """The files of every run with copies."""
    return (repository(client, run) for run in runs_with_copies(client, experiments(client, settings)))
