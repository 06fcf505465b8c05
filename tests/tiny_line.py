"""A line whose versions can be asked: the demo's base, which writes English, with adapters that change its answers."""

from pathlib import Path

import torch

from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.models import adapter_tensors as adapters
from backprop_core.models import base as bases
from backprop_core.models.adapter_tensors import Adapter
from backprop_core.runtime.settings import Settings
from backprop_core.schema.gate_report import GateReport
from backprop_core.schema.refs import AdapterRef, DatasetRef, RowsRef, Scores
from backprop_core.schema.specs import DatasetSpec, LoraSpec, MergeSpec, ModelSpec, RunSpec, TrainSpec
from backprop_core.store.artifacts import Store, write_atomic
from tasks.runs.prepared_run import Prepared, save

BASE = Path(__file__).parents[1] / "examples" / "base"
LORA = LoraSpec(rank=2)
ACCEPTED = GateReport(
    accepted=True,
    reason="better by 0.1",
    against="base",
    metric="token_accuracy",
    average=0.9,
    rival_average=0.8,
    base_average=0.8,
    gain_low=0.05,
    tasks=[],
)
LAYERS = [f"base_model.model.model.layers.{number}.mlp.down_proj" for number in range(3)]


def run_id(number: int) -> str:
    return f"{number:032x}"


def adapter(store: Store, number: int) -> AdapterRef:
    """A random adapter, strong enough that it answers otherwise than the base."""
    random = torch.Generator().manual_seed(number)
    tensors = {
        f"{layer}.lora_{part}.weight": torch.randn(shape, generator=random) * 0.25
        for layer in LAYERS
        for part, shape in (("A", (2, 512)), ("B", (256, 2)))
    }
    with store.begin("adapter") as directory:
        adapters.write_adapter(Adapter(adapters.config_of(LORA, ["down_proj"]), tensors), directory)
        return store.commit(directory, AdapterRef, kind="merged", record={})


def write(config: Settings, versions: int = 1, line: str = "support") -> None:
    """Write a line as retrains leave it; its last version is live."""
    store = Store(config.store_path)
    base = bases.resolve(ModelSpec(name=str(BASE)), store)
    for number in range(1, versions + 1):
        candidate(config, number, line)
        made = adapter(store, number)
        rows = RowsRef(digest="b" * 64, rows=20)
        scores = Scores(digest="c" * 64, rows=20, tokens=100, loss=0.1, token_accuracy=0.9, exact_match=0)
        version = LineVersion(
            run_id=run_id(number),
            base=base,
            lora=LORA,
            merge=MergeSpec(),
            tuned=made,
            merged=made,
            count=number,
            datasets=[DatasetRef(name="night", task="routing", train=rows, heldout=rows, read=20)],
            heldout={"routing": rows},
            scores={"routing": scores},
            parent=number - 1 or None,
        )
        Lines(store).append(line, version, after=number - 1)
        Lines(store).set_champion(line, number)
    store.close()


def passed(root: Path) -> None:
    """Note in the versions of the line that they have passed the gate."""
    store = Store(root)
    for number in Lines(store).versions("support"):
        version = Lines(store).version("support", number).model_copy(update={"gate": ACCEPTED})
        write_atomic(store.layout.line("support").version(number), version.model_dump_json())
    store.close()


def candidate(config: Settings, number: int, line: str = "support") -> AdapterRef:
    """What a run made that is no version yet."""
    store = Store(config.store_path)
    training = TrainSpec(steps=1, precision="fp32", device="cpu", lora=LORA)
    spec = RunSpec(
        line=line, model=ModelSpec(name=str(BASE)), datasets=[DatasetSpec(path="night.jsonl")], training=training
    )
    base = bases.resolve(ModelSpec(name=str(BASE)), store)
    save(Prepared(flow="retrain", spec=spec, base=base, sources=[], watch=[]), run_id(number), store)
    return adapter(store, number)
