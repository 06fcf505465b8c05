"""Writes what MLflow's pages of a line say: the descriptions of its experiment, registered model and versions."""

from contextlib import suppress
from typing import TYPE_CHECKING

from backprop_core.errors import ArtifactDamaged
from backprop_core.runtime.settings import Settings
from backprop_core.schema.score_text import level
from tasks.runs.line_report import LineReport, line_report
from tasks.tracking.journal import NOTE
from tasks.tracking.line_curve import Curve, draw
from tasks.tracking.line_description import Links, line_text, version_text
from tasks.tracking.old_names import LIVE
from tasks.tracking.record import RUN_ID
from tasks.tracking.registry import model_versions

if TYPE_CHECKING:
    from mlflow import MlflowClient

AVERAGE = "backprop.average"  # tag of a registered model
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else the page of the experiment asks for it


def describe(client: "MlflowClient", settings: Settings, name: str, line: str) -> None:
    """Bring curve, descriptions and tags of a line up to date. A line with damaged records keeps those that it has."""
    with suppress(ArtifactDamaged):
        report, curve = line_report(line, settings), draw(client, settings, line)
        found = model_versions(client, name)
        links = Links(
            model=name,
            curve=curve.link,
            versions={number: str(one.version) for number, one in found.items()},
            runs={one.tags[RUN_ID]: curve.run_link(one.run_id) for one in found.values() if one.run_id},
        )
        describe_line(client, report, links, curve)
        for version in reversed(report.versions):  # MLflow lists the last changed first
            text = version_text(report, version, links)
            if version.number in found and found[version.number].description != text:
                client.update_model_version(name, found[version.number].version, description=text)


def describe_line(client: "MlflowClient", report: LineReport, links: Links, curve: Curve) -> None:
    """The descriptions of a line's registered model, experiment and curve, and the tags in the list of models."""
    text, live = line_text(report, links), report.live
    tags = {LIVE: f"v{live.number}" if live else "none", AVERAGE: average(report)}
    [model] = client.search_registered_models(f"name = '{links.model}'")
    if model.description != text:
        client.update_registered_model(links.model, text)
    for tag, value in tags.items():
        if model.tags.get(tag) != value:
            client.set_registered_model_tag(links.model, tag, value)
    shown = client.get_experiment(curve.experiment).tags
    for tag, value in {NOTE: text, **KIND}.items():
        if shown.get(tag) != value:
            client.set_experiment_tag(curve.experiment, tag, value)
    client.set_tag(curve.run, NOTE, text)


def average(report: LineReport) -> str:
    """The average of what is live, for people."""
    return "" if report.live is None or report.live.average is None else level(report.live.average, report.metric)
