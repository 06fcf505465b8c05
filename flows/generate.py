"""Answers of a model to prompts, for other services. `backprop generate` does the same without Prefect."""

from backprop_core.errors import InputValidationFailed
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import GenerationSpec
from flows.declared import declared
from flows.run_names import short
from tasks.runs import prefect_artifacts
from tasks.runs.flow_run import new_run_id
from tasks.runs.sample_answers import answers


@declared("generate", title=lambda given: f"generate {short(given['ref'])}")
def generate(
    ref: str,
    prompts: list[str],
    system: str | None = None,
    generation: GenerationSpec = GenerationSpec(),
    model: str | None = None,
) -> RunResult:
    """Answer prompts with the merged adapter of a run, when the device is free.

    The answers are the Prefect artifact `backprop-answers`. Nothing is recorded in MLflow.

    Args:
        ref: A run_id or the start of one, a line (its champion), line@version, or a directory with a PEFT adapter.
        prompts: User messages; each gets an answer in a conversation of its own.
        system: System prompt.
        generation: How to generate.
        model: Base model of the adapter in a directory; default: the one its config names.
    """
    if not prompts:
        raise InputValidationFailed("there is no prompt", hint="send at least one in `prompts`")
    said = answers(ref, prompts, system=system, spec=generation, model=model)
    prefect_artifacts.answers(said, namespace=settings().namespace)
    asked = {"ref": ref, "prompts": prompts, "system": system, "generation": generation.model_dump(), "model": model}
    reason = f"{len(prompts)} prompts answered"
    return RunResult(run_id=new_run_id(), flow="generate", line="", status="finished", reason=reason, spec=asked)
