"""YAML as plain values, each with its line. Tags, aliases and duplicate keys are errors; numbers stay text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from backprop_core.errors import ConfigInvalid

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
TEXTUAL = {f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "str", "timestamp", "value")}
NULL = "tag:yaml.org,2002:null"

Path = tuple[str, ...]


@dataclass
class Document:
    """The values of a YAML text, and the line of each."""

    value: Any
    lines: dict[Path, int] = field(default_factory=dict)


def parse(text: str, origin: str) -> Document:
    """Read one YAML document; errors call it `origin`.

    Numbers, dates and booleans stay text. The field decides what they are: `task: 2024` is a name and
    `learning_rate: 2e-4` a number. Raises ConfigInvalid for anything but plain values.
    """
    if len(text) > MAX_BYTES:
        raise ConfigInvalid(f"{origin} is larger than {MAX_BYTES} bytes", hint="write a smaller file")
    try:
        refuse_abuse(text, origin)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        line, problem = problem_of(error)
        raise ConfigInvalid(
            f"{origin}{line} is not valid YAML: {problem}", hint="correct it, or leave it out"
        ) from error
    document = Document(None)
    if node is not None:
        document.value = plain(node, (), document.lines, origin)
    return document


def written(text: str, origin: str) -> Any:
    """Read a value from a command line or the environment as YAML, except that `#` starts no comment.

    Raises what `parse` raises.
    """
    value = parse(text, origin).value
    is_text = isinstance(value, str | None) and not text.lstrip().startswith(('"', "'"))
    return text.strip() if is_text and re.search(r"(^|\s)#", text) else value


def refuse_abuse(text: str, origin: str) -> None:
    """Raise ConfigInvalid for aliases, which can expand without bounds, and for very deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ConfigInvalid(f"{origin} has the alias *{event.anchor}", hint="write out the value instead")
        if depth > MAX_DEPTH:
            raise ConfigInvalid(f"{origin} is nested too deeply", hint=f"use at most {MAX_DEPTH} levels")


def plain(node: yaml.Node, path: Path, lines: dict[Path, int], origin: str) -> Any:
    """A node as dict, list, text or None. Adds the line of each value to `lines`."""
    lines[path] = line = node.start_mark.line + 1
    match node:
        case yaml.MappingNode(tag="tag:yaml.org,2002:map"):
            return dict(pairs(node, path, lines, origin))
        case yaml.SequenceNode(tag="tag:yaml.org,2002:seq"):
            return [plain(item, (*path, str(index)), lines, origin) for index, item in enumerate(node.value)]
        case yaml.ScalarNode(tag=tag, value=str(value)) if tag in TEXTUAL:
            return whole(value, f"{origin}:{line}")
        case yaml.ScalarNode(tag=tag) if tag == NULL:
            return None
    raise ConfigInvalid(f"{origin}:{line} has the tag {node.tag}", hint="use only plain values, lists and mappings")


def whole(text: str, where: str) -> str:
    r"""A text in which `\ud83d\ude00` is one character, as JSON writes it. Raises ConfigInvalid for half of a pair."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"{where} has half of a surrogate pair", hint="write the character itself") from error


def pairs(node: yaml.MappingNode, path: Path, lines: dict[Path, int], origin: str) -> Iterator[tuple[str, Any]]:
    """The entries of a mapping. Raises ConfigInvalid for a key that is not text or occurs twice."""
    seen = set()
    for key, value in node.value:
        where = f"{origin}:{key.start_mark.line + 1}"
        if key.tag not in TEXTUAL:
            raise ConfigInvalid(f"{where} has a key that is not text", hint="use the name of a field")
        if key.value in seen:
            raise ConfigInvalid(f"{where} repeats the key {key.value}", hint="keep one of the two")
        seen.add(key.value)
        below = (*path, key.value)
        yield key.value, plain(value, below, lines, origin)
        lines[below] = key.start_mark.line + 1


def problem_of(error: yaml.YAMLError) -> tuple[str, str]:
    """`:LINE`, if the parser knows it, and the problem, in one line."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return "", str(error).partition("\n")[0]
    mark: yaml.Mark | None = error.problem_mark
    return f":{mark.line + 1}" if mark else "", error.problem or str(error.context)
