"""`bench`: the cells of a comparison are what the flows would have made, computed once, whatever stops it."""

import json
import shutil
from pathlib import Path

import pytest

from backprop_core.errors import ConfigInvalid, NoRows, RefAmbiguous, RunUnknown
from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import BenchReport, BenchResult, BenchSetting, RunResult
from backprop_core.schema.specs import BenchSpec, DatasetSpec, EvaluationSpec, LoraSpec, MergeSpec, TrainSpec
from backprop_core.store.artifacts import Store
from flows.bench import bench
from flows.cli.main import main
from flows.multi_run import multi_run
from flows.promote import promote
from flows.train import train
from tasks.runs.resolve_bench import datasets_in, is_directory, of_line

TRAINING = TrainSpec(steps=6, batch_size=8, learning_rate=1e-2, lora=LoraSpec(rank=4))
PUBLISHED = MergeSpec(strategy="slao")
SCORED = EvaluationSpec(metric="token_accuracy")
FEW = BenchSpec(strategies=["slao+a"], replay=[0, 3], orders=1)
pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")


@pytest.fixture(scope="module")
def home(shared_home: Path) -> Path:
    """One home for these tests: they share what is cached."""
    return shared_home


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[DatasetSpec]:
    """Two tasks of a few rows that have none in common."""
    place = tmp_path_factory.mktemp("tasks")
    files = [place / f"{task}.jsonl" for task in ("first", "second")]
    for number, file in enumerate(files):
        rows = [{"prompt": f"{number}.{index}: what is it?", "completion": f"It is {index}."} for index in range(60)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [DatasetSpec(path=str(file)) for file in files]


@pytest.fixture(scope="module")
def compared(base: Path, datasets: list[DatasetSpec], home: Path, prefect: None) -> RunResult:
    return bench(datasets=datasets, compare=FEW, model=str(base), training=TRAINING, merge=PUBLISHED, evaluation=SCORED)


def report_of(result: RunResult) -> BenchReport:
    assert result.bench
    return result.bench


def one(report: BenchReport, setting: BenchSetting, order: int | None = 0, seed: int = 0) -> BenchResult:
    [found] = [each for each in report.results if (each.setting, each.order, each.seed) == (setting, order, seed)]
    return found


def test_a_cell_is_what_multi_run_makes(compared: RunResult, base: Path, datasets: list[DatasetSpec]) -> None:
    """Each setting has the scores of `multi-run` with that setting, which then trains nothing anew."""
    report = report_of(compared)
    assert (compared.status, compared.reason, compared.merged) == ("finished", report.advice, None)
    assert report.orders == [["first", "second"]] and report.present.strategy == "slao"
    for setting, merge, replay_rows in (
        (report.present, PUBLISHED, 0),
        (BenchSetting(strategy="slao+a", replay=3, rate=1e-2), MergeSpec(merge_a=True), 3),
    ):
        cell = one(report, setting)
        training = TRAINING.model_copy(update={"replay_rows": replay_rows})
        made = multi_run(datasets, model=str(base), training=training, merge=merge, evaluation=SCORED)
        assert made.evaluation
        assert cell.last == made.evaluation.matrix[-1]
        assert cell.then == [row[index] for index, row in enumerate(made.evaluation.matrix)]
        assert cell.seconds == pytest.approx(sum(record.seconds for record in made.runs))
        assert {stage.cached for stage in made.stages if stage.stage in ("train", "merge")} == {True}
    assert report.rows[-1].average == pytest.approx(sum(made.evaluation.base) / 2)


def test_methods_share_what_they_train(compared: RunResult) -> None:
    """Three settings and all at once are four second trainings at most: the first run is one for all of them."""
    trained = {stage.key for stage in compared.stages if stage.stage == "train"}
    assert len(trained) == 4  # the first run, the second without replay and with it, all at once
    assert len(report_of(compared).results) == 4 and [row.cells for row in report_of(compared).rows] == [1] * 5


def test_more_orders_cost_only_what_is_new(compared: RunResult, base: Path, datasets: list[DatasetSpec]) -> None:
    """With another order, the cells of the first one come from the cache, and each setting has an interval."""
    more = FEW.model_copy(update={"orders": 2})
    again = bench(
        datasets=datasets, compare=more, model=str(base), training=TRAINING, merge=PUBLISHED, evaluation=SCORED
    )
    report, before = report_of(again), report_of(compared)
    assert report.orders == [["first", "second"], ["second", "first"]]
    assert [each for each in report.results if each.order != 1] == before.results
    known = {stage.key for stage in compared.stages}
    assert {stage.cached for stage in again.stages if stage.key in known} == {True}
    others = [row for row in report.rows if row.over_present]
    assert len(others) == 2 and all(row.over_present and row.over_present.cells == 2 for row in others)


def test_cells_are_child_runs_with_their_figures(compared: RunResult, home: Path) -> None:
    """MLflow has one child a cell, named by its setting, with parameters, average and transfer."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiments = [each.experiment_id for each in client.search_experiments()]
    children = client.search_runs(experiments, f"tags.mlflow.parentRunId = '{compared.mlflow_run_id}'")
    assert len(children) == 4
    [cell] = [each for each in children if each.data.tags["mlflow.runName"].startswith("slao+a, replay 3 rows")]
    params = cell.data.params
    assert (params["merge.merge_a"], params["bench.replay"], params["bench.order"]) == ("True", "3", "0")
    found = one(report_of(compared), BenchSetting(strategy="slao+a", replay=3, rate=1e-2))
    assert cell.data.metrics["average"] == pytest.approx(sum(found.last) / 2)
    assert cell.data.metrics["backward_transfer"] == pytest.approx(found.last[0] - found.then[0])


def test_a_line_is_compared_on_what_it_has_learned(
    compared: RunResult, base: Path, datasets: list[DatasetSpec], capsys: pytest.CaptureFixture
) -> None:
    """Base, settings, datasets and their order are the line's: its cells are those of the run that it is made of."""
    with pytest.raises(RunUnknown, match="no champion"):
        bench(line="nights", compare=FEW)
    asked = {"model": str(base), "training": TRAINING, "evaluation": SCORED}
    single = train(datasets[0], **asked)
    promote(single.run_id, line="one", force=True, reason="a test")
    with pytest.raises(NoRows, match="one dataset"):
        bench(line="one", compare=FEW)
    made = promote(
        multi_run(datasets, merge=MergeSpec(merge_a=True), **asked).run_id, line="nights", force=True, reason="a test"
    )
    assert main(["bench", "nights", "--strategies", "slao", "--replay", "0", "--orders", "1", "--plan", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["seconds"] == 0 and {stage["cached"] for stage in planned["stages"]} == {True}
    result = bench(line="nights", compare=BenchSpec(strategies=["slao"], replay=[0], orders=1))
    report, before = report_of(result), report_of(compared)
    assert (result.line, result.base, report.orders) == ("nights", made.base, before.orders)
    assert report.present == BenchSetting(strategy="slao+a", replay=0, rate=1e-2)
    plain = before.present
    assert one(report, plain) == one(before, plain) and report.rows[-1] == before.rows[-1]
    assert Lines(Store(settings().store_path)).champion("nights") == made.version == 1


def test_what_it_takes(
    datasets: list[DatasetSpec], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line or datasets, not both; two datasets at least; a name that is both is refused."""
    with pytest.raises(ConfigInvalid, match="takes a line, or datasets"):
        bench()
    with pytest.raises(ConfigInvalid, match="takes a line, or datasets"):
        bench(line="nights", datasets=datasets)
    with pytest.raises(ConfigInvalid, match="one dataset"):
        bench(datasets=datasets[:1])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nights").mkdir()
    with pytest.raises(RefAmbiguous, match="both a line and a directory"):
        is_directory("nights", settings())
    with pytest.raises(NoRows, match="no files of rows"):
        datasets_in(tmp_path / "nights")
    with pytest.raises(RunUnknown):
        of_line("nobody", FEW, Store(settings().store_path))


def test_files_of_a_directory(datasets: list[DatasetSpec], tmp_path: Path) -> None:
    """One file a task, or training and test files, in the order of their names."""
    for spec in datasets:
        shutil.copy(spec.path, tmp_path)
    (tmp_path / "notes.md").write_text("no rows")
    assert [Path(one.path).name for one in datasets_in(tmp_path)] == ["first.jsonl", "second.jsonl"]
    for task in ("b", "a"):
        for side in ("train", "test"):
            shutil.copy(datasets[0].path, tmp_path / f"{task}.{side}.jsonl")
    assert [(one.task, Path(one.heldout or "").name) for one in datasets_in(tmp_path)] == [
        ("a", "a.test.jsonl"),
        ("b", "b.test.jsonl"),
    ]


def test_the_verb_prints_one_table_and_one_sentence(
    base: Path, datasets: list[DatasetSpec], compared: RunResult, capsys: pytest.CaptureFixture
) -> None:
    """The table has a row a setting, the present one first, then what to set; --plan says that all of it is cached."""
    place = str(Path(datasets[0].path).parent)
    words = ["bench", place, "--model", str(base), "--strategies", "slao+a", "--replay", "0,3", "--orders", "1"]
    words += ["--set", "training.steps=6", "--set", "training.batch_size=8", "--set", "training.learning_rate=0.01"]
    words += ["--set", "training.lora.rank=4", "--set", "evaluation.metric=token_accuracy"]
    words += ["--set", "merge.strategy=slao"]
    assert main([*words, "--plan", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert {stage["stage"] for stage in planned["stages"] if not stage["cached"]} == set()
    assert len(planned["cells"]) == 4 and planned["cells"][0] == "slao, no replay, rate 0.01, order 0, seed 0"
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "slao, no replay, rate 0.01 (present)" in said and "all at once" in said
    assert report_of(compared).advice in said


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--strategies", "fisher"], "strategies: slao"),
        (["--replay", "x"], "number"),
        (["--rates", "0"], "greater than 0"),
        (["--orders", "0"], "greater than or equal to 1"),
    ],
)
def test_wrong_flags_are_named(
    flags: list[str], hint: str, datasets: list[DatasetSpec], capsys: pytest.CaptureFixture
) -> None:
    """An error names the flag, its value, and what it takes."""
    assert main(["bench", str(Path(datasets[0].path).parent), *flags, "--plan"]) == 1
    said = capsys.readouterr().err
    assert f"[CONFIG_INVALID] invalid value {flags[0]} {flags[1]}" in said and hint in said
