"""BACKPROPAGATE_* of the environment and of `.env` in the working directory."""

import os
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from backprop_core.errors import ConfigInvalid, StoreUnsupported
from backprop_core.runtime.redaction import keep_secret
from backprop_core.schema.field_types import NAME, is_address
from backprop_core.store.layout import HomeLayout

USER_OFFLINE = "BACKPROPAGATE_USER_OFFLINE"  # a worker's HF_HUB_OFFLINE as the user has set it: its own is always set
SHOWN = 60  # characters of a refused value that an error repeats


def expandable(path: Path) -> Path:
    """The path, or ValueError if it begins with a home directory of a user who is not there."""
    try:
        path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"this machine has no home directory {path.parts[0]}") from error
    return path


def all_expandable(places: str) -> str:
    """The directories with : between, or ValueError."""
    for place in places.split(os.pathsep):
        expandable(Path(place))
    return places


def addressable(address: str) -> str:
    """The address, or ValueError if it is none, or begins with a home directory that is not there."""
    expandable(Path(urlsplit(address).path))
    return address


Place = Annotated[Path, AfterValidator(expandable)]


class Settings(BaseSettings):
    """Where things lie and how much is said. What a run asks for is in `specs`."""

    model_config = SettingsConfigDict(env_prefix="BACKPROPAGATE_", env_file=".env", extra="ignore", frozen=True)

    home: Place = Field(Path("~/.backpropagate"), description="Everything that is kept lies under it.")
    store: Annotated[str, AfterValidator(addressable)] | None = Field(
        None, description="Directory of the artifacts; default: store/ in the home."
    )
    namespace: str = Field("backprop", pattern=NAME, description="Prefix of names in MLflow and Prefect.")
    pool: str = Field("backprop", min_length=1, description="Prefect work pool of the deployments.")
    queue: str = Field("default", min_length=1, description="Queue of the work pool.")
    image: str | None = Field(None, description="Container image of the runs, where the pool starts containers.")
    allowed_paths: Annotated[str, AfterValidator(all_expandable)] | None = Field(
        None,
        description="Directories of deployed runs' files, with : between; default: data/ in the home.",
    )
    allowed_hosts: str | None = Field(
        None, description="Names by which `serve` may be reached, with commas, beside those of this machine."
    )
    auth_password: SecretStr | None = Field(None, description="Password of `serve --auth USER`.")
    auth_password_file: Place | None = Field(None, description="A file with that password.")
    worker_python: str | None = Field(None, description="Interpreter of the worker; default: this one.")
    unsloth_python: Place | None = Field(
        None, description="Interpreter of the environment that has Unsloth, for training.backend=unsloth."
    )
    llama_cpp_dir: Place | None = Field(
        default_factory=lambda: Path(named) if (named := os.environ.get("LLAMA_CPP_DIR")) else None,
        description="Checkout of llama.cpp whose converter writes GGUF files that have no writer here; "
        "default: LLAMA_CPP_DIR.",
    )
    llama_cpp_python: str | None = Field(
        None, description="Interpreter that has what this converter imports; default: the worker's."
    )
    harness_tasks: Place | None = Field(
        None,
        description="Own tasks for evaluation.harness and their data, a directory; what they say is run as code.",
    )
    keep_days: float = Field(
        30,
        ge=0,
        le=100_000,
        description="Days for which `store prune` keeps what runs made that is no version of a line.",
    )
    stall_seconds: float = Field(
        1800,
        ge=0,
        allow_inf_nan=False,
        description="A worker that comes no further for so long is ended and its stage retried; 0: never.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")
    log_json: bool = Field(False, description="Log lines as JSON.")
    log_file: Place | None = Field(None, description="Log to this file as well.")

    @property
    def home_path(self) -> Path:
        return self.home.expanduser().absolute()

    @property
    def layout(self) -> HomeLayout:
        """Every path of the home."""
        return HomeLayout(self.home_path)

    @property
    def store_path(self) -> Path:
        """The store's directory, named by its path or as a `file:` address. Raises StoreUnsupported for others."""
        if self.store is None:
            return self.layout.store
        if self.store.lower().startswith("file:"):
            return file_path(self.store)
        if is_address(self.store):
            scheme = self.store.partition(":")[0]
            raise StoreUnsupported(f"the store cannot lie at {scheme}:", hint="set BACKPROPAGATE_STORE to a directory")
        return Path(self.store).expanduser().absolute()

    @property
    def allowed_roots(self) -> list[Path]:
        """What runs started by a deployment may read and write, symlinks resolved."""
        named = self.allowed_paths.split(os.pathsep) if self.allowed_paths else [str(self.layout.data)]
        return [Path(path).expanduser().resolve() for path in named]

    @property
    def journal_path(self) -> Path:
        return self.layout.journal.root


def refused(error: ValidationError) -> ConfigInvalid:
    """What the environment or `.env` says that no setting can be."""
    fault = error.errors(include_url=False)[0]
    name = str(fault["loc"][0])
    field = Settings.model_fields.get(name)
    given = "" if field is None or field.annotation == SecretStr | None else f"={str(fault['input'])[:SHOWN]}"
    said = fault["msg"].removeprefix("Value error, ")
    return ConfigInvalid(
        f"BACKPROPAGATE_{name.upper()}{given} is not possible: {said[0].lower()}{said[1:]}",
        hint=f"correct it in the environment or in .env: {field.description if field else 'docs/reference.md has all'}",
    )


def file_path(address: str) -> Path:
    """The path that a `file:` address means; one that is there as it is written is not decoded."""
    written = address[len("file:") :]
    if written.startswith("//"):  # and a host, which is this one
        written = "/" + written[2:].partition("/")[2]
    path = Path(written).expanduser().absolute()
    return path if path.exists() else Path(url2pathname(written)).expanduser().absolute()


def settings() -> Settings:
    """The settings as they are now. Raises ConfigInvalid."""
    try:
        made = Settings()
    except ValidationError as error:
        raise refused(error) from error
    except (SettingsError, UnicodeDecodeError, OSError) as error:
        raise ConfigInvalid(f".env cannot be read: {error}", hint="correct it, or remove it") from error
    if made.auth_password:
        keep_secret(made.auth_password.get_secret_value())
    return made
