"""Drops rows in other languages than the wanted ones, as py3langid recognizes them."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from backprop_core.data.row_formats import ChatRow
from backprop_core.data.steps.row_step import Finding, RowStep, dropped
from backprop_core.data.steps.shingles import spoken
from backprop_core.errors import ConfigInvalid

SURE = 0.8  # a row is kept unless another language is at least this probable: short rows and code say little
READ = 2000  # characters of a row


@cache
def identifier() -> Any:
    """The model: 140 languages, naive Bayes over byte n-grams."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def step(languages: Sequence[str]) -> RowStep:
    """Drops rows that are surely in none of these languages. Raises ConfigInvalid for a language without a model."""
    model = identifier()
    if unknown := sorted({*languages} - {*model.labels}):
        raise ConfigInvalid(
            f"curation.languages: {', '.join(unknown)} cannot be recognized", hint=f"known: {' '.join(model.labels)}"
        )

    def judge(row: ChatRow) -> Finding | None:
        found, probability = model.classify(spoken(row)[:READ])
        if found in languages or probability < SURE:
            return None
        return dropped("language", f"{found}, {100 * probability:.0f} %")

    return lambda rows: [judge(row) for row in rows]
