"""Mistakes on the command line, in our words: what is wrong, and how it is written."""

import difflib
from datetime import datetime
from typing import Any, Literal, get_args, get_origin

from cyclopts import CycloptsError
from cyclopts.exceptions import (
    CoercionError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
)

from backprop_core.errors import ConfigInvalid
from flows.cli.verb_tables import GROUPS, verbs

KINDS: dict[Any, str] = {
    int: "a whole number, like 10",
    float: "a number, like 0.5",
    bool: "no value",
    datetime: "a day, like 2026-01-31",
}


def usage_error(error: CycloptsError) -> ConfigInvalid:
    """The coded error for what the parser refuses."""
    verb = " ".join(error.command_chain or ())
    match error:
        case UnknownCommandError():
            return unknown_verb(verb, (error.unused_tokens or [""])[0])
        case UnknownOptionError():
            return unknown_flag(verb, error)
        case UnusedCliTokensError():
            return ConfigInvalid(f"{said(verb)} cannot use {' '.join(error.unused_tokens or [])}", hint=usage(verb))
        case MissingArgumentError():
            return missing(verb, error)
        case CoercionError() if error.token and error.argument:
            what = f"{name_of(error)} takes {kind_of(error.target_type)}, not {error.token.value or 'an empty text'}"
            return ConfigInvalid(what, hint=usage(verb))
        case ValidationError() if error.argument and error.argument.tokens:
            given = error.argument.tokens[-1].value
            reason = str(error.exception_message).rstrip(".")
            return ConfigInvalid(f"{name_of(error)} {given} is refused: {lower(reason)}", hint=usage(verb))
        case RepeatArgumentError():
            return ConfigInvalid(f"{error.token.keyword} is given twice", hint=f"give it once; {usage(verb)}")
    error.verbose = False
    return ConfigInvalid(lower(str(error).rstrip(".")), hint=usage(verb))


def lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def said(verb: str) -> str:
    """A verb as an error names it."""
    return f"`backprop {verb}`" if verb else "`backprop`"


def example_of(verb: str) -> str | None:
    """The example of a verb."""
    first, _, second = verb.partition(" ")
    if second and first in GROUPS:
        known = GROUPS[first].verbs.get(second)
        return known[1] if known else None
    entry = verbs().get(first)
    return entry[2] if entry else None


def usage(verb: str) -> str:
    """How a verb is written, and where its flags are explained."""
    example = example_of(verb)
    more = f"backprop {verb} --help" if verb else "backprop --help"
    return f"write, for example: {example} (all flags: {more})" if example else f"see: {more}"


def unknown_verb(group: str, word: str) -> ConfigInvalid:
    """There is no such verb."""
    known = list(GROUPS[group].verbs) if group in GROUPS else [*verbs(), *GROUPS]
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if found:
        hint = f"did you mean `backprop {f'{group} ' if group else ''}{found[0]}`?"
    else:
        hint = f"{group} has {', '.join(known)}" if group in GROUPS else "all verbs: backprop --help"
    return ConfigInvalid(f"{said(group)} has no verb {word}", hint=hint)


def unknown_flag(verb: str, error: UnknownOptionError) -> ConfigInvalid:
    """There is no such flag."""
    word = (error.token.keyword or error.token.value).partition("=")[0]
    known = [name for argument in error.argument_collection if argument.parse for name in argument.names]
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    hint = f"did you mean {found[0]}? ({usage(verb)})" if found else usage(verb)
    return ConfigInvalid(f"{said(verb)} has no flag {word}", hint=hint)


def missing(verb: str, error: MissingArgumentError) -> ConfigInvalid:
    """An argument, or the value of a flag, is not given."""
    if error.keyword or (error.argument and error.argument.tokens):
        return ConfigInvalid(f"{name_of(error)} has no value", hint=usage(verb))
    return ConfigInvalid(f"{said(verb)} needs {name_of(error)}", hint=usage(verb))


def name_of(error: Any) -> str:
    """The flag as it was written, or the name of an argument without one in capitals."""
    argument = error.argument
    word = getattr(error, "keyword", None) or (error.token.keyword if getattr(error, "token", None) else None)
    word = word or next((token.keyword for token in reversed(argument.tokens) if token.keyword), None)
    if word:
        return str(word)
    info = argument.field_info
    return str(argument.name.lstrip("-").upper() if info.is_positional and not info.is_keyword else argument.name)


def kind_of(type_: Any) -> str:
    """What a flag takes."""
    if get_origin(type_) is Literal:
        return f"one of {', '.join(map(str, get_args(type_)))}"
    return KINDS.get(type_, "a value of another kind")
