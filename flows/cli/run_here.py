"""From a spec to a flow's result, for whoever sits at this machine. The worker starts while Prefect is imported."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import EvaluationSpec, ExportSpec, PublishSpec, Quantization, RunSpec
from flows.cli.prefect_environment import connected
from flows.parameters import parameters, to_resume
from flows.registry import load, planned_body
from tasks.runs import prestart
from tasks.runs.preflight_checks import check_repo

if TYPE_CHECKING:
    from tasks.runs.plan import Plan


def run(flow: str, spec: RunSpec, *, fresh: bool = False) -> RunResult:
    """Check the inputs, start the worker if there is work for it, then call the flow."""
    prestart.start(flow, spec, fresh=fresh)
    called = load(flow)  # while Prefect's server starts
    with connected():
        made: RunResult = called(**parameters(flow, spec, fresh=fresh))
        return made


def plan(flow: str, spec: RunSpec, *, fresh: bool) -> "Plan":
    """What the flow would do. Raises what it would raise before its first stage."""
    from tasks.runs.plan import plan

    return plan(flow, spec, planned_body(flow), fresh=fresh)


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
        made: RunResult = load(prepared.flow)(**to_resume(prepared.flow, run_id, prepared))
        return made
