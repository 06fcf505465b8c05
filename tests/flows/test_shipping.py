"""What a run made goes out: to Ollama and to the Hub, through the flows, to servers over real HTTP."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from backprop_core.errors import AuthRequired, OutputExists
from backprop_core.schema.refs import PackageRecord
from backprop_core.schema.specs import EvaluationSpec, ExportSpec, LoraSpec, PublishSpec, TrainSpec
from flows.evaluate import evaluate
from flows.export import export
from flows.publish import publish
from flows.release import release
from flows.retrain import retrain
from flows.rollback import rollback
from flows.train import train
from tasks.runs.copy_exports import Output, hand_out
from tests.flows.test_retrain import GOOD, SHORT, batch
from tests.wire.hub_server import TOKEN, HubServer
from tests.wire.ollama_server import OllamaServer

TRAINING = TrainSpec(steps=2, batch_size=8, lora=LoraSpec(rank=4))
pytestmark = pytest.mark.usefixtures("warm_worker", "prefect")


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


def test_a_directory_goes_out_too(base: Path, data: list[str], tmp_path: Path) -> None:
    """An adapter that no run here made, to a checked GGUF file, and scored on rows that are given."""
    made = train(data[0], model=str(base), training=TRAINING, evaluation=EvaluationSpec(heldout_max=5))
    assert made.merged
    elsewhere = shutil.copytree(made.merged.path, tmp_path / "elsewhere", ignore=lambda *_: ["artifact.json"])
    again, own = (export(ref, "f16", model=model) for ref, model in ((str(elsewhere), str(base)), (made.run_id, None)))
    assert again.merged == made.merged and again.gguf[0].digest == own.gguf[0].digest and again.gguf[0].fidelity
    scored = evaluate(str(elsewhere), [data[1]], model=str(base))
    assert scored.evaluation and len(scored.evaluation.tasks) == 1


def test_three_files_of_one_adapter(base: Path, data: list[str]) -> None:
    """Each is compared with the model, which reads the rows once; what they are made of is made once, afresh too."""
    other = TRAINING.model_copy(update={"steps": 3})
    made = train(data[0], model=str(base), training=other, evaluation=EvaluationSpec(heldout_max=5))
    for fresh in (False, True):
        again = export(made.run_id, ["f16", "q8_0", "q4_k_m", "q3_k_m"], fresh=fresh)
        done = [stage.stage for stage in again.stages if not stage.cached]
        assert (done.count("reference"), done.count("convert"), done.count("quantize")) == (1, 2, 2)
        assert len({stage.key for stage in again.stages if not stage.cached}) == len(done)
        assert done.count("fidelity") == 4 and all(file.fidelity["ids_equal"] for file in again.gguf)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with HubServer().running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_a_run_on_the_hub(hub: HubServer, base: Path, data: list[str], tmp_path: Path) -> None:
    """One private commit with adapter, tokenizer, card and file; PEFT loads it on the base; no path is in it."""
    made = train(data[0], model=str(base), training=TRAINING, evaluation=EvaluationSpec(heldout_max=5))
    pushed = publish(made.run_id[:8], "team/support", gguf=["q8_0"])
    repo = hub.repos["team/support"]
    assert repo.private and len(repo.commits) == 2 and pushed.hub == {"repo": "team/support", "commit": repo.head}
    files = {name: hub.read("team/support", name) for name in repo.files}
    assert {"tokenizer.json", "chat_template.jinja", "README.md", "backprop.json", "default-q8_0.gguf"} <= files.keys()
    for name, content in files.items():
        assert str(base.parent).encode() not in content and str(tmp_path.parent).encode() not in content, name
        (tmp_path / name).write_bytes(content)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path)
    assert model.peft_config["default"].r == 4 and AutoTokenizer.from_pretrained(tmp_path).chat_template
    assert f"backprop replay {made.run_id}" in files["README.md"].decode()
    assert TOKEN not in pushed.model_dump_json()


def test_a_token_that_is_missing_is_missed_first(
    base: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that is to go to the Hub is not trained while there is nothing to log in with."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(AuthRequired) as caught:
        retrain("unheard", batch(tmp_path, 1), str(base), SHORT, publish=PublishSpec(repo="team/unheard"))
    result = json.loads((home / "store" / "runs" / str(caught.value.run_id) / "result.json").read_text())
    assert result["stages"] == [] and result["status"] == "failed"


def test_a_line_goes_out_and_comes_back(ollama: OllamaServer, hub: HubServer, base: Path, tmp_path: Path) -> None:
    """A retrain releases by itself, the next to the same places; a rollback brings every one of them back."""
    where = PublishSpec(ollama="night", repo="team/night")
    files = ExportSpec(quantizations=["q8_0"])
    first = retrain("night", batch(tmp_path, 1), str(base), SHORT, export=files, publish=where)
    assert (first.status, first.ollama["model"]) == ("finished", "night:v1")
    before = {name: hub.read("team/night", name) for name in hub.repos["team/night"].files}
    second = retrain("night", batch(tmp_path, 2), training=GOOD)
    assert (second.version, second.ollama["model"], second.hub["repo"]) == (2, "night:v2", "team/night")
    assert ollama.models["night:latest"] == ollama.models["night:v2"] != ollama.models["night:v1"]
    assert json.loads(hub.read("team/night", "backprop.json"))["version"] == 2
    back = rollback("night")
    assert (back.version, back.ollama["model"]) == (1, "night:v1")
    assert ollama.models["night:latest"] == ollama.models["night:v1"]
    assert {name: hub.read("team/night", name) for name in hub.repos["team/night"].files} == before
    again = release("night", PublishSpec(ollama="day"))
    assert again.ollama["model"] == "day:v1" and again.hub["repo"] == "team/night"
    assert ollama.models.keys() == {f"night:{tag}" for tag in ("v1", "v2", "latest")} | {"day:v1", "day:latest"}


def test_an_export_overwrites_nothing_of_others(base: Path, data: list[str], tmp_path: Path) -> None:
    """A file that no export of this model wrote stays, and the error says --name and --force; ours is written again."""
    one, two = (
        train(path, model=str(base), training=TRAINING, evaluation=EvaluationSpec(heldout_max=5)) for path in data[:2]
    )
    made = export(one.run_id, "f16", output=str(tmp_path))
    assert {Path(path).name for path in made.written} == {"default-f16.gguf", "default-f16.Modelfile"}
    file = tmp_path / "default-f16.gguf"
    assert (
        all(Path(path).is_file() for path in made.written) and export(one.run_id, "f16", output=str(tmp_path)).written
    )
    before = file.read_bytes()
    with pytest.raises(OutputExists, match=r"default-f16\.gguf") as caught:
        export(two.run_id, "f16", output=str(tmp_path))
    assert "--name" in caught.value.hint and "--force" in caught.value.hint and file.read_bytes() == before
    named = export(two.run_id, "f16", output=str(tmp_path), name="other")
    assert (tmp_path / "other-f16.gguf").is_file() and len(named.written) == 2 and file.read_bytes() == before
    export(two.run_id, "f16", output=str(tmp_path), force=True)
    assert file.read_bytes() == (tmp_path / "other-f16.gguf").read_bytes() != before
    file.write_text("a person's own")
    with pytest.raises(OutputExists):
        export(two.run_id, "f16", output=str(tmp_path))
    assert file.read_text() == "a person's own"


def test_the_next_version_of_a_line_takes_its_place(tmp_path: Path) -> None:
    """A directory that the exports of a line go to has its newest one, without --force."""
    export_spec = ExportSpec(packages=["lora"])
    for number in (1, 2):
        source = tmp_path / f"package {number}"
        source.mkdir()
        (source / "weights").write_text(str(number))
        record = PackageRecord(digest="a" * 64, path=str(source), package="lora", bytes=1)
        files = hand_out([], [record], export_spec, Output(tmp_path / "out", "support", "line support", False))
    assert (files[0] / "weights").read_text() == "2"
    with pytest.raises(OutputExists):
        Output(tmp_path / "out", "support", "line other", False).check(export_spec)
