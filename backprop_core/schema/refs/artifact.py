"""What every ref is: a directory in the store, named by its digest."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field

from backprop_core.schema.records import Record

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class ArtifactRef(Record):
    """A directory in the store, named by the digest of its payload alone: same bytes, same name."""

    artifact: ClassVar[str]
    format: ClassVar[int] = 1
    digest: Digest


def artifacts_in(value: Any) -> Iterator[ArtifactRef]:
    """Every artifact ref in a record, at any depth."""
    match value:
        case BaseModel():
            if isinstance(value, ArtifactRef):
                yield value
            parts = [getattr(value, name) for name in type(value).model_fields]
        case dict():
            parts = list(value.values())
        case list() | tuple():
            parts = list(value)
        case _:
            return
    for part in parts:
        yield from artifacts_in(part)
