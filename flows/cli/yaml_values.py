"""YAML as plain values, each with its line. No tags, no aliases, no key twice; numbers stay text for pydantic."""

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
    """What a text says, and on which line it says it."""

    value: Any
    lines: dict[Path, int] = field(default_factory=dict)


def parse(text: str, origin: str) -> Document:
    """Read one YAML document; `origin` is what an error calls it.

    A number, a date and a truth value stay the text that was written, so that `task: 2024` is a name and
    `learning_rate: 2e-4` a number: the field decides. Raises ConfigInvalid for all but plain values.
    """
    if len(text) > MAX_BYTES:
        raise ConfigInvalid(f"{origin} is larger than {MAX_BYTES} bytes", hint="a spec has a few lines")
    try:
        refuse_abuse(text, origin)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        line, problem = problem_of(error)
        raise ConfigInvalid(f"{origin}{line} is no YAML: {problem}", hint="correct it, or leave it out") from error
    document = Document(None)
    if node is not None:
        document.value = plain(node, (), document.lines, origin)
    return document


def written(text: str, origin: str) -> Any:
    """A value on a command line or in the environment, read as YAML; but `#` is a character there and no comment.

    Raises what `parse` raises.
    """
    value = parse(text, origin).value
    is_text = isinstance(value, str | None) and not text.lstrip().startswith(('"', "'"))
    return text.strip() if is_text and re.search(r"(^|\s)#", text) else value


def refuse_abuse(text: str, origin: str) -> None:
    """Raise ConfigInvalid for aliases, which can grow without bounds, and for nesting that nobody writes by hand."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ConfigInvalid(f"{origin} has the alias *{event.anchor}", hint="write the value out")
        if depth > MAX_DEPTH:
            raise ConfigInvalid(f"{origin} is nested too deeply", hint=f"at most {MAX_DEPTH} levels are read")


def plain(node: yaml.Node, path: Path, lines: dict[Path, int], origin: str) -> Any:
    """A node as dict, list, text or None; notes the line of everything in it."""
    lines[path] = line = node.start_mark.line + 1
    match node:
        case yaml.MappingNode(tag="tag:yaml.org,2002:map"):
            return dict(pairs(node, path, lines, origin))
        case yaml.SequenceNode(tag="tag:yaml.org,2002:seq"):
            return [plain(item, (*path, str(index)), lines, origin) for index, item in enumerate(node.value)]
        case yaml.ScalarNode(tag=tag, value=str(value)) if tag in TEXTUAL:
            return value
        case yaml.ScalarNode(tag=tag) if tag == NULL:
            return None
    raise ConfigInvalid(
        f"{origin}:{line} has the tag {node.tag}", hint="only plain values, lists and mappings are read"
    )


def pairs(node: yaml.MappingNode, path: Path, lines: dict[Path, int], origin: str) -> Iterator[tuple[str, Any]]:
    """The entries of a mapping. Raises ConfigInvalid for a name that stands twice or is no text."""
    seen = set()
    for key, value in node.value:
        where = f"{origin}:{key.start_mark.line + 1}"
        if key.tag not in TEXTUAL:
            raise ConfigInvalid(f"{where} has a name that is no text", hint="name a field")
        if key.value in seen:
            raise ConfigInvalid(f"{where} says {key.value} a second time", hint="keep one of the two")
        seen.add(key.value)
        below = (*path, key.value)
        yield key.value, plain(value, below, lines, origin)
        lines[below] = key.start_mark.line + 1


def problem_of(error: yaml.YAMLError) -> tuple[str, str]:
    """`:LINE`, if the parser knows it, and what it did not like, in one line."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return "", str(error).partition("\n")[0]
    mark: yaml.Mark | None = error.problem_mark
    return f":{mark.line + 1}" if mark else "", error.problem or str(error.context)
