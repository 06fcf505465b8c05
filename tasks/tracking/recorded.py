"""Reads from MLflow what a store lacks: artifacts, runs that another machine began, and lines."""

import json
import logging
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import JsonValue, TypeAdapter, ValidationError

from backprop_core.errors import ArtifactDamaged, ArtifactMissing, BackpropError
from backprop_core.runtime.settings import Settings
from backprop_core.schema.field_types import NAME
from backprop_core.schema.records import Record
from backprop_core.schema.refs import Digest, RunId, SourceRef
from backprop_core.store.artifacts import Store, file_digest, write_atomic
from backprop_core.store.layout import MANIFEST
from tasks.tracking.artifact_copies import (
    ALONE,
    CHECKPOINTS,
    LINE_FILE,
    SOURCE,
    STAGES,
    Copy,
    LineCopy,
    all_copies,
    checkpoint_folder,
    folder_of,
    folders,
    note_of,
    repository,
    runs_with_copies,
    there,
)
from tasks.tracking.connection import answering, connect
from tasks.tracking.history import History, is_empty
from tasks.tracking.journal import is_written
from tasks.tracking.journal_lines import Measured, Started
from tasks.tracking.old_names import own_model
from tasks.tracking.record import ROOT, RUN_ID
from tasks.tracking.registry import MERGED, model_versions
from tasks.tracking.sender import Sent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

PATIENCE = 60.0  # seconds until MLflow is asked again after it did not answer
RUN: TypeAdapter[str] = TypeAdapter(RunId)
log = logging.getLogger(__name__)


class RecordedStage(Record):
    """A stage that a run has finished: its cache record, and what it returned."""

    key: Digest
    record: JsonValue
    result: JsonValue


class RecordedRun:
    """A run as MLflow has it."""

    def __init__(self, history: History, run: "Run") -> None:
        self._history, self._run = history, run
        self.run_id: str = RUN.validate_python(run.data.tags[RUN_ID])  # it becomes the name of a directory

    @cached_property
    def _files(self) -> "ArtifactRepository":
        return repository(self._history.client, self._run)

    def document(self, name: str) -> Any:
        """A JSON document of the run; None if it has none of this name."""
        with answering(self._history.settings):
            return json_in(self._files, name)

    @property
    def has_ended(self) -> bool:
        """Whether it is over, as far as MLflow knows."""
        return self._history.state(self._run)[0] in ("finished", "unchanged", "rejected")

    def stages(self) -> Iterator[RecordedStage]:
        """What its stages returned."""
        with answering(self._history.settings):
            for name in sorted(there(self._files, STAGES)):
                for stage in json_in(self._files, f"{STAGES}/{name}") or []:
                    yield RecordedStage.model_validate(stage)

    def checkpoints(self, scratch: Path) -> Iterator[tuple[str, Path]]:
        """The newest checkpoint of each training that it has not finished: key and directory, which is in `scratch`."""
        with answering(self._history.settings):
            for key in filter(is_digest, folders(self._files, CHECKPOINTS)):
                for step in folders(self._files, checkpoint_folder(key)):
                    place = f"{checkpoint_folder(key)}/{step}"
                    yield key, Path(self._files.download_artifacts(place, str(scratch)))

    def source(self, source: SourceRef, target: Path, scratch: Path) -> bool:
        """Write the files of a source to `target`, by way of `scratch` on the same disk; False if MLflow has no copy.

        Raises ArtifactDamaged.
        """
        settings, folder = self._history.settings, folder_of(SOURCE, source.digest)
        with answering(settings):
            having = (files for files in all_copies(self._history.client, settings) if there(files, folder))
            files = next(having, None)
            copied = files and Path(files.download_artifacts(folder, str(scratch)))
        if copied:
            check_and_move(copied, source, target)
        return bool(copied)

    def restore_journal(self) -> None:
        """Write a journal that goes on from what MLflow has: metrics that it has are not sent again."""
        settings, journals = self._history.settings, self._history.settings.layout.journal
        paths = [journals.lines(self.run_id), journals.sent.lines(self.run_id)]
        if any(path.is_file() for path in paths) or is_written(journals, self.run_id):
            return
        with answering(settings):
            family = list(self._history.runs(f"tags.`{ROOT}` = '{self.run_id}'", 10_000))
            family.sort(key=lambda run: run.data.tags[RUN_ID] != self.run_id)
            lines = [line for run in family for line in lines_of(self._history.client, run)]
        text = "".join(line.model_dump_json() + "\n" for line in lines)
        sent = Sent(
            uri=self._history.address,
            offset=len(text.encode()),
            experiment=str(self._run.info.experiment_id),
            runs={run.data.tags[RUN_ID]: run.info.run_id for run in family},
        )
        write_atomic(journals.sent_note(self.run_id), sent.model_dump_json())
        write_atomic(journals.lines(self.run_id), text)


def is_digest(text: str) -> bool:
    """Whether a text is a digest, and so a safe name."""
    return bool(re.fullmatch("[0-9a-f]{64}", text))


def lines_of(client: "MlflowClient", run: "Run") -> Iterator[Started | Measured]:
    """The start of a run, and its metrics at their last step."""
    tags, run_id = run.data.tags, run.data.tags[RUN_ID]
    parent = tags[ROOT] if tags[ROOT] != run_id else None
    begun, name = run.info.start_time, run.info.run_name or ""
    yield Started(time=begun, run=run_id, line=tags["backprop.line"], name=name, parent=parent, params={}, tags={})
    last = [max(client.get_metric_history(run.info.run_id, key), key=lambda one: one.step) for key in run.data.metrics]
    for one in sorted(last, key=lambda one: one.timestamp):
        yield Measured(time=one.timestamp, run=run_id, step=one.step, values={one.key: one.value})


def recorded_run(settings: Settings, prefix: str) -> RecordedRun:
    """The run in MLflow whose run_id starts so. Raises RunUnknown, RefAmbiguous, MLflowUnreachable."""
    history = History(settings)
    return RecordedRun(history, history.find(prefix))


class RecordedLine(NamedTuple):
    """A line as MLflow has it.

    `files` has its directory by relative name; `registered` the run_id and the merged adapter of each version that the
    registered model has.
    """

    files: dict[str, str]
    registered: dict[int, tuple[str, str]]


def recorded_line(settings: Settings, line: str) -> RecordedLine | None:
    """A line as MLflow has it; None if it has no such line. Raises ArtifactDamaged."""
    if is_empty(settings) or not re.fullmatch(NAME, line):
        return None
    client, name = connect(settings), f"{settings.namespace}.{line}"
    with answering(settings):
        if own_model(client, settings, name) is None:
            return None
        known = client.get_experiment_by_name(name)
        for run in runs_with_copies(client, [known.experiment_id] if known else []):
            if found := json_in(repository(client, run), LINE_FILE):
                tags = {number: one.tags for number, one in model_versions(client, name).items()}
                both = {number: each for number, each in tags.items() if RUN_ID in each and MERGED in each}
                registered = {number: (each[RUN_ID], each[MERGED]) for number, each in both.items()}
                return RecordedLine(files_in(found, line), registered)
    return None


def files_in(copy: Any, line: str) -> dict[str, str]:
    """The files of a copy of a line's directory. Raises ArtifactDamaged."""
    try:
        return LineCopy.model_validate(copy).files
    except ValidationError as error:
        raise ArtifactDamaged(
            f"MLflow's {LINE_FILE} of line {line} cannot be read: {error.errors()[0]['msg']}",
            hint=f"nothing was written: restore {LINE_FILE} there from a backup, or start another line",
        ) from error


class Fetcher:
    """Brings artifacts that a store lacks from MLflow, verified. One for a process and its settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._guard = threading.Lock()
        self._silent_until = 0.0
        self._why = ""

    def __call__(self, store: Store, digest: str) -> None:
        """Commit an artifact to the store, if MLflow has it.

        Raises ArtifactDamaged if what MLflow has is not what the digest names, ArtifactMissing if it has only the place
        of the artifact, or does not answer.
        """
        if store.root != self.settings.store_path or is_empty(self.settings):
            return
        with self._guard:
            if time.monotonic() < self._silent_until:
                raise self._missing(digest)
            if not store.layout.artifact(digest).is_dir():
                self._fetch(store, digest)

    def _fetch(self, store: Store, digest: str) -> None:
        try:
            client = connect(self.settings)
            with answering(self.settings):
                found = [
                    (files, Copy.model_validate(note))
                    for files in all_copies(client, self.settings)
                    if (note := json_in(files, note_of(digest)))
                ]
                for files, note in found:
                    if note.copied and MANIFEST in there(files, folder_of(note.kind, digest)):
                        return take(files, note, digest, store)
        except (ArtifactDamaged, ArtifactMissing):
            raise
        except BackpropError as error:
            self._silent_until, self._why = time.monotonic() + PATIENCE, error.message
            raise self._missing(digest) from error
        if found:
            raise elsewhere(digest, found[0][1])

    def _missing(self, digest: str) -> ArtifactMissing:
        return ArtifactMissing(
            f"the store has no artifact {digest[:12]}, and MLflow cannot be asked: {self._why}",
            hint="start MLflow or set MLFLOW_TRACKING_URI, or run the command that made it again",
        )


def take(files: "ArtifactRepository", note: Copy, digest: str, store: Store) -> None:
    """Commit a copy to the store. Raises ArtifactDamaged if it is not what the digest names."""
    with store.begin(note.kind) as directory:
        copied = Path(files.download_artifacts(folder_of(note.kind, digest), str(directory)))
        try:
            store.adopt(copied, digest, note.record)
        except (ArtifactDamaged, ValueError, KeyError) as error:
            raise ArtifactDamaged(
                f"MLflow's copy of {note.kind} {digest[:12]} is not what was committed: {error}",
                hint="restore it there from a backup, or run the command that made it again",
            ) from error
    log.info("%s %s was fetched from MLflow", note.kind, digest[:12])


def elsewhere(digest: str, note: Copy) -> ArtifactMissing:
    """The error for an artifact that was too large for MLflow."""
    return ArtifactMissing(
        f"the store has no {note.kind} {digest[:12]}, and MLflow knows only its place: "
        f"its {note.bytes / 2**20:.0f} MiB were over BACKPROPAGATE_MLFLOW_ARTIFACT_LIMIT",
        hint=f"copy {note.uri} to artifacts/ of this store, or run the command that made it again",
    )


def check_and_move(copied: Path, source: SourceRef, target: Path) -> None:
    """Put verified files of a source in their place: one file, or a directory. Raises ArtifactDamaged."""
    wanted = {file.name: file.digest for file in source.files} or {ALONE: source.digest}
    for name, digest in wanted.items():
        if not (copied / name).is_file() or file_digest(copied / name) != digest:
            raise ArtifactDamaged(
                f"MLflow's copy of the rows {source.digest[:12]} is not what was read", hint="start the run again"
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    (copied if source.files else copied / ALONE).replace(target)


def json_in(files: "ArtifactRepository", name: str) -> Any:
    """A JSON file of MLflow's; None if it is not there."""
    folder, _, last = name.rpartition("/")
    if last not in there(files, folder):
        return None
    with tempfile.TemporaryDirectory() as directory:
        return json.loads(Path(files.download_artifacts(name, directory)).read_bytes())
