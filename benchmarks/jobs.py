"""The small job that several rows share: three LoRA runs on the demo's base and datasets."""

from pathlib import Path

from backprop_core.schema.specs import DatasetSpec, EvaluationSpec, ModelSpec, RunSpec, TrainSpec

EXAMPLES = Path(__file__).parent.parent / "examples"
TASKS = ("route", "catalogue", "orders")
ROWS, STEPS, HELDOUT = 100, 10, 40


def spec() -> RunSpec:
    """The job as a spec."""
    return RunSpec(
        model=ModelSpec(name=str(EXAMPLES / "base")),
        datasets=[DatasetSpec(path=str(file), rows=ROWS) for file in files()],
        training=TrainSpec(steps=STEPS, device="cpu", precision="fp32"),
        evaluation=EvaluationSpec(heldout_max=HELDOUT),
    )


def arguments() -> list[str]:
    """The same job on the command line."""
    data = [word for file in files() for word in ("--data", str(file))]
    given = {"model": EXAMPLES / "base", "rows": ROWS, "steps": STEPS}
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    sets = ["--set", f"evaluation.heldout_max={HELDOUT}", "--set", "training.device=cpu"]
    return ["multi-run", *data, *flags, *sets, "--json"]


def files() -> list[Path]:
    return [EXAMPLES / "data" / f"{task}.jsonl" for task in TASKS]
