"""What a line does about forgetting: chosen when it begins, kept from then on; an older line keeps what it has."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backprop_core.errors import LineConflict
from backprop_core.lines.versions import Lines, LineVersion, Live
from backprop_core.models import base as bases
from backprop_core.schema.refs import AdapterRef, Choice, DatasetRef, RowsRef, Scores, TrainResult
from backprop_core.schema.specs import DatasetSpec, LoraSpec, MergeSpec, ModelSpec, RunSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import digest_of, part
from backprop_core.training.defaults import Data
from flows.cli.config_layers import replayed
from flows.steps.scores import scores
from flows.steps.training import backed_off, merge, replayable
from tasks.runs import resolve
from tasks.runs.flow_run import Run
from tasks.runs.plan import Lookup, PlanNotes, with_replay
from tasks.runs.prepared_run import Prepared, save
from tasks.runs.resolve_line import MERGE_A, REPLAY, REPLAY_ROWS, chosen_again
from tests.backprop_core import nano

TRAINING = TrainSpec(steps=2, device="cpu", lora=LoraSpec(rank=4))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nano.build(tmp_path_factory.mktemp("base"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture
def spec(base: Path, tmp_path: Path) -> RunSpec:
    file = tmp_path / "night.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in nano.chats(40)))
    return RunSpec(
        line="support", model=ModelSpec(name=str(base)), datasets=[DatasetSpec(path=str(file))], training=TRAINING
    )


def prepared(spec: RunSpec, store: Store, flow: str = "retrain", **changes: Any) -> Prepared:
    return resolve.prepare(flow, spec.model_copy(update=changes), store)


def about(made: Prepared) -> dict[str, Any]:
    """What was chosen of merge and replay."""
    return {choice.field: choice.value for choice in made.defaults if choice.field in (MERGE_A, REPLAY)}


def begun(spec: RunSpec, store: Store, **fields: Any) -> LineVersion:
    """The line's first version, live."""
    made, rows = AdapterRef(digest="a" * 64, kind="merged"), RowsRef(digest="b" * 64, rows=20)
    scores = Scores(digest="c" * 64, rows=20, tokens=100, loss=0.1, token_accuracy=0.9, exact_match=0)
    version = LineVersion(
        run_id="0" * 32,
        base=bases.resolve(spec.model, store),
        lora=spec.training.lora,
        tuned=made,
        merged=made,
        count=1,
        datasets=[DatasetRef(name="night", task="support", train=rows, heldout=rows, read=20)],
        heldout={"support": rows},
        scores={"support": scores},
        **fields,
    )
    Lines(store).append(spec.line, version, after=0)
    Lines(store).set_champion(spec.line, 1)
    return version


@pytest.mark.parametrize("flow", ["train", "multi-run", "retrain"])
def test_a_new_line_gets_what_was_measured_best(spec: RunSpec, store: Store, flow: str) -> None:
    """The plan and the record name both fields with a reason, and the resolved spec has them."""
    made = prepared(spec, store, flow)
    assert about(made) == {MERGE_A: True, REPLAY: REPLAY_ROWS}
    assert all(choice.reason for choice in made.defaults)
    assert (made.spec.merge, made.spec.training.replay_rows) == (MergeSpec(merge_a=True), REPLAY_ROWS)


def test_what_is_set_stays(spec: RunSpec, store: Store) -> None:
    """A strategy that is named is that strategy alone; a share of replay is no other replay."""
    plain = prepared(spec, store, merge=MergeSpec(strategy="slao"))
    assert about(plain) == {} and plain.spec.merge == MergeSpec() and plain.spec.training.replay_rows == 0
    for training in (TrainSpec(replay=0), TrainSpec(replay=0.05), TrainSpec(replay_rows=7)):
        made = prepared(spec, store, training=training)
        assert about(made) == {MERGE_A: True}
        assert (made.spec.training.replay, made.spec.training.replay_rows) == (training.replay, training.replay_rows)


def test_a_line_goes_on_as_it_began(spec: RunSpec, store: Store) -> None:
    """The next night replays and merges as the first; a night that says otherwise is an exception."""
    begun(spec, store, merge=MergeSpec(merge_a=True), replay_rows=33)
    made = prepared(spec, store)
    assert about(made) == {REPLAY: 33} and made.spec.merge == MergeSpec(merge_a=True)
    assert made.defaults[-1] == Choice(field=REPLAY, value=33, reason="as line support began")
    assert prepared(spec, store, training=TrainSpec(replay_rows=0)).spec.training.replay_rows == 0


def test_an_older_line_keeps_what_it_has(spec: RunSpec, store: Store) -> None:
    """A version without the new field merges and replays as before, and is the same input of the same keys."""
    version = begun(spec, store, merge=MergeSpec())
    made = prepared(spec, store)
    assert about(made) == {} and made.spec.merge == MergeSpec() and made.spec.training.replay_rows == 0
    old = version.model_dump(mode="json", exclude={"replay_rows"})
    read = LineVersion.model_validate(old)
    assert digest_of(part(Live(number=1, version=read))) == digest_of(part(Live(number=1, version=version)))
    assert "replay_rows" not in part(version)


def test_an_earlier_run_is_what_it_was(spec: RunSpec, store: Store) -> None:
    """`backprop replay` of a run that is older than the fields chooses none of them; of a newer one it keeps them."""
    old = prepared(spec, store, merge=MergeSpec(strategy="slao")).spec.model_dump(mode="json")
    del old["training"]["replay_rows"]
    again = prepared(replayed(RunSpec.model_validate(old), "0" * 32, []), store, "multi-run")
    assert about(again) == {} and again.spec.merge == MergeSpec() and again.spec.training.replay_rows == 0
    new = prepared(spec, store, "multi-run")
    assert prepared(replayed(new.spec, "0" * 32, []), store, "multi-run").digest() == new.digest()


def test_a_version_that_is_trained_again_keeps_both(spec: RunSpec, store: Store) -> None:
    """A rebuild without forgotten rows chooses by the data what the data chose, and nothing that the line keeps."""
    made = prepared(spec, store)
    again = chosen_again(made.defaults)
    assert "training.learning_rate" in again and not {MERGE_A, REPLAY} & set(again)


def test_a_plan_counts_replayed_rows(spec: RunSpec, store: Store, tmp_path: Path) -> None:
    """Of three datasets the second replays one task, the third two: so on average a run replays one."""
    paths = [tmp_path / f"{name}.jsonl" for name in ("one", "two", "three")]
    for number, path in enumerate(paths):
        path.write_text("".join(json.dumps(row) + "\n" for row in nano.chats(40 + number)))
    datasets = [DatasetSpec(path=str(path)) for path in paths]
    data = Data(examples=100, tokens=1000, label_tokens=500, length=10)
    fields: tuple[tuple[dict[str, float], int], ...] = (
        ({}, 100 + REPLAY_ROWS),
        ({"replay_rows": 10}, 110),
        ({"replay": 0.05}, 105),
        ({"replay": 0, "replay_general": 10}, 110),
    )
    for given, rows in fields:
        training = TrainSpec.model_validate(given)
        made = with_replay(data, prepared(spec, store, "multi-run", datasets=datasets, training=training))
        assert (made.examples, made.tokens, made.label_tokens) == (rows, 10 * rows, 5 * rows)


def long_base(place: Path) -> ModelSpec:
    """A base that reads more tokens than the rows of these tests have."""
    return ModelSpec(name=str(nano.build(place / "long", max_position_embeddings=4096)))


def test_a_later_night_reads_rows_as_long_as_the_line(spec: RunSpec, store: Store, tmp_path: Path) -> None:
    """A night of short rows keeps the length of the line's runs, so that no longer row of the line drops out."""
    spec = spec.model_copy(update={"model": long_base(tmp_path)})
    first = prepared(spec, store)
    assert first.spec.training.max_length == 512
    save(first.model_copy(update={"spec": with_length(first.spec, 2048)}), "0" * 32, store)
    begun(spec, store, merge=MergeSpec())
    made = prepared(spec, store)
    assert made.spec.training.max_length == 2048
    [choice] = [one for one in made.defaults if one.field == "training.max_length"]
    assert "as in the line so far" in choice.reason
    assert prepared(with_length(spec, 256), store).spec.training.max_length == 256


@pytest.mark.parametrize(("tokens", "asked"), [(256, 2048), (4096, 4096)])
def test_a_night_scores_as_long_rows_as_the_line(
    spec: RunSpec, store: Store, tmp_path: Path, tokens: int, asked: int
) -> None:
    """A night that trains shorter rows scores, and chooses by, the longer ones too: as a longer night does."""
    spec = spec.model_copy(update={"model": long_base(tmp_path), "merge": MergeSpec(back_off=True, weight="search")})
    save(prepared(with_length(spec, 2048), store), "0" * 32, store)
    begun(spec, store, merge=MergeSpec(weight="search"))
    rows, one = nano.commit_rows(store, nano.chats(10)), AdapterRef(digest="1" * 64, kind="merged")
    tuned = TrainResult.model_construct(adapter=one)
    keys = []
    for length in (tokens, asked):
        night = prepared(with_length(spec, length), store)
        executor = Lookup(night, store)
        run = Run("1" * 32, night, store, executor, PlanNotes())
        scores(run, None, rows)
        merge(run, one, tuned, [], 2, [rows])
        backed_off(run, one, one, [rows])
        keys.append({stage.stage: stage.key for stage in executor.stages})
    assert keys[0] == keys[1] and {"evaluate", "search", "back_off"} <= keys[0].keys()


def test_a_damaged_record_of_an_earlier_version_stops_no_night(
    spec: RunSpec, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Its length is not known then, which the log says."""
    save(prepared(spec, store), "0" * 32, store)
    begun(spec, store, merge=MergeSpec())
    store.layout.run("0" * 32).spec.write_text("{")
    assert prepared(spec, store).live and "is not known" in caplog.text


def with_length(spec: RunSpec, tokens: int) -> RunSpec:
    training = TrainSpec.model_validate({**spec.training.model_dump(exclude_unset=True), "max_length": tokens})
    return spec.model_copy(update={"training": training})


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("merge.merge_a", {"merge": MergeSpec(merge_a=False)}),
        ("merge.strategy", {"merge": MergeSpec(strategy="slao")}),
        ("merge.lambda", {"merge": MergeSpec(weight=None)}),
        ("training.lora", {"training": TrainSpec(device="cpu", lora=LoraSpec(rank=16))}),
    ],
)
def test_a_default_that_is_asked_for_is_asked_for(
    spec: RunSpec, store: Store, field: str, changes: dict[str, Any]
) -> None:
    """What a line has otherwise is refused, also where the value that is set is the usual one of the field."""
    begun(spec, store, merge=MergeSpec(strategy="average", merge_a=True, weight=0.5))
    with pytest.raises(LineConflict, match=field):
        prepared(spec, store, **changes)
    assert prepared(spec, store, merge=MergeSpec(), training=TrainSpec(device="cpu")).spec.merge.merge_a


def test_answers_are_replayed_beside_preferences(spec: RunSpec, store: Store) -> None:
    """A later night without a loss for preferences replays the answers of a mixed one, and none of its preferences."""
    judged = [{**nano.chats(1)[0], "label": True}]
    mixed = [*nano.chats(3), *judged]
    first, second = (nano.commit_rows(store, rows) for rows in (mixed, judged))
    known = {"task": "support", "heldout": first, "read": 4}
    before = [
        DatasetRef(name="mixed", train=first, ratings=1, **known),
        DatasetRef(name="judged", train=second, ratings=1, **known),
    ]
    night = prepared(spec, store)
    repeated = prepared(replayed(night.spec, "1" * 32, []), store)  # what was chosen is set there
    assert about(night) and not about(repeated)
    for made in (night, repeated):
        [left] = replayable(Run("1" * 32, made, store, Lookup(made, store), PlanNotes()), before)
        assert (left.name, left.judges, left.train.rows) == ("mixed", False, 3)
