"""Real flows on a store in a bucket: the same bits as in a directory, and a run that was taken over writes no more."""

import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from backprop_core.errors import LeaseLost
from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import RunResult
from backprop_core.store import remote_leases, sharing
from backprop_core.store.artifacts import Store
from flows.retrain import retrain
from flows.train import train
from tests.flows.test_retrain import OPEN, SHORT, batch
from tests.wire.s3_server import BUCKET, environment, s3_server

pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a store in a bucket of a server on this machine."""
    with s3_server() as server:
        for name, value in environment(server).items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield f"s3://{BUCKET}/{uuid.uuid4().hex}"


def digests(result: RunResult) -> list[str | None]:
    """What each stage made, and under which key."""
    assert result.status == "finished"
    return [name for stage in result.stages for name in (stage.stage, stage.key, stage.digest)]


def made(base: Path, place: Path) -> list[list[str | None]]:
    """What a `train` and the first night of a line make in the store that is set."""
    trained = train(batch(place, 1), model=str(base), training=SHORT)
    night = retrain("support", batch(place, 2), model=str(base), training=SHORT, gate=OPEN)
    assert Lines(Store(settings().store_path)).champion("support") == 1
    return [digests(trained), digests(night)]


def test_a_bucket_gives_the_digests_of_a_directory(
    base: Path, home: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One `train` and one `retrain` through S3: each stage's key and digest. The bucket has all but token caches."""
    plain = made(base, tmp_path)
    directory = Store(settings().store_path)
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("BACKPROPAGATE_STORE", bucket)
    assert made(base, tmp_path) == plain
    sharing.begin(tmp_path / "look", bucket)
    look = Store(tmp_path / "look")
    token_caches = {digest for digest in directory.digests() if directory.record(digest)["kind"] == "tokens"}
    assert look.digests() == directory.digests() - token_caches
    look.bring_all()
    assert list(look.check()) == [] and Lines(look).champion("support") == 1


def test_a_run_that_is_taken_over_ends_with_its_code(
    base: Path, home: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine takes the run over while it works: it ends with STATE_LEASE_LOST and writes no result."""
    monkeypatch.setenv("BACKPROPAGATE_STORE", bucket)
    monkeypatch.setattr(remote_leases, "LASTS", 0.5)
    monkeypatch.setattr(remote_leases, "SLACK", 0.0)
    monkeypatch.setattr(remote_leases, "RENEWED", 600.0)
    sharing.begin(tmp_path / "look", bucket)
    look, taken = Store(tmp_path / "look"), threading.Event()
    thread = threading.Thread(target=take_over, args=(look, taken), daemon=True)
    thread.start()
    long = SHORT.model_copy(update={"steps": 1000})  # so that it is taken over before it ends
    with pytest.raises(LeaseLost) as raised:
        train(batch(tmp_path, 1), model=str(base), training=long)
    thread.join()
    assert taken.is_set() and raised.value.code == "STATE_LEASE_LOST"
    look.shared.sync()  # type: ignore[union-attr]
    [run] = look.layout.begun()
    assert raised.value.run_id == run.run_id and not run.result.is_file()


def take_over(store: Store, taken: threading.Event) -> None:
    """Take the lease of the first run that begins."""
    while not (begun := [run.run_id for run in store.layout.begun()]):
        time.sleep(0.1)
        store.shared.sync()  # type: ignore[union-attr]
    store.lock(remote_leases.RUN + begun[0]).acquire(timeout=60)
    taken.set()
