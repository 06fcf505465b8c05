"""The stage `quantize`, against llama.cpp alone on the same file. `python -m benchmarks.quantize FILE OUTPUT WHO`."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.convert import make
from benchmarks.measure import CORES, Row, contenders, medians, take_turns, threads

NAME = "seconds of quantizing, against llama.cpp's own"
KIND = "q4_k_m"
SHAPE = {"vocab_size": 16_000, "num_hidden_layers": 4}  # rows as in the other row; 160 MB in f16


def against_llama_cpp() -> Row:
    """f16 → q4_k_m with all cores: hashed, counted and on the disk as an artifact, or only written."""
    from backprop_core.export.gguf import convert

    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        place = Path(name)
        base, adapter = make(place, **SHAPE)
        convert(base, adapter, place / "model.gguf", outtype="f16")
        jobs = [("benchmarks.quantize", str(place / "model.gguf"), str(place / who), who) for who in ("ours", "bare")]
        with contenders(*jobs, **threads(CORES)) as [ours, bare]:
            seconds = medians({"ours": lambda: ours.turn()["seconds"], "bare": lambda: bare.turn()["seconds"]})
    return Row(NAME, seconds["ours"], seconds["bare"], "llama_model_quantize", "s", "less")


def stage(file: Path, place: Path) -> Callable[[], None]:
    """What a worker does for one file, in a store without it."""
    from backprop_core.schema.refs import GGUFRef
    from backprop_core.store.artifacts import Store
    from backprop_core.worker.runner import Runner

    store = Store(place)
    with store.begin("gguf") as directory:
        shutil.copyfile(file, directory / "model.gguf")
        source = store.commit(directory, GGUFRef, record={}, quantization="f16", bytes=file.stat().st_size)
    stages = Runner(store, should_stop=lambda: False)

    def turn() -> None:
        made = stages.run("quantize", "", {"source": source, "quantization": KIND}, lambda event: None)
        assert isinstance(made, GGUFRef)
        store.remove(made.digest, "measured")

    return turn


def llama_cpp(file: Path, output: Path) -> Callable[[], None]:
    """The library's own function, with the parameters that the stage gives it."""
    import torch

    from backprop_core.export.llamacpp import library
    from backprop_core.export.quantize import FILE_TYPES

    own = library()
    parameters = own.llama_model_quantize_default_params()
    parameters.ftype = getattr(own, f"LLAMA_FTYPE_{FILE_TYPES[KIND]}")
    parameters.nthread = torch.get_num_threads()

    def turn() -> None:
        if own.llama_model_quantize(os.fsencode(file), os.fsencode(output), parameters) != 0:
            raise ChildProcessError("llama.cpp could not quantize")

    return turn


def main(file: Path, output: Path, who: str) -> None:
    """A contender: one file a turn."""
    job = stage(file, output) if who == "ours" else llama_cpp(file, output)

    def turn() -> dict[str, float]:
        began = time.perf_counter()
        job()
        return {"seconds": time.perf_counter() - began}

    take_turns(turn)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
