"""A stand-in for Ollama: blobs by digest, models by name and tag."""

import hashlib
import json
import re
from typing import Any

from tests.wire.stand_in import Request, Service

FULL = {"error": "write /blobs: no space left on device"}


class OllamaServer(Service):
    """Knows blobs and models. Of its own it can fail as: error (in the stream), full, unfinished, mute."""

    def __init__(self, version: str = "0.17.4") -> None:
        super().__init__()
        self.version = version
        self.blobs: dict[str, bytes] = {}
        self.models: dict[str, dict[str, Any]] = {}

    def answer(self, request: Request) -> None:
        match request.command, request.path:
            case "GET", "/api/version":
                request.reply(200, {"version": self.version})
            case "GET", "/api/tags":
                request.reply(200, {"models": [{"name": n, "digest": digest(m)} for n, m in self.models.items()]})
            case "HEAD", path if match := re.fullmatch(r"/api/blobs/(sha256:[0-9a-f]{64})", path):
                request.reply(200 if match[1] in self.blobs else 404)
            case "POST", path if match := re.fullmatch(r"/api/blobs/(sha256:[0-9a-f]{64})", path):
                self.take(request, match[1])
            case "POST", "/api/create":
                self.create(request, request.json())
            case "POST", "/api/copy":
                names = request.json()
                known = self.models.get(names["source"])
                if known:
                    self.models[names["destination"]] = known
                request.reply(200 if known else 404)
            case "DELETE", "/api/delete":
                request.reply(200 if self.remove(request.json()["model"]) else 404)
            case "POST", "/api/show":
                known = self.models.get(request.json()["model"])
                files = [blob.replace(":", "-") for blob in (known or {}).get("files", {}).values()]
                lines = "".join(f"FROM /usr/share/ollama/.ollama/models/blobs/{blob}\n" for blob in files)
                request.reply(200 if known is not None else 404, {"modelfile": f"# Modelfile\n{lines}"})
            case "POST", "/api/chat":
                asked = request.json()
                known = self.models.get(asked["model"])
                content = "" if request.fault == "mute" else f"heard: {asked['messages'][-1]['content']}"
                request.reply(200 if known else 404, {"message": {"role": "assistant", "content": content}})
            case _:
                request.reply(405)

    def take(self, request: Request, name: str) -> None:
        """Keep a blob whose bytes are what its name says."""
        data = request.body()
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != name:
            request.reply(400, {"error": "digest mismatch"})
            return
        self.blobs[name] = data
        request.reply(201)

    def remove(self, name: str) -> bool:
        """A model, and its blobs that no other has; whether it was there."""
        model = self.models.pop(name, None)
        if model:
            used = {blob for other in self.models.values() for blob in other["files"].values()}
            for blob in set(model["files"].values()) - used:
                self.blobs.pop(blob, None)
        return model is not None

    def create(self, request: Request, asked: dict[str, Any]) -> None:
        """Make a model of blobs that are here; progress, then `success`."""
        [blob] = asked["files"].values()
        head = [{"status": "parsing GGUF"}, {"status": "writing manifest"}]
        if blob not in self.blobs or self.blobs[blob][:4] != b"GGUF":
            request.lines({"error": "invalid digest or file"})
        elif request.fault in ("error", "full"):
            request.lines(head[0], FULL if request.fault == "full" else {"error": "unsupported architecture"})
        elif request.fault == "unfinished":
            request.lines(*head)
        else:
            self.models[asked["model"]] = {key: value for key, value in asked.items() if key != "model"}
            request.lines(*head, {"status": "success"})


def digest(model: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()
