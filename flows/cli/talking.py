"""Verbs that talk to a model."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from backprop_core.errors import BackpropError, ConfigInvalid, DeviceBusy
from backprop_core.runtime.printable_text import printable
from backprop_core.runtime.settings import settings
from backprop_core.schema.specs import GenerationSpec
from flows.cli.config_layers import generation_spec
from flows.cli.console import configure_logging, error_text, one_line, say
from flows.cli.flags import PLAIN, AdapterName, BaseName, OutputFlags, do
from flows.cli.main import Answer
from flows.cli.running import shown
from tasks.runs.progress import Progress, report

if TYPE_CHECKING:
    from tasks.runs.model_session import Model, ModelSession, Turn

LONGEST = "512"  # tokens of an answer that a person reads
MOST = 200  # questions of a file
HINT = "Ctrl-C stops an answer, /reset begins a new conversation, /quit or Ctrl-D ends."
Longest = Annotated[str, Parameter(help="Maximum tokens per answer.", metavar="INT")]
System = Annotated[str | None, Parameter(help="System prompt.")]
Temperature = Annotated[str | None, do("evaluation.generation.temperature")]
Seed = Annotated[str | None, do("evaluation.generation.seed")]


def chat(
    ref: AdapterName,
    /,
    *,
    system: System = None,
    max_new_tokens: Longest = LONGEST,
    temperature: Temperature = None,
    seed: Seed = None,
    model: BaseName = None,
    output: OutputFlags = PLAIN,
) -> Answer | None:
    spec = generation_spec({"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed})
    configure_logging(settings(), verbose=output.verbose)
    first = [{"role": "system", "content": system}] if system else []
    with talking() as session:
        chat = Chat(session, session.model(ref, model), spec, first, silent=output.json)
        session.warm()
        (converse if sys.stdin.isatty() else read_all)(chat)
    return Answer({"messages": chat.messages}, "") if output.json else None


class Chat:
    """A conversation. Answers are printed while they are written, unless it is `silent`."""

    def __init__(
        self, session: "ModelSession", model: "Model", spec: GenerationSpec, first: list["Turn"], *, silent: bool
    ) -> None:
        self._session, self._model, self._spec, self._first, self._silent = session, model, spec, first, silent
        self.messages = [*first]

    def reset(self) -> None:
        """Begin a new conversation."""
        self.messages = [*self._first]

    def ask(self, text: str) -> None:
        """Ask, and print the answer. What was written until an interrupt stays in the conversation."""
        written: list[str] = []
        asked = [*self.messages, {"role": "user", "content": text}]

        def hear(piece: str) -> None:
            written.append(piece)
            if not self._silent:
                print(printable(piece), end="", flush=True)

        try:
            self._session.answer(self._model, asked, self._spec, hear)
        finally:
            if written:
                self.messages = [*asked, {"role": "assistant", "content": "".join(written)}]
                if not self._silent:
                    print(flush=True)


def converse(chat: Chat) -> None:
    """Talk with a person at a terminal."""
    import readline  # noqa: F401 - lets `input` edit lines

    say(HINT)
    while True:
        try:
            text = input("> ").strip()
        except KeyboardInterrupt:
            say("\nCtrl-D ends.")
            continue
        except EOFError:
            print(flush=True)
            return
        if text == "/quit":
            return
        if text == "/reset":
            chat.reset()
        elif text:
            try:
                chat.ask(text)
            except KeyboardInterrupt:
                say("stopped")
            except BackpropError as error:
                say(error_text(error))


def read_all(chat: Chat) -> None:
    """Take each line of stdin as a question."""
    for line in sys.stdin:
        text = line.strip()
        if text == "/quit":
            return
        if text == "/reset":
            chat.reset()
        elif text:
            chat.ask(text)


def compare(
    a: AdapterName,
    b: Annotated[str, Parameter(help="Another one, or `base`: the base model of the first.")],
    /,
    *,
    prompt: Annotated[list[str] | None, Parameter(help="User message. Repeat it for several.", negative="")] = None,
    data: Annotated[str | None, Parameter(help="File of rows; each is asked up to its last answer.")] = None,
    system: System = None,
    max_new_tokens: Longest = LONGEST,
    temperature: Temperature = None,
    seed: Seed = None,
    model: BaseName = None,
    output: OutputFlags = PLAIN,
) -> Answer:
    from tasks.runs.trials import questions

    spec = generation_spec({"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed})
    if bool(prompt) == bool(data):
        raise ConfigInvalid("compare needs either --prompt or --data", hint='add --prompt "…", or --data FILE')
    first = [{"role": "system", "content": system}] if system else []
    asked = questions(data, MOST) if data else [[{"role": "user", "content": text}] for text in prompt or ()]
    with shown(output), talking() as session:
        one = session.model(a, model)
        other = one.alone if b == "base" else session.model(b)
        rows = [
            {"messages": turns, "a": answer_of(session, one, turns, spec), "b": answer_of(session, other, turns, spec)}
            for turns in counted([[*first, *turns] for turns in asked])
        ]
    return Answer({"a": a, "b": b, "answers": rows}, side_by_side(a, b, rows))


def counted(asked: list[list["Turn"]]) -> Iterator[list["Turn"]]:
    """The questions one by one, with progress."""
    for done, turns in enumerate(asked):
        report(Progress(stage="compare", done=done, total=len(asked)))
        yield turns


def answer_of(session: "ModelSession", model: "Model", turns: list["Turn"], spec: GenerationSpec) -> str:
    """The answer of a model, asked again whenever a run took the device in the middle of it."""
    while True:
        with suppress(DeviceBusy):
            return session.answer(model, turns, spec, lambda piece: None).text


def side_by_side(a: str, b: str, rows: list[dict[str, Any]]) -> RenderableType:
    """Each question with both answers beside each other, and how many differ."""
    blocks: list[RenderableType] = []
    for row in rows:
        made = Table(box=None, pad_edge=False, header_style="bold", expand=sys.stdout.isatty())
        for name in (a, b):
            made.add_column(one_line(name), ratio=1, overflow="fold")
        made.add_row(*(Text(printable(str(row[side]))) for side in "ab"))
        blocks += [Text(printable(str(row["messages"][-1]["content"])), style="bold cyan"), made, Text("")]
    differ = sum(row["a"] != row["b"] for row in rows)
    return Group(*blocks, Text(f"{differ} of {len(rows)} answers differ"))


@contextmanager
def talking() -> Iterator["ModelSession"]:
    """A session; Ctrl-C raises KeyboardInterrupt each time, not only the first, while it lasts."""
    from tasks.runs.model_session import ModelSession

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    session = ModelSession(settings(), waits=True)
    try:
        yield session
    finally:
        signal.signal(signal.SIGINT, before)
        session.close()
