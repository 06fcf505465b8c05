"""Base models to propose: directories that runs may read, and the chat versions of the presets."""

from backprop_core.runtime.settings import Settings
from backprop_core.training.presets import PRESETS


def directories(config: Settings) -> list[str]:
    """Directories with a model, directly below those that deployed runs may read."""
    found = (path.parent for root in config.allowed_roots for path in root.glob("*/config.json"))
    return sorted(str(path) for path in found if any(path.glob("*.safetensors")))


def hub_ids() -> list[str]:
    """The hub ids of the presets' chat versions."""
    return [preset.models[0] for preset in PRESETS.values()]


def hub_id(name: str) -> str:
    """The hub id of a preset; any other name as it is."""
    preset = PRESETS.get(name.lower())
    return preset.models[0] if preset else name
