"""CurationSpec: which rows of a dataset are dropped, changed or set apart before training."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from backprop_core.schema.records import KEY_IF_SET, Spec

Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]
QualityRule = Literal["repetition", "symbols", "refusal", "truncated", "echo"]
PersonalData = Literal["off", "flag", "redact", "drop", "quarantine"]
ComparedPart = Literal["conversation", "question"]
Contradictions = Literal["off", "report", "keep_newest", "drop_both"]


Curriculum = Literal["length", "file", "perplexity"]


class SourceShare(Spec):
    """How much of some files of a dataset is used."""

    files: str = Field(
        "*",
        min_length=1,
        description="Pattern of the names of files in a directory, an archive or a Hub dataset, such as faq-*; a file "
        "belongs to the first pattern that matches it.",
    )
    max_rows: int | None = Field(None, ge=1, description="Use at most this many of their rows, chosen by hash.")
    weight: float = Field(
        1,
        gt=0,
        le=100,
        description="How often an epoch trains each of their rows; of a fraction, that share of the rows, by hash: 1.5 "
        "trains half of them twice.",
    )


class PerplexitySpec(Spec):
    """Which rows to drop by their perplexity under the base."""

    drop_highest: float = Field(0, ge=0, lt=1, description="Drop this share of the rows, the ones it expects least.")
    drop_lowest: float = Field(0, ge=0, lt=1, description="Drop this share of the rows, the ones it knows best.")
    max: float | None = Field(None, gt=1, description="Drop rows with a higher perplexity.")
    min: float | None = Field(None, gt=1, description="Drop rows with a lower perplexity.")

    @model_validator(mode="after")
    def _something_to_drop(self) -> Self:
        if not (self.drop_highest or self.drop_lowest or self.max or self.min):
            raise ValueError("perplexity drops nothing: set drop_highest, drop_lowest, max or min")
        return self


class CurationSpec(Spec):
    """Curation of a dataset; exact duplicates are always dropped."""

    personal_data: PersonalData = Field(
        "off",
        description="Rows with e-mail addresses, phone numbers, IBANs, card numbers or secrets: flag them in the "
        "lineage, redact the text, drop the rows, or quarantine them.",
        json_schema_extra=KEY_IF_SET,
    )
    min_tokens: int | None = Field(
        None,
        ge=1,
        description="Drop rows with fewer tokens, by the base's tokenizer and chat template.",
        json_schema_extra=KEY_IF_SET,
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Drop rows with more tokens, counted likewise.", json_schema_extra=KEY_IF_SET
    )
    languages: list[Language] = Field(
        [],
        description="Keep rows in these languages (ISO 639-1 codes, like en), and rows too short to tell.",
        json_schema_extra=KEY_IF_SET,
    )
    quality: list[QualityRule] = Field(
        [],
        description="Drop rows whose last answer breaks one of these rules. repetition: half of its word triples occur "
        "before; symbols: most of its characters; refusal; truncated: it ends in the middle; echo: it is the question.",
        json_schema_extra=KEY_IF_SET,
    )
    near_duplicates: float | None = Field(
        None,
        ge=0.5,
        le=1,
        description="Drop a row if one that is kept is at least this similar: Jaccard of three-word shingles. Rows "
        "that are this similar to a row that scores are not trained either.",
        json_schema_extra=KEY_IF_SET,
    )
    near_duplicates_on: ComparedPart = Field(
        "conversation",
        description="Which text of a row near_duplicates compares.",
        json_schema_extra=KEY_IF_SET,
    )
    decontaminate: int | None = Field(
        None,
        ge=3,
        le=64,
        description="Do not train on rows that have this many words in a row in common with a row that scores, of any "
        "task of the run or its line; 13 is usual. Words that several rows have which score are a template.",
        json_schema_extra=KEY_IF_SET,
    )
    contradictions: Contradictions = Field(
        "off",
        description="Rows with the same question and another answer: report them in the lineage, keep the newest (the "
        "last in the source), or drop them all.",
        json_schema_extra=KEY_IF_SET,
    )

    sources: list[SourceShare] = Field(
        [],
        max_length=200,
        description="Caps and weights of the dataset's files, by patterns of their names.",
        json_schema_extra=KEY_IF_SET,
    )

    perplexity: PerplexitySpec | None = Field(
        None,
        description="Drop rows by the perplexity of their answers under the base, after all other steps.",
        json_schema_extra=KEY_IF_SET,
    )
    curriculum: Curriculum | None = Field(
        None,
        description="Order in which each epoch trains the rows: length, the shortest in tokens first; file, as they "
        "stand in the source; perplexity, the lowest first. Default: shuffled.",
        json_schema_extra=KEY_IF_SET,
    )

    @field_validator("languages", "quality")
    @classmethod
    def _in_one_order(cls, names: list[str]) -> list[str]:
        return sorted({*names})  # the order in which they are written means nothing

    @field_validator("sources")
    @classmethod
    def _each_can_match(cls, sources: list[SourceShare]) -> list[SourceShare]:
        """Refuse a pattern whose files all belong to an earlier one: its cap and weight would have no effect."""
        for number, source in enumerate(sources):
            if {source.files, "*"} & {earlier.files for earlier in sources[:number]}:
                raise ValueError(f"{source.files} can match no file: an earlier pattern matches the same files")
        return sources

    @property
    def of_heldout(self) -> "CurationSpec":
        """The curation of a held-out file: all of its rows score, each once, in no order."""
        return self.model_copy(update={"sources": [], "perplexity": None, "curriculum": None})

    @property
    def needs_perplexity(self) -> bool:
        """Whether the base has to score the rows."""
        return self.perplexity is not None or self.curriculum == "perplexity"

    @property
    def counts_tokens(self) -> bool:
        """Whether a step needs the base's tokenizer."""
        return self.min_tokens is not None or self.max_tokens is not None
