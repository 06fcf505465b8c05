"""An imported adapter's own tokenizer and chat template, if they differ from the base's. No torch.

An adapter's own files take precedence over the base's, as it was trained with them.
"""

from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from backprop_core.errors import AdapterMismatch, InputValidationFailed
from backprop_core.models import base as bases
from backprop_core.models import chat_template, peft_files
from backprop_core.store.cache_keys import canonical

ADDED = "added_tokens.json"
VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", ADDED)
CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
MAPS = ("special_tokens_map.json", CONFIG)
SETTINGS = ("add_bos_token", "add_eos_token", "add_prefix_space")
SPECIAL = [name for name in chat_template.SPECIAL if name != "pad_token"]  # trainers choose it; no text contains it
EMBEDDINGS = "model.embed_tokens.weight"


class Own(NamedTuple):
    """The complete tokenizer files of an adapter, and which parts differ from the base's."""

    files: dict[str, bytes]
    differs: list[str]


def own(directory: Path, base: Path) -> Own | None:
    """The tokenizer files of the adapter in `directory`; None if they are equivalent to the base's.

    A missing vocabulary or template is taken from the base. Raises ChatTemplateUnusable, UnsafeModel,
    InputValidationFailed, and AdapterMismatch for a vocabulary larger than the base's embeddings.
    """
    if not any((directory / name).is_file() for name in bases.TOKENIZER_FILES):
        return None
    for name in MAPS:
        bases.refuse_code(directory / name, bases.optional_json(directory / name))
    named = special_in(directory, base)
    files = together(directory, base, named)
    differs = [
        *(["tokenizer"] if vocabulary_in(directory) and decides(directory) != decides(base) else []),
        *(["set of special tokens"] if named else []),
        *(["chat template"] if bases.template_of(directory) not in (None, "", bases.template_of(base)) else []),
    ]
    if not differs:
        return None
    known = bases.special_tokens(directory if vocabulary_in(directory) else base)
    chat_template.check(files[TEMPLATE].decode(), known | named)
    check_size(directory, base)
    return Own(files, differs)


def special_in(directory: Path, base: Path) -> dict[str, str]:
    """Special tokens, by name, in which an adapter without a vocabulary differs from the base.

    Raises AdapterMismatch for a special or added token that is not in the base's vocabulary.
    """
    if vocabulary_in(directory):
        return {}
    own, usual = bases.special_tokens(directory), bases.special_tokens(base)
    texts = {name: chat_template.text_of(own[name]) for name in SPECIAL if own.get(name)}
    named = {name: text for name, text in texts.items() if text != chat_template.text_of(usual.get(name) or "")}
    path = base / "tokenizer.json"
    wanted = [*named.values(), *bases.optional_json(directory / ADDED)]
    known = loaded(path).get_vocab() if wanted and path.is_file() else wanted
    if unknown := [text for text in wanted if text not in known]:
        hint = "copy the adapter's tokenizer.json into the directory"
        raise AdapterMismatch(f"{directory} uses the token {unknown[0]}, which the base does not have", hint=hint)
    return named


def together(directory: Path, base: Path, named: dict[str, str]) -> dict[str, bytes]:
    """The adapter's tokenizer files with its special tokens, completed by the base's.

    The template is only in its own file.
    """
    vocabulary = directory if vocabulary_in(directory) else base
    found = {name: (vocabulary / name).read_bytes() for name in VOCABULARY if (vocabulary / name).is_file()}
    maps = {name: bases.read_json(vocabulary / name) | named for name in MAPS if (vocabulary / name).is_file()}
    found |= {name: (canonical(one) + "\n").encode() for name, one in maps.items()}
    config = {key: value for key, value in (maps.get(CONFIG) or named).items() if key != "chat_template"}
    template = bases.template_of(directory) or bases.template_of(base) or ""
    return found | {CONFIG: (canonical(config) + "\n").encode(), TEMPLATE: template.encode()}


def vocabulary_in(directory: Path) -> bool:
    """Whether a directory has a tokenizer, not just a template."""
    return any((directory / name).is_file() for name in VOCABULARY if name != ADDED)


def decides(directory: Path) -> list[Any]:
    """What determines the tokens of a text: vocabulary, tokenizer settings, and texts of the special tokens."""
    named = bases.special_tokens(directory)
    texts = {name: chat_template.text_of(named[name]) for name in SPECIAL if named.get(name)}
    return [vocabulary_of(directory), {name: named[name] for name in SETTINGS if named.get(name) is not None}, texts]


def vocabulary_of(directory: Path) -> str | list[bytes]:
    """The content of tokenizer.json, regardless of formatting; without one, that of the other vocabulary files."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        return [(directory / name).read_bytes() for name in VOCABULARY if (directory / name).is_file()]
    return loaded(path).to_str()


def loaded(path: Path) -> Tokenizer:
    """Load a tokenizer.json. Raises InputValidationFailed."""
    try:
        return bases.open_tokenizer(path)
    except ValueError as error:
        raise InputValidationFailed(f"{path} cannot be read: {error}", hint="save the tokenizer again") from error


def check_size(directory: Path, base: Path) -> None:
    """Raise AdapterMismatch if the adapter's tokenizer has a token that the base has no embedding for."""
    path, rows = directory / "tokenizer.json", peft_files.shapes_of(base).get(EMBEDDINGS, (0,))[0]
    largest = max(loaded(path).get_vocab().values(), default=0) if path.is_file() else 0
    if rows and largest >= rows:
        raise AdapterMismatch(
            f"the tokenizer in {directory} has token {largest}, but the base has only {rows} embeddings",
            hint="use the base that the adapter was trained on: --model",
        )
