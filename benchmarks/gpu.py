"""What only a GPU can tell, of models with the usual sizes and random weights: `make gpu` writes docs/gpu.md.

python -m benchmarks.gpu [--shapes NAME ...] [--output FILE]
python -m benchmarks.gpu --dry-run        # the same code on a CPU with a tiny model, in a minute: prints the page
"""

import argparse
import gc
import importlib.util
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from backprop_core.errors import Interrupted
from backprop_core.models import adapter_tensors as adapters
from backprop_core.models import loading
from backprop_core.schema.field_types import Precision
from backprop_core.schema.refs import TrainResult
from backprop_core.schema.specs import TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training.loop import train
from backprop_core.training.loss import loss_sum, part
from backprop_core.training.presets import PRESETS
from backprop_core.training.vram_estimate import GIB, Setting, Shape, memory
from benchmarks import gpu_engines
from benchmarks.gpu_engines import LENGTH
from tests.backprop_core import nano

SHAPES = ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b")
TINY = Shape(
    model_type="qwen2",
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=1200,
    max_position_embeddings=512,
)
NEEDED = (
    *("torch", "transformers", "peft", "pydantic", "jinja2", "xxhash", "nvidia-ml-py", "bitsandbytes", "accelerate"),
    *("trl", "datasets"),  # the others' own; flash-attn and unsloth take part where they are installed
)
STEPS, WARM = 12, 4  # of which so many are not counted
FLOPS = 4  # of a LoRA step, a parameter and token: forward and backward through frozen weights
SIZE = {"cuda": 8192, "cpu": 256}  # of the square matrices whose product tells how fast the device is
PLACE = "/var/tmp"


class Done(NamedTuple):
    """A training: real tokens a second after the warm-up, the adapter, and what the ladder did, step by step."""

    rate: float
    result: TrainResult
    tensors: adapters.Tensors
    rungs: list[float]


def main() -> None:
    """Measure everything, then write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="What only a GPU can tell.")
    parser.add_argument("--shapes", nargs="+", choices=sorted(PRESETS), default=SHAPES)
    parser.add_argument("--dry-run", action="store_true", help="a tiny model on the CPU; writes nothing")
    parser.add_argument("--output", type=Path, default=Path("docs/gpu.md"))
    asked = parser.parse_args()
    if asked.dry_run:
        print("\n".join(["", *report({"tiny": TINY}, "cpu")]))
    elif not torch.cuda.is_available():
        parser.exit(2, "torch finds no GPU here: nothing was measured, and the page stays as it is\n")
    else:
        lines = report({name: PRESETS[name].shape for name in asked.shapes}, "cuda")
        asked.output.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def report(shapes: dict[str, Shape], device: str) -> list[str]:
    """The lines of docs/gpu.md; each row is printed as soon as it is known."""
    product = matrix_product(device)
    name = torch.cuda.get_device_name() if device == "cuda" else "a CPU"
    lines = [
        "# On a GPU",
        "",
        f"`make gpu` on {name}, torch {torch.__version__}. A square bf16 matrix product reaches",
        f"{product / 1e12:.3g} TFLOP/s there. Random weights, rows of {LENGTH[device]} tokens, LoRA of rank 16 on",
        "every linear layer. The memory is all that the device holds, CUDA's own included.",
        "",
        "| Model | Base | Tokens/s | Of the matrix product | Memory, GiB | Estimate, GiB | Estimate / memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for title, shape in shapes.items():
        with made(shape) as base:
            lines += [printed(speed(title, shape, base, precision, device, product)) for precision in precisions()]
    lines += ["", *beside_others(shapes, device)]
    smallest = min(shapes.values(), key=lambda shape: shape.parameters)
    with made(smallest) as base:
        lines += ["", *map(printed, laws(base, device))]
    return [*lines, "", "What it needs, with a CUDA build of torch:", "", "```", *packages(), "```"]


def beside_others(shapes: dict[str, Shape], device: str) -> Iterator[str]:
    """The same training by each engine, rows of mixed lengths, bf16."""
    yield "| Model | Engine | Tokens/s | Memory at its peak, GiB |"
    yield "| --- | --- | --- | --- |"
    for title, shape in shapes.items():
        with made(shape) as base:
            for name in gpu_engines.ENGINES:
                yield printed(f"| {title} | {engine(name, gpu_engines.compared(name, base, device))} |")


def engine(name: str, found: dict[str, Any]) -> str:
    """The cells of an engine."""
    if "missing" in found or "failed" in found:
        return f"{name} | {found.get('failed') or 'not installed'} | "
    note = f" ({found['note']})" if "note" in found else ""
    return f"{name}{note} | {found['rate']:,.0f} | {found['memory'] / GIB:.2f}"


def packages() -> list[str]:
    """What to carry to a machine without a package index: NEEDED and all that these require, as installed here."""
    found: dict[str, str] = {}
    left = list(NEEDED)
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        with suppress(PackageNotFoundError):  # a CUDA build of torch needs more than this machine has
            found[name] = version(name)
            required = map(Requirement, requires(name) or [])
            left += [one.name for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [f"{name}=={number}" for name, number in sorted(found.items())]


def printed(line: str) -> str:
    print(line, flush=True)
    return line


def precisions() -> list[Precision]:
    """bf16, and nf4 where bitsandbytes is installed."""
    return ["bf16", "nf4"] if importlib.util.find_spec("bitsandbytes") else ["bf16"]


@contextmanager
def made(shape: Shape) -> Iterator[Path]:
    """A directory with a model of this shape."""
    with tempfile.TemporaryDirectory(dir=PLACE) as name:
        sizes = shape.model_dump(exclude={"model_type"}, exclude_none=True)
        yield nano.build(Path(name), architecture=shape.model_type, dtype="bfloat16", **sizes)


def matrix_product(device: str) -> float:
    """FLOP/s of a square bf16 product, the best of five."""
    size = SIZE[device]
    a = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    return max(2 * size**3 / seconds(a) for _ in range(5))


def seconds(a: torch.Tensor) -> float:
    settle(a.device.type)
    began = time.perf_counter()
    a @ a
    settle(a.device.type)
    return time.perf_counter() - began


def settle(device: str) -> None:
    """Wait for what was asked of the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def speed(title: str, shape: Shape, base: Path, precision: Precision, device: str, product: float) -> str:
    """A row of the table."""
    spec = spec_of(device, precision=precision, token_budget=4 * LENGTH[device])
    loaded = loading.load(base, precision=precision, device=device)
    done = run(loaded, spec)
    setting = Setting(precision=precision, checkpointing=False, lora=spec.lora)
    held, guess = in_use(device), memory(shape, setting, spec.token_budget)
    assert not done.rungs, "it did not fit as it is: the estimate is of another setting"
    del loaded
    release(device)
    share = FLOPS * shape.parameters * done.rate / product
    sizes = f"{held / GIB:.2f} | {guess.total / GIB:.2f} | {guess.total / held:.2f}" if held else "| |"
    return f"| {title} | {precision} | {done.rate:,.0f} | {share:.0%} | {sizes} |"


def spec_of(device: str, **changes: Any) -> TrainSpec:
    fields: dict[str, Any] = {"steps": STEPS, "batch_size": 16, "precision": "bf16", **changes}
    return TrainSpec(device=device, max_length=LENGTH[device], **fields)


def run(loaded: loading.LoadedBase, spec: TrainSpec, *, stop_after: int | None = None) -> Done:
    """One training in a store of its own; with `stop_after` it is stopped after that step and resumed."""
    marks: list[tuple[float, float]] = []
    rungs: list[float] = []

    def note(step: int, total: int, values: dict[str, float]) -> None:
        settle(loaded.device.type)
        marks.append((time.perf_counter(), values["tokens"]))
        rungs.extend(values[name] for name in ("token_budget",) if name in values)

    with tempfile.TemporaryDirectory(dir=PLACE) as name:
        store = Store(Path(name))
        rows = nano.commit_rows(store, [long_row(number, spec.max_length) for number in range(spec.batch_size * STEPS)])
        call: dict[str, Any] = {"spec": spec, "start": None, "key": "0" * 64, "store": store, "on_metrics": note}
        try:
            result = train(loaded, rows, should_stop=lambda: len(marks) == stop_after, **call)
        except Interrupted:
            result = train(loaded, rows, should_stop=lambda: False, **call)
        tensors = adapters.read_adapter(store.local(result.adapter)).tensors
        store.close()
    counted = marks[WARM:]
    return Done(sum(n for _, n in counted) / (marks[-1][0] - marks[WARM - 1][0]), result, tensors, rungs)


def long_row(number: int, length: int) -> dict[str, Any]:
    """A chat that is cut at `length` tokens, most of them the answer."""
    words = [str(number * 31 + index) for index in range(length)]
    question, answer = " ".join(words[: length // 32]), " ".join(words)
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def in_use(device: str) -> int:
    """Bytes of the device that are taken, by whomever; 0 for a CPU."""
    if device == "cpu":
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


def release(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def laws(base: Path, device: str) -> list[str]:
    """What holds on this device, each with what was seen."""
    loaded = loading.load(base, precision="bf16", device=device)
    spec = spec_of(device, token_budget=8 * LENGTH[device])
    first, second, resumed = run(loaded, spec), run(loaded, spec), run(loaded, spec, stop_after=5)
    lines = [
        f"- Trained twice: {verdict(first, second)}.",
        f"- Stopped after step 5 and resumed: {verdict(first, resumed)}.",
    ]
    lines += [head(loaded), *optimizers(loaded, spec, first)]
    return [*lines, *([out_of_memory(loaded, spec, first)] if device == "cuda" else [])]


def head(loaded: loading.LoadedBase) -> str:
    """The chunked loss against plain cross-entropy, on random states."""
    torch.manual_seed(0)
    width, count = loaded.model.config.hidden_size, 300
    states_nh = torch.randn(count, width, dtype=torch.bfloat16, device=loaded.device)
    labels_n = torch.randint(loaded.vocabulary, (count,), device=loaded.device)
    gradients = []
    for compute in (part, lambda *given: loss_sum(*given, logits=64 * loaded.vocabulary)):
        leaf = states_nh.clone().requires_grad_()
        compute(loaded, leaf, labels_n).backward()
        gradients.append(leaf.grad.float())  # type: ignore[union-attr]
    worst = float((gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max())
    return f"- The gradient of the loss in chunks, against plain cross-entropy: {worst:.1e} relative."


def optimizers(loaded: loading.LoadedBase, spec: TrainSpec, adamw: Done) -> Iterator[str]:
    """AdamW with 8-bit moments, where bitsandbytes is installed; paged on a GPU only."""
    if not importlib.util.find_spec("bitsandbytes"):
        return
    for name in ("adamw_8bit", "paged_adamw_8bit")[: 2 if loaded.device.type == "cuda" else 1]:
        own = spec.model_copy(update={"optimizer": name})
        done, resumed = run(loaded, own), run(loaded, own, stop_after=5)
        yield (
            f"- {name}: {done.rate / adamw.rate:.2f} times the tokens/s of adamw, loss {done.result.train_loss:.3f} "
            f"against {adamw.result.train_loss:.3f}; stopped after step 5 and resumed: {verdict(done, resumed)}."
        )


def verdict(one: Done, other: Done) -> str:
    if one.result.adapter.digest == other.result.adapter.digest:
        return "the same bits"
    return f"**not the same bits**, {difference(one, other):.1e} relative"


def difference(one: Done, other: Done) -> float:
    """The largest difference of an entry, relative to the largest entry."""
    largest = max(float(tensor.abs().max()) for tensor in one.tensors.values())
    return max(float((one.tensors[key] - tensor).abs().max()) for key, tensor in other.tensors.items()) / largest


def out_of_memory(loaded: loading.LoadedBase, spec: TrainSpec, whole: Done) -> str:
    """The same training where its micro-batches do not fit: a limit between what it takes with one row and with all."""
    release("cuda")
    torch.cuda.reset_peak_memory_stats()
    run(loaded, spec.model_copy(update={"token_budget": 2 * LENGTH["cuda"]}))
    limit = torch.cuda.max_memory_reserved() * 1.1 / torch.cuda.get_device_properties(loaded.device).total_memory
    release("cuda")
    torch.cuda.set_per_process_memory_fraction(limit)
    done = run(loaded, spec)
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert done.rungs, "there was memory enough"
    rungs = ", ".join(f"{budget:.0f}" for budget in done.rungs)
    return f"- Out of memory at {spec.token_budget} tokens at a time, then {rungs}: {difference(whole, done):.1e}."


if __name__ == "__main__":
    main()
