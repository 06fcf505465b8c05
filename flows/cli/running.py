"""Verbs that compute."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from backprop_core.errors import ConfigInvalid
from backprop_core.runtime.settings import settings
from backprop_core.schema.field_types import line_name
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import DatasetSpec, RunSpec
from flows.cli import lines_file, run_here, run_text, tables
from flows.cli.config_layers import evaluation_spec, export_spec, generation_spec, replayed, windows
from flows.cli.console import Bar, configure_logging
from flows.cli.flags import (
    NOTHING,
    PLAIN,
    SETTINGS,
    TASK,
    AdapterName,
    BaseName,
    Flags,
    FlagSet,
    Force,
    Output,
    OutputFlags,
    Reason,
    RunRef,
    do,
    one_dataset,
    ship,
)
from flows.cli.main import Answer
from flows.cli.prefect_environment import quiet_prefect
from flows.server.submit import submit
from tasks.runs.prestart import asked
from tasks.runs.progress import listen
from tasks.runs.sample_answers import answers

if TYPE_CHECKING:
    from tasks.runs.plan import Plan
    from tasks.runs.unfinished_rebuild import UnfinishedRebuild

INEXACT = "Resume on another machine or with other versions: the same order of rows, but not the same bits."
GGUF = "gguf"
FORMAT = "Formats to write, comma-separated: gguf, merged (safetensors), lora, gguf-lora."
EXIT = {"finished": 0, "unchanged": 0, "rejected": 3, "interrupted": 130}


def demo(
    *,
    seed: Annotated[int, Parameter(help="Random seed.", show_default=True)] = 0,
    output: OutputFlags = PLAIN,
) -> Answer:
    with watched(output):
        from flows.cli.demo_report import story
        from flows.demo import demo

        merged, sequential = demo(seed=seed)
    return Answer(merged.model_dump(mode="json"), story(merged, sequential))


def train(*, flags: FlagSet = NOTHING) -> Answer:
    return carry_out("train", one_dataset(flags.spec(), "train"), flags)


def multi_run(
    *,
    flags: FlagSet = NOTHING,
    runs: Annotated[PositiveInt | None, Parameter(help="Cut the one --data into N windows.", group=TASK)] = None,
    samples: Annotated[PositiveInt | None, Parameter(help="Training rows per window.", group=TASK)] = None,
) -> Answer:
    spec = flags.spec()
    if (runs is None) != (samples is None):
        raise ConfigInvalid("--runs and --samples go together", hint="write --runs N --samples K")
    if runs and samples:
        spec = windows(spec, runs, samples)
    return carry_out("multi-run", spec, flags)


def retrain(*, flags: FlagSet = NOTHING) -> Answer:
    job = lines_file.find(flags.line, settings()) if flags.line else None
    return carry_out("retrain", one_dataset(flags.spec(job), "retrain"), flags)


def replay(
    run_id: RunRef,
    /,
    *,
    set: Annotated[list[str] | None, SETTINGS] = None,
    fresh: Annotated[bool, Parameter(help="Run every stage again, ignoring the cache.", negative="")] = False,
    output: OutputFlags = PLAIN,
) -> Answer:
    before, copies = asked(run_id)
    spec = replayed(before.spec, run_id, set or ())
    with watched(output):
        return answer(run_here.run(before.flow, spec, fresh=fresh, elsewhere=copies))


def promote(
    ref: RunRef,
    /,
    *,
    line: Annotated[str, Parameter(help="Line whose champion it becomes; created if it does not exist.")],
    force: Force = False,
    reason: Reason = "",
    output: OutputFlags = PLAIN,
) -> Answer:
    name = line_name(line)
    with watched(output):
        return answer(run_here.call("promote", ref=ref, line=name, force=force, reason=reason))


def resume(
    run_id: RunRef,
    /,
    *,
    inexact_resume: Annotated[bool, Parameter(help=INEXACT, negative="")] = False,
    output: OutputFlags = PLAIN,
) -> Answer:
    with watched(output):
        from tasks.runs.unfinished_rebuild import unfinished  # imports Prefect

        if rebuild := unfinished(run_id, settings()):
            return rebuilt(rebuild)
        return answer(run_here.resume(run_id, inexact=inexact_resume))


def rebuilt(rebuild: "UnfinishedRebuild") -> Answer:
    """Do the rest of a rebuild that was killed, from the cache; the run itself stays as it ended."""
    from flows.cli.data_text import of_line

    done = run_here.rebuild(rebuild)
    status = 3 if done.error or done.left else 0
    return Answer(done.model_dump(mode="json"), "\n".join(of_line(done, planned=False)), status)


def export(
    ref: AdapterName,
    /,
    *,
    quantization: Annotated[str, Parameter(help="GGUF files to write, comma-separated.")] = "q4_k_m",
    format: Annotated[str, Parameter(help=FORMAT)] = GGUF,
    imatrix: Annotated[bool, ship("export.imatrix"), Parameter(negative="")] = False,
    output: Annotated[Path | None, Parameter(help="Directory to copy the files to, each with a Modelfile.")] = None,
    name: Annotated[str | None, Parameter(help="Start of the names in --output; default: the line's name.")] = None,
    force: Annotated[bool, Parameter(help="Overwrite files of another model in --output.", negative="")] = False,
    ollama: Annotated[str | None, ship("export.ollama")] = None,
    num_ctx: Annotated[str | None, ship("export.num_ctx")] = None,
    system: Annotated[str | None, ship("export.system")] = None,
    license: Annotated[str | None, ship("export.license")] = None,
    model: BaseName = None,
    fresh: Annotated[bool, Parameter(help="Run every stage again, ignoring the cache.", negative="")] = False,
    flags: OutputFlags = PLAIN,
) -> Answer:
    given = {"imatrix": imatrix, "ollama": ollama, "num_ctx": num_ctx, "system": system, "license": license}
    names = {
        "quantizations": "--quantization",
        "packages": "--format",
        **{name: f"--{name.replace('_', '-')}" for name in given},
    }
    formats = format.split(",")
    files = {
        "quantizations": quantization.split(",") if GGUF in formats else [],
        "packages": [name for name in formats if name != GGUF],
    }
    wanted = export_spec({**files, **given}, names)
    with watched(flags):
        return answer(
            run_here.call(
                "export",
                ref=ref,
                quantization=wanted.quantizations,
                packages=wanted.packages,
                imatrix=wanted.imatrix,
                output=str(output) if output else None,
                name=name,
                force=force,
                ollama=wanted.ollama,
                num_ctx=wanted.num_ctx,
                system=wanted.system,
                license=wanted.license,
                model=model,
                fresh=fresh,
            )
        )


def evaluate(
    ref: AdapterName,
    /,
    *,
    data: Annotated[
        list[str] | None, Parameter(help="File of rows to score; default: the held-out rows of the run.", negative="")
    ] = None,
    metric: Annotated[str | None, do("evaluation.metric")] = None,
    set: Annotated[list[str] | None, SETTINGS] = None,
    model: BaseName = None,
    fresh: Annotated[bool, Parameter(help="Run every stage again, ignoring the cache.", negative="")] = False,
    output: OutputFlags = PLAIN,
) -> Answer:
    wanted = evaluation_spec(metric, set or ())
    with watched(output):
        files = [DatasetSpec(path=path) for path in data or []]
        return answer(
            run_here.call("evaluate", files=files, ref=ref, data=files, evaluation=wanted, model=model, fresh=fresh)
        )


def generate(
    ref: AdapterName,
    /,
    *,
    prompt: Annotated[list[str], Parameter(help="User message. Repeat it to get several answers.", negative="")],
    system: Annotated[str | None, Parameter(help="System prompt.")] = None,
    max_new_tokens: Annotated[str | None, do("evaluation.generation.max_new_tokens")] = None,
    temperature: Annotated[str | None, do("evaluation.generation.temperature")] = None,
    seed: Annotated[str | None, do("evaluation.generation.seed")] = None,
    model: BaseName = None,
    output: OutputFlags = PLAIN,
) -> Answer:
    spec = generation_spec({"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed})
    with shown(output):
        said = answers(ref, prompt, system=system, spec=spec, model=model)
    return Answer(said.model_dump(mode="json"), tables.answers(said))


def carry_out(flow: str, spec: RunSpec, flags: Flags) -> Answer:
    """Run a flow here, plan it, or submit it to its deployment."""
    if flags.submit:
        return handed_over(flow, spec, flags)
    if flags.plan:
        return planned(lambda: run_here.plan(flow, spec, fresh=flags.fresh), flags)
    with watched(flags):
        return answer(run_here.run(flow, spec, fresh=flags.fresh), explain=flags.explain)


def planned(plan: Callable[[], "Plan"], flags: Flags) -> Answer:
    """A plan, made without logs of Prefect."""
    configure_logging(settings(), verbose=flags.verbose)
    quiet_prefect()
    made = plan()
    shown = tables.plan(made)
    text = run_text.explained(shown, made.stages) if flags.explain else shown
    return Answer(made.model_dump(mode="json"), text)


def handed_over(flow: str, spec: RunSpec, flags: Flags, **more: Any) -> Answer:
    """Submit a run to its deployment on a Prefect server."""
    if flags.plan:
        raise ConfigInvalid(
            "--plan and --submit cannot be combined", hint="use --plan alone to see what would run here"
        )
    configure_logging(settings(), verbose=flags.verbose)
    quiet_prefect()
    made = submit(flow, spec, fresh=flags.fresh, **more)
    return Answer(made.model_dump(), f"{made.deployment} runs as {made.flow_run_id}\n{made.url}")


@contextmanager
def watched(output: Output) -> Iterator[None]:
    """Show logs and a progress bar, without those of Prefect, while the block runs."""
    quiet_prefect()
    with shown(output):
        yield


@contextmanager
def shown(output: Output) -> Iterator[None]:
    """Show logs and a progress bar while the block runs."""
    configure_logging(settings(), verbose=output.verbose)
    with Bar() as bar, listen(bar):
        yield


def answer(result: RunResult, *, explain: bool = False) -> Answer:
    """A run's result, with its exit status."""
    shown = run_text.run(result)
    text = run_text.explained(shown, result.stages) if explain else shown
    return Answer(result.model_dump(mode="json"), text, EXIT[result.status])
