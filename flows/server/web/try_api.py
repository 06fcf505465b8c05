"""The API of the page "Try it": ask the models of a line, hear their answers, vote, correct."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse

from backprop_core.errors import DeploymentRefused, PrefectUnreachable, RunUnknown
from backprop_core.schema.refs import RunResult
from flows.server.web import forms, line_runs, rows, state
from flows.server.web.json_bodies import body_like, given, parsed
from flows.server.web.people import person_of
from flows.server.web.rows import Added
from flows.server.web.state import Sources
from flows.server.web.try_answers import Trial, Trials
from flows.server.web.try_records import MOST, TryRequest, TryRow, TryState, TryTurn, TryVote
from tasks.runs.answer_votes import Votes, votes_on

LARGEST, LARGEST_FILE = 2**18, 2**20  # bytes of a request, and of a file of questions
LOOK, ALIVE = 0.05, 10.0  # seconds between two looks for an event, and between two signs of life
EVENTS: dict[str, Any] = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}


def add_routes(api: FastAPI, sources: Sources, trials: Trials) -> None:
    """Add them to the API of a home. What is asked and corrected is not in the audit log; a vote is."""

    @api.post("/lines/{name}/try", openapi_extra=body_like(TryRequest))
    async def ask(name: str, request: Request) -> TryState:
        """Ask the models of a line. The answers come at …/try/ID/events."""
        asked = parsed(TryRequest, await forms.body_of(request, LARGEST))
        return (await run_in_threadpool(begin, name, asked, sources, trials)).state()

    @api.get("/lines/{name}/try/{id}")
    def trial(name: str, id: str) -> TryState:
        """What was answered so far."""
        return trials.known(name, id).state()

    @api.get("/lines/{name}/try/{id}/events", response_class=StreamingResponse, responses={200: EVENTS})
    async def events(name: str, id: str, request: Request) -> StreamingResponse:
        """Server-sent events: `begins`, `text` for each piece, `done` for each answer, `error`, `end`.

        `done` has the whole text; from then on the pieces are not sent.
        """
        last = request.headers.get("last-event-id", "")
        begin = int(last) + 1 if last.isascii() and last.isdigit() and len(last) < 10 else 0
        return StreamingResponse(stream(trials.known(name, id), begin), media_type="text/event-stream")

    @api.post("/lines/{name}/try/{id}/stop")
    async def stop(name: str, id: str) -> TryState:
        """End it; what was written stays."""
        known = trials.known(name, id)
        trials.stop(known)
        return known.state()

    @api.post("/lines/{name}/try/{id}/votes", openapi_extra=body_like(TryVote))
    async def vote(name: str, id: str, request: Request) -> TryState:
        """Keep a vote in the record of the version or candidate; then the hidden names are shown."""
        said = await given(request, TryVote)
        by = person_of(request).name or ""
        state.checked(name, sources)  # it may have been deleted since
        return await run_in_threadpool(trials.vote, trials.known(name, id), said, by)

    @api.post("/lines/{name}/try/{id}/rows", openapi_extra=body_like(TryRow))
    async def correct(name: str, id: str, request: Request) -> Added:
        """Add the conversation with a corrected answer to the data of the line, checked as a file of rows is."""
        row = parsed(TryRow, await forms.body_of(request, LARGEST))
        return await add_row(trials.known(name, id), row, sources)

    @api.post("/lines/{name}/try/questions")
    async def questions(name: str, filename: str, request: Request) -> list[list[TryTurn]]:
        """The conversations in a file of rows, the body: each up to its last answer."""
        state.checked(name, sources)
        return await run_in_threadpool(questions_in, filename, await forms.body_of(request, LARGEST_FILE))

    @api.get("/lines/{name}/votes/{run_id}")
    def votes(name: str, run_id: str) -> Votes:
        """The votes on what a run made."""
        return votes_on(state.checked(name, sources), checked_run(run_id), sources.config)


def begin(name: str, asked: TryRequest, sources: Sources, trials: Trials) -> Trial:
    """Start a trial. Raises RunUnknown, ConfigInvalid, DeviceBusy."""
    return trials.begin(state.checked(name, sources), asked, candidate(name, sources))


def candidate(name: str, sources: Sources) -> RunResult | None:
    """What waits for a person; None if nothing does, or while Prefect is away."""
    with suppress(PrefectUnreachable, DeploymentRefused):
        waiting = line_runs.waiting(sources.prefect, sources.config.namespace, name)
        return next((each.candidate for each in waiting if each.candidate), None)
    return None


def checked_run(run_id: str) -> str:
    """A run_id. Raises RunUnknown for anything else."""
    if not re.fullmatch("[0-9a-f]{32}", run_id):
        raise RunUnknown(f"{run_id[:40]} is no run_id", hint="use the 32 digits of a run")
    return run_id


async def stream(trial: Trial, position: int) -> AsyncIterator[str]:
    """The events of a trial, as they come, from a position on."""
    quiet = 0.0
    while True:
        ended = trial.ended
        for number, event in [each for each in trial.events if each[0] >= position]:
            yield f"id: {number}\ndata: {json.dumps(event)}\n\n"
            position, quiet = number + 1, 0.0
        if ended:
            return
        await asyncio.sleep(LOOK)
        quiet += LOOK
        if quiet > ALIVE:  # so that a browser that has gone is noticed
            yield ": still there\n\n"
            quiet = 0.0


async def add_row(trial: Trial, row: TryRow, sources: Sources) -> Added:
    """Put a corrected conversation beside the other rows of the line. Raises what `rows.add` raises."""
    from tasks.runs.trials import as_row

    turns = [*trial.messages(row.question), {"role": "assistant", "content": row.answer}]
    content = await run_in_threadpool(as_row, trial.line, turns, sources.config)

    async def body() -> AsyncIterator[bytes]:
        yield content

    return await rows.add(trial.line, "corrected.jsonl", body(), sources)


def questions_in(filename: str, content: bytes) -> list[list[TryTurn]]:
    """The conversations of a file. Raises what reading it raises."""
    from tasks.runs.trials import questions

    with TemporaryDirectory(prefix="backprop-questions-") as scratch:
        path = Path(scratch) / rows.cleaned(filename)
        path.write_bytes(content)
        found = questions(str(path), MOST)
    return [[parsed(TryTurn, json.dumps(turn).encode()) for turn in turns] for turns in found]
