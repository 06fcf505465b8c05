"""What all that is asked for and all that is written down has in common: typed, frozen, no unknown fields."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

NO_KEY: JsonDict = {"key": False}  # the field cannot change a result, so it is no part of a cache key
KEY_IF_SET: JsonDict = {"key": "if set"}  # a field that came later: part of a key where it is not at its default


class Spec(BaseModel):
    """Frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def semantic(self) -> dict[str, Any]:
        """The fields that can change a result."""
        every = {name: (getattr(self, name), field) for name, field in type(self).model_fields.items()}
        return {
            name: value
            for name, (value, field) in every.items()
            if field.json_schema_extra != NO_KEY and (field.json_schema_extra != KEY_IF_SET or value != field.default)
        }

    def over(self, known: Self) -> Self:
        """`known`, with the fields of this one that are not at their defaults."""
        return known.model_copy(
            update={
                name: getattr(self, name)
                for name, field in type(self).model_fields.items()
                if getattr(self, name) != field.get_default(call_default_factory=True)
            }
        )


class Record(BaseModel):
    """Frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
