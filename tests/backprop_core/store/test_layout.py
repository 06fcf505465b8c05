"""Every path of a home and of a store is spelled in one module."""

import ast
import inspect
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from backprop_core.store import layout
from backprop_core.store.layout import HomeLayout, JournalLayout, LineLayout, RunLayout, StoreLayout, TrackerLayout

HERE = Path(__file__).parents[3]
HOME = HERE / "tests" / "fixtures" / "old_home.tar.xz"
LAYOUTS = (HomeLayout, JournalLayout, LineLayout, RunLayout, StoreLayout, TrackerLayout)
# what is in them belongs to the rooms that write it, to MLflow, to Prefect, or to a person
FILLED_ELSEWHERE = {
    "artifact",
    "checkpoints",
    "damaged",
    "session",
    "sources",
    "data",
    "jobs",
    "mlflow_artifacts",
    "prefect_ui",
    "tensorboard",
    "wandb",
    "backups",
}
# names of something else that is spelled as one of ours
OTHER = {
    ("flows/demo.py", "data"),  # of examples/
    ("backprop_core/worker/client.py", "result.json"),  # of a job, in a temporary directory
    ("backprop_core/worker/main.py", "result.json"),
}


def members(kind: type) -> Iterator[tuple[str, object]]:
    """What a layout names, each member called with placeholders: `*` for a text, 0 for a number."""
    made = kind(Path("/root"))
    for name, member in inspect.getmembers(kind):
        if isinstance(member, property):
            yield name, getattr(made, name)
        elif inspect.isfunction(member) and not name.startswith("_"):
            types = [each.annotation for each in list(inspect.signature(member).parameters.values())[1:]]
            if Path not in types:  # which asks about a path
                yield name, getattr(made, name)(*("*" if each is str else 0 for each in types))


def patterns(kind: type) -> Iterator[tuple[str, bool]]:
    """Each path of a layout below its root, as a pattern, and whether what is in it is written elsewhere."""
    for name, found in members(kind):
        if isinstance(found, Path):
            yield str(found.relative_to("/root")), name in FILLED_ELSEWHERE
        elif isinstance(found, LAYOUTS) and not (kind in (JournalLayout, TrackerLayout) and name == "sent"):
            below = found.root.relative_to("/root")
            yield str(below), name in FILLED_ELSEWHERE
            yield from ((f"{below}/{inner}", filled) for inner, filled in patterns(type(found)))


def as_expression(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*", "[^/]+").replace("000000", "[0-9]{6}")


def expression() -> re.Pattern[str]:
    """What the paths of a home and of its store look like, relative to the home."""
    every = [*patterns(HomeLayout), *((f"store/{inner}", filled) for inner, filled in patterns(StoreLayout))]
    every += [(f"journal/sent/{inner}", filled) for inner, filled in patterns(JournalLayout)]
    texts = set()
    for pattern, filled in every:
        for count in range(pattern.count("/") + 1):
            texts.add(as_expression("/".join(pattern.split("/")[: count + 1])))
        texts |= {f"{as_expression(pattern)}/.+"} if filled else set()
    return re.compile("|".join(sorted(texts)))


def unknown(home: Path) -> list[str]:
    """Files and directories of a home that no layout names."""
    known = expression()
    names = sorted(path.relative_to(home).as_posix() for path in home.rglob("*"))
    return [name for name in names if not known.fullmatch(name)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which runs have trained, merged, gone live and been killed."""
    folder = tmp_path_factory.mktemp("home")
    with tarfile.open(HOME) as archive:
        archive.extractall(folder, filter="data")
    return folder / "old-home"


def test_every_path_of_a_home_is_named(home: Path) -> None:
    """What runs have left in a home is what the layout names, and nothing else. (`test_old_home` has newer runs.)"""
    assert unknown(home) == []


@pytest.mark.parametrize("name", ["store/elsewhere", "store/runs/a/other.json", "mlflow.txt", "journal/sent/sent"])
def test_a_path_that_is_not_named_is_found(home: Path, name: str) -> None:
    """The test above can fail."""
    path = home / name
    made = [each for each in (path, *path.parents) if not each.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert name in unknown(home)
    for each in made:
        each.unlink() if each.is_file() else each.rmdir()


def parts(source: str) -> Iterator[str]:
    """The literal parts of paths in Python source: right of a `/`, and in calls that look for or rename files."""
    for node in ast.walk(ast.parse(source)):
        found: list[ast.expr] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            found = [node.right]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
            found = node.args
        for each in found:
            yield from literal(each).split("/")


def literal(node: ast.expr) -> str:
    """A string, with `*` for what an f-string puts in; empty for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(each) for each in node.values)
    if isinstance(node, ast.FormattedValue):
        return "*"
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


CALLS = {"glob", "rglob", "joinpath", "with_name", "with_stem"}
NAMES = {part for part in parts(inspect.getsource(layout)) if part and "*" not in part} | {layout.MANIFEST}


def test_no_other_module_spells_a_path() -> None:
    """Only the layout has the names of the directories and files of a home and of a store as parts of a path."""
    found = set()
    for folder in ("backprop_core", "tasks", "flows"):
        for path in (HERE / folder).rglob("*.py"):
            name = path.relative_to(HERE).as_posix()
            if path != Path(inspect.getfile(layout)):
                found |= {(name, part) for part in parts(path.read_text(encoding="utf-8")) if part in NAMES}
    assert found == OTHER


@pytest.mark.parametrize(
    "source", ['store.root / "locks" / name', 'root.glob(f"runs/{x}/spec.json")', 'path.with_name("result.json")']
)
def test_a_path_that_is_spelled_elsewhere_is_found(source: str) -> None:
    """The test above can fail, for a store's names and for those of the home."""
    assert set(parts(source)) & NAMES and {"mlflow.db", "journal", "serve.json", "runs", "tmp"} <= NAMES
