"""Which variant of LoRA can be asked for when. No torch."""

from backprop_core.errors import VariantUnsupported
from backprop_core.schema.specs import STARTS, LoraSpec


def check(lora: LoraSpec, *, precision: str, continues: bool) -> None:
    """Raise VariantUnsupported for a start where an adapter is there already, and for LoftQ on whole weights."""
    if lora.variant in STARTS and continues:
        raise VariantUnsupported(
            f"{lora.variant} is a way to start from the base, and this run goes on from another one",
            hint=f"train one dataset with {lora.variant}, promote it to a line, and retrain the line as plain LoRA",
        )
    if lora.variant == "loftq" and precision != "nf4":
        raise VariantUnsupported(
            f"loftq makes up for what quantization loses, and {precision} loses nothing that it could make up for",
            hint="set model.quantization=nf4, or training.lora.variant=pissa",
        )
