"""Runs the converter of the user's llama.cpp checkout, for architectures without a GGUF writer here. No torch."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from backprop_core.errors import ArchitectureUnsupported, ConfigInvalid, GGUFExportFailed, Interrupted
from backprop_core.models.base import read_json, weights
from backprop_core.runtime.progress import OnProgress
from backprop_core.runtime.settings import Settings
from backprop_core.schema.refs import ConverterRef
from backprop_core.store.artifacts import file_digest
from backprop_core.store.cache_keys import digest_of

SCRIPT = "convert_hf_to_gguf.py"
PARTS = (SCRIPT, "conversion/**/*.py", "gguf-py/gguf/**/*.py")
TAIL = 3  # lines of its log that an error shows
HINT = "check that this llama.cpp converts the base when run manually, with BACKPROPAGATE_LLAMA_CPP_PYTHON"
# Runs a script like `python SCRIPT`, and exits when the pipe from its parent closes.
BOUND = (
    "import os, runpy, sys, threading\n"
    "threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()\n"
    "sys.argv = sys.argv[1:]\n"
    "sys.path[0] = os.path.dirname(sys.argv[0])\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


def find(directory: Path, python: str, base: Path) -> ConverterRef:
    """Find the converter of a checkout, and check that it supports the base's architecture. Reads no weights.

    Raises ConfigInvalid if it is missing or does not start, or ArchitectureUnsupported.
    """
    known = supported(directory, python)
    name = read_json(base / "config.json")["architectures"][0]
    if not re.search(rf"\b{re.escape(name)}\b", known):
        raise ArchitectureUnsupported(f"the llama.cpp in {directory} does not support {name}", hint="update llama.cpp")
    return ConverterRef(path=str(directory.absolute()), digest=identity(directory), python=python)


def supported(directory: Path, python: str) -> str:
    """The converter's list of supported models. Raises ConfigInvalid if it is missing or does not start."""
    if not (directory / SCRIPT).is_file():
        raise ConfigInvalid(f"{directory} has no {SCRIPT}", hint="set LLAMA_CPP_DIR to a checkout of llama.cpp")
    command = [python, str(directory.absolute() / SCRIPT), "--print-supported-models"]
    try:
        asked = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError as error:
        raise ConfigInvalid(f"{python} does not start: {error}", hint="set BACKPROPAGATE_LLAMA_CPP_PYTHON") from error
    if asked.returncode:
        raise ConfigInvalid(f"{directory / SCRIPT} does not start: {last_lines(asked.stderr)}", hint=HINT)
    return asked.stdout + asked.stderr


def interpreter(config: Settings) -> str:
    """The converter's Python interpreter: the configured one, else the worker's, else the current one."""
    return config.llama_cpp_python or config.worker_python or sys.executable


def identity(directory: Path) -> str:
    """Digest of (name, sha256) of the converter's files as they are on disk."""
    files = sorted({path for pattern in PARTS for path in directory.glob(pattern)})
    return digest_of([[path.relative_to(directory).as_posix(), file_digest(path)] for path in files])


def check(converter: ConverterRef) -> None:
    """Raise GGUFExportFailed if the checkout has changed since it was found."""
    if identity(Path(converter.path)) != converter.digest:
        raise GGUFExportFailed(f"{converter.path} has changed since the run started", hint="start a new run")


def convert(
    model: Path,
    output: Path,
    *,
    outtype: str,
    converter: ConverterRef,
    log: Path,
    on_progress: OnProgress,
    should_stop: Callable[[], bool],
) -> None:
    """Convert the transformers model in `model`, whose directory name ends up in the file, to one GGUF file.

    `on_progress` gets the bytes written and an estimate of the total. Raises Interrupted if `should_stop()`, or
    GGUFExportFailed with the end of the converter's output; `log` has all of it.
    """
    size = sum(path.stat().st_size for path in weights(model))

    def watch() -> None:
        if should_stop():
            raise Interrupted("stopped while llama.cpp was converting", hint="run it again")
        if output.is_file():
            on_progress(min(output.stat().st_size, size), size)

    script = Path(converter.path) / SCRIPT
    status = run([converter.python, "-c", BOUND, script, model, "--outfile", output, "--outtype", outtype], log, watch)
    if status or not output.is_file():
        said = last_lines(log.read_text(encoding="utf-8", errors="replace"))
        raise GGUFExportFailed(f"{script} exited with status {status}: {said}", hint=HINT)


def run(command: Sequence[str | Path], log: Path, watch: Callable[[], None]) -> int:
    """Run a program and return its exit status. Calls `watch` every second, which may raise to stop it."""
    with (
        log.open("wb") as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said, cwd=log.parent) as process,
    ):
        try:
            while True:
                try:
                    return process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    watch()
        finally:
            process.kill()


def last_lines(text: str) -> str:
    """The end of a program's output, as one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[-TAIL:]) or "no output"
