"""Whether this machine can do the job: each part that it needs, with what was found and what to do."""

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
    """One thing that a run may need. `missing` runs without it; `wrong` has to be put right first."""

    name: str
    state: State
    found: str
    todo: str = ""


def examine(config: Settings) -> list[Part]:
    """Every part, in the order in which a run needs it. A home that is not there is made, with MLflow's database."""
    parts = [home(config), disk(config), device(), *packages(), *converter(config)]
    parts += [prefect(), mlflow(config), journal(config), *champions(config)]
    return [*parts, ollama_server(), hub(), secrets()]


def attempt(name: str, found: str, work: Callable[[], object], *, otherwise: State) -> Part:
    """`ok` with what was found, or the error's own words and hint."""
    try:
        work()
    except BackpropError as error:
        return Part(name=name, state=otherwise, found=error.message, todo=error.hint)
    return Part(name=name, state="ok", found=found)


def home(config: Settings) -> Part:
    """Whether everything that is kept can be written."""
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
    """What is free, and what the store takes."""
    free = shutil.disk_usage(existing(config.store_path)).free
    parts = ", ".join(f"{name} {gib(size)}" for name, size in taken(StoreLayout(config.store_path)))
    found = f"{gib(free)} free; the store has {parts}"
    if free < ROOM:
        return Part(name="disk", state="missing", found=found, todo="a 7B model wants 40 GiB: backprop store prune")
    return Part(name="disk", state="ok", found=found)


def taken(store: StoreLayout) -> Iterator[tuple[str, int]]:
    """Bytes of what grows in a store."""
    for folder in (store.artifacts, store.trainings, store.sessions):
        yield folder.name, size_of(folder)


def existing(path: Path) -> Path:
    """The nearest directory that is there."""
    return path if path.is_dir() else existing(path.parent)


def gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def device() -> Part:
    """The GPU that a run would use, or why it would use none."""
    if missing := devices.missing_gpu():
        return Part(name="GPU", state="missing", found=missing.message, todo=missing.hint)
    memory = devices.memory()
    found = f"{len(devices.visible_gpus())}" + (f", {gib(memory.free)} of {gib(memory.total)} free" if memory else "")
    return Part(name="GPU", state="ok", found=found)


def packages() -> Iterator[Part]:
    """What is installed by extras."""
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
    """The user's llama.cpp, where one is named: bases that have no GGUF writer here go through it."""
    if config.llama_cpp_dir:
        directory, python = config.llama_cpp_dir.expanduser(), llamacpp_converter.interpreter(config)
        yield attempt(
            "LLAMA_CPP_DIR", str(directory), lambda: llamacpp_converter.supported(directory, python), otherwise="wrong"
        )


def prefect() -> Part:
    """The server of the user's choice, from the environment or a profile; without one each command brings its own."""
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
    """Where runs are recorded; what it does not take now waits in the journal."""
    return attempt("MLflow", blank_secrets(tracking_uri(config)), lambda: connect(config), otherwise="missing")


def journal(config: Settings) -> Part:
    """What MLflow has not been told yet."""
    if waiting := len(list(unsent(config))):
        return Part(name="journal", state="missing", found=f"{waiting} runs wait for MLflow", todo="backprop sync")
    return Part(name="journal", state="ok", found="MLflow has been told everything")


def champions(config: Settings) -> Iterator[Part]:
    """Lines whose champion alias was moved in MLflow."""
    with suppress(BackpropError):
        if found := moved(connect(config), config):
            todo = "backprop sync sets it back; backprop promote or rollback changes what is live"
            yield Part(name="champions", state="missing", found="; ".join(found), todo=todo)


def ollama_server() -> Part:
    """Where --ollama would go."""

    def check() -> None:
        with ollama.Ollama(patience=5) as server:
            server.check()

    return attempt("Ollama", blank_secrets(ollama.address()), check, otherwise="missing")


def secrets() -> Part:
    """Whether every secret of the environment can be blanked in logs."""
    if weak := weak_secrets():
        found = f"{', '.join(weak)}: too short, or a word or a number, to be blanked in logs"
        return Part(name="secrets", state="missing", found=found, todo="take longer ones, of letters and digits")
    return Part(name="secrets", state="ok", found="blanked in logs and records")


def hub() -> Part:
    """Whether something could be pushed, and where to."""
    where = os.environ.get("HF_ENDPOINT") or "the Hub"
    if os.environ.get("HF_TOKEN"):
        return Part(name="Hub", state="ok", found=f"HF_TOKEN is set, for {blank_secrets(where)}")
    todo = f"to push: set HF_TOKEN, or make a Prefect Secret block {SECRET_BLOCK}"
    return Part(name="Hub", state="missing", found="HF_TOKEN is not set", todo=todo)
