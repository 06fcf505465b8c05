"""A model's tokenizer from its tokenizer.json, without transformers: for the few rows that the parent tokenizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Encoding

from backprop_core.errors import ModelLoadFailed
from backprop_core.models import base as bases
from backprop_core.models.chat_template import SPECIAL, text_of


class Encoded(NamedTuple):
    """The tokens of one text, or of several."""

    input_ids: list[int]
    encodings: list[Encoding]


class FileTokenizer:
    """What `chat_encoding` uses of a tokenizer of transformers, with the same names."""

    def __init__(self, directory: Path) -> None:
        """Read a model's directory. Raises ModelLoadFailed if its tokenizer.json is missing or invalid."""
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise ModelLoadFailed(
                f"{directory} has no tokenizer.json to show rows with", hint="use a model that has one with --model"
            )
        try:
            self.backend_tokenizer = bases.open_tokenizer(file)
        except ValueError as error:
            raise ModelLoadFailed(
                f"{file} is not a valid tokenizer: {error}", hint="download the model's files again"
            ) from error
        special = bases.special_tokens(directory)
        self.special_tokens_map = {name: text_of(token) for name in SPECIAL if (token := special.get(name))}
        self._more = [text_of(token) for token in special.get("additional_special_tokens") or ()]
        self.chat_template = bases.template_of(directory)

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens_map.get("bos_token")

    @property
    def bos_token_id(self) -> int | None:
        return self.backend_tokenizer.token_to_id(self.bos_token) if self.bos_token else None

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens_map.get("eos_token")

    @property
    def all_special_tokens(self) -> list[str]:
        return [*self.special_tokens_map.values(), *self._more]

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        return self.backend_tokenizer.get_added_tokens_decoder()

    def __call__(
        self,
        texts: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        verbose: bool = True,
    ) -> Encoded:
        """Tokenize one text or several; `input_ids` are those of the first."""
        several = [texts] if isinstance(texts, str) else list(texts)
        self.backend_tokenizer.encode_special_tokens = split_special_tokens
        found = self.backend_tokenizer.encode_batch(several, add_special_tokens=add_special_tokens)
        return Encoded(found[0].ids if found else [], found)
