"""The verb that writes the history into a file."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from backprop_core.errors import ConfigInvalid
from backprop_core.runtime.settings import settings
from flows.cli.console import configure_logging
from flows.cli.flags import EVERY, PLAIN, OutputFlags, WhichRuns
from flows.cli.main import Answer, Verbatim
from tasks import tracking
from tasks.runs.run_table import WRITERS, Format, save


def export_runs(
    *,
    format: Annotated[Format, Parameter(help="Format of the rows.")] = "jsonl",
    output_file: Annotated[
        Path | None, Parameter(name="--output", help="File to write; default: stdout.", show_default=False)
    ] = None,
    which: WhichRuns = EVERY,
    output: OutputFlags = PLAIN,
) -> Answer:
    config = settings()
    configure_logging(config, verbose=output.verbose)
    if output_file is None and (format == "parquet" or output.json):
        raise ConfigInvalid(
            f"no file for the rows{' in Parquet' if format == 'parquet' else ''}",
            hint="name one: --output runs.parquet",
        )
    runs = list(tracking.exported(config, which.filter()))
    written = WRITERS[format](runs)
    if output_file is None:
        return Answer(None, Verbatim(written.decode()))
    save(output_file, written)
    document = {"path": str(output_file.absolute()), "format": format, "runs": len(runs)}
    return Answer(document, f"{len(runs)} runs written to {output_file}")
