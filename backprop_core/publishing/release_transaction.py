"""Releases a version as one transaction over Ollama, the Hub and the line's champion: all or nothing.

The transaction is journaled before anything is done, and each step after it is done; steps are idempotent. A failed
release is undone in reverse order. A killed one is finished, or undone if it cannot be finished, by the next run on the
line. Setting the champion is the point of no return. Callers must hold the line's lock.

lines/<name>/transaction.json   the journal, while a release is in progress
lines/<name>/releases/N.json    what went live with version N
lines/<name>/moves/RUN_ID.json  a manual promotion
"""

import logging
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from pydantic import Field

from backprop_core.errors import BackpropError
from backprop_core.lines.versions import Lines, Move
from backprop_core.publishing import ollama
from backprop_core.publishing.hub import RECORD, File, Hub
from backprop_core.runtime.progress import OnProgress
from backprop_core.schema.gate_report import Act
from backprop_core.schema.records import Record
from backprop_core.schema.refs import GGUFRef, RunId
from backprop_core.schema.specs import ExportSpec, PublishSpec
from backprop_core.store.artifacts import Store, remove_file, write_atomic

log = logging.getLogger(__name__)
BEFORE, COMMIT, HAD_LATEST, OLD_RECORD, ANSWER = "before", "commit", "had latest", "old record", "answer"
SERVER = "ollama server"


class Release(Record):
    """A release of a version, with everything it needs."""

    format: Literal[1] = 1
    line: str
    number: int
    publish: PublishSpec
    export: ExportSpec
    gguf: list[GGUFRef] = Field(default_factory=list, description="Ollama serves the first one.")
    serving: ollama.Serving | None = None
    prompt: str = Field("", description="Prompt that the served model must answer.")
    repository: dict[str, File] = Field(default_factory=dict, description="Files of the Hub repository, by name.")
    answer: str | None = Field(None, description="The served model's answer.")
    commit: str | None = Field(None, description="Commit on the Hub.")
    run_id: RunId | None = Field(None, description="The run that releases it.")
    act: Act | None = Field(None, description="Manual promotion; None: it passed the gate of a retrain.")


class Transaction(Record):
    """A release in progress."""

    format: Literal[1] = 1
    release: Release
    champion: int | None = Field(description="The previous champion.")
    back: bool = Field(False, description="Whether it is being undone.")
    done: list[str] = Field(default_factory=list, description="Names of finished steps.")
    notes: dict[str, str] = Field(default_factory=dict, description="Values that steps recorded.")


class Services(NamedTuple):
    """Clients of external services."""

    ollama: Callable[[str | None], ollama.Ollama]  # at this URL; None: the URL from the environment
    hub: Callable[[], Hub]
    on_progress: OnProgress


class Step(NamedTuple):
    """One step, which returns values to record; and how to undo it, finished or partial."""

    name: str
    do: Callable[[], dict[str, str]]
    undo: Callable[[], None]


def release(wanted: Release, *, store: Store, services: Services) -> Release:
    """Publish a version to all targets in `wanted.publish`, and make it the line's champion.

    Raises what Ollama and the Hub raise; then nothing has changed, or the journal says what is left to undo.
    """
    recover(wanted.line, store=store, services=services)
    return carry_out(Transaction(release=wanted, champion=Lines(store).champion(wanted.line)), store, services)


def recover(line: str, *, store: Store, services: Services) -> None:
    """Finish or undo an interrupted release. Raises what Ollama and the Hub raise."""
    journal = store.layout.line(line).transaction
    if not journal.is_file():
        return
    begun = Transaction.model_validate_json(journal.read_bytes())
    if begun.back:
        Steps(begun, store, services).undo()
        return
    log.warning("finishing the release of %s version %d, which was interrupted", line, begun.release.number)
    try:
        carry_out(begun, store, services)
    except BackpropError as error:
        if journal.is_file():  # undoing failed too
            raise
        log.warning("the release could not be finished and was undone: %s", error.message)


def released(line: str, number: int, store: Store) -> Release | None:
    """The release of a version; None if it was only the champion, or never released."""
    path = store.layout.line(line).release(number)
    return Release.model_validate_json(path.read_bytes()) if path.is_file() else None


def nothing() -> None:
    """There is nothing to undo."""


def carry_out(transaction: Transaction, store: Store, services: Services) -> Release:
    steps = Steps(transaction, store, services)
    try:
        steps.do()
    except BackpropError:
        steps.undo()
        raise
    return steps.finish()


class Steps:
    """The steps of a transaction, and its journal."""

    def __init__(self, transaction: Transaction, store: Store, services: Services) -> None:
        self._state, self._store, self._services = transaction, store, services
        self._release, self._lines = transaction.release, Lines(store)
        self._publish = transaction.release.publish
        self._record = store.layout.line(self._release.line).release(self._release.number)

    def do(self) -> None:
        """Run all steps that are not done yet."""
        self._save()
        for step in self._steps():
            if step.name not in self._state.done:
                notes = self._state.notes | step.do()
                self._state = self._state.model_copy(update={"done": [*self._state.done, step.name], "notes": notes})
                self._save()

    def undo(self) -> None:
        """Undo started steps in reverse order; the last may be partial. Then remove the journal."""
        self._state = self._state.model_copy(update={"back": True})
        self._save()
        for step in reversed(self._begun()):
            step.undo()
        remove_file(self._store.layout.line(self._release.line).transaction)

    def finish(self) -> Release:
        """Clean up after the point of no return. What cannot be cleaned up now is left to the next run on the line."""
        try:
            if self._publish.ollama:
                with self._server() as server:
                    server.remove(self._model("previous"))
            remove_file(self._store.layout.line(self._release.line).transaction)
        except BackpropError as error:
            log.warning("an Ollama tag could not be removed; the next run on the line retries: %s", error.message)
        return self._outcome()

    def _begun(self) -> list[Step]:
        steps = list(self._steps())
        return steps[: len(self._state.done) + 1]

    def _steps(self) -> Iterator[Step]:
        if self._publish.ollama:
            yield Step("ollama there", self._claim, nothing)
        if self._publish.repo:
            yield Step("hub before", self._look, nothing)
        if self._publish.ollama:
            yield Step("ollama version", self._create, self._remove)
        if self._publish.repo:
            yield Step("hub commit", self._commit, self._restore)
        if self._publish.ollama:
            yield Step("ollama previous", self._set_aside, self._drop_previous)
            yield Step("ollama latest", self._make_latest, self._bring_back)
        if self._publish.ollama or self._publish.repo:
            yield Step("old record", self._read_record, nothing)
            yield Step("record", self._write_record, self._old_record)
        yield Step("champion", self._crown, self._uncrown)

    # Ollama: vN is created and tested beside the live model; `previous` keeps the old `latest` until all is done

    def _model(self, tag: str) -> str:
        return f"{self._publish.ollama}:{tag}"

    @property
    def _version(self) -> str:
        return self._model(f"v{self._release.number}")

    def _server(self) -> ollama.Ollama:
        """The server that the release was started on, even if the environment has changed."""
        return self._services.ollama(self._state.notes.get(SERVER))

    def _claim(self) -> dict[str, str]:
        assert self._publish.ollama
        with self._server() as server:
            server.check()
            ollama.claim(self._publish.ollama, server, self._store)
            return {SERVER: server.url}

    def _create(self) -> dict[str, str]:
        assert self._release.serving
        file = self._store.local(self._release.gguf[0]) / "model.gguf"
        with self._server() as server:
            answer = ollama.prove(
                server,
                self._version,
                file,
                self._release.serving,
                self._release.prompt,
                self._services.on_progress,
                self._store,
            )
        return {ANSWER: answer}

    def _remove(self) -> None:
        earlier = released(self._release.line, self._release.number, self._store)
        if earlier is None or earlier.publish.ollama != self._publish.ollama:
            with self._server() as server:
                server.remove(self._version)

    def _set_aside(self) -> dict[str, str]:
        with self._server() as server:
            there = server.models()
            if self._model("latest") in there:
                server.copy(self._model("latest"), self._model("previous"))
        return {HAD_LATEST: "yes" if self._model("latest") in there else "no"}

    def _drop_previous(self) -> None:
        with self._server() as server:
            server.remove(self._model("previous"))

    def _make_latest(self) -> dict[str, str]:
        with self._server() as server:
            server.copy(self._version, self._model("latest"))
        return {}

    def _bring_back(self) -> None:
        with self._server() as server:
            if self._state.notes[HAD_LATEST] == "no":
                server.remove(self._model("latest"))
            elif self._model("previous") in server.models():  # else it was restored before
                server.copy(self._model("previous"), self._model("latest"))

    # The Hub: one commit on top of the recorded one; undone by a commit that restores the recorded one's files

    def _look(self) -> dict[str, str]:
        assert self._publish.repo
        return {BEFORE: self._services.hub().head(self._publish.repo, private=self._publish.private)}

    def _commit(self) -> dict[str, str]:
        assert self._publish.repo
        message = f"{self._release.line} version {self._release.number}"
        commit = self._services.hub().push(
            self._publish.repo, self._release.repository, message=message, parent=self._state.notes[BEFORE]
        )
        return {COMMIT: commit}

    def _restore(self) -> None:
        assert self._publish.repo
        hub, record = self._services.hub(), self._release.repository[RECORD].text
        if hub.holds(self._publish.repo, record or ""):
            hub.restore(self._publish.repo, self._state.notes[BEFORE])

    # The store

    def _outcome(self) -> Release:
        notes = self._state.notes
        return self._release.model_copy(update={"answer": notes.get(ANSWER), "commit": notes.get(COMMIT)})

    def _read_record(self) -> dict[str, str]:
        return {OLD_RECORD: self._record.read_text("utf-8") if self._record.is_file() else ""}

    def _write_record(self) -> dict[str, str]:
        write_atomic(self._record, self._outcome().model_dump_json())
        return {}

    def _old_record(self) -> None:
        if old := self._state.notes[OLD_RECORD]:
            write_atomic(self._record, old)
        else:
            remove_file(self._record)

    def _crown(self) -> dict[str, str]:
        wanted = self._release
        if wanted.act and wanted.run_id:
            move = Move(number=wanted.number, before=self._state.champion, run_id=wanted.run_id, act=wanted.act)
            self._lines.note_move(wanted.line, move)
        self._lines.set_champion(wanted.line, wanted.number)
        return {}

    def _uncrown(self) -> None:
        if self._release.run_id:
            self._lines.forget_move(self._release.line, self._release.run_id)
        self._lines.set_champion(self._release.line, self._state.champion)

    def _save(self) -> None:
        write_atomic(self._store.layout.line(self._release.line).transaction, self._state.model_dump_json())
