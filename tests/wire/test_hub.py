"""huggingface_hub's own client against a server over real HTTP, which checks digests and fails on command."""

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from backprop_core.errors import AuthRequired, ConfigInvalid, HubUnreachable, HubUploadFailed, NameTaken
from backprop_core.publishing.hub import RECORD, File, Hub, check_repo_id
from tests.wire.hub_server import TOKEN, HubServer

REPO = "team/support"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """With a Hub to be reached, unlike all others here."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with HubServer().running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def files(tmp_path: Path) -> dict[str, File]:
    (tmp_path / "a").write_bytes(b"A" * 300_000)
    (tmp_path / "g").write_bytes(b"GGUF" * 100_000)
    return {
        "adapter_model.safetensors": File(path=str(tmp_path / "a")),
        "support-q8_0.gguf": File(path=str(tmp_path / "g")),
        "README.md": File(text="---\ntags:\n- lora\n---\n# support\n"),
        RECORD: File(text="{}"),
    }


def push(hub: Hub, files: dict[str, File]) -> str:
    return hub.push(REPO, files, message="version 1", parent=hub.head(REPO, private=True))


def content(server: HubServer) -> dict[str, bytes]:
    return {name: server.read(REPO, name) for name in server.repos[REPO].files if name != ".gitattributes"}


def as_bytes(files: dict[str, File]) -> dict[str, bytes]:
    return {name: one.text.encode() if one.text else Path(one.path).read_bytes() for name, one in files.items()}


def test_all_files_in_one_commit_and_never_twice(server: HubServer, files: dict[str, File]) -> None:
    """One private repository, one commit, every byte as it was; the same again uploads and commits nothing."""
    hub = Hub(TOKEN)
    commit = push(hub, files)
    repo = server.repos[REPO]
    assert repo.private and repo.head == commit and len(repo.commits) == 2
    assert content(server) == as_bytes(files)
    uploads = server.count("PUT /lfs/")
    assert push(hub, files) == commit
    assert (len(repo.commits), server.count("PUT /lfs/")) == (2, uploads)


def test_another_version_leaves_no_file_of_the_old(server: HubServer, files: dict[str, File]) -> None:
    """A GGUF file that is not made any more goes with the same commit; an earlier state comes back without upload."""
    hub = Hub(TOKEN)
    first = push(hub, files)
    new: dict[str, File] = {**files, "adapter_model.safetensors": File(text="B" * 1000), RECORD: File(text='{"v": 2}')}
    new["support-f16.gguf"] = new.pop("support-q8_0.gguf")
    push(hub, new)
    assert content(server) == as_bytes(new)
    uploads = server.count("PUT /lfs/")
    hub.restore(REPO, first)
    assert content(server) == as_bytes(files) and server.count("PUT /lfs/") == uploads
    empty = server.repos[REPO].commits[0][0]
    hub.restore(REPO, empty)
    assert content(server) == {}


FAULTS = [
    ("POST /api/models/team/support/commit", "500", HubUnreachable),
    ("POST /api/models/team/support/commit", "drop", HubUnreachable),
    ("POST /api/models/team/support/commit", "401", AuthRequired),
    ("POST /api/models/team/support/commit", "413", HubUploadFailed),
    ("PUT /lfs/", "413", HubUploadFailed),
    ("GET /api/models/team/support", "403", AuthRequired),
]


@pytest.mark.parametrize(("request_", "how", "error"), FAULTS)
def test_a_failure_leaves_the_repository(
    server: HubServer, files: dict[str, File], request_: str, how: str, error: type
) -> None:
    """Whatever fails has a code and nothing of it shows; the same call then works, and sends no large file twice."""
    hub = Hub(TOKEN)
    push(hub, {**files, RECORD: File(text="before")})
    before = content(server)
    new = {**files, "adapter_model.safetensors": File(text="B" * 1000)}
    server.fail(request_, how)
    with pytest.raises(error):
        push(hub, new)
    assert content(server) == before
    push(hub, new)
    assert content(server) == as_bytes(new) and server.count("PUT /lfs/") <= 4


def test_an_upload_that_is_cut_goes_on(server: HubServer, files: dict[str, File]) -> None:
    """A connection that breaks in the middle of a large file is the client's own business."""
    server.fail("PUT /lfs/", "drop")
    push(Hub(TOKEN), files)
    assert content(server) == as_bytes(files)


def test_who_may_not_write_is_told(server: HubServer, files: dict[str, File]) -> None:
    """A revoked token is INPUT_AUTH_REQUIRED, without the token in the message."""
    with pytest.raises(AuthRequired) as caught:
        push(Hub("hf_" + "y" * 20), files)
    assert "yyy" not in caught.value.message + caught.value.hint and not server.repos


def test_a_repository_of_others_is_refused(server: HubServer, files: dict[str, File]) -> None:
    """What was not made here is not overwritten."""
    hub = Hub(TOKEN)
    hub.head(REPO, private=True)
    server.repos[REPO].add({"model.safetensors": b"theirs"})
    with pytest.raises(NameTaken):
        push(hub, files)
    assert content(server) == {"model.safetensors": b"theirs"}


@pytest.mark.parametrize("repo", ["support", "a/b/c", "../x/y", "a/b--c", "a/b.git", "a/" + "b" * 99, "a b/c", ""])
def test_what_is_no_repository(repo: str) -> None:
    """Refused by its form, before anything is sent."""
    with pytest.raises(ConfigInvalid, match="invalid repository id"):
        check_repo_id(repo)
    check_repo_id("team/support-v2.1")


def test_the_files_can_be_read_back(server: HubServer, files: dict[str, File], tmp_path: Path) -> None:
    """The client that people use gets what was pushed."""
    push(Hub(TOKEN), {**files, RECORD: File(text=json.dumps({"line": "support"}))})
    api = huggingface_hub.HfApi(endpoint=server.url, token=TOKEN)
    assert set(api.list_repo_files(REPO)) - {".gitattributes"} == files.keys()
