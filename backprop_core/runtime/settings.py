"""Settings: the BACKPROPAGATE_* environment variables, also read from `.env` in the working directory."""

import os
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pydantic import AfterValidator, ByteSize, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from backprop_core.errors import ConfigInvalid, StoreUnsupported
from backprop_core.runtime.redaction import keep_secret
from backprop_core.schema.field_types import NAME, is_address
from backprop_core.store.layout import HomeLayout

USER_OFFLINE = "BACKPROPAGATE_USER_OFFLINE"  # the user's HF_HUB_OFFLINE; a worker always sets its own
TRACKERS = ("tensorboard", "wandb")
SHOWN = 60  # characters of a rejected value that an error shows


def bucket_address(address: str) -> str:
    """An `s3://bucket/prefix` address. Raises ConfigInvalid if it has credentials, a query or no bucket."""
    parts = urlsplit(address)
    if "@" in parts.netloc or not parts.netloc or "?" in address or "#" in address:
        raise ConfigInvalid(  # without the address, which may have a secret
            "BACKPROPAGATE_STORE has more, or less, than a bucket and a prefix",
            hint="set it to s3://BUCKET/PREFIX, and the credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    return address.rstrip("/")


def s3_endpoint() -> str:
    """The S3 server, as AWS tools are told of it; empty: Amazon's."""
    return (os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "").rstrip("/")


def expandable(path: Path) -> Path:
    """The path. Raises ValueError if it starts with the home directory of an unknown user."""
    try:
        path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"no home directory {path.parts[0]} on this machine") from error
    return path


def all_expandable(places: str) -> str:
    """The directories separated by `:`. Raises ValueError as `expandable` does."""
    for place in places.split(os.pathsep):
        expandable(Path(place))
    return places


def addressable(address: str) -> str:
    """The URL or path. Raises ValueError if it is malformed or starts with an unknown home directory."""
    expandable(Path(urlsplit(address).path))
    return address


def trackers(names: str) -> str:
    """Names of trackers, separated by commas. Raises ValueError if one is unknown."""
    for name in names_in(names):
        if name not in TRACKERS:
            raise ValueError(f"{name} is not one of {', '.join(TRACKERS)}")
    return names


def names_in(text: str) -> list[str]:
    """The names in a list with commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


Place = Annotated[Path, AfterValidator(expandable)]


class Settings(BaseSettings):
    """Settings of the machine: paths, servers, logging. A run's configuration is in `schema/specs`."""

    model_config = SettingsConfigDict(env_prefix="BACKPROPAGATE_", env_file=".env", extra="ignore", frozen=True)

    home: Place = Field(Path("~/.backpropagate"), description="Directory of everything that is kept.")
    store: Annotated[str, AfterValidator(addressable)] | None = Field(
        None, description="Directory or s3:// address of the artifacts; default: store/ in the home directory."
    )
    store_cache_gb: float | None = Field(
        None, gt=0, description="GB of artifacts kept locally of a store at an s3:// address; default: no limit."
    )
    namespace: str = Field("backprop", pattern=NAME, description="Prefix of all names in MLflow and Prefect.")
    pool: str = Field("backprop", min_length=1, description="Prefect work pool of the deployments.")
    queue: str = Field("default", min_length=1, description="Queue of the work pool.")
    cpu_pool: str | None = Field(
        None, min_length=1, description="Work pool of runs that need no GPU; default: that of the others."
    )
    cpu_queue: str | None = Field(
        None, min_length=1, description="Queue of runs that need no GPU; default: that of the others."
    )
    image: str | None = Field(None, description="Container image of the runs, if the work pool starts containers.")
    fan_out: str | None = Field(
        None,
        pattern=r"^(local:[1-9][0-9]*|(tcp|tls|ws|wss)://.+)$",
        description="Where independent stages of a run are computed at the same time: `local:N`, N processes of this "
        "machine, or the address of a Dask scheduler (extra `dask`); default: one after another.",
    )
    cpu_slot: int = Field(
        0,
        ge=0,
        description="Runs on a CPU that share a store take turns if they have the same number; give each machine, and "
        "each worker that has cores of its own, another.",
    )
    allowed_paths: Annotated[str, AfterValidator(all_expandable)] | None = Field(
        None,
        description="Directories that deployed runs may read and write, separated by `:`; default: data/ in the home.",
    )
    allowed_hosts: str | None = Field(
        None, description="Host names that `serve` accepts besides this machine's own, separated by commas."
    )
    trusted_proxy: str | None = Field(
        None,
        description="Addresses of the proxy in front of `serve`, separated by commas: its X-Forwarded-For and "
        "X-Forwarded-Proto are believed.",
    )
    auth_password: SecretStr | None = Field(None, description="Password of `serve --auth USER`.")
    auth_password_file: Place | None = Field(None, description="File with that password.")
    worker_python: str | None = Field(
        None, description="Python interpreter of the worker process; default: the current one."
    )
    unsloth_python: Place | None = Field(
        None, description="Python interpreter of an environment with Unsloth, for training.backend=unsloth."
    )
    llama_cpp_dir: Place | None = Field(
        default_factory=lambda: Path(named) if (named := os.environ.get("LLAMA_CPP_DIR")) else None,
        description="llama.cpp checkout; its converter writes GGUF files of architectures not supported here; "
        "default: LLAMA_CPP_DIR.",
    )
    llama_cpp_python: str | None = Field(
        None, description="Python interpreter that runs this converter; default: the worker's."
    )
    harness_tasks: Place | None = Field(
        None,
        description="Directory of custom lm-evaluation-harness tasks and their data; code in them is executed.",
    )
    keep_days: float = Field(
        30,
        ge=0,
        le=100_000,
        description="Days that `store prune` keeps artifacts of runs that are not versions of a line.",
    )
    mlflow_artifact_limit: ByteSize = Field(
        ByteSize(2**30),
        description="Largest artifact that MLflow gets a copy of, such as 500MB; larger ones are recorded by digest "
        "and place. 0: no copies.",
    )
    mlflow_checkpoint_seconds: float = Field(
        600,
        ge=0,
        allow_inf_nan=False,
        description="Seconds between two checkpoints of a training that MLflow gets a copy of; 0: every checkpoint.",
    )
    stall_seconds: float = Field(
        1800,
        ge=0,
        allow_inf_nan=False,
        description="Seconds without progress after which a worker is killed and its stage retried; 0: never.",
    )
    report_to: Annotated[str, AfterValidator(trackers)] = Field(
        "", description="Trackers that get each run besides MLflow, separated by commas: tensorboard, wandb."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Minimum level of log lines.")
    log_json: bool = Field(False, description="Write log lines as JSON.")
    log_file: Place | None = Field(None, description="Also log to this file.")

    @property
    def home_path(self) -> Path:
        return self.home.expanduser().absolute()

    @property
    def layout(self) -> HomeLayout:
        """Every path of the home."""
        return HomeLayout(self.home_path)

    @property
    def store_path(self) -> Path:
        """The store's directory, from a path or a `file:` URL; of an `s3://` address, that of its local copy.

        Raises StoreUnsupported for other URLs, ConfigInvalid for an address with more than bucket and prefix.
        """
        if self.store is None:
            return self.layout.store
        if self.store.lower().startswith("file:"):
            return file_path(self.store)
        if self.store.lower().startswith("s3://"):
            return self.layout.shared_store(bucket_address(self.store), s3_endpoint())
        if is_address(self.store):
            scheme = self.store.partition(":")[0]
            raise StoreUnsupported(
                f"unsupported store URL scheme {scheme}:",
                hint="set BACKPROPAGATE_STORE to a directory or an s3:// address",
            )
        return Path(self.store).expanduser().absolute()

    @property
    def allowed_roots(self) -> list[Path]:
        """Directories that deployed runs may read and write, symlinks resolved."""
        named = self.allowed_paths.split(os.pathsep) if self.allowed_paths else [str(self.layout.data)]
        return [Path(path).expanduser().resolve() for path in named]

    @property
    def journal_path(self) -> Path:
        return self.layout.journal.root


def refused(error: ValidationError) -> ConfigInvalid:
    """The coded error for the first invalid setting."""
    fault = error.errors(include_url=False)[0]
    name = str(fault["loc"][0])
    field = Settings.model_fields.get(name)
    given = "" if field is None or field.annotation == SecretStr | None else f"={str(fault['input'])[:SHOWN]}"
    said = fault["msg"].removeprefix("Value error, ")
    return ConfigInvalid(
        f"BACKPROPAGATE_{name.upper()}{given} is invalid: {said[0].lower()}{said[1:]}",
        hint=f"correct it in the environment or in .env: {field.description if field else 'docs/reference.md has all'}",
    )


def file_path(address: str) -> Path:
    """The path of a `file:` URL, percent-decoded unless the path exists as written."""
    written = address[len("file:") :]
    if written.startswith("//"):  # and a host name, ignored
        written = "/" + written[2:].partition("/")[2]
    path = Path(written).expanduser().absolute()
    return path if path.exists() else Path(url2pathname(written)).expanduser().absolute()


def settings() -> Settings:
    """Read the current settings. Raises ConfigInvalid."""
    try:
        made = Settings()
    except ValidationError as error:
        raise refused(error) from error
    except (SettingsError, UnicodeDecodeError, OSError) as error:
        raise ConfigInvalid(f".env cannot be read: {error}", hint="correct or remove it") from error
    if made.auth_password:
        keep_secret(made.auth_password.get_secret_value())
    return made
