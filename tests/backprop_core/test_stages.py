"""The registry of stages: everything that is known of a stage comes from its one declaration."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from backprop_core import stages
from backprop_core.schema.records import Record
from backprop_core.schema.refs import RowsRef
from backprop_core.stages import Workplace, every, stage, versions
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import stage_key
from tasks.stages.cache_policy import read_result, result_types
from tasks.stages.parent_place import ParentPlace
from tasks.stages.stage_tasks import stage_task
from tests.backprop_core import nano

ROOMS = {"data", "training", "merging", "evaluation", "export"}


def test_every_room_is_found() -> None:
    """Each room's stages.py is in the registry, and nothing is declared anywhere else."""
    places = {declared.function.__module__ for declared in every().values()}
    assert places == {f"backprop_core.{room}.stages" for room in ROOMS}
    assert set(versions()) == set(every()) and len(every()) > 20


def test_a_declaration_is_read_without_torch() -> None:
    """The parent process reads signatures; what needs a tensor is imported by the body, in the worker."""
    heavy = ["torch", "transformers", "peft", "safetensors", "prefect", "mlflow"]
    script = f"every(); print([name for name in {heavy} if name in sys.modules])"
    command = [sys.executable, "-c", f"import sys; from backprop_core.stages import every; {script}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


class WordCount(Record):
    words: int


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> stages.Stage[WordCount]:
    """A new stage, declared once, here."""
    monkeypatch.setattr(stages, "_declared", dict(stages._declared))

    @stage(version=1, runs_in="parent", planned=True)
    def words_of(rows: RowsRef, least: int, *, at: Workplace) -> WordCount:
        """Rows → how many words they have."""
        words = (at.store.local(rows) / "rows.jsonl").read_text().split()
        at.progress(1, 1)
        return WordCount(words=max(least, len(words)))

    stages.every.cache_clear()
    yield words_of
    stages.every.cache_clear()


def test_one_function_is_a_whole_stage(counted: stages.Stage[WordCount], tmp_path: Path) -> None:
    """Name, key, job, result type, task and body all come from the function; nothing else names it."""
    store = Store(tmp_path)
    rows = nano.commit_rows(store, nano.chats(3))
    job = counted.job(rows=rows, least=2)
    assert (counted.name, counted.help, counted.result) == (
        "words_of",
        "Rows → how many words they have.",
        WordCount,
    )
    assert counted.job.model_validate(job.model_dump(mode="json")) == job
    with pytest.raises(ValueError, match="least"):
        counted.job(rows=rows)
    keys = {stage_key("words_of", {"rows": rows, "least": least}) for least in (1, 2)}
    assert len(keys) == 2 and versions()["words_of"] == 1
    given = {"rows": rows, "least": 2}
    made = counted.carry_out(given, ParentPlace(store, "k", counted.name))
    assert made.words > 2
    task = stage_task(counted, lambda parameters: counted.carry_out(parameters, ParentPlace(store, "k", counted.name)))
    assert (task.name, task.fn(**given)) == ("words_of", made)
    assert inspect.signature(task.fn) == counted.signature and "at" not in counted.signature.parameters
    result_types.cache_clear()
    content = '{"__class__": "anywhere.WordCount", "data": {"words": 7}}'
    assert read_result(content.encode()) == WordCount(words=7)
    result_types.cache_clear()
    store.close()


def test_a_parameter_that_came_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a default it need not be given, and the keys of before stay as they were; set, it is part of the key."""
    monkeypatch.setattr(stages, "_declared", {})
    stage(version=1, runs_in="parent")(words_before)
    before = stages._declared.pop("words_of")
    after = stage(version=1, runs_in="parent")(words_since)
    rows = RowsRef(digest="a" * 64, rows=1)

    def key(declared: stages.Stage[WordCount], **later: int | None) -> str:
        monkeypatch.setattr("backprop_core.store.cache_keys.every", lambda: {"words_of": declared})
        return stage_key("words_of", {"rows": rows, **later})

    assert key(before) == key(after) == key(after, least=None) != key(after, least=2)
    assert after.job.model_validate({"rows": rows.model_dump()}).least is None


def words_before(rows: RowsRef, *, at: Workplace) -> WordCount:
    raise NotImplementedError


def words_since(rows: RowsRef, least: int | None = None, *, at: Workplace) -> WordCount:
    raise NotImplementedError


words_before.__name__ = words_since.__name__ = "words_of"


def test_two_stages_of_one_name_are_refused(counted: stages.Stage[WordCount]) -> None:
    """A name is a cache key's first part."""

    def words_of(rows: RowsRef, *, at: Workplace) -> WordCount:
        raise NotImplementedError

    with pytest.raises(AssertionError, match="two stages words_of"):
        stage(version=2, runs_in="parent")(words_of)
