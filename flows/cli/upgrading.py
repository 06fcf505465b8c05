"""The verb `upgrade`."""

import sys
from typing import Annotated

from cyclopts import Parameter

from backprop_core.errors import ConfirmationRequired
from backprop_core.runtime.settings import settings
from flows.cli.console import configure_logging, say
from flows.cli.flags import PLAIN, OutputFlags
from flows.cli.main import Answer
from flows.cli.terminal_prompt import is_attended


def upgrade(
    *,
    dry_run: Annotated[
        bool, Parameter(help="List what would change, and change nothing.", negative="", show_default=False)
    ] = False,
    yes: Annotated[bool, Parameter(help="Upgrade without asking.", negative="", show_default=False)] = False,
    output: OutputFlags = PLAIN,
) -> Answer:
    from tasks.runs import upgrade as upgrading

    config = settings()
    configure_logging(config, verbose=output.verbose)
    plan = upgrading.planned(config)
    if not plan.changes:
        return Answer(plan.model_dump(), "Everything is of this version.")
    if dry_run:
        return Answer(plan.model_dump(), "\n".join(["Would change:", *plan.changes]))
    if not yes and not agreed(plan.changes):
        return Answer({"changes": [], "backup": None}, "Nothing was changed.", 1)
    done = upgrading.upgrade(config)
    undo = f"To undo it: cp -a {done.backup}/home/. {config.home_path}; cp -a {done.backup}/store/. {config.store_path}"
    return Answer(done.model_dump(), "\n".join([*done.changes, f"backup: {done.backup}", undo]))


def agreed(changes: list[str]) -> bool:
    """Show what would change and ask. Raises ConfirmationRequired without a terminal."""
    if not is_attended():
        raise ConfirmationRequired(
            "the upgrade would change files, but there is no terminal to ask on",
            hint="list them with --dry-run, change them with --yes",
        )
    for change in changes:
        say(change)
    say("Back these up, and change them? yes or no:")
    return sys.stdin.readline().strip().lower() in ("yes", "y")
