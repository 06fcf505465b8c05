"""Chat templates before anything is loaded: that they render, and that they come to an end. No torch."""

import ctypes
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backprop_core.errors import ChatTemplateUnusable

SECONDS = 60.0  # at most; a thousandth is usual
TODAY = "26 Jul 2024"  # what Llama's templates write where no date is given: a run must not depend on its day
FAULTS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
HINT = "put a working chat_template.jinja beside the model's tokenizer.json"
ASKED = {"role": "user", "content": "a"}
ANSWERED = {"role": "assistant", "content": "b"}
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def check(template: str, special: dict[str, Any]) -> None:
    """Render a question, and one with its answer, in a sandbox that has what transformers gives to a template.

    `special` has the tokens that the tokenizer's files name. Its class may have the others, which are made up here:
    whether it has is seen when the tokenizer is loaded. Raises ChatTemplateUnusable if rendering fails or takes longer
    than SECONDS.
    """
    tokens = {name: text_of(special.get(name) or f"<{name}>") for name in SPECIAL}
    given = {"tools": None, "documents": None, "date_string": TODAY, **tokens}
    with limit(), coded():
        compiled = sandbox().from_string(template)
        for messages, begins in (([ASKED], True), ([ASKED, ANSWERED], False)):
            compiled.render(messages=messages, add_generation_prompt=begins, **given)


def text_of(token: Any) -> str:
    """A special token as a tokenizer's files have it: its text, or what is saved of an AddedToken."""
    return str(token["content"] if isinstance(token, dict) else token)


class Generation(Extension):
    """`{% generation %}` marks what the assistant wrote; what it holds is rendered as if the mark were not there."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def sandbox() -> ImmutableSandboxedEnvironment:
    """Where a template is rendered. [transformers, chat_template_utils]"""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": datetime.now().strftime}
    return environment


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
