"""Publishes a line's champion to Ollama and the Hub."""

from backprop_core.schema.field_types import LineName
from backprop_core.schema.refs import RunResult, heldout_of
from backprop_core.schema.specs import ExportSpec, PublishSpec
from flows.declared import declared
from flows.steps.files import exports
from tasks.runs.flow_run import Start, recorded
from tasks.runs.line_state import working_on
from tasks.runs.manual_promotion import act
from tasks.runs.prune import retain
from tasks.runs.resolve_earlier import to_release
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
    """Publish a line's champion to Ollama and the Hub: all places, or none.

    A champion that did not pass the gate needs `force`.

    Args:
        line: The line.
        publish: Where to publish it; fields left open are as in the champion's last release.
        export: Which GGUF files to write, and how to serve the first; default: as in the last release.
        force: Release it even if the gate refused it or never judged it; needs a reason.
        reason: Why; kept in the record with your name.
        run_id: The interrupted release to continue; everything else is read from its record.
        fresh: Run every stage again, ignoring the cache.
    """
    said = act(reason, force=force)
    return go_live(line, lambda store: to_release("release", line, None, publish, export, said, store), run_id, fresh)


def go_live(line: str, start: Start, run_id: str | None, fresh: bool) -> RunResult:
    """Make the version that `start` finds live in all places, or in none."""
    with working_on(line), recorded(start, run_id=run_id, fresh=fresh) as (run, outcome):
        live, of = run.prepared.live, run.prepared.of
        assert live and of
        heldout = heldout_of(live.version.datasets[-1].task, live.version.heldout)
        exports(run, live.version.merged, heldout)
        make_live(run, outcome, live, result_of(of, run.store), heldout)
    retain(run.spec, outcome.result)
    return outcome.result
