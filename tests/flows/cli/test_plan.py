"""`--plan` against the run that follows: the same stages, the same keys, and nothing done."""

import json
import shutil
from pathlib import Path

import pytest

from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import (
    DatasetSpec,
    EvaluationSpec,
    ExportSpec,
    HarnessSpec,
    LoraSpec,
    MergeSpec,
    ModelSpec,
    RunSpec,
    TrainSpec,
)
from backprop_core.training.presets import PRESETS
from backprop_core.training.vram_estimate import GIB
from flows.cli import main, run_here, tables
from flows.multi_run import multi_run
from tasks.runs.plan import Plan, vram
from tests.backprop_core import stand_in_converter
from tests.backprop_core.evaluation.test_lm_eval import write_task

TRAINING = TrainSpec(steps=2, batch_size=4, lora=LoraSpec(rank=4))


@pytest.fixture
def spec(base: Path, data: list[str]) -> RunSpec:
    return RunSpec(
        model=ModelSpec(name=str(base)),
        datasets=[DatasetSpec(path=path) for path in data[:2]],
        training=TRAINING,
        export=ExportSpec(quantizations=["f16"]),
    )


def planned(spec: RunSpec, **changes: object) -> Plan:
    return run_here.plan("multi-run", spec.model_copy(update=changes), fresh=False)


def todo(plan: Plan) -> list[str]:
    return [stage.stage for stage in plan.stages if not stage.cached]


def changed(plan: Plan, stage: str) -> list[list[str]]:
    """What changed in the keys of the stages with this name that would run."""
    return [one.changed for one in plan.stages if one.stage == stage and not one.cached]


def carried_out(spec: RunSpec) -> RunResult:
    given = {name: getattr(spec, name) for name in ("model", "training", "evaluation", "export")}
    result: RunResult = multi_run(spec.datasets, **given)
    return result


@pytest.mark.usefixtures("warm_worker", "prefect", "home")
def test_a_plan_is_what_happens(spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages in their order; once they are done, the same keys, all of them cached, and only a change is work."""
    monkeypatch.setenv("BACKPROPAGATE_HARNESS_TASKS", str(write_task(tmp_path / "tasks")))
    harness = HarnessSpec(tasks=["appliances"], limit=4)
    spec = spec.model_copy(update={"evaluation": EvaluationSpec(harness=harness)})
    before = planned(spec)
    result = carried_out(spec)
    [figure] = result.harness
    assert (figure.task, figure.metric) == ("appliances", "perplexity") and figure.score < figure.base
    sets = [(run.dataset.task, run.dataset.train_rows, run.dataset.dropped) for run in result.runs]
    assert [(rows.task, rows.train, rows.dropped) for rows in before.rows] == sets
    assert all(rows.heldout and rows.tokens and rows.read == 40 for rows in before.rows)
    assert before.defaults == result.defaults
    after = planned(spec)
    assert [stage.stage for stage in before.stages] == [stage.stage for stage in result.stages]
    assert not any(stage.cached for stage in before.stages) and before.disk and before.seconds
    assert [stage.key for stage in after.stages] == [stage.key for stage in result.stages]
    assert todo(after) == [] and after.disk == after.seconds == 0
    third = planned(spec, datasets=[*spec.datasets, spec.datasets[0].model_copy(update={"task": "again"})])
    mixed = ["replay_by_task"] * 2  # the held-out rows are more; the second run's rows are the same
    assert todo(third)[:5] == ["split", *mixed, "train", "merge"] and todo(third).count("train") == 1
    sequential = todo(planned(spec, merge=MergeSpec(strategy="sequential")))
    assert (sequential.count("train"), sequential.count("merge"), sequential.count("curate")) == (1, 2, 0)
    assert len(todo(run_here.plan("multi-run", spec, fresh=True))) == len(result.stages)
    assert result.stages[0].changed == ["no earlier result of this stage"] and not any(s.changed for s in after.stages)
    assert changed(planned(spec, training=TRAINING.model_copy(update={"seed": 9})), "train")[0] == [
        "training.seed: 0 → 9"
    ]
    other = tmp_path / Path(spec.datasets[0].path).name
    other.write_text("".join(Path(spec.datasets[0].path).read_text().splitlines(keepends=True)[1:]))
    newer = planned(spec, datasets=[DatasetSpec(path=str(other)), spec.datasets[1]])
    [source] = changed(newer, "curate")[0]
    assert source.startswith(f"source ({other.name}): ") and " → " in source
    assert any(f"(made by curate of {other.name})" in line for line in changed(newer, "split")[0])


@pytest.mark.usefixtures("home")
def test_replay_changes_the_rows_of_later_runs_and_nothing_else(spec: RunSpec) -> None:
    """With replay each run but the first trains on mixed rows: its key is another, that of the first stays."""
    fields: tuple[dict[str, float], ...] = ({"replay": 0}, {"replay": 0.05}, {"replay_rows": 3})
    made = [planned(spec, training=TRAINING.model_copy(update=one), merge=MergeSpec(merge_a=True)) for one in fields]
    plain, mixed, by_task = ([stage.stage for stage in plan.stages] for plan in made)
    assert made[0].stages == planned(spec, merge=MergeSpec(merge_a=True)).stages and "replay" not in plain
    assert mixed.count("replay") == by_task.count("replay_by_task") == len(spec.datasets) - 1
    keys = [[stage.key for stage in plan.stages if stage.stage == "train"] for plan in made]
    assert len({first for first, *_ in keys}) == 1 and len({second for _, second, *_ in keys}) == 3


@pytest.mark.usefixtures("home")
def test_the_base_answers_general_prompts_once(spec: RunSpec) -> None:
    """Its rows are in every run, the first one too; without them, keys are what they were."""
    fields: tuple[dict[str, int], ...] = ({"replay_rows": 3}, {"replay_rows": 3, "replay_general": 5})
    made = [planned(spec, training=TRAINING.model_copy(update=one)) for one in fields]
    [without, with_] = ([stage.stage for stage in plan.stages] for plan in made)
    assert "answer" not in without and with_.count("replay_by_task") == len(spec.datasets)
    assert [stage.cached for stage in made[1].stages if stage.stage == "answer"] == [False, True]
    keys = [[stage.key for stage in plan.stages if stage.stage == "train"] for plan in made]
    assert not set(keys[0]) & set(keys[1])


@pytest.mark.usefixtures("home")
def test_a_plan_says_what_a_new_line_does(spec: RunSpec) -> None:
    """Merging and replay of a new line are among the chosen defaults, and their stages in the plan."""
    made = planned(spec)
    assert {"merge.merge_a", "training.replay_rows"} <= {choice.field for choice in made.defaults}
    assert [stage.stage for stage in made.stages].count("replay_by_task") == len(spec.datasets) - 1


@pytest.mark.usefixtures("home")
def test_a_base_without_a_writer_goes_through_llama_cpp(
    spec: RunSpec, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every GGUF file, those made of the f16 one too, is written by the user's converter, under a key of its own."""
    odd = stand_in_converter.rename(shutil.copytree(base, tmp_path / "odd"))
    monkeypatch.setenv("LLAMA_CPP_DIR", str(stand_in_converter.install(tmp_path / "llama.cpp")))
    wanted = {"export": ExportSpec(quantizations=["q8_0", "q4_k_m"]), "model": ModelSpec(name=str(odd))}
    stages = todo(planned(spec, **wanted))
    assert (stages.count("convert_outside"), stages.count("quantize"), stages.count("convert")) == (2, 1, 0)


def test_a_plan_does_nothing(spec: RunSpec, home: Path, data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """No run, no journal, no artifact, no worker: only the answer."""
    words = ["train", "--data", data[0], "--model", spec.model.name, "--export", "f16,q8_0", "--plan"]
    assert main.main([*words, "--json"]) == 0
    made = Plan.model_validate_json(capsys.readouterr().out)
    assert todo(made)[:3] == ["curate", "split", "evaluate"] and made.stages[-1].stage in ("convert", "fidelity")
    assert main.main(words) == 0
    out = capsys.readouterr().out
    assert "would run" in out and "time  under a minute on this" in out
    left = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert [name for name in left if not name.startswith("store/")] == []
    assert not any((home / "store" / name).exists() for name in ("artifacts", "runs", "cache"))


def test_a_plan_refuses_what_a_run_would(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dataset that is not there is found out before anything is planned."""
    assert main.main(["train", "--data", "none.jsonl", "--model", "nowhere", "--plan", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "INPUT_NOT_FOUND"


def test_what_a_plan_needs() -> None:
    """On a GPU it says what the training takes beside what is free; a model of unknown size is said to be one."""
    spec = TrainSpec(precision="bf16", gradient_checkpointing="on")
    takes = vram(PRESETS["qwen2.5-7b"].shape, spec) / GIB
    assert takes == pytest.approx(18.7, abs=0.1)
    made = Plan(stages=[], device="cuda", vram=takes, vram_free=80, seconds=None, disk=None, disk_free=100)
    assert [str(line) for line in tables.needs(made)] == [
        "time  unknown",
        "VRAM  18.7 GiB, 80.0 GiB free",
        "disk  unknown for a model of this kind, 100.0 GiB free",
    ]
