"""Makes the adapter of a champion in MLflow a model that `mlflow.transformers`, PEFT and `mlflow models serve` load.

Beside the adapter come MLmodel, requirements, the base's name in the adapter's config and, for a base that is a local
directory, its tokenizer. The base itself is not copied: it is loaded from the Hub, or from its directory.
"""

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from backprop_core.lines.versions import LineVersion
from backprop_core.models.base import TOKENIZER_FILES
from backprop_core.models.peft_files import CONFIG
from backprop_core.schema.refs import BaseRef
from backprop_core.store.layout import StoreLayout

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ADAPTER, MODEL = "merged", "MLmodel"  # directory of a run's artifacts, and the file that makes it a model
TOKENIZER = f"{ADAPTER}/components/tokenizer"
REQUIRED = ("mlflow", "torch", "transformers", "peft", "accelerate", "safetensors")


def make_loadable(client: "MlflowClient", run: "Run", version: LineVersion, layout: StoreLayout) -> None:
    """Complete the adapter of a run, once; an adapter that was pruned, or whose base is not here, stays as it is."""
    config, base = layout.artifact(version.merged.digest) / CONFIG, version.base
    here = Path(base.name).expanduser()
    present = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, ADAPTER)}
    if MODEL in present or not config.is_file() or not (base.revision or here.is_dir()):
        return
    if not base.revision:
        for file in (here / name for name in TOKENIZER_FILES if (here / name).is_file()):
            client.log_artifact(run.info.run_id, str(file), TOKENIZER)
    named = {"base_model_name_or_path": base.name, "revision": base.revision}
    texts = {
        CONFIG: json.dumps(json.loads(config.read_bytes()) | named, indent=1),
        "requirements.txt": "".join(f"{each}\n" for each in requirements()),
        "python_env.yaml": yaml.safe_dump(environment(), sort_keys=False),
        MODEL: yaml.safe_dump(model(run, base), sort_keys=False),  # last: it says that the others are there
    }
    for name, text in texts.items():
        client.log_text(run.info.run_id, text, f"{ADAPTER}/{name}")


def model(run: "Run", base: BaseRef) -> dict[str, Any]:
    """The content of MLmodel."""
    return {
        "artifact_path": ADAPTER,
        "run_id": run.info.run_id,
        "mlflow_version": importlib.metadata.version("mlflow"),
        "flavors": {
            "transformers": flavor(base),
            "python_function": {
                "loader_module": "mlflow.transformers",
                "python_version": platform.python_version(),
                "env": {"virtualenv": "python_env.yaml"},
            },
        },
        "signature": {name: json.dumps([{"type": "string", "required": True}]) for name in ("inputs", "outputs")},
    }


def flavor(base: BaseRef) -> dict[str, Any]:
    """How MLflow loads the pipeline: base and tokenizer, then the adapter on it."""
    if base.revision:
        places = {
            "source_model_revision": base.revision,
            "tokenizer_name": base.name,
            "tokenizer_revision": base.revision,
        }
    else:
        places = {"local_base_model_path": base.name}
    return {
        "task": "text-generation",
        "instance_type": "TextGenerationPipeline",
        "pipeline_model_type": "AutoModelForCausalLM",
        "source_model_name": base.name,
        "peft_adaptor": ".",
        "components": ["tokenizer"],
        "tokenizer_type": "AutoTokenizer",
        "transformers_version": importlib.metadata.version("transformers"),
        **places,
    }


def environment() -> dict[str, Any]:
    """The content of python_env.yaml."""
    return {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}


def requirements() -> list[str]:
    """The packages that load the model, as they are here."""
    known = {one.metadata["Name"].lower() for one in importlib.metadata.distributions()}
    return [f"{name}=={importlib.metadata.version(name)}" for name in REQUIRED if name in known]
