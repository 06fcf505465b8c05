"""The user's own llama.cpp: its converter writes what has no writer here, in a process of its own. No torch here."""

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
HINT = "look whether this llama.cpp converts the base by hand, with the interpreter BACKPROPAGATE_LLAMA_CPP_PYTHON"
# Runs a script as `python SCRIPT` does, and ends when the pipe to whoever started it closes.
BOUND = (
    "import os, runpy, sys, threading\n"
    "threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()\n"
    "sys.argv = sys.argv[1:]\n"
    "sys.path[0] = os.path.dirname(sys.argv[0])\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


def find(directory: Path, python: str, base: Path) -> ConverterRef:
    """The converter of a checkout, after asking it whether it knows the base's architecture. Reads no weights.

    Raises ConfigInvalid if there is none that starts, or ArchitectureUnsupported.
    """
    known = supported(directory, python)
    name = read_json(base / "config.json")["architectures"][0]
    if not re.search(rf"\b{re.escape(name)}\b", known):
        raise ArchitectureUnsupported(f"the llama.cpp in {directory} does not know {name}", hint="update it")
    return ConverterRef(path=str(directory.absolute()), digest=identity(directory), python=python)


def supported(directory: Path, python: str) -> str:
    """What the converter of a checkout says that it knows. Raises ConfigInvalid if there is none that starts."""
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
    """The Python that the converter runs under: its own, else the worker's, else this one."""
    return config.llama_cpp_python or config.worker_python or sys.executable


def identity(directory: Path) -> str:
    """Digest of (name, sha256) of what the converter is made of, committed or not."""
    files = sorted({path for pattern in PARTS for path in directory.glob(pattern)})
    return digest_of([[path.relative_to(directory).as_posix(), file_digest(path)] for path in files])


def check(converter: ConverterRef) -> None:
    """Raise GGUFExportFailed if the checkout has changed since it was found."""
    if identity(Path(converter.path)) != converter.digest:
        raise GGUFExportFailed(f"{converter.path} is not as it was when the run began", hint="start another run")


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
    """Let `converter` write the transformers model in `model`, whose name stands in the file, as one GGUF file.

    `on_progress` gets the bytes written and about how many there will be. Raises Interrupted when `should_stop` says
    so, or GGUFExportFailed with the converter's own last words, which are all in `log`.
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
        raise GGUFExportFailed(f"{script} ended with status {status}: {said}", hint=HINT)


def run(command: Sequence[str | Path], log: Path, watch: Callable[[], None]) -> int:
    """Run a program until it ends or `watch`, called every second, raises; its exit status."""
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
    """The end of what a program said, as one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[-TAIL:]) or "it said nothing"
