"""Environment variables that look like ours and are not: their value is not read, so this is said."""

import difflib
import os
from collections.abc import Iterable, Iterator

from dotenv import dotenv_values

from backprop_core.runtime.settings import Settings
from backprop_core.schema.specs import RunSpec
from flows.cli.config_layers import PREFIX, SHORT_SECTIONS, place_of, variable_of
from flows.cli.console import say
from flows.cli.spec_fields import spec_fields

OTHERS = {f"{PREFIX}{name}" for name in ("AUTH_STRING", "FOLLOWS", "JUDGE_API_KEY", "USER_OFFLINE")}  # no settings
NEAR = 0.85  # how alike the first word of a name and ours have to be: BACKPROPOGATE


def say_misspelt() -> None:
    """Say on stderr which variables of the environment and of `.env` nothing reads."""
    named = {name: "" for name in os.environ} | {name: " in .env" for name in dotenv_values(".env")}
    for name, meant in misspelt(named):
        hint = f"did you mean {meant}?" if meant else "docs/reference.md lists all variables"
        say(f"{name}{named[name]} is not a setting and is ignored; {hint}")


def misspelt(names: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """The names that nothing reads, and what was probably meant.

    A field of a spec that does not exist is an error where specs are read, and not here.
    """
    settings = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for name in sorted(names):
        upper = name.upper()
        if upper in settings | OTHERS or place_of(name) or not is_ours(upper):
            continue
        sections = {variable_of(section) for section in (*RunSpec.model_fields, *SHORT_SECTIONS)}
        known = [*settings, *sections, *map(variable_of, spec_fields())]
        yield name, next(iter(difflib.get_close_matches(upper, known, n=1, cutoff=0.8)), None)


def is_ours(name: str) -> bool:
    """Whether a variable is meant for this project: it has our prefix, or one that is almost ours."""
    if name.startswith(PREFIX):
        return True
    return difflib.SequenceMatcher(None, name.partition("_")[0], PREFIX[:-1]).ratio() >= NEAR and "_" in name
