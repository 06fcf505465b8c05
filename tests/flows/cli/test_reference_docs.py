"""The reference is complete: whatever a user can write or read stands in it."""

from pathlib import Path

from backprop_core.errors import all_errors
from backprop_core.runtime.settings import Settings
from backprop_core.schema.specs import LoraSpec, RunSpec
from flows.cli.main import verbs
from flows.cli.reference_docs import reference

PAGE = Path(__file__).parents[3] / "docs" / "reference.md"


def test_reference_is_what_the_code_says() -> None:
    """docs/reference.md is what `make docs` would write now."""
    assert PAGE.read_text(encoding="utf-8") == reference()


def test_reference_names_everything() -> None:
    """Every error code, setting, verb and spec field stands on the page, looked up in the classes themselves."""
    page = PAGE.read_text(encoding="utf-8")
    expected = [
        *(f"| `{code}` |" for code in all_errors()),
        *(f"| `BACKPROPAGATE_{name.upper()}` |" for name in Settings.model_fields),
        *(f"### backprop {verb}\n" for verb in [*verbs(), "store check"]),
        *(f"| `{name}` |" for name in RunSpec.model_fields),
        *(f"| `training.lora.{name}` |" for name in LoraSpec.model_fields),
    ]
    assert [text for text in expected if text not in page] == []
