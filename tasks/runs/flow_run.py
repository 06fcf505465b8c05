"""One flow run: what it starts from, what calls its stages, and where it is recorded."""

import importlib.util
import logging
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from prefect.logging import get_run_logger
from pydantic import BaseModel

from backprop_core.data.restored_rows import decided
from backprop_core.errors import RunUnknown
from backprop_core.lines.versions import Live
from backprop_core.models import base as bases
from backprop_core.runtime import log_context, log_lines
from backprop_core.runtime.json_lines import JsonLines
from backprop_core.runtime.redaction import blank_logs
from backprop_core.runtime.settings import settings
from backprop_core.schema.flows import flow_info
from backprop_core.schema.refs import BaseRef, ChatTemplate, RowsRef, SourceRef, Split
from backprop_core.schema.specs import DatasetSpec, Limit, RunSpec
from backprop_core.stages import Stage
from backprop_core.store import formats
from backprop_core.store.artifacts import Store
from backprop_core.store.leases import Lease
from tasks.runs import prepared_run, retried_runs, run_log, sources, worker_process
from tasks.runs.dropped_signals import raised_again
from tasks.runs.line_length import longest_read, scored_length
from tasks.runs.line_splits import held_by, learned_by, of_run
from tasks.runs.outcome import Notes, Outcome
from tasks.runs.preflight_checks import check_question
from tasks.runs.record import RunJournal
from tasks.runs.restored_runs import bring_artifacts
from tasks.runs.stage_calls import Executor, StageCalls

R = TypeVar("R", bound=BaseModel)
log = logging.getLogger(__name__)
Start = Callable[[Store], prepared_run.Prepared]


def new_run_id() -> str:
    """32 hex digits, made before the first log line."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Run:
    """What the body of a flow sees: the inputs of a run, the stages that it can call, and where it notes results."""

    run_id: str
    prepared: prepared_run.Prepared
    store: Store
    executor: Executor
    notes: Notes

    def call(self, stage: Stage[R], **parameters: Any) -> R:
        """The result of a stage."""
        return self.executor.call(stage, **parameters)

    def ahead(self, work: Iterable[Callable[["Run"], object]]) -> None:
        """Begin with calls that do not depend on each other, if there are workers to share them.

        The body then makes each of them itself, and finds its stages done or under way.
        """

        def alone(call: Callable[[Run], object]) -> Callable[[Executor], object]:
            return lambda executor: call(replace(self, executor=executor, notes=Notes()))

        self.executor.ahead([alone(call) for call in work])

    @property
    def spec(self) -> RunSpec:
        return self.prepared.spec

    @property
    def base(self) -> BaseRef:
        return self.prepared.base

    @cached_property
    def template(self) -> ChatTemplate:
        """What the base writes conversations by."""
        return bases.chat_template(self.base)

    def decided(self, source: SourceRef, spec: DatasetSpec) -> SourceRef:
        """A source, with the rows in it that a person has forgotten, or taken out of quarantine."""
        return decided(source, spec, self.store, self.template)

    @property
    def line(self) -> Live | None:
        """The champion whose line's rows are the run's too."""
        return self.prepared.live if flow_info(self.prepared.flow).rows == "line" else None

    @cached_property
    def scored_length(self) -> int | Limit:
        """The length limit of held-out rows; in a rebase that of the training, as its base counts other tokens."""
        is_moved = flow_info(self.prepared.flow).rows == "stored"
        least = 0 if is_moved else longest_read(self.spec.line, self.prepared.live, self.store)
        return scored_length(self.spec.training, least)

    @property
    def held(self) -> dict[str, list[RowsRef]]:
        """What that line has ever held out, by task."""
        return held_by(self.spec.line, self.line, self.store) if self.line else {}

    @property
    def learned(self) -> list[RowsRef]:
        """What that line has been trained on."""
        return self.line.version.learned if self.line else []

    @property
    def learned_before(self) -> list[RowsRef]:
        """What the adapter of an earlier run has been trained on."""
        return learned_by(self.prepared.of, self.store) if self.prepared.of else []

    @property
    def earlier(self) -> Split | None:
        """The rows of the earlier run that this one is about; None if it has its own."""
        prepared, rows = self.prepared, flow_info(self.prepared.flow).rows
        if rows not in ("earlier", "earlier if known") or not (prepared.of and prepared.sources):
            return None
        found = of_run(prepared.of, self.store)
        if found is None and rows == "earlier":
            raise RunUnknown(
                f"which rows run {prepared.of} trained is not known any more, so which may score is not either",
                hint="score it on rows it was not trained on: backprop evaluate REF --data FILE",
            )
        return found

    @property
    def can_read_gguf(self) -> bool:
        """Whether llama.cpp is here to answer from a GGUF file."""
        return importlib.util.find_spec("llama_cpp") is not None


@contextmanager
def recorded(start: Start, *, run_id: str | None, fresh: bool) -> Iterator[tuple[Run, Outcome]]:
    """A run from its first log line to its result, which is kept whatever happens.

    `start` finds out what a new run starts from. With the run_id of an earlier run that one goes on instead, from what
    it committed; so does, without one, what an earlier try of the same flow run has left over. Either is `fresh` if it
    began so.
    """
    blank_logs()
    bring_artifacts()
    config = settings()
    if config.log_json and not isinstance(sys.stderr, JsonLines):  # a flow run that Prefect has started
        log_lines.rewrite_handlers()
    store = Store(config.store_path)
    for place in (config.layout.format, store.layout.format):  # a full disk is for the run to report
        with suppress(OSError):
            formats.mark(place)
    with ExitStack() as cleanup:
        cleanup.enter_context(raised_again())
        cleanup.callback(store.close)
        cleanup.callback(worker_process.stop)
        cleanup.callback(sources.let_go)
        earlier = prepared_run.full_run_id(run_id, store) if run_id else retried_runs.left_over(store)
        full_id = earlier or new_run_id()
        cleanup.enter_context(log_context.about(run_id=full_id))  # what is committed from here on is this run's
        prepared = resumed(full_id, store) if earlier else start(store).model_copy(update={"fresh": fresh})
        outcome = Outcome(full_id, prepared, store, RunJournal(full_id, prepared, config, store))
        lease = Lease(full_id, store, before_wait=worker_process.give_up)
        prepared = prepared_run.begun(prepared, full_id, store)
        outcome.journal.sources(prepared)
        calls = StageCalls(full_id, prepared, config, store, lease, outcome)
        cleanup.callback(calls.close)
        cleanup.enter_context(log_context.about(line=prepared.spec.line))
        log.info("run_started run_id=%s", full_id)
        with ending(lease, full_id, store), outcome, run_log.kept(store.layout.run(full_id).log):
            get_run_logger().info("run_started run_id=%s", full_id)  # on the page of the flow run
            retried_runs.note(full_id, store)
            yield Run(full_id, prepared, store, calls, outcome), outcome
            prepared_run.mark_finished(prepared, store)


def resumed(run_id: str, store: Store) -> prepared_run.Prepared:
    """What an earlier run started from. Raises ConfigInvalid if its gate asks what its metric cannot answer."""
    prepared = prepared_run.load(run_id, store)
    flow = flow_info(prepared.flow)
    if flow.makes_a_version and flow.rows != "stored":  # a rebase compares in a metric of its own
        check_question(prepared.spec.gate, prepared.spec.evaluation.metric)
    return prepared


@contextmanager
def ending(lease: Lease, run_id: str, store: Store) -> Iterator[None]:
    """End the lease of a run with the block. Once the run has finished, its downloads go too."""
    finished = False
    try:
        yield
        finished = True
        sources.free(run_id, store)
    finally:
        lease.end(finished=finished)
