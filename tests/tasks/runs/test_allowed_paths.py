"""What a run that a deployment started may read."""

from pathlib import Path

import pytest

from backprop_core.schema.specs import DatasetSpec, EvaluationSpec, ModelSpec, RunSpec
from tasks.runs.allowed_paths import forbidden, inputs, may_read


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The allowed directory; a symlink in it leads outside."""
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "secret.jsonl").touch()
    (root / "link").symlink_to(tmp_path)
    monkeypatch.setenv("BACKPROPAGATE_ALLOWED_PATHS", f"{root}:{tmp_path / 'second'}")
    monkeypatch.chdir(root)
    return root


@pytest.mark.parametrize(
    ("path", "may"),
    [
        ("{root}/a.jsonl", True),
        ("a.jsonl", True),
        ("{root}/../second/a.jsonl", True),
        ("{root}/../secret.jsonl", False),
        ("../secret.jsonl", False),
        ("{root}/link/secret.jsonl", False),
        ("/etc/passwd", False),
        ("/proc/self/environ", False),
        ("~root/.ssh/id_rsa", False),
        ("{root}-beside/a.jsonl", False),
        ("a\0b", False),
        ("https://example.org/a.jsonl", True),
        ("s3://bucket/a.jsonl", True),
        ("file:///etc/passwd", False),
        ("file://{root}/a.jsonl", False),
        ("local:///etc/passwd", False),
        ("simplecache::file:///etc/passwd", False),
        ("https://example.org/a.zip::file:///etc/passwd", False),
    ],
)
def test_only_files_of_the_allowed_directories(root: Path, path: str, may: bool) -> None:
    """Wherever `..`, symlinks, `~` or a protocol lead."""
    assert may_read(path.format(root=root)) is may


def test_a_directory_is_read_file_by_file(root: Path) -> None:
    """A symlink in an allowed directory that leads out of it is refused, by its own name; a file beside it is not."""
    drops = root / "drops"
    drops.mkdir()
    (drops / "a.jsonl").touch()
    spec = RunSpec(datasets=[DatasetSpec(path="drops")])
    assert forbidden(spec) == []
    (drops / "b.jsonl").symlink_to(root.parent / "secret.jsonl")
    assert forbidden(spec) == [str(drops / "b.jsonl")]
    assert forbidden(RunSpec(datasets=[DatasetSpec(path="a", heldout=str(drops))])) == [str(drops / "b.jsonl")]


def test_a_dataset_of_the_hub_is_elsewhere(root: Path) -> None:
    """A hub id may be read, as hf:// may; what is here under that name is a path like others."""
    assert forbidden(RunSpec(datasets=[DatasetSpec(path="team/tickets")])) == []
    (root / "team").symlink_to(root.parent)
    (root.parent / "tickets").touch()
    assert forbidden(RunSpec(datasets=[DatasetSpec(path="team/tickets")])) == ["team/tickets"]


def test_the_home_has_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it is data/ in the home, and nothing else of the home."""
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path))
    assert may_read(str(tmp_path / "data" / "a")) and not may_read(str(tmp_path / "store" / "a"))


def test_everything_that_a_spec_names_is_looked_at(root: Path) -> None:
    """Data, held-out rows, watched sets, and the base where it is a directory."""
    (root / "org").mkdir()
    spec = RunSpec(
        model=ModelSpec(name="org"),
        datasets=[DatasetSpec(path="a", heldout="b"), DatasetSpec(path="c")],
        evaluation=EvaluationSpec(watch=[DatasetSpec(path="d", heldout="e")]),
    )
    assert list(inputs(spec)) == ["org", "a", "b", "c", "d", "e"]
    assert "Qwen/x" not in list(inputs(spec.model_copy(update={"model": ModelSpec(name="Qwen/x")})))


@pytest.mark.parametrize("name", ["org", "./org", "../data/org", "{root}/org"])
def test_a_base_is_read_file_by_file(root: Path, name: str) -> None:
    """A directory of the allowed ones, however it is written, may be a base; not where one of its files leads out."""
    (root / "org").mkdir()
    (root / "org" / "config.json").touch()
    spec = RunSpec(model=ModelSpec(name=name.format(root=root)), datasets=[DatasetSpec(path="a")])
    assert forbidden(spec) == []
    (root / "org" / "model.safetensors").symlink_to(root.parent / "secret.jsonl")
    assert [Path(path).name for path in forbidden(spec)] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["./a\0b", "~root/nowhere", "../nowhere"])
def test_what_looks_like_a_base_and_is_none_is_refused(root: Path, name: str) -> None:
    """By the same rule, whatever the file system says of such a name."""
    assert forbidden(RunSpec(model=ModelSpec(name=name), datasets=[DatasetSpec(path="a")])) == [name]
