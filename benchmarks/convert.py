"""Writing a GGUF file, against copying one of the same size. `python -m benchmarks.convert BASE ADAPTER OUTPUT`."""

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from backprop_core.runtime import process_memory
from benchmarks.measure import CORES, REPEATS, Contender, Row, contenders, medians, take_turns, threads

NAME = "convert throughput, against copy"
MEMORY = "peak memory of convert, against 300 MB and twice the largest tensor"
SHAPE: dict[str, Any] = {  # half a billion parameters: 1 GB in bf16
    "vocab_size": 64_000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "dtype": "bfloat16",
}
SETTLED = 4.0  # seconds until a removed file's memory is the host's
BOUND = 300e6 + 2 * 2 * SHAPE["vocab_size"] * SHAPE["hidden_size"]  # bytes; the embeddings are the largest tensor


def against_copy() -> Row:
    """bf16 with a LoRA adapter on every linear layer → f16, on all cores; on both sides everything is on the disk."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        place = Path(name)
        base, adapter = make(place)
        os.sync()  # the base, too: nothing but what is measured is written meanwhile
        output = place / "model.gguf"
        job = ("benchmarks.convert", str(base), str(adapter), str(output))
        with contenders(job, **threads(CORES)) as [converting]:
            rates = medians({"convert": lambda: rate(converting), "copy": lambda: copied(output, place / "copy.gguf")})
    return Row(NAME, rates["convert"], rates["copy"], "a copy of the same file, fsynced", "bytes/s", "more")


def memory() -> Row:
    """Of a process that has imported what it needs and converted once."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        base, adapter = make(Path(name))
        job = ("benchmarks.convert", str(base), str(adapter), str(Path(name) / "model.gguf"))
        peaks = [peak_of(job) for _ in range(REPEATS)]
    return Row(MEMORY, statistics.median(peaks), BOUND, "the bound", "bytes", "less")


def peak_of(job: tuple[str, ...]) -> float:
    with contenders(job, **threads(CORES)) as [converting]:
        return converting.turn()["peak"]


def rate(converting: Contender) -> float:
    """Bytes of the file that was made, by second."""
    done = converting.turn()
    return done["bytes"] / done["seconds"]


def copied(source: Path, target: Path) -> float:
    """Bytes a second of a copy that is on the disk."""
    removed(target)
    began = time.perf_counter()
    shutil.copyfile(source, target)
    force(target)
    return target.stat().st_size / (time.perf_counter() - began)


def removed(path: Path) -> None:
    """Wait until a virtual machine has given its memory back to the host, as if no process had written lately.

    Memory that it still has takes a tenth of the time to write to, so an early contender would be ahead.
    """
    path.unlink(missing_ok=True)
    time.sleep(SETTLED)


def force(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def make(place: Path, **shape: Any) -> tuple[Path, Path]:
    """A random Llama and a random adapter on it."""
    import torch
    from safetensors import safe_open

    from backprop_core.models import adapter_tensors as adapters
    from backprop_core.schema.specs import LoraSpec
    from tests.backprop_core import nano

    base, directory = nano.build(place / "base", **SHAPE | shape), place / "adapter"
    directory.mkdir()
    lora, tensors = LoraSpec(), {}
    weights: Any = safe_open(base / "model.safetensors", "pt")
    linear = [name.removesuffix(".weight") for name in weights.keys() if name.endswith("_proj.weight")]  # noqa: SIM118
    for name in linear:
        out_features, in_features = weights.get_slice(f"{name}.weight").get_shape()
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(lora.rank, in_features)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out_features, lora.rank)
    config = adapters.config_of(lora, sorted({name.rpartition(".")[2] for name in linear}))
    adapters.write_adapter(adapters.Adapter(config, tensors), directory)
    return base, directory


def main(base: Path, adapter: Path, output: Path) -> None:
    """The contender: one conversion a turn."""
    from backprop_core.export.gguf import convert

    def turn() -> dict[str, float]:
        removed(output)
        began = time.perf_counter()
        convert(base, adapter, output, outtype="f16")
        force(output)
        seconds = time.perf_counter() - began
        return {"bytes": output.stat().st_size, "seconds": seconds, "peak": process_memory.peak()}

    take_turns(turn)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
