"""What cannot work is refused before hours of training, not after them."""

import logging
from pathlib import Path

from backprop_core.errors import (
    AdapterMismatch,
    ArchitectureUnsupported,
    ConfigInvalid,
    OllamaUnreachable,
    TokenizerUnsupported,
)
from backprop_core.evaluation import lm_eval_tasks
from backprop_core.export import llamacpp_converter
from backprop_core.export.gguf.support import check_supported, check_weights
from backprop_core.models import base as bases
from backprop_core.models import peft_files
from backprop_core.models.adapter_tokenizer import TEMPLATE
from backprop_core.runtime.optional_packages import QLORA, require
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import AdapterRef, BaseRef, ConverterRef, OwnTasks
from backprop_core.schema.specs import EvaluationSpec, ExportSpec, RunSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training import lora_variants

log = logging.getLogger(__name__)
WITHOUT_LLAMA = {"f32", "f16", "bf16", "q8_0"}  # GGUF types that need no llama.cpp


def check_metric(evaluation: EvaluationSpec) -> None:
    """Refuse a metric that lacks what it needs."""
    if evaluation.metric == "regex" and evaluation.pattern is None:
        raise ConfigInvalid("evaluation.metric=regex has no evaluation.pattern", hint="say what counts in an answer")
    if evaluation.metric == "judge" and None in (evaluation.judge.address, evaluation.judge.model):
        raise ConfigInvalid(
            "evaluation.metric=judge has no judge", hint="give evaluation.judge.address and evaluation.judge.model"
        )


def harness_tasks(evaluation: EvaluationSpec) -> OwnTasks | None:
    """The user's own tasks, where the harness is to measure. Raises ExtraMissing, or ConfigInvalid."""
    if not evaluation.harness.tasks:
        return None
    require(["lm_eval"], what="evaluation.harness", extra="harness")
    directory = settings().harness_tasks
    return lm_eval_tasks.find(directory.expanduser()) if directory else None


def check_export(
    base: BaseRef, spec: RunSpec, store: Store, *, adapter: AdapterRef | None = None
) -> ConverterRef | None:
    """Refuse an export that cannot work, of an adapter that is there if any; what writes its GGUF files, where we do
    not.
    """
    if spec.publish.repo:
        check_repo(spec.publish.repo)
    for name in filter(None, (spec.export.ollama, spec.publish.ollama)):
        check_ollama(name, spec, store)
    if "gguf-lora" in spec.export.packages and spec.training.lora.variant == "dora":
        raise AdapterMismatch(
            "a DoRA adapter is more than B·A, and llama.cpp knows no other", hint="export it fused: --format gguf"
        )
    if adapter and "gguf-lora" in spec.export.packages and (own := own_tokenizer(adapter, store)):
        log.warning("the gguf-lora file cannot hold the adapter's own %s: serve it with that, not the base's", own)
    converter = converter_of(base, spec.export, store, adapter=adapter)
    if converter and spec.export.imatrix:
        raise ConfigInvalid("export.imatrix needs a base that is converted here", hint="leave export.imatrix away")
    needed = sorted(set(spec.export.quantizations) - WITHOUT_LLAMA)
    if needed:
        require(["llama_cpp"], what=", ".join(needed), extra="export")
    elif spec.export.imatrix:
        raise ConfigInvalid(
            "export.imatrix changes none of the files", hint="add a K-quant, like --quantization q3_k_m"
        )
    return converter


def own_tokenizer(adapter: AdapterRef, store: Store) -> str | None:
    """The chat template that came with an adapter; None if it chats as its base does."""
    found = store.local(adapter) / TEMPLATE
    return found.name if found.is_file() else None


def converter_of(
    base: BaseRef, export: ExportSpec, store: Store, *, adapter: AdapterRef | None = None
) -> ConverterRef | None:
    """The user's llama.cpp, where GGUF files are asked for of a base that has no writer here.

    Raises ArchitectureUnsupported, TokenizerUnsupported or ConfigInvalid.
    """
    if not export.quantizations and not set(export.packages) - {"lora"}:
        return None
    config, directory = settings(), bases.local(base, store)
    check_weights(directory)
    if adapter:
        peft_files.check_fusable_into(store.local(adapter), directory)
    if not export.quantizations and "gguf-lora" not in export.packages:
        return None
    try:
        check_supported(directory, store.local(adapter) if adapter else None)
    except (ArchitectureUnsupported, TokenizerUnsupported):
        if config.llama_cpp_dir is None or "gguf-lora" in export.packages:
            raise
        return llamacpp_converter.find(
            config.llama_cpp_dir.expanduser(), llamacpp_converter.interpreter(config), directory
        )
    return None


def check_training(training: TrainSpec, base: Path, export: ExportSpec, *, continues: bool) -> None:
    """Refuse a training that cannot work before it begins, or whose adapter could not be exported as asked.

    Raises VariantUnsupported, ExtraMissing or AdapterMismatch.
    """
    targets = training.lora.target_modules
    if targets != "all-linear":
        peft_files.check_targets(base, targets, exported=bool(export.quantizations or set(export.packages) - {"lora"}))
    lora_variants.check(training.lora, precision=training.precision, continues=continues)
    if training.precision == "nf4":
        require(QLORA, what="nf4", extra="qlora")


def check_repo(repo: str) -> None:
    """Raise ConfigInvalid unless it is the id of a repository of the Hub."""
    from backprop_core.publishing.hub import check_repo_id

    check_repo_id(repo)


def check_ollama(name: str, spec: RunSpec, store: Store) -> None:
    """Refuse a model of Ollama's that cannot be made; an Ollama that does not answer now may do so later."""
    from backprop_core.publishing.ollama import Ollama, claim

    if not spec.export.quantizations:
        raise ConfigInvalid(
            f"Ollama cannot have {name} without a GGUF file", hint="add export.quantizations, like [q4_k_m]"
        )
    try:
        with Ollama() as server:
            server.check()
            claim(name, server, store)
    except OllamaUnreachable as error:
        log.warning("%s", error.message)
