"""Checks that a LoRA variant works with the run's precision and starting point. No torch."""

from backprop_core.errors import VariantUnsupported
from backprop_core.schema.specs import STARTS, Backend, LoraSpec


def check(lora: LoraSpec, *, precision: str, continues: bool, backend: Backend) -> None:
    """Raise VariantUnsupported for pissa or loftq in a run that continues an adapter, and for loftq without nf4.

    Also for pissa with Unsloth, whose kernels apply one adapter: pissa needs a second one that subtracts its start.
    """
    if lora.variant == "pissa" and backend == "unsloth":
        raise VariantUnsupported(
            "Unsloth cannot train pissa, which needs two adapters at once",
            hint="set training.backend=transformers, or training.lora.variant=lora",
        )
    if lora.variant in STARTS and continues:
        raise VariantUnsupported(
            f"{lora.variant} starts from the base, but this run continues an adapter",
            hint=f"train one dataset with {lora.variant}, promote it to a line, and retrain the line as plain LoRA",
        )
    if lora.variant == "loftq" and precision != "nf4":
        raise VariantUnsupported(
            f"loftq compensates for quantization error, but {precision} is not quantized",
            hint="set model.quantization=nf4, or training.lora.variant=pissa",
        )
