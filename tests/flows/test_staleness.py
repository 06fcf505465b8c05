"""A line's champion on rows that came since: those like its own, and those that are not."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client

from backprop_core.errors import PrefectUnreachable, RunUnknown
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import EvaluationSpec, LoraSpec, TrainSpec
from flows.cli import run_here
from flows.retrain import retrain
from flows.staleness import FEWEST, drift
from tasks.runs.line_renaming import rename
from tasks.tracking import show_run
from tests.backprop_core import nano
from tests.wire.prefect_server import wait_until

COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black"}
TRAINING = TrainSpec(steps=24, batch_size=8, learning_rate=1e-2, lora=LoraSpec(rank=8))
FEW = EvaluationSpec(heldout_max=12)  # fewer than drift measures
TOLD = "backprop.new-data"
pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "line")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nights")


@pytest.fixture(scope="module")
def line(prefect: None, folder: Path) -> Iterator[RunResult]:
    """The line `colours` with one version, in a home of its own, on a base that can learn to be sure."""
    base = nano.build(folder / "base", initializer_range=0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BACKPROPAGATE_HOME", str(folder / "home"))
        made = retrain("colours", night(folder, 1), model=str(base), training=TRAINING, evaluation=FEW)
        assert made.status == "finished", made.gate
        yield made


def night(folder: Path, number: int, *, rows: int = 150, shuffled: bool = False) -> str:
    """A file of rows: what colour things have, or any of the colours."""
    rng = random.Random(number)
    path = folder / f"night-{number}.jsonl"
    with path.open("w") as file:
        for index in range(rows):
            thing = rng.choice(sorted(COLOURS))
            colour = rng.choice(sorted(set(COLOURS.values()) - {COLOURS[thing]})) if shuffled else COLOURS[thing]
            row = {"prompt": f"{number}.{index}: what colour is {thing}?", "completion": f"It is {colour}."}
            file.write(json.dumps(row) + "\n")
    return str(path)


def told(run: RunResult) -> list[dict[str, Any]]:
    """What the events of new data say that a run sent."""
    with get_client(sync_client=True) as client:
        wanted = {"event": {"name": [TOLD]}, "resource": {"id": ["backprop.line.colours"]}}
        found = client.request("POST", "/events/filter", json={"filter": wanted}).json()["events"]
    return [event["payload"] for event in found if event["payload"]["run_id"] == run.run_id]


def test_only_other_rows_ask_for_a_retrain(folder: Path) -> None:
    """Fresh rows of the same kind leave the champion be; shuffled labels send one event, with both losses."""
    same, other = (drift("colours", night(folder, number, shuffled=number == 3)) for number in (2, 3))
    assert [look.status for look in (same, other)] == ["finished"] * 2 and same.version == 1 and same.runs == []
    assert ", not more than 1.3 times" in (same.reason or ""), same.reason
    assert ", more than 1.3 times" in (other.reason or ""), other.reason
    wait_until(lambda: bool(told(other)), 180, "event")
    [payload] = told(other)
    assert payload["fresh"] > 1.3 * payload["heldout"] > 0 and payload["rows"] == FEWEST
    assert all(f"{payload[name]:.4f}" in (other.reason or "") for name in ("fresh", "heldout"))
    assert told(same) == []
    with pytest.raises(RunUnknown, match="was a drift check"):
        run_here.resume(other.run_id)


def test_a_line_without_a_champion_has_nothing_to_try(folder: Path) -> None:
    """Before its first version a line's drift is `unchanged`, and says why, every time."""
    looks = [drift("nothing-yet", night(folder, 2)) for _ in "ab"]
    assert [(look.status, look.error) for look in looks] == [("unchanged", None)] * 2
    assert looks[0].reason == "cannot tell: line nothing-yet has no champion yet"


def test_what_came_of_it_is_in_the_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose event nobody takes has failed, says how to go on, and was not told of as a success."""
    send = SyncPrefectClient.request

    def refuse(client: SyncPrefectClient, method: Any, path: Any, **rest: Any) -> httpx.Response:
        if path == "/events":
            raise httpx.ConnectError("away")
        return send(client, method, path, **rest)

    monkeypatch.setattr(SyncPrefectClient, "request", refuse)
    with pytest.raises(PrefectUnreachable, match="away") as refused:
        drift("colours", night(folder, 4, shuffled=True))
    assert refused.value.run_id
    run = show_run(settings(), refused.value.run_id)
    assert (run.status, run.flow, run.error and run.error.code) == ("failed", "drift", PrefectUnreachable.code)


def test_a_renamed_line_is_still_looked_at(folder: Path) -> None:
    """Its rows have the task of its first name, which its held-out rows score."""
    rename("colours", "hues", "ann", settings())
    try:
        look = drift("hues", night(folder, 2))
    finally:
        rename("hues", "colours", "ann", settings())
    assert look.status == "finished" and "not more than 1.3 times" in (look.reason or ""), look.reason


def test_where_it_cannot_be_told(folder: Path, line: RunResult) -> None:
    """Too few fresh rows, rows that are learned already, a task of which nothing is held out."""
    few = drift("colours", night(folder, 5, rows=FEWEST, shuffled=True))  # some of them are on the held-out side
    assert few.status == "unchanged" and "cannot tell" in (few.reason or "")
    assert "0 rows are new" in (drift("colours", night(folder, 1)).reason or "")
    other = drift("colours", {"path": night(folder, 6, shuffled=True), "task": "other"})
    assert other.status == "unchanged" and "no rows of other" in (other.reason or "")
