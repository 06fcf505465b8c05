"""A stand-in for an OpenTelemetry collector: takes traces and metrics as protobuf over HTTP, and decodes them."""

import gzip

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.wire.stand_in import Request, Service


class OtlpCollector(Service):
    """Keeps the spans, and the metrics of the last export."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[Span] = []
        self.metrics: dict[str, Metric] = {}
        self.bodies: list[bytes] = []

    def answer(self, request: Request) -> None:
        body = request.body()
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.bodies.append(body)
        if request.path == "/v1/traces":
            traces = ExportTraceServiceRequest.FromString(body)
            self.spans += [span for r in traces.resource_spans for s in r.scope_spans for span in s.spans]
        if request.path == "/v1/metrics":
            sent = ExportMetricsServiceRequest.FromString(body)
            self.metrics |= {m.name: m for r in sent.resource_metrics for s in r.scope_metrics for m in s.metrics}
        request.reply(200, b"")
