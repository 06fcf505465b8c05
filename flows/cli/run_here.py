"""From a spec to a flow's result, for whoever sits at this machine. The worker starts while Prefect is imported."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import EvaluationSpec, ExportSpec, PublishSpec, Quantization, RunSpec
from flows.cli.prefect_environment import connected, start_server
from flows.parameters import parameters
from tasks.runs import prestart
from tasks.runs.preflight_checks import check_repo
from tasks.runs.resolve import Prepared

if TYPE_CHECKING:
    from tasks.runs.flow_run import Run
    from tasks.runs.plan import Plan


def run(flow: str, spec: RunSpec, *, fresh: bool = False) -> RunResult:
    """Check the inputs, start the worker if there is work for it, then call the flow."""
    prestart.start(flow, spec, fresh=fresh)
    called = loaded(flow)  # while Prefect's server starts
    with connected():
        return called(**parameters(flow, spec, fresh=fresh))


def loaded(flow: str) -> Callable[..., RunResult]:
    """A flow that trains, and Prefect with it."""
    if flow == "train":
        from flows.train import train

        return train
    if flow == "retrain":
        from flows.retrain import retrain

        return retrain
    from flows.multi_run import multi_run

    return multi_run


def plan(flow: str, spec: RunSpec, *, fresh: bool) -> "Plan":
    """What the flow would do. Raises what it would raise before its first stage."""
    from flows import pipeline
    from tasks.runs.plan import plan

    return plan(flow, spec, next_version if flow == "retrain" else pipeline.pipeline, fresh=fresh)


def next_version(run: "Run") -> None:
    """A retrain as a plan goes through it: whom it tells and asks, and where it publishes, is looked at first."""
    from prefect.settings import get_current_settings

    from flows import pipeline
    from flows.retrain import ready
    from tasks.runs.notifications import Audience

    spec = run.spec
    if spec.notify or spec.approval.ask or (spec.publish.repo and not os.environ.get("HF_TOKEN")):
        if get_current_settings().api.url is None:
            start_server(settings().layout.log("prefect-server"))
        with connected():
            Audience(spec.line).invite(spec.notify)
            ready(spec)
    pipeline.next_version(run)


def export(ref: str, wanted: ExportSpec, where: Mapping[str, Any], *, model: str | None, fresh: bool) -> RunResult:
    """GGUF files of what an earlier run made, or of a directory's adapter; `where` they are copied to.

    Raises RunUnknown, RefAmbiguous, OutputExists, …
    """
    with connected():
        from flows.export import export

        made: RunResult = export(
            ref,
            wanted.quantizations,
            packages=wanted.packages,
            imatrix=wanted.imatrix,
            **where,
            ollama=wanted.ollama,
            num_ctx=wanted.num_ctx,
            system=wanted.system,
            license=wanted.license,
            model=model,
            fresh=fresh,
        )
        return made


def evaluate(ref: str, data: Sequence[str], evaluation: EvaluationSpec, *, model: str | None, fresh: bool) -> RunResult:
    """Scores of what an earlier run made. Raises RunUnknown, RefAmbiguous or ConfigInvalid."""
    with connected():
        from flows.evaluate import evaluate

        return evaluate(ref, list(data), evaluation=evaluation, model=model, fresh=fresh)


def promote(ref: str, line: str, *, force: bool, reason: str) -> RunResult:
    """A line's version out of what an earlier run made. Raises RunUnknown, RefAmbiguous or LineConflict."""
    with connected():
        from flows.promote import promote

        return promote(ref, line, force, reason)


def push(ref: str, where: PublishSpec, quantizations: list[Quantization]) -> RunResult:
    """What an earlier run made, to the Hub. Raises RunUnknown, RefAmbiguous, and what the Hub raises."""
    check_repo(where.repo or "")
    with connected():
        from flows.publish import publish

        return publish(ref, where.repo or "", private=where.private, gguf=quantizations)


def release(line: str, publish: PublishSpec, export: ExportSpec, *, force: bool, reason: str) -> RunResult:
    """A line's champion, out to where it is used. Raises RunUnknown, NotGated, and what Ollama and the Hub raise."""
    with connected():
        from flows.release import release

        return release(line, publish, export, force, reason)


def rollback(line: str, to: int | None, *, force: bool, reason: str) -> RunResult:
    """An earlier version of a line, live again. Raises RunUnknown, NotGated, and what Ollama and the Hub raise."""
    with connected():
        from flows.rollback import rollback

        return rollback(line, to, force, reason)


def resume(prefix: str, *, inexact: bool = False) -> RunResult:
    """Go on with an interrupted run, from its own record. Raises RunUnknown or RefAmbiguous."""
    run_id, prepared = prestart.restart(prefix, inexact=inexact)
    with connected():
        return call_again(run_id, prepared)


def call_again(run_id: str, prepared: Prepared) -> RunResult:
    """The flow that a run was of; everything but the run_id is read from its record."""
    if prepared.flow == "train":
        from flows.train import train

        return train(prepared.spec.datasets[0], run_id=run_id)
    if prepared.flow == "retrain":
        from flows.retrain import retrain

        return retrain(prepared.spec.line, prepared.spec.datasets[0], run_id=run_id)
    if prepared.flow == "promote":
        from flows.promote import promote

        return promote(run_id, prepared.spec.line, run_id=run_id)
    if prepared.flow in ("export", "publish", "release", "rollback"):
        return ship_again(run_id, prepared)
    if prepared.flow == "evaluate":
        from flows.evaluate import evaluate

        return evaluate(run_id, run_id=run_id)
    from flows.multi_run import multi_run

    return multi_run(prepared.spec.datasets, run_id=run_id)


def ship_again(run_id: str, prepared: Prepared) -> RunResult:
    """The same for the flows that ship what others made."""
    if prepared.flow == "export":
        from flows.export import export

        return export(run_id, run_id=run_id)
    if prepared.flow == "publish":
        from flows.publish import publish

        return publish(run_id, prepared.spec.publish.repo or "", run_id=run_id)
    if prepared.flow == "release":
        from flows.release import release

        return release(prepared.spec.line, run_id=run_id)
    from flows.rollback import rollback

    return rollback(prepared.spec.line, run_id=run_id)
