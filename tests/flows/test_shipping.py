"""What a run made goes out: to Ollama and to the Hub, through the flows, to servers over real HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from backprop_core.specs import EvaluationSpec, ExportSpec, LoraSpec, TrainSpec
from flows.export import export
from flows.train import train
from tests.wire.ollama_server import OllamaServer

TRAINING = TrainSpec(steps=2, batch_size=8, lora=LoraSpec(rank=4))
pytestmark = pytest.mark.usefixtures("prefect")


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One home for these tests: they share what is cached."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("BACKPROPAGATE_HOME", str(home))
        yield home


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaServer]:
    with OllamaServer().running() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        yield server


def test_a_run_ends_in_ollama(ollama: OllamaServer, base: Path, data: list[str], tmp_path: Path) -> None:
    """The file that was exported is the model that answers; an export later does the same, with a Modelfile beside."""
    wanted = ExportSpec(quantizations=["q8_0", "f16"], ollama="support", system="Be brief.")
    made = train(data[0], model=str(base), training=TRAINING, evaluation=EvaluationSpec(heldout_max=5), export=wanted)
    model = ollama.models["support:latest"]
    assert ollama.blobs[model["files"]["model.gguf"]] == Path(made.gguf[0].path).read_bytes()
    assert model["parameters"] == {"stop": ["<|im_end|>"], "num_ctx": 512} and model["system"] == "Be brief."
    assert made.ollama and made.ollama["answer"] == f"heard: {made.ollama['prompt']}"
    assert made.ollama["prompt"].startswith("Say ")
    again = export(made.run_id, "q8_0", output=str(tmp_path), ollama="other", num_ctx=64)
    assert again.gguf == made.gguf[:1] and ollama.count("POST /api/blobs") == 1
    assert ollama.models["other:latest"]["parameters"]["num_ctx"] == 64
    text = (tmp_path / "default-q8_0.Modelfile").read_text()
    assert text == 'FROM ./default-q8_0.gguf\nPARAMETER num_ctx 64\nPARAMETER stop "<|im_end|>"\n'
