"""A GGUF writer that packs a whole vocabulary at once; packing token by token, as in `gguf`, takes half a second."""

import struct
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType as Type

NUMBERS = {int: (Type.INT32, np.dtype("<i4")), float: (Type.FLOAT32, np.dtype("<f4"))}


class Writer(gguf.GGUFWriter):  # type: ignore[misc]  # gguf has no types
    """`gguf`'s writer, with faster packing of lists."""

    def _pack_val(self, val: Any, vtype: Type, add_vtype: bool, sub_type: Type | None = None) -> bytes:
        if vtype != Type.ARRAY:
            return bytes(super()._pack_val(val, vtype, add_vtype, sub_type))
        kind, content = packed(val)
        return struct.pack("<IIQ", vtype, kind, len(val)) + content


def packed(values: list[str] | list[int] | list[float]) -> tuple[Type, bytes]:
    """The GGUF type of these values, and the values as bytes."""
    if isinstance(values[0], str):
        return Type.STRING, b"".join(struct.pack("<Q", len(text)) + text for text in map(str.encode, values))
    kind, dtype = NUMBERS[type(values[0])]
    return kind, np.array(values, dtype).tobytes()
