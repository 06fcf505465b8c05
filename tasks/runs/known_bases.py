"""Base models to propose: the chat versions of the presets."""

from backprop_core.training.presets import PRESETS


def hub_ids() -> list[str]:
    """The hub ids of the presets' chat versions."""
    return [preset.models[0] for preset in PRESETS.values()]


def hub_id(name: str) -> str:
    """The hub id of a preset; any other name as it is."""
    preset = PRESETS.get(name.lower())
    return preset.models[0] if preset else name
