"""Spec and Record, the pydantic base classes of all specs, refs and results: frozen, no unknown fields."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

NO_KEY: JsonDict = {"key": False}  # the field cannot change a result, so cache keys omit it
KEY_IF_SET: JsonDict = {"key": "if set"}  # a field added later: cache keys contain it only if it is not at its default


class Spec(BaseModel):
    """Base class of what a user configures: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def semantic(self) -> dict[str, Any]:
        """The fields that can change a result: what a cache key contains."""
        every = {name: (getattr(self, name), field) for name, field in type(self).model_fields.items()}
        return {
            name: value
            for name, (value, field) in every.items()
            if field.json_schema_extra != NO_KEY and (field.json_schema_extra != KEY_IF_SET or value != field.default)
        }

    def over(self, known: Self) -> Self:
        """`known`, updated with all fields of this spec that are not at their defaults."""
        return known.model_copy(
            update={
                name: getattr(self, name)
                for name, field in type(self).model_fields.items()
                if getattr(self, name) != field.get_default(call_default_factory=True)
            }
        )


class Record(BaseModel):
    """Base class of what is stored and returned: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
