"""`backprop generate`: answers of a run's merged adapter to prompts, without a flow or record."""

from collections.abc import Sequence

from backprop_core.evaluation.stages import answer
from backprop_core.models import devices
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import Answers
from backprop_core.schema.specs import GenerationSpec, TrainSpec
from backprop_core.store.artifacts import Store
from tasks.runs import resolve_earlier, worker_process
from tasks.runs.progress import Progress, report


def answers(
    ref: str, prompts: Sequence[str], *, system: str | None, spec: GenerationSpec, model: str | None = None
) -> Answers:
    """The answer to each prompt, each in a conversation of its own. Raises what `resolve_earlier.made` raises."""
    config = settings()
    store = Store(config.store_path)
    try:
        made = resolve_earlier.made(ref, store, model=model)
        if made.adapter:
            store.bring(made.adapter.digest)  # the worker asks no other place
        device = devices.resolve("auto")
        first = [{"role": "system", "content": system}] if system else []
        report(Progress(stage="generate", done=0, total=0))
        return worker_process.worker(config, TrainSpec(device=device)).call(
            answer,
            key="",
            on_event=lambda event: None,
            base=made.base,
            adapter=made.adapter,
            conversations=[[*first, {"role": "user", "content": prompt}] for prompt in prompts],
            spec=spec,
            precision=precision_on(device, made.spec.training),
            device=device,
        )
    finally:
        worker_process.stop()
        store.close()


def precision_on(device: str, trained: TrainSpec) -> str:
    """The precision that the adapter was trained with, if the device has the same kind or it was nf4."""
    if trained.device == device or trained.precision == "nf4":
        return trained.precision
    return "fp32" if device == "cpu" else "bf16"
