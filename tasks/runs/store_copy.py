"""`backprop store copy` and `store sync`: everything of a store into another one, a directory or in a bucket.

What either has forgotten stays forgotten: the target's list gets the rows of the source's, and what the target still
has of them is named. A source that still has such rows is refused.
"""

from pathlib import Path

from backprop_core.data.forgotten_rows import forgotten
from backprop_core.data.forgotten_search import having, unite
from backprop_core.errors import ConfigInvalid, InputValidationFailed, StoreUnsupported
from backprop_core.runtime.settings import Settings
from backprop_core.schema.field_types import is_address
from backprop_core.store import sharing
from backprop_core.store.artifacts import Store
from backprop_core.store.copying import Copied
from backprop_core.store.copying import copy as copy_all
from tasks.runs.progress import Progress, report

NAMED = 10  # rows that an error lists


def copy(source: str, target: str, config: Settings) -> Copied:
    """Copy what the target lacks.

    Raises ConfigInvalid, StoreUnsupported, InputValidationFailed, and what reading and writing a store can.
    """
    origin, place = opened(source, config, must_exist=True), opened(target, config, must_exist=False)
    if origin.root == place.root:
        raise ConfigInvalid(f"{source} and {target} are the same store", hint="name two different stores")
    if rows := sorted(set(having(forgotten(place).keys() | forgotten(origin).keys(), origin))):
        raise InputValidationFailed(
            f"{source} still has {len(rows)} forgotten rows: {', '.join(rows[:NAMED])}",
            hint=f"forget them there, then copy: BACKPROPAGATE_STORE={source} backprop data forget {rows[0][:12]}",
        )
    unite(origin, place)
    done = copy_all(origin, place, said)
    return done.model_copy(update={"forgotten": sorted(set(having(forgotten(place).keys(), place)))})


def sync(one: str, other: str, config: Settings) -> list[Copied]:
    """Copy what either lacks to it: first there, then back."""
    return [copy(one, other, config), copy(other, one, config)]


def said(done: int, total: int) -> None:
    report(Progress(stage="copy", done=done, total=total))


def opened(place: str, config: Settings, *, must_exist: bool) -> Store:
    """The store at a directory or an address."""
    named = config.model_copy(update={"store": place})
    root = named.store_path
    if is_address(place) and not place.lower().startswith("file:"):
        if not place.lower().startswith("s3://"):
            raise StoreUnsupported(f"unsupported store URL {place}", hint="name a directory or an s3:// address")
        if sharing.at(root) is None:
            sharing.begin(root, place)
    elif must_exist and not Path(root).is_dir():
        raise ConfigInvalid(f"there is no store at {place}", hint="name the directory of a store, or its s3:// address")
    return Store(root)
