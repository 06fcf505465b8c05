"""A line's versions, its champion and promotions. Versions are append-only; the champion is a pointer to one."""

import os
import uuid
from collections.abc import Iterable
from itertools import takewhile
from typing import Literal

from pydantic import Field

from backprop_core.errors import LineConflict, RunUnknown, StoreConflict
from backprop_core.schema.gate_report import Act, GateReport
from backprop_core.schema.records import KEY_IF_SET, NO_KEY, Record
from backprop_core.schema.refs import AdapterRef, BaseRef, Cell, DatasetRef, Ratings, RowsRef, RunId, Scores
from backprop_core.schema.specs import LoraSpec, MergeSpec
from backprop_core.store.artifacts import Store, remove_file, write_atomic
from backprop_core.store.sharing import Shared


class LineVersion(Record):
    """A version of a line: everything that its next run or its release needs."""

    format: Literal[1] = 1
    run_id: RunId
    base: BaseRef
    lora: LoraSpec
    merge: MergeSpec
    tuned: AdapterRef
    earlier: list[AdapterRef] = Field(
        default_factory=list, description="Tuned adapters of earlier runs, oldest first, if the strategy merges all."
    )
    merged: AdapterRef
    count: int = Field(ge=1, description="Runs merged so far, including this one.")
    datasets: list[DatasetRef]
    heldout: dict[str, RowsRef] = Field(description="Held-out rows by task.")
    aside: dict[str, RowsRef] | None = Field(
        None, description="Held-out rows no longer scored, by task; None in versions older than this field."
    )
    scores: dict[str, Scores] = Field(description="Scores of the merged adapter by task.")
    ratings: dict[str, Ratings] = Field(default_factory=dict, description="Ratings of its generated answers, by task.")
    watch: list[str] = Field(default_factory=list, description="Tasks that are only scored, never trained.")
    parent: int | None = Field(None, description="Number of the version that this one continues, or None.")
    scored: dict[str, RowsRef] = Field(
        {}, description="Held-out rows behind the scores, if not all of them.", json_schema_extra=NO_KEY
    )
    gate: GateReport | None = Field(
        None,
        description="The gate's report; None in records older than this field.",
        json_schema_extra=NO_KEY,
    )
    replay_rows: int | None = Field(
        None,
        description="Rows of each earlier task that its next run replays, unless that says otherwise; None: none.",
        json_schema_extra=KEY_IF_SET,
    )
    act: Act | None = Field(None, description="Manual promotion, if a person promoted it.", json_schema_extra=NO_KEY)
    general: list[RowsRef] = Field(
        [], description="Answers of the untouched base that it has learned as well.", json_schema_extra=KEY_IF_SET
    )

    @property
    def learned(self) -> list[RowsRef]:
        """All rows that it has been trained on."""
        return sorted({*(dataset.train for dataset in self.datasets), *self.general}, key=lambda rows: rows.digest)

    @property
    def cells(self) -> dict[str, Cell]:
        """Its row of the forgetting matrix."""
        rows = self.heldout | self.scored
        return {
            task: Cell(scores=scores, rating=self.ratings.get(task), heldout=rows[task].digest)
            for task, scores in self.scores.items()
        }


class Live(Record):
    """The champion of a line, with its number."""

    number: int
    version: LineVersion


class Move(Record):
    """A manual promotion of a version to champion."""

    format: Literal[1] = 1
    number: int
    before: int | None = Field(description="The previous champion.")
    run_id: RunId
    act: Act


def why_not_live(number: int, version: LineVersion, moves: Iterable[Move]) -> str | None:
    """Why a version may not be the champion; None if it passed its gate, or a person forced it past the gate."""
    forced = any(move.number == number and move.act.forced for move in moves)
    if forced or (version.gate and version.gate.passes) or (version.act and version.act.forced):
        return None
    return version.gate.refusal if version.gate else "was never checked by the gate"


class Lines:
    """The lines of a store."""

    def __init__(self, store: Store) -> None:
        self._store, self._layout = store, store.layout

    def names(self) -> list[str]:
        """The lines that have a version; a line has votes before."""
        return sorted({line.root.name for line in self._layout.with_versions()})

    def versions(self, line: str) -> list[int]:
        """Version numbers of a line, ascending; empty if there is no such line."""
        return sorted(int(path.stem) for path in self._layout.line(line).versions.glob("*.json"))

    def version(self, line: str, number: int) -> LineVersion:
        path = self._layout.line(line).version(number)
        if not path.is_file():
            raise RunUnknown(f"line {line} has no version {number}", hint="`backprop lines` lists all versions")
        return LineVersion.model_validate_json(path.read_bytes())

    def append(self, line: str, version: LineVersion, *, after: int) -> int:
        """Add the version after number `after` (0: the first). Raises LineConflict if another run added it first."""
        number = after + 1
        if self.versions(line)[-1:] not in ([after], []) or (after and not self.versions(line)):
            raise self._conflict(line, number)
        self._store.confirm(f"line-{line}")
        path = self._layout.line(line).version(number)
        if self._store.shared:
            return self._append_everywhere(line, number, version, self._store.shared)
        beside = path.with_name(f".{uuid.uuid4().hex}")
        write_atomic(beside, version.model_dump_json())
        try:
            os.link(beside, path)  # fails if it exists: exclusive, and never partial
        except FileExistsError:
            raise self._conflict(line, number) from None
        finally:
            beside.unlink()
        return number

    def _append_everywhere(self, line: str, number: int, version: LineVersion, shared: Shared) -> int:
        """Add the version to all machines: the first one to write it has it."""
        path = self._layout.line(line).version(number)
        if path.is_file():
            raise self._conflict(line, number)
        try:
            shared.mirror.put(path, version.model_dump_json().encode())
        except StoreConflict as error:
            raise self._conflict(line, number) from error
        return number

    def champion(self, line: str) -> int | None:
        """The number of the live version, or None."""
        path = self._layout.line(line).champion
        return int(path.read_text()) if path.is_file() else None

    def set_champion(self, line: str, number: int | None) -> None:
        """Make a version the champion; None: no champion."""
        self._store.confirm(f"line-{line}")
        path = self._layout.line(line).champion
        if number is None:
            remove_file(path)
            return
        self.version(line, number)
        write_atomic(path, str(number))

    def moves(self, line: str) -> list[Move]:
        """Manual promotions, oldest first."""
        notes = [Move.model_validate_json(path.read_bytes()) for path in self._layout.line(line).moves.glob("*.json")]
        return sorted(notes, key=lambda move: (move.act.at, move.run_id))

    def note_move(self, line: str, move: Move) -> None:
        """Record a manual promotion, once per run."""
        write_atomic(self._layout.line(line).move(move.run_id), move.model_dump_json())

    def forget_move(self, line: str, run_id: str) -> None:
        """Remove the record of a promotion that was undone."""
        remove_file(self._layout.line(line).move(run_id))

    def act(self, line: str, number: int) -> Act | None:
        """The act that forced a version past the gate, else its newest manual promotion; None without any."""
        acts = [move.act for move in reversed(self.moves(line)) if move.number == number]
        return next((act for act in acts if act.forced), acts[0] if acts else None)

    def live(self, line: str) -> Live | None:
        """The champion with its number, or None."""
        number = self.champion(line)
        return Live(number=number, version=self.version(line, number)) if number else None

    def ancestors(self, line: str, number: int | None) -> list[LineVersion]:
        """A version and the versions it continues, oldest first; empty for None."""
        found: list[LineVersion] = []
        while number:
            found.append(self.version(line, number))
            number = found[-1].parent
        return found[::-1]

    def on_base(self, line: str, number: int | None, base: BaseRef) -> list[LineVersion]:
        """A version and those before it that it continues on the same base, oldest first; empty on another base."""
        newest_first = reversed(self.ancestors(line, number))
        return [*takewhile(lambda version: version.base.digest == base.digest, newest_first)][::-1]

    def add(self, line: str, version: LineVersion, *, champion: int | None) -> int:
        """Append `version`, made while `champion` was live; returns its number. Idempotent per run.

        Raises LineConflict if the champion has changed since.
        """
        for number in self.versions(line):
            if self.version(line, number).run_id == version.run_id:
                return number
        self.check_champion(line, champion)
        return self.append(line, version, after=(self.versions(line) or [0])[-1])

    def check_champion(self, line: str, expected: int | None) -> None:
        """Raise LineConflict unless the line's champion is `expected`."""
        if (champion := self.champion(line)) != expected:
            raise LineConflict(
                f"the champion of line {line} changed to {champion} while this run continued version {expected}",
                hint="run it again to continue from the new champion",
            )

    def check_base(self, line: str, base: BaseRef) -> None:
        """Raise LineConflict if the line's champion, or its newest version if it has none, is on another base."""
        number = self.champion(line) or max(self.versions(line), default=0)
        if number and (known := self.version(line, number).base).digest != base.digest:
            raise LineConflict(
                f"line {line} is built on {known.name} ({known.digest[:12]}), not on {base.name} ({base.digest[:12]})",
                hint="leave the model out, of --model and of the line's file, to keep the line's base, or use another "
                f"--line; to move the line to another base: backprop rebase {line} --model {base.name}",
            )

    def _conflict(self, line: str, number: int) -> LineConflict:
        return LineConflict(
            f"line {line} already has version {number}, or lacks the one before",
            hint="another run continued the line meanwhile: run it again from the newest version",
        )
