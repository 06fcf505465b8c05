"""Caches tokenized rows (token ids and label positions) in the store.

The key has everything that determines the tokens: rows, tokenizer files, chat template, length, this module's VERSION
(raise it when `chat_encoding.encode` would produce other tokens) and the library versions. No stage's cache key depends
on it.
"""

import logging
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save
from torch import Tensor

from backprop_core.data import chat_encoding, chat_rendering, row_files
from backprop_core.data.preference_rows import is_preference
from backprop_core.errors import ArtifactDamaged, ArtifactMissing
from backprop_core.models import base as bases
from backprop_core.models import chat_template
from backprop_core.models.loading import LoadedBase
from backprop_core.schema.refs import RowsRef, TokensRef
from backprop_core.schema.specs import Limit
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import digest_of, part

VERSION = 2
FILE = "tokens.safetensors"
LIBRARIES = ("transformers", "tokenizers", "jinja2")
log = logging.getLogger(__name__)

# all int32; t = tokens of all examples concatenated, n = their label tokens, e = examples
Tensors = dict[str, Tensor]


def load(base: LoadedBase, rows: RowsRef, *, max_length: int | Limit, store: Store) -> tuple[TokensRef, Tensors]:
    """The rows' tokens, memory-mapped: from the cache, or tokenized now and cached.

    `ids_t`: token ids; `at_n`: positions of label tokens within their example; per example `length_e`, `labels_e`
    (number of label tokens) and `row_e`. Raises what `chat_encoding.encode` raises, and TokenizerMismatch.
    """
    note = store.layout.note("tokens", key_of(base, rows, max_length, store))
    ref = kept(note, store)
    if ref is None:
        every = row_files.load(store.local(rows))
        assert not any(map(is_preference, every)), "rows that judge answers are no answers to learn"
        examples = chat_encoding.encode(base.tokenizer, every, max_length=max_length)
        day = chat_template.clock(chat_rendering.template_of(base.tokenizer))
        ref = keep(examples, store, record={"rows": rows.digest, "max_length": part(max_length), "day": day})
        write_atomic(note, ref.model_dump_json())
    flat = load_file(store.local(ref) / FILE)
    base.check_ids(flat["ids_t"])
    return ref, flat


def key_of(base: LoadedBase, rows: RowsRef, max_length: int | Limit, store: Store) -> str:
    """The digest of everything that determines the tokens."""
    day = chat_template.clock(chat_rendering.template_of(base.tokenizer))
    return digest_of(
        {
            **({"day": day} if day else {}),
            "version": [VERSION, *map(version, LIBRARIES)],
            "rows": rows.digest,
            "tokenizer": bases.tokenizer_digest(Path(base.tokenizer.name_or_path), store),
            "template": base.tokenizer.chat_template,
            "max_length": part(max_length),
        }
    )


def kept(note: Path, store: Store) -> TokensRef | None:
    """The cached artifact if it exists and verifies. Sets a damaged one aside and logs a warning."""
    if not note.is_file():
        return None
    try:
        ref = TokensRef.model_validate_json(note.read_bytes())
    except ValidationError:
        log.warning("the token cache entry %s is damaged; tokenizing again", note.name)
        return None
    try:
        store.verify(ref.digest)
    except ArtifactMissing:
        return None
    except ArtifactDamaged as error:
        log.warning("%s: set aside, tokenizing again", error.message)
        store.set_aside(ref.digest)
        return None
    return ref


def keep(examples: chat_encoding.Examples, store: Store, *, record: dict[str, object]) -> TokensRef:
    """Commit the examples as flat tensors."""
    with store.begin("tokens") as directory:
        (directory / FILE).write_bytes(save(flat(examples), metadata={"format": "pt"}))
        return store.commit(
            directory, TokensRef, record={"stage": "tokens", **record}, cut=examples.cut, left_out=examples.left_out
        )


def flat(examples: chat_encoding.Examples) -> Tensors:
    """The flat tensors described in `load`."""
    at = [np.flatnonzero(np.frombuffer(bytes(example.labels), np.uint8)) for example in examples]
    arrays = {
        "ids_t": np.fromiter(chain.from_iterable(example.ids for example in examples), np.int32),
        "at_n": np.concatenate(at),
        "length_e": [len(example.ids) for example in examples],
        "labels_e": [len(positions) for positions in at],
        "row_e": [example.row for example in examples],
    }
    return {name: torch.from_numpy(np.asarray(array, np.int32)) for name, array in arrays.items()}
