"""The Hub and a line's release, as tasks: whatever fails for a reason that passes is tried again."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.blocks.system import Secret

from backprop_core.errors import AuthRequired, RunUnknown
from backprop_core.lines.versions import Lines, Live
from backprop_core.models import base as bases
from backprop_core.publishing import release_transaction as core
from backprop_core.publishing.hub import RECORD, SECRET_BLOCK, File, Hub, adapter_files
from backprop_core.publishing.model_card import card, record
from backprop_core.publishing.ollama import Ollama
from backprop_core.runtime.redaction import keep_secret
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import AdapterRef, BaseRef, DatasetSummary, GGUFRef, RowsRef, RunResult
from backprop_core.schema.specs import PublishSpec
from backprop_core.store.artifacts import Store
from tasks.runs.line_state import Made, version_of
from tasks.runs.results import dataset_summary, located
from tasks.stages.cache_policy import outside
from tasks.stages.ollama import canary, served_as, show

if TYPE_CHECKING:
    from tasks.runs.flow_run import Run
    from tasks.runs.outcome import Outcome

GGUF_FIELDS = {"digest", "quantization", "bytes"}


def hub_token() -> str:
    """HF_TOKEN, or the Prefect Secret block `hf-token`. Raises AuthRequired."""
    if token := os.environ.get("HF_TOKEN"):
        return token
    try:
        block: Any = Secret.load(SECRET_BLOCK)  # typed as if it could be a coroutine here
        token = str(block.get())
        keep_secret(token)
        return token
    except ValueError as error:
        raise AuthRequired(
            "the Hub needs a token", hint=f"set HF_TOKEN, or create a Prefect Secret block {SECRET_BLOCK}"
        ) from error


def services() -> core.Services:
    """Ollama and the Hub, as the environment names them."""
    return core.Services(ollama=Ollama, hub=lambda: Hub(hub_token()), on_progress=show)


@outside("push to {publish.repo}")
def push(publish: PublishSpec, files: dict[str, File], message: str) -> str:
    """Put files into a repository of the Hub; the commit."""
    assert publish.repo
    hub = Hub(hub_token())
    parent = hub.head(publish.repo, private=publish.private)
    return hub.push(publish.repo, files, message=message, parent=parent)


@outside("go live")
def go_live(wanted: core.Release) -> core.Release:
    """Make a version of a line live, everywhere or nowhere."""
    return core.release(wanted, store=Store(settings().store_path), services=services())


def recover(line: str) -> None:
    """Finish or undo a release of the line that was interrupted."""
    core.recover(line, store=Store(settings().store_path), services=services())


def advance(run: "Run", outcome: "Outcome", made: Made) -> None:
    """Add a run's result to the line as a version, and make it live unless another run continued the line meanwhile."""
    lines, before = Lines(run.store), run.prepared.live.number if run.prepared.live else None
    version = version_of(run, outcome, made)
    number = lines.add(run.spec.line, version, champion=before)
    outcome.add(version=number)
    if lines.champion(run.spec.line) in (before, number):
        make_live(run, outcome, Live(number=number, version=version), outcome.so_far("finished"), made.last_heldout)


def make_live(run: "Run", outcome: "Outcome", live: Live, made: RunResult, heldout: RowsRef) -> None:
    """Release a version, of which `made` tells, to all places that the run's spec names."""
    publish, export, gguf = run.spec.publish, run.spec.export, outcome.made.gguf
    shown = made.model_copy(update={"version": live.number, "gguf": gguf if publish.gguf else []})
    version, datasets = live.version, [dataset_summary(dataset) for dataset in live.version.datasets]
    done = go_live(
        core.Release(
            line=run.spec.line,
            number=live.number,
            run_id=run.run_id,
            act=outcome.made.act,
            publish=publish,
            export=export,
            gguf=[GGUFRef(**file.model_dump(include=GGUF_FIELDS)) for file in gguf],
            serving=served_as(Path(gguf[0].path), export) if publish.ollama else None,
            prompt=canary(heldout, run.store),
            repository=repository(shown, datasets, version.merged, version.base, run.store, publish.repo)
            if publish.repo
            else {},
        )
    )
    outcome.add(version=live.number)
    if publish.ollama:
        model = f"{publish.ollama}:v{live.number}"
        outcome.served({"model": model, "prompt": done.prompt, "answer": done.answer or ""})
    if publish.repo:
        outcome.add(hub={"repo": publish.repo, "commit": done.commit or ""})


def publish(run: "Run", outcome: "Outcome") -> None:
    """Push the adapter that an earlier run made to the Hub, with the GGUF files of this one."""
    spec, adapter, of = run.spec.publish, run.prepared.adapter, run.prepared.of
    assert spec.repo and adapter and of
    made = result_of(of, run.store).model_copy(update={"gguf": outcome.made.gguf})
    files = repository(made, [one.dataset for one in made.runs], adapter, run.base, run.store, spec.repo)
    outcome.add(hub={"repo": spec.repo, "commit": push(spec, files, f"{made.line}: run {of}")})


def result_of(run_id: str, store: Store) -> RunResult:
    """What a run came to. Raises RunUnknown if it has not ended."""
    path = store.layout.run(run_id).result
    if not path.is_file():
        raise RunUnknown(f"run {run_id} has not ended", hint=f"finish it first: backprop resume {run_id}")
    return RunResult.model_validate_json(path.read_bytes())


def repository(
    result: RunResult, datasets: list[DatasetSummary], adapter: AdapterRef, base: BaseRef, store: Store, repo: str
) -> dict[str, File]:
    """The files of a repository: adapter, tokenizer, card, record, and the GGUF files of `result`.

    Raises TokenizerUnsupported, ModelLoadFailed if the base is not what it was.
    """
    result = result.model_copy(update={"merged": located(adapter, store)})
    names = [f"{result.line}-{file.quantization}.gguf" for file in result.gguf]
    return {
        **adapter_files(store.local(adapter), base, bases.local(base, store)),
        **{name: File(path=file.path) for name, file in zip(names, result.gguf, strict=True)},
        "README.md": File(text=card(result, datasets, repo=repo, files=names)),
        RECORD: File(text=record(result, datasets)),
    }
