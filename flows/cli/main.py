"""The command line. Importing it loads no verb: each lies in a module of its own, and prints nothing itself."""

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

from backprop_core.errors import BackpropError, ConfigInvalid, Interrupted, Unexpected, system_error
from backprop_core.schema.flows import FLOWS
from flows.cli.console import error_text, one_line, say, trace_text

NO_FLOWS = {  # the other verbs: where each is, and its line in --help
    "demo": ("running", "The whole way on a small base and small datasets; no GPU needed."),
    "resume": ("running", "Go on with an interrupted run, from its own record."),
    "replay": ("running", "What an earlier run was asked, again: the same spec, or with a change."),
    "generate": ("running", "Let what a run made answer prompts."),
    "list-runs": ("history", "What runs there were, newest first."),
    "show-run": ("history", "One run: how it ended, the forgetting matrix, its files."),
    "lines": ("history", "Every line: its champion, versions and tasks."),
    "sync": ("history", "Send MLflow what was recorded while it did not answer."),
    "serve": ("serving", "Prefect and MLflow in a browser, every deployment, and a worker, until Ctrl-C."),
    "ui": ("serving", "The same as serve."),
    "deploy": ("serving", "Deployments, schedules and automations on the Prefect server."),
    "watch": ("serving", "Start a line's retrain when there is new data, on a Prefect server, until Ctrl-C."),
    "init": ("maintenance", "A line's job as a file with comments: lines/LINE.yaml."),
    "estimate-vram": ("maintenance", "What a run would take of a GPU, and which settings fit it."),
    "doctor": (
        "maintenance",
        "Whether this machine can do the job, part by part, and what to do about what is not there.",
    ),
    "info": ("maintenance", "Versions, devices, settings and places; or every error code."),
}


def verbs() -> dict[str, tuple[str, str]]:
    """Every verb in the order of --help: its module, and its line there."""
    names = list(NO_FLOWS)
    of_flows = {flow.verb.name: flow.verb for flow in FLOWS.values() if flow.verb}
    for verb in of_flows.values():
        names.insert(names.index(verb.after) + 1, verb.name)
    return {name: of_flows[name][1:3] if name in of_flows else NO_FLOWS[name] for name in names}


def build() -> App:
    """All verbs, none of them loaded."""
    app = App(
        name="backprop",
        help="New data in, the next version of a fine-tuned model out, without losing what it knew.",
        version=version,
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    for place, (verb, (module, help_)) in enumerate(verbs().items()):
        app.command(f"flows.cli.{module}:{verb.replace('-', '_')}", name=verb, help=help_, sort_key=place)
    store = App(name="store", help="Look after the artifacts.", help_format="plaintext")
    store.command(
        "flows.cli.maintenance:store_check", name="check", help="Read everything; say what is damaged or missing."
    )
    store.command(
        "flows.cli.maintenance:store_prune",
        name="prune",
        help="List, ask, then delete what no version, recent result, pin or unfinished run needs.",
    )
    store.command(
        "flows.cli.maintenance:store_keep", name="keep", help="Pin what no prune may delete; or list the pins."
    )
    app.command(store)
    return app


def version() -> str:
    """The installed version."""
    from importlib.metadata import version

    return version("backpropagate-pipeline")


@dataclass(frozen=True)
class Answer:
    """What a verb has to say: a JSON document, the same for people, and its exit status."""

    document: Any
    text: Any  # what rich can print
    status: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. stdout gets the result, stderr all the rest."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    as_json, verbose = "--json" in words, "--verbose" in words
    try:
        answer = build()(words, exit_on_error=False, print_error=False, result_action="return_value")
        if isinstance(answer, Answer):  # else it was --help or --version, which cyclopts has printed
            return printed(answer, as_json=as_json)
        return 0
    except BrokenPipeError:
        return closed_stdout()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # the outermost frame
        return failed(error, as_json=as_json, verbose=verbose)


def stop(number: int, frame: FrameType | None) -> None:
    """Ctrl-C or SIGTERM: let everything end in order; the second time, at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt


def printed(answer: Answer, *, as_json: bool) -> int:
    """Print an answer to stdout."""
    if as_json:
        print(json.dumps(answer.document, ensure_ascii=False, allow_nan=False), flush=True)
    else:
        from flows.cli.tables import show

        show(answer.text)
        sys.stdout.flush()
    return answer.status


def failed(error: BaseException, *, as_json: bool, verbose: bool) -> int:
    """Say what went wrong, in two lines, and with --json as a document too."""
    coded = as_coded(error)
    if verbose:
        say(trace_text(error))
    say(error_text(coded))
    if as_json:
        described = {
            "code": coded.code,
            "message": one_line(coded.message),
            "hint": one_line(coded.hint),
            "retryable": coded.retryable,
        }
        print(json.dumps({"run_id": coded.run_id, "error": described}, ensure_ascii=False), flush=True)
    return coded.exit_status


def as_coded(error: BaseException) -> BackpropError:
    """Whatever ended a command, with its code."""
    match error:
        case BackpropError():
            return error
        case CycloptsError():
            error.verbose = False
            message, _, meant = str(error).partition(" Did you mean ")
            hint = f"did you mean {meant}" if meant else f"see: backprop {' '.join(error.command_chain or ())} --help"
            return ConfigInvalid(message.rstrip("."), hint=" ".join(hint.split()))
        case KeyboardInterrupt():
            return interruption(error)
        case _:
            fault = Unexpected(f"{type(error).__name__}: {error}", hint="this is our fault; --verbose shows where")
            return system_error(error) or fault


def interruption(error: BaseException) -> BackpropError:
    """How the run was interrupted, if one had begun."""
    while error.__context__ and not isinstance(error, Interrupted):
        error = error.__context__
    if isinstance(error, Interrupted):
        return error
    return Interrupted("stopped before a run had begun", hint="run it again")


def closed_stdout() -> int:
    """Whoever reads stdout has gone, as `head` does: end quietly, with the status that shells expect."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13
