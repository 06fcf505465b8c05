"""Verbs about the command line itself: `completion`, `help`."""

from typing import Annotated, Literal

from cyclopts import Parameter

from flows.cli.flags import PLAIN, OutputFlags
from flows.cli.main import Answer, Verbatim, build

Shell = Literal["bash", "zsh", "fish"]
WHERE = {  # where each shell finds the scripts of a user
    "bash": "~/.local/share/bash-completion/completions/backprop",
    "zsh": "~/.zfunc/_backprop, with `fpath+=~/.zfunc; autoload -Uz compinit; compinit` in ~/.zshrc",
    "fish": "~/.config/fish/completions/backprop.fish",
}


def completion(
    shell: Annotated[Shell, Parameter(help="Name of the shell.")], /, *, output: OutputFlags = PLAIN
) -> Answer:
    script = build().generate_completion(prog_name="backprop", shell=shell)
    return Answer({"shell": shell, "put_into": WHERE[shell], "script": script}, Verbatim(script))


def help(
    *verb: Annotated[str, Parameter(help="Name of the verb, like `train` or `store prune`.")],
) -> None:
    build()([*verb, "--help"], exit_on_error=False, print_error=False, result_action="return_value")
