"""A real llama-server in this process: what Ollama and llama.cpp's own server make of a GGUF file, over HTTP."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import xllamacpp


@contextmanager
def serving(file: Path) -> Iterator[httpx.Client]:
    """A client of a server that knows this file and nothing else of the model; keys and values in float32."""
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.cpuparams_batch.n_threads = 512, 1, 1, 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.warmup, params.fit_params, params.verbosity = False, False, -1
    server = xllamacpp.Server(params)
    with httpx.Client(base_url=server.listening_address, trust_env=False, timeout=60) as client:
        yield client


def ask(server: httpx.Client, path: str, prompt: str, **options: Any) -> Any:
    """What the server says of a conversation that begins with `prompt`."""
    response = server.post(path, json={"messages": [{"role": "user", "content": prompt}], **options})
    return response.raise_for_status().json()


def chat(server: httpx.Client, prompt: str, *, tokens: int) -> tuple[str, str]:
    """The most likely answer, and why it ended: `stop` or `length`."""
    [choice] = ask(server, "/v1/chat/completions", prompt, temperature=0, max_tokens=tokens)["choices"]
    return choice["message"]["content"], choice["finish_reason"]


def written(server: httpx.Client, prompt: str, *, tokens: int) -> list[int]:
    """The ids of the most likely answer, where they are no text that a chat could show."""
    rendered = ask(server, "/apply-template", prompt)["prompt"]
    wanted = {"prompt": rendered, "temperature": 0, "n_predict": tokens, "return_tokens": True}
    ids: list[int] = server.post("/completion", json=wanted).raise_for_status().json()["tokens"]
    return ids


def read_as(file: Path, messages: list[dict[str, str]], text: str) -> tuple[list[int], list[int]]:
    """The ids that the server computes for a conversation, and for a text that is to be continued."""

    def ids(prompt: str) -> list[int]:
        wanted = {"content": prompt, "add_special": True, "parse_special": True}  # as for every prompt
        found: list[int] = server.post("/tokenize", json=wanted).raise_for_status().json()["tokens"]
        return found

    with serving(file) as server:
        rendered = server.post("/apply-template", json={"messages": messages}).raise_for_status().json()["prompt"]
        return ids(rendered), ids(text)
