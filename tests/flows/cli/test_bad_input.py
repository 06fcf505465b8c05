"""Bad input: a coded error in two lines, exit 1, nothing half-written, and nothing started for it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import settings
from backprop_core.store.artifacts import Store
from flows.cli import prefect_environment
from flows.cli.main import main
from tasks.runs import worker_process
from tests.backprop_core import nano
from tests.backprop_core.lines.test_versions import version


@pytest.fixture
def world(tmp_path, home, base, monkeypatch) -> Path:
    """A directory with a good base, good data, and everything that can be wrong with them."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(json.dumps(row) + "\n" for row in nano.chats(30))
    files = {
        "good.jsonl": rows,
        "empty.jsonl": "",
        "prose.jsonl": "these are not JSON rows\nneither is this\n",
        "strange.jsonl": '{"zig": 1}\n{"zag": 2}\n',
        "silent.jsonl": '{"messages": [{"role": "user", "content": "hello"}]}\n' * 3,
        "typo.yaml": "line: support\ntraining:\n  learning_rat: 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name in ("base", "bare", "mute", "deaf", "pickled", "code"):
        shutil.copytree(base, tmp_path / name)
    (tmp_path / "bare" / "model.safetensors").unlink()
    (tmp_path / "mute" / "chat_template.jinja").unlink()
    (tmp_path / "deaf" / "chat_template.jinja").write_text("{{ raise_exception('not today') }}")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    other = tmp_path / "other-adapter"
    other.mkdir()
    (other / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{layer}.lora_A.weight": np.ones((1, 7), np.float32)}, other / "adapter_model.safetensors")
    config = tmp_path / "code" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {"AutoModel": "evil.Model"}}))
    return tmp_path


TRAIN = ["train", "--model", "base", "--data", "good.jsonl"]
RETRAIN = ["retrain", "--line", "new", *TRAIN[1:]]
CASES = {
    "no such file": (["train", "--model", "base", "--data", "nowhere.jsonl"], "INPUT_NOT_FOUND", "nowhere.jsonl"),
    "an empty file": (["train", "--model", "base", "--data", "empty.jsonl"], "INPUT_NO_ROWS", "empty.jsonl"),
    "not JSON": (["train", "--model", "base", "--data", "prose.jsonl"], "INPUT_VALIDATION_FAILED", "line 1"),
    "unknown row format": (["train", "--model", "base", "--data", "strange.jsonl"], "INPUT_FORMAT_UNKNOWN", "zig"),
    "no rows left": (["train", "--model", "base", "--data", "silent.jsonl"], "INPUT_", "silent.jsonl"),
    "no such model": (["train", "--model", "./none", "--data", "good.jsonl"], "INPUT_NOT_FOUND", "./none"),
    "no weights": (["train", "--model", "bare", "--data", "good.jsonl"], "DEP_MODEL_LOAD_FAILED", "model.safetensors"),
    "no chat template": (
        ["train", "--model", "mute", "--data", "good.jsonl"],
        "CONFIG_CHAT_TEMPLATE_MISSING",
        ".jinja",
    ),
    "a template that does not render": (
        ["train", "--model", "deaf", "--data", "good.jsonl"],
        "CONFIG_CHAT_TEMPLATE_UNUSABLE",
        "not today",
    ),
    "an adapter of another base": (
        ["export", "./other-adapter", "--model", "base"],
        "CONFIG_ADAPTER_MISMATCH",
        "q_proj",
    ),
    "an adapter without a base": (["generate", "other-adapter", "--prompt", "x"], "CONFIG_INVALID", "--model"),
    "a directory without an adapter": (["export", "./base"], "INPUT_NOT_FOUND", "adapter_config.json"),
    "a base for a run": (["export", "taken@1", "--model", "base"], "CONFIG_INVALID", "--model"),
    "pickled weights": (["train", "--model", "pickled", "--data", "good.jsonl"], "CONFIG_UNSAFE_MODEL", "pickled"),
    "code in the config": (["train", "--model", "code", "--data", "good.jsonl"], "CONFIG_UNSAFE_MODEL", "auto_map"),
    "another base's line": ([*TRAIN, "--line", "taken"], "STATE_LINE_CONFLICT", "taken"),
    "no such quantization": ([*TRAIN, "--export", "q4_k_x"], "CONFIG_", "q4_k_x"),
    "a misspelt field": ([*TRAIN, "--set", "training.learning_rat=1"], "CONFIG_INVALID", "training.learning_rate"),
    "a misspelt field in a file": ([*TRAIN, "--config", "typo.yaml"], "CONFIG_INVALID", "typo.yaml:3"),
    "a value out of range": ([*TRAIN, "--set", "training.lora.rank=0"], "CONFIG_INVALID", "rank"),
    "a name that Ollama refuses": ([*TRAIN, "--set", "export.ollama=Sup port"], "CONFIG_INVALID", "export.ollama"),
    "an adapter that no file could hold": (
        [*TRAIN, "--export", "f16", "--set", "training.lora.target_modules=[lm_head]"],
        "CONFIG_ADAPTER_MISMATCH",
        "lm_head",
    ),
    "a layer that is not there": (
        [*TRAIN, "--set", "training.lora.target_modules=[q_prj]"],
        "CONFIG_ADAPTER_MISMATCH",
        "q_prj",
    ),
    "weights for no file": (
        [*TRAIN, "--export", "f16", "--set", "export.imatrix=true"],
        "CONFIG_INVALID",
        "export.imatrix",
    ),
    "a model without a file": ([*TRAIN, "--set", "export.ollama=support"], "CONFIG_INVALID", "GGUF"),
    "a broken system prompt": ([*TRAIN, "--set", 'export.system=a """ b'], "CONFIG_INVALID", "export.system"),
    "a repository that is none": ([*RETRAIN, "--set", "publish.repo=a/b/c"], "CONFIG_INVALID", "a/b/c"),
    "a run that publishes nothing": ([*TRAIN, "--set", "publish.repo=a/b"], "CONFIG_INVALID", "publishes nothing"),
    "a line that is not there": (["release", "nowhere", "--ollama", "x"], "INPUT_REF_UNKNOWN", "nowhere"),
    "nothing to go back to": (["rollback", "taken"], "INPUT_REF_UNKNOWN", "taken"),
    "a push to nowhere": (["push", "feedbeef", "--repo", "x"], "CONFIG_INVALID", "publish.repo"),
    "an unknown run": (["resume", "feedbeef"], "INPUT_REF_UNKNOWN", "feedbeef"),
    "an ambiguous prefix": (["resume", "ab"], "INPUT_REF_AMBIGUOUS", "ab"),
    "an unknown run to show": (["show-run", "feedbeef"], "INPUT_REF_UNKNOWN", "feedbeef"),
    "an unknown run to export": (["export", "feedbeef"], "INPUT_REF_UNKNOWN", "feedbeef"),
}
READ_IN_THE_RUN = {"silent.jsonl"}  # a failed run is in the history


@pytest.mark.parametrize("arguments, code, named", CASES.values(), ids=CASES)
def test_bad_input(world, home, capsys, arguments, code, named):
    """Each says its code, what is wrong with which, and what to do; with --json the same as a document."""
    store = Store(home / "store")
    Lines(store).append("taken", version(), after=0)
    for run in ("ab" * 16, "abc" + "d" * 29):
        store.layout.run(run).root.mkdir(parents=True)
        store.layout.run(run).spec.write_text("{}")
    assert main([*arguments, "--json"]) == 1
    out, err = capsys.readouterr()
    *started, what, hint = err.strip().splitlines()
    assert what.startswith(f"[{code}")
    assert named in what + hint
    assert json.loads(out)["error"]["code"].startswith(code)
    recorded = any("run_started" in line for line in started)
    assert recorded == (arguments[-1] in READ_IN_THE_RUN)
    if arguments[0] in ("train", "retrain"):  # a plan refuses the same, in the same words
        assert main([*arguments, "--plan", "--json"]) == 1
        planned = json.loads(capsys.readouterr().out)["error"]
        assert planned == json.loads(out)["error"]
    assert list((home / "store").glob("artifacts/*")) == []
    assert list((home / "store").glob("tmp/*")) == []


SWEEP = ["sweep", "--model", "base", "--set", "training.lora.rank=2,4", "--data"]
WATCH = "evaluation.watch=[{path: %s}]"
READERS = {
    "train": ["train", "--model", "base", "--data", "%s"],
    "multi-run, the second": ["multi-run", "--model", "base", "--data", "good.jsonl", "--data", "%s"],
    "retrain": ["retrain", "--line", "new", "--model", "base", "--data", "%s"],
    "sweep": [*SWEEP, "%s"],
    "held out": [*TRAIN, "--heldout", "%s"],
    "watched": [*TRAIN, "--set", WATCH],
    "evaluate": ["evaluate", "new", "--data", "%s"],
}


@pytest.mark.parametrize("name", ["nowhere.jsonl", "empty.jsonl", "prose.jsonl", "strange.jsonl", "turns.jsonl"])
@pytest.mark.parametrize("reader", READERS)
def test_bad_data_is_refused_before_anything_starts(
    world: Path, home: Path, monkeypatch: pytest.MonkeyPatch, reader: str, name: str
) -> None:
    """No server and no worker starts, and no run begins, for data that its first rows show to be bad."""
    monkeypatch.setattr(prefect_environment, "_server", None)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (world / "turns.jsonl").write_text('{"messages": "hello"}\n' * 30)
    assert main([word.replace("%s", name) for word in READERS[reader]]) == 1
    assert not settings().layout.log("prefect-server").exists()
    assert not worker_process.is_running()
    assert list(Store(home / "store").layout.begun()) == []


@pytest.mark.parametrize("name", ["nowhere.jsonl", "empty.jsonl", "prose.jsonl", "strange.jsonl"])
def test_bad_questions_are_refused_before_a_model_is_looked_for(
    world: Path, home: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """`compare` reads its file of rows first."""
    assert main(["compare", "nothing", "base", "--data", name]) == 1
    assert name in capsys.readouterr().err


def test_bad_data_of_a_comparison_is_refused_before_anything_starts(
    world: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is in a directory of datasets."""
    monkeypatch.setattr(prefect_environment, "_server", None)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (world / "sets").mkdir()
    for name in ("good", "strange"):
        shutil.copy(world / f"{name}.jsonl", world / "sets")
    assert main(["bench", "sets", "--model", "base"]) == 1
    assert not settings().layout.log("prefect-server").exists()
