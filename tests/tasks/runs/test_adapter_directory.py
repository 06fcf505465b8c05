"""A directory with a PEFT adapter is a REF: on the base that fits it, or refused before anything is loaded."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from backprop_core.errors import (
    AdapterMismatch,
    BackpropError,
    ConfigInvalid,
    InputValidationFailed,
    ModelLoadFailed,
    PathForbidden,
    RefAmbiguous,
    RunUnknown,
)
from backprop_core.export.adapter_packages import write_package
from backprop_core.export.gguf.fused_weights import Fused
from backprop_core.schema.refs import Located, PackageRecord, RunResult
from backprop_core.schema.specs import EvaluationSpec, ExportSpec, PublishSpec
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import stage_key
from backprop_core.worker.runner import Runner
from tasks.runs.copy_exports import Output, hand_out
from tasks.runs.prepared_run import save
from tasks.runs.resolve_earlier import again, evaluated, made, published
from tests.backprop_core import tiny_models as tiny
from tests.tasks.runs.test_references import add_version

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("base") / "base", "llama")


@pytest.fixture
def adapter(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DoRA adapter by PEFT itself, which writes its base's directory into the config; one is in the directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "home"))
    return tiny.add_adapter(base, tmp_path / "adapter", use_dora=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def change(adapter: Path, **fields: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_directory_is_its_adapter_on_its_base(adapter: Path, base: Path, store: Store) -> None:
    """The base is that of its config, or of --model; what is kept fuses as the directory does, and has no path."""
    found = made(str(adapter), store)
    change(adapter, base_model_name_or_path="")
    assert made("adapter", store, model=str(base)).adapter == found.adapter
    assert found.base.name == str(base) and found.spec.training.lora.variant == "dora" and found.of is None
    assert found.adapter
    kept, given = (Fused(base, directory) for directory in (store.local(found.adapter), adapter))
    assert all(kept.tensor(name).equal(given.tensor(name)) for name in kept.names())
    assert str(base) not in (store.local(found.adapter) / "adapter_config.json").read_text()
    with pytest.raises(ConfigInvalid, match="does not name its base"):
        made("adapter", store)


def narrower(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: t[:, :-1].contiguous() if "lora_A" in name else t for name, t in tensors.items()}, path)


def elsewhere(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({name.replace("layers.1", "layers.9"): tensor for name, tensor in load_file(path).items()}, path)


def write_weights(adapter: Path, content: bytes) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(content)


def without_rank(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "r"}))


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (narrower, AdapterMismatch, "does not fit"),
        (elsewhere, AdapterMismatch, "layers.9"),
        (lambda adapter: change(adapter, init_lora_weights="pissa_niter_4"), AdapterMismatch, "pissa"),
        (lambda adapter: change(adapter, modules_to_save=["lm_head"]), AdapterMismatch, "modules_to_save"),
        (lambda adapter: change(adapter, peft_type="LOHA"), AdapterMismatch, "LOHA"),
        (lambda adapter: (adapter / "adapter_config.json").write_text("{"), InputValidationFailed, "cannot be read"),
        (
            lambda adapter: write_weights(adapter, b"\2" + bytes(7) + b"\x80\x02"),
            InputValidationFailed,
            "cannot be read",
        ),
        (lambda adapter: write_weights(adapter, POINTER), InputValidationFailed, "cannot be read"),
        (lambda adapter: write_weights(adapter, b"<!DOCTYPE html>"), InputValidationFailed, "cannot be read"),
        (lambda adapter: change(adapter, r=0), InputValidationFailed, "invalid rank 0 or alpha"),
        (lambda adapter: change(adapter, lora_alpha=None), InputValidationFailed, "alpha None"),
        (without_rank, InputValidationFailed, "rank None"),
    ],
)
def test_what_a_merge_cannot_mean_is_refused(
    spoil: Callable[[Path], Any], error: type[BackpropError], said: str, adapter: Path, store: Store
) -> None:
    """Another base, a base that was changed, more than B·A, another kind, a broken file: nothing is kept of it."""
    spoil(adapter)
    with pytest.raises(error, match=said):
        made(str(adapter), store)
    assert list(store.root.glob("artifacts/*")) == []


def test_a_base_that_is_only_pointers_is_refused(adapter: Path, base: Path, store: Store, tmp_path: Path) -> None:
    """Weights that Git LFS has not fetched are the base's fault, by the name of their file."""
    (copy := Path(shutil.copytree(base, tmp_path / "copy")) / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(ModelLoadFailed, match=r"copy/model\.safetensors cannot be read"):
        made(str(adapter), store, model=str(copy.parent))


def test_a_name_that_is_a_directory_and_a_line(adapter: Path, base: Path, store: Store) -> None:
    """It is refused; as ./name it is the directory, and a run's own base is not another."""
    add_version(store, "adapter", "ab" * 16, "2" * 64)
    with pytest.raises(RefAmbiguous, match="both a directory with an adapter"):
        made("adapter", store)
    assert made("./adapter", store).base.name == str(base)
    with pytest.raises(ConfigInvalid, match="already has a base"):
        made("adapter@1", store, model=str(base))


def test_what_a_directory_does_not_have(adapter: Path, store: Store) -> None:
    """No held-out rows to be scored on, and no record for a model card."""
    with pytest.raises(ConfigInvalid, match="no held-out rows"):
        evaluated(str(adapter), [], EvaluationSpec(), store)
    with pytest.raises(BackpropError, match="no record"):
        published(str(adapter), PublishSpec(repo="a/b"), ExportSpec(), store)


def test_a_run_of_what_a_directory_has_no_more_than_it(adapter: Path, store: Store) -> None:
    """What exported an adapter that came in a directory has not trained it: no held-out rows, no record, for ever."""
    exported = again("export", "./adapter", ExportSpec(), store)
    assert exported.adapter
    save(exported, "ef" * 16, store)
    merged = Located(digest=exported.adapter.digest, path="")
    result = RunResult(run_id="ef" * 16, line="x", status="finished", spec={}, merged=merged)
    write_atomic(store.layout.run("ef" * 16).result, result.model_dump_json())
    with pytest.raises(ConfigInvalid, match="no held-out rows"):
        evaluated("efef", [], EvaluationSpec(), store)
    for files in (ExportSpec(), ExportSpec(quantizations=["q8_0"])):
        with pytest.raises(RunUnknown, match="no record"):
            published("efef", PublishSpec(repo="a/b"), files, store)
    trained = exported.model_copy(update={"flow": "train", "imported": False})
    assert trained.digest() == exported.model_copy(update={"flow": "train"}).digest()
    save(trained, "ef" * 16, store)
    assert published("efef", PublishSpec(repo="a/b"), ExportSpec(), store).of == "ef" * 16


@pytest.fixture
def deployed(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run that a deployment started, which may read the adapter's directory and nothing beside it."""
    monkeypatch.setenv("BACKPROPAGATE_ALLOWED_PATHS", str(adapter))
    run = FlowRun(flow_id=uuid4(), deployment_id=uuid4())
    with FlowRunContext.model_construct(flow_run=run):
        yield


@pytest.mark.usefixtures("deployed")
def test_a_deployed_run_takes_a_base_of_the_hub(adapter: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """OWNER/NAME that is no directory here is looked for on the Hub, which nobody can reach here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    change(adapter, base_model_name_or_path="nobody-of-this-name/nothing")
    with pytest.raises(ModelLoadFailed, match="from the Hub"):
        made("./adapter", store)


@pytest.mark.usefixtures("deployed")
@pytest.mark.parametrize("name", ["base", "models/base", "./base", "~/base"])
def test_a_deployed_run_takes_no_base_from_elsewhere(
    name: str, base: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory below the worker's own is read only if it is an allowed one; by whoever sits there, always."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").symlink_to(tmp_path)
    (tmp_path / "base").symlink_to(base)
    with pytest.raises(PathForbidden, match=f"{name} is outside"):
        made("./adapter", store, model=name)
    monkeypatch.setenv("BACKPROPAGATE_ALLOWED_PATHS", f"{tmp_path}:{base}")
    assert made("./adapter", store, model=name).base.name


@pytest.mark.usefixtures("deployed")
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_deployed_run_reads_no_file_that_leads_out(name: str, adapter: Path, tmp_path: Path, store: Store) -> None:
    """A symlink in an allowed directory is refused by its own name, before it is opened."""
    (adapter / name).rename(tmp_path / "outside")
    (adapter / name).symlink_to(tmp_path / "outside")
    with pytest.raises(PathForbidden, match=name):
        made("./adapter", store)


@pytest.fixture
def exported(adapter: Path, base: Path, store: Store) -> PackageRecord:
    """A `lora` package of a base that is a directory, made for a run of this store."""
    found = made(str(adapter), store)
    save(found, "cd" * 16, store)
    job = {"base": found.base, "adapter": found.adapter, "package": "lora", "hub_id": None}
    ref = Runner(store, should_stop=lambda: False).run("package", "k", job, lambda event: None)
    return PackageRecord(digest=ref.digest, path=str(store.local(ref)), package="lora", bytes=1)


def handed(exported: PackageRecord, base: Path, place: Path) -> Path:
    target = Output(place, "support", "line support", False, str(base))
    [path] = hand_out([], [exported], ExportSpec(packages=["lora"]), target)
    return path


def test_an_exported_adapter_loads_without_a_word_of_its_base(
    exported: PackageRecord, adapter: Path, base: Path, store: Store, tmp_path: Path
) -> None:
    """PEFT and our own commands find the base of a copy that was handed out; it answers as the adapter does."""
    copy = handed(exported, base, tmp_path / "out")
    ids = torch.tensor([[3, 4, 5]])
    alone = AutoPeftModelForCausalLM.from_pretrained(copy, dtype=torch.float32)
    expected = PeftModel.from_pretrained(tiny.load(base), adapter)(ids).logits
    assert torch.equal(alone(ids).logits, expected)
    assert torch.equal(PeftModel.from_pretrained(tiny.load(base), exported.path)(ids).logits, expected)
    assert AutoTokenizer.from_pretrained(copy).chat_template
    found = made(str(copy), Store(tmp_path / "other"))
    assert found.base.name == str(base) and found.adapter == made(str(adapter), store).adapter


def test_an_artifact_names_its_base_by_digest(
    exported: PackageRecord, base: Path, store: Store, tmp_path: Path
) -> None:
    """It has no path of this machine; a base with that digest is found again by the runs here, and else asked for."""
    text = "".join(path.read_text() for path in Path(exported.path).glob("*.json"))
    assert str(base) not in text
    assert made(exported.path, store).base.name == str(base)
    with pytest.raises(ConfigInvalid, match="does not name its base but the digest"):
        made(exported.path, Store(tmp_path / "other"))
    assert made(exported.path, Store(tmp_path / "other"), model=str(base)).base.name == str(base)


def test_a_base_of_the_hub_is_named_by_its_id(adapter: Path, store: Store) -> None:
    """With the commit, as PEFT reads it; two packages of the same bytes of which one has an id have two keys."""
    found = made(str(adapter), store)
    hub = found.base.model_copy(update={"name": "team/model", "revision": "a" * 40})
    assert found.adapter
    write_package(hub, Path(found.base.name), store.local(found.adapter), adapter, package="lora", named=True)
    config = PeftConfig.from_pretrained(adapter)
    assert (config.base_model_name_or_path, config.revision) == ("team/model", "a" * 40)
    jobs = [{"base": hub, "package": "lora", "hub_id": hub_id} for hub_id in (None, "team/model@a")]
    assert len({stage_key("package", job) for job in jobs}) == 2
