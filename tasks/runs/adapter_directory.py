"""Imports an external LoRA adapter: a directory in PEFT's layout, checked against its base before it is loaded."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from backprop_core.errors import ConfigInvalid, InputValidationFailed
from backprop_core.models import adapter_tokenizer, devices, peft_files
from backprop_core.models import base as bases
from backprop_core.schema.refs import AdapterRef, BaseRef
from backprop_core.schema.specs import DatasetSpec, EvaluationSpec, LoraSpec, ModelSpec, RunSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical
from tasks.runs import allowed_paths

log = logging.getLogger(__name__)
GENERAL = Path(__file__).with_name("general.jsonl")  # prompts for checking its exported files
LIKE_PATHS = (os.sep, "/", ".", "~")


def is_path(ref: str) -> bool:
    """Whether a reference is a directory, not a run, line or version."""
    return ref.startswith(LIKE_PATHS) or os.sep in ref


def holds_adapter(ref: str) -> bool:
    return (Path(ref).expanduser() / peft_files.CONFIG).is_file()


def adapter_in(ref: str, model: str | None, store: Store) -> tuple[RunSpec, BaseRef, AdapterRef]:
    """The adapter of a directory as an artifact, its base (`model`, or the one that its config names), and a spec.

    Raises PathForbidden, ConfigInvalid if nothing names the base, AdapterMismatch if it cannot be fused into it, and
    what `peft_files` and `base` raise.
    """
    directory = Path(ref).expanduser()
    allowed_paths.refuse(allowed_paths.directory(ref))
    config = peft_files.read_config(directory)
    peft_files.check_fusable(config)
    base_model = named(directory, config, model, store)
    allowed_paths.refuse(allowed_paths.model(base_model.name))
    base = bases.resolve(base_model, store)
    if (expected := digest_in(directory)) and expected != base.digest:
        log.warning("%s was exported for another base (%s) than %s", directory, expected[:12], base.name)
    files = bases.local(base, store)
    peft_files.check_fits(directory, files)
    own = adapter_tokenizer.own(directory, files)
    if own:
        differ = f"a {' and a '.join(own.differs)} of its own"
        log.warning("%s has %s, which differs from the base %s: using the adapter's own", directory, differ, base.name)
    return spec_of(directory, base_model, config), base, committed(directory, config, own, store)


def named(directory: Path, config: dict[str, Any], model: str | None, store: Store) -> ModelSpec:
    """The base `model`, else the one that the adapter's config names, else an earlier run's base with its digest.

    Raises ConfigInvalid if there is none.
    """
    if model:
        return ModelSpec(name=model)
    if config.get("base_model_name_or_path"):
        return ModelSpec(name=config["base_model_name_or_path"], revision=config.get("revision"))
    digest = digest_in(directory)
    if digest and (known := known_base(digest, store)):
        return known
    which = f" but the digest {digest[:12]}" if digest else ""
    raise ConfigInvalid(f"{directory} does not name its base{which}", hint="name it: --model DIRECTORY or OWNER/ID")


def digest_in(directory: Path) -> str | None:
    """The digest of the base that an adapter was exported for, if its directory has it."""
    path = directory / peft_files.BASE
    try:
        return str(json.loads(path.read_bytes())["digest"]) if path.is_file() else None
    except (ValueError, KeyError, TypeError) as error:
        raise InputValidationFailed(f"{path} cannot be read: {error}", hint="remove it, and set --model") from error


def known_base(digest: str, store: Store) -> ModelSpec | None:
    """A base with this digest that an earlier run has used and that still exists."""
    for run in store.layout.begun():
        base = json.loads(run.spec.read_bytes()).get("base", {})
        if base.get("digest") == digest and (base["revision"] or Path(base["name"]).is_dir()):
            return ModelSpec(name=base["name"], revision=base["revision"])
    return None


def spec_of(directory: Path, model: ModelSpec, config: dict[str, Any]) -> RunSpec:
    """A spec that fits the adapter: its rank, alpha and variant, and everyday chat (`general.jsonl`) as rows."""
    device = devices.resolve("auto")
    variant = "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"
    try:
        lora = LoraSpec(rank=config["r"], alpha=config["lora_alpha"], variant=variant)
    except (KeyError, ValidationError) as error:
        said = f"{directory} has an invalid rank {config.get('r')} or alpha {config.get('lora_alpha')}"
        raise InputValidationFailed(said, hint="save the adapter again") from error
    training = TrainSpec(device=device, precision="fp32" if device == "cpu" else "bf16", lora=lora)
    rows = [DatasetSpec(path=str(GENERAL), task="general")]
    return RunSpec(model=model, datasets=rows, training=training, evaluation=EvaluationSpec(watch=rows))


def committed(directory: Path, config: dict[str, Any], own: adapter_tokenizer.Own | None, store: Store) -> AdapterRef:
    """Commit the adapter: its weights byte for byte, its config without the fields that differ between machines.

    Also commits its own tokenizer and chat template, if they differ from the base's.
    """
    with store.begin("adapter") as target:
        shutil.copyfile(directory / peft_files.WEIGHTS, target / peft_files.WEIGHTS)
        text = canonical(peft_files.portable(config)) + "\n"
        (target / peft_files.CONFIG).write_text(text, encoding="utf-8", newline="\n")
        for name, content in own.files.items() if own else ():
            (target / name).write_bytes(content)
        return store.commit(target, AdapterRef, kind="merged", record={"stage": "import"})
