"""A line's job as a file."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from backprop_core.errors import BackpropError, ConfigInvalid, FormatNewer
from backprop_core.runtime.settings import Settings
from backprop_core.schema.specs import LineSpec, RunSpec
from flows.cli import lines_file
from flows.cli.flags import Flags
from flows.cli.yaml_values import parse

JOB = """
model: {name: some/model}
datasets: [{path: night.jsonl, heldout: fixed.jsonl}]
training:
  epochs: 5
  lora: {rank: 4}
schedule: {cron: "0 3 * * *", timezone: Europe/Berlin}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An empty working directory and an empty home."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Settings(home=tmp_path / "home")


def put(text: str, name: str = "support", place: Path = Path()) -> None:
    folder = place / "lines"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)


def refused(text: str, config: Settings) -> BackpropError:
    """The error that a file with this text gives."""
    put(text)
    with pytest.raises(BackpropError) as caught:
        lines_file.find("support", config)
    return caught.value


def test_a_job_is_complete_by_itself(config: Settings) -> None:
    """The file gives the whole spec: its own name, its fields, defaults for the rest, paths from its directory."""
    put(JOB)
    job = lines_file.find("support", config)
    assert job and job.job.schedule and job.job.schedule.cron == "0 3 * * *"
    spec = job.job.run()
    assert type(spec) is RunSpec and (spec.line, spec.training.epochs, spec.min_new_rows) == ("support", 5, 200)
    here = Path.cwd()
    assert (spec.datasets[0].path, spec.datasets[0].heldout) == (str(here / "night.jsonl"), str(here / "fixed.jsonl"))
    assert spec.model.name == "some/model"


def test_flags_beat_the_file(config: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flag beats --config beats the line's file beats the environment, field by field."""
    put(JOB)
    monkeypatch.setenv("BACKPROPAGATE_TRAINING__EPOCHS", "9")
    monkeypatch.setenv("BACKPROPAGATE_TRAINING__BATCH_SIZE", "3")
    Path("more.yaml").write_text("training: {warmup: 0.5, lora: {rank: 6}}")
    flags = Flags(line="support", set=["training.lora.rank=8"], config=Path("more.yaml"))
    spec = flags.spec(lines_file.find("support", config))
    training = spec.training
    assert (training.epochs, training.batch_size, training.warmup, training.lora.rank) == (5, 3, 0.5, 8)


def test_the_working_directory_comes_first(config: Settings) -> None:
    """A file below the working directory hides the one in the home; each counts its paths from its own place."""
    put(JOB, place=config.home_path)
    put("datasets: [{path: other.jsonl}]", "other", config.home_path)
    found = lines_file.every(config)
    assert found["support"].job.datasets[0].path == str(config.home_path / "night.jsonl")
    put(JOB)
    found = lines_file.every(config)
    assert sorted(found) == ["other", "support"]
    assert found["support"].job.datasets[0].path == str(Path.cwd() / "night.jsonl")
    assert found["other"].job.datasets[0].path == str(config.home_path / "other.jsonl")
    assert lines_file.find("none", config) is None


def test_a_dataset_of_the_hub_stays_one(config: Settings) -> None:
    """OWNER/NAME is a path below the file's place only where there is one."""
    put("datasets: [{path: team/tickets}]", "other", config.home_path)
    assert lines_file.every(config)["other"].job.datasets[0].path == "team/tickets"
    (config.home_path / "team" / "tickets").mkdir(parents=True)
    assert lines_file.every(config)["other"].job.datasets[0].path == str(config.home_path / "team" / "tickets")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("datasets: [{path: a}]\ntraining:\n  epocs: 3", ["support.yaml:3", "did you mean `training.epochs`"]),
        ("datasets: [{path: a}]\nmin_new_rows: 0", ["min_new_rows=0", "support.yaml:2", "at least 1"]),
        ("datasets: [{path: a}]\nschedule: {cron: x}", ["schedule.cron=x", "support.yaml:2"]),
        ("datasets: [{path: a}, {path: b}]", ["datasets", "support.yaml:1"]),
        ("line: other\ndatasets: [{path: a}]", ["support", "line: other"]),
        ("training: {epochs: 3}", ["no dataset"]),
    ],
)
def test_a_wrong_file_is_named_by_its_line(text: str, parts: list[str], config: Settings) -> None:
    """What is wrong in a file is said with file, line and what was meant."""
    error = refused(text, config)
    assert [part for part in parts if part not in f"{error.message} {error.hint}"] == []


def test_a_file_may_have_the_number_of_its_format(config: Settings) -> None:
    """With or without it the job is the same; a later format, and what is no number of one, are refused by codes."""
    put(JOB)
    without = lines_file.find("support", config)
    put(f"format: 1\n{JOB}")
    numbered = lines_file.find("support", config)
    assert numbered and without and (numbered.job, numbered.fields) == (without.job, without.fields)
    newer = refused(f"format: 2\n{JOB}", config)
    assert isinstance(newer, FormatNewer) and "support.yaml:1: format 2" in newer.message
    for text in ("0", "x", "1.5", "true", "[1]", ""):
        error = refused(f"format: {text}\n{JOB}", config)
        assert isinstance(error, ConfigInvalid) and "support.yaml:1" in error.message


def test_a_schedule_is_no_field_of_a_run() -> None:
    """`--set schedule.cron` of a run without a file is refused, and told where it belongs."""
    with pytest.raises(ConfigInvalid) as caught:
        Flags(data=["a"], set=["schedule.cron=0 3 * * *"]).spec()
    assert "backprop init" in caught.value.hint


def test_init_writes_a_file_that_works(config: Settings) -> None:
    """The template reads back as the defaults, its commented lines as fields that exist; nothing is overwritten."""
    path = lines_file.write("support", config)
    job = lines_file.find("support", config)
    assert job and job.job == LineSpec(line="support", datasets=job.job.datasets)
    assert job.job.datasets[0].path == str(config.home_path / "data" / "support.jsonl")
    head, *rest = path.read_text().splitlines()
    text = "\n".join(line.removeprefix("# ") if ":" in line else line for line in rest[3:])
    values = yaml.safe_load(text)
    assert values.pop("format") == 1
    filled = LineSpec.model_validate({"line": "support", **values})
    assert filled.schedule and filled.training == LineSpec(datasets=filled.datasets).training
    assert head.endswith(f"$schema={lines_file.SCHEMA}")
    assert "schedule" in json.loads((path.parent / lines_file.SCHEMA).read_text())["properties"]
    with pytest.raises(ConfigInvalid, match="exists already"):
        lines_file.write("support", config)
    with pytest.raises(ConfigInvalid, match="invalid value"):
        lines_file.write("../support", config)


@pytest.mark.parametrize("name", ["\U0001f600 caf\u00e9", "a\x97b", 'quo"te: #\\'], ids=ascii)
def test_any_directory_can_be_that_of_the_rows(name: str) -> None:
    """The file names the directory as it is: a character beyond the first plane is one character, no pair."""
    assert parse(lines_file.template("support", Path(name)), "").value["datasets"][0]["path"] == name


def test_a_pair_of_surrogates_is_one_character() -> None:
    """JSON escapes a character as a pair; half of one is refused, as no file and no answer could hold it."""
    assert parse(r'a: "\ud83d\ude00"', "").value == {"a": "\U0001f600"}
    with pytest.raises(ConfigInvalid, match=":2 has half"):
        parse('b: 1\na: "\\ud83d"', "job.yaml")


WRITE = """
from pathlib import Path
from flows.cli import lines_file
lines_file.create(Path("lines/a.yaml"), "#" * 10**6)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_new_file_is_whole_or_not_there(config: Settings) -> None:
    """A write that fails, as on a full disk, leaves no job file, and the next attempt is not in its way."""
    import resource

    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (500_000, 500_000))
    failed = subprocess.run([sys.executable, "-c", WRITE], preexec_fn=full, capture_output=True, text=True, check=False)
    assert failed.returncode and "OSError" in failed.stderr
    assert [path.name for path in Path("lines").iterdir()] == [lines_file.SCHEMA]
    lines_file.create(Path("lines/a.yaml"), "# new")
    with pytest.raises(ConfigInvalid, match="exists already"):
        lines_file.create(Path("lines/a.yaml"), "# other")
    assert Path("lines/a.yaml").read_text() == "# new"
