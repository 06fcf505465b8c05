"""The main job on the small base and datasets of `examples/`, in which facts change from task to task."""

from pathlib import Path

from backprop_core.errors import InputNotFound
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import (
    DatasetSpec,
    EvaluationSpec,
    ExportSpec,
    LoraSpec,
    MergeSpec,
    ModelSpec,
    RunSpec,
    TrainSpec,
)
from flows.cli import run_here

EXAMPLES = Path(__file__).parent.parent / "examples"
TASKS = ("route", "catalogue", "orders", "reply")
# high enough that plain sequential training forgets
TRAINING = TrainSpec(learning_rate=4.5e-3, epochs=5, batch_size=16, max_length=256, lora=LoraSpec(rank=8, alpha=16))


def demo(*, seed: int = 0) -> tuple[RunResult, RunResult]:
    """Four LoRA runs merged by SLAO and exported, and the same four without merging."""
    merged = run_here.run("multi-run", spec("slao", seed, export=ExportSpec(quantizations=["q4_k_m", "q8_0"])))
    return merged, run_here.run("multi-run", spec("sequential", seed, export=ExportSpec()))


def spec(strategy: str, seed: int, export: ExportSpec) -> RunSpec:
    """The four tasks in a row, with general skills as a watched task."""
    if not EXAMPLES.is_dir():
        raise InputNotFound(f"{EXAMPLES} does not exist", hint="run the demo from a checkout of the repository")
    data = EXAMPLES / "data"
    return RunSpec(
        line="demo",
        model=ModelSpec(name=str(EXAMPLES / "base")),
        datasets=[
            DatasetSpec(path=str(data / f"{task}.jsonl"), heldout=str(data / "heldout" / f"{task}.jsonl"))
            for task in TASKS
        ],
        training=TRAINING.model_copy(update={"seed": seed}),
        merge=MergeSpec(strategy=strategy),
        evaluation=EvaluationSpec(
            metric="exact_match", watch=[DatasetSpec(path=str(data / "heldout" / "general.jsonl"))]
        ),
        export=export,
    )
