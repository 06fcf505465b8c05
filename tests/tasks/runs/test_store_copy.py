"""What a store has forgotten stays forgotten when it is copied, or copied into."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from backprop_core.data.forgotten_rows import forget, forgotten
from backprop_core.data.row_identity import identity
from backprop_core.errors import InputValidationFailed
from backprop_core.runtime.settings import Settings, settings
from backprop_core.schema.refs import GGUFRef
from backprop_core.store import sharing
from backprop_core.store.artifacts import Store
from flows.cli import main
from tasks.runs.data_forget import data_forget
from tasks.runs.store_copy import copy, sync
from tests.backprop_core import nano
from tests.wire.s3_server import BUCKET, environment, s3_server

ROWS = nano.chats(6)
GONE = identity(ROWS[1]).hex()
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "home"))
    return settings()


@pytest.fixture
def one(tmp_path: Path) -> Store:
    return Store(tmp_path / "one")


@pytest.fixture
def two(tmp_path: Path) -> Store:
    return Store(tmp_path / "two")


def known(store: Store) -> dict[str, list[str]]:
    """The list of a store: which versions have seen each row."""
    return {row: found.versions for row, found in forgotten(store).items()}


def test_either_store_knows_what_the_other_has_forgotten(config: Settings, one: Store, two: Store) -> None:
    """A row with the versions that either store names; neither list is a difference that stays."""
    forget(["a" * 64, "b" * 64], ["support@1"], one)
    forget(["b" * 64, "c" * 64], ["support@2", "billing@1"], two)
    both = {"a" * 64: ["support@1"], "b" * 64: ["billing@1", "support@1", "support@2"]}
    both["c" * 64] = ["billing@1", "support@2"]
    done = copy(str(one.root), str(two.root), config)
    assert known(two) == both and len(known(one)) == 2 and done.kept == []
    assert [each.kept for each in sync(str(one.root), str(two.root), config)] == [[], []]
    assert known(one) == known(two) == both


def test_what_the_target_has_of_them_is_named_until_it_is_gone(
    config: Settings, one: Store, two: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each copy says so, with another exit status, until the row is forgotten there too."""
    forget([GONE], [], one)
    nano.commit_rows(one, ROWS[3:])
    nano.commit_rows(two, ROWS)
    for _ in range(2):
        assert main.main(["store", "copy", str(one.root), str(two.root), "--json"]) == 3
        assert json.loads(capsys.readouterr().out)["forgotten"] == [GONE]
    monkeypatch.setenv("BACKPROPAGATE_STORE", str(two.root))
    data_forget([GONE[:12]], settings(), plan=False)
    assert copy(str(one.root), str(two.root), config).forgotten == []


def test_forgotten_rows_are_not_copied_back(config: Settings, one: Store, two: Store) -> None:
    """A source that has them still, in whichever set, is refused before anything changes, with the row."""
    forget([GONE], ["support@1"], two)
    nano.commit_rows(one, ROWS)
    with pytest.raises(InputValidationFailed, match=GONE):
        copy(str(one.root), str(two.root), config)
    assert two.digests() == set() and known(one) == {}
    with pytest.raises(InputValidationFailed, match=GONE):
        sync(str(one.root), str(two.root), config)


def test_no_sync_brings_back_what_one_side_has_forgotten(config: Settings, one: Store, two: Store) -> None:
    """The way there is done, and the way back refused, however often."""
    forget([GONE], [], one)
    nano.commit_rows(one, ROWS[3:])
    nano.commit_rows(two, ROWS)
    for _ in range(2):
        with pytest.raises(InputValidationFailed, match=f"{two.root} still has 1 forgotten rows: {GONE}"):
            sync(str(one.root), str(two.root), config)
    assert len(one.digests()) == 1 and len(two.digests()) == 2


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server() as server:
        for name, value in environment(server).items():
            monkeypatch.setenv(name, value)
        yield f"s3://{BUCKET}/{uuid.uuid4().hex}"


def test_a_bucket_knows_it_too(config: Settings, one: Store, bucket: str, tmp_path: Path) -> None:
    """What another machine has sent there is looked at; nothing but rows comes here for that."""
    sharing.begin(tmp_path / "elsewhere", bucket)
    elsewhere = Store(tmp_path / "elsewhere")
    rows = nano.commit_rows(elsewhere, ROWS)
    with elsewhere.begin("gguf") as directory:
        (directory / "model.gguf").write_bytes(b"GGUF")
        other = elsewhere.commit(directory, GGUFRef, record={}, quantization="f16", bytes=4).digest
    forget([GONE], [], one)
    done = copy(str(one.root), bucket, config)
    here = config.model_copy(update={"store": bucket}).store_path
    assert done.forgotten == [GONE] and known(Store(here)) == {GONE: []}
    there = {path.name for path in (here / "artifacts").glob("*")}
    assert rows.digest in there and other not in there
    elsewhere.shared.look()  # type: ignore[union-attr]
    assert known(elsewhere) == {GONE: []}
