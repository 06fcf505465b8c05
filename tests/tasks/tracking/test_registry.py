"""Lines in MLflow's model registry: a copy of the store, repaired from it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoTokenizer

from backprop_core.lines import deletion
from backprop_core.lines.versions import Lines, Move
from backprop_core.models import adapter_tensors as adapters
from backprop_core.models import base as bases
from backprop_core.runtime.settings import Settings
from backprop_core.schema.gate_report import Act, GateReport
from backprop_core.schema.refs import AdapterRef, Located
from backprop_core.schema.specs import ModelSpec
from backprop_core.store.artifacts import Store, write_atomic
from tasks.runs.doctor import champions
from tasks.runs.line_deletion import delete
from tasks.runs.line_renaming import rename
from tasks.tracking import sync
from tasks.tracking.connection import connect
from tasks.tracking.journal import Journal
from tasks.tracking.registry import is_mirrored
from tests.backprop_core import nano
from tests.backprop_core import tiny_models as tiny
from tests.backprop_core.lines.test_versions import version
from tests.tasks.tracking.test_tracking import config, first_use, new_database  # noqa: F401  # fixtures
from tests.wire.prefect_server import free_port

NAME = "backprop.support"


def journaled(config: Settings, run: int) -> None:  # noqa: F811
    """The run behind version `run`, whose adapter's one file says so."""
    adapter = config.home_path / f"adapter-{run}"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(f'{{"run": {run}}}')
    with Journal(config.journal_path, f"{run:032x}") as journal:
        journal.start(line="support", name="retrain")
        journal.directory("merged", Located(digest=f"{run:064x}", path=str(adapter)))
        journal.end("finished")


def seen(config: Settings) -> tuple[list[str], str]:  # noqa: F811
    """Our numbers of the versions, and what a reader of the champion's URI gets."""
    import mlflow

    client = connect(config)
    numbers = sorted(one.tags["backprop.version"] for one in client.search_model_versions(f"name = '{NAME}'"))
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("MLFLOW_TRACKING_URI", "")  # what `set_tracking_uri` makes of it ends with the block
        mlflow.set_tracking_uri(f"sqlite:///{config.home_path}/mlflow.db")
        folder = mlflow.artifacts.download_artifacts(f"models:/{NAME}@champion", dst_path=str(config.home_path / "got"))
    return numbers, (Path(folder) / "adapter_config.json").read_text()


@pytest.fixture
def lines(config: Settings) -> Lines:  # noqa: F811
    return Lines(Store(config.store_path))


def test_versions_and_champion_are_mirrored(config: Settings, lines: Lines) -> None:  # noqa: F811
    """Each version once, the alias where the champion is, also after it went back; another namespace is apart."""
    for run in (1, 2):
        journaled(config, run)
        lines.append("support", version(run), after=run - 1)
        lines.set_champion("support", run)
        assert sync(config).error is None and is_mirrored(config)
    assert seen(config) == (["1", "2"], '{"run": 2}')
    lines.set_champion("support", 1)
    assert sync(config).error is None and seen(config) == (["1", "2"], '{"run": 1}')
    (config.journal_path / "registry.json").unlink()
    assert sync(config).error is None and seen(config)[0] == ["1", "2"]
    assert connect(config).search_registered_models("name = 'other.support'") == []


def test_an_alias_that_was_moved_is_said_and_set_back(
    config: Settings,  # noqa: F811
    lines: Lines,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The store is the truth: an alias that was moved in MLflow is named by `doctor` and set back, said aloud."""
    for run in (1, 2):
        journaled(config, run)
        lines.append("support", version(run), after=run - 1)
    lines.set_champion("support", 2)
    assert sync(config).error is None and list(champions(config)) == []
    for change in ("moved", "removed"):
        caplog.clear()
        client = connect(config)
        if change == "moved":
            client.set_registered_model_alias(
                NAME, "champion", client.search_model_versions(f"name = '{NAME}'")[-1].version
            )
        else:
            client.delete_registered_model_alias(NAME, "champion")
        [part] = champions(config)
        assert NAME in part.found and "backprop sync" in part.todo
        assert sync(config).error is None and not caplog.text  # nothing to send: nobody looks
        assert sync(config, look=True).error is None and "champion was moved" in caplog.text
        assert seen(config) == (["1", "2"], '{"run": 2}') and list(champions(config)) == []
    caplog.clear()
    lines.set_champion("support", 1)
    assert sync(config, look=True).error is None and not caplog.text
    assert seen(config) == (["1", "2"], '{"run": 1}')


def test_a_move_is_seen_among_many_lines(config: Settings, lines: Lines) -> None:  # noqa: F811
    """MLflow answers with a hundred registered models at a time; the line after them is looked at, too."""
    client = connect(config)
    for number in range(100):
        client.create_registered_model(f"backprop.a-{number:03d}", {"backprop.namespace": "backprop"})
    journaled(config, 1)
    lines.append("support", version(1), after=0)
    lines.set_champion("support", 1)
    assert sync(config).error is None and list(champions(config)) == []
    client.delete_registered_model_alias(NAME, "champion")
    [part] = champions(config)
    assert NAME in part.found


def test_a_move_before_a_release_is_said_too(config: Settings, lines: Lines, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    """When the line goes on after somebody moved the alias, the warning comes before it points to the new champion."""
    journaled(config, 1)
    lines.append("support", version(1), after=0)
    lines.set_champion("support", 1)
    assert sync(config).error is None
    connect(config).delete_registered_model_alias(NAME, "champion")
    journaled(config, 2)
    lines.append("support", version(2), after=1)
    lines.set_champion("support", 2)
    assert sync(config).error is None and "moved from its version 1 to none" in caplog.text
    assert seen(config) == (["1", "2"], '{"run": 2}')


def test_who_forced_a_version_stands_in_mlflow(config: Settings, lines: Lines) -> None:  # noqa: F811
    """A version's tags say what the gate said and who made it live by hand; the description says the latter."""
    refused = GateReport(
        **{"accepted": False, "reason": "fell", "against": "base", "metric": "loss", "tasks": []},
        **{"average": 0, "rival_average": 0, "base_average": 0},
    )
    act = Act(by="ann", at=datetime(2026, 11, 29, tzinfo=UTC), reason="the base is off", forced=True)
    journaled(config, 1)
    lines.append("support", version(1).model_copy(update={"gate": refused}), after=0)
    lines.note_move("support", Move(number=1, before=None, run_id="1" * 32, act=act))
    lines.set_champion("support", 1)
    assert sync(config).error is None and is_mirrored(config)
    champion = connect(config).get_model_version_by_alias(NAME, "champion")
    said = "forced past the gate by ann on 2026-11-29: the base is off"
    assert champion.tags["backprop.gate"] == "refused: fell" and champion.tags["backprop.act"] == said
    assert said in champion.description
    later = act.model_copy(update={"by": "bob", "forced": False, "at": datetime(2026, 12, 1, tzinfo=UTC)})
    lines.note_move("support", Move(number=1, before=1, run_id="2" * 32, act=later))
    assert sync(config).error is None
    assert (
        connect(config).get_model_version_by_alias(NAME, "champion").tags["backprop.act"] == said
    )  # who forced it stays
    again = later.model_copy(update={"forced": True})
    lines.note_move("support", Move(number=1, before=1, run_id="3" * 32, act=again))
    assert not is_mirrored(config) and sync(config).error is None
    assert "bob" in connect(config).get_model_version_by_alias(NAME, "champion").tags["backprop.act"]


def test_mlflow_away_meanwhile(config: Settings, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """What happened while it did not answer is there after the first sync that reaches it."""
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        for run in (1, 2):
            journaled(config, run)
            lines.append("support", version(run), after=run - 1)
        lines.set_champion("support", 2)
        assert sync(config).error and not is_mirrored(config)
    assert sync(config).error is None and seen(config) == (["1", "2"], '{"run": 2}')


def test_a_run_still_on_its_way_is_waited_for(config: Settings, lines: Lines) -> None:  # noqa: F811
    """No version points to files that are not there: it comes with the sync that finds them."""
    Store(config.store_path).layout.artifact(f"{1:064x}").mkdir(parents=True)
    with Journal(config.journal_path, f"{1:032x}") as journal:
        journal.start(line="support", name="retrain")
        lines.append("support", version(1), after=0)
        lines.set_champion("support", 1)
        assert sync(config).error is None and not is_mirrored(config)
        adapter = config.home_path / "adapter"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text("{}")
        journal.directory("merged", Located(digest="1" * 64, path=str(adapter)))
    assert sync(config).error is None and seen(config) == (["1"], "{}")


def test_a_champion_still_on_its_way_moves_no_alias(
    config: Settings,  # noqa: F811
    lines: Lines,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Until the new champion is in MLflow its alias stays with the one before, and nobody is said to have moved it."""
    journaled(config, 1)
    lines.append("support", version(1), after=0)
    lines.set_champion("support", 1)
    assert sync(config).error is None
    Store(config.store_path).layout.artifact(f"{2:064x}").mkdir(parents=True)
    with Journal(config.journal_path, f"{2:032x}") as journal:
        journal.start(line="support", name="retrain")
        lines.append("support", version(2), after=1)
        lines.set_champion("support", 2)
        assert sync(config).error is None and not is_mirrored(config)
        assert connect(config).get_model_version_by_alias(NAME, "champion").tags["backprop.version"] == "1"
        adapter = config.home_path / "adapter"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text("{}")
        journal.directory("merged", Located(digest="2" * 64, path=str(adapter)))
    assert sync(config, look=True).error is None and seen(config) == (["1", "2"], "{}")
    assert "moved" not in caplog.text


def test_a_model_of_others_is_refused(config: Settings, lines: Lines) -> None:  # noqa: F811
    """A registered model of our name without our tags is left alone."""
    connect(config).create_registered_model(NAME)
    lines.append("support", version(1), after=0)
    assert "this tool did not create" in str(sync(config).error)


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")  # MLflow, of itself
def test_champion_is_a_model_for_transformers_and_peft(config: Settings, lines: Lines, tmp_path: Path) -> None:  # noqa: F811
    """What its URI gives, PEFT loads onto the base, to the logits of the store's adapter; the tags name the base."""
    store, path = Store(config.store_path), nano.build(tmp_path / "base")
    base = bases.resolve(ModelSpec(name=str(path)), store)
    trained = tiny.add_adapter(path, tmp_path / "adapter")
    with store.begin("adapter") as directory:
        adapters.write_adapter(adapters.read_adapter(trained), directory)
        merged = store.commit(directory, AdapterRef, kind="merged", record={})
    with Journal(config.journal_path, f"{1:032x}") as journal:
        journal.start(line="support", name="retrain")
        journal.directory("merged", Located(digest=merged.digest, path=str(store.local(merged))))
        journal.end("finished")
    lines.append("support", version(1).model_copy(update={"base": base, "merged": merged}), after=0)
    lines.set_champion("support", 1)
    assert sync(config).error is None
    seen(config)
    champion = connect(config).get_model_version_by_alias(NAME, "champion")
    assert champion.tags["backprop.base.digest"] == base.digest
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        bare, found, expected = (
            logits(model, ids)
            for model in (
                tiny.load(path),
                PeftModel.from_pretrained(tiny.load(champion.tags["backprop.base"]), config.home_path / "got"),
                PeftModel.from_pretrained(tiny.load(path), store.local(merged)),
            )
        )
    assert torch.equal(found, expected) and not torch.allclose(found, bare, atol=1e-2)

    import mlflow

    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{config.home_path}/mlflow.db")
        whole = mlflow.transformers.load_model(f"models:/{NAME}@champion", return_type="components")
        served = mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict(["Hello"])
    assert torch.equal(logits(whole["model"].float(), ids), expected) and len(served) == 1
    assert whole["tokenizer"]("a b").input_ids == AutoTokenizer.from_pretrained(path)("a b").input_ids
    alone = AutoPeftModelForCausalLM.from_pretrained(config.home_path / "got")
    assert torch.equal(logits(alone, ids), expected)


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.eval()(ids).logits
    return found


def test_a_deleted_line_leaves_its_name_free(config: Settings, lines: Lines) -> None:  # noqa: F811
    """The model of a deleted line is renamed at the next sync, once; a new line of the name begins with version 1."""
    journaled(config, 1)
    lines.append("support", version(1), after=0)
    lines.set_champion("support", 1)
    assert sync(config).error is None
    delete("support", "ann", config)
    assert sync(config, look=True).error is None and is_mirrored(config)
    [old] = connect(config).search_registered_models("name LIKE 'backprop.support%'")
    assert old.name.startswith("backprop.support-") and old.name.endswith(".deleted")
    assert old.tags["backprop.live"] == "none"
    described = connect(config).get_experiment_by_name(NAME).tags["mlflow.note.content"]
    for text in (old.description, described):
        assert "by ann. Nothing is live." in text.partition("Until then:")[0]
    assert "is live" not in described.replace("Nothing is live", "")
    journaled(config, 2)
    lines.append("support", version(2), after=0)
    lines.set_champion("support", 1)
    assert sync(config).error is None and seen(config) == (["1"], '{"run": 2}')
    assert len(connect(config).search_registered_models("name LIKE 'backprop.support%'")) == 2
    assert "deleted" not in connect(config).get_experiment_by_name(NAME).tags["mlflow.note.content"]


def test_a_deletion_that_was_cut_off_is_none(config: Settings, lines: Lines) -> None:  # noqa: F811
    """A tombstone whose records are still the line's retires nothing: the line lives, and so does its model."""
    journaled(config, 1)
    lines.append("support", version(1), after=0)
    lines.set_champion("support", 1)
    assert sync(config).error is None
    store = Store(config.store_path)
    gone = deletion.described("support", "ann", store)
    write_atomic(store.layout.deleted("support", "20261130T180000Z").tombstone, gone.model_dump_json())
    assert list(store.layout.deletions()) == []
    assert sync(config, look=True).error is None and seen(config) == (["1"], '{"run": 1}')
    [model] = connect(config).search_registered_models("name LIKE 'backprop.support%'")
    assert model.name == NAME


def test_a_renamed_line_has_its_new_name(config: Settings, lines: Lines) -> None:  # noqa: F811
    """Experiment, model, curve and runs get it at the next sync, once; versions and champion are those of before."""
    journaled(config, 1)
    lines.append("support", version(1), after=0)
    lines.set_champion("support", 1)
    assert sync(config).error is None
    rename("support", "helpdesk", "ann", config)
    assert sync(config, look=True).error is None and is_mirrored(config)
    client = connect(config)
    [model] = client.search_registered_models("name LIKE 'backprop.%'")
    assert (model.name, model.tags["backprop.line"]) == ("backprop.helpdesk", "helpdesk")
    assert client.get_model_version_by_alias(model.name, "champion").tags["backprop.version"] == "1"
    experiment = client.get_experiment_by_name("backprop.helpdesk")
    assert client.get_experiment_by_name(NAME) is None and experiment.tags["backprop.line"] == "helpdesk"
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.tags["backprop.line"] for run in runs} == {"helpdesk"}
    names = sorted(run.info.run_name for run in runs)
    assert names == ["helpdesk: artifacts", "helpdesk: scores by version", "retrain"]
    journaled(config, 2)
    lines.append("support", version(2), after=0)
    lines.set_champion("support", 1)
    assert sync(config).error is None and seen(config) == (["1"], '{"run": 2}')


def test_names_change_in_their_order(config: Settings, lines: Lines) -> None:  # noqa: F811
    """A line is deleted, another takes its name, and that is renamed again before MLflow hears of any."""
    for run, line in ((1, "support"), (2, "billing")):
        lines.append(line, version(run), after=0)
        lines.set_champion(line, 1)
    assert sync(config, look=True).error is None
    delete("support", "ann", config)
    rename("billing", "support", "ann", config)
    rename("support", "desk", "ann", config)
    assert sync(config, look=True).error is None
    names = {model.name: model.tags for model in connect(config).search_registered_models("name LIKE 'backprop.%'")}
    [gone] = [name for name in names if name.endswith(".deleted")]
    assert names.keys() == {gone, "backprop.desk"} and gone.startswith("backprop.support-")
    assert names[gone]["backprop.live"] == "none"
