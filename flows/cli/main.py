"""The command line. A verb is imported when it is called; it returns an `Answer` and prints nothing itself."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from cyclopts import App, CycloptsError

from backprop_core.errors import BackpropError, Interrupted, Unexpected, system_error
from backprop_core.runtime import json_lines
from flows.cli.console import one_line, say, say_error, trace_text
from flows.cli.verb_tables import ELSEWHERE, GROUPS, verbs


def build() -> App:
    """All verbs, none of them imported."""
    app = App(
        name="backprop",
        help="New data in, the next version of a fine-tuned model out, nothing forgotten.",
        help_epilogue="Example: backprop train --data support.jsonl --steps 100",
        version=version,
        version_flags=["--version", "-V"],
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    for place, (verb, (module, help_, example)) in enumerate(verbs().items()):
        add(app, verb, f"{module}:{verb.replace('-', '_')}", help_, example, place)
    for name, group in GROUPS.items():
        part = App(name=name, help=group.help, help_epilogue="", help_format="plaintext")
        for verb, (help_, example) in group.verbs.items():
            function = f"{group.prefix}{verb}"
            add(part, verb, f"{ELSEWHERE.get(function, group.module)}:{function}", help_, example)
        app.command(part)
    return app


def add(app: App, verb: str, function: str, help_: str, example: str, place: int | None = None) -> None:
    """One verb, imported when it is called."""
    epilogue = f"Example: {example}"
    app.command(f"flows.cli.{function}", name=verb, help=help_, help_epilogue=epilogue, sort_key=place)


def version() -> str:
    """The installed version."""
    from importlib.metadata import version

    return version("backpropagate-pipeline")


VERBS = f"{__package__}."


class Verbatim(str):
    """Text for a program, such as CSV: it is printed as it is."""


@dataclass(frozen=True)
class Answer:
    """What a verb returns: a JSON document, the same as text, and the exit status."""

    document: Any
    text: Any  # Verbatim, or what rich can print
    status: int = 0
    error: BackpropError | None = None  # printed beside the result; its exit status counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. The result goes to stdout, everything else to stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    as_json, verbose = "--json" in words, "--verbose" in words
    stderr = sys.stderr
    if json_lines.is_wanted():
        json_lines.use()
    try:
        command, given, _ = build().parse_args(words, exit_on_error=False, print_error=False)
        if command.__module__.startswith(VERBS):  # else it is --help or --version
            from flows.cli.variables import say_misspelt

            say_misspelt()
        answer = command(*given.args, **given.kwargs)
        if isinstance(answer, Answer):
            return printed(answer, as_json=as_json)
        return 0
    except BrokenPipeError:
        return closed_stdout()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # the outermost frame
        return failed(error, as_json=as_json, verbose=verbose)
    finally:
        sys.stderr = stderr


def stop(number: int, frame: FrameType | None) -> None:
    """On Ctrl-C or SIGTERM, end in order; on the second, at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt


def printed(answer: Answer, *, as_json: bool) -> int:
    """Print an answer to stdout, and its error, if it has one, to stderr."""
    if as_json:
        print(json.dumps(answer.document, ensure_ascii=False, allow_nan=False), flush=True)
    elif isinstance(answer.text, Verbatim):
        print(answer.text, end="", flush=True)
    else:
        from flows.cli.tables import show

        show(answer.text)
        sys.stdout.flush()
    if answer.error:
        say_error(answer.error)
        return answer.error.exit_status
    return answer.status


def failed(error: BaseException, *, as_json: bool, verbose: bool) -> int:
    """Print an error in two lines on stderr, and with --json as a document on stdout."""
    coded = as_coded(error)
    if verbose:
        say(trace_text(error))
    say_error(coded)
    if as_json:
        print(json.dumps({"run_id": coded.run_id, "error": described(coded)}, ensure_ascii=False), flush=True)
    return coded.exit_status


def described(error: BackpropError) -> dict[str, Any]:
    """An error as a part of a JSON document."""
    message, hint = one_line(error.message), one_line(error.hint)
    return {"code": error.code, "message": message, "hint": hint, "retryable": error.retryable}


def as_coded(error: BaseException) -> BackpropError:
    """The exception that ended a command, as an error with a code."""
    match error:
        case BackpropError():
            return error
        case CycloptsError():
            from flows.cli.usage_errors import usage_error

            return usage_error(error)
        case KeyboardInterrupt():
            return interruption(error)
        case _:
            fault = Unexpected(
                f"{type(error).__name__}: {error}",
                hint="this is a bug in backprop: run it with --verbose and report the traceback",
            )
            return system_error(error) or fault


def interruption(error: BaseException) -> BackpropError:
    """The interruption of the run, if a run had begun."""
    while error.__context__ and not isinstance(error, Interrupted):
        error = error.__context__
    if isinstance(error, Interrupted):
        return error
    return Interrupted("stopped before a run began", hint="run the command again")


def closed_stdout() -> int:
    """The reader of stdout has gone, as `head` does: end quietly, with the status that shells expect."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13
