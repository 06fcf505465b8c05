"""`backprop doctor`: checks disk, GPU, optional packages, Prefect, MLflow, Ollama and the Hub on this machine."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

import httpx
from prefect.settings import Settings as PrefectSettings

from backprop_core.errors import BackpropError, ExtraMissing
from backprop_core.export import llamacpp_converter
from backprop_core.lines.prune import size_of
from backprop_core.models import devices
from backprop_core.publishing import ollama
from backprop_core.runtime import optional_packages
from backprop_core.runtime.redaction import blank_secrets, weak_secrets
from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from backprop_core.store.layout import StoreLayout
from tasks.stages.publishing import SECRET_BLOCK
from tasks.tracking import tracking_uri
from tasks.tracking.connection import connect
from tasks.tracking.registry import moved
from tasks.tracking.sender import unsent

State = Literal["ok", "missing", "wrong"]
ROOM = 40 * 2**30  # a 7B model takes 15 GiB of weights, as much again for an f16 file, and 5 for a quantized one
LLAMA_CPP, BITSANDBYTES = ["llama_cpp"], optional_packages.QLORA


class Part(Record):
    """One checked part. `missing`: runs work without it; `wrong`: must be fixed first."""

    name: str
    state: State
    found: str
    todo: str = ""


def examine(config: Settings) -> list[Part]:
    """Check all parts, in the order in which a run needs them. Creates the home and MLflow's database if missing."""
    parts = [home(config), disk(config), device(), *packages(), *converter(config)]
    parts += [prefect(), mlflow(config), journal(config), *champions(config)]
    return [*parts, ollama_server(), hub(), secrets()]


def attempt(name: str, found: str, work: Callable[[], object], *, otherwise: State) -> Part:
    """`ok` with what was found, or the error's message and hint."""
    try:
        work()
    except BackpropError as error:
        return Part(name=name, state=otherwise, found=error.message, todo=error.hint)
    return Part(name=name, state="ok", found=found)


def home(config: Settings) -> Part:
    """Whether the home is writable."""
    for place in (config.home_path, config.store_path):
        try:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            with TemporaryFile(dir=place):
                pass
        except OSError as error:
            todo = "make it writable, or set BACKPROPAGATE_HOME and BACKPROPAGATE_STORE"
            return Part(name="home", state="wrong", found=f"{place}: {error.strerror}", todo=todo)
    return Part(name="home", state="ok", found=str(config.home_path))


def disk(config: Settings) -> Part:
    """Free disk space, and the size of the store."""
    free = shutil.disk_usage(existing(config.store_path)).free
    parts = ", ".join(f"{name} {gib(size)}" for name, size in taken(StoreLayout(config.store_path)))
    found = f"{gib(free)} free; the store has {parts}"
    if free < ROOM:
        return Part(name="disk", state="missing", found=found, todo="a 7B model wants 40 GiB: backprop store prune")
    return Part(name="disk", state="ok", found=found)


def taken(store: StoreLayout) -> Iterator[tuple[str, int]]:
    """Bytes of the growing parts of a store."""
    for folder in (store.artifacts, store.trainings, store.sessions):
        yield folder.name, size_of(folder)


def existing(path: Path) -> Path:
    """The nearest existing directory."""
    return path if path.is_dir() else existing(path.parent)


def gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def device() -> Part:
    """The GPU that a run would use, or why there is none."""
    if missing := devices.missing_gpu():
        return Part(name="GPU", state="missing", found=missing.message, todo=missing.hint)
    memory = devices.memory()
    found = f"{len(devices.visible_gpus())}" + (f", {gib(memory.free)} of {gib(memory.total)} free" if memory else "")
    return Part(name="GPU", state="ok", found=found)


def packages() -> Iterator[Part]:
    """Which extras are installed."""
    for name, needed, what, extra in (
        ("llama.cpp", LLAMA_CPP, "K-quants, and reading GGUF files back,", "export"),
        ("QLoRA", BITSANDBYTES, "training.precision=nf4", "qlora"),
    ):
        try:
            optional_packages.require(needed, what=what, extra=extra)
        except ExtraMissing as error:
            yield Part(name=name, state="missing", found=error.message, todo=error.hint)
        else:
            yield Part(name=name, state="ok", found="installed")


def converter(config: Settings) -> Iterator[Part]:
    """The user's llama.cpp checkout, if configured; it converts bases without a GGUF writer here."""
    if config.llama_cpp_dir:
        directory, python = config.llama_cpp_dir.expanduser(), llamacpp_converter.interpreter(config)
        yield attempt(
            "LLAMA_CPP_DIR", str(directory), lambda: llamacpp_converter.supported(directory, python), otherwise="wrong"
        )


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
    return Part(name="Prefect", state="ok", found=blank_secrets(url))


def mlflow(config: Settings) -> Part:
    """The MLflow server; while it is unreachable, records wait in the journal."""
    return attempt("MLflow", blank_secrets(tracking_uri(config)), lambda: connect(config), otherwise="missing")


def journal(config: Settings) -> Part:
    """Runs not yet sent to MLflow."""
    if waiting := len(list(unsent(config))):
        return Part(name="journal", state="missing", found=f"{waiting} runs wait for MLflow", todo="backprop sync")
    return Part(name="journal", state="ok", found="MLflow has been told everything")


def champions(config: Settings) -> Iterator[Part]:
    """Lines whose champion alias was changed in MLflow."""
    with suppress(BackpropError):
        if found := moved(connect(config), config):
            todo = "backprop sync sets it back; backprop promote or rollback changes what is live"
            yield Part(name="champions", state="missing", found="; ".join(found), todo=todo)


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
