"""The job file of a line, as the pages change it: checked as a run checks it, written, and deployed at once.

A change is there as a whole or not at all: what Prefect refuses, or cannot be told, is taken back.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from backprop_core.errors import BackpropError, ConfigInvalid, FileChanged, InputNotFound, PathForbidden
from backprop_core.runtime.settings import Settings
from backprop_core.schema.flows import FLOWS
from backprop_core.schema.specs import LineSpec
from flows.cli import lines_file
from flows.cli.config_layers import Draft, add_text, faults_of
from flows.server.web import verbs
from flows.server.web.state import Sources, checked
from tasks.runs.allowed_paths import HINT, forbidden
from tasks.runs.job_files import replace, writable

SAVING = threading.Lock()  # one change at a time; there is one `serve` a home


class JobFile(NamedTuple):
    """A job file as it was read."""

    path: Path
    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


class Checked(NamedTuple):
    """What is wrong with the text of a job file, by field; and its job if nothing is."""

    faults: dict[str, BackpropError]
    job: LineSpec | None


def read(line: str, sources: Sources) -> JobFile:
    """The job file of a line. Raises RunUnknown, InputNotFound."""
    path = lines_file.place(checked(line, sources), sources.config)
    try:
        return JobFile(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputNotFound(f"line {line} has no job file", hint=f"write one: backprop init {line}") from error


def check(file: JobFile, before: LineSpec | None = None) -> Checked:
    """Check a text; paths that a run may not read are faults unless `before` has them. Raises ConfigInvalid."""
    draft = Draft()
    add_text(draft, file.text, file.path)
    draft.put(("line",), file.path.stem, f"the name of {file.path}")
    if faults := faults_of(LineSpec, draft):
        return Checked(faults, None)
    job = lines_file.of_draft(draft, file.path).job
    known = forbidden(before) if before else []
    return Checked({field_of(path, job): outside(path) for path in forbidden(job) if path not in known}, job)


def outside(path: str) -> BackpropError:
    return PathForbidden(f"{path} is outside the allowed directories", hint=HINT)


def field_of(path: str, job: LineSpec) -> str:
    """The field that names a path; the model's for a file of its directory."""
    data = job.datasets[0]
    below = {"datasets.0.path": data.path, "datasets.0.heldout": data.heldout}
    return next((field for field, known in below.items() if known and path.startswith(known)), "model.name")


def create(file: JobFile, line: str, sources: Sources) -> None:
    """Write a new job file and deploy it. Raises ConfigInvalid if there is one, PlaceUnusable, what `deploy` raises."""
    with SAVING, writable(file.path):
        lines_file.create(file.path, file.text)
        try:
            deploy(line, sources)
        except BackpropError as error:
            file.path.unlink()
            if not isinstance(error, ConfigInvalid):  # that is raised before anything is deployed
                with suppress(BackpropError):
                    undeploy(line, sources)
            raise


def save(file: JobFile, digest: str, line: str, sources: Sources) -> None:
    """Write a changed job file and deploy it.

    Raises FileChanged if it is not the one with this digest any more, PlaceUnusable, and what `deploy` raises.
    """
    with replacing(file, digest, line, sources):
        deploy(line, sources)


@contextmanager
def replacing(file: JobFile, digest: str, line: str, sources: Sources) -> Iterator[None]:
    """Write a changed job file; if the block fails, it is as it was. Raises FileChanged, PlaceUnusable."""
    with SAVING:
        known = read(line, sources)
        if known.digest != digest:
            raise FileChanged(
                f"the job file of line {line} has changed since this page was loaded",
                hint="load the page again: it shows the file as it is now",
            )
        replace(file.path, file.text)
        try:
            yield
        except BackpropError as error:
            replace(file.path, known.text)
            if not isinstance(error, ConfigInvalid):  # that is raised before anything is deployed
                with suppress(BackpropError):
                    deploy(line, sources)
            raise


def deploy(line: str, sources: Sources) -> None:
    """Update the deployment of a line: `backprop deploy --line`. Raises what it raises, at once if Prefect is away."""
    sources.prefect.get("/health")
    verbs.run("deploy", "--line", line, environment=sources.prefect.environment)


def undeploy(line: str, sources: Sources) -> None:
    """Delete the deployments of a line that is not made after all. Raises PrefectUnreachable, DeploymentRefused."""
    for flow in [name for name, info in FLOWS.items() if info.per_line]:
        if known := sources.prefect.get(f"/deployments/name/{flow}/{line}"):
            sources.prefect.send("DELETE", f"/deployments/{known['id']}", None)


def place_of_new(line: str, config: Settings) -> Path:
    """Where a new job file goes: beside others in the working directory, or else into the home.

    Raises ConfigInvalid if there is one.
    """
    here, home = lines_file.places(line, config)
    if here.is_file() or home.is_file():
        raise ConfigInvalid(f"there is a line {line} already", hint="choose another name")
    return here if here.parent.is_dir() else home
