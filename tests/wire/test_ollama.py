"""The client of Ollama against a server over real HTTP, which checks digests and fails on command."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from backprop_core.errors import NameTaken, OllamaRegistrationFailed, OllamaUnreachable
from backprop_core.publishing.ollama import Ollama, Serving, address, claim, modelfile, register, remove_own, serving
from backprop_core.schema.refs import GGUFRef
from backprop_core.store.artifacts import Store, write_atomic
from tests.wire.ollama_server import OllamaServer
from tests.wire.prefect_server import free_port

SERVING = Serving(stop=["<|im_end|>"], num_ctx=128, system="Be brief.", license="MIT")


def write_gguf(path: Path, *, weight: int = 1, tokens: tuple[str, ...] = ("a", "<|im_end|>")) -> Path:
    """A GGUF file with a header like ours and one tensor."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_token_list(list(tokens))
    writer.add_eos_token_id(1)
    writer.add_tensor("weight", np.full(300_000, weight, dtype=np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "model.gguf")


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer().running() as server:
        yield server


@pytest.fixture
def ollama(server: OllamaServer) -> Iterator[Ollama]:
    with Ollama(server.url, patience=1) as ollama:
        yield ollama


def registered(ollama: Ollama, file: Path) -> str:
    store = Store(file.parent / "store")
    claim("support", ollama, store)
    return register(ollama, "support", file, SERVING, "Hello?", lambda done, total: None, store)


def test_a_file_becomes_a_model_that_answers(server: OllamaServer, ollama: Ollama, file: Path) -> None:
    """Whole upload under its own digest, stop tokens, context, system prompt and licence; no template; one tag is left.

    Progress goes up to the file's size.
    """
    seen: list[tuple[int, int]] = []
    store = Store(file.parent / "store")
    answer = register(ollama, "support", file, SERVING, "Hello?", lambda done, total: seen.append((done, total)), store)
    digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert server.blobs == {digest: file.read_bytes()} and answer == "heard: Hello?"
    assert server.models == {
        "support:latest": {
            "files": {"model.gguf": digest},
            "parameters": {"stop": ["<|im_end|>"], "num_ctx": 128},
            "system": "Be brief.",
            "license": "MIT",
            "stream": True,
        }
    }
    assert seen == sorted(seen) and seen[-1] == (file.stat().st_size,) * 2


def test_what_is_there_is_not_uploaded_again(server: OllamaServer, ollama: Ollama, file: Path) -> None:
    """The second time one question settles the upload."""
    registered(ollama, file)
    registered(ollama, file)
    assert (server.count("HEAD /api/blobs"), server.count("POST /api/blobs")) == (2, 1)


FAULTS = [
    ("POST /api/blobs", "drop", OllamaUnreachable, "does not respond"),
    ("POST /api/blobs", "500", OllamaRegistrationFailed, "500"),
    ("POST /api/blobs", "401", OllamaRegistrationFailed, "401"),
    ("POST /api/blobs", "413", OllamaRegistrationFailed, "413"),
    ("POST /api/create", "drop", OllamaUnreachable, "does not respond"),
    ("POST /api/create", "slow", OllamaUnreachable, "ReadTimeout"),
    ("POST /api/create", "error", OllamaRegistrationFailed, "unsupported architecture"),
    ("POST /api/create", "full", OllamaRegistrationFailed, "no space left"),
    ("POST /api/create", "unfinished", OllamaRegistrationFailed, "last status 'writing manifest'"),
    ("POST /api/chat", "mute", OllamaRegistrationFailed, "is empty"),
    ("POST /api/chat", "500", OllamaRegistrationFailed, "500"),
    ("POST /api/copy", "500", OllamaRegistrationFailed, "500"),
]


@pytest.mark.parametrize(("request_", "how", "error", "named"), FAULTS)
def test_a_failure_loses_nothing(
    server: OllamaServer, ollama: Ollama, file: Path, tmp_path: Path, request_: str, how: str, error: type, named: str
) -> None:
    """Whatever fails has a code, can be tried again, and leaves the model that was live; then the same call works."""
    registered(ollama, file)
    live = server.models["support:latest"]
    new = write_gguf(tmp_path / "new.gguf", weight=2)
    server.fail(request_, how)
    with pytest.raises(error, match=named) as caught:
        registered(ollama, new)
    assert caught.value.retryable and server.models["support:latest"] == live
    registered(ollama, new)
    assert server.models.keys() == {"support:latest"} and server.models["support:latest"] != live


def test_not_there_or_too_old(file: Path) -> None:
    """No server, and one that reads beyond its memory, are told apart, both with what to do."""
    with Ollama(f"http://127.0.0.1:{free_port()}") as ollama, pytest.raises(OllamaUnreachable) as caught:
        ollama.check()
    assert "ollama serve" in caught.value.hint
    too_old = pytest.raises(OllamaRegistrationFailed, match=r"has version 0\.16\.9")
    with OllamaServer("0.16.9").running() as server, Ollama(server.url) as ollama, too_old:
        ollama.check()
    with OllamaServer("0.18.0-rc1").running() as server, Ollama(server.url) as ollama:
        ollama.check()


def test_a_name_of_others_is_refused(server: OllamaServer, ollama: Ollama, file: Path) -> None:
    """What this store has not made is never overwritten, a name that it has used before included."""
    store = Store(file.parent / "store")
    server.models["llama3:8b"] = {"files": {}}
    with pytest.raises(NameTaken, match="llama3:8b"):
        claim("llama3", ollama, store)
    registered(ollama, file)
    registered(ollama, file)
    server.models["support:latest"] = {"system": "made by hand meanwhile", "files": {}}
    with pytest.raises(NameTaken, match="support:latest"):
        claim("support", ollama, store)


def test_a_name_is_ours_on_one_server_only(server: OllamaServer, ollama: Ollama, file: Path) -> None:
    """With another OLLAMA_HOST a model of the same name is somebody else's; what was made on either stays ours."""
    store = Store(file.parent / "store")
    registered(ollama, file)
    with OllamaServer().running() as second, Ollama(second.url) as other:
        second.models["support:latest"] = theirs = {"system": "of another team", "files": {}}
        with pytest.raises(NameTaken, match="support:latest"):
            claim("support", other, store)
        assert second.models == {"support:latest": theirs}
        second.models.clear()
        registered(other, file)
        claim("support", other, store)
    claim("support", ollama, store)


def test_a_name_in_other_letters_is_taken(server: OllamaServer, ollama: Ollama, file: Path) -> None:
    """Ollama takes Support and support for one name, so a model of others under either is refused."""
    server.models["Support:latest"] = {"system": "of another team", "files": {}}
    with pytest.raises(NameTaken, match="Support:latest"):
        claim("support", ollama, Store(file.parent / "store"))


def test_only_what_was_made_here_is_removed(server: OllamaServer, ollama: Ollama, file: Path) -> None:
    """A prune removes a tag where this store made it: not on another server, and not what was put in its place."""
    store = Store(file.parent / "store")
    registered(ollama, file)
    with OllamaServer().running() as second, Ollama(second.url) as other:
        second.models["support:latest"] = {"system": "of another team", "files": {}}
        with pytest.raises(NameTaken):
            remove_own("support:latest", other, store)
        assert second.models
    mine = server.models["support:latest"]
    server.models["support:latest"] = {"system": "made by hand meanwhile", "files": {}}
    remove_own("support:latest", ollama, store)
    assert server.models
    server.models["support:latest"] = mine
    remove_own("support:latest", ollama, store)
    assert not server.models


def committed(file: Path, store: Store) -> Path:
    """The file as an artifact of the store."""
    with store.begin("gguf") as directory:
        shutil.copyfile(file, directory / "model.gguf")
        return store.local(store.commit(directory, GGUFRef, record={}, quantization="f16", bytes=1)) / "model.gguf"


def test_a_claim_from_before_counts_for_what_is_ours(server: OllamaServer, ollama: Ollama, file: Path) -> None:
    """A note that names no server proves nothing; a model of one of the store's files is ours, by its digest."""
    store = Store(file.parent / "old")
    write_atomic(store.root / "ollama" / "support", "")
    registered(ollama, file)  # as another store does, with a file that this one has not
    with pytest.raises(NameTaken):
        claim("support", ollama, store)
    committed(file, store)
    claim("support", ollama, store)


def test_a_kill_after_create_leaves_no_foreign_model(server: OllamaServer, ollama: Ollama, file: Path) -> None:
    """What was noted as begun is ours, and only until its digest is known."""
    store = Store(file.parent / "store")
    server.fail("GET /api/tags", "500")
    with pytest.raises(OllamaRegistrationFailed):
        register(ollama, "support", file, SERVING, "Hello?", lambda done, total: None, store)
    assert server.models.keys() == {"support:unproven"}
    claim("support", ollama, store)
    server.models["support:unproven"] = {"system": "another", "files": {}}
    with pytest.raises(NameTaken):
        claim("support", ollama, store)


def test_serving_is_read_from_the_file(file: Path) -> None:
    """The stop token is the file's own, the context no more than it was trained for."""
    assert serving(file, num_ctx=None, system=None, license=None) == Serving(
        stop=["<|im_end|>"], num_ctx=512, system=None, license=None
    )
    assert serving(file, num_ctx=64, system="x", license=None).num_ctx == 64


def test_a_modelfile_says_the_same() -> None:
    """Line breaks and quotation marks stay inside their string."""
    text = modelfile("a.gguf", SERVING.model_copy(update={"system": 'Say "hi".\nFROM evil'}))
    assert text.splitlines()[:3] == ["FROM ./a.gguf", "PARAMETER num_ctx 128", 'PARAMETER stop "<|im_end|>"']
    assert 'SYSTEM """Say "hi".\nFROM evil"""\nLICENSE "MIT"\n' in text


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("localhost", "http://127.0.0.1:11434"),
        ("gpu:9", "http://gpu:9"),
        ("https://ollama.example", "https://ollama.example:443"),
        ("[::1]:5", "http://[::1]:5"),
        ("::1", "http://[::1]:11434"),
        ("h:99999", "http://h:11434"),
        ("h:abc", "http://h:11434"),
        ("http://user:pw@h:1", "http://h:1"),
        ("'h'", "http://h:11434"),
        ("https://h/team-a/", "https://h:443/team-a"),
    ],
)
def test_address_is_what_ollama_reads(monkeypatch: pytest.MonkeyPatch, given: str, meant: str) -> None:
    """OLLAMA_HOST with and without scheme, port and path; a port that is none is the usual one."""
    monkeypatch.setenv("OLLAMA_HOST", given)
    assert address() == meant
