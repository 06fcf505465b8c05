"""The stages: one Prefect task each, whose body is one call. Everything that decides a result is a parameter."""

from typing import Literal

from backprop_core.data import curation as core
from backprop_core.data import splits
from backprop_core.evaluation import gate as core_gate
from backprop_core.evaluation import judge as grading
from backprop_core.evaluation import metrics
from backprop_core.schema.gate_report import GateReport
from backprop_core.schema.refs import (
    AdapterRef,
    Answers,
    BaseRef,
    Batch,
    ChatTemplate,
    ConverterRef,
    Curated,
    Drift,
    Fidelity,
    Generations,
    GGUFRef,
    Harnessed,
    ImportanceRef,
    OwnTasks,
    PackageRef,
    Ratings,
    ReferenceRef,
    RowsRef,
    Scores,
    Searched,
    SourceRef,
    Split,
    Start,
    TrainResult,
)
from backprop_core.schema.specs import (
    CanarySpec,
    DatasetSpec,
    GateSpec,
    GenerationSpec,
    HarnessSpec,
    JudgeSpec,
    MergeSpec,
    TrainSpec,
)
from tasks.runs.flow_run import current
from tasks.runs.progress import Progress, report
from tasks.stages.cache_policy import stage

WRITTEN_DIRECTLY = {"f32", "f16", "bf16", "q8_0"}  # the other quantizations are made from the f16 file by llama.cpp


@stage
def curate(source: SourceRef, spec: DatasetSpec, template: ChatTemplate) -> Curated:
    """A source → its distinct rows that teach something, and that the base's chat template writes."""
    return core.curate(source, spec, template=template, store=current().store)


@stage
def split(
    batches: list[Batch],
    watched: list[Batch],
    held: dict[str, list[RowsRef]],
    learned: list[RowsRef],
    heldout_max: int,
) -> Split:
    """All rows of a run → what is trained, and what scores."""
    return splits.split(
        batches, watched=watched, held=held, learned=learned, heldout_max=heldout_max, store=current().store
    )


@stage
def pool(heldouts: list[RowsRef], heldout_max: int) -> RowsRef:
    """Several held-out sets → one."""
    return core.pool(heldouts, heldout_max=heldout_max, store=current().store)


@stage
def apart(heldout: RowsRef, to_choose_by: bool) -> RowsRef:
    """Held-out rows → those to choose by, or those that score what was chosen."""
    return core.apart(heldout, to_choose_by=to_choose_by, store=current().store)


@stage
def unseen(rows: RowsRef, learned: list[RowsRef]) -> RowsRef:
    """Training rows → those that a line has not learned."""
    return core.unseen(rows, learned=learned, store=current().store)


@stage
def first(rows: RowsRef, most: int) -> RowsRef:
    """Rows → as many of them as are to be scored."""
    return core.first(rows, most=most, store=current().store)


@stage
def train(base: BaseRef, rows: RowsRef, spec: TrainSpec, start: Start | None) -> TrainResult:
    """Rows → a tuned adapter."""
    return current().work("train", TrainResult, base=base, rows=rows, spec=spec, start=start)


@stage
def merge(
    merged: AdapterRef | None, tuned: AdapterRef, earlier: list[AdapterRef], count: int, spec: MergeSpec
) -> AdapterRef:
    """The merged adapter so far and a tuned one → the next merged adapter."""
    return current().work("merge", AdapterRef, merged=merged, tuned=tuned, earlier=earlier, count=count, spec=spec)


@stage
def replay(
    rows: RowsRef, earlier: list[RowsRef], heldout: list[RowsRef], share: float, passes: int, seed: int
) -> RowsRef:
    """New rows and a share of those of earlier datasets → what the next run trains on."""
    return core.replay(rows, earlier, heldout=heldout, share=share, passes=passes, seed=seed, store=current().store)


@stage
def search(
    base: BaseRef,
    merged: AdapterRef,
    tuned: AdapterRef,
    count: int,
    spec: MergeSpec,
    heldout: list[RowsRef],
    max_length: int,
    precision: str,
    device: str,
) -> Searched:
    """The merged adapter so far, a tuned one and rows to choose by → what the tuned one is to count for."""
    return current().work(
        "search",
        Searched,
        base=base,
        merged=merged,
        tuned=tuned,
        count=count,
        spec=spec,
        heldout=heldout,
        max_length=max_length,
        precision=precision,
        device=device,
    )


@stage
def drift(before: AdapterRef, tuned: AdapterRef, after: AdapterRef) -> Drift:
    """What a merge did to the merged adapter."""
    return current().work("drift", Drift, before=before, tuned=tuned, after=after)


@stage
def evaluate(
    base: BaseRef, adapter: AdapterRef | None, heldout: RowsRef, max_length: int, precision: str, device: str
) -> Scores:
    """One cell of the matrix."""
    return current().work(
        "evaluate",
        Scores,
        base=base,
        adapter=adapter,
        heldout=heldout,
        max_length=max_length,
        precision=precision,
        device=device,
    )


@stage
def harness(
    base: BaseRef, adapter: AdapterRef | None, spec: HarnessSpec, own: OwnTasks | None, precision: str, device: str
) -> Harnessed:
    """A model on tasks of lm-evaluation-harness."""
    return current().work(
        "harness", Harnessed, base=base, adapter=adapter, spec=spec, own=own, precision=precision, device=device
    )


@stage
def generate(
    base: BaseRef, adapter: AdapterRef | None, heldout: RowsRef, spec: GenerationSpec, precision: str, device: str
) -> Generations:
    """Held-out rows → what the model answers to them."""
    return current().work(
        "generate",
        Generations,
        base=base,
        adapter=adapter,
        heldout=heldout,
        spec=spec,
        precision=precision,
        device=device,
    )


@stage
def rate(generations: Generations, metric: str, pattern: str | None) -> Ratings:
    """Answers → how good each is."""
    return metrics.rate(generations, metric=metric, pattern=pattern, store=current().store)


@stage
def judge(generations: Generations, spec: JudgeSpec) -> Ratings:
    """Answers → how good each is in the eyes of another model."""
    return grading.judge(
        generations,
        spec=spec,
        store=current().store,
        on_progress=lambda done, total: report(Progress(stage="judge", done=done, total=total)),
    )


@stage
def answer(
    base: BaseRef,
    adapter: AdapterRef | None,
    conversations: list[list[dict[str, str]]],
    spec: GenerationSpec,
    precision: str,
    device: str,
) -> Answers:
    """Conversations → what the model says next."""
    return current().work(
        "answer",
        Answers,
        base=base,
        adapter=adapter,
        conversations=conversations,
        spec=spec,
        precision=precision,
        device=device,
    )


@stage
def gate(
    candidate: dict[str, Scores | Ratings],
    champion: dict[str, Scores | Ratings] | None,
    base: dict[str, Scores | Ratings],
    watch: list[str],
    metric: str,
    spec: GateSpec,
    answers: Answers | None,
    champion_answers: Answers | None,
) -> GateReport:
    """Scores of the candidate, the champion and the base → whether the candidate may go live."""
    return core_gate.gate(
        candidate,
        champion,
        base,
        watch=watch,
        metric=metric,
        spec=spec,
        answers=answers,
        champion_answers=champion_answers,
        store=current().store,
    )


@stage
def convert(base: BaseRef, adapter: AdapterRef | None, outtype: Literal["f32", "f16", "bf16", "q8_0"]) -> GGUFRef:
    """Base and adapter → one GGUF file, fused while it is written."""
    return current().work("convert", GGUFRef, base=base, adapter=adapter, outtype=outtype)


@stage
def convert_outside(
    base: BaseRef,
    adapter: AdapterRef | None,
    outtype: Literal["f32", "f16", "bf16", "q8_0"],
    converter: ConverterRef,
) -> GGUFRef:
    """Base and adapter → one GGUF file, written by a llama.cpp that the user has."""
    return current().work("convert_outside", GGUFRef, base=base, adapter=adapter, outtype=outtype, converter=converter)


@stage
def quantize(source: GGUFRef, quantization: str) -> GGUFRef:
    """A GGUF file → a smaller one."""
    return current().work("quantize", GGUFRef, source=source, quantization=quantization)


@stage
def importance(
    base: BaseRef,
    adapter: AdapterRef | None,
    heldout: RowsRef,
    skip: int,
    max_length: int,
    precision: str,
    device: str,
) -> ImportanceRef:
    """Held-out rows → what counts in each matrix of the model."""
    return current().work(
        "importance",
        ImportanceRef,
        base=base,
        adapter=adapter,
        heldout=heldout,
        skip=skip,
        max_length=max_length,
        precision=precision,
        device=device,
    )


@stage
def quantize_weighted(source: GGUFRef, quantization: str, importance: ImportanceRef) -> GGUFRef:
    """A GGUF file and what counts in it → a smaller one."""
    return current().work("quantize_weighted", GGUFRef, source=source, quantization=quantization, importance=importance)


@stage
def package(base: BaseRef, adapter: AdapterRef, package: str, hub_id: str | None) -> PackageRef:
    """Base and adapter → a form that other programs load; `hub_id` is what it calls the base, if that has one."""
    return current().work("package", PackageRef, base=base, adapter=adapter, package=package, hub_id=hub_id)


@stage
def reference(
    base: BaseRef, adapter: AdapterRef | None, heldout: RowsRef, rows: int, prompts: list[str]
) -> ReferenceRef:
    """A model on held-out rows → what its files are compared with."""
    return current().work(
        "reference", ReferenceRef, base=base, adapter=adapter, heldout=heldout, rows=rows, prompts=prompts
    )


@stage
def fidelity(reference: ReferenceRef, gguf: GGUFRef, canaries: list[CanarySpec]) -> Fidelity:
    """How far a GGUF file answers as the model it came from."""
    return current().work("fidelity", Fidelity, reference=reference, gguf=gguf, canaries=canaries)
