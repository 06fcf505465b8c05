"""The curation steps that a spec asks for, by name, in the order in which they run.

Steps that look at one row come first, so that rows which redaction makes equal are duplicates, and so that the row that
is kept of several is one that passes. Exact duplicates are dropped in between. Contradictions come before near
duplicates, which would leave either answer to a question, not the newest.
"""

from collections.abc import Mapping

from backprop_core.data.steps import contradictions, language, length, near_duplicates, personal_data, quality
from backprop_core.data.steps.row_step import RowStep
from backprop_core.data.steps.set_step import SetStep
from backprop_core.data.token_lengths import Counter
from backprop_core.schema.specs.curation import CurationSpec


def row_steps(spec: CurationSpec, counter: Counter | None) -> Mapping[str, RowStep]:
    """The steps that look at one row at a time; `counter` is needed if the spec counts tokens."""
    steps: dict[str, RowStep] = {}
    if spec.personal_data != "off":
        steps["personal_data"] = personal_data.step(spec.personal_data)
    if spec.counts_tokens:
        assert counter, "the stage is given the base"
        steps["length"] = length.step(counter, spec.min_tokens, spec.max_tokens)
    if spec.languages:
        steps["language"] = language.step(spec.languages)
    if spec.quality:
        steps["quality"] = quality.step(spec.quality)
    return steps


def preference_steps(spec: CurationSpec) -> Mapping[str, SetStep]:
    """The steps that compare the distinct preferences, which may answer one question in several ways."""
    return {name: step for name, step in set_steps(spec).items() if name != "contradictions"}


def set_steps(spec: CurationSpec) -> Mapping[str, SetStep]:
    """The steps that compare the distinct rows."""
    steps: dict[str, SetStep] = {}
    if spec.contradictions != "off":
        steps["contradictions"] = contradictions.step(spec.contradictions)
    if spec.near_duplicates is not None:
        steps["near_duplicates"] = near_duplicates.step(spec.near_duplicates, spec.near_duplicates_on)
    return steps
