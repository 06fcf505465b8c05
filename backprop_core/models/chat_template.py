"""Chat templates: rendered in one sandbox, with one fixed clock, wherever a conversation becomes text. No torch."""

import ctypes
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from backprop_core.errors import ChatTemplateUnusable

SECONDS = 60.0  # at most; a thousandth is usual
# The day that every template sees, whenever it is rendered: the one that Llama's templates write where they get none.
NOW = datetime(2024, 7, 26)  # without a time zone, as transformers has it
SINCE_1970 = str(int(NOW.replace(tzinfo=UTC).timestamp()))
TODAY = f"{NOW:%d %b %Y}"
CLOCK = {"strftime_now", "date_string"}  # what templates write the day with
CHANCE = {"random", "lipsum"}  # jinja2's own, other in each process
ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")  # a function or a generator that is not called
FAULTS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
HINT = "put a working chat_template.jinja beside the model's tokenizer.json"
ASKED = {"role": "user", "content": "a"}
ANSWERED = {"role": "assistant", "content": "b"}
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def check(template: str, special: Mapping[str, Any]) -> None:
    """Render a question, and one with its answer.

    `special` has the tokens that the tokenizer's files name. Its class may have the others, which are made up here:
    whether it has is seen when the tokenizer is loaded. Raises ChatTemplateUnusable if rendering fails, takes longer
    than SECONDS, or writes an address in memory.
    """
    tokens = named(special)
    with limit():
        for messages, begins in (([ASKED], True), ([ASKED, ANSWERED], False)):
            text = render(template, messages, special=tokens, add_generation_prompt=begins)
            if found := ADDRESS.search(text):
                raise ChatTemplateUnusable(f"the chat template writes {found[0]}, another in each process", hint=HINT)


def render(
    template: str, messages: Sequence[Mapping[str, Any]], *, special: Mapping[str, Any], add_generation_prompt: bool
) -> str:
    """The conversation as transformers would write it on the day NOW. Raises ChatTemplateUnusable.

    `special` are the tokenizer's special tokens by name, as text.
    """
    given = {"tools": None, "documents": None, **special, "date_string": TODAY}
    with coded():
        return compiled(template).render(messages=messages, add_generation_prompt=add_generation_prompt, **given)


def clock(template: str) -> str | None:
    """The day that a template writes into its conversations, as an ISO date; None if it asks for none."""
    with coded():
        names = {name.name for name in sandbox().parse(template).find_all(nodes.Name)}
    return NOW.date().isoformat() if names & CLOCK else None


def named(special: Mapping[str, Any]) -> dict[str, str]:
    """Every special token as text, those that no file names made up."""
    return {name: text_of(special.get(name) or f"<{name}>") for name in SPECIAL}


def text_of(token: Any) -> str:
    """A special token as a tokenizer's files have it: its text, or what is saved of an AddedToken."""
    return str(token["content"] if isinstance(token, dict) else token)


class Generation(Extension):
    """`{% generation %}` marks what the assistant wrote; what it holds is rendered as if the mark were not there."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("inside"), [], [], body).set_lineno(line)

    def inside(self, caller: Callable[[], str]) -> str:
        """A scope of its own: what is set in the block ends with it."""
        return caller()


class PlainDict:
    """What a template calls as `dict`: makes dictionaries, and has no attribute that leads to Python's own type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class PlainNamespace(Namespace):
    """jinja2's namespace, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=…)` works
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            public(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        public(name)
        super().__setitem__(name, value)


def public(name: Any) -> None:
    """Refuse a name of Python's own."""
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template cannot set {name!r} on a namespace")


@lru_cache(maxsize=8)
def compiled(template: str) -> Template:
    """The template, ready to render."""
    return sandbox().from_string(template)


def sandbox() -> ImmutableSandboxedEnvironment:
    """Where a template is rendered: what transformers gives to one, but a fixed clock, and nothing that is drawn.

    [transformers, chat_template_utils]
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": strftime_now}
    environment.globals |= {"dict": PlainDict(), "namespace": PlainNamespace}
    for name in CHANCE:
        environment.filters.pop(name, None)
        environment.globals.pop(name, None)
    return environment


def strftime_now(how: str) -> str:
    """The fixed time in this format. `%s`, seconds since 1970, would go by the machine's time zone if it were left."""
    return NOW.strftime(re.sub("%[%s]", lambda found: SINCE_1970 if found[0] == "%s" else found[0], how))


def to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    """jinja2's own writes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


def refuse(message: str) -> None:
    """What a template calls where it cannot go on."""
    raise TemplateError(message)


class TookTooLong(Exception):
    """A block ran out of its time."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises TookTooLong in this thread, between two steps of its Python code, when the block takes longer.

    A second thread sets the exception: that works in any thread and on any platform, where a signal does not.
    """
    thread, guard, over = ctypes.c_ulong(threading.get_ident()), threading.Lock(), False

    def stop() -> None:
        with guard:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TookTooLong))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with guard:
            over = True
        timer.cancel()


@contextmanager
def limit() -> Iterator[None]:
    """Raises ChatTemplateUnusable where a template loops."""
    try:
        with limited(SECONDS):
            yield
    except TookTooLong as error:
        raise ChatTemplateUnusable(f"the chat template was still running after {SECONDS} s", hint=HINT) from error


@contextmanager
def coded() -> Iterator[None]:
    """Raises ChatTemplateUnusable for a template that fails, with its own words."""
    try:
        yield
    except FAULTS as error:
        raise ChatTemplateUnusable(f"the chat template fails: {error}", hint=HINT) from error
