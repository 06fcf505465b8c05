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

from backprop_core.errors import BackpropError, ConfigInvalid, Interrupted, Unexpected, system_error
from backprop_core.schema.flows import FLOWS
from flows.cli.console import error_text, one_line, say, trace_text

NO_FLOWS = {  # the other verbs: module, line in --help, example
    "demo": ("running", "Train, merge, score and export on small example data; no GPU needed.", "backprop demo"),
    "resume": ("running", "Resume an interrupted run.", "backprop resume RUN_ID"),
    "replay": (
        "running",
        "Re-run an earlier run, optionally overriding fields.",
        "backprop replay RUN_ID --set training.lora.rank=16",
    ),
    "generate": (
        "running",
        "Generate answers to prompts with the adapter of a run.",
        'backprop generate support --prompt "Where is my order?"',
    ),
    "chat": (
        "talking",
        "Talk to the model of a run or line; its answers appear while they are written.",
        "backprop chat support",
    ),
    "compare": (
        "talking",
        "Ask two models the same and show their answers side by side.",
        'backprop compare support base --prompt "Where is my order?"',
    ),
    "list-runs": ("history", "List runs, newest first.", "backprop list-runs --limit 10"),
    "show-run": ("history", "Show a run: its outcome, forgetting matrix and files.", "backprop show-run RUN_ID"),
    "lines": ("history", "List lines with their champions, versions and tasks.", "backprop lines"),
    "sync": ("history", "Send MLflow what was recorded while it was unreachable.", "backprop sync"),
    "serve": (
        "serving",
        "Serve Prefect, MLflow and every deployment, with a worker, until Ctrl-C.",
        "backprop serve --port 8800",
    ),
    "ui": ("serving", "Same as serve.", "backprop ui --port 8800"),
    "deploy": (
        "serving",
        "Create or update deployments, schedules and automations on a Prefect server.",
        "backprop deploy --dry-run",
    ),
    "watch": (
        "serving",
        "Start retrains on a Prefect server when lines have new data, until Ctrl-C.",
        "backprop watch",
    ),
    "init": ("maintenance", "Write a commented job file for a line: lines/LINE.yaml.", "backprop init support"),
    "estimate-vram": (
        "maintenance",
        "Estimate the GPU memory of a run and show which settings fit.",
        "backprop estimate-vram --model qwen2.5-7b --vram 16GB",
    ),
    "doctor": ("maintenance", "Check this machine part by part and say how to fix problems.", "backprop doctor"),
    "info": ("maintenance", "Show versions, devices, settings and paths, or all error codes.", "backprop info"),
}
STORE = {  # verbs of `backprop store`: line in --help, example
    "check": ("Verify every artifact and list what is damaged or missing.", "backprop store check"),
    "prune": (
        "List what no version, recent result, pin or unfinished run needs, ask, then delete it.",
        "backprop store prune --dry-run",
    ),
    "keep": ("Pin artifacts so that prune keeps them, or list the pins.", "backprop store keep RUN_ID"),
}
DATA = {  # verbs of `backprop data`: line in --help, example
    "report": (
        "Report what is in datasets: rows by outcome, lengths, duplicates, and rows as training sees them.",
        "backprop data report support.jsonl --output report.html --fail-on 'near_duplicates>5%'",
    ),
    "preview": (
        "Show rows as training sees them: the chat template applied, the label tokens in colour, what is cut.",
        "backprop data preview support.jsonl --rows 5",
    ),
    "put": ("Check rows and put them into the home's data directory.", "backprop data put night.jsonl --line support"),
    "split": (
        "Write the rows that a run would hold out, and the others, into two files.",
        "backprop data split support.jsonl --heldout heldout.jsonl --train train.jsonl",
    ),
    "trace": (
        "Find which datasets, files, runs, versions and releases contain a row.",
        "backprop data trace ann.smith@example.org",
    ),
    "restore": (
        "List the rows in quarantine, and put back those that you name.",
        "backprop data restore 3f9c12ab",
    ),
    "forget": (
        "Remove rows from everything in the home, block them, and list what has learned them.",
        "backprop data forget 3f9c12ab --plan",
    ),
}


LINE = {  # verbs of `backprop line`: line in --help, example
    "delete": (
        "Say what happens to everything of a line, ask for its name, then delete it.",
        "backprop line delete support --dry-run",
    ),
    "rename": (
        "Give a line another name, everywhere but at Ollama and the Hub.",
        "backprop line rename support helpdesk --dry-run",
    ),
}
USERS = {  # verbs of `backprop users`: line in --help, example
    "add": (
        "Add a user of the pages; the password comes from a prompt or from stdin.",
        "backprop users add ann --role act",
    ),
    "list": ("List the users of the pages, with their roles and tokens.", "backprop users list"),
    "remove": ("Remove a user; sessions and tokens end at once.", "backprop users remove ann"),
    "role": ("Let a user act, or only look.", "backprop users role ann look"),
    "password": ("Give a user a new password, from a prompt or from stdin.", "backprop users password ann"),
    "token": ("Make a token for a service; it is shown once.", "backprop users token nightly"),
    "revoke": ("End a token.", "backprop users revoke nightly 3f9c12ab"),
    "audit": ("Show who did what at the pages, newest first.", "backprop users audit --limit 20"),
}


def verbs() -> dict[str, tuple[str, str, str]]:
    """Module, help and example of every verb, in the order of --help."""
    names = list(NO_FLOWS)
    of_flows = {flow.verb.name: flow.verb for flow in FLOWS.values() if flow.verb}
    for verb in of_flows.values():
        names.insert(names.index(verb.after) + 1, verb.name)
    return {name: of_flows[name][1:4] if name in of_flows else NO_FLOWS[name] for name in names}


def build() -> App:
    """All verbs, none of them imported."""
    app = App(
        name="backprop",
        help="New data in, the next version of a fine-tuned model out, without losing what it knew.",
        help_epilogue="Example: backprop train --data support.jsonl --steps 100",
        version=version,
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    for place, (verb, (module, help_, example)) in enumerate(verbs().items()):
        add(app, verb, f"{module}:{verb.replace('-', '_')}", help_, example, place)
    data = App(
        name="data", help="Look into datasets before training on them.", help_epilogue="", help_format="plaintext"
    )
    for verb, (help_, example) in DATA.items():
        add(data, verb, f"data:{verb}", help_, example)
    app.command(data)
    store = App(name="store", help="Check, prune and pin artifacts.", help_epilogue="", help_format="plaintext")
    for verb, (help_, example) in STORE.items():
        add(store, verb, f"maintenance:store_{verb}", help_, example)
    app.command(store)
    line = App(name="line", help="Act on a line as a whole.", help_epilogue="", help_format="plaintext")
    for verb, (help_, example) in LINE.items():
        add(line, verb, f"line:line_{verb}", help_, example)
    app.command(line)
    people = App(name="users", help="Say who may sign in at the pages.", help_epilogue="", help_format="plaintext")
    for verb, (help_, example) in USERS.items():
        add(people, verb, f"users:users_{verb}", help_, example)
    app.command(people)
    return app


def add(app: App, verb: str, function: str, help_: str, example: str, place: int | None = None) -> None:
    """One verb, imported when it is called."""
    epilogue = f"Example: {example}"
    app.command(f"flows.cli.{function}", name=verb, help=help_, help_epilogue=epilogue, sort_key=place)


def version() -> str:
    """The installed version."""
    from importlib.metadata import version

    return version("backpropagate-pipeline")


@dataclass(frozen=True)
class Answer:
    """What a verb returns: a JSON document, the same as text, and the exit status."""

    document: Any
    text: Any  # what rich can print
    status: int = 0
    error: BackpropError | None = None  # printed beside the result; its exit status counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. The result goes to stdout, everything else to stderr."""
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
    """On Ctrl-C or SIGTERM, end in order; on the second, at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt


def printed(answer: Answer, *, as_json: bool) -> int:
    """Print an answer to stdout, and its error, if it has one, to stderr."""
    if as_json:
        print(json.dumps(answer.document, ensure_ascii=False, allow_nan=False), flush=True)
    else:
        from flows.cli.tables import show

        show(answer.text)
        sys.stdout.flush()
    if answer.error:
        say(error_text(answer.error))
        return answer.error.exit_status
    return answer.status


def failed(error: BaseException, *, as_json: bool, verbose: bool) -> int:
    """Print an error in two lines on stderr, and with --json as a document on stdout."""
    coded = as_coded(error)
    if verbose:
        say(trace_text(error))
    say(error_text(coded))
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
            error.verbose = False
            message, _, meant = str(error).partition(" Did you mean ")
            hint = f"did you mean {meant}" if meant else f"see: backprop {' '.join(error.command_chain or ())} --help"
            return ConfigInvalid(message.rstrip("."), hint=" ".join(hint.split()))
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
