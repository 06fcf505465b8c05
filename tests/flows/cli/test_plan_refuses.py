"""`--plan` refuses what the run refuses, by the same code and exit status; what is asked for is checked first."""

import gzip
import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from backprop_core.errors import BackpropError, DiskFull
from backprop_core.schema.specs import DatasetSpec, ExportSpec, LoraSpec, ModelSpec, RunSpec, TrainSpec
from flows.cli import main, run_here
from flows.retrain import retrain
from flows.train import train
from tasks.runs import disk_space
from tests.backprop_core import nano

TRAINING = TrainSpec(steps=1, batch_size=2, lora=LoraSpec(rank=2))
GOOD = "".join(json.dumps(row) + "\n" for row in nano.chats(40))
CSV = "prompt,completion\n" + "".join(f"ask {i},say {i}\n" for i in range(30))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"
HTML = b"<!DOCTYPE html><html><body>Sign in</body></html>\n"


def rows(*each: object) -> bytes:
    """Each of them thirty times, so that a share of bad rows is not allowed."""
    return "".join(json.dumps(row) + "\n" for row in each * 30).encode()


def turns(*roles: str, **more: object) -> dict[str, object]:
    return {"messages": [{"role": role, "content": role, **more} for role in roles]}


BAD: dict[str, bytes] = {
    "empty.jsonl": b"",
    "blank.jsonl": b"\n\n  \n",
    "prose.jsonl": b"these are no rows\nneither is this\n",
    "torn.jsonl": GOOD.encode()[:-30].replace(b'"role"', b'"ro', 9),
    "numbers.jsonl": rows(1, 2),
    "strings.jsonl": rows("a", "b"),
    "lists.jsonl": rows([1], [2]),
    "nulls.jsonl": rows(None),
    "unknown.jsonl": rows({"zig": 1}, {"zag": 2}),
    "nothing.jsonl": rows({}),
    "asked.jsonl": rows(turns("user")),
    "said.jsonl": rows(turns("assistant")),
    "system.jsonl": rows(turns("system")),
    "no-turns.jsonl": rows({"messages": []}),
    "turns-text.jsonl": rows({"messages": "hello"}),
    "turns-null.jsonl": rows({"messages": None}),
    "turns-numbers.jsonl": rows({"messages": [1, 2]}),
    "silent.jsonl": rows({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}),
    "no-content.jsonl": rows({"messages": [{"role": "user"}, {"role": "assistant"}]}),
    "no-role.jsonl": rows({"messages": [{"content": "a"}, {"content": "b"}]}),
    "odd-role.jsonl": rows(turns("user", "wizard")),
    "weights.jsonl": rows(turns("user", "assistant", weight=0)),
    "preferences.jsonl": rows({"prompt": "a", "chosen": "b", "rejected": "c"}),
    "label.jsonl": rows({"prompt": "a", "completion": "b", "label": False}),
    "empty-answer.jsonl": rows({"prompt": "a", "completion": ""}),
    "null-answer.jsonl": rows({"instruction": "a", "output": None}),
    "number-answer.jsonl": rows({"question": "a", "answer": 7}),
    "no-text.jsonl": rows({"text": ""}),
    "page.jsonl": HTML,
    "pointer.jsonl": POINTER,
    "binary.jsonl": bytes(range(256)) * 8,
    "zeros.jsonl": bytes(4096),
    "latin.jsonl": GOOD.replace("Say", "Gr\u00f6\u00dfe").encode("latin-1"),
    "empty.json": b"",
    "object.json": b'{"a": 1}',
    "half.json": b'[{"messages": [',
    "deep.json": b"[" * 100_000,
    "none.json": b"[]",
    "number.json": b"7",
    "empty.csv": b"",
    "header.csv": b"prompt,completion\n",
    "other.csv": b"a,b\n1,2\n3,4\n",
    "quote.csv": CSV.replace("say 3", '"say 3', 1).encode(),
    "fields.csv": CSV.replace(",say", ",x,y,say").encode(),
    "garbage.parquet": b"PAR1 but no more",
    "empty.parquet": b"",
    "empty.txt": b"",
    "garbage.jsonl.gz": b"no gzip",
    "half.jsonl.gz": gzip.compress(GOOD.encode())[:80],
    "nothing.jsonl.gz": gzip.compress(b""),
    "garbage.jsonl.zst": b"no zstd",
    "half.jsonl.zst": pyarrow.compress(GOOD.encode(), codec="zstd", asbytes=True)[:80],
    "nothing.jsonl.zst": pyarrow.compress(b"", codec="zstd", asbytes=True),
    "rows.xyz": GOOD.encode(),
}


def outcome(do: Callable[[], object]) -> tuple[str, int, str]:
    """The code, exit status and message that something ends with."""
    try:
        do()
    except BackpropError as error:
        return error.code, error.exit_status, error.message
    return "done", 0, ""


@pytest.mark.usefixtures("warm_worker", "prefect", "home")
@pytest.mark.timeout(900)  # minutes on a busy machine
def test_a_plan_reads_the_rows_as_the_run_does(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the run cannot read, the plan refuses with the same words; what the plan reads, the run trains."""
    found = {}
    for name, content in BAD.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "endings").mkdir()
    (tmp_path / "endings" / "readme.md").write_text("x")
    for name in (*BAD, "nothing", "endings", "missing.jsonl"):
        path = str(tmp_path / name)
        spec = RunSpec(model=ModelSpec(name=str(base)), datasets=[DatasetSpec(path=path)], training=TRAINING)
        planned = outcome(lambda spec=spec: run_here.plan("train", spec, fresh=False))
        done = outcome(lambda path=path: train(path, model=str(base), training=TRAINING))
        assert planned == done, name
        found[name] = planned[0]
    assert len([code for code in found.values() if code.startswith("INPUT_")]) >= 46, found
    said = main.main(["train", "--data", str(tmp_path / "quote.csv"), "--model", str(base), "--plan", "--json"])
    assert said == 1 and json.loads(capsys.readouterr().out)["error"]["code"].startswith("INPUT_")


WANTED = {"quantizations": ["f16"]}


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("targets", "export", "said"),
    [
        (["lm_head"], WANTED, "lm_head"),
        (["q_proj", "lm_head"], {"packages": ["merged"]}, "lm_head"),
        (["embed_tokens"], WANTED, "embed_tokens"),
        (["q_proj", "model.embed_tokens"], {"packages": ["gguf-lora"]}, "embed_tokens"),
        (["q_prj"], {}, "q_prj"),
        (["q_proj", "layers.9.mlp.up_proj"], {}, "layers.9"),
        (["input_layernorm"], {}, "input_layernorm"),
        (["proj"], {}, "proj"),
    ],
)
def test_what_could_not_be_exported_is_not_trained(
    targets: list[str], export: dict[str, list[str]], said: str, base: Path, data: list[str]
) -> None:
    """A layer that no export could write, or that is not there, is refused before the first stage, by run and plan."""
    lora = LoraSpec(rank=2, target_modules=targets)
    training = TRAINING.model_copy(update={"lora": lora})
    dataset, wanted = DatasetSpec(path=data[0]), ExportSpec.model_validate(export)
    spec = RunSpec(model=ModelSpec(name=str(base)), datasets=[dataset], training=training, export=wanted)
    planned = outcome(lambda: run_here.plan("train", spec, fresh=False))
    assert planned[0] == "CONFIG_ADAPTER_MISMATCH" and said in planned[2]
    assert outcome(lambda: run_here.run("train", spec)) == planned  # nothing of Prefect is up here


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("targets", "export"),
    [(["q_proj", "mlp.up_proj"], WANTED), (["lm_head"], {"packages": ["lora"]}), (["lm_head"], {})],
)
def test_what_can_be_exported_is_planned(
    targets: list[str], export: dict[str, list[str]], base: Path, data: list[str]
) -> None:
    """Names as PEFT matches them pass; so does a tied head where nothing that cannot hold it is asked for."""
    training = TRAINING.model_copy(update={"lora": LoraSpec(rank=2, target_modules=targets)})
    dataset, wanted = DatasetSpec(path=data[0]), ExportSpec.model_validate(export)
    spec = RunSpec(model=ModelSpec(name=str(base)), datasets=[dataset], training=training, export=wanted)
    assert run_here.plan("train", spec, fresh=False).stages


def test_an_untied_head_can_be_exported(data: list[str], home: Path, tmp_path: Path) -> None:
    """An output head of its own is a linear layer like others."""
    base = nano.build(tmp_path / "base", tie_word_embeddings=False)
    training = TRAINING.model_copy(update={"lora": LoraSpec(rank=2, target_modules=["lm_head"])})
    spec = RunSpec(
        model=ModelSpec(name=str(base)),
        datasets=[DatasetSpec(path=data[0])],
        training=training,
        export=ExportSpec(quantizations=["f16"]),
    )
    assert run_here.plan("train", spec, fresh=False).stages


@pytest.mark.parametrize(
    ("more", "code"),
    [({"publish": {"repo": "team/x"}}, "INPUT_AUTH_REQUIRED"), ({"notify": ["slack-webhook/none"]}, None)],
)
def test_what_a_release_needs_is_looked_for_first(
    prefect: None,
    home: Path,
    base: Path,
    data: list[str],
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, object],
    code: str | None,
) -> None:
    """A token or a notification block that is not there is refused by the plan of a retrain as by the retrain."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    spec = RunSpec.model_validate(
        {"line": "x", "model": {"name": str(base)}, "datasets": [{"path": data[0]}], "training": TRAINING, **more}
    )
    planned = outcome(lambda: run_here.plan("retrain", spec, fresh=False))
    assert planned[0] not in ("done", "RUNTIME_UNEXPECTED") and code in (None, planned[0])
    assert planned == outcome(
        lambda: retrain("x", data[0], str(base), TRAINING, publish=spec.publish, notify=spec.notify)
    )


def test_a_full_disk_is_found_out_before_the_training(
    prefect: None, home: Path, base: Path, data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the files that are asked for would not fit, neither plan nor run trains anything."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40 - 2**17, 2**17))
    wanted = ExportSpec(quantizations=["f32", "f16"])
    spec = RunSpec(
        model=ModelSpec(name=str(base)), datasets=[DatasetSpec(path=data[0])], training=TRAINING, export=wanted
    )
    planned = outcome(lambda: run_here.plan("train", spec, fresh=False))
    done = outcome(lambda: train(data[0], model=str(base), training=TRAINING, export=wanted))
    assert planned == done and planned[0] == DiskFull.code and "train and later stages" in planned[2]


def test_what_a_run_writes_is_counted() -> None:
    """A K-quant needs an f16 file first, and each file takes what its type does."""
    spec = RunSpec(
        datasets=[DatasetSpec(path="a")], export=ExportSpec(quantizations=["q4_k_m", "q8_0"], packages=["merged"])
    )
    assert disk_space.files(spec) == ["f16", "q4_k_m", "q8_0", "f16"]
    assert (
        disk_space.kind_of("quantize", {"quantization": "q4_k_m"}) == "q4_k_m"
        and disk_space.kind_of("evaluate", {}) is None
    )
