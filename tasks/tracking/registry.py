"""Copies each line to MLflow as a registered model: its versions, and the alias `champion`. The store decides.

Each line also has a curve of its scores, and descriptions in Markdown say what is live, how good it is, and why.
Missing or different entries are repaired whenever journals are sent, so MLflow may be down in between. An alias that
was moved in MLflow is set back at the end of the next run or by `sync`, with a warning.
`models:/NAMESPACE.LINE@champion` is a directory that PEFT loads.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from backprop_core.errors import NameTaken
from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.runtime.redaction import blank_address
from backprop_core.runtime.settings import Settings
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.layout import StoreLayout
from tasks.tracking import old_names
from tasks.tracking.artifact_copies import send_line
from tasks.tracking.connection import LINE, NAMESPACE, experiments, paged, tracking_uri
from tasks.tracking.journal import is_written
from tasks.tracking.loadable_model import make_loadable
from tasks.tracking.record import RUN_ID

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHAMPION = "champion"
NUMBER = "backprop.version"  # tag of a model version: its number in the line
MERGED = "backprop.merged"  # tag of a model version: the digest of its adapter
GATE, ACT = "backprop.gate", "backprop.act"  # tags of a model version: what the gate said, who made it live by hand
LONGEST = 5000  # characters of a tag in MLflow
MODELS = 100  # registered models a request
log = logging.getLogger(__name__)


def wanted(settings: Settings) -> dict[str, Any]:
    """The state that MLflow should have: its URI, and the versions and champion of every line."""
    if not StoreLayout(settings.store_path).lines.is_dir():
        return {}
    lines, layout = Lines(Store(settings.store_path)), StoreLayout(settings.store_path)
    known = {
        name: [
            lines.versions(name),
            lines.champion(name),
            [move.run_id for move in lines.moves(name)],
            last_change(layout, name),
        ]
        for name in lines.names()
    }
    return {"uri": blank_address(tracking_uri(settings)), "copies": settings.mlflow_artifact_limit, "lines": known}


def last_change(layout: StoreLayout, line: str) -> int:
    """When a record of a line was written last, or a version was made live or released, in ns; 0 for never."""
    own = layout.line(line)
    places = [own.versions, own.champion, *own.releases.glob("*.json")]
    return max((path.stat().st_mtime_ns for path in places if path.exists()), default=0)


def noted(settings: Settings) -> dict[str, Any]:
    """The last known state of MLflow, including its aliases."""
    try:
        known: dict[str, Any] = json.loads(settings.layout.journal.registry.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # there is none, or half of one: what it says is found out again
        return {}
    return known


def is_mirrored(settings: Settings) -> bool:
    """Whether MLflow was up to date when last checked."""
    known, aim = noted(settings), wanted(settings)
    return {name: value for name, value in known.items() if name != "aliases"} == aim


def mirror(client: "MlflowClient", settings: Settings) -> None:
    """Update MLflow's registered models from the store. Raises NameTaken for a model that is not ours."""
    for sentence in moved(settings, lambda: aliases(client, settings)):
        log.warning("%s; the alias is set back (to change it: backprop promote or rollback)", sentence)
    old_names.catch_up(client, settings)
    aim, lines = wanted(settings), Lines(Store(settings.store_path))
    done = [mirror_line(client, settings, line, lines) for line in lines.names()]
    if all(done):
        write_atomic(settings.layout.journal.registry, json.dumps(aim | {"aliases": aliases(client, settings)}))


def aliases(client: "MlflowClient", settings: Settings) -> dict[str, str]:
    """MLflow's champion version of each of our registered models, by name."""
    ours = [one for one in models(client, settings) if one.tags.get(NAMESPACE) == settings.namespace]
    return {one.name: str(one.aliases[CHAMPION]) for one in ours if CHAMPION in one.aliases}


def models(client: "MlflowClient", settings: Settings) -> "Iterator[RegisteredModel]":
    """All registered models with a name like ours; MLflow answers with a page at a time."""
    condition = f"name LIKE '{settings.namespace}.%'"
    return paged(lambda token: client.search_registered_models(condition, MODELS, page_token=token))


def moved(settings: Settings, current: "Callable[[], dict[str, str]]") -> list[str]:
    """One sentence for each champion alias that was changed in MLflow since the last check; `current` asks for them."""
    known = noted(settings)
    if "aliases" not in known or known["uri"] != blank_address(tracking_uri(settings)):
        return []
    before, now = known["aliases"], current()
    return [
        f"{name}: MLflow's alias champion was moved from its version {before.get(name, 'none')} "
        f"to {now.get(name, 'none')}, which changes nothing that is live"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def set_back(client: "MlflowClient", settings: Settings) -> None:
    """Mirror if an alias was changed in MLflow, or the store has changed."""
    if moved(settings, lambda: aliases(client, settings)) or not is_mirrored(settings):
        mirror(client, settings)


def mirror_line(client: "MlflowClient", settings: Settings, line: str, lines: Lines) -> bool:
    """Copy one line; False if an adapter or a result has not reached its place yet."""
    name = registered(client, settings, line)
    known = known_versions(client, name)
    complete = True
    for number in lines.versions(line):
        if number not in known:
            made = register(client, settings, name, number, lines.version(line, number))
            known |= made or {}
            complete &= made is not None
        if number in known and (act := lines.act(line, number)):
            client.set_model_version_tag(name, known[number], ACT, act.sentence[:LONGEST])
    champion = lines.champion(line) or 0
    if champion in known and (run := run_of(client, settings, lines.version(line, champion).run_id)):
        make_loadable(client, run, lines.version(line, champion), StoreLayout(settings.store_path))
    if complete or champion in known:  # else the alias stays where it is until the new champion is there
        point(client, name, known.get(champion))
    complete &= not is_being_made(settings, line, lines)
    if complete and lines.versions(line):
        from tasks.tracking.line_pages import describe  # its imports take longer than listing runs

        describe(client, settings, name, line)
        send_line(client, settings, line)
    return complete


def is_being_made(settings: Settings, line: str, lines: Lines) -> bool:
    """Whether the run of the newest version has not ended, so that its result is not complete."""
    for number in lines.versions(line)[-1:]:
        run_id, journals = lines.version(line, number).run_id, settings.layout.journal
        return journals.lines(run_id).is_file() and is_written(journals, run_id)
    return False


def registered(client: "MlflowClient", settings: Settings, line: str) -> str:
    """The name of the line's registered model; creates it if needed. Raises NameTaken if it is not ours."""
    name, tags = f"{settings.namespace}.{line}", {NAMESPACE: settings.namespace, LINE: line}
    found = client.search_registered_models(f"name = '{name}'")
    if not found:
        client.create_registered_model(name, tags)
    elif not tags.items() <= found[0].tags.items():
        raise NameTaken(
            f"MLflow has a registered model {name} that this tool did not create",
            hint="set BACKPROPAGATE_NAMESPACE to another name",
        )
    return name


def known_versions(client: "MlflowClient", name: str) -> dict[int, str]:
    """Our version numbers -> MLflow's version numbers."""
    return {number: str(version.version) for number, version in model_versions(client, name).items()}


def model_versions(client: "MlflowClient", name: str) -> "dict[int, ModelVersion]":
    """Our version numbers -> MLflow's versions."""
    found = client.search_model_versions(f"name = '{name}'")
    return {int(version.tags[NUMBER]): version for version in found if NUMBER in version.tags}


def register(
    client: "MlflowClient", settings: Settings, name: str, number: int, version: LineVersion
) -> Mapping[int, str] | None:
    """Register a version; returns our number and MLflow's, or None while its adapter has not reached MLflow.

    If MLflow never had the run, the version points to the adapter in the store. A server accepts no such path: there
    the version is left out, as is one that was pruned before it was sent.
    """
    run = run_of(client, settings, version.run_id)
    if run:
        if not client.list_artifacts(run.info.run_id, "merged"):
            on_its_way = StoreLayout(settings.store_path).artifact(version.merged.digest).is_dir()
            return None if on_its_way else {}
        source = f"runs:/{run.info.run_id}/merged"
    elif tracking_uri(settings).startswith("http"):
        return {}
    else:
        source = StoreLayout(settings.store_path).artifact(version.merged.digest).as_uri()
    tags = {
        NUMBER: str(number),
        RUN_ID: version.run_id,
        MERGED: version.merged.digest,
        "backprop.base": version.base.name,
        "backprop.base.revision": version.base.revision or "",
        "backprop.base.digest": version.base.digest,
    }
    if version.gate:
        tags[GATE] = f"{'accepted' if version.gate.accepted else 'refused'}: {version.gate.reason}"[:LONGEST]
    run_id = run.info.run_id if run else None
    made = client.create_model_version(name, source, run_id, tags=tags, await_creation_for=0)
    return {number: str(made.version)}


def run_of(client: "MlflowClient", settings: Settings, run_id: str) -> "Run | None":
    """Find the run in MLflow, in any of our experiments."""
    found = client.search_runs(experiments(client, settings), f"tags.`{RUN_ID}` = '{run_id}'", max_results=1)
    return found[0] if found else None


def point(client: "MlflowClient", name: str, version: str | None) -> None:
    """Set the champion alias to this MLflow version, or remove it."""
    [model] = client.search_registered_models(f"name = '{name}'")
    if version is None and CHAMPION in model.aliases:
        client.delete_registered_model_alias(name, CHAMPION)
    if version is not None and str(model.aliases.get(CHAMPION)) != version:
        client.set_registered_model_alias(name, CHAMPION, version)
