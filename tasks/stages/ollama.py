"""Ollama as a task: a run's GGUF file becomes a model that has answered."""

import json
from pathlib import Path

from backprop_core.publishing import ollama
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import RowsRef
from backprop_core.schema.specs import ExportSpec
from backprop_core.store.artifacts import Store
from tasks.runs.progress import Progress, report
from tasks.stages.cache_policy import outside

LONGEST_PROMPT = 2000  # characters


@outside("register {export.ollama}")
def register(file: Path, export: ExportSpec, prompt: str) -> str:
    """Make a GGUF file the model that `export` names; its answer to the prompt."""
    assert export.ollama is not None
    with ollama.Ollama() as server:
        server.check()
        store = Store(settings().store_path)
        ollama.claim(export.ollama, server, store)
        return ollama.register(server, export.ollama, file, served_as(file, export), prompt, show, store)


def served_as(file: Path, export: ExportSpec) -> ollama.Serving:
    return ollama.serving(file, num_ctx=export.num_ctx, system=export.system, license=export.license)


def show(done: int, total: int) -> None:
    """What Ollama has taken, in bytes."""
    report(Progress(stage="ollama", done=done, total=total))


def canary(heldout: RowsRef, store: Store) -> str:
    """A prompt from held-out rows: what a user says first in the first of them."""
    with (store.local(heldout) / "rows.jsonl").open(encoding="utf-8") as rows:
        row = json.loads(next(rows, "{}"))
    said = [turn["content"] for turn in row.get("messages", []) if turn["role"] == "user"]
    return str((said or [row.get("text") or "Hello"])[0])[:LONGEST_PROMPT]
