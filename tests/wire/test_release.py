"""A release is one transaction over store, Ollama and Hub: whatever fails or is killed, all of it is done or none."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import pytest

from backprop_core.errors import BackpropError, HubUnreachable
from backprop_core.lines.versions import Lines
from backprop_core.publishing.hub import RECORD, File, Hub
from backprop_core.publishing.ollama import Ollama, Serving
from backprop_core.publishing.release_transaction import Release, Services, recover, release, released
from backprop_core.schema.refs import GGUFRef
from backprop_core.schema.specs import ExportSpec, PublishSpec
from backprop_core.store.artifacts import Store
from tests.backprop_core.lines.test_versions import version
from tests.wire.hub_server import TOKEN, HubServer
from tests.wire.ollama_server import OllamaServer
from tests.wire.test_ollama import write_gguf

LINE, REPO = "support", "team/support"
PUBLISH = PublishSpec(ollama=LINE, repo=REPO)
EVERY = 1 if "BACKPROP_FAULTS" in os.environ else 5  # of the places where the process can be killed


class World(NamedTuple):
    """A line of two versions, and where they go."""

    store: Store
    ollama: OllamaServer
    hub: HubServer
    services: Services

    def state(self) -> Any:
        """Everything that a user can see: the champion, the models, the repository, the records."""
        lines = Lines(self.store)
        repo = self.hub.repos.get(REPO)
        return {
            "champion": lines.champion(LINE),
            "versions": lines.versions(LINE),
            "models": {name: model["files"] for name, model in sorted(self.ollama.models.items())},
            "repository": {n: self.hub.read(REPO, n) for n in sorted(repo.files) if n[0] != "."} if repo else {},
            "records": [bool(released(LINE, number, self.store)) for number in (1, 2)],
            "unfinished": [path.name for path in (self.store.layout.lines / LINE).glob("*.json")],
        }

    def release(self, number: int, publish: PublishSpec = PUBLISH) -> Release:
        return release(self.wanted(number, publish), store=self.store, services=self.services)

    def wanted(self, number: int, publish: PublishSpec = PUBLISH) -> Release:
        """Version `number`, whose GGUF file's one weight is that number."""
        with self.store.begin("gguf") as directory:
            write_gguf(directory / "model.gguf", weight=number)
            file = self.store.commit(directory, GGUFRef, record={}, quantization="f32", bytes=1)
        path = str(self.store.layout.artifact(file.digest) / "model.gguf")
        return Release(
            line=LINE,
            number=number,
            publish=publish,
            export=ExportSpec(quantizations=["f32"]),
            gguf=[file],
            serving=Serving(stop=["<|im_end|>"], num_ctx=128, system=None, license=None),
            prompt="Hello?",
            repository={RECORD: File(text=json.dumps({"version": number})), "model.gguf": File(path=path)},
        )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with OllamaServer().running() as ollama, HubServer().running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        store = Store(tmp_path / "store")
        for number in (1, 2):
            Lines(store).append(LINE, version(number), after=number - 1)
        services = Services(
            lambda url=None: Ollama(url or ollama.url, patience=2), lambda: Hub(TOKEN), lambda done, total: None
        )
        yield World(store, ollama, hub, services)


def test_all_of_it(world: World) -> None:
    """The tags vN and latest, the repository, the champion and a record with the commit; nothing else is left."""
    made = world.release(1)
    state = world.state()
    assert (state["champion"], state["records"], state["unfinished"]) == (1, [True, False], [])
    assert state["models"].keys() == {"support:v1", "support:latest"}
    assert state["models"]["support:v1"] == state["models"]["support:latest"]
    assert made.commit == world.hub.repos[REPO].head and made.answer == "heard: Hello?"
    assert released(LINE, 1, world.store) == made


def test_back_and_again(world: World) -> None:
    """An earlier version released again brings all of it back; the same release again changes and commits nothing."""
    world.release(1)
    first = world.state()
    world.release(2)
    assert world.state()["repository"] != first["repository"]
    world.release(1)
    after, commits = world.state(), len(world.hub.repos[REPO].commits)
    assert {**after, "records": 0, "models": 0} == {**first, "records": 0, "models": 0}
    assert after["models"].pop("support:v2") and after["models"] == first["models"]
    world.release(1)
    assert len(world.hub.repos[REPO].commits) == commits


STEPS = [
    ("POST /api/create", "full"),
    ("POST /api/chat", "mute"),
    ("POST /api/models/team/support/commit", "500"),
    ("POST /api/models/team/support/commit", "413"),
    ("POST /api/copy", "500"),
]


@pytest.mark.parametrize(("request_", "how"), STEPS)
def test_what_fails_is_undone(world: World, request_: str, how: str) -> None:
    """Whichever step fails: everything is as it was before, and the same call then works."""
    world.release(1)
    before = world.state()
    (world.hub if "models" in request_ else world.ollama).fail(request_, how)
    with pytest.raises(BackpropError):
        world.release(2)
    assert world.state() == before
    world.release(2)
    assert world.state()["champion"] == 2 and world.state()["unfinished"] == []


def test_a_first_release_is_undone_to_nothing(world: World) -> None:
    """Nothing was live, and nothing is: no tag, no champion, an empty repository."""
    before = world.state()
    world.ollama.fail("POST /api/copy", "500")
    with pytest.raises(BackpropError):
        world.release(1)
    assert world.state() == before


def test_the_last_step_fails_and_undoing_too(world: World) -> None:
    """With Ollama gone in the middle of it all, the journal says so; the next one to come undoes the rest."""
    world.release(1)
    before = world.state()
    world.ollama.fail("POST /api/copy", "500")
    world.ollama.fail("GET /api/tags", "drop", times=0)
    world.hub.fail("POST /api/models/team/support/paths-info", "401")
    with pytest.raises(BackpropError):
        world.release(2)
    assert world.state()["unfinished"] == ["transaction.json"]
    recover(LINE, store=world.store, services=world.services)
    assert world.state() == before


def killed_at(world: World, number: int, place: int) -> bool:
    """Release in a child that kills itself before its `place`-th rename or connection; whether it got that far."""
    child = os.fork()
    if child == 0:
        count = 0

        def audit(event: str, _: object) -> None:
            nonlocal count
            if event in ("os.rename", "socket.connect"):
                count += 1
                if count == place:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        world.release(number)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_killed_anywhere(world: World) -> None:
    """SIGKILL before any write or connection, then the same command: that version is everywhere, and nothing twice."""
    world.release(1)
    states = {2: (world.release(2), world.state())[1], 1: (world.release(1), world.state())[1]}
    place, kills = 1, 0
    while killed_at(world, number := 2 - kills % 2, place):
        world.release(number)
        assert world.state() == states[number]
        place, kills = place + EVERY, kills + 1
    assert world.state() == states[number] and place > 20
    commits = [files for _, files in world.hub.repos[REPO].commits]
    assert all(one != other for one, other in pairwise(commits)) and len(commits) == 4 + kills + 1


def test_killed_and_it_cannot_be_finished(world: World) -> None:
    """A release that was killed, around its commit, and cannot be finished is undone by whoever comes next."""
    world.release(1)
    before = world.state()
    assert killed_at(world, 2, 21)
    journal = json.loads(world.store.layout.line(LINE).transaction.read_text())
    assert "ollama version" in journal["done"] and "ollama latest" not in journal["done"]
    world.ollama.fail("POST /api/copy", "500")
    recover(LINE, store=world.store, services=world.services)
    assert world.state() == before


@pytest.mark.parametrize("fails", [False, True])
def test_killed_and_another_server_is_named(world: World, fails: bool) -> None:
    """What was begun on one Ollama is finished, or undone, on that one; models of the same name elsewhere stay."""
    world.release(1)
    before = world.state()
    assert killed_at(world, 2, 21)
    with OllamaServer().running() as second:
        second.models = {f"support:{tag}": {"system": "theirs", "files": {}} for tag in ("latest", "previous", "v2")}
        theirs = dict(second.models)
        if fails:
            world.ollama.fail("POST /api/copy", "500")
        elsewhere = world.services._replace(ollama=lambda url=None: Ollama(url or second.url, patience=2))
        recover(LINE, store=world.store, services=elsewhere)
        assert second.models == theirs
    assert world.state() == before if fails else world.state()["champion"] == 2


def test_without_a_place_only_the_champion_moves(world: World) -> None:
    """A line that is published nowhere asks nobody."""
    world.release(1, PublishSpec())
    assert world.state()["champion"] == 1 and not world.ollama.requests + world.hub.requests


def test_a_revoked_token_stops_it_before_any_upload(world: World) -> None:
    """What can be refused is asked first."""
    bad = world.services._replace(hub=lambda: Hub("hf_" + "z" * 20))
    with pytest.raises(BackpropError) as caught:
        release(world.wanted(1), store=world.store, services=bad)
    assert caught.value.code == "INPUT_AUTH_REQUIRED"
    assert world.ollama.count("POST /api/blobs") == 0 and world.state()["unfinished"] == []
    world.hub.fail("GET /api/models/team/support", "503", times=9)
    with pytest.raises(HubUnreachable):
        world.release(1)
