"""The base model: where its files are, that they are safe to load, and what they are by digest. No torch."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backprop_core.errors import ChatTemplateMissing, ChatTemplateUnusable, InputNotFound, ModelLoadFailed, UnsafeModel
from backprop_core.models import chat_template as templates
from backprop_core.schema.refs import BaseRef, ChatTemplate
from backprop_core.schema.specs import ModelSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import digest_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
TEXT_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES, "model.safetensors.index.json")
FILES = (*TEXT_FILES, "*.safetensors")
CODE_KEYS = {"auto_map", "_attn_implementation_internal", "trust_remote_code", "custom_pipelines"}
OTHER_TOKENIZER = "use the tokenizer that belongs to the model, or a model whose embeddings were resized for it"
PICKLED = re.compile(r"\.(bin|pt|pth|ckpt|pkl|pickle)$")


def resolve(spec: ModelSpec, store: Store) -> BaseRef:
    """Find the base and check it, before anything is computed.

    Raises InputNotFound, ModelLoadFailed, UnsafeModel, ChatTemplateMissing or ChatTemplateUnusable.
    """
    directory, revision = locate(spec.name, spec.revision)
    check(directory)
    name = str(directory) if Path(spec.name).is_dir() else spec.name
    written = {"day": day_of(directory), "bare": is_bare(directory)}
    return BaseRef(name=name, revision=revision, digest=digest(directory, store), **written)


def dated(base: BaseRef) -> BaseRef:
    """The same base, with what its template writes of day and BOS: records from before those fields lack it.

    Without the base's files it stays as it is.
    """
    directory = here(base.name, base.revision)
    return base.model_copy(update={"day": day_of(directory), "bare": is_bare(directory)}) if directory else base


def chat_template(base: BaseRef) -> ChatTemplate:
    """What the base writes conversations by. Raises InputNotFound, ChatTemplateMissing."""
    directory, _ = locate(base.name, base.revision)
    return ChatTemplate(text=required_template(directory), special=templates.named(special_tokens(directory)))


def day_of(directory: Path) -> str | None:
    """The day that the model's chat template writes into a conversation; None if it writes none."""
    template = template_of(directory)
    return templates.clock(template) if template else None


def is_bare(directory: Path) -> bool:
    """Whether a conversation begins without the BOS token that the model's tokenizer names."""
    template, special = template_of(directory), special_tokens(directory)
    if not template or not special.get("bos_token"):
        return False
    tokens = templates.named(special)
    with templates.limit():
        begun = templates.render(template, [templates.ASKED], special=tokens, add_generation_prompt=True)
    return not begun.startswith(tokens["bos_token"])


def open_tokenizer(file: Path) -> "Tokenizer":
    """The tokenizer of a tokenizer.json, without what it may say of cutting and padding. Raises ValueError."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(file.read_bytes())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def special_tokens(directory: Path) -> Any:
    """What a tokenizer's files say of it beside its vocabulary, its special tokens among it."""
    return optional_json(directory / "special_tokens_map.json") | optional_json(directory / "tokenizer_config.json")


def here(name: str, revision: str | None) -> Path | None:
    """A base's directory, if it is on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    path = Path(name).expanduser()
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def local(base: BaseRef, store: Store) -> Path:
    """The base's directory on this machine; raises ModelLoadFailed if it is not what the record says."""
    directory, _ = locate(base.name, base.revision)
    if digest(directory, store) != base.digest:
        raise ModelLoadFailed(
            f"{base.name} has changed: it is not the base {base.digest[:12]} that this run started from",
            hint="put the old files back, or start a new run",
        )
    return directory


def config(spec: ModelSpec) -> Any:
    """The model's config.json; of a hub model nothing else is downloaded. Raises InputNotFound or ModelLoadFailed."""
    directory, _ = locate(spec.name, spec.revision, ("config.json",))
    check_config(directory)
    return read_json(directory / "config.json")


def locate(name: str, revision: str | None, files: Sequence[str] = FILES) -> tuple[Path, str | None]:
    """Directory and revision of a local directory or a hub id; of a hub model `files` are downloaded once."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path.absolute(), None
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputNotFound(
            f"no such model directory: {name}", hint="give a directory, or a hub id like Qwen/Qwen2.5-7B"
        )
    snapshot = download(name, revision, files)
    return snapshot, snapshot.name


def download(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """These files of the hub's snapshot of a model. Its directory is named by the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except HFValidationError as error:
        raise InputNotFound(f"{name} is no hub id: {error}", hint="give a directory or OWNER/NAME") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelLoadFailed(
            f"cannot get {name} from the hub: {type(error).__name__}",
            hint="check the name, the network and HF_TOKEN; or give a local directory with --model",
        ) from error


def check(directory: Path) -> None:
    """Config, weights, tokenizer and template are there, none of them runs code, and the template renders."""
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        refuse_code(directory / name, optional_json(directory / name))
    check_config(directory)
    weights(directory)
    check_one_model(directory)
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelLoadFailed(f"{directory} has no tokenizer", hint="copy the model's tokenizer files into it")
    template = required_template(directory)
    templates.check(template, special_tokens(directory))


def required_template(directory: Path) -> str:
    """The tokenizer's chat template. Raises ChatTemplateMissing."""
    template = template_of(directory)
    if template is None:
        raise ChatTemplateMissing(
            f"the tokenizer of {directory} has no chat template",
            hint="put a `chat_template.jinja` beside its tokenizer.json, for example that of the model's chat version",
        )
    return template


def check_config(directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise ModelLoadFailed(f"{directory} has no config.json", hint="give the directory of a transformers model")


def check_one_model(directory: Path) -> None:
    """Raise ModelLoadFailed where transformers would load other weights than those that `weights` names.

    They would be trained, and be no part of the base's digest.
    """
    if named := read_json(directory / "config.json").get("transformers_weights"):
        raise ModelLoadFailed(
            f"the config.json of {directory} names weights of its own: {named}",
            hint="call them model.safetensors, and remove transformers_weights from config.json",
        )
    if (directory / "adapter_config.json").is_file():
        raise ModelLoadFailed(
            f"{directory} has a LoRA adapter beside its weights, which transformers would put on them",
            hint="move adapter_config.json and adapter_model.safetensors away; to start from it, fuse it first",
        )
    whole = directory / "model.safetensors"
    if whole.is_file() and (others := [file.name for file in weights(directory) if file != whole]):
        raise ModelLoadFailed(
            f"{directory} has its weights twice: {whole.name}, and {others[0]} by its index",
            hint="remove the one that is not the model's, or the index",
        )


def read_json(path: Path) -> Any:
    """A JSON object of the model's; raises ModelLoadFailed if it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadFailed(f"{path} is not JSON: {error}", hint="get the model's files again") from error
    if not isinstance(value, dict):
        raise unreadable(path, ValueError(f"a {type(value).__name__}, no JSON object"))
    return value


def unreadable(path: Path, error: Exception) -> ModelLoadFailed:
    return ModelLoadFailed(f"{path} cannot be read: {error}", hint="get the model's files again")


def refuse_code(path: Path, value: Any) -> None:
    """Raise UnsafeModel if a config names code to run, at any depth."""
    if isinstance(value, dict):
        if found := sorted(CODE_KEYS & {key for key, item in value.items() if item}):
            raise UnsafeModel(
                f"{path} has `{found[0]}`: loading it could run code",
                hint="use a model that transformers knows by itself, or remove the key if you trust the rest",
            )
        for item in value.values():
            refuse_code(path, item)
    elif isinstance(value, list):
        for item in value:
            refuse_code(path, item)


def template_of(directory: Path) -> str | None:
    """The tokenizer's chat template, from the first of the places where transformers looks that has one."""
    if (directory / "chat_template.jinja").is_file():
        return text_in(directory / "chat_template.jinja")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if found := optional_json(directory / name).get("chat_template"):
            return default_of(found)
    return None


def text_in(path: Path) -> str:
    """A template's file. Raises ChatTemplateUnusable."""
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise ChatTemplateUnusable(f"{path} is not UTF-8: {error}", hint="save it as UTF-8") from error


def default_of(named: Any) -> str:
    """The template that is used where none is named.

    Raises ChatTemplateUnusable if none of several is the default, or for what is neither a text nor several by name.
    """
    if isinstance(named, str):
        return named
    try:
        by_name = {str(each["name"]): str(each["template"]) for each in named}
    except (TypeError, KeyError) as error:
        what = f"the chat_template is a {type(named).__name__}, no text and no list of named texts"
        raise ChatTemplateUnusable(what, hint="write it as a text into chat_template.jinja") from error
    if "default" not in by_name:
        raise ChatTemplateUnusable(
            f"none of the chat templates is the default: {', '.join(by_name)}",
            hint="put the one to use beside the model's tokenizer.json, as chat_template.jinja",
        )
    return by_name["default"]


def optional_json(path: Path) -> Any:
    """A JSON file of the model's, which it need not have."""
    return read_json(path) if path.is_file() else {}


def weights(directory: Path) -> list[Path]:
    """The safetensors files of the model, those that its index names if it has one."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise ModelLoadFailed(f"{index.name} names {outside[0]}, which is no file beside it", hint="get it again")
        files = [directory / name for name in names]
    else:
        files = [directory / "model.safetensors"]
    if missing := [file.name for file in files if not file.is_file()]:
        if any(PICKLED.search(path.name) for path in directory.iterdir()):
            raise UnsafeModel(
                f"{directory} has only pickled weights",
                hint="convert them to safetensors where you trust them; pickles are never opened here",
            )
        raise ModelLoadFailed(
            f"{directory} has no weights: {missing[0]} is missing", hint="get the model's files again"
        )
    return files


def digest(directory: Path, store: Store) -> str:
    """Digest of (name, sha256) of config, generation config, tokenizer, template and weights."""
    texts = [directory / name for name in TEXT_FILES if (directory / name).is_file()]
    files = sorted(texts + weights(directory))
    return digest_of([[file.name, store.digest_of_file(file)] for file in files])


def tokenizer_digest(directory: Path, store: Store) -> str:
    """Digest of (name, sha256) of what decides the tokens of a text: tokenizer, template, and the model's kind."""
    names = sorted(["config.json", *TOKENIZER_FILES])
    files = [directory / name for name in names if (directory / name).is_file()]
    return digest_of([[file.name, store.digest_of_file(file)] for file in files])
