"""`backprop doctor`: checks disk, GPU, optional packages, Prefect, MLflow, Ollama and the Hub on this machine."""

import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import suppress

import httpx
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version
from prefect.settings import Settings as PrefectSettings

from backprop_core.errors import BackpropError
from backprop_core.publishing import ollama
from backprop_core.publishing.hub import SECRET_BLOCK
from backprop_core.runtime.redaction import blank_secrets, weak_secrets
from backprop_core.runtime.settings import Settings
from tasks.runs.machine_checks import Part, attempt, converter, device, disk, home, journal, packages
from tasks.tracking import own_database, tracking_uri
from tasks.tracking.connection import answering, connect, experiments
from tasks.tracking.registry import aliases, moved


def examine(config: Settings) -> list[Part]:
    """Check all parts, in the order in which a run needs them. Creates the home and MLflow's database if missing."""
    parts = [home(config), disk(config), device(), *packages(), *converter(config)]
    parts += [prefect(), mlflow(config), journal(config), *champions(config)]
    return [*parts, ollama_server(), hub(), secrets()]


def prefect() -> Part:
    """The Prefect server from the environment or a profile; without one, each command starts its own."""
    url = PrefectSettings().api.url
    if not url:
        return Part(name="Prefect", state="ok", found="a server of its own for each command")
    try:
        httpx.get(f"{url}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        todo = "start it, correct PREFECT_API_URL, or unset it"
        return Part(name="Prefect", state="wrong", found=f"{blank_secrets(url)}: {error}", todo=todo)
    return server_part("Prefect", url, f"{url}/admin/version")


def mlflow(config: Settings) -> Part:
    """The MLflow server; while it is unreachable, records wait in the journal."""
    uri = tracking_uri(config)
    part = attempt("MLflow", blank_secrets(uri), lambda: check_mlflow(config), otherwise="missing")
    is_server = part.state == "ok" and uri.startswith("http")
    return server_part("MLflow", uri, f"{uri.rstrip('/')}/version") if is_server else part


def check_mlflow(config: Settings) -> None:
    """Raises MLflowUnreachable, HistoryDamaged, PlaceUnusable, DiskFull, StorageFailed."""
    if own_database.is_sound(config):
        return
    client = connect(config)
    with answering(config):
        if ours := experiments(client, config):
            client.search_runs(ours, max_results=1)  # else what a list of runs needs may be missing


def server_part(name: str, url: str, version_url: str) -> Part:
    """A server that answers, and whether its version is one that was tested."""
    found, todo = blank_secrets(url), ""
    if version := server_version(version_url):
        tested = tested_versions(name.lower())
        found += f", version {version}"
        if not tested.contains(version, prereleases=True):
            todo = f"versions {tested} were tested: upgrade the server, or this program"
    return Part(name=name, state="missing" if todo else "ok", found=found, todo=todo)


def server_version(url: str) -> str | None:
    """What a server says its version is; None if it does not say."""
    with suppress(httpx.HTTPError, InvalidVersion):
        answer = httpx.get(url, timeout=5).raise_for_status()
        return str(Version(answer.text.strip().strip('"')))
    return None


def tested_versions(package: str) -> SpecifierSet:
    """The versions of a package that this program was tested with."""
    needed = map(Requirement, importlib.metadata.requires("backpropagate-pipeline") or [])
    return next((each.specifier for each in needed if each.name == package), SpecifierSet())


def champions(config: Settings) -> Iterator[Part]:
    """Lines whose champion alias was changed in MLflow."""
    with suppress(BackpropError):
        if found := moved(config, lambda: aliases_in_mlflow(config)):
            todo = "backprop sync sets it back; backprop promote or rollback changes what is live"
            yield Part(name="champions", state="missing", found="; ".join(found), todo=todo)


def aliases_in_mlflow(config: Settings) -> dict[str, str]:
    """MLflow's champion versions. Raises MLflowUnreachable, HistoryDamaged."""
    known = own_database.champions(config)
    return aliases(connect(config), config) if known is None else known


def ollama_server() -> Part:
    """The Ollama server that --ollama uses."""

    def check() -> None:
        with ollama.Ollama(patience=5) as server:
            server.check()

    return attempt("Ollama", blank_secrets(ollama.address()), check, otherwise="missing")


def secrets() -> Part:
    """Whether every secret in the environment can be redacted in logs."""
    if weak := weak_secrets():
        found = f"{', '.join(weak)}: too short, or too much like a word or number, to be redacted in logs"
        return Part(name="secrets", state="missing", found=found, todo="take longer ones, of letters and digits")
    return Part(name="secrets", state="ok", found="blanked in logs and records")


def hub() -> Part:
    """Whether a Hub token is set, and for which Hub."""
    where = os.environ.get("HF_ENDPOINT") or "the Hub"
    if os.environ.get("HF_TOKEN"):
        return Part(name="Hub", state="ok", found=f"HF_TOKEN is set, for {blank_secrets(where)}")
    todo = f"to push: set HF_TOKEN, or create a Prefect Secret block {SECRET_BLOCK}"
    return Part(name="Hub", state="missing", found="HF_TOKEN is not set", todo=todo)
