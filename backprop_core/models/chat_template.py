"""Renders chat templates in a jinja2 sandbox with a fixed date and a time limit. No torch."""

import ctypes
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
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

SECONDS = 60.0  # time limit; a thousandth is usual
# Every template sees this date, so that results do not depend on the day: the default date of Llama's templates.
NOW = datetime(2024, 7, 26)  # without a time zone, as in transformers
SINCE_1970 = str(int(NOW.replace(tzinfo=UTC).timestamp()))
TODAY = f"{NOW:%d %b %Y}"
CLOCK = {"strftime_now", "date_string"}  # names with which templates render the date
CHANCE = {"random", "lipsum"}  # jinja2's random functions
ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")  # repr of a function or generator that was not called
FAULTS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
HINT = "put a working chat_template.jinja beside the model's tokenizer.json"
ASKED = {"role": "user", "content": "a"}
ANSWERED = {"role": "assistant", "content": "b"}
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def check(template: str, special: Mapping[str, Any]) -> None:
    """Check a template by rendering a question, and a question with its answer.

    `special` has the special tokens from the tokenizer's files; placeholders stand for the others, which the tokenizer
    class may define. Raises ChatTemplateUnusable if rendering fails, takes longer than SECONDS, or writes a memory
    address.
    """
    tokens = named(special)
    with limit():
        for messages, begins in (([ASKED], True), ([ASKED, ANSWERED], False)):
            text = render(template, messages, special=tokens, add_generation_prompt=begins)
            if found := ADDRESS.search(text):
                raise ChatTemplateUnusable(
                    f"the chat template writes {found[0]}, which differs in each process", hint=HINT
                )


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    special: Mapping[str, Any],
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Render a conversation as transformers would on the date NOW. Raises ChatTemplateUnusable.

    `special` maps names of special tokens to their text.
    """
    given = {"tools": list(tools) or None, "documents": None, **special, "date_string": TODAY}
    with coded():
        return compiled(template).render(messages=messages, add_generation_prompt=add_generation_prompt, **given)


def clock(template: str) -> str | None:
    """The ISO date that a template renders into conversations; None if it uses no date."""
    with coded():
        names = {name.name for name in sandbox().parse(template).find_all(nodes.Name)}
    return NOW.date().isoformat() if names & CLOCK else None


def named(special: Mapping[str, Any]) -> dict[str, str]:
    """All special tokens as text, with placeholders for missing ones."""
    return {name: text_of(special.get(name) or f"<{name}>") for name in SPECIAL}


def text_of(token: Any) -> str:
    """The text of a special token, saved as a string or as an AddedToken."""
    return str(token["content"] if isinstance(token, dict) else token)


class Generation(Extension):
    """Support for `{% generation %}`, which marks assistant text: renders its content unchanged, in its own scope."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class PlainDict:
    """`dict` for templates, without attributes that lead to Python's own type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class PlainNamespace(Namespace):
    """jinja2's namespace, without names that start with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=…)` works
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            public(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        public(name)
        super().__setitem__(name, value)


def public(name: Any) -> None:
    """Raise SecurityError for a name that starts with an underscore."""
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template cannot set {name!r} on a namespace")


@lru_cache(maxsize=8)
def compiled(template: str) -> Template:
    """Compile a template."""
    made = sandbox().from_string(template)
    made.globals = dict(made.globals)  # jinja2's ChainMap is copied ten times slower, for each rendering
    return made


def sandbox() -> ImmutableSandboxedEnvironment:
    """The jinja2 sandbox of transformers, with a fixed date and without random functions.

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
    """Format the fixed date. Replaces `%s` (seconds since 1970), which would depend on the machine's time zone."""
    return NOW.strftime(re.sub("%[%s]", lambda found: SINCE_1970 if found[0] == "%s" else found[0], how))


def to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    """`tojson` filter; jinja2's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


def refuse(message: str) -> None:
    """`raise_exception` for templates."""
    raise TemplateError(message)


class TookTooLong(Exception):
    """A block exceeded its time limit."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TookTooLong in this thread, between two bytecodes, if the block takes longer than `seconds`.

    A second thread raises it, which works in any thread and on any platform; a signal does not.
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
    """Raise ChatTemplateUnusable if rendering takes longer than SECONDS."""
    try:
        with limited(SECONDS):
            yield
    except TookTooLong as error:
        raise ChatTemplateUnusable(f"the chat template was still running after {SECONDS} s", hint=HINT) from error


@contextmanager
def coded() -> Iterator[None]:
    """Turn errors of a template into ChatTemplateUnusable."""
    try:
        yield
    except FAULTS as error:
        raise ChatTemplateUnusable(f"the chat template fails: {error}", hint=HINT) from error
