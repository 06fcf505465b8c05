"""Verbs for datasets: `data report`, `preview`."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from backprop_core.runtime.settings import settings
from backprop_core.schema.specs import RunSpec
from flows.cli import data_text, lines_file
from flows.cli.config import run_spec
from flows.cli.console import configure_logging
from flows.cli.flags import PLAIN, SETTINGS, OutputFlags
from flows.cli.main import Answer, described

DataFile = Annotated[
    str, Parameter(help="A file, a directory of files, any fsspec URL, or OWNER/NAME of a Hub dataset.")
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
Config = Annotated[Path | None, Parameter(help="YAML file with any fields of the spec.", show_default=False)]
LineOption = Annotated[
    str | None, Parameter(help="Use the job file of this line for everything that no flag sets.", show_default=False)
]


def asked(
    data: list[str] | None,
    model: str | None,
    max_length: str | None,
    config: Path | None,
    line: str | None,
    set: list[str] | None,
) -> RunSpec:
    """The spec that these flags give, over the job file of a line. Raises ConfigInvalid."""
    return run_spec(
        flags={
            "datasets": [{"path": path} for path in data] if data else None,
            "model.name": model,
            "training.max_length": max_length,
        },
        names={"datasets": "FILE", "model.name": "--model", "training.max_length": "--max-length"},
        settings=set or (),
        file=config,
        job=lines_file.find(line, settings()) if line else None,
    )


def report(
    *files: Annotated[str, Parameter(help="Files, directories, fsspec URLs or Hub datasets (OWNER/NAME).")],
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
    config: Config = None,
    line: LineOption = None,
    set: Annotated[list[str] | None, SETTINGS] = None,
    output: OutputFlags = PLAIN,
) -> Answer:
    from tasks.runs.data_report import Reports, limits_of

    configure_logging(settings(), verbose=output.verbose)
    limits = limits_of(fail_on or ())
    found = Reports(asked(list(files), model, max_length, config, line, set))
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
    config: Config = None,
    line: LineOption = None,
    set: Annotated[list[str] | None, SETTINGS] = None,
    output: OutputFlags = PLAIN,
) -> Answer:
    from tasks.runs.data_preview import data_preview

    configure_logging(settings(), verbose=output.verbose)
    found = data_preview(asked([file], model, max_length, config, line, set), rows=rows, number=row)
    return Answer(found.model_dump(mode="json"), data_text.preview(found))
