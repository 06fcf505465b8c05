"""What held-out text says of a model's matrices: measured as by hand, and worth having when little is left of them."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file

from backprop_core.export.fidelity import Reader, compare
from backprop_core.export.fidelity_reference import Likely, reference_logits
from backprop_core.export.gguf import convert
from backprop_core.export.imatrix import FILE, importance
from backprop_core.export.quantize import quantize
from backprop_core.models import base as bases
from backprop_core.models.loading import LoadedBase, load
from backprop_core.schema.refs import AdapterRef, RowsRef
from backprop_core.schema.specs import ExportSpec, ModelSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import part
from backprop_core.worker.runner import Runner
from tests.backprop_core import nano

EXAMPLES = Path(__file__).parents[3] / "examples"
MEASURED = 16  # rows that the KL is measured on, and that are not read before
LENGTH = {"max_length": 128, "skip": MEASURED}
MADE_OF = {"base_digest": "b" * 64}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_squares_are_those_of_the_fused_model(
    base: LoadedBase, path: Path, tuned: AdapterRef, heldout: RowsRef, shared: Store
) -> None:
    """The first layer's as numpy computes them, and of every layer those that PEFT's merged model is given."""
    found = importance(base, tuned, heldout, **LENGTH, **MADE_OF, store=shared)
    means = load_file(shared.local(found) / FILE)
    assert len(means) == 2 * 7 and found.rows == heldout.rows - MEASURED
    record = json.loads((shared.root / "records" / f"{found.digest}.json").read_text())
    assert (record["base"], record["adapter"]) == (MADE_OF["base_digest"], tuned.digest)
    rows = read(shared.local(heldout) / "rows.jsonl")[MEASURED:]
    texts = [base.tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    ids = [base.tokenizer(text).input_ids for text in texts]
    embedded = base.model.model.embed_tokens.weight.double().numpy()[np.concatenate(ids)]
    norm = base.model.model.layers[0].input_layernorm.weight.double().numpy()
    scaled = norm * embedded / np.sqrt((embedded**2).mean(-1, keepdims=True) + base.model.config.rms_norm_eps)
    assert means["blk.0.attn_q.weight"] == pytest.approx((scaled**2).mean(0), rel=1e-5)
    merged = PeftModel.from_pretrained(load(path, precision="fp32", device="cpu").model, shared.local(tuned))
    alone = LoadedBase(merged.merge_and_unload(), base.tokenizer, "fp32", base.device)
    expected = load_file(shared.local(importance(alone, None, heldout, **LENGTH, **MADE_OF, store=shared)) / FILE)
    bare = load_file(shared.local(importance(base, None, heldout, **LENGTH, **MADE_OF, store=shared)) / FILE)
    for name, mean in means.items():
        assert mean == pytest.approx(expected[name], rel=1e-3), name
    assert means["blk.1.ffn_down.weight"] != pytest.approx(bare["blk.1.ffn_down.weight"], rel=1e-2)


def divergence(base: LoadedBase, file: Path, texts: list[str]) -> float:
    """Mean KL of the file from the base, in nats per token."""
    ids = [base.tokenizer(text).input_ids for text in texts]
    with closing(Reader(file, length=128)) as reader:
        per_text = [compare(Likely.of(reference_logits(base.model, row)), reader.logits(row))[1] for row in ids]
    return torch.cat(per_text).double().mean().item()


def test_small_files_lose_less(shared: Store, tmp_path: Path) -> None:
    """On rows that were not read, q2_k and q3_k_m are nearer to the model than without, or upside down."""
    base = load(EXAMPLES / "base", precision="fp32", device="cpu")
    rows = read(EXAMPLES / "data" / "heldout" / "route.jsonl")[:60]
    found = importance(base, None, nano.commit_rows(shared, rows), **LENGTH, **MADE_OF, store=shared)
    means = load_file(shared.local(found) / FILE)
    save_file({name: 1 / (mean + 1e-6) for name, mean in means.items()}, tmp_path / "upside-down")
    convert(EXAMPLES / "base", None, tmp_path / "f16", outtype="f16")
    texts = [base.tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows[:MEASURED]]
    for quantization in ("q2_k", "q3_k_m"):
        lost = []
        for weights in (shared.local(found) / FILE, None, tmp_path / "upside-down"):
            quantize(tmp_path / "f16", tmp_path / "file", quantization, threads=1, importance=weights)
            lost.append(divergence(base, tmp_path / "file", texts))
        assert lost[0] < 0.8 * min(lost[1:]), (quantization, lost)


def test_stages_hand_it_on(path: Path, heldout: RowsRef, shared: Store) -> None:
    """In the worker: rows to weights, weights and file to another file than without them, and the same one again."""
    stages = Runner(shared, should_stop=lambda: False)
    base = bases.resolve(ModelSpec(name=str(path)), shared).model_dump()

    def run(stage: str, **parameters: Any) -> Any:
        return stages.run(stage, "k", parameters, lambda event: None).model_dump()

    placed = {"precision": "fp32", "device": "cpu"}
    weights = run("importance", base=base, adapter=None, heldout=heldout.model_dump(), **LENGTH, **placed)
    source = run("convert", base=base, adapter=None, outtype="f16")
    plain = run("quantize", source=source, quantization="q4_0")
    weighted = run("quantize_weighted", source=source, quantization="q4_0", importance=weights)
    assert weighted["bytes"] == plain["bytes"] and weighted["digest"] != plain["digest"]
    assert weighted == run("quantize_weighted", source=source, quantization="q4_0", importance=weights)


def test_it_is_part_of_a_key_only_when_asked_for() -> None:
    """What was cached before this could be asked for still counts."""
    assert "imatrix" not in part(ExportSpec()) and part(ExportSpec(imatrix=True))["imatrix"]
