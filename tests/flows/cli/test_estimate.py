"""`backprop estimate-vram` and `--preset`: what fits which card, and what suits which model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backprop_core.errors import ConfigInvalid
from backprop_core.models.devices import visible_gpus
from backprop_core.schema.specs import RunSpec
from flows.cli import main
from flows.cli.flags import Flags

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def empty_directory(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.env`, and no settings of anybody's."""
    monkeypatch.chdir(tmp_path)


def estimated(capsys: Capture, *words: str) -> Any:
    assert main.main(["estimate-vram", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_fits_a_card(capsys: Capture) -> None:
    """On 16 GB a Qwen2.5-7B trains in NF4 with checkpointing alone, and that is what we would choose."""
    found = estimated(capsys, "--model", "Qwen/Qwen2.5-7B-Instruct", "--vram", "16GB")
    fits = {(way["precision"], way["checkpointing"]): way["fits"] for way in found["ways"]}
    assert fits == {("bf16", False): "no", ("bf16", True): "no", ("nf4", False): "no", ("nf4", True): "yes"}
    for way in found["ways"]:
        assert sum(way["parts"].values()) == pytest.approx(way["total"], abs=0.01)
    chosen = {choice["field"]: choice["value"] for choice in found["choices"]}
    assert (chosen["training.precision"], chosen["training.gradient_checkpointing"]) == ("nf4", "on")
    assert found["vram_gib"] == 16 and found["ways"][-1]["longest"] > 8192


def test_settings_are_read(capsys: Capture, data: list[str]) -> None:
    """What `--set` gives is what is measured and stays; the data decides what depends on it."""
    plain = estimated(capsys, "--model", "llama-3.2-1b")
    words = ("--set", "training.lora.rank=32", "--set", "training.max_length=8192", "--set", "training.precision=fp32")
    other = estimated(capsys, "--model", "llama-3.2-1b", *words, "--data", data[0])
    assert other["lora_parameters"] == 2 * plain["lora_parameters"]
    assert (plain["tokens"], other["tokens"]) == (4096, 8192)
    assert {way["precision"] for way in other["ways"]} == {"fp32"}
    assert plain["seconds"] is None and other["seconds"] > 0
    chosen = {choice["field"]: choice for choice in other["choices"]}
    assert chosen["training.lora.rank"]["reason"] == "given" and chosen["training.batch_size"]["value"] == 2
    nf4 = estimated(capsys, "--model", "llama-3.2-1b", "--vram", "80", "--set", "model.quantization=nf4")
    assert [choice["value"] for choice in nf4["choices"] if choice["field"] == "training.precision"] == ["nf4"]


def test_for_people(capsys: Capture, base: Path) -> None:
    """A directory's model, in GiB, each choice with its reason; without a GPU nothing is said to fit."""
    assert main.main(["estimate-vram", "--model", str(base)]) == 0
    out = capsys.readouterr().out
    assert "in GiB" in out and "training.learning_rate" in out and "M parameters" in out
    assert ("no GPU found" in out) != bool(visible_gpus())


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--model", "gpt-9"], "INPUT_NOT_FOUND", "gpt-9"),
        (["--model", "nobody/nothing"], "DEP_MODEL_LOAD_FAILED", "nobody/nothing"),
        (["--vram", "much"], "CONFIG_INVALID", "--vram 16GB"),
        (["--vram", "0"], "CONFIG_INVALID", "--vram 16GB"),
        (["--set", "traning.lora.rank=8"], "CONFIG_INVALID", "did you mean `training`"),
        (["--set", "training.lora.target_modules=[query]"], "CONFIG_ADAPTER_MISMATCH", "q_proj"),
        (
            ["--set", "model.quantization=nf4", "--set", "training.precision=bf16"],
            "CONFIG_INVALID",
            "remove one of them",
        ),
        (["--data", "none.jsonl"], "INPUT_NOT_FOUND", "none.jsonl"),
    ],
)
def test_wrong_input(words: list[str], code: str, part: str, capsys: Capture) -> None:
    """Exit 1 and two lines: the code, and what to do."""
    assert main.main(["estimate-vram", *words]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"[{code}] ") and part in err and err.count("\n") == 2


def test_an_estimate_loads_nothing_heavy() -> None:
    """No weights are read and no torch is loaded: the config says it all."""
    heavy = ["torch", "transformers", "prefect", "mlflow", "peft"]
    code = (
        "import sys; from flows.cli.main import main; main(['estimate-vram', '--vram', '24GB']);"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.splitlines()[-1] == "[]" and "bf16" in done.stdout


def asked(**flags: Any) -> RunSpec:
    return Flags(data=["a.jsonl"], **flags).spec()


def test_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset brings its model and what suits it; it beats the environment, and file, flags and `--set` beat it."""
    plain, small = asked(), asked(preset="llama-3.2-1b")
    assert small.model.name == "meta-llama/Llama-3.2-1B-Instruct" and small.training.learning_rate == 5e-4
    assert small.training.model_copy(update={"learning_rate": plain.training.learning_rate}) == plain.training
    monkeypatch.setenv("BACKPROPAGATE_TRAINING__LEARNING_RATE", "1e-6")
    assert asked(preset="llama-3.2-1b") == small
    (tmp_path / "job.yaml").write_text("training: {learning_rate: 1e-5}\n")
    assert asked(preset="llama-3.2-1b", config=Path("job.yaml")).training.learning_rate == 1e-5
    assert asked(preset="llama-3.2-1b", set=["training.learning_rate=1e-4"]).training.learning_rate == 1e-4
    assert asked(preset="llama-3.2-1b", model="x/y").model.name == "x/y"
    with pytest.raises(ConfigInvalid, match="llama-9") as caught:
        asked(preset="llama-9")
    assert "qwen2.5-7b" in caught.value.hint
