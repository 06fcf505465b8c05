"""A stage's key: digests of its inputs, what its spec can change, its version, and nothing else."""

import subprocess
import sys
from dataclasses import replace

import pytest
from pydantic import Field

from backprop_core.schema.records import KEY_IF_SET, Spec
from backprop_core.schema.refs import AdapterRef, BaseRef, DatasetRef, RowsRef, SourceRef, Start
from backprop_core.schema.specs import DatasetSpec, EvaluationSpec, TrainSpec
from backprop_core.stages import every
from backprop_core.store.cache_keys import canonical, stage_key, stage_parts

A, B = "a" * 64, "b" * 64


def train_key(**changes):
    parameters = {
        "base": BaseRef(name="/somewhere/base", digest=A),
        "rows": RowsRef(digest=B, rows=3),
        "spec": TrainSpec(),
        "start": None,
    }
    return stage_key("train", parameters | changes)


def test_names_and_places_are_no_part_of_a_key():
    """The same model elsewhere is the same model."""
    assert train_key(base=BaseRef(name="Qwen/Qwen2.5-7B", revision="c" * 40, digest=A)) == train_key()
    assert stage_key("curate", {"source": SourceRef(digest=A, path="/x")}) == stage_key(
        "curate", {"source": SourceRef(digest=A, path="/y")}
    )


def test_what_can_change_the_result_changes_the_key():
    """Every semantic field of the spec, every input and the start count."""
    start = Start(tuned=AdapterRef(digest=A, kind="tuned"), orthonormal=True)
    keys = {
        train_key(),
        train_key(base=BaseRef(name="/somewhere/base", digest=B)),
        train_key(rows=RowsRef(digest=A, rows=3)),
        train_key(start=start),
        train_key(start=start.model_copy(update={"orthonormal": False})),
        *(train_key(spec=TrainSpec(**{name: value})) for name, value in {"steps": 7, "seed": 1, "epochs": 4}.items()),
        train_key(spec=TrainSpec(lora={"rank": 8})),
        train_key(spec=TrainSpec(lora={"variant": "dora"})),
        train_key(spec=TrainSpec(lora_plus=16)),
    }
    assert len(keys) == 11


def test_what_cannot_change_the_result_does_not_change_the_key():
    """How often checkpoints are written, and where a file lies, are no reason to train again."""
    assert train_key(spec=TrainSpec(checkpoint_seconds=0)) == train_key()
    parts = [stage_parts("curate", {"spec": DatasetSpec(path=path, task="t")}) for path in ("a.jsonl", "b.jsonl")]
    assert parts[0] == parts[1]


def test_a_field_that_came_later_leaves_the_old_keys_as_they_were():
    """At its default it is no part of a key; set, it is."""

    class Later(Spec):
        old: int = 1
        new: int | None = Field(None, json_schema_extra=KEY_IF_SET)

    assert Later().semantic() == {"old": 1}
    assert Later(new=2).semantic() == {"old": 1, "new": 2}


def test_an_integer_and_its_float_are_the_same_number():
    """A YAML file that says 3 and a default of 3.0 ask for the same."""
    assert train_key(spec=TrainSpec(epochs=3)) == train_key(spec=TrainSpec(epochs=3.0)) == train_key()


def test_nested_specs_are_plain_json():
    """Lists of specs inside specs are part of a key like everything else."""
    spec = EvaluationSpec(watch=[DatasetSpec(path="a.jsonl", rows=3)])
    [watched] = stage_parts("evaluate", {"spec": spec})["parameters"]["spec"]["watch"]
    assert watched["rows"] == 3
    assert "path" not in watched


def test_the_version_is_part_of_the_key(monkeypatch):
    """Raising a stage's VERSION makes every old record of it a miss."""
    before = train_key()
    raised = replace(every()["train"], version=every()["train"].version + 1)
    monkeypatch.setattr("backprop_core.store.cache_keys.every", lambda: {"train": raised})
    assert train_key() != before


@pytest.mark.slow
def test_a_key_is_the_same_in_any_process():
    """Two processes with other hash seeds agree on a key."""
    script = "from tests.backprop_core.store.test_cache_keys import train_key; print(train_key())"
    keys = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert keys == {train_key()}


def test_golden_keys():
    """A key that changes without a VERSION that was raised would redo everybody's work: this digest is kept by hand."""
    assert train_key(heldout=None) == train_key() != train_key(heldout=RowsRef(digest=A, rows=1))
    assert train_key() == "60ae73e7ade386952709a901533af6dcb229fce747cbb9a02ce04340b720ec37"


def test_canonical_json_has_one_spelling():
    """Sorted, without spaces, UTF-8 as it is."""
    assert canonical({"b": 1, "a": ["é", None]}) == '{"a":["é",null],"b":1}'


def test_dataset_names_are_labels():
    """A dataset's digest is that of its rows."""
    from backprop_core.store.cache_keys import dataset_digest

    one = DatasetRef(name="a", task="a", train=RowsRef(digest=A, rows=1), heldout=RowsRef(digest=B, rows=1), read=2)
    assert dataset_digest(one) == dataset_digest(one.model_copy(update={"name": "b", "task": "b"}))
