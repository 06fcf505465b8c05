"""What a field's default is said to be, on pages, in help and in the reference."""

from backprop_core.schema.specs import DatasetSpec, RunSpec, TrainSpec
from backprop_core.training.defaults import choose
from backprop_core.training.presets import PRESETS
from flows.cli.spec_fields import CHOSEN, spec_fields
from tasks.runs.resolve_line import with_memory

CARD = 8 << 30  # bytes


def test_a_field_that_is_chosen_says_so() -> None:
    """The fields that a run fills in, for a model on a GPU or for a new line, have the default "chosen", or auto."""
    shape = next(iter(PRESETS.values())).shape
    spec = RunSpec(line="support", datasets=[DatasetSpec(path="night.jsonl")])
    choices = [*choose(shape, TrainSpec(), None, CARD).choices, *with_memory(spec, None)[1]]
    shown = {choice.field: spec_fields()[choice.field].default for choice in choices}
    assert set(shown.values()) == {"chosen", "auto"}
    assert {field for field, default in shown.items() if default == "chosen"} == set(CHOSEN)
    assert len(set(CHOSEN)) == len(CHOSEN)
