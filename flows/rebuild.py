"""Trains a line's versions again without forgotten rows, and makes the last one live."""

import logging
from typing import TYPE_CHECKING

from pydantic import Field

from backprop_core.errors import BackpropError, NoRows
from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from backprop_core.schema.refs import ErrorRecord, RunResult
from flows.parameters import parameters
from flows.registry import load
from tasks.runs import rebuild as core

if TYPE_CHECKING:
    from backprop_core.store.artifacts import Store

log = logging.getLogger(__name__)
REASON = "trained again without forgotten rows"


class Rebuilt(Record):
    """What became of a line that had learned forgotten rows."""

    line: str
    versions: list[int] = Field(description="The versions that had seen the rows, from first to last.")
    rebuilt: list[int] = Field([], description="The line's versions without the rows, from the first one on.")
    live: bool = Field(description="Whether the last one is the champion now, and the others are withdrawn.")
    reason: str | None = Field(None, description="Why the champion stayed.")
    error: ErrorRecord | None = Field(None, description="What stopped the rebuild.")
    left: list[str] = Field([], description="What could not be removed of the withdrawn versions.")


def planned(line: str, seen: list[str], config: Settings) -> Rebuilt:
    """The versions that would be trained again."""
    with core.opened(config) as store:
        numbers = core.concerned(line, seen, store)
        try:
            core.nights(line, numbers, store)
        except BackpropError as error:
            return Rebuilt(line=line, versions=numbers, live=False, error=recorded(error))
        return Rebuilt(line=line, versions=numbers, live=False)


def rebuild(line: str, rows: list[str], seen: list[str], config: Settings) -> Rebuilt:
    """Train the versions of a line again that have seen forgotten rows; an error is part of the result.

    The last one goes live if each of them passes the gate; then the old ones are withdrawn. `seen` has LINE@NUMBER.
    """
    with core.opened(config) as store:
        numbers = core.concerned(line, seen, store)
        try:
            done = Rebuilt(line=line, versions=numbers, live=True)
            done = replayed(done, rows, store, config) if numbers else done
        except BackpropError as error:
            return Rebuilt(line=line, versions=numbers, live=False, error=recorded(error))
        if not done.live:
            return done
        old = core.seen_by(line, [*seen, *(f"{line}@{number}" for number in numbers)], store)
        return done.model_copy(update={"versions": old, "left": core.withdraw(line, old, store, config)})


def recorded(error: BackpropError) -> ErrorRecord:
    return ErrorRecord(code=error.code, message=error.message, hint=error.hint, retryable=error.retryable)


def replayed(asked: Rebuilt, rows: list[str], store: "Store", config: Settings) -> Rebuilt:
    """Train versions again in a line of their own, then append them to the line, and make the last one live."""
    line, numbers = asked.line, asked.versions
    nights = core.nights(line, numbers, store)
    name = core.begin(line, numbers, rows, store)
    try:
        refused = [reason for night in nights if (reason := carry_out(night, name))]
        made = core.adopt(line, name, numbers, store)
    finally:
        core.end(name, store, config)
    reason = why_not(refused, made)
    if reason is None:
        load("rollback")(line=line, to=made[-1], reason=REASON)
    return asked.model_copy(update={"rebuilt": made, "live": reason is None, "reason": reason})


def carry_out(night: core.Night, line: str) -> str | None:
    """Train a version again, into a line of its own; the reason if the gate refuses it. None if it has no new rows."""
    spec = night.spec.model_copy(update={"line": line})
    log.info("version %d: %s again, without forgotten rows", night.number, night.flow)
    try:
        result: RunResult = load(night.flow)(**parameters(night.flow, spec, fresh=False))
    except NoRows as error:
        log.warning("version %d: %s", night.number, error.message)
        return None
    if night.promoted:
        result = load("promote")(ref=result.run_id, line=line)
    return f"version {night.number}: {result.gate.reason}" if result.status == "rejected" and result.gate else None


def why_not(refused: list[str], made: list[int]) -> str | None:
    """Why the last of the rebuilt versions does not go live by itself."""
    if refused:
        return f"the gate refused {'; '.join(refused)}"
    return None if made else "without the rows, no version was left to train"
