"""A line's champion, out to the places where it is used."""

from backprop_core.schema.field_types import LineName
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import ExportSpec, PublishSpec
from flows.declared import declared
from flows.pipeline import exports
from tasks.runs.flow_run import Start, recorded
from tasks.runs.line_state import working_on
from tasks.runs.manual_promotion import act
from tasks.runs.prune import retain
from tasks.runs.resolve import to_release
from tasks.stages.publishing import make_live, result_of


@declared("release", title=lambda given: f"release {given['line']}")
def release(
    line: LineName,
    publish: PublishSpec = PublishSpec(),
    export: ExportSpec = ExportSpec(),
    force: bool = False,
    reason: str = "",
    run_id: str | None = None,
    fresh: bool = False,
) -> RunResult:
    """Make a line's champion a model of Ollama's and a repository of the Hub: all of it, or nothing.

    A champion that did not pass the gate is refused without `force`.

    Args:
        line: The line.
        publish: Where it goes; what is not named is as at the champion's last release.
        export: Which GGUF files, and how the first of them is served; as at the last release if not named.
        force: Release it even if the gate refused it or never judged it; with a reason.
        reason: Why; kept in the record with the name of who released it.
        run_id: Of an interrupted release that shall go on.
        fresh: Do every stage again, whatever the cache has.
    """
    said = act(reason, force=force)
    return go_live(line, lambda store: to_release("release", line, None, publish, export, said, store), run_id, fresh)


def go_live(line: str, start: Start, run_id: str | None, fresh: bool) -> RunResult:
    """Make the version that `start` finds live, everywhere or nowhere."""
    with working_on(line), recorded(start, run_id=run_id, fresh=fresh) as run:
        live, of = run.prepared.live, run.prepared.of
        assert live and of
        heldout = live.version.heldout[live.version.datasets[-1].task]
        exports(run, live.version.merged, heldout)
        make_live(run, live, result_of(of, run.store), heldout)
    retain(run)
    assert run.outcome is not None
    return run.outcome
