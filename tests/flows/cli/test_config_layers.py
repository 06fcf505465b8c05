"""A run's spec out of flags, file, environment and .env."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backprop_core.errors import BackpropError, ConfigInvalid, InputNotFound, QuantizationUnknown
from backprop_core.schema.specs import RunSpec
from flows.cli.config_layers import PREFIX, export_spec, run_spec, windows
from flows.cli.spec_fields import spec_fields
from flows.cli.yaml_values import MAX_BYTES, parse

DATA = {"datasets": [{"path": "a.jsonl"}]}


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No .env but the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resolve(*settings: str, flags: dict[str, Any] | None = None, text: str | None = None) -> RunSpec:
    """The spec of some settings, over a config file with this text."""
    file = None if text is None else Path("job.yaml")
    if file and text is not None:
        file.write_text(text)
    flags = DATA | (flags or {})
    return run_spec(flags=flags, names={path: f"--{path}" for path in flags}, settings=settings, file=file)


def refused(*settings: str, **rest: Any) -> BackpropError:
    """The error that some settings give."""
    with pytest.raises(BackpropError) as caught:
        resolve(*settings, **rest)
    return caught.value


def test_order_of_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flag beats file beats environment beats .env beats default: each layer shows once the one above is gone."""
    seen = [resolve().training.epochs]
    Path(".env").write_text("BACKPROPAGATE_TRAINING__EPOCHS=5\n")
    seen.append(resolve().training.epochs)
    monkeypatch.setenv("BACKPROPAGATE_TRAINING__EPOCHS", "6")
    seen.append(resolve().training.epochs)
    seen.append(resolve(text="training: {epochs: 7}").training.epochs)
    seen.append(resolve(text="training: {epochs: 7}", flags={"training.epochs": "8"}).training.epochs)
    assert seen == [3, 5, 6, 7, 8]


def test_short_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short forms of the environment set the fields that they stand for; the long name wins."""
    monkeypatch.setenv("BACKPROPAGATE_LORA__R", "4")
    monkeypatch.setenv("BACKPROPAGATE_LORA__ALPHA", "9")
    monkeypatch.setenv("BACKPROPAGATE_TRAINING__LEARNING_RATE", "3e-4")
    monkeypatch.setenv("BACKPROPAGATE_MODEL__NAME", "some/model")
    monkeypatch.setenv("BACKPROPAGATE_LINE", "support")
    spec = resolve()
    assert (spec.training.lora.rank, spec.training.lora.alpha, spec.training.learning_rate) == (4, 9, 3e-4)
    assert (spec.model.name, spec.line) == ("some/model", "support")
    monkeypatch.setenv("BACKPROPAGATE_TRAINING__LORA__RANK", "5")
    assert resolve().training.lora.rank == 5


def test_settings_are_no_fields_of_a_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable without `__` that names no part of a spec is a setting's, and left to it."""
    monkeypatch.setenv("BACKPROPAGATE_LOG_LEVEL", "debug")
    assert resolve() == resolve()


def test_mappings_are_merged_and_lists_replaced() -> None:
    """A layer that names one field leaves its neighbours alone; a list of datasets is replaced as a whole."""
    text = "datasets: [{path: x.jsonl, task: x}, {path: y.jsonl}]\ntraining: {lora: {rank: 4, alpha: 7}}"
    spec = resolve("training.lora.rank=8", text=text)
    assert (spec.training.lora.rank, spec.training.lora.alpha) == (8, 7)
    assert [dataset.path for dataset in spec.datasets] == ["a.jsonl"]
    assert resolve("datasets.1.path=b.jsonl").datasets[1].path == "b.jsonl"


def test_flags_for_every_dataset() -> None:
    """A dataset's flag goes to each dataset, wherever that was named."""
    text = "datasets: [{path: x.jsonl}, {path: y.jsonl}]"
    assert [d.rows for d in resolve(text=text, flags={"datasets": None, "datasets.N.rows": "7"}).datasets] == [7, 7]


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("training.lerning_rate=1", "training.learning_rate"),
        ("learning_rate=1", "training.learning_rate"),
        ("lora.rank=4", "training.lora"),
        ("datasets.0.pth=x", "datasets.0.path"),
        ("exprot.quantizations=[f16]", "export"),
    ],
)
def test_misspelt_setting(setting: str, meant: str) -> None:
    """A name that no field has is refused with the one that was meant."""
    error = refused(setting)
    assert isinstance(error, ConfigInvalid) and setting in error.message and error.hint == f"did you mean `{meant}`?"


def test_a_hash_in_a_setting_begins_no_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name on the command line or in the environment is taken whole; quoted text is read as YAML."""
    assert resolve("datasets.0.path=faq #1.jsonl").datasets[0].path == "faq #1.jsonl"
    assert resolve("datasets.0.path='faq #1.jsonl'").datasets[0].path == "faq #1.jsonl"
    assert resolve("datasets.0.path=#1.jsonl").datasets[0].path == "#1.jsonl"
    monkeypatch.setenv("BACKPROPAGATE_MODEL__NAME", "models/base #2")
    assert resolve().model.name == "models/base #2"


def test_misspelt_field_of_a_file_is_shown_by_its_line() -> None:
    """A file's misspelt field is named with file and line."""
    error = refused(text="line: support\ntraining:\n  steps: 5\n  lora:\n    rnk: 8\n")
    assert "job.yaml:5" in error.message and error.hint == "did you mean `training.lora.rank`?"


def test_misspelt_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that names no field is refused, and told how it is spelt."""
    monkeypatch.setenv("BACKPROPAGATE_TRAINING__EPOCH", "5")
    error = refused()
    assert "BACKPROPAGATE_TRAINING__EPOCH)" in error.message
    assert error.hint == "did you mean `BACKPROPAGATE_TRAINING__EPOCHS`?"


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("training.lora.rank=0", ["training.lora.rank=0", "an integer from 1 to 1024"]),
        ("training.lora.rank=eight", ["training.lora.rank=eight", "an integer"]),
        ("training.learning_rate=1", ["training.learning_rate=1", "above 0 and below 1"]),
        ("training.epochs=nan", ["training.epochs=nan", "a number"]),
        ("training.weight_decay=inf", ["training.weight_decay=inf", "a number"]),
        ("merge.strategy=mean", ["merge.strategy=mean", "slao", "sequential"]),
        ("line=Our Line", ["line=Our Line", "lowercase letters"]),
        ("training=5", ["training=5", "a mapping"]),
        ("datasets.3.task=x", ["a list of 1 has no entry 3"]),
        ("datasets.task=x", ["a list of 1 has no entry task"]),
        ("training.steps", ["has no value"]),
    ],
)
def test_impossible_value(setting: str, parts: list[str]) -> None:
    """A value of the wrong type or out of range is refused with field, value, range and who said it."""
    error = refused(setting)
    assert isinstance(error, ConfigInvalid)
    assert [part for part in [setting, *parts] if part not in f"{error.message} {error.hint}"] == []


def test_missing_fields() -> None:
    """No dataset at all, or one without a path, says how to name it."""
    assert "--data" in refused(flags={"datasets": None}).hint
    assert "datasets.1.path is missing" in refused("datasets.1.task=x").message


def test_unknown_quantization() -> None:
    """A quantization that does not exist has a code of its own, and the list of those that do."""
    error = refused(flags={"export.quantizations": ["q4_k_m", "q9"]})
    assert isinstance(error, QuantizationUnknown) and "q9" in error.message and "q4_k_m" in error.hint
    with pytest.raises(QuantizationUnknown):
        export_spec({"quantizations": ["q9"]}, {"quantizations": "--quantization"})
    flags = {"quantizations": ["f16", "q8_0"], "ollama": None}
    assert export_spec(flags, {"quantizations": "--quantization"}).quantizations == ["f16", "q8_0"]


def test_no_such_file(empty_directory: Path) -> None:
    """A config file that is not there, or a directory, is an input error."""
    for file in (Path("none.yaml"), empty_directory):
        with pytest.raises(InputNotFound):
            run_spec(flags={}, names={}, file=file)


def test_scalars_are_read_by_their_field() -> None:
    """`2024` is a name where a name is wanted and a number where a number is: the field decides, not YAML."""
    spec = resolve("datasets.0.task=2024", "model.revision=1e10", "training.learning_rate=2e-4", "training.steps=null")
    assert (spec.datasets[0].task, spec.model.revision) == ("2024", "1e10")
    assert (spec.training.learning_rate, spec.training.steps) == (2e-4, None)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x]\nb: *a",
        "a: !!python/object/apply:os.system [true]",
        "a: !!binary aGk=",
        "a: 1\na: 2",
        "[1]: 2",
        "[" * 5000,
        "a: [",
        "a: b: c",
        "\x00",
        "x" * (MAX_BYTES + 1),
        "--- a\n--- b",
        "a: &a {<<: *a}",
    ],
)
def test_abuse_of_yaml(text: str) -> None:
    """Aliases, tags, names that stand twice, bottomless nesting, huge and broken texts are refused with a code."""
    with pytest.raises(ConfigInvalid):
        parse(text, "job.yaml")


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text makes the reader fail in another way than with a code."""
    try:
        parse(text, "job.yaml")
    except ConfigInvalid as error:
        assert error.hint


@given(st.sampled_from(sorted(spec_fields())), st.text(max_size=20))
def test_any_setting_is_taken_or_refused(path: str, value: str) -> None:
    """No value of any field makes the resolution fail in another way than with a code."""
    try:
        resolve(f"{path.replace('.N', '.0')}={value}")
    except BackpropError as error:
        assert error.code in ("CONFIG_INVALID", "CONFIG_QUANTIZATION_UNKNOWN")


def test_windows() -> None:
    """A dataset cut into windows gives runs of one task over rows that follow each other and never overlap."""
    cut = windows(resolve("datasets.0.task=t", "datasets.0.skip=5"), 3, 10).datasets
    assert [(part.skip, part.rows, part.task) for part in cut] == [(5, 10, "t"), (15, 10, "t"), (25, 10, "t")]
    with pytest.raises(ConfigInvalid):
        windows(resolve("datasets.1.path=b.jsonl"), 2, 10)


def test_every_field_of_the_file_can_be_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `reference.md` promises: the path in capitals, with `__` for each dot."""
    monkeypatch.setenv(f"{PREFIX}DATASETS__0__TASK", "named")
    assert run_spec(flags={"datasets.0.path": "a"}, names={"datasets.0.path": "-"}).datasets[0].task == "named"
