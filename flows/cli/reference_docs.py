"""Write docs/reference.md from the code: `python -m flows.cli.reference_docs`. A test compares the two."""

from collections.abc import Iterable, Iterator
from itertools import chain

from cyclopts import App

from backprop_core.errors import all_errors
from backprop_core.runtime.settings import Settings
from backprop_core.stages import every
from flows.cli.config_layers import variable_of
from flows.cli.main import build
from flows.cli.spec_fields import Field, fields_of, spec_fields

OPENING = """\
# Reference

Written by `python -m flows.cli.reference_docs`; do not edit.

Exit status: 0 done (also when nothing changed), 1 invalid input, 2 failure, 3 done in part or rejected, 130
interrupted. The result goes to stdout, with `--json` as one JSON document, on failure too. Logs, progress bars and
warnings go to stderr. An error is two lines there: its code with what went wrong, and how to fix it. The directory
`docs/schemas` has a JSON Schema of each verb's document, and `failure.json` is that of a failure of any verb.
"""
FIELDS = """\
## Fields of a spec

Set a field in the file of `--config`, with `--set PATH=VALUE`, or in the environment as `BACKPROPAGATE_` and the path
in capitals with `__` for each dot. N is the number of a list's entry, from 0. A flag overrides the file, the file
overrides the environment, the environment overrides `.env` of the working directory. `BACKPROPAGATE_LORA__R` is short
for `BACKPROPAGATE_TRAINING__LORA__RANK`, `BACKPROPAGATE_LORA__…` for the other fields of `training.lora`.

A default that is *chosen* depends on model, data and GPU, or on how the line began; `--plan` shows it with its reason.
"""


def reference() -> str:
    """The page."""
    what = (spec_table(), settings(), stages(), errors())
    parts = [[OPENING, "## Verbs", ""], verbs(build(), "backprop"), [FIELDS], *what]
    return "\n".join(chain.from_iterable(parts))


def verbs(app: App, path: str) -> Iterator[str]:
    """Every verb with its flags."""
    for name in app:
        if name.startswith("-"):
            continue
        verb = app[name]
        if verb.default_command is None:
            yield from verbs(verb, f"{path} {name}")
            continue
        yield f"### {path} {name}\n\n{verb.help}\n\n    {str(verb.help_epilogue).removeprefix('Example: ')}\n"
        shown = [argument for argument in verb.assemble_argument_collection() if argument.show]
        rows = ([name_of(argument.name, argument.required), argument.parameter.help or ""] for argument in shown)
        yield from table(["argument", "meaning"], rows)


def name_of(flag: str, positional: bool) -> str:
    """A flag, or an argument without one, as it is written."""
    return f"`{flag.lstrip('-').upper()}`" if positional else f"`{flag}`"


def spec_table() -> Iterator[str]:
    """Every field that can be set."""
    return table(["field", "value", "default", "meaning"], (row(field) for field in spec_fields().values()))


def settings() -> Iterator[str]:
    """Every setting."""
    yield "## Settings\n\nSet them in the environment or in `.env` of the working directory.\n"
    fields = fields_of(Settings).values()
    rows = ([f"`{variable_of(field.path)}`", *row(field)[1:]] for field in fields)
    yield from table(["variable", "value", "default", "meaning"], rows)


def stages() -> Iterator[str]:
    """Every stage."""
    yield "## Stages\n\nEach is cached by its inputs, its parameters and its version.\n"
    rows = (
        [f"`{name}`", str(one.version), one.runs_in, ", ".join(one.signature.parameters), one.help]
        for name, one in every().items()
    )
    yield from table(["stage", "version", "runs in", "parameters", "what it makes"], rows)


def errors() -> Iterator[str]:
    """Every error code."""
    yield "## Error codes\n"
    rows = (
        [f"`{code}`", str(error.exit_status), "yes" if error.retryable else "", " ".join((error.__doc__ or "").split())]
        for code, error in all_errors().items()
    )
    yield from table(["code", "exit status", "retryable", "meaning"], rows)


def row(field: Field) -> list[str]:
    return [f"`{field.path}`", field.allowed, field.default, field.help]


def table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """A table in Markdown."""
    yield line(head)
    yield line(["---"] * len(head))
    yield from map(line, rows)
    yield ""


def line(cells: list[str]) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


if __name__ == "__main__":
    print(reference(), end="")
