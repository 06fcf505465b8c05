"""Asks the models of a line for a page. Who asks waits for their turn; answers come as events; names may be hidden.

What was asked lives in this process until newer questions push it out; only votes are kept, in the record of the line.
"""

import queue
import random
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from backprop_core.errors import (
    AlreadyAnswered,
    BackpropError,
    ConfigInvalid,
    DeploymentRefused,
    DeviceBusy,
    Interrupted,
    PrefectUnreachable,
    RunUnknown,
    Unexpected,
)
from backprop_core.schema.flows import FLOWS
from backprop_core.schema.refs import Generated, RunResult
from backprop_core.schema.specs import GenerationSpec
from flows.run_states import WAITING
from flows.server.web.line_runs import flow_runs
from flows.server.web.state import Sources
from flows.server.web.text import when
from flows.server.web.try_records import TryAnswer, TryRequest, TryState, TryVote
from tasks.runs.answer_votes import Verdict, Vote, add

if TYPE_CHECKING:
    from tasks.runs.model_session import ModelSession
    from tasks.runs.trials import Contender

KEPT = 50  # trials in memory
QUEUE = 8  # trials that wait for their turn


class Trial:
    """Conversations and the models that answer them. One thread appends events, any reads them."""

    def __init__(self, line: str, asked: TryRequest, contenders: "Sequence[Contender]") -> None:
        self.id, self.line, self.at = secrets.token_hex(16), line, datetime.now(UTC)
        self.request = asked
        self.seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
        self.contenders = list(contenders[:2] if asked.blind else contenders)
        self.orders = [self._order(number) for number in range(len(asked.conversations))]
        self.texts = [["" for _ in self.contenders] for _ in asked.conversations]
        self.made: list[list[Generated | None]] = [[None for _ in self.contenders] for _ in asked.conversations]
        self.votes: list[Verdict | None] = [None for _ in asked.conversations]
        self.events: list[tuple[int, dict[str, Any]]] = []  # with their numbers
        self._said = 0
        self.error: BackpropError | None = None
        self.began = 0.0  # when the first piece of the newest answer came, on the monotonic clock
        self.ended = self.stopped = False

    def _order(self, number: int) -> list[int]:
        """Which model stands in each column."""
        order = list(range(len(self.contenders)))
        if self.request.blind:
            random.Random(f"{self.seed} {number}").shuffle(order)
        return order

    @property
    def compared(self) -> "tuple[Contender, Contender] | None":
        """The model that a vote is about, and the one beside it: candidate and live, or live and base."""
        if len(self.contenders) < 2:
            return None
        first, second, *_ = self.contenders
        return (second, first) if second.name == "Candidate" or first.run_id is None else (first, second)

    @property
    def spec(self) -> GenerationSpec:
        asked = self.request
        return GenerationSpec(max_new_tokens=asked.max_new_tokens, temperature=asked.temperature, seed=self.seed)

    def messages(self, number: int) -> list[dict[str, str]]:
        """A conversation. Raises RunUnknown."""
        if number >= len(self.orders):
            raise RunUnknown("there is no such question", hint="load the page again")
        return [turn.model_dump() for turn in self.request.conversations[number]]

    def column(self, number: int, model: "Contender") -> int:
        """Where the answer of a model stands."""
        return self.orders[number].index(self.contenders.index(model))

    def check(self) -> None:
        """Raise Interrupted if it was stopped."""
        if self.stopped:
            raise Interrupted("the answer was stopped", hint="ask again")

    def say(self, **event: Any) -> None:
        self.events.append((self._said, event))
        self._said += 1

    def wrote(self, number: int, column: int, made: Generated) -> None:
        """Keep an answer in place of its pieces. The other events keep their numbers."""
        self.made[number][column], self.texts[number][column] = made, ""
        self.events = [(place, event) for place, event in self.events if event["kind"] != "text"]
        seconds = round(time.monotonic() - self.began, 3)
        self.say(kind="done", question=number, column=column, **made.model_dump(), seconds=seconds)

    def state(self) -> TryState:
        error, pair, columns = self.error, self.compared, range(len(self.contenders))
        return TryState(
            id=self.id,
            line=self.line,
            asked=self.at,
            seed=self.seed,
            blind=self.request.blind,
            compared=[each.name for each in pair] if pair else None,
            answers=[[self._answer(number, column) for column in columns] for number in range(len(self.orders))],
            votes=list(self.votes),
            ended=self.ended,
            error={"code": error.code, "message": error.message, "hint": error.hint} if error else None,
        )

    def _answer(self, number: int, column: int) -> TryAnswer:
        made, hidden = self.made[number][column], self.request.blind and self.votes[number] is None
        return TryAnswer(
            name=None if hidden else self.contenders[self.orders[number][column]].name,
            text=made.text if made else self.texts[number][column],
            done=made is not None,
            stopped=made is not None and made.stopped,
        )


class Trials:
    """Carries out trials one after another, in a thread that begins with the first."""

    def __init__(self, sources: Sources) -> None:
        self._sources, self._config, self._guard = sources, sources.config, threading.Lock()
        self._known: OrderedDict[str, Trial] = OrderedDict()
        self._due: queue.Queue[Trial] = queue.Queue()
        self._session: ModelSession | None = None
        self._thread: threading.Thread | None = None
        self._now: Trial | None = None

    def begin(self, line: str, asked: TryRequest, waits: RunResult | None) -> Trial:
        """Start a trial. Raises RunUnknown; ConfigInvalid for a blind one of one model; DeviceBusy if too many wait."""
        from tasks.runs.trials import contenders

        trial = Trial(line, asked, contenders(line, asked.models, waits, self._config))
        if asked.blind and trial.compared is None:
            raise ConfigInvalid("there is only one model to ask", hint="ask without hiding its name")
        with self._guard:
            before = self._due.qsize() + (self._now is not None)
            if before > QUEUE:
                raise DeviceBusy(f"{before} others have asked before", hint="ask again in a minute")
            self._known[trial.id] = trial
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            trial.say(kind="begins", before=before)
            self._due.put(trial)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="trials", daemon=True)
                self._thread.start()
        return trial

    def known(self, line: str, id: str) -> Trial:
        """A trial of a line. Raises RunUnknown."""
        trial = self._known.get(id)
        if trial is None or trial.line != line:
            raise RunUnknown("these answers are not known any more", hint="ask again")
        return trial

    def stop(self, trial: Trial) -> None:
        """End a trial at its next piece; what was written stays."""
        trial.stopped = True

    def vote(self, trial: Trial, given: TryVote, by: str) -> TryState:
        """Keep a vote in the record of the line. Raises what `verdict` raises."""
        with self._guard:
            said = verdict(trial, given)
            add(trial.line, record(trial, given, said, by), self._config)
            trial.votes[given.question] = said
        return trial.state()

    def close(self) -> None:
        """End the session and its worker."""
        for trial in list(self._known.values()):
            trial.stopped = True
        if self._session:
            self._session.close()

    def _work(self) -> None:
        from tasks.runs.model_session import ModelSession

        self._session = self._session or ModelSession(self._config, waits=False)
        while True:
            trial = self._now = self._due.get()
            try:
                carry_out(trial, self._session)
            except DeviceBusy as error:
                trial.error = named(error, self._sources)
            except BackpropError as error:
                trial.error = error
            except (OSError, ValueError, LookupError) as error:
                trial.error = Unexpected(f"{type(error).__name__}: {error}", hint="ask again")
            finally:
                self._now = None
                if failed := trial.error:
                    trial.say(kind="error", code=failed.code, message=failed.message, hint=failed.hint)
                trial.say(kind="end")
                trial.ended = True


def named(error: DeviceBusy, sources: Sources) -> DeviceBusy:
    """The error with what runs and since when, if Prefect knows."""
    with suppress(PrefectUnreachable, DeploymentRefused):
        runs = [run for run in flow_runs(sources.prefect, ["RUNNING"], None, list(FLOWS)) if run.state != WAITING]
        if known := [f"{run.name} since {when(run.at)}" for run in runs if run.at]:
            return DeviceBusy(f"the device is in use: {', '.join(known)}", hint=error.hint)
    return error


def carry_out(trial: Trial, session: "ModelSession") -> None:
    """Ask each model each question, in the order of the columns. Raises Interrupted if the trial was stopped."""
    for number, order in enumerate(trial.orders):
        for column, model in enumerate(order):
            trial.check()
            trial.began, hear = time.monotonic(), hearing(trial, number, column)
            made = session.answer(trial.contenders[model].model, trial.messages(number), trial.spec, hear)
            trial.wrote(number, column, made)


def hearing(trial: Trial, number: int, column: int) -> Callable[[str], None]:
    """What takes the pieces of an answer. It raises Interrupted once the trial is stopped."""

    def hear(text: str) -> None:
        trial.check()
        if not trial.texts[number][column]:
            trial.began = time.monotonic()
        trial.texts[number][column] += text
        trial.say(kind="text", question=number, column=column, text=text)

    return hear


def verdict(trial: Trial, given: TryVote) -> Verdict:
    """What a vote says of the first of the compared models. Raises RunUnknown, ConfigInvalid, AlreadyAnswered."""
    trial.messages(given.question)
    pair = trial.compared
    if pair is None:
        raise ConfigInvalid("there is only one answer", hint="ask two models")
    if trial.votes[given.question] is not None:
        raise AlreadyAnswered("this answer has its vote", hint="ask again to vote again")
    own, other = (trial.column(given.question, each) for each in pair)
    if not (trial.made[given.question][own] and trial.made[given.question][other]):
        raise ConfigInvalid("the answers are not complete", hint="vote when both are written")
    if given.better not in (None, own, other):
        raise ConfigInvalid("that column is none of the two that are compared", hint="use the buttons")
    return "same" if given.better is None else "better" if given.better == own else "worse"


def record(trial: Trial, given: TryVote, said: Verdict, by: str) -> Vote:
    """A vote as it is kept."""
    assert trial.compared
    own, other = trial.compared
    assert own.run_id, "a base is compared with something, and nothing with it"
    texts = [trial.state().answers[given.question][trial.column(given.question, each)].text for each in (own, other)]
    return Vote(
        run_id=own.run_id,
        against=other.name,
        verdict=said,
        note=given.note.strip(),
        by=by,
        at=datetime.now(UTC),
        blind=trial.request.blind,
        seed=trial.seed,
        messages=trial.messages(given.question),
        answer=texts[0],
        other=texts[1],
        generation=trial.spec,
    )
