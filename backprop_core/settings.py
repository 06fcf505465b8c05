"""BACKPROPAGATE_* of the environment and of `.env` in the working directory."""

import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from backprop_core.errors import StoreUnsupported
from backprop_core.texts import NAME


class Settings(BaseSettings):
    """Where things lie and how much is said. What a run asks for is in `specs`."""

    model_config = SettingsConfigDict(env_prefix="BACKPROPAGATE_", env_file=".env", extra="ignore", frozen=True)

    home: Path = Field(Path("~/.backpropagate"), description="Everything that is kept lies under it.")
    store: str | None = Field(None, description="Directory of the artifacts; default: store/ in the home.")
    namespace: str = Field("backprop", pattern=NAME, description="Prefix of names in MLflow and Prefect.")
    pool: str = Field("backprop", min_length=1, description="Prefect work pool of the deployments.")
    queue: str = Field("default", min_length=1, description="Queue of the work pool.")
    image: str | None = Field(None, description="Container image of the runs, where the pool starts containers.")
    allowed_paths: str | None = Field(
        None,
        description="Directories of deployed runs' files, with : between; default: data/ in the home.",
    )
    allowed_hosts: str | None = Field(
        None, description="Names by which `serve` may be reached, with commas, beside those of this machine."
    )
    auth_password: SecretStr | None = Field(None, description="Password of `serve --auth USER`.")
    auth_password_file: Path | None = Field(None, description="A file with that password.")
    worker_python: str | None = Field(None, description="Interpreter of the worker; default: this one.")
    unsloth_python: Path | None = Field(
        None, description="Interpreter of the environment that has Unsloth, for training.backend=unsloth."
    )
    llama_cpp_dir: Path | None = Field(
        default_factory=lambda: Path(named) if (named := os.environ.get("LLAMA_CPP_DIR")) else None,
        description="Checkout of llama.cpp whose converter writes GGUF files that have no writer here; "
        "default: LLAMA_CPP_DIR.",
    )
    llama_cpp_python: str | None = Field(
        None, description="Interpreter that has what this converter imports; default: the worker's."
    )
    harness_tasks: Path | None = Field(
        None,
        description="Own tasks for evaluation.harness and their data, a directory; what they say is run as code.",
    )
    keep_days: float = Field(
        30, ge=0, description="Days for which `store prune` keeps what runs made that is no version of a line."
    )
    stall_seconds: float = Field(
        1800, ge=0, description="A worker that comes no further for so long is ended and its stage retried; 0: never."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")
    log_json: bool = Field(False, description="Log lines as JSON.")
    log_file: Path | None = Field(None, description="Log to this file as well.")

    @property
    def home_path(self) -> Path:
        return self.home.expanduser().absolute()

    @property
    def store_path(self) -> Path:
        """The store's directory. Raises StoreUnsupported for any scheme but `file:`."""
        if self.store is None:
            return self.home_path / "store"
        scheme, _, path, *_ = urlsplit(self.store)
        if scheme not in ("", "file"):
            raise StoreUnsupported(f"the store cannot lie at {scheme}:", hint="set BACKPROPAGATE_STORE to a directory")
        return Path(path).expanduser().absolute()

    @property
    def allowed_roots(self) -> list[Path]:
        """What runs started by a deployment may read and write, symlinks resolved."""
        named = self.allowed_paths.split(os.pathsep) if self.allowed_paths else [str(self.home_path / "data")]
        return [Path(path).expanduser().resolve() for path in named]

    @property
    def journal_path(self) -> Path:
        return self.home_path / "journal"


def settings() -> Settings:
    """The settings as they are now."""
    return Settings()
