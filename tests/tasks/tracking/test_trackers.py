"""Trackers beside MLflow: each gets every run once, whatever fails, and costs the run nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backprop_core.errors import ConfigInvalid, ExtraMissing
from backprop_core.runtime.settings import Settings, settings
from backprop_core.schema.refs import RunResult, StageRecord
from tasks.tracking import sync
from tasks.tracking.journal import Journal
from tasks.tracking.trackers import notes, process
from tasks.tracking.trackers.forwarding import Forwarder
from tasks.tracking.trackers.process import Trackers
from tests.wire.otlp_collector import OtlpCollector
from tests.wire.wandb_server import WandbServer

pytest.importorskip("tensorboard")
pytest.importorskip("wandb")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
ROOT, CHILD = "a1" * 16, "b2" * 16
SECRET = "hf_canary0canary0canary0"
KEY = "c" * 64


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BACKPROPAGATE_REPORT_TO", "tensorboard")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    for name in notes.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    return settings()


@pytest.fixture
def wandb_server(config: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with WandbServer().running() as server:
        monkeypatch.setenv("BACKPROPAGATE_REPORT_TO", "wandb")
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
        monkeypatch.setenv("WANDB_CONFIG_DIR", str(config.home_path / "wandb-config"))
        yield server


@pytest.fixture
def collector(config: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpCollector]:
    with OtlpCollector().running() as server:
        monkeypatch.setenv("BACKPROPAGATE_REPORT_TO", "")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        yield server


def begin(journal: Journal) -> Journal:
    journal.start(line="support", name="multi-run", params={"model.name": "tiny", "note": f"token {SECRET}"})
    child = journal.child(CHILD)
    child.start(line="support", name="1: news")
    return child


def train(child: Journal, steps: range) -> None:
    for step in steps:
        child.metrics(step, {"loss": 1 / step, "learning_rate": 1e-3})


def end(journal: Journal, child: Journal, last: int) -> None:
    child.metrics(last, {"train_loss": 0.5, "trained_tokens": 640.0, "tokens_per_second": 320.0})
    child.end("finished")
    for stage, cached in (("curate", True), ("train", False)):
        journal.called(StageRecord(stage=stage, key=KEY, cached=cached, seconds=0.25, digest="d" * 64))
    journal.describe("The answer was: a customer's own words.")
    journal.costs({"cost.tokens": 640.0, "cost.gpu_seconds": 2.0})
    journal.result(RunResult(run_id=ROOT, line="support", status="finished", spec={}))


def record(steps: int = 10) -> None:
    """A whole run with one child, as a flow journals it."""
    config = settings()
    notes.watch(config, ROOT)
    with Journal(config.journal_path, ROOT) as journal:
        child = begin(journal)
        train(child, range(1, steps + 1))
        end(journal, child, steps)


def scalars(config: Settings) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """What TensorBoard's own reader finds, by run and tag."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    every = EventMultiplexer().AddRunsFromDirectory(str(config.layout.tensorboard)).Reload()
    return {
        run: {tag: [(event.step, event.value) for event in every.Scalars(run, tag)] for tag in tags["scalars"]}
        for run, tags in every.Runs().items()
    }


def test_tensorboard_reads_every_value_once(config: Settings) -> None:
    """A run is a folder named after its id, a child run one below it; a second sync adds nothing."""
    record()
    assert [(each.sent, each.waiting, each.error) for each in process.sync(config)] == [(1, 0, None)]
    found = scalars(config)
    assert process.sync(config) == [] and scalars(config) == found
    assert set(found) == {"support/backprop-a1a1a1a1", f"support/backprop-a1a1a1a1/1_news-{CHILD[:6]}"}
    child = found[f"support/backprop-a1a1a1a1/1_news-{CHILD[:6]}"]
    assert child["loss"] == [(step, pytest.approx(1 / step)) for step in range(1, 11)]


def test_a_part_that_was_sent_twice_is_there_once(config: Settings) -> None:
    """A kill between the event file and the note of it: what is behind the note is cut off, and written again."""
    notes.watch(config, ROOT)
    place = config.layout.journal.tracker("tensorboard")
    with Journal(config.journal_path, ROOT) as journal:
        child = begin(journal)
        train(child, range(1, 4))
        Forwarder(config, "tensorboard", None).round()
        before = place.note(ROOT).read_bytes()
        train(child, range(4, 8))
        Forwarder(config, "tensorboard", None)._forward(ROOT)
        place.note(ROOT).write_bytes(before)
        place.lock(ROOT).unlink(missing_ok=True)
        end(journal, child, 7)
    Forwarder(config, "tensorboard", None).round()
    losses = scalars(config)[f"support/backprop-a1a1a1a1/1_news-{CHILD[:6]}"]["loss"]
    assert [step for step, _ in losses] == list(range(1, 8))


def test_a_run_that_goes_on_is_sent_on(config: Settings) -> None:
    """What is added after the end was sent is sent too, to the same run."""
    record(3)
    process.sync(config)
    notes.watch(config, ROOT)
    with Journal(config.journal_path, ROOT) as journal:
        child = begin(journal)
        train(child, range(1, 6))
        end(journal, child, 5)
    process.sync(config)
    losses = scalars(config)[f"support/backprop-a1a1a1a1/1_news-{CHILD[:6]}"]["loss"]
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5]


def test_mlflow_may_have_it_first(config: Settings) -> None:
    """A journal that MLflow has to the end has moved; the tracker finds it there."""
    record(2)
    assert sync(config).error is None
    assert config.layout.journal.sent.lines(ROOT).is_file()
    assert process.sync(config)[0].sent == 1 and scalars(config)


def test_nothing_is_sent_unless_it_is_asked_for(config: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the setting there is no process, no note and no file; a run of then is not sent later either."""
    monkeypatch.setenv("BACKPROPAGATE_REPORT_TO", "")
    trackers = Trackers(settings(), ROOT)
    record(2)
    trackers.start()
    trackers.finish()
    assert trackers._process is None and not (config.home_path / "journal" / "trackers").exists()
    monkeypatch.setenv("BACKPROPAGATE_REPORT_TO", "tensorboard")
    assert process.sync(settings()) == [] and not config.layout.tensorboard.exists()


def test_an_unknown_tracker_is_refused(config: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the trackers that there are."""
    monkeypatch.setenv("BACKPROPAGATE_REPORT_TO", "tensorboard,comet")
    with pytest.raises(ConfigInvalid, match="comet is not one of tensorboard, wandb"):
        settings()


def test_a_missing_package_is_said_before_the_work(config: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra that brings it."""
    monkeypatch.setitem(process.NEEDED, "tensorboard", (["no_such_package"], "monitoring"))
    with pytest.raises(ExtraMissing) as caught:
        Trackers(config, ROOT)
    assert "backpropagate-pipeline[monitoring]" in caught.value.hint


def run_with_trackers(steps: int, *, patience: float = 250) -> None:
    config = settings()
    trackers = Trackers(config, ROOT)
    trackers.start()
    with Journal(config.journal_path, ROOT) as journal:
        child = begin(journal)
        train(child, range(1, steps + 1))
        end(journal, child, steps)
    trackers.end()
    trackers.finish(patience)


def steps_of(server: WandbServer) -> list[int]:
    return [row["step"] for row in server.runs[CHILD].rows if "loss" in row]


def test_wandb_gets_every_row_once(wandb_server: WandbServer) -> None:
    """The real client sends name, group, parameters, rows and how the run ended; no secret, no text of an answer."""
    run_with_trackers(10)
    root, child = wandb_server.runs[ROOT], wandb_server.runs[CHILD]
    assert (root.display, child.group, root.project) == ("backprop-a1a1a1a1", "backprop-a1a1a1a1", "backprop-support")
    assert (root.config["model.name"], root.config["run_id"], root.exit_code) == ("tiny", ROOT, 0)
    assert steps_of(wandb_server) == list(range(1, 11)) and root.summary["status"] == "finished"
    said = "\n".join(wandb_server.bodies)
    machine = (SECRET, "customer's own words", socket.gethostname(), os.getcwd(), "0123456789abcdef0123")
    assert not [word for word in machine if word in said]


def test_an_outage_of_wandb_is_made_up_for(wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While W&B refuses everything the run ends as ever; the next sync sends all of it, once."""
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    wandb_server.fail("POST /", "503", times=10**6)
    run_with_trackers(5, patience=20)
    assert wandb_server.runs == {}
    wandb_server.faults.clear()
    assert [(each.waiting, each.error) for each in process.sync(settings())] == [(0, None)]
    assert steps_of(wandb_server) == [1, 2, 3, 4, 5] and process.sync(settings()) == []


def test_rows_that_wandb_has_are_not_sent_again(wandb_server: WandbServer) -> None:
    """A killed process has sent rows that its note does not know; W&B says how many it has."""
    run_with_trackers(4)
    place = settings().layout.journal.tracker("wandb")
    notes.bring_back(place, ROOT)
    notes.save(place, ROOT, notes.Note())
    assert process.sync(settings())[0].error is None
    assert steps_of(wandb_server) == [1, 2, 3, 4]


def test_wandb_works_offline(wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """WANDB_MODE=offline means what it means everywhere: files for `wandb sync`, and no request."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_with_trackers(3)
    assert list(settings().layout.wandb.rglob(f"*{CHILD}.wandb")) and wandb_server.requests == []


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_a_stage_is_a_span_of_its_run(collector: OtlpCollector) -> None:
    """The trace is the run_id; a stage has its key, digest, seconds, and whether it was cached; tokens are GenAI's."""
    record()
    assert process.sync(settings())[0].error is None
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"run support", "1: news", "stage curate", "stage train"} and len(collector.spans) == 4
    assert {span.trace_id.hex() for span in collector.spans} == {ROOT}
    assert {spans[name].parent_span_id for name in spans if name != "run support"} == {spans["run support"].span_id}
    told = attributes(spans["stage train"])
    assert (told["backprop.stage.key"], told["backprop.stage.digest"]) == (KEY, "d" * 64)
    assert (told["backprop.stage.cached"], told["backprop.stage.seconds"]) == (False, 0.25)
    assert told["gen_ai.request.model"] == "tiny"
    assert attributes(spans["1: news"])["gen_ai.usage.input_tokens"] == 640
    took = spans["stage train"].end_time_unix_nano - spans["stage train"].start_time_unix_nano
    assert took == 250_000_000
    assert SECRET.encode() not in b"".join(collector.bodies)


def test_metrics_are_tokens_device_seconds_and_cache_hits(collector: OtlpCollector) -> None:
    """Sums since the run's begin, and its speed."""
    record()
    process.sync(settings())
    values = {
        name: {attributes(point).get("backprop.stage", ""): point.as_double or point.as_int for point in points(metric)}
        for name, metric in collector.metrics.items()
    }
    assert values["backprop.tokens"] == {"": 640.0} and values["backprop.gpu.time"] == {"": 2.0}
    assert values["backprop.tokens_per_second"] == {"": 320.0}
    assert values["backprop.cache.hits"] == {"curate": 1, "train": 0}


def points(metric: Any) -> Any:
    return metric.sum.data_points or metric.gauge.data_points


def test_an_outage_of_the_collector_is_made_up_for(collector: OtlpCollector) -> None:
    """What a collector that was down lacks is sent once it is back."""
    collector.fail("POST /v1/traces", "500", times=10**6)
    record()
    assert process.sync(settings())[0].waiting == 1 and not collector.spans
    collector.faults.clear()
    assert process.sync(settings())[0].waiting == 0 and len(collector.spans) == 4


KILLED = """
import os, signal
from backprop_core.runtime.settings import settings
from tasks.tracking.trackers.process import Trackers
from tests.tasks.tracking import test_trackers as t
trackers = Trackers(settings(), t.ROOT)
trackers.start()
journal = t.Journal(settings().journal_path, t.ROOT)
child = t.begin(journal)
t.train(child, range(1, 4))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_is_sent_to_where_it_was_killed(collector: OtlpCollector) -> None:
    """The sending process outlives the run's by a moment: a run that was killed is a span that ended in an error."""
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 60
    while len(collector.spans) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    status = {span.name: attributes(span)["backprop.status"] for span in collector.spans}
    assert status == {"run support": "interrupted", "1: news": "interrupted"}


def test_the_standard_switches_hold(collector: OtlpCollector, monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SDK_DISABLED sends nothing, OTEL_METRICS_EXPORTER=none no metrics."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert notes.wanted(settings()) == []
    monkeypatch.setenv("OTEL_SDK_DISABLED", "false")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    record()
    process.sync(settings())
    assert collector.spans and not collector.metrics


LEFT = """
import subprocess, sys
print("welcome", flush=True)
left = subprocess.Popen(["sleep", "600"], start_new_session=True)
open({note!r}, "w").write(str(left.pid))
raise ImportError("broken")
"""


@pytest.fixture
def rude(tmp_path: Path, config: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B's package prints, starts a process that goes on with what it has inherited, and fails."""
    (tmp_path / "packages" / "wandb").mkdir(parents=True)
    note = tmp_path / "left"
    (tmp_path / "packages" / "wandb" / "__init__.py").write_text(LEFT.format(note=str(note)))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'packages'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("BACKPROPAGATE_REPORT_TO", "wandb")
    yield
    os.kill(int(note.read_text()), signal.SIGKILL)


@pytest.mark.usefixtures("rude")
def test_what_a_package_prints_or_leaves_behind_ends_no_run(caplog: pytest.LogCaptureFixture) -> None:
    """The run is told what is missing as ever, and waits for no process that its tracker's package has started."""
    run_with_trackers(2)
    assert "wandb: broken; what it lacks is kept" in caplog.text


def test_a_slow_tracker_is_not_waited_for(collector: OtlpCollector, caplog: pytest.LogCaptureFixture) -> None:
    """A run ends when its time is up, and says that the rest is kept."""
    collector.fail("POST /", "slow", times=10**6)
    begun = time.monotonic()
    run_with_trackers(2, patience=1)
    assert time.monotonic() - begun < 30
    assert "will be sent by `backprop sync`" in caplog.text
    assert json.loads(settings().layout.journal.tracker("otlp").note(ROOT).read_text()) is not None
