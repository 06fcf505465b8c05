"""Sends a run as OpenTelemetry traces and metrics, over OTLP/HTTP, to where OTEL_EXPORTER_OTLP_ENDPOINT says.

The trace's id is the run_id, and each span's id is a hash of what it is about, so a span that is sent again is the same
span. A run that was resumed has a span for each time it was started; one that was killed gets its span when the journal
is sent, with all that it had written. The OTEL_* variables mean what they mean everywhere.
"""

import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from pydantic import Field

from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from tasks.tracking.journal_lines import AnyLine, Called, Ended, Measured, Started, Tagged
from tasks.tracking.trackers.forwarding import State
from tasks.tracking.trackers.otlp_metrics import Sums, metrics_data
from tasks.tracking.trackers.run_texts import labels

SCOPE = InstrumentationScope("backprop")
MILLION = 1_000_000  # ns in a ms
MODEL, INPUT_TOKENS = "gen_ai.request.model", "gen_ai.usage.input_tokens"
TOKENS = "trained_tokens"  # the metric of a LoRA run


class Begun(Record):
    """A run that has begun and has no span yet."""

    start: Started
    last: int = Field(description="Milliseconds since 1970, of its last line.")
    told: dict[str, Any] = Field(default_factory=dict, description="Attributes of its span.")


class Refused(OSError):
    """The collector has not taken what it was sent."""


class Spans:
    """The spans and metrics of a run and its child runs."""

    def __init__(self, settings: Settings, run_id: str, state: State) -> None:
        self._root = run_id
        self._begun = {run: Begun.model_validate(begun) for run, begun in state.get("begun", {}).items()}
        self._sums = Sums.model_validate(state.get("sums", {}))
        known = {"service.name": settings.namespace, "service.instance.id": run_id}
        named = os.environ.get("OTEL_SERVICE_NAME")
        self._resource = Resource.create(known | ({"service.name": named} if named else {}))

    def write(self, lines: Sequence[AnyLine]) -> None:
        spans = [span for line in lines for span in self._see(line)]
        self._send(spans)

    def settle(self, *, over: bool) -> State:
        if over:  # killed: it has no end
            self._send([self._run_span(begun, begun.last, "interrupted", "") for begun in self._begun.values()])
            self._begun = {}
        begun = {run: each.model_dump(mode="json") for run, each in self._begun.items()}
        return {"begun": begun, "sums": self._sums.model_dump()}

    def _send(self, spans: list[ReadableSpan]) -> None:
        """Send what there is. Raises Refused."""
        if spans and is_sent("TRACES") and OTLPSpanExporter().export(spans) is not SpanExportResult.SUCCESS:
            raise Refused("the OpenTelemetry collector has not taken the spans")
        data = metrics_data(self._sums, self._resource)
        if data and is_sent("METRICS") and OTLPMetricExporter().export(data) is not MetricExportResult.SUCCESS:
            raise Refused("the OpenTelemetry collector has not taken the metrics")

    def _see(self, line: AnyLine) -> list[ReadableSpan]:
        """Read a line; returns the spans that it ends."""
        spans = self._ended_by(line)
        if begun := self._begun.get(line.run):
            told = {**begun.told, **attributes_of(line)}
            self._begun[line.run] = begun.model_copy(update={"last": line.time, "told": told})
        self._sums = self._sums.with_line(line, of_root=line.run == self._root)
        return spans

    def _ended_by(self, line: AnyLine) -> list[ReadableSpan]:
        match line:
            case Started():
                before = self._begun.get(line.run)
                self._begun[line.run] = Begun(start=line, last=line.time)
                return [self._run_span(before, before.last, "interrupted", "")] if before else []
            case Called() if line.run in self._begun:
                return [self._stage_span(line, self._begun[line.run])]
            case Ended() if begun := self._begun.pop(line.run, None):
                return [self._run_span(begun, line.time, line.status, line.error.code if line.error else "")]
            case _:
                return []

    def _run_span(self, begun: Begun, end: int, status: str, code: str) -> ReadableSpan:
        start, parent = begun.start, self._begun.get(begun.start.parent or "")
        told = {
            "backprop.run_id": start.run,
            "backprop.line": start.line,
            "backprop.status": status,
            MODEL: start.params.get("model.name", ""),
            **begun.told,
            **({"error.type": code} if code else {}),
        }
        name = start.name if start.parent else f"run {start.line}"
        ok = status not in ("failed", "interrupted")
        return self._span(
            name, span_id(start), span_id(parent.start) if parent else None, (start.time, end), told, ok=ok
        )

    def _stage_span(self, line: Called, begun: Begun) -> ReadableSpan:
        stage = line.stage
        told = {
            "backprop.run_id": line.run,
            "backprop.line": begun.start.line,
            "backprop.stage": stage.stage,
            "backprop.stage.key": stage.key,
            "backprop.stage.digest": stage.digest or "",
            "backprop.stage.cached": stage.cached,
            "backprop.stage.seconds": stage.seconds,
            MODEL: begun.start.params.get("model.name", ""),
        }
        own = hashed(line.run, stage.key, str(line.time))
        times = (line.time - round(stage.seconds * 1000), line.time)
        return self._span(f"stage {stage.stage}", own, span_id(begun.start), times, told, ok=True)

    def _span(
        self, name: str, own: int, parent: int | None, times: tuple[int, int], told: Mapping[str, Any], *, ok: bool
    ) -> ReadableSpan:
        start, end = times
        return ReadableSpan(
            name,
            context=self._context(own),
            parent=self._context(parent) if parent else None,
            resource=self._resource,
            attributes={key: value for key, value in told.items() if value != ""},
            kind=SpanKind.INTERNAL,
            status=Status(StatusCode.OK if ok else StatusCode.ERROR),
            start_time=start * MILLION,
            end_time=end * MILLION,
            instrumentation_scope=SCOPE,
        )

    def _context(self, span: int) -> SpanContext:
        return SpanContext(int(self._root, 16), span, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def attributes_of(line: AnyLine) -> dict[str, Any]:
    """What a line adds to the span of its run."""
    match line:
        case Tagged():
            return labels(line.tags)
        case Measured() if TOKENS in line.values:
            return {INPUT_TOKENS: int(line.values[TOKENS])}
        case _:
            return {}


def span_id(start: Started) -> int:
    """The id of the span of a run since it was started this time."""
    return hashed(start.run, "", str(start.time))


def hashed(*parts: str) -> int:
    return int.from_bytes(sha256("\n".join(parts).encode()).digest()[:8]) or 1


def is_sent(signal: str) -> bool:
    """Whether a signal (TRACES, METRICS) is to be sent: `none` as its exporter switches it off."""
    return os.environ.get(f"OTEL_{signal}_EXPORTER", "").lower() != "none"


def open_stream(settings: Settings, run_id: str, state: State) -> Spans:
    return Spans(settings, run_id, state)
