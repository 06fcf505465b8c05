"""Two machines with homes of their own and one store in a bucket. Where BACKPROP_FAULTS is set, as in `make faults`."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from backprop_core.lines.versions import Lines
from backprop_core.store import sharing
from backprop_core.store.artifacts import Store
from backprop_core.store.object_store import Objects
from tests.faults.hold import Hold
from tests.faults.test_kill import BACKPROP, digests, environment
from tests.faults.test_two_homes import QUICK, command, done, kill, started, told
from tests.flows.test_retrain import batch
from tests.wire.prefect_server import wait_until
from tests.wire.s3_server import BUCKET, Cutter, s3_server
from tests.wire.s3_server import environment as account

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif("BACKPROP_FAULTS" not in os.environ, reason="takes minutes: make faults"),
]
CUT_EVERY = 7  # requests


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def wire(server: str) -> Iterator[Cutter]:
    """The way to the server, cut at every seventh request."""
    cutter = Cutter(server, every=CUT_EVERY)
    yield cutter
    print(f"requests {cutter.requests}, cuts {cutter.cuts}, bytes sent {cutter.sent}, received {cutter.received}")
    cutter.close()


def machine(world: Path, name: str, store: str, wire: Cutter) -> dict[str, str]:
    """The environment of a machine: its home, and the store."""
    return environment(world, name) | account(wire.address) | {"BACKPROPAGATE_STORE": f"s3://{BUCKET}/{store}"}


def look(tmp_path: Path, store: str, server: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store as a third machine sees it."""
    for name, value in account(server).items():
        monkeypatch.setenv(name, value)
    sharing.begin(tmp_path / "look", f"s3://{BUCKET}/{store}")
    return Store(tmp_path / "look")


def test_a_run_of_one_machine_is_resumed_on_the_other(world, tmp_path, wire, server, monkeypatch):
    """Killed on the first, it continues on the second from the first one's checkpoint, while connections break.

    The bits are those of an unbroken run in a directory; then the first machine has all of it from the cache.
    """
    hold = Hold(tmp_path / "hold", training=1)
    first, second = (machine(world, f"bucket-{name}", "kill", wire) for name in ("first", "second"))
    store = look(tmp_path, "kill", server, monkeypatch)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ExitStack() as killing:
        job = started(killing, command(world), env=first | hold.environment, **quiet)
        hold.reached(lambda: job.poll() is None)
        checkpoint = lambda: any(one.key.endswith("2/artifact.json") for one in objects(store).list("checkpoints"))  # noqa: E731
        wait_until(checkpoint, 300, "second checkpoint in the bucket")
    store.shared.sync()
    [run] = [path.name for path in store.layout.runs.iterdir()]
    resumed = subprocess.run([*BACKPROP, "resume", run, "--json"], env=second, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "from a checkpoint of another machine" in resumed.stderr
    result = json.loads(resumed.stdout)
    assert (result["run_id"], result["status"]) == (run, "finished")
    again = done(command(world), first)
    assert all(stage["cached"] for stage in again["stages"])
    unbroken = done(command(world), told(world, "bucket-third", "bucket-alone"))
    assert digests(result) == digests(again) == digests(unbroken)
    assert wire.cuts > 5
    assert objects(store).list("checkpoints") == []
    store.bring_all()
    assert list(store.check()) == []


def objects(store: Store) -> Objects:
    assert store.shared
    return store.shared.objects


def test_a_machine_dies_while_it_has_the_line(world, tmp_path, wire, server, monkeypatch):
    """The other takes the line over once the lease has run out, and makes version 1; the dead one's night is the next.

    Its run is resumed after that, and the champion has moved once for each version.
    """
    options = ["--model", str(world / "base"), "--steps", "6", "--set", "training.learning_rate=0.01", *QUICK]
    options += ["--set", "training.lora.rank=8", "--line", "shared"]
    hold = Hold(tmp_path / "hold", training=1)
    with ExitStack() as cleanup:
        first = retrain(cleanup, world, tmp_path, "bucket-fourth", 1, options, wire, hold.environment)
        hold.reached(lambda: first.poll() is None)
        second = retrain(cleanup, world, tmp_path, "bucket-fifth", 2, options, wire)
        said = tmp_path / "bucket-fifth.err"
        wait_until(lambda: "working on line shared" in said.read_text(), 1500, "second machine that waits", said)
        kill(first)
        taken = json.loads(second.communicate()[0])
    assert (taken["status"], taken["version"]) == ("finished", 1), said.read_text()
    third = retrain_done(world, tmp_path, "bucket-fourth", 1, options, wire)
    lines = Lines(look(tmp_path, "line", server, monkeypatch))
    parents = [lines.version("shared", number).parent for number in lines.versions("shared")]
    assert parents == ([None, 1] if third["status"] == "finished" else [None])
    assert lines.champion("shared") == lines.versions("shared")[-1]
    assert third["gate"]["against"] == "champion"


def retrain(
    cleanup: ExitStack,
    world: Path,
    place: Path,
    name: str,
    night: int,
    options: list[str],
    wire: Cutter,
    environment: Mapping[str, str] | None = None,
) -> "subprocess.Popen[str]":
    """A machine at work on the line; what it says to people is in a file."""
    command = [*BACKPROP, "retrain", "--data", batch(place, night), *options]
    env = machine(world, name, "line", wire) | (environment or {})
    with (place / f"{name}.err").open("w") as errors:
        return started(cleanup, command, env=env, stdout=subprocess.PIPE, stderr=errors)


def retrain_done(world: Path, place: Path, name: str, night: int, options: list[str], wire: Cutter) -> dict:
    """The same to its end."""
    with ExitStack() as cleanup:
        job = retrain(cleanup, world, place, name, night, options, wire)
        result = json.loads(job.communicate()[0])
        assert job.returncode in (0, 3), (place / f"{name}.err").read_text()
        return result
