"""Verbs for datasets: `data report`, `preview`, `put`, `split`, `trace`, `restore`, `forget`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from backprop_core.errors import ConfigInvalid
from backprop_core.runtime.settings import settings
from backprop_core.schema.field_types import ROWS_FILE, is_address, is_sql
from backprop_core.schema.specs import RunSpec
from flows.cli import data_text, lines_file
from flows.cli.config_layers import names_datasets, run_spec
from flows.cli.console import configure_logging
from flows.cli.flags import PLAIN, SETTINGS, Output, OutputFlags
from flows.cli.main import Answer, described

if TYPE_CHECKING:
    from flows.rebuild import Rebuilt
    from tasks.runs.data_forget import Forgotten

DataFile = Annotated[
    str, Parameter(help="A file, a directory of files, an fsspec or SQL URL, or OWNER/NAME of a Hub dataset.")
]
Model = Annotated[
    str | None,
    Parameter(help="Base whose tokenizer and chat template are used: hub id or local directory.", show_default=False),
]
MaxLength = Annotated[
    str | None,
    Parameter(
        help="Tokens per example; default: what a training on these rows would choose.",
        show_default=False,
        metavar="INT",
    ),
]


@dataclass(frozen=True)
class Job:
    """Where fields of the spec are set beside the flags of a verb."""

    config: Annotated[Path | None, Parameter(help="YAML file with any fields of the spec.", show_default=False)] = None
    line: Annotated[
        str | None,
        Parameter(help="Use the job file of this line for everything that no flag sets.", show_default=False),
    ] = None
    set: Annotated[list[str] | None, SETTINGS] = None

    def spec(self, file: str | None, model: str | None = None, max_length: str | None = None) -> RunSpec:
        """The spec with these flags, over the job file of a line; FILE replaces the path of its first dataset.

        Raises ConfigInvalid.
        """
        job = lines_file.find(self.line, settings()) if self.line else None
        has_datasets = job is not None or (self.config is not None and names_datasets(self.config))
        given = "datasets.0.path" if has_datasets else "datasets"
        spec = run_spec(
            flags={
                given: [{"path": file}] if file and not has_datasets else file,
                "model.name": model,
                "training.max_length": max_length,
            },
            names={given: "FILE", "model.name": "--model", "training.max_length": "--max-length"},
            settings=self.set or (),
            file=self.config,
            job=job,
        )
        return spec.model_copy(update={"datasets": spec.datasets[:1]}) if file else spec


JobFlags = Annotated[Job, Parameter(name="*")]
NO_JOB = Job()


def report(
    *files: Annotated[str, Parameter(help="Files, directories, fsspec or SQL URLs, or Hub datasets (OWNER/NAME).")],
    output_file: Annotated[
        Path | None, Parameter(name="--output", help="Also write the report as one HTML page here.", show_default=False)
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        Parameter(
            help="Exit with status 1 if more rows than this are of a kind: 'duplicates>5%', 'malformed>0'. Kinds: "
            "dropped, malformed, refused_by_template, empty, duplicates, near_duplicates, contradictions, "
            "personal_data, quality, cut, without_answer. Repeat it for more.",
            negative="",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    max_length: MaxLength = None,
    job: JobFlags = NO_JOB,
    output: OutputFlags = PLAIN,
) -> Answer:
    from tasks.runs.data_report import Reports, limits_of

    configure_logging(settings(), verbose=output.verbose)
    limits = limits_of(fail_on or ())
    if not files and job.config is None and job.line is None:
        raise ConfigInvalid("no dataset given", hint="name files, or a job file with --config or --line")
    specs = [job.spec(file, model, max_length) for file in files or (None,)]
    found = Reports(specs, settings())
    if output_file:
        found.write(output_file)
    error = found.check(limits)
    document: dict[str, Any] = {"datasets": [one.model_dump(mode="json") for one in found.all]}
    if error:
        document |= {"error": described(error)}
    return Answer(document, data_text.reports(found.all, output_file), error=error)


def preview(
    file: DataFile,
    /,
    *,
    model: Model = None,
    rows: Annotated[PositiveInt, Parameter(help="How many rows to show.")] = 3,
    row: Annotated[
        PositiveInt | None, Parameter(help="Show the row at this line or row of the file instead.", show_default=False)
    ] = None,
    max_length: MaxLength = None,
    job: JobFlags = NO_JOB,
    output: OutputFlags = PLAIN,
) -> Answer:
    from tasks.runs.data_preview import data_preview

    configure_logging(settings(), verbose=output.verbose)
    found = data_preview(job.spec(file, model, max_length), settings(), rows=rows, number=row)
    return Answer(found.model_dump(mode="json"), data_text.preview(found))


def put(
    file: Annotated[str, Parameter(help="A file of rows, or - for standard input.", allow_leading_hyphen=True)],
    /,
    *,
    to: Annotated[
        str | None,
        Parameter(help="Directory in the home's data/; default: the name of the line, or default.", show_default=False),
    ] = None,
    job: JobFlags = NO_JOB,
    output: OutputFlags = PLAIN,
) -> Answer:
    from tasks.runs.data_put import data_put

    configure_logging(settings(), verbose=output.verbose)
    dataset = job.spec(file).datasets[0]
    done = data_put(dataset, sys.stdin.buffer, to or job.line or "default", settings())
    return Answer(done.model_dump(mode="json"), data_text.put(done))


def split(
    file: DataFile,
    /,
    *,
    heldout: Annotated[Path, Parameter(help="Write the held-out rows here, as JSON lines.")],
    train: Annotated[
        Path | None, Parameter(help="Write the other rows here, as JSON lines.", show_default=False)
    ] = None,
    share: Annotated[
        float | None,
        Parameter(
            help="Share of the rows to hold out, by their hash, or the latest if the dataset has a time_split; "
            "default: what a run would hold out, a tenth.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, Parameter(help="Overwrite these files.", negative="", show_default=False)] = False,
    job: JobFlags = NO_JOB,
    output: OutputFlags = PLAIN,
) -> Answer:
    from tasks.runs.data_put import data_split

    if share is not None and not 0 < share < 1:
        raise ConfigInvalid(f"--share {share:g} is not a share of the rows", hint="write a number between 0 and 1")
    configure_logging(settings(), verbose=output.verbose)
    made = data_split(job.spec(file), share, heldout, train, settings(), force=force)
    return Answer(made.model_dump(mode="json"), data_text.split(made))


def trace(
    row: Annotated[str, Parameter(help="The start of a row's id (at least 6 hex digits), or text in it.")],
    /,
    *,
    limit: Annotated[PositiveInt, Parameter(help="Most rows to trace.")] = 10,
    output: OutputFlags = PLAIN,
) -> Answer:
    from tasks.runs.data_trace import data_trace

    configure_logging(settings(), verbose=output.verbose)
    found = data_trace(row, settings(), most=limit)
    return Answer(found.model_dump(mode="json"), data_text.trace(found))


def restore(
    *rows: Annotated[str, Parameter(help="The start of the id of a row in quarantine (at least 6 hex digits).")],
    output: OutputFlags = PLAIN,
) -> Answer:
    from tasks.runs.data_restore import data_restore

    configure_logging(settings(), verbose=output.verbose)
    found = data_restore(rows, settings())
    return Answer(found.model_dump(mode="json"), data_text.restored(found))


def forget(
    *rows: Annotated[
        str,
        Parameter(
            help="The start of a row's id (at least 6 hex digits), text that only one row has, or a file of rows."
        ),
    ],
    plan: Annotated[
        bool, Parameter(help="List what would be removed, and change nothing.", negative="", show_default=False)
    ] = False,
    rebuild: Annotated[
        bool,
        Parameter(
            help="Then train every version of a line that has seen the rows again without them, and withdraw the old "
            "ones once the last one is live.",
            negative="",
            show_default=False,
        ),
    ] = False,
    job: JobFlags = NO_JOB,
    output: OutputFlags = PLAIN,
) -> Answer:
    from flows.cli.prefect_environment import quiet_prefect

    quiet_prefect()
    from tasks.runs.data_forget import data_forget

    configure_logging(settings(), verbose=output.verbose)
    if not rows:
        raise ConfigInvalid("no row given", hint="name a row's id, text in it, or a file of rows")
    asked = [job.spec(row).datasets[0] if names_file(row) else row for row in rows]
    done = data_forget(asked, settings(), plan=plan)
    document, shown = done.model_dump(mode="json"), data_text.forgotten(done)
    if not rebuild:
        return Answer(document, shown, 3 if done.left and not plan else 0)
    lines = rebuilt(done, plan=plan, output=output)
    complete = plan or not (done.left or any(one.left or one.error for one in lines))
    document |= {"rebuilt": [one.model_dump(mode="json") for one in lines]}
    return Answer(document, data_text.rebuilt(shown, lines, planned=plan), 0 if complete else 3)


def rebuilt(done: "Forgotten", *, plan: bool, output: Output) -> "list[Rebuilt]":
    """Rebuild every line that has seen the rows, or say what that would be."""
    from flows.cli.prefect_environment import connected, start_server
    from flows.cli.running import watched
    from flows.rebuild import planned, rebuild

    lines = sorted({name.partition("@")[0] for name in done.seen})
    if plan:
        return [planned(line, done.seen, settings()) for line in lines]
    start_server()
    with watched(output), connected():
        return [rebuild(line, done.identities, done.seen, settings()) for line in lines]


def names_file(row: str) -> bool:
    """Whether it is a file of rows rather than an id or text: it is there, or is the address of one."""
    try:
        if Path(row).expanduser().exists():
            return True
    except OSError:  # too long for a name
        return False
    return is_address(row) and (is_sql(row) or bool(ROWS_FILE.search(row)))
