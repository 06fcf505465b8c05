"""The checks of `backprop doctor` that ask no server: home, disk, GPU, optional packages, journal."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

from backprop_core.errors import BackpropError, ExtraMissing
from backprop_core.export import llamacpp_converter
from backprop_core.lines.prune import size_of
from backprop_core.models import devices
from backprop_core.runtime import optional_packages
from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from backprop_core.store.layout import StoreLayout
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


def quick(config: Settings) -> list[Part]:
    """What can be checked at once: not the disk, whose files are counted."""
    return [home(config), device(), *packages(), *converter(config), journal(config)]


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


def journal(config: Settings) -> Part:
    """Runs not yet sent to MLflow."""
    if waiting := len(list(unsent(config))):
        return Part(name="journal", state="missing", found=f"{waiting} runs wait for MLflow", todo="backprop sync")
    return Part(name="journal", state="ok", found="MLflow has been told everything")
