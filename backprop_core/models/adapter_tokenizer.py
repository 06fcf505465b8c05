"""The tokenizer and chat template that came with an adapter, where they are other than the base's. No torch.

An adapter answers as it was trained: what it brought wins over what the base has.
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
SPECIAL = [
    name for name in chat_template.SPECIAL if name != "pad_token"
]  # trainers choose that one, and no text has it
EMBEDDINGS = "model.embed_tokens.weight"


class Own(NamedTuple):
    """The files that make the tokenizer of an adapter, complete, and what of them is other than the base's."""

    files: dict[str, bytes]
    differs: list[str]


def own(directory: Path, base: Path) -> Own | None:
    """What came with the adapter in `directory`; None if its model is tokenized and chats as the base does.

    Where it has no vocabulary, or no template, that is the base's. Raises ChatTemplateUnusable, UnsafeModel,
    InputValidationFailed, and AdapterMismatch for a vocabulary that is larger than the base.
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
    """Of an adapter without a vocabulary the special tokens that are other than the base's, by name.

    Raises AdapterMismatch for one, or an added one, that the base's vocabulary does not have.
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
        hint = "put the adapter's tokenizer.json beside it"
        raise AdapterMismatch(f"{directory} names the token {unknown[0]}, which the base does not have", hint=hint)
    return named


def together(directory: Path, base: Path, named: dict[str, str]) -> dict[str, bytes]:
    """The adapter's files, the base's where it has none, with the special tokens that it names.

    The template has a file of its own, and no other place.
    """
    vocabulary = directory if vocabulary_in(directory) else base
    found = {name: (vocabulary / name).read_bytes() for name in VOCABULARY if (vocabulary / name).is_file()}
    maps = {name: bases.read_json(vocabulary / name) | named for name in MAPS if (vocabulary / name).is_file()}
    found |= {name: (canonical(one) + "\n").encode() for name, one in maps.items()}
    config = {key: value for key, value in (maps.get(CONFIG) or named).items() if key != "chat_template"}
    template = bases.template_of(directory) or bases.template_of(base) or ""
    return found | {CONFIG: (canonical(config) + "\n").encode(), TEMPLATE: template.encode()}


def vocabulary_in(directory: Path) -> bool:
    """Whether a directory has a tokenizer, not only a template."""
    return any((directory / name).is_file() for name in VOCABULARY if name != ADDED)


def decides(directory: Path) -> list[Any]:
    """What decides the tokens of a text: the vocabulary and how it is used, the special tokens by their texts."""
    named = bases.special_tokens(directory)
    texts = {name: chat_template.text_of(named[name]) for name in SPECIAL if named.get(name)}
    return [vocabulary_of(directory), {name: named[name] for name in SETTINGS if named.get(name) is not None}, texts]


def vocabulary_of(directory: Path) -> str | list[bytes]:
    """The content of tokenizer.json however it is written; without one, the files that it would be made of."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        return [(directory / name).read_bytes() for name in VOCABULARY if (directory / name).is_file()]
    return loaded(path).to_str()


def loaded(path: Path) -> Tokenizer:
    """The tokenizer of an adapter's or a base's tokenizer.json. Raises InputValidationFailed."""
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
            f"the tokenizer in {directory} has token {largest}, the base only {rows} embeddings",
            hint="give the base that the adapter was trained on: --model",
        )
