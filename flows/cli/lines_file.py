"""A line's job as a file: `lines/NAME.yaml` below the working directory, else below the home."""

import json
import os.path
from pathlib import Path
from typing import TypeVar

from backprop_core.errors import ConfigInvalid
from backprop_core.runtime.settings import Settings
from backprop_core.schema.field_types import is_address, line_name
from backprop_core.schema.specs import DatasetSpec, LineSpec, RunSpec
from flows.cli.config import Draft, LineFile, add_file, validated
from flows.cli.spec_fields import spec_fields

R = TypeVar("R", bound=RunSpec)
SCHEMA = "line.schema.json"
TEMPLATE = """\
# yaml-language-server: $schema={schema}
# The job of the line {name}. `backprop retrain --line {name}` runs it now; `backprop serve` and `backprop deploy` make
# the deployment retrain/{name} of it. Relative paths begin at the directory that lines/ is in. What is not said here
# has the default of docs/reference.md; every field is in the form of the Prefect UI too.

model:
  name: {model}

datasets:  # where the new rows are; those that the line has learned are left out
  - path: {data}  # a file, a directory, a URL, or OWNER/NAME of a dataset on the Hub
    # heldout: FILE  # default: a tenth of the rows, by hash

min_new_rows: {rows}  # with fewer new ones the run waits for the next time

# training:
#   epochs: {epochs}
#   learning_rate: {learning_rate}
#   lora: {{rank: {rank}}}  # constant along a line

# gate:
#   max_drop: {drop}  # how much of its score a task may lose

export:
  quantizations: []  # GGUF files of a version that goes live, like [q4_k_m]

# approval:
#   ask: true  # before a release a person is asked, in the Prefect UI or at the terminal

# notify: [slack-webhook/team]  # notification blocks of Prefect that are told how it went

# max_seconds: 21600  # then it stops, and `backprop resume` goes on

# schedule:
#   cron: "0 3 * * *"  # every night at 3
#   timezone: UTC

# poll_seconds: 60  # or whenever there is new data: `backprop serve` and `backprop watch` look so often

# drift:  # tries the champion on new rows, and asks for a retrain where it no longer fits them
#   cron: "0 * * * *"
#   max_loss_ratio: {ratio}  # its loss on them, over that on the held-out rows
"""


def folders(config: Settings) -> list[Path]:
    """Where files of lines are looked for, in this order."""
    return [Path.cwd() / config.layout.jobs.name, config.layout.jobs]


def find(name: str, config: Settings) -> LineFile | None:
    """The job of one line, if there is a file of it. Raises what `line_name` and `read` raise."""
    path = place(line_name(name), config)
    return read(path) if path.is_file() else None


def places(name: str, config: Settings) -> list[Path]:
    """Where the file of one line may be: the first that is there counts."""
    return [folder / f"{name}.yaml" for folder in folders(config)]


def place(name: str, config: Settings) -> Path:
    """The file of one line; the last place where it may be, if there is none."""
    here = places(name, config)
    return next((path for path in here if path.is_file()), here[-1])


def every(config: Settings) -> dict[str, LineFile]:
    """The jobs of all lines that have a file, by name. Raises what `read` raises."""
    names = sorted({path.stem for folder in folders(config) for path in folder.glob("*.yaml")})
    return {name: job for name in names if (job := find(name, config))}


def read(path: Path) -> LineFile:
    """A line's job as its file says it, complete by itself.

    Raises InputNotFound, InputValidationFailed, ConfigInvalid, QuantizationUnknown.
    """
    draft = Draft()
    add_file(draft, path)
    name = draft.tree.get("line", path.stem)
    if name != path.stem:
        raise ConfigInvalid(f"{path} is of line {path.stem} by its name, and says line: {name}", hint="leave line: out")
    draft.put(("line",), path.stem, f"the name of {path}")
    job = anchored(validated(LineSpec, draft), path.absolute().parent.parent)
    return LineFile(path, job, job.model_dump(mode="json", exclude_unset=True), draft.origins)


def write(name: str, config: Settings) -> Path:
    """A new file for a line, with comments, and the schema for editors beside it. Raises ConfigInvalid."""
    data = config.layout.dataset(name)
    draft = Draft({"line": name, "datasets": [{"path": str(data)}]}, {("line",): "LINE"})
    path = folders(config)[0] / f"{validated(LineSpec, draft).line}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / SCHEMA).write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(template(name, data))
    except FileExistsError as error:
        raise ConfigInvalid(f"{path} is there already", hint="edit it, or take another name") from error
    return path


def template(name: str, data: Path) -> str:
    """The text of a new file, with the defaults as they are."""
    fields = {
        "model": "model.name",
        "rows": "min_new_rows",
        "epochs": "training.epochs",
        "learning_rate": "training.learning_rate",
        "rank": "training.lora.rank",
        "drop": "gate.max_drop",
        "ratio": "drift.max_loss_ratio",
    }
    defaults = {short: spec_fields()[path].default for short, path in fields.items()}
    return TEMPLATE.format(schema=SCHEMA, name=name, data=json.dumps(str(data)), **defaults)


def schema() -> dict[str, object]:
    """The JSON schema of a line's file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **LineSpec.model_json_schema()}


def anchored(job: R, root: Path) -> R:
    """The job with its relative paths below `root`; a base model only if it is a directory there."""
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
