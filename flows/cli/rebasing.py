"""The verb that moves a line to another base."""

import logging
from typing import Annotated

from cyclopts import Parameter

from backprop_core.runtime.settings import settings
from backprop_core.schema.field_types import line_name
from flows.cli import lines_file
from flows.cli.config_layers import replayed
from flows.cli.flags import PLAIN, SETTINGS, TASK, Explain, Flags, OutputFlags
from flows.cli.main import Answer
from flows.cli.running import carry_out
from tasks.runs.rebase import asked_here

log = logging.getLogger(__name__)
MODEL = "Hub id or local directory of the other base."
FRESH = "Run every stage again, ignoring the cache."
PLAN = "Show what would be trained, and the time, memory and disk it needs; then stop."
SUBMIT = "Send the run to its deployment on the Prefect server and return, instead of running it here."


def rebase(
    line: Annotated[str, Parameter(help="The line to move.", show_default=False)],
    /,
    *,
    model: Annotated[str, Parameter(help=MODEL, show_default=False, group=TASK)],
    set: Annotated[list[str] | None, SETTINGS] = None,
    fresh: Annotated[bool, Parameter(help=FRESH, negative="", show_default=False, group=TASK)] = False,
    plan: Annotated[bool, Parameter(help=PLAN, negative="", show_default=False, group=TASK)] = False,
    submit: Annotated[bool, Parameter(help=SUBMIT, negative="", show_default=False, group=TASK)] = False,
    explain: Explain = False,
    output: OutputFlags = PLAIN,
) -> Answer:
    name = line_name(line)
    spec = replayed(asked_here(name, model), f"of line {name}", set or ())
    if submit:
        spec = spec.model_copy(update={"datasets": []})  # the rows are in the store, not in files to look for
    flags = Flags(fresh=fresh, plan=plan, submit=submit, explain=explain, json=output.json, verbose=output.verbose)
    done = carry_out("rebase", spec, flags)
    job = lines_file.find(name, settings())
    if job and job.job.model.name != model and done.status == 0 and not (plan or submit):
        log.warning("%s names another base: change its model, or the next retrain is refused", job.path)
    return done
