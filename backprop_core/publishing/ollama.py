"""Registers GGUF files as Ollama models over its HTTP API, and checks that each model answers a prompt.

API: docs/api.md of the Ollama repository.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import httpx
from pydantic import Field

from backprop_core.errors import NameTaken, OllamaRegistrationFailed, OllamaUnreachable
from backprop_core.runtime.progress import OnProgress
from backprop_core.runtime.redaction import excerpt
from backprop_core.runtime.url_guard import client
from backprop_core.schema.records import Record
from backprop_core.schema.refs import GGUFRef
from backprop_core.store.artifacts import Store, file_digest, write_atomic
from backprop_core.store.cache_keys import digest_of

OLDEST = (0, 17, 1)  # older versions have a memory safety bug in `create`
PORT = 11434
CHUNK = 2**20  # bytes
LONGEST_ANSWER = 64  # maximum tokens of a canary answer
LARGEST_CONTEXT = 8192  # maximum default context in tokens, as Ollama reserves memory for it


class Serving(Record):
    """Settings of a served model. The chat template is only in the GGUF file."""

    stop: list[str]
    num_ctx: int
    system: str | None
    license: str | None


def serving(file: Path, *, num_ctx: int | None, system: str | None, license: str | None) -> Serving:
    """Read stop token and context length from the GGUF file; `num_ctx` limits the latter."""
    import gguf

    fields = gguf.GGUFReader(file)
    stop = int(fields.get_field("tokenizer.ggml.eos_token_id").contents())
    architecture = fields.get_field("general.architecture").contents()
    trained = int(fields.get_field(f"{architecture}.context_length").contents())
    return Serving(
        stop=[fields.get_field("tokenizer.ggml.tokens").contents(stop)],
        num_ctx=min(num_ctx or LARGEST_CONTEXT, trained),
        system=system,
        license=license,
    )


def modelfile(file_name: str, serving: Serving) -> str:
    """A Modelfile, for `ollama create NAME -f Modelfile` in the GGUF file's directory."""
    lines = [f"FROM ./{file_name}", f"PARAMETER num_ctx {serving.num_ctx}"]
    lines += [f"PARAMETER stop {quoted(token)}" for token in serving.stop]
    lines += [f"SYSTEM {quoted(serving.system)}"] if serving.system else []
    lines += [f"LICENSE {quoted(serving.license)}"] if serving.license else []
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """Quote a string for a Modelfile, which cannot express three quotation marks; specs reject them."""
    assert '"""' not in text
    return f'"""{text}"""' if set(text) & {'"', "\n"} else f'"{text}"'


def address() -> str:
    """The URL from OLLAMA_HOST, parsed like Ollama's own client: an invalid port becomes the default."""
    given = os.environ.get("OLLAMA_HOST", "").strip().strip("\"'")
    scheme, _, rest = given.rpartition("://")
    scheme = scheme.lower() or "http"
    place, _, path = rest.partition("/")
    place = place.rpartition("@")[2]
    usual = {"https": 443}.get(scheme, 80) if "://" in given else PORT
    host, port = (place, "") if place.count(":") > 1 and "]" not in place else split_port(place)
    host = host.strip("[]").lower()
    host = "127.0.0.1" if host in ("", "0.0.0.0", "localhost") else host
    number = int(port) if port.isdecimal() and int(port) < 2**16 else usual
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{number}/{path}".rstrip("/")


def split_port(place: str) -> tuple[str, str]:
    """Split `host:port`; the port may be empty."""
    found = re.fullmatch(r"(.*?)(?::([^\]:]*))?", place)
    assert found
    return found[1], found[2] or ""


class Ollama:
    """An Ollama server. Every call raises OllamaUnreachable, OllamaRegistrationFailed or AddressForbidden.

    `patience` is the read timeout in seconds.
    """

    def __init__(self, url: str | None = None, *, patience: float = 600) -> None:
        self.url = url or address()
        timeout = httpx.Timeout(patience, connect=5)
        no_reuse = httpx.Limits(
            max_keepalive_connections=0
        )  # it may close a connection that was idle during a long upload
        self._http = client(base_url=self.url, timeout=timeout, limits=no_reuse, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def check(self) -> None:
        """Check that the server responds and is not too old."""
        version = str(self._json("GET", "/api/version").get("version", ""))
        numbers = [int(number) for number in version.partition("-")[0].split(".") if number.isdecimal()]
        if tuple(numbers) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise OllamaRegistrationFailed(
                f"Ollama at {self.url} has version {version or 'unknown'}", hint=f"update it to {oldest} or later"
            )

    def models(self) -> dict[str, str]:
        """Digests of the server's models, by name and tag."""
        return {one["name"]: one["digest"] for one in self._json("GET", "/api/tags").get("models") or []}

    def weights(self, model: str) -> set[str]:
        """sha256 of a model's files, as reported by the server."""
        shown = self._json("POST", "/api/show", json={"model": model})
        return set(re.findall(r"sha256[-:]([0-9a-f]{64})", str(shown.get("modelfile", ""))))

    def create(self, model: str, file: Path, serving: Serving, on_progress: OnProgress) -> None:
        """Upload the file if needed, and create or replace the model `NAME:TAG`."""
        digest = f"sha256:{file_digest(file)}"
        self._upload(file, digest, on_progress)
        request = {
            "model": model,
            "files": {"model.gguf": digest},
            "parameters": {"stop": serving.stop, "num_ctx": serving.num_ctx},
            "stream": True,
            **({"system": serving.system} if serving.system else {}),
            **({"license": serving.license} if serving.license else {}),
        }
        last = ""
        with self._answer("POST", "/api/create", json=request) as answer:
            for line in answer.iter_lines():
                last = self._status(model, line, on_progress)
        if last != "success":
            raise self._failed(f"did not create {model}: last status {last or 'none'!r}")

    def copy(self, source: str, target: str) -> None:
        """Copy a model to another name, replacing what had it."""
        self._json("POST", "/api/copy", json={"source": source, "destination": target})

    def remove(self, model: str) -> None:
        """Remove a model if it exists."""
        if model in self.models():
            self._json("DELETE", "/api/delete", json={"model": model})

    def chat(self, model: str, prompt: str) -> str:
        """The model's answer to one prompt, deterministic. Raises OllamaRegistrationFailed if it is empty."""
        options = {"temperature": 0, "seed": 0, "num_predict": LONGEST_ANSWER}
        messages = [{"role": "user", "content": prompt}]
        request = {"model": model, "messages": messages, "stream": False, "options": options}
        answer = str(self._json("POST", "/api/chat", json=request).get("message", {}).get("content", ""))
        if not answer.strip():
            raise self._failed(f"loads {model}, but the model's answer to {prompt[:60]!r} is empty")
        return answer

    def _upload(self, file: Path, digest: str, on_progress: OnProgress) -> None:
        if self._has(digest):
            return
        size = file.stat().st_size

        def chunks() -> Iterator[bytes]:
            with file.open("rb") as data:
                while chunk := data.read(CHUNK):
                    yield chunk
                    on_progress(data.tell(), size)

        headers = {"Content-Length": str(size)}
        with self._answer("POST", f"/api/blobs/{digest}", content=chunks(), headers=headers) as answer:
            answer.read()

    def _has(self, digest: str) -> bool:
        try:
            with self._answer("HEAD", f"/api/blobs/{digest}"):
                return True
        except NotThere:
            return False

    def _status(self, model: str, line: str, on_progress: OnProgress) -> str:
        """Parse one line of a stream; errors come with status 200."""
        if not line.strip():
            return ""
        try:
            event = json.loads(line)
        except ValueError:
            raise self._failed(f"did not create {model}: it returned {line[:80]!r}") from None
        if error := event.get("error"):
            raise self._failed(f"did not create {model}: {error}")
        if event.get("total"):
            on_progress(event.get("completed", 0), event["total"])
        return str(event.get("status", ""))

    def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        with self._answer(method, path, **request) as answer:
            text = answer.read()
        try:
            value = json.loads(text or b"{}")
        except ValueError:
            value = None
        if not isinstance(value, dict) or value.get("error"):
            raise self._failed(f"returned {text[:80]!r} for {path}")
        return value

    @contextmanager
    def _answer(self, method: str, path: str, **request: Any) -> Iterator[httpx.Response]:
        try:
            with self._http.stream(method, path, **request) as answer:
                if answer.is_error:
                    answer.read()
                    raise self._refusal(path, answer)
                yield answer
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise OllamaUnreachable(
                f"Ollama at {self.url} does not respond ({type(error).__name__} at {path})",
                hint="start it with `ollama serve`, or set OLLAMA_HOST; finished work is kept",
            ) from error

    def _refusal(self, path: str, answer: httpx.Response) -> OllamaRegistrationFailed:
        if answer.status_code == 404:
            return NotThere(f"Ollama at {self.url} has nothing at {path}", hint="run it again")
        return self._failed(f"returned status {answer.status_code} for {path}: {excerpt(answer.text, 200)}")

    def _failed(self, what: str) -> OllamaRegistrationFailed:
        return OllamaRegistrationFailed(
            f"Ollama at {self.url} {what}",
            hint="check Ollama's log and free disk space, then run it again; exported files are kept",
        )


class NotThere(OllamaRegistrationFailed):
    """The server returned 404."""


class Claim(Record):
    """Models that this store created under one name on one Ollama server."""

    format: Literal[1] = 1
    server: str
    making: list[str] = Field(default_factory=list, description="Models being created, by name and tag.")
    made: list[str] = Field(default_factory=list, description="Ollama's digests of created models.")

    def has(self, model: str, digest: str) -> bool:
        """Whether this store created this model."""
        return digest in self.made or model in self.making


def claim_path(name: str, server: str, store: Store) -> Path:
    return store.layout.ollama_claim(digest_of(server)[:16], name)


def claimed(name: str, ollama: Ollama, store: Store) -> Claim:
    """The models that this store created under a name on this server."""
    path = claim_path(name, ollama.url, store)
    return Claim.model_validate_json(path.read_bytes()) if path.is_file() else Claim(server=ollama.url)


def claim(name: str, ollama: Ollama, store: Store) -> None:
    """Raise NameTaken if the server has a model `NAME:…` that this store did not create: not recorded, other files.

    Ollama's names are case-insensitive.
    """
    known = claimed(name, ollama, store)
    there = {model: digest for model, digest in ollama.models().items() if model.partition(":")[0].lower() == name}
    unknown = sorted(model for model, digest in there.items() if not known.has(model, digest))
    files = store_files(store) if unknown else set()
    if taken := [model for model in unknown if not ollama.weights(model) & files]:
        raise NameTaken(
            f"Ollama at {ollama.url} has {taken[0]}, which was not created by this store",
            hint=f"choose another name, or remove it with: ollama rm {taken[0]}",
        )
    keep(known, name, store, making=set(), made={*known.made, *there.values()})


def store_files(store: Store) -> set[str]:
    """sha256 of every GGUF file in the store, from the manifests."""
    manifests = (json.loads(path.read_bytes()) for path in store.layout.manifests())
    return {sha256 for one in manifests if one["kind"] == GGUFRef.artifact for _, _, sha256 in one["files"]}


def keep(known: Claim, name: str, store: Store, *, making: set[str], made: set[str]) -> None:
    changed = known.model_copy(update={"making": sorted(making), "made": sorted(made)})
    write_atomic(claim_path(name, known.server, store), changed.model_dump_json())


def make(model: str, file: Path, serving: Serving, on_progress: OnProgress, *, ollama: Ollama, store: Store) -> None:
    """Create a model; records it before as this store's, and its digest afterwards."""
    name = model.partition(":")[0]
    known = claimed(name, ollama, store)
    keep(known, name, store, making={*known.making, model}, made={*known.made})
    ollama.create(model, file, serving, on_progress)
    digest = ollama.models().get(model)
    keep(known, name, store, making={*known.making}, made={*known.made, *([digest] if digest else [])})


def remove_own(model: str, ollama: Ollama, store: Store) -> None:
    """Remove a model that this store created. Raises NameTaken if it created none of this name on this server."""
    name = model.partition(":")[0]
    if not claim_path(name, ollama.url, store).is_file():
        raise NameTaken(
            f"this store created no {name} at {ollama.url}", hint="set OLLAMA_HOST to the server it was released to"
        )
    digest = ollama.models().get(model)
    if digest and claimed(name, ollama, store).has(model, digest):
        ollama.remove(model)


def prove(
    ollama: Ollama, model: str, file: Path, serving: Serving, prompt: str, on_progress: OnProgress, store: Store
) -> str:
    """Create the model and return its answer to `prompt`; removes the model if it does not answer."""
    make(model, file, serving, on_progress, ollama=ollama, store=store)
    try:
        return ollama.chat(model, prompt)
    except OllamaRegistrationFailed:
        ollama.remove(model)
        raise


def register(
    ollama: Ollama, name: str, file: Path, serving: Serving, prompt: str, on_progress: OnProgress, store: Store
) -> str:
    """Register the file as `NAME:latest`; returns its answer to `prompt`. Keeps the old model until the new answers."""
    unproven = f"{name}:unproven"
    answer = prove(ollama, unproven, file, serving, prompt, on_progress, store)
    ollama.copy(unproven, f"{name}:latest")
    ollama.remove(unproven)
    return answer
