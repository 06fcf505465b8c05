"""Reads the tensor types of a GGUF file (Q4_K, F32, …), seconds faster than `gguf`'s reader, which parses all tokens.

The layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gguf import GGMLQuantizationType as GGMLType
from gguf import GGUFValueType as Type

HEAD = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of fields
LENGTH, KIND, ARRAY = struct.Struct("<Q"), struct.Struct("<I"), struct.Struct("<IQ")
SIZES = {
    **dict.fromkeys((Type.UINT8, Type.INT8, Type.BOOL), 1),
    **dict.fromkeys((Type.UINT16, Type.INT16), 2),
    **dict.fromkeys((Type.UINT32, Type.INT32, Type.FLOAT32), 4),
    **dict.fromkeys((Type.UINT64, Type.INT64, Type.FLOAT64), 8),
}


def tensor_types(file: Path) -> dict[str, int]:
    """The number of tensors of each type in a GGUF file, by GGML's name of the type (`Q4_K`, `F32`)."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return dict(sorted(Counter(types(data)).items()))


def types(data: mmap.mmap) -> Iterator[str]:
    """The type of each tensor, in the file's order."""
    _, _, tensors, fields = HEAD.unpack_from(data)
    at = HEAD.size
    for _ in range(fields):
        at = after_text(data, at)
        at = after_value(data, at + KIND.size, *KIND.unpack_from(data, at))
    for _ in range(tensors):
        at = after_text(data, at)
        at += KIND.size + LENGTH.size * KIND.unpack_from(data, at)[0]  # the shape
        yield GGMLType(*KIND.unpack_from(data, at)).name
        at += ARRAY.size  # type and offset of the data


def after_text(data: mmap.mmap, at: int) -> int:
    return at + LENGTH.size + int(LENGTH.unpack_from(data, at)[0])


def after_value(data: mmap.mmap, at: int, kind: int) -> int:
    """The end of the value that starts at `at`."""
    if kind == Type.STRING:
        return after_text(data, at)
    if kind != Type.ARRAY:
        return at + SIZES[Type(kind)]
    element, count = ARRAY.unpack_from(data, at)
    at += ARRAY.size
    if element in SIZES:
        return at + int(count) * SIZES[Type(element)]
    for _ in range(count):
        at = after_value(data, at, element)
    return at
