"""Checks a run's configuration before training: metric, judge, harness tasks, export, Ollama, Hub repository."""

import logging
from collections.abc import Sequence
from pathlib import Path

from backprop_core.errors import (
    AdapterMismatch,
    ArchitectureUnsupported,
    ConfigInvalid,
    OllamaUnreachable,
    TokenizerUnsupported,
)
from backprop_core.evaluation import lm_eval_tasks
from backprop_core.evaluation.bits_per_byte import METRIC as BITS_PER_BYTE
from backprop_core.export import llamacpp_converter
from backprop_core.export.gguf.support import check_supported, check_weights
from backprop_core.models import base as bases
from backprop_core.models import peft_files
from backprop_core.models.adapter_tokenizer import TEMPLATE
from backprop_core.runtime.optional_packages import QLORA, require
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import AdapterRef, BaseRef, ConverterRef, DatasetRef, OwnTasks
from backprop_core.schema.specs import EvaluationSpec, ExportSpec, GateSpec, RunSpec, TrainSpec
from backprop_core.store.artifacts import Store
from backprop_core.training import lora_variants

log = logging.getLogger(__name__)
WITHOUT_LLAMA = {"f32", "f16", "bf16", "q8_0"}  # GGUF types that need no llama.cpp
WITHOUT_WORST = {"loss", BITS_PER_BYTE}  # metrics in which a row can lose any amount


def check_metric(evaluation: EvaluationSpec) -> None:
    """Raise ConfigInvalid or ExtraMissing if the metric's requirements are missing."""
    if evaluation.metric == "regex" and evaluation.pattern is None:
        raise ConfigInvalid(
            "evaluation.metric=regex has no evaluation.pattern", hint="set evaluation.pattern to a regular expression"
        )
    if evaluation.metric == "judge" and None in (evaluation.judge.address, evaluation.judge.model):
        raise ConfigInvalid(
            "evaluation.metric=judge has no judge", hint="set evaluation.judge.address and evaluation.judge.model"
        )


def check_preferences(line: str, datasets: Sequence[DatasetRef], training: TrainSpec, *, hint: str) -> None:
    """Raise ConfigInvalid if the stored datasets of a line have preferences and no loss is set for them."""
    if training.preference.loss is None and (judging := [dataset.name for dataset in datasets if dataset.judges]):
        raise ConfigInvalid(
            f"the datasets of line {line} have preferences ({', '.join(judging)}), "
            "and training.preference.loss is not set",
            hint=hint,
        )


def check_gate(gate: GateSpec, metric: str) -> None:
    """Raise ConfigInvalid for fields that the gate would not use, and for a question that the metric cannot answer.

    `not_worse` needs a metric with a worst value: else a rare large loss would go unseen.
    """
    if gate.canary_pass_rate is not None and not gate.canaries:
        raise ConfigInvalid(
            "gate.canary_pass_rate has no effect without gate.canaries", hint="set gate.canaries, or remove it"
        )
    if gate.question == "better" and gate.margin != GateSpec().margin:
        raise ConfigInvalid(
            "gate.margin has no effect with gate.question=better",
            hint=f"set gate.question=not_worse, or leave gate.margin at {GateSpec().margin}",
        )
    check_question(gate, metric)


def check_question(gate: GateSpec, metric: str) -> None:
    """Raise ConfigInvalid for a question of the gate that the metric cannot answer."""
    if gate.question == "not_worse" and metric in WITHOUT_WORST:
        raise ConfigInvalid(
            "gate.question=not_worse needs a metric in which a row is right or wrong, or scores between 0 and 1; "
            f"{metric.replace('_', ' ')} has no worst value",
            hint="set evaluation.metric=exact_match, or gate.question=better",
        )


def harness_tasks(evaluation: EvaluationSpec) -> OwnTasks | None:
    """The user's custom harness tasks, if the harness is used. Raises ExtraMissing or ConfigInvalid."""
    if not evaluation.harness.tasks:
        return None
    require(["lm_eval"], what="evaluation.harness", extra="harness")
    directory = settings().harness_tasks
    return lm_eval_tasks.find(directory.expanduser()) if directory else None


def check_export(
    base: BaseRef, spec: RunSpec, store: Store, *, adapter: AdapterRef | None = None
) -> ConverterRef | None:
    """Check that the export can work, of `adapter` if given; returns the converter if there is no GGUF writer here."""
    if spec.publish.repo:
        check_repo(spec.publish.repo)
    for name in filter(None, (spec.export.ollama, spec.publish.ollama)):
        check_ollama(name, spec, store)
    if "gguf-lora" in spec.export.packages and spec.training.lora.variant == "dora":
        raise AdapterMismatch(
            "llama.cpp does not support DoRA adapters", hint="export a fused model with --format gguf"
        )
    if adapter and "gguf-lora" in spec.export.packages and (own := own_tokenizer(adapter, store)):
        log.warning("a gguf-lora file cannot contain the adapter's own %s: serve it with that, not the base's", own)
    converter = converter_of(base, spec.export, store, adapter=adapter)
    if converter and spec.export.imatrix:
        raise ConfigInvalid(
            "export.imatrix does not work with a base that llama.cpp converts", hint="remove export.imatrix"
        )
    needed = sorted(set(spec.export.quantizations) - WITHOUT_LLAMA)
    if needed:
        require(["llama_cpp"], what=", ".join(needed), extra="export")
    elif spec.export.imatrix:
        raise ConfigInvalid(
            "export.imatrix has no effect on these files", hint="add a K-quant, like --quantization q3_k_m"
        )
    return converter


def own_tokenizer(adapter: AdapterRef, store: Store) -> str | None:
    """The adapter's own chat template; None if it uses the base's."""
    found = store.local(adapter) / TEMPLATE
    return found.name if found.is_file() else None


def converter_of(
    base: BaseRef, export: ExportSpec, store: Store, *, adapter: AdapterRef | None = None
) -> ConverterRef | None:
    """The user's llama.cpp converter, if GGUF files are requested for a base without a writer here.

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
    """Check that training can work, and that the adapter can be exported as requested.

    Raises VariantUnsupported, ExtraMissing, ConfigInvalid or AdapterMismatch.
    """
    targets = training.lora.target_modules
    if targets != "all-linear":
        peft_files.check_targets(base, targets, exported=bool(export.quantizations or set(export.packages) - {"lora"}))
    lora_variants.check(training.lora, precision=training.precision, continues=continues, backend=training.backend)
    if training.precision == "nf4":
        require(QLORA, what="nf4", extra="qlora")
    check_optimizer(training)


def check_optimizer(training: TrainSpec) -> None:
    """Raise ExtraMissing without bitsandbytes, and ConfigInvalid for a paged optimizer on a CPU."""
    if training.optimizer == "adamw":
        return
    require(["bitsandbytes"], what=f"training.optimizer={training.optimizer}", extra="qlora")
    if training.optimizer == "paged_adamw_8bit" and training.device == "cpu":
        raise ConfigInvalid(
            "training.optimizer=paged_adamw_8bit moves its state between a GPU and the CPU, but this run has no GPU",
            hint="set training.optimizer=adamw_8bit, or adamw",
        )


def check_repo(repo: str) -> None:
    """Raise ConfigInvalid unless it is a valid Hub repository id."""
    from backprop_core.publishing.hub import check_repo_id

    check_repo_id(repo)


def check_ollama(name: str, spec: RunSpec, store: Store) -> None:
    """Check that Ollama can create the model. An unreachable Ollama only logs a warning: it may be back later."""
    from backprop_core.publishing.ollama import Ollama, claim

    if not spec.export.quantizations:
        raise ConfigInvalid(
            f"the Ollama model {name} needs a GGUF file", hint="add export.quantizations, like [q4_k_m]"
        )
    try:
        with Ollama() as server:
            server.check()
            claim(name, server, store)
    except OllamaUnreachable as error:
        log.warning("%s", error.message)
