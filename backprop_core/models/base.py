"""The base model's files: find, download, check that they are safe and complete, compute the digest. No torch."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backprop_core.errors import ChatTemplateMissing, ChatTemplateUnusable, InputNotFound, ModelLoadFailed, UnsafeModel
from backprop_core.models import chat_template as templates
from backprop_core.schema.refs import BaseRef, ChatTemplate
from backprop_core.schema.specs import ModelSpec
from backprop_core.store.artifacts import Store, file_digest
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
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
CODE_KEYS = {"auto_map", "_attn_implementation_internal", "trust_remote_code", "custom_pipelines"}
OTHER_TOKENIZER = "use the model's own tokenizer, or resize the model's embeddings to fit this one"
PICKLED = re.compile(r"\.(bin|pt|pth|ckpt|pkl|pickle)$")


def resolve(spec: ModelSpec, store: Store) -> BaseRef:
    """Find the base model and check it, before anything is computed.

    Raises InputNotFound, ModelLoadFailed, UnsafeModel, ChatTemplateMissing or ChatTemplateUnusable.
    """
    directory, revision = locate(spec.name, spec.revision)
    check(directory)
    name = str(directory) if Path(spec.name).is_dir() else spec.name
    written = {"day": day_of(directory), "bare": is_bare(directory)}
    return BaseRef(name=name, revision=revision, digest=digest(directory, store), **written)


def dated(base: BaseRef) -> BaseRef:
    """Fill in `day` and `bare`, which records older than these fields lack.

    Returns the base unchanged if its files are not on this machine.
    """
    directory = here(base.name, base.revision)
    return base.model_copy(update={"day": day_of(directory), "bare": is_bare(directory)}) if directory else base


def chat_template(base: BaseRef) -> ChatTemplate:
    """The base's chat template. Raises InputNotFound, ChatTemplateMissing."""
    directory, _ = locate(base.name, base.revision)
    return chat_template_in(directory)


def chat_template_in(directory: Path) -> ChatTemplate:
    """The chat template in a model's directory. Raises ChatTemplateMissing."""
    return ChatTemplate(text=required_template(directory), special=templates.named(special_tokens(directory)))


def day_of(directory: Path) -> str | None:
    """The date that the chat template renders into a conversation; None if it renders none."""
    template = template_of(directory)
    return templates.clock(template) if template else None


def is_bare(directory: Path) -> bool:
    """Whether the tokenizer has a BOS token but conversations start without it."""
    template, special = template_of(directory), special_tokens(directory)
    if not template or not special.get("bos_token"):
        return False
    tokens = templates.named(special)
    with templates.limit():
        begun = templates.render(template, [templates.ASKED], special=tokens, add_generation_prompt=True)
    return not begun.startswith(tokens["bos_token"])


def open_tokenizer(file: Path) -> "Tokenizer":
    """Load a tokenizer.json, with truncation and padding off. Raises ValueError."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(file.read_bytes())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def special_tokens(directory: Path) -> Any:
    """A tokenizer's settings, including its special tokens."""
    return optional_json(directory / "special_tokens_map.json") | optional_json(directory / "tokenizer_config.json")


def here(name: str, revision: str | None) -> Path | None:
    """The base's directory, or None if it is not on this machine."""
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
    """The base's directory on this machine. Raises ModelLoadFailed if its digest has changed."""
    directory, _ = locate(base.name, base.revision)
    if digest(directory, store) != base.digest:
        raise ModelLoadFailed(
            f"{base.name} has changed: it is no longer the base {base.digest[:12]} that this run started from",
            hint="restore the old files, or start a new run",
        )
    return directory


def config(spec: ModelSpec) -> Any:
    """The model's config.json; downloads nothing else of a hub model. Raises InputNotFound or ModelLoadFailed."""
    directory, _ = locate(spec.name, spec.revision, ("config.json",))
    check_config(directory)
    return read_json(directory / "config.json")


def locate(name: str, revision: str | None, files: Sequence[str] = FILES) -> tuple[Path, str | None]:
    """Directory and revision of a model, from a local directory or a hub id. Downloads missing `files`."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path.absolute(), None
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputNotFound(
            f"no such model directory: {name}", hint="use an existing directory, or a hub id like Qwen/Qwen2.5-7B"
        )
    snapshot = download(name, revision, files)
    return snapshot, snapshot.name


def download(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """Download these files of a hub model; returns the snapshot directory, which is named by the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except HFValidationError as error:
        raise InputNotFound(f"{name} is not a hub id: {error}", hint="use a directory or OWNER/NAME") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelLoadFailed(
            f"cannot download {name} from the Hub: {type(error).__name__}",
            hint="check the name, the network and HF_TOKEN, or use a local directory with --model",
        ) from error


def check(directory: Path) -> None:
    """Check that config, weights, tokenizer and chat template exist, run no code, and that the template renders."""
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
            hint="put a `chat_template.jinja` beside its tokenizer.json, such as that of the model's chat version",
        )
    return template


def check_config(directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise ModelLoadFailed(f"{directory} has no config.json", hint="use the directory of a transformers model")


def check_one_model(directory: Path) -> None:
    """Raise ModelLoadFailed if transformers would load other weights than `weights` lists.

    The base's digest would not cover them.
    """
    if named := read_json(directory / "config.json").get("transformers_weights"):
        raise ModelLoadFailed(
            f"the config.json of {directory} points to other weights: transformers_weights={named}",
            hint="rename them to model.safetensors, and remove transformers_weights from config.json",
        )
    if (directory / "adapter_config.json").is_file():
        raise ModelLoadFailed(
            f"{directory} has a LoRA adapter beside its weights, which transformers would apply",
            hint="move adapter_config.json and adapter_model.safetensors away; to train from it, fuse it first",
        )
    whole = directory / "model.safetensors"
    if whole.is_file() and (others := [file.name for file in weights(directory) if file != whole]):
        raise ModelLoadFailed(
            f"{directory} has two sets of weights: {whole.name}, and {others[0]} from its index",
            hint="remove one of them, or the index",
        )


def read_json(path: Path) -> Any:
    """Read a JSON object of a model. Raises ModelLoadFailed if the file is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadFailed(f"{path} is not JSON: {error}", hint="download the model's files again") from error
    if not isinstance(value, dict):
        raise unreadable(path, ValueError(f"a {type(value).__name__}, not a JSON object"))
    return value


def unreadable(path: Path, error: Exception) -> ModelLoadFailed:
    return ModelLoadFailed(f"{path} cannot be read: {error}", hint="download the model's files again")


def refuse_code(path: Path, value: Any) -> None:
    """Raise UnsafeModel if a config names code to run, at any depth."""
    if isinstance(value, dict):
        if found := sorted(CODE_KEYS & {key for key, item in value.items() if item}):
            raise UnsafeModel(
                f"{path} has `{found[0]}`: loading it could run code",
                hint="use a model that transformers supports natively, or remove the key if you trust the rest",
            )
        for item in value.values():
            refuse_code(path, item)
    elif isinstance(value, list):
        for item in value:
            refuse_code(path, item)


def template_of(directory: Path) -> str | None:
    """The tokenizer's chat template, looked up in the same order as transformers does; None without one."""
    if (directory / "chat_template.jinja").is_file():
        return text_in(directory / "chat_template.jinja")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if found := optional_json(directory / name).get("chat_template"):
            return default_of(found)
    return None


def text_in(path: Path) -> str:
    """Read a template file. Raises ChatTemplateUnusable."""
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise ChatTemplateUnusable(f"{path} is not UTF-8: {error}", hint="save it as UTF-8") from error


def default_of(named: Any) -> str:
    """The default among the templates of a tokenizer.

    Raises ChatTemplateUnusable if none of several is the default, or if the value has another type.
    """
    if isinstance(named, str):
        return named
    try:
        by_name = {str(each["name"]): str(each["template"]) for each in named}
    except (TypeError, KeyError) as error:
        what = f"chat_template is a {type(named).__name__}, not a string or a list of named templates"
        raise ChatTemplateUnusable(what, hint="save the template as chat_template.jinja") from error
    if "default" not in by_name:
        raise ChatTemplateUnusable(
            f"none of the chat templates is named default: {', '.join(by_name)}",
            hint="save the one to use as chat_template.jinja beside the model's tokenizer.json",
        )
    return by_name["default"]


def optional_json(path: Path) -> Any:
    """Read an optional JSON file of a model; empty if it does not exist."""
    return read_json(path) if path.is_file() else {}


def weights(directory: Path) -> list[Path]:
    """The model's safetensors files, those in its index if it has one. Raises ModelLoadFailed, UnsafeModel."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise ModelLoadFailed(
                f"{index.name} names {outside[0]}, which is not in the same directory", hint="download it again"
            )
        files = [directory / name for name in names]
    else:
        files = [directory / "model.safetensors"]
    if missing := [file.name for file in files if not file.is_file()]:
        if any(PICKLED.search(path.name) for path in directory.iterdir()):
            raise UnsafeModel(
                f"{directory} has only pickled weights",
                hint="convert them to safetensors on a machine where you trust them; pickles are never opened here",
            )
        raise ModelLoadFailed(
            f"{directory} has no weights: {missing[0]} is missing", hint="download the model's files again"
        )
    return files


def digest(directory: Path, store: Store) -> str:
    """Digest of (name, sha256) of config, generation config, tokenizer, template and weights."""
    texts = [directory / name for name in TEXT_FILES if (directory / name).is_file()]
    files = sorted(texts + weights(directory))
    return digest_of([[file.name, store.digest_of_file(file)] for file in files])


def same_tokens(one: BaseRef, other: BaseRef) -> bool:
    """Whether two bases write and tokenize every row alike: by the same tokenizer, template and special tokens."""
    return one.digest == other.digest or tokens_by(one) == tokens_by(other)


def tokens_by(base: BaseRef) -> list[Any]:
    """What decides the tokens of a row."""
    directory, _ = locate(base.name, base.revision)
    files = [directory / name for name in VOCABULARIES if (directory / name).is_file()]
    return [base.bare, base.day, chat_template_in(directory), [[file.name, file_digest(file)] for file in files]]


def tokenizer_digest(directory: Path, store: Store) -> str:
    """Digest of (name, sha256) of the files that determine a text's tokens: tokenizer, template, model config."""
    names = sorted(["config.json", *TOKENIZER_FILES])
    files = [directory / name for name in names if (directory / name).is_file()]
    return digest_of([[file.name, store.digest_of_file(file)] for file in files])
