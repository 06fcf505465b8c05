"""Tasks of lm-evaluation-harness on our models, against the likelihoods that transformers itself gives."""

import json
import math
from pathlib import Path
from statistics import fmean

import pytest
import torch
import yaml

from backprop_core.errors import ConfigInvalid, HarnessFailed
from backprop_core.evaluation import lm_eval_tasks
from backprop_core.evaluation.lm_eval import figures, harness
from backprop_core.models.loading import LoadedBase, adapted
from backprop_core.schema.refs import AdapterRef
from backprop_core.schema.specs import HarnessSpec
from backprop_core.store.artifacts import Store
from tests.backprop_core import nano

CHATS = [[turn["content"] for turn in row["messages"]] for row in nano.chats(40)]  # what `tuned` has learned
PAIRS = [(f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n", answer) for asked, answer in CHATS]
SPEC = HarnessSpec(tasks=["appliances"], limit=20)


def write_task(directory: Path) -> Path:
    """A task of forty answers, each as likely as the model finds it."""
    directory.mkdir()
    data = directory / "rows.jsonl"
    data.write_text("".join(json.dumps({"asked": asked, "answer": answer}) + "\n" for asked, answer in PAIRS))
    task = {
        "task": "appliances",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(directory.with_name("cache"))},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{asked}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
    }
    (directory / "appliances.yaml").write_text(yaml.safe_dump(task))
    return directory


def perplexity(base: LoadedBase, adapter: AdapterRef | None, store: Store) -> float:
    """exp of the mean negative log-likelihood of an answer, over the first twenty."""

    def likelihood(asked: str, answer: str) -> float:
        start = len(base.tokenizer.encode(asked.rstrip()))  # the harness counts spaces at its end to the answer
        both = base.tokenizer.encode(asked + answer)
        logits = model(torch.tensor([both])).logits[0, start - 1 : -1]
        return float(logits.log_softmax(-1).gather(1, torch.tensor(both[start:])[:, None]).sum())

    with adapted(base, adapter, store) as model, torch.no_grad():
        return math.exp(-fmean(likelihood(*pair) for pair in PAIRS[:20]))


def test_the_harness_sees_the_adapter(base: LoadedBase, shared: Store, tuned: AdapterRef, tmp_path: Path) -> None:
    """Its figures of base and adapter are those by transformers' logits; the tokenizer stays as it was."""
    own = lm_eval_tasks.find(write_task(tmp_path / "tasks"))
    before = repr(base.tokenizer)
    found = {}
    for adapter in (None, tuned):
        scores = harness(base, adapter, spec=SPEC, own=own, store=shared).scores
        assert scores == {"appliances": {"perplexity": pytest.approx(perplexity(base, adapter, shared), rel=1e-4)}}
        found[adapter] = scores["appliances"]["perplexity"]
    assert found[tuned] < found[None] / 2
    assert repr(base.tokenizer) == before


def test_tasks_are_as_they_were_when_the_run_began(base: LoadedBase, shared: Store, tmp_path: Path) -> None:
    """What changed meanwhile is coded, be it a task or its data; a directory without tasks is refused at once."""
    directory = write_task(tmp_path / "tasks")
    own = lm_eval_tasks.find(directory)
    (directory / ".swp").write_text("an editor's")
    assert lm_eval_tasks.find(directory) == own
    (directory / "rows.jsonl").write_text(json.dumps({"asked": "?", "answer": "!"}))
    with pytest.raises(ConfigInvalid, match="has changed since"):
        harness(base, None, spec=SPEC, own=own, store=shared)
    with pytest.raises(ConfigInvalid, match="no task files"):
        lm_eval_tasks.find(tmp_path / "nothing")


def test_data_that_are_not_there(base: LoadedBase, shared: Store, tmp_path: Path) -> None:
    """The task names a file that is gone: coded, and what went wrong is said."""
    directory = write_task(tmp_path / "tasks")
    (directory / "rows.jsonl").unlink()
    with pytest.raises(HarnessFailed, match="FileNotFoundError") as caught:
        harness(base, None, spec=SPEC, own=lm_eval_tasks.find(directory), store=shared)
    assert caught.value.retryable


def test_what_is_no_number_is_left_out() -> None:
    """NaN has no JSON; a standard error is no score; a filter's name stays."""
    found = {"acc,none": 0.5, "f1,strict": 1, "r,none": math.nan, "acc_stderr,none": 0.1, "alias": "x", "p,none": "N/A"}
    assert figures(found) == {"acc": 0.5, "f1,strict": 1.0}
