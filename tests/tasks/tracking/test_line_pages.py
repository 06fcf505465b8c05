"""MLflow's pages of a line: a curve with the version as step, and descriptions that say what is live."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from backprop_core.lines import deletion
from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import Settings
from backprop_core.schema.gate_report import GateReport
from backprop_core.schema.refs import Evaluation, RunResult, Scores
from backprop_core.store.artifacts import Store, write_atomic
from tasks.tracking import RunFilter, list_runs, show_run, sync
from tasks.tracking.connection import connect
from tasks.tracking.journal import Journal, bring_back
from tasks.tracking.registry import is_mirrored
from tasks.tracking.withdrawal import remove_model
from tests.backprop_core.lines.test_versions import version
from tests.tasks.tracking.test_registry import NAME, journaled
from tests.tasks.tracking.test_tracking import config, first_use, new_database  # noqa: F401  # fixtures
from tests.wire.prefect_server import free_port

CURVE = "tags.`backprop.role` = 'line'"
OF_SUPPORT = "tags.`backprop.line` = 'support'"
Grow = Callable[..., None]


def gate(average: float) -> GateReport:
    return GateReport(
        **{"accepted": True, "reason": "better | on average", "against": "champion", "metric": "token_accuracy"},
        **{"average": average, "rival_average": 0.5, "base_average": 0.1, "gain_low": 0.01, "tasks": []},
    )


def result(run: int, scores: dict[str, float]) -> RunResult:
    """What the run behind a version has measured."""
    row: list[float | None] = [*scores.values()]
    matrix = Evaluation(
        **{"tasks": list(scores), "watch": [], "metric": "token_accuracy", "matrix": [row], "loss": [row]},
        **{"exact_match": [row], "base": [0.1] * len(row), "base_exact_match": [0.0] * len(row)},
        **{
            "average": sum(scores.values()) / len(row),
            "backward_transfer": -0.01 * run,
            "forgetting": [0.0] * len(row),
        },
    )
    return RunResult(run_id=f"{run:032x}", line="support", status="finished", spec={}, evaluation=matrix)


@pytest.fixture
def grow(config: Settings) -> Grow:  # noqa: F811
    """Appends a version with these scores by task and makes it live, as a retrain leaves it."""
    store = Store(config.store_path)
    lines = Lines(store)

    def append(run: int, *, after: int | None = None, measured: bool = True, **scores: float) -> None:
        journaled(config, run)
        if measured:
            write_atomic(store.layout.run(f"{run:032x}").result, result(run, scores).model_dump_json())
        known = {
            task: Scores(digest="c" * 64, rows=20, tokens=9, loss=1, token_accuracy=score, exact_match=0)
            for task, score in scores.items()
        }
        fields = {"scores": known, "heldout": dict.fromkeys(scores, version().heldout["t"]), "gate": gate(0.5)}
        number = lines.append(
            "support", version(run).model_copy(update=fields), after=run - 1 if after is None else after
        )
        lines.set_champion("support", number)

    return append


def curve(config: Settings) -> dict[str, list[tuple[int, float]]]:  # noqa: F811
    """Every metric of the line's one curve, with its steps."""
    client = connect(config)
    [run] = client.search_runs([client.get_experiment_by_name(NAME).experiment_id], f"{CURVE} AND {OF_SUPPORT}")
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(one.step, one.value) for one in history] for name, history in histories.items()}


def test_a_line_has_one_curve_with_the_version_as_step(config: Settings, grow: Grow) -> None:  # noqa: F811
    """Score by task, average, backward transfer and forgetting of each version; step 0 is the base."""
    grow(1, news=0.5)
    assert sync(config).error is None
    grow(2, news=0.4, chat=0.8)
    assert sync(config).error is None
    found = curve(config)
    assert found["token_accuracy.news"] == [(0, 0.1), (1, 0.5), (2, 0.4)]
    assert found["token_accuracy.chat"] == [(0, 0.1), (2, 0.8)]
    assert found["average"] == [(1, 0.5), (2, pytest.approx(0.6))]
    assert found["backward_transfer"] == [(1, -0.01), (2, -0.02)]
    assert found["forgetting.chat"] == [(2, 0.0)]


def test_a_version_is_on_the_curve_once(config: Settings, grow: Grow) -> None:  # noqa: F811
    """A rollback, a journal that is sent again, a lost note and a store with other file times add no point."""
    for run in (1, 2):
        grow(run, news=run / 10)
    assert sync(config).error is None
    before, lines, store = curve(config), Lines(Store(config.store_path)), Store(config.store_path)
    lines.set_champion("support", 1)
    bring_back(config.layout.journal, f"{1:032x}")
    config.layout.journal.sent_note(f"{1:032x}").unlink()
    config.layout.journal.registry.unlink()
    os.utime(store.layout.line("support").version(1), (1, 1))
    assert sync(config).error is None and is_mirrored(config)
    assert curve(config) == before


def test_the_curve_of_a_line_that_was_there_before(
    config: Settings,  # noqa: F811
    grow: Grow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Versions made while MLflow was away, or before there were curves, are added; without a result by score."""
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        grow(1, measured=False, news=0.5)
        grow(2, news=0.6)
        assert sync(config).error
    assert sync(config).error is None
    found = curve(config)
    assert found["token_accuracy.news"] == [(1, 0.5), (2, 0.6)] and found["backward_transfer"] == [(2, -0.02)]


def test_a_version_whose_run_goes_on_is_waited_for(config: Settings, grow: Grow) -> None:  # noqa: F811
    """While the run that made it writes its journal, its result is not complete, and nothing is drawn of it."""
    with Journal(config.journal_path, f"{1:032x}") as journal:
        journal.start(line="support", name="retrain")
        Lines(Store(config.store_path)).append("support", version(1), after=0)
        assert sync(config).error is None and not is_mirrored(config)
        assert connect(config).search_runs([connect(config).get_experiment_by_name(NAME).experiment_id], CURVE) == []
    assert sync(config).error is None and is_mirrored(config) and curve(config)["average"] == [(1, 1.0)]


def test_a_curve_is_no_run_of_ours(config: Settings, grow: Grow) -> None:  # noqa: F811
    """`list-runs` and `show-run` know the runs alone."""
    grow(1, news=0.5)
    assert [run["run_id"] for run in list_runs(config, RunFilter(children=True))] == [f"{1:032x}"]
    client = connect(config)
    [run] = client.search_runs([client.get_experiment_by_name(NAME).experiment_id], CURVE)
    assert run.info.run_name == "support: scores by version" and run.info.status == "FINISHED"
    with pytest.raises(Exception, match="no run"):
        show_run(config, run.info.run_id)


def test_the_pages_of_a_line_say_what_is_live(config: Settings, grow: Grow, tmp_path: Path) -> None:  # noqa: F811
    """Model, experiment, curve and versions are described, verdict first; a rollback changes what they say."""
    for run in (1, 2):
        grow(run, news=run / 4)
    assert sync(config).error is None
    client, lines = connect(config), Lines(Store(config.store_path))
    [model] = client.search_registered_models(f"name = '{NAME}'")
    assert model.description.startswith("**Version 2 is live** since 20") and "passed the gate" in model.description
    assert "| [v1](#/models/backprop.support/versions/1) | 25.0 % |" in model.description
    assert "better \\| on average" in model.description  # a cell ends where it ends
    assert model.tags["backprop.live"] == "v2" and model.tags["backprop.average"] == "50.0 %"
    experiment = client.get_experiment_by_name(NAME)
    assert experiment.tags["mlflow.note.content"] == model.description
    first, second = (client.get_model_version(NAME, number) for number in "12")
    assert second.description.startswith("**support v2, average 50.0 %**: passed the gate")
    assert "**It is live** since 20" in second.description and "is live" not in first.description
    assert "| news | 50.0 % | 20 |" in second.description and f"runs/{second.run_id})" in second.description
    lines.set_champion("support", 1)
    assert sync(config).error is None
    assert "is live" in client.get_model_version(NAME, "1").description
    assert "is live" not in client.get_model_version(NAME, "2").description
    assert client.search_registered_models(f"name = '{NAME}'")[0].tags["backprop.live"] == "v1"


def test_a_long_line_fits_a_description(config: Settings, grow: Grow) -> None:  # noqa: F811
    """MLflow takes 5,000 characters: the newest versions are in the table, and how many are not is said."""
    from tasks.runs.line_report import line_report
    from tasks.tracking.line_description import LONGEST, Links, line_text

    grow(1, news=0.5)
    report = line_report("support", config)
    long = report.model_copy(update={"versions": report.versions * 300})
    text = line_text(long, Links(model=NAME, curve="#/", versions={}, runs={}))
    assert len(text) <= LONGEST and "older versions are not in this table" in text and text.count("| v1 |") > 20


def test_a_line_that_is_no_more_has_no_curve(config: Settings, grow: Grow) -> None:  # noqa: F811
    """A later line of the same name starts with its own."""
    grow(1, news=0.5)
    assert sync(config).error is None
    remove_model(config, "support")
    client = connect(config)
    assert client.search_runs([client.get_experiment_by_name(NAME).experiment_id], CURVE) == []


def test_a_new_line_with_the_name_of_a_deleted_one_has_its_own_curve(config: Settings, grow: Grow) -> None:  # noqa: F811
    """It has the scores of its own versions; the curve of the deleted line is kept under the name of its records."""
    for run in (1, 2, 3):
        grow(run, news=run / 10)
    assert sync(config).error is None
    store = Store(config.store_path)
    deletion.delete("support", "ann", store)
    assert sync(config, look=True).error is None
    for number in (0, 1):
        grow(4 + number, after=number, news=0.9)
    assert sync(config).error is None
    assert curve(config)["token_accuracy.news"] == [(0, 0.1), (1, 0.9), (2, 0.9)]
    client, [gone] = connect(config), store.layout.deletions()
    runs = client.search_runs([client.get_experiment_by_name(NAME).experiment_id], CURVE)
    assert {run.info.run_name for run in runs} == {
        "support: scores by version",
        f"{gone.root.name}: scores by version",
    }
    assert len(list_runs(config, RunFilter(children=True))) == 5
