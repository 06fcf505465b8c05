"""Says which part of a stage's cache key differs from the most similar one before: an input, a field or the version.

The parts of each key whose stage has run are a note in the store. Long texts and lists are kept as their digest.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from backprop_core.schema.records import Record, Spec
from backprop_core.schema.refs import ArtifactRef, BaseRef, ConverterRef, OwnTasks, SourceRef
from backprop_core.schema.specs import DatasetSpec, RunSpec
from backprop_core.stages import every
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import canonical, digest_of, digests_in, part, set_fields

MOST = 200  # keys of a stage that are compared, the newest ones
SHOWN = 5  # differences
LONGEST, MOST_ITEMS = 60, 20  # of texts and lists that are kept as they are
DIGEST = "sha256:"
VERSION = "stage version"
UNSET = "unset"
Parts = dict[str, Any]  # path → value; a digest begins with DIGEST


def parts_of(stage: str, parameters: Mapping[str, Any]) -> Parts:
    """The parts of a key: fields of specs by their path in a run's spec, inputs by the parameter's name."""
    found: Parts = {VERSION: every()[stage].version}
    for name, value in parameters.items():
        found |= flat(spec_names().get(type(value), name) if isinstance(value, Spec) else name, value)
    return found


def spec_names() -> dict[type, str]:
    """The name of each spec in a run's spec, by its class."""
    named = {
        field.annotation: name for name, field in RunSpec.model_fields.items() if isinstance(field.annotation, type)
    }
    return {**named, DatasetSpec: "datasets"}


def flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A parameter's leaves, each with its path."""
    match value:
        case ArtifactRef() | ConverterRef() | OwnTasks() | BaseRef() | SourceRef():
            yield path, f"{DIGEST}{value.digest if isinstance(part(value), str) else digest_of(part(value))}"
        case Spec():
            yield from inside(path, value.semantic())
        case Record():
            yield from inside(path, set_fields(value))
        case Mapping() if value:
            yield from inside(path, value)
        case list() | tuple() if 0 < len(value) <= MOST_ITEMS and not all(
            isinstance(one, str | float) for one in value
        ):
            yield from inside(path, {str(number): one for number, one in enumerate(value)})
        case _:
            plain = part(value)
            short = len(canonical(plain)) <= LONGEST
            yield path, plain if short else f"{DIGEST}{digest_of(plain)}"


def inside(path: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return (leaf for name, value in values.items() for leaf in flat(f"{path}.{name}", value))


class KeyChanges:
    """What changed in the keys of a run's stages."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._made: dict[str, str] = {}  # by digest, what made it in this run

    def why(self, stage: str, key: str, parameters: Mapping[str, Any]) -> list[str]:
        """Why a stage has no result under this key, a line for each part that changed."""
        if self._note(stage, key).is_file():
            return ["its result is not in the cache any more"]
        mine = parts_of(stage, parameters)
        known = [json.loads(path.read_bytes()) for path in self._newest(stage)]
        if not known:
            return ["no earlier result of this stage"]
        nearest = min(known, key=lambda other: len(differing(mine, other)))
        origin = {name: place for name, value in parameters.items() if (place := origin_of(value))}
        changed = differing(mine, nearest)
        more = [f"and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
        return [self._said(path, nearest, mine, origin) for path in changed[:SHOWN]] + more

    def _said(self, path: str, old: Parts, new: Parts, origin: Mapping[str, str]) -> str:
        """`training.epochs: 1 → 2`, or `source (tickets.jsonl): 12ab… → 34cd…`"""
        value = new.get(path, UNSET)
        made = self._made.get(str(value).removeprefix(DIGEST)) or origin.get(path)
        return f"{path}{f' ({made})' if made else ''}: {short(old.get(path, UNSET))} → {short(value)}"

    def learn(self, stage: str, key: str, parameters: Mapping[str, Any], result: BaseModel | None) -> None:
        """Remember what a stage made in this run; in a plan that may be a stand-in, whose digest is the key."""
        of = origin_of(parameters.get("source"))
        for digest in {key, *digests_in(result.model_dump_json() if result else "")}:
            self._made.setdefault(digest, f"made by {stage}{f' of {of}' if of else ''}")

    def note(self, stage: str, key: str, parameters: Mapping[str, Any]) -> None:
        """Keep the parts of a key that now has a result."""
        path = self._note(stage, key)
        if not path.is_file():
            write_atomic(path, canonical(parts_of(stage, parameters)))
            for old in self._newest(stage, after=2 * MOST):
                old.unlink(missing_ok=True)

    def _note(self, stage: str, key: str) -> Path:
        return self._store.layout.note(f"key-{stage}", key)

    def _newest(self, stage: str, *, after: int = 0) -> list[Path]:
        """The newest notes of a stage, or all that are older than that many."""
        found = [(path.stat().st_mtime, path) for path in self._note(stage, "").parent.glob("*.json")]
        paths = [path for _, path in sorted(found, reverse=True)]
        return paths[after:] if after else paths[:MOST]


def differing(one: Parts, other: Parts) -> list[str]:
    """The paths whose values are not the same, or that only one has."""
    return [path for path in {**one, **other} if one.get(path, UNSET) != other.get(path, UNSET)]


def origin_of(value: Any) -> str | None:
    """The name of an input: of a source the last part of its path, of a base its name."""
    match value:
        case SourceRef():
            return value.path.rstrip("/").rpartition("/")[2]
        case BaseRef():
            return value.name
    return None


def short(value: Any) -> str:
    """A value as people read it; of a digest the first digits."""
    if isinstance(value, str) and value.startswith(DIGEST):
        return value.removeprefix(DIGEST)[:12]
    return UNSET if value == UNSET else json.dumps(value, ensure_ascii=False)
