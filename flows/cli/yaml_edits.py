"""Changes single values in a YAML text. Everything else, comments and order too, stays as it was written."""

from typing import Any

import yaml

from backprop_core.errors import ConfigInvalid
from flows.cli.yaml_values import Path, parse

MAPPING = "tag:yaml.org,2002:map"


def with_value(text: str, place: Path, value: Any) -> str:
    """The text with a value set at a place; parts that contain it are created. Raises ConfigInvalid."""
    root, value = composed(text), as_text(value)
    node, rest = nearest(root, place)
    if rest:
        return verified(text, added(text, node, rest, value), place, value)
    return verified(text, replaced(text, node, value), place, value)


def without_value(text: str, place: Path) -> str:
    """The text without the value at a place, and without parts that it leaves empty. Raises ConfigInvalid."""
    root = composed(text)
    parent, rest = nearest(root, place[:-1])
    key = place[-1]
    if rest or not isinstance(parent, yaml.MappingNode) or key not in keys_of(parent):
        return text
    if len(parent.value) == 1 and len(place) > 1 and not place[-2].isdecimal():
        return without_value(text, place[:-1])
    if len(parent.value) == 1 and (len(place) > 1 or parent.flow_style):
        return verified(text, replaced(text, parent, {}), place, None)
    return verified(text, removed(text, parent, keys_of(parent).index(key)), place, None)


def composed(text: str) -> yaml.MappingNode:
    """The mapping of a document; an empty one if it has none. Raises ConfigInvalid."""
    parse(text, "the job file")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        start = yaml.Mark("", 0, 0, 0, text, 0)
        return yaml.MappingNode(MAPPING, [], start, start, flow_style=False)
    if not isinstance(root, yaml.MappingNode):
        raise ConfigInvalid("the job file is not a mapping of fields", hint="write one FIELD: VALUE per line")
    return root


def nearest(node: yaml.Node, place: Path) -> tuple[yaml.Node, Path]:
    """The deepest existing node on the way to a place, and the rest of the way."""
    for done, part in enumerate(place):
        child = child_of(node, part)
        if child is None:
            return node, place[done:]
        node = child
    return node, ()


def child_of(node: yaml.Node, part: str) -> yaml.Node | None:
    match node:
        case yaml.MappingNode():
            return next((value for key, value in node.value if key.value == part), None)
        case yaml.SequenceNode() if part.isdecimal() and int(part) < len(node.value):
            entry: yaml.Node = node.value[int(part)]
            return entry
    return None


def keys_of(node: yaml.MappingNode) -> list[str]:
    return [key.value for key, _ in node.value]


def added(text: str, node: yaml.Node, rest: Path, value: Any) -> str:
    """The text with an entry that a mapping lacks."""
    name, below = rest[0], nested(rest[1:], value)
    if isinstance(node, yaml.ScalarNode):  # `schedule:` with nothing behind it
        return replaced(text, node, {name: below})
    if not isinstance(node, yaml.MappingNode):
        raise ConfigInvalid(f"the job file has no entry {name} here", hint="add it in an editor")
    if node.flow_style:
        at = node.end_mark.index - 1
        return f"{text[:at]}{', ' if node.value else ''}{name}: {inline(below)}{text[at:]}"
    indent = " " * node.start_mark.column
    lines = "".join(f"{indent}{line}\n" for line in block({name: below}))
    at = place_of_new(text, node, name)
    lines += "\n" if text.startswith(f"# {name}:", at) else ""
    missing = "" if at == 0 or text[at - 1] == "\n" else "\n"
    return f"{text[:at]}{missing}{lines}{text[at:]}"


def place_of_new(text: str, node: yaml.MappingNode, name: str) -> int:
    """Before an example of the entry in a comment, else behind the last entry."""
    example = text.find(f"\n# {name}:")
    if node.start_mark.column == 0 and example >= 0:
        return example + 1
    return line_end(text, end_of(text, node)) if node.value else len(text)


def nested(rest: Path, value: Any) -> Any:
    """The value within the mappings that lead to it."""
    for part in reversed(rest):
        value = {part: value}
    return value


def replaced(text: str, node: yaml.Node, value: Any) -> str:
    """The text with another value in place of a node."""
    begin, end = node.start_mark.index, end_of(text, node)
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        new = ("\n" + " " * node.start_mark.column).join(block(value) if value else [inline(value)])
    else:
        new = inline(value)
    space = "" if text[begin - 1 : begin] in ("", " ", "\n") else " "
    return f"{text[:begin]}{space}{new}{text[end:]}"


def removed(text: str, node: yaml.MappingNode, index: int) -> str:
    """The text without an entry of a mapping that has others."""
    key, value = node.value[index]
    begin = key.start_mark.index
    if node.flow_style:
        left, right = node.value[index - 1 : index], node.value[index + 1 : index + 2]
        if right:
            return text[:begin] + text[right[0][0].start_mark.index :]
        return text[: end_of(text, left[0][1])] + text[end_of(text, value) :]
    first = begin - key.start_mark.column
    if not text[first:begin].strip():
        return text[:first] + text[line_end(text, end_of(text, value)) :]
    return text[:begin] + text[node.value[index + 1][0].start_mark.index :]  # behind the dash of a list


def end_of(text: str, node: yaml.Node) -> int:
    """Where a node ends. A parser takes the comments behind a block as a part of it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        key, value = last if isinstance(last, tuple) else (last, last)
        return max(end_of(text, key), end_of(text, value))
    end: int = node.end_mark.index
    return len(text[:end].rstrip()) if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">") else end


def line_end(text: str, at: int) -> int:
    """Where the next line begins."""
    return text.find("\n", at) + 1 or len(text)


def block(value: Any) -> list[str]:
    """A mapping or a list with an entry a line; mappings in it are indented."""
    if isinstance(value, list):
        return [f"- {inline(entry)}" for entry in value]
    lines = []
    for name, below in value.items():
        deeper = block(below) if isinstance(below, dict) and below else []
        lines += [f"{name}:", *(f"  {line}" for line in deeper)] if deeper else [f"{name}: {inline(below)}"]
    return lines


def inline(value: Any) -> str:
    """A value on one line."""
    match value:
        case None:
            return "null"
        case dict():
            return "{" + ", ".join(f"{inline(name)}: {inline(below)}" for name, below in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(inline, value)) + "]"
    text = str(value)
    return text if is_plain(text) else quoted(text)


def quoted(text: str) -> str:
    """A text in double quotes, on one line."""
    written: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf"))
    return written.rstrip("\n")


def is_plain(text: str) -> bool:
    """Whether a text needs no quotes, in a list on one line either."""
    try:
        return bool(parse(f"a: [{text}]", "").value == {"a": [text]})
    except ConfigInvalid:
        return False


def verified(before: str, after: str, place: Path, value: Any) -> str:
    """`after`, if only the value at the place differs. Raises ConfigInvalid."""
    old, new = parse(before, "the job file").value or {}, parse(after, "the job file").value or {}
    if rest_of(old, place) != rest_of(new, place) or value_at(new, place) != value:
        raise ConfigInvalid(
            f"{'.'.join(place)} cannot be changed here: the job file is written in an unusual way",
            hint="change it in an editor",
        )
    return after


def value_at(tree: Any, place: Path) -> Any:
    """The value at a place; None if there is none."""
    for part in place:
        if isinstance(tree, list):
            tree = tree[int(part)] if part.isdecimal() and int(part) < len(tree) else None
        else:
            tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def rest_of(tree: Any, place: Path) -> Any:
    """A tree without the value at a place, and without mappings that are empty then."""
    head, *rest = place
    if isinstance(tree, list):
        return [rest_of(each, tuple(rest)) if rest and str(i) == head else each for i, each in enumerate(tree)]
    if not isinstance(tree, dict) or head not in tree:
        return tree
    below = rest_of(tree[head], tuple(rest)) if rest else None
    others = {name: each for name, each in tree.items() if name != head}
    return {**others, head: below} if below else others


def as_text(value: Any) -> Any:
    """A value as the parser gives it: every scalar is text."""
    match value:
        case dict():
            return {str(name): as_text(below) for name, below in value.items()}
        case list():
            return [as_text(entry) for entry in value]
        case bool():
            return str(value).lower()
    return None if value is None else str(value)
