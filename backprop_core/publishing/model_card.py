"""Writes the model card (README.md) of a Hub repository from a run's result, without local paths."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from backprop_core.schema.refs import BaseRecord, DatasetSummary, GGUFRecord, RunResult
from backprop_core.schema.score_text import gain, level
from backprop_core.store.cache_keys import canonical

RECIPE = {  # spec fields that the card shows
    "training": "steps epochs learning_rate batch_size max_length weight_decay max_grad_norm precision "
    "replay replay_rows replay_general seed",
    "training.lora": "variant rank alpha dropout target_modules",
    "merge": "strategy",
}
PRIVATE: Any = {"path": True, "fidelity": {"answers"}}  # of a GGUF file; its answers may quote held-out rows


def record(result: RunResult, datasets: Sequence[DatasetSummary]) -> str:
    """The card's content for machines, as canonical JSON."""
    assert result.base and result.merged
    return canonical(
        {
            "format": 1,
            "line": result.line,
            "version": result.version,
            "run_id": result.run_id,
            "base": {"name": base_name(result.base), "revision": result.base.revision, "digest": result.base.digest},
            "merged": result.merged.digest,
            "datasets": [dataset.model_dump(mode="json") for dataset in datasets],
            "gguf": [file.model_dump(mode="json", exclude=PRIVATE) for file in result.gguf],
        }
    )


def card(result: RunResult, datasets: Sequence[DatasetSummary], *, repo: str, files: Sequence[str]) -> str:
    """The README.md of a repository. `files` are the names of the GGUF files, in the order of `result.gguf`."""
    assert result.base and result.merged
    version = f", version {result.version}" if result.version else ""
    parts = [
        front_matter(result.base),
        f"# {result.line}{version}\n",
        f"A LoRA adapter for {plain(base_name(result.base))}, merged from {len(datasets)} training runs.\n",
        *section("How to use", usage(result, repo, files)),
        *section("Base", base(result.base)),
        *section("Data", data(datasets)),
        *section("Recipe", recipe(result.spec)),
        *section("What it remembers", forgetting(result)),
        *section("Files", fidelity(result.gguf, files)),
        *section(
            "How to reproduce", [f"```\nbackprop replay {result.run_id}\n```", f"Adapter {result.merged.digest}."]
        ),
    ]
    return "\n".join(parts)


def section(title: str, lines: Sequence[str] | Iterator[str]) -> list[str]:
    """A section; empty without lines."""
    body = list(lines)
    return [f"## {title}\n", *body, ""] if body else []


def front_matter(base: BaseRecord) -> str:
    """The card's YAML front matter, which the Hub reads."""
    named: dict[str, Any] = {"base_model": base.name, "base_model_relation": "adapter"} if base.revision else {}
    data = ModelCardData(**named, library_name="peft", pipeline_tag="text-generation", tags=["lora", "slao"])
    return f"---\n{data.to_yaml()}\n---\n"


def base_name(base: BaseRecord) -> str:
    """The hub id; for a local directory, its digest."""
    return base.name if base.revision else f"a local model ({base.digest[:12]})"


def usage(result: RunResult, repo: str, files: Sequence[str]) -> Iterator[str]:
    assert result.base
    if result.base.revision:
        yield (
            "```python\n"
            "from peft import AutoPeftModelForCausalLM\n"
            "from transformers import AutoTokenizer\n\n"
            f'model = AutoPeftModelForCausalLM.from_pretrained("{repo}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{repo}")\n'
            "```"
        )
    else:
        yield f'`PeftModel.from_pretrained(base, "{repo}")` on the base below; the tokenizer is here.'
    for name in files[:1]:
        yield f"\nOr the fused file: `ollama run hf.co/{repo}:{name.rpartition('-')[2].removesuffix('.gguf')}`"


def base(base: BaseRecord) -> Iterator[str]:
    rows = [["model", base_name(base)], ["revision", base.revision or "none"], ["digest", base.digest]]
    yield from table(["", ""], rows + ([["day in its chat template", base.day]] if base.day else []))
    if base.day:
        yield f"\nIts chat template writes the day. Training and evaluation saw {base.day}; a server writes its own."


def data(datasets: Sequence[DatasetSummary]) -> Iterator[str]:
    """The table of training datasets, in order, with digests and counts."""
    rows = [
        [str(number), one.name, one.task, str(one.train_rows), str(one.heldout_rows), dropped(one), one.digest[:12]]
        for number, one in enumerate(datasets, 1)
    ]
    return table(["run", "dataset", "task", "rows", "held out", "dropped", "digest"], rows)


def dropped(dataset: DatasetSummary) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(dataset.dropped.items())) or "0"


def recipe(spec: dict[str, Any]) -> Iterator[str]:
    rows = []
    for section, names in RECIPE.items():
        values = spec
        for part in section.split("."):
            values = values[part]
        known = {name: values[name] for name in names.split() if values.get(name) is not None}
        rows += [[f"{section}.{name}", json.dumps(value)] for name, value in known.items()]
    return table(["field", "value"], rows)


def forgetting(result: RunResult) -> Iterator[str]:
    """The forgetting matrix in token accuracy, the base first."""
    scores = result.evaluation
    if scores is None:
        return
    yield "Token accuracy on held-out rows, in percent.\n"
    rows = [["the base", *map(percent, scores.base)]]
    rows += [[f"run {number}", *map(percent, row)] for number, row in enumerate(scores.matrix, 1)]
    yield from table(["after", *scores.tasks], rows)
    transfer = scores.backward_transfer
    yield f"\nAverage {level(scores.average, scores.metric)} ({scores.metric})" + (
        "." if transfer is None else f", backward transfer {gain(transfer, scores.metric)}."
    )
    if result.gate:
        yield f"\nGate: {'accepted' if result.gate.accepted else 'rejected'}, {plain(result.gate.reason)}."


def fidelity(gguf: Sequence[GGUFRecord], files: Sequence[str]) -> Iterator[str]:
    """The table of GGUF files, with their fidelity to the fused model."""
    if not gguf:
        return iter(())
    rows = [[name, *measured(file), file.digest[:12]] for name, file in zip(files, gguf, strict=True)]
    return table(["file", "MiB", "same token ids", "same next token", "KL, nats", "same answers", "digest"], rows)


def measured(file: GGUFRecord) -> list[str]:
    size = f"{file.bytes / 2**20:.1f}"
    if not file.fidelity:
        return [size, "not measured", "", "", ""]
    ids = "yes" if file.fidelity["ids_equal"] else "no"
    kl = f"{max(0.0, float(file.fidelity['kl'])):.2g}"
    return [size, ids, percent(float(file.fidelity["top1"])), kl, file.same_answers]


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(map(plain, cells))} |"


def plain(text: str) -> str:
    """Escape Markdown and HTML."""
    return re.sub(r"([|<>`*\[\]\\])", r"\\\1", " ".join(text.split()))
