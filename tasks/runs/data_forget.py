"""`backprop data forget`: removes rows from everything in the home, and lists what has learned them.

The order makes it safe to kill: first the rows are blocked, last go the sets of rows, which have the text that all
else is searched for. So the same command, again, finishes what an earlier one began.
"""

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path

from pydantic import Field

from backprop_core.data.database_quotes import blank, has_quotes
from backprop_core.data.forgotten_rows import forget, forgotten
from backprop_core.data.loading import find, good_rows
from backprop_core.data.row_formats import ChatRow
from backprop_core.data.row_removal import contents, remove_rows, rows_in
from backprop_core.data.row_search import TracedFile, files_of, search
from backprop_core.errors import BackpropError, RefAmbiguous, RowUnknown, RunActive
from backprop_core.lines import exports
from backprop_core.lines.forget import Asked, Forgetting, Learner, Removed, rows_named
from backprop_core.lines.row_trace import source_paths
from backprop_core.runtime.settings import Settings
from backprop_core.schema.field_types import ROWS_FILE
from backprop_core.schema.records import Record
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import Store, file_digest, write_atomic
from backprop_core.store.leases import living
from backprop_core.store.locks import held
from tasks.runs import prefect_quotes
from tasks.runs.line_splits import of_run
from tasks.runs.rebuild import note_rewritten
from tasks.tracking import quotes as mlflow_quotes
from tasks.tracking.artifact_copies import is_copy
from tasks.tracking.withdrawal import remove_copies

NAMED = 10  # rows that an error lists
NO_TEXT = {".safetensors", ".gguf", ".png", ".parquet", ".db", ".db-wal", ".db-shm", ".lock"}


class ChangedFile(Record):
    """A file in the home's data directory, without the rows."""

    path: str
    rows: int = Field(description="Rows that were removed from it.")


class ExportedLine(Record):
    """A file that a line was written into, with the rows."""

    path: str
    host: str = Field(description="The machine that wrote it.")
    line: str
    at: datetime


class Forgotten(Record):
    """What was removed, or would be, and what has learned the rows."""

    planned: bool = Field(description="Whether nothing was changed.")
    rows: list[Asked]
    artifacts: list[Removed]
    cached: int = Field(description="Results of stages that the cache had.")
    checkpoints: int = Field(description="Unfinished trainings on the rows, which start again.")
    files: list[ChangedFile]
    quoted: list[str] = Field(description="Records, reports, logs and databases in which their text was blanked.")
    outside: list[TracedFile] = Field(description="Files elsewhere that have the rows: they are not changed.")
    exported: list[ExportedLine] = Field(
        [], description="Files of `line export` that have the rows: they are not changed."
    )
    learned: list[Learner] = Field(description="What has been trained on the rows or scored on them, and stays.")
    identities: list[str] = Field(description="The rows, with those that were forgotten before.")
    seen: list[str] = Field(description="LINE@NUMBER of all versions that were ever known to have seen the rows.")
    left: list[str] = Field(description="What has their text still, and what to do about it.")


def data_forget(asked: Sequence[str | DatasetSpec], config: Settings, *, plan: bool) -> Forgotten:
    """Forget rows: each named by its id, by text that no other row has, or by a file of rows.

    Raises RowUnknown, RefAmbiguous, RunActive, and what reading a file of rows raises.
    """
    store = Store(config.store_path)
    try:
        with held(store.lock("prune"), "the store is being pruned"):
            if run := next(living(store), None):
                raise RunActive(f"run {run} is active", hint="forget rows after it has ended")
            store.sweep()
            work = Work(list(rows_meant(asked, store)), config, store)
            done = work.planned() if plan else work.done()
            return with_versions(asked, done, store)
    finally:
        store.close()


def with_versions(asked: Sequence[str | DatasetSpec], done: Forgotten, store: Store) -> Forgotten:
    """The result, with the versions that have seen the rows, now or when they were forgotten."""
    known = forgotten(store)
    rows = {one.row for one in done.rows}.union(*(before(one, store) for one in asked if isinstance(one, str)))
    versions = {version for row in rows & known.keys() for version in known[row].versions}
    versions |= {one.name for one in done.learned if "@" in one.name}
    return done.model_copy(update={"identities": sorted(rows), "seen": sorted(versions)})


def before(asked: str, store: Store) -> set[str]:
    """Forgotten rows with this id, or start of one."""
    return {row for row in forgotten(store) if re.fullmatch("[0-9a-f]{6,64}", asked) and row.startswith(asked)}


def rows_meant(asked: Sequence[str | DatasetSpec], store: Store) -> Iterator[ChatRow]:
    """The rows that a user names. Raises RowUnknown, RefAmbiguous, and what reading a file raises."""
    for one in asked:
        if isinstance(one, DatasetSpec):
            yield from good_rows(find(one, scratch=store.scratch("source")), one)
        else:
            yield from rows_named(named(one, store), store)


def named(asked: str, store: Store) -> set[str]:
    """The identity of the one row with this id or text; none if it was forgotten and nothing of it is left.

    Raises RowUnknown, RefAmbiguous.
    """
    hits = {hit.row: hit.text for hit in search(asked, store)}
    if len(hits) > 1:
        shown = "; ".join(f"{row[:12]} ({text[:60]})" for row, text in list(hits.items())[:NAMED])
        raise RefAmbiguous(
            f"{len(hits)} rows have {asked[:60]!r}: {shown}",
            hint="name each row by its id (backprop data trace lists them), or write them into a file and name that",
        )
    if not hits and not before(asked, store):
        raise RowUnknown(
            f"no row in this store has {asked[:60]!r}, and no file has this name",
            hint="look with `backprop data trace TEXT`; to block rows that are in no dataset, name a file of them",
        )
    return set(hits)


class Work:
    """What forgetting some rows means for a home."""

    def __init__(self, rows: list[ChatRow], config: Settings, store: Store) -> None:
        self._config, self._store = config, store
        self._forgetting = Forgetting(rows, store)
        self._names, self._quotes = self._forgetting.names, self._forgetting.quotes
        self._left: list[str] = []
        traced = files_of(set(self._names), source_paths(store), store) if self._names else {}
        home = str(config.home_path)
        self._outside = [one for some in traced.values() for one in some if not (one.path or "").startswith(f"{home}/")]

    def planned(self) -> Forgotten:
        """Change nothing."""
        files = [found for path in self._data() if (found := self._file(path, change=False))]
        quoted = [str(path) for path in self._texts() if self._quotes.in_file(path)]
        quoted += [str(path) for path in self._databases() if self._in_database(path, change=False)]
        quoted += [f"Prefect artifact {one}" for one in self._prefect(change=False)]
        return self._report(files, quoted, self._forgetting.removed, planned=True)

    def done(self) -> Forgotten:
        """Do it."""
        forgetting = self._forgetting
        report = forgetting.removed, forgetting.learners
        forget(self._names, [one.name for one in report[1] if "@" in one.name], self._store)
        files = [found for path in self._data() if (found := self._file(path, change=True))]
        resend = mlflow_quotes.quoting(self._config, self._quotes)
        quoted = [str(path) for path in self._texts() if self._quotes.blank(path)]
        quoted += [str(path) for path in self._databases() if self._in_database(path, change=True)]
        quoted += [f"Prefect artifact {one}" for one in self._prefect(change=True)]
        self._left += mlflow_quotes.replace(self._config, resend)
        keep_splits(self._store)
        removed = forgetting.carry_out()
        self._left += remove_copies(self._config, self._store.was_removed, rows=True)
        return self._report(files, quoted, removed, planned=False)

    def _report(
        self, files: list[ChangedFile], quoted: list[str], removed: list[Removed], *, planned: bool
    ) -> Forgotten:
        forgetting = self._forgetting
        return Forgotten(
            planned=planned,
            rows=forgetting.asked,
            artifacts=removed,
            cached=len(forgetting.cached),
            checkpoints=len(forgetting.checkpoints),
            files=files,
            quoted=quoted,
            outside=self._outside,
            exported=[
                ExportedLine(path=one.path, host=one.host, line=one.line, at=one.at)
                for one in exports.having({one.digest for one in removed}, self._store)
            ],
            learned=forgetting.learners,
            identities=[],
            seen=[],
            left=self._left,
        )

    def _data(self) -> Iterator[Path]:
        """Files of rows in the home, and what unfinished runs have downloaded."""
        yield from (path for path in sorted(self._config.layout.data.rglob("*")) if path.is_file())
        for run in self._store.layout.holding():
            yield from sorted(path for path in run.sources.rglob("*") if path.is_file() and not path.is_symlink())

    def _file(self, path: Path, *, change: bool) -> ChangedFile | None:
        """Remove the rows from a file; of a download, remove it all: its name is its digest."""
        download = path.is_relative_to(self._store.layout.runs)
        if not download and not ROWS_FILE.search(path.name):
            self._unread(path, "it is no file of rows")
            return None
        reason = "it cannot be read"
        for spec in self._specs(path):
            try:
                count = len(rows_in(path, spec, self._names))
                if count and change and not download:
                    digest = file_digest(path)
                    remove_rows(path, spec, self._names)
                    note_rewritten(digest, path, self._store)
                elif count and change:
                    path.unlink()
                if path.is_file() and (change or not count):
                    self._unread(path, "other rows or fields in it have text of the row")
                return ChangedFile(path=str(path), rows=count) if count else None
            except BackpropError as error:
                reason = error.message
        self._unread(path, reason)
        return None

    def _unread(self, path: Path, why: str) -> None:
        """Note a file that nothing can be removed from, if it has the text."""
        if any(map(self._quotes.hits, contents(path))):
            self._left.append(f"{path}: {why}; edit it yourself")

    def _specs(self, path: Path) -> list[DatasetSpec]:
        """How runs have read a file, or one in its directory; at last, as it looks."""
        found = [DatasetSpec(path=str(path))]
        for place, known in self._read:
            spec = known.model_copy(update={"path": str(path)})
            if place in (path, path.parent) and spec not in found:
                found.insert(0, spec)
        return found

    @cached_property
    def _read(self) -> list[tuple[Path, DatasetSpec]]:
        """The places that runs have read, and how."""
        found = []
        for run in self._store.layout.begun():
            asked = json.loads(run.spec.read_bytes())
            specs = [*asked["spec"]["datasets"], *asked["spec"]["evaluation"]["watch"]]
            for spec, source in zip(specs, [*asked["sources"], *asked["watch"]], strict=False):
                places = [ref["path"] for ref in (source["data"], source["heldout"]) if ref]
                found += [(Path(place), DatasetSpec.model_validate(spec)) for place in places]
        return found

    def _texts(self) -> Iterator[Path]:
        """All files of the home and the store that may quote a row, but those that are removed or edited as a whole."""
        layout, store = self._config.layout, self._store.layout
        whole = (store.artifacts, store.trainings, store.cache, layout.data, layout.prefect_ui)
        for root in dict.fromkeys([self._config.home_path, self._store.root]):
            for path in sorted(root.rglob("*")):
                if path.suffix in NO_TEXT or not path.is_file() or any(map(path.is_relative_to, whole)):
                    continue
                if is_copy(path, self._config):
                    continue
                if path.parent == layout.jobs:
                    self._unread(path, "it is a job file that you have written")
                elif root == self._config.home_path or not path.is_relative_to(self._config.home_path):
                    yield path

    def _databases(self) -> list[Path]:
        """SQLite databases that records were sent to."""
        return [
            path for path in (*mlflow_quotes.databases(self._config), *prefect_quotes.databases()) if path.is_file()
        ]

    def _in_database(self, path: Path, *, change: bool) -> bool:
        try:
            return bool(self._quotes) and (blank if change else has_quotes)(path, self._quotes)
        except sqlite3.Error as error:
            self._left.append(f"{path}: {error}; end what uses it, then run this again")
            return False

    def _prefect(self, *, change: bool) -> list[str]:
        """Artifacts on the user's Prefect server that quote the rows."""
        try:
            return prefect_quotes.artifacts(self._config, self._quotes, delete=change) if self._quotes else []
        except BackpropError as error:
            self._left.append(f"Prefect: {error.message}; start it, then run this again")
            return []


def keep_splits(store: Store) -> None:
    """Note in old results which rows were trained: until now only the cache says so, and it loses that."""
    for run in store.layout.ended():
        result = RunResult.model_validate_json(run.result.read_bytes())
        if result.split is None and (found := of_run(run.run_id, store)):
            write_atomic(run.result, result.model_copy(update={"split": found}).model_dump_json())
