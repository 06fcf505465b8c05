"""The job file of a line: `lines/NAME.yaml` in the working directory, or else in the home."""

import json
import os.path
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from backprop_core.errors import ConfigInvalid
from backprop_core.runtime.settings import Settings
from backprop_core.schema.field_types import is_address, line_name
from backprop_core.schema.specs import DatasetSpec, LineSpec, RunSpec, TrainSpec
from flows.cli.config_layers import FORMAT, FORMATS, Draft, LineFile, add_file, validated
from flows.cli.spec_fields import spec_fields
from flows.cli.yaml_edits import quoted

R = TypeVar("R", bound=RunSpec)
SCHEMA = "line.schema.json"
TEMPLATE = """\
# yaml-language-server: $schema={schema}
# The job of the line {name}. `backprop retrain --line {name}` runs it now; `backprop serve` and `backprop deploy` make
# the deployment retrain/{name} from it. Relative paths start at the directory that contains lines/. Fields not set here
# have the defaults of docs/reference.md.

format: {format}  # of this file

model:
  name: {model}

datasets:  # new rows; rows that the line has learned are skipped
  - path: {data}  # file, directory, URL, or OWNER/NAME of a dataset on the Hub
    # heldout: FILE  # default: a tenth of the rows, by hash

min_new_rows: {rows}  # with fewer new rows, the run waits for more

# training:
#   epochs: {training.epochs}
#   learning_rate: {training.learning_rate}
#   lora: {{rank: {training.lora.rank}}}  # fixed for the whole line

# gate:
#   max_drop: {drop}  # how much of its score a task may lose

export:
  quantizations: []  # GGUF files to write when a version goes live, like [q4_k_m]

# approval:
#   ask: true  # ask a person before a release, in the Prefect UI or at the terminal

# notify: [slack-webhook/team]  # notification blocks of Prefect that get the outcome

# max_seconds: 21600  # time limit of a run; `backprop resume` continues it

# schedule:
#   cron: "0 3 * * *"  # every night at 3
#   timezone: UTC

# poll_seconds: 60  # how often `backprop serve` and `backprop watch` look for new data

# drift:  # score the champion on new rows, and retrain if it no longer fits them
#   cron: "0 * * * *"
#   max_loss_ratio: {ratio}  # loss on new rows / loss on held-out rows
"""


def folders(config: Settings) -> list[Path]:
    """The directories of job files, in order of precedence."""
    return [Path.cwd() / config.layout.jobs.name, config.layout.jobs]


def find(name: str, config: Settings) -> LineFile | None:
    """The job file of one line, or None. Raises what `line_name` and `read` raise."""
    path = place(line_name(name), config)
    return read(path) if path.is_file() else None


def places(name: str, config: Settings) -> list[Path]:
    """The paths where the file of a line can be; the first that exists counts."""
    return [folder / f"{name}.yaml" for folder in folders(config)]


def place(name: str, config: Settings) -> Path:
    """The file of a line; if there is none, the last path where it can be."""
    here = places(name, config)
    return next((path for path in here if path.is_file()), here[-1])


def every(config: Settings) -> dict[str, LineFile]:
    """All job files, by name of the line. Raises what `read` raises."""
    return {name: job for name in names(config) if (job := find(name, config))}


def names(config: Settings) -> list[str]:
    """The lines that have a job file."""
    return sorted({path.stem for folder in folders(config) for path in folder.glob("*.yaml")})


def states(config: Settings) -> dict[str, tuple[int, int]]:
    """The time and size of every job file, which differ when one has changed."""
    known = {}
    for path in (path for folder in folders(config) for path in folder.glob("*.yaml")):
        with suppress(OSError):  # removed just now
            found = path.stat()
            known[str(path)] = found.st_mtime_ns, found.st_size
    return known


def read(path: Path) -> LineFile:
    """Read a job file.

    Raises InputNotFound, InputValidationFailed, ConfigInvalid, QuantizationUnknown, FormatNewer.
    """
    draft = Draft()
    add_file(draft, path)
    return of_draft(draft, path)


def of_draft(draft: Draft, path: Path) -> LineFile:
    """The values of a job file. Raises ConfigInvalid, QuantizationUnknown."""
    name = draft.tree.get("line", path.stem)
    if name != path.stem:
        raise ConfigInvalid(
            f"{path} says line: {name}, but its name says {path.stem}", hint="remove line: from the file"
        )
    draft.put(("line",), path.stem, f"the name of {path}")
    job = anchored(validated(LineSpec, draft), path.absolute().parent.parent)
    return LineFile(path, job, job.model_dump(mode="json", exclude_unset=True), draft.origins)


def write(name: str, config: Settings) -> Path:
    """Write a new job file with comments. Raises ConfigInvalid."""
    from tasks.runs import line_renaming

    data = config.layout.dataset(name)
    draft = Draft({"line": name, "datasets": [{"path": str(data)}]}, {("line",): "LINE"})
    path = folders(config)[0] / f"{validated(LineSpec, draft).line}.yaml"
    line_renaming.check_rows(name, config)
    create(path, template(name, data))
    return path


def create(path: Path, text: str) -> None:
    """Write a new file, and the schema for editors beside it. Raises ConfigInvalid if it exists, PlaceUnusable."""
    from tasks.runs import job_files

    job_files.replace(path.parent / SCHEMA, json.dumps(schema(), indent=1) + "\n")
    try:
        job_files.create(path, text)
    except FileExistsError as error:
        raise ConfigInvalid(f"{path} exists already", hint="edit it, or choose another name") from error


def template(name: str, data: Path) -> str:
    """The text of a new file, with the current defaults."""
    fields = {
        "model": "model.name",
        "rows": "min_new_rows",
        "drop": "gate.max_drop",
        "ratio": "drift.max_loss_ratio",
    }
    defaults = {short: spec_fields()[path].default for short, path in fields.items()}
    return TEMPLATE.format(
        schema=SCHEMA, format=FORMATS, name=name, data=quoted(str(data)), training=TrainSpec(), **defaults
    )


def schema() -> dict[str, object]:
    """The JSON schema of job files, for editors."""
    found = LineSpec.model_json_schema()
    number = {"const": FORMATS, "default": FORMATS, "description": "Format of the file."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **found,
        "properties": {FORMAT: number, **found["properties"]},
    }


def anchored(job: R, root: Path) -> R:
    """The job with relative paths resolved from `root`; a base model only if it is a directory there."""
    model = job.model
    if (root / model.name).is_dir():
        model = model.model_copy(update={"name": str(root / model.name)})
    watch = [anchored_dataset(each, root) for each in job.evaluation.watch]
    datasets = [anchored_dataset(each, root) for each in job.datasets]
    changed = {
        "model": model,
        "datasets": datasets,
        "evaluation": job.evaluation.model_copy(update={"watch": watch} if watch else {}),
    }
    return job.model_copy(update={name: value for name, value in changed.items() if value != getattr(job, name)})


def anchored_dataset(dataset: DatasetSpec, root: Path) -> DatasetSpec:
    own = ("heldout",) if dataset.on_hub(root) else ("path", "heldout")
    paths = {name: value for name in own if (value := getattr(dataset, name)) and not is_address(value)}
    return dataset.model_copy(update={name: str(root / os.path.expanduser(value)) for name, value in paths.items()})
