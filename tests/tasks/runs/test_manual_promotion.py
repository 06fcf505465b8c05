"""Which versions of a line may go live: what passed the gate or was forced past it, and by whom."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backprop_core.errors import ConfigInvalid, NotGated
from backprop_core.lines.versions import Lines, Move
from backprop_core.schema.gate_report import Act, GateReport
from backprop_core.schema.refs import AdapterRef, BaseRef, RunResult
from backprop_core.schema.specs import DatasetSpec, ExportSpec, LoraSpec, MergeSpec, PublishSpec, RunSpec
from backprop_core.store.artifacts import Store, write_atomic
from tasks.runs.manual_promotion import act
from tasks.runs.prepared_run import Prepared, save
from tasks.runs.resolve_earlier import to_release, to_rollback
from tests.tasks.runs.test_references import add_version

BASE = BaseRef(name="base", digest="b" * 64)
ANN = Act(by="ann", at=datetime(2026, 11, 29, tzinfo=UTC))
FORCED = ANN.model_copy(update={"forced": True, "reason": "it has to"})


def verdict(accepted: bool) -> GateReport:
    """Of the gate."""
    return GateReport(
        **{"accepted": accepted, "reason": "support fell", "against": "base", "metric": "loss", "tasks": []},
        **{"average": 1, "rival_average": 0, "base_average": 0, "gain_low": 0.5},
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A line of before: version 1 passed the gate, 2 was refused by it, 3 never saw it; the run of each says so."""
    store = Store(tmp_path)
    for number, report in ((1, verdict(True)), (2, verdict(False)), (3, None)):
        run_id = str(number) * 32
        save(
            Prepared(flow="retrain", spec=RunSpec(datasets=[DatasetSpec(path="a")]), base=BASE, sources=[], watch=[]),
            run_id,
            store,
        )
        result = RunResult(run_id=run_id, line="support", status="finished", spec={}, gate=report)
        write_atomic(store.layout.run(run_id).result, result.model_dump_json())
        add_version(store, "support", run_id, str(number) * 64)
    Lines(store).set_champion("support", 3)
    return store


def test_what_passed_goes_live_without_a_word(store: Store) -> None:
    """A rollback to a version that once passed needs no reason: it has to be quick; who did it is kept."""
    prepared = to_rollback("support", 1, ANN, store)
    assert prepared.act == ANN and prepared.live and prepared.live.number == 1
    assert to_rollback("support", 1, FORCED, store).act == FORCED.model_copy(update={"forced": False})


@pytest.mark.parametrize(
    ("number", "why"), [(2, "was rejected by the gate: support fell"), (3, "was never checked by the gate")]
)
def test_what_did_not_pass_has_to_be_forced(store: Store, number: int, why: str) -> None:
    """A version that the gate refused or never judged is refused, with the command that forces it."""
    with pytest.raises(NotGated, match=why) as caught:
        to_rollback("support", number, ANN, store)
    assert caught.value.hint.endswith(f"backprop rollback support --to {number} --force --reason TEXT")
    assert to_rollback("support", number, FORCED, store).act == FORCED
    Lines(store).note_move("support", Move(number=number, before=1, run_id="f" * 32, act=FORCED))
    assert to_rollback("support", number, ANN, store).act == ANN  # once is enough
    later = ANN.model_copy(update={"at": FORCED.at + timedelta(days=1)})
    Lines(store).note_move("support", Move(number=number, before=1, run_id="e" * 32, act=later))
    assert Lines(store).act("support", number) == FORCED  # who forced it, and why, stays said


def test_a_release_is_a_door_too(store: Store) -> None:
    """A champion that never saw the gate is not released to Ollama either; one whose record is gone is the same."""
    where = PublishSpec(repo="ann/support")
    with pytest.raises(NotGated, match="version 3 of line support was never checked") as caught:
        to_release("release", "support", None, where, ExportSpec(quantizations=[]), ANN, store)
    assert "backprop release support --force --reason TEXT" in caught.value.hint
    store.layout.run("3" * 32).result.unlink()
    with pytest.raises(NotGated):
        to_release("release", "support", None, where, ExportSpec(), ANN, store)
    assert to_release("release", "support", None, where, ExportSpec(), FORCED, store).act == FORCED


def test_the_version_itself_knows_what_the_gate_said(store: Store) -> None:
    """The verdict is in the version, whatever became of its run's result."""
    lines = Lines(store)
    known = lines.version("support", 2).model_copy(update={"gate": verdict(True)})
    assert lines.append("support", known, after=3) == 4
    store.layout.run("2" * 32).result.unlink()
    assert to_rollback("support", 4, ANN, store).act == ANN


@pytest.mark.parametrize("reason", ["", "  "])
def test_a_force_says_why(reason: str) -> None:
    """Nothing is forced without a reason; the name is that of the user."""
    with pytest.raises(ConfigInvalid, match="needs a reason"):
        act(reason, force=True)
    assert not act(reason, force=False).forced and act("because", force=True).by


def test_the_shape_of_old_records_is_read(store: Store) -> None:
    """A version without verdict, act or scored rows opens, and its digest in keys is what it was."""
    version = Lines(store).version("support", 1)
    assert (version.gate, version.act, version.scored) == (None, None, {})
    assert version.lora == LoraSpec() and version.merge == MergeSpec() and isinstance(version.tuned, AdapterRef)
