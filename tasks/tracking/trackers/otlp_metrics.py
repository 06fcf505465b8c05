"""The metrics of a run for OpenTelemetry: sums since its begin, and its last speed."""

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from pydantic import Field

from backprop_core.schema.records import Record
from tasks.tracking.journal_lines import AnyLine, Called, Measured, Started

MILLION = 1_000_000  # ns in a ms
# metric of the journal -> name, unit
SUMS = {
    "cost.tokens": ("backprop.tokens", "{token}"),
    "cost.gpu_seconds": ("backprop.gpu.time", "s"),
    "cost.cpu_seconds": ("backprop.cpu.time", "s"),
    "cache.saved_seconds": ("backprop.cache.saved_time", "s"),
    "cache.saved_tokens": ("backprop.cache.saved_tokens", "{token}"),
}
CALLS, HITS = ("backprop.stages", "{stage}"), ("backprop.cache.hits", "{stage}")
SPEED = ("backprop.tokens_per_second", "{token}/s")


class Sums(Record):
    """The values so far."""

    line: str = ""
    start: int = Field(0, description="Milliseconds since 1970.")
    time: int = 0
    values: dict[str, float] = Field(default_factory=dict)
    stages: dict[str, int] = Field(default_factory=dict, description="Calls by stage.")
    hits: dict[str, int] = Field(default_factory=dict, description="Calls that the cache answered, by stage.")
    speed: float | None = None

    def with_line(self, line: AnyLine, *, of_root: bool) -> "Sums":
        """The values after one more line of the journal."""
        match line:
            case Started() if of_root:
                new = {"line": line.line, "start": self.start or line.time}
            case Called():
                name = line.stage.stage
                new = {"stages": added(self.stages, name, 1), "hits": added(self.hits, name, int(line.stage.cached))}
            case Measured():
                sums = {name: value for name, value in line.values.items() if name in SUMS}
                speed = line.values.get("tokens_per_second", self.speed)
                new = {"values": {**self.values, **sums}, "speed": speed}
            case _:
                new = {}
        return self.model_copy(update={"time": line.time, **new})


def added(counts: dict[str, int], name: str, more: int) -> dict[str, int]:
    return {**counts, name: counts.get(name, 0) + more}


def metrics_data(sums: Sums, resource: Resource) -> MetricsData | None:
    """The values as OpenTelemetry writes them; None before there is one."""
    metrics = [total(*SUMS[name], [point(sums, value)]) for name, value in sums.values.items()]
    for (name, unit), counts in ((CALLS, sums.stages), (HITS, sums.hits)):
        if counts:
            points = [point(sums, count, stage=stage) for stage, count in counts.items()]
            metrics.append(total(name, unit, points))
    if sums.speed is not None:
        metrics.append(Metric(SPEED[0], None, SPEED[1], Gauge([point(sums, sums.speed)])))
    scope = ScopeMetrics(InstrumentationScope("backprop"), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")]) if metrics else None


def total(name: str, unit: str, points: list[NumberDataPoint]) -> Metric:
    """A sum since the run's begin."""
    return Metric(name, None, unit, Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True))


def point(sums: Sums, value: float, **attributes: str) -> NumberDataPoint:
    told = {"backprop.line": sums.line, **{f"backprop.{name}": text for name, text in attributes.items()}}
    return NumberDataPoint(told, sums.start * MILLION, sums.time * MILLION, value)
