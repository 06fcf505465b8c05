"""A dataset of the Hub: at one commit, the files of a split. Everything through huggingface_hub's own client.

The repository's card says which files a split has. Where it does not, their names do: those that have the split's name
as a word in their path.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fsspec.utils import glob_translate
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]
from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError

from backprop_core.data.sources import ON_HUB, did_you_mean, holds_rows, listed
from backprop_core.errors import (
    AuthRequired,
    BackpropError,
    ConfigInvalid,
    HubUnreachable,
    InputNotFound,
    InputValidationFailed,
)
from backprop_core.schema.refs import SourceRef
from backprop_core.schema.specs import DatasetSpec

PLACE = re.compile(ON_HUB + r"(?P<repo>[^@]+)@(?P<commit>[0-9a-f]{40})")
TRAIN = "train"
OTHERS = ("test", "validation", "valid", "val", "dev", "eval")  # what splits are called that are not for training
ABOUT = re.compile(r"(dataset_infos|dataset_dict|state)\.json|.*\.txt")  # files that are about the rows
RETRY = "look at the network and HF_ENDPOINT, then run it again"


def several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def by_split(value: Any) -> list[Any]:
    """A card may name patterns without a split: they are for training."""
    return [one if isinstance(one, dict) else {"path": one} for one in several(value)]


class DataFiles(BaseModel):
    """Of a card: the patterns of one split's files."""

    split: str = TRAIN
    path: Annotated[list[str], BeforeValidator(several)]


class Config(BaseModel):
    """Of a card: one of the ways to read the repository."""

    config_name: str
    default: bool = False
    data_files: Annotated[list[DataFiles], BeforeValidator(by_split)] = Field(default_factory=list)


CONFIGS = TypeAdapter(list[Config])


class State(BaseModel):
    """A repository at one commit."""

    commit: str
    names: list[str]
    configs: list[Config]


def snapshot(dataset: DatasetSpec) -> SourceRef:
    """The dataset's files of rows at the commit that its revision means now; what is not here yet is downloaded.

    Raises InputNotFound, AuthRequired, HubUnreachable; ConfigInvalid if it has no such config or split;
    InputValidationFailed if its card cannot be read.
    """
    found = state(dataset)
    place = f"{ON_HUB}{dataset.path}@{found.commit}"
    return listed(place, {name: local(place, name) for name in files(found, dataset)}, dataset.path)


def local(place: str, name: str) -> Path:
    """A file of a source of the Hub on this machine. Raises as `snapshot` does."""
    known = PLACE.fullmatch(place)
    assert known
    with coded(known["repo"]):
        path = client().hf_hub_download(known["repo"], name, repo_type="dataset", revision=known["commit"])
    return Path(str(path))


def state(dataset: DatasetSpec) -> State:
    """The repository as it is now. Raises as `snapshot` does."""
    with coded(dataset.path):
        info = client().dataset_info(dataset.path, revision=dataset.revision)
    try:
        configs = CONFIGS.validate_python(info.card_data.get("configs") or [] if info.card_data else [])
    except ValidationError as error:
        raise InputValidationFailed(
            f"the card of {dataset.path} names its files in a way that is not known",
            hint=f"name one file: {ON_HUB}{dataset.path}/FILE",
        ) from error
    names = [sibling.rfilename for sibling in info.siblings or [] if holds_rows(base_name(sibling.rfilename))]
    return State(commit=str(info.sha), names=names, configs=configs)


def base_name(path: str) -> str:
    return path.rpartition("/")[2]


def files(found: State, dataset: DatasetSpec) -> list[str]:
    """The files of the split that is asked for, by the card or by their names. Raises ConfigInvalid without any."""
    config = config_of(found.configs, dataset) if found.configs else None
    if config and config.data_files:
        globs = [glob for one in config.data_files if one.split == (dataset.split or TRAIN) for glob in one.path]
        patterns = [re.compile(glob_translate(glob)) for glob in globs]
        chosen = [name for name in found.names if any(pattern.match(name) for pattern in patterns)]
    else:
        chosen = named(found.names, dataset)
    if not chosen:
        raise ConfigInvalid(
            f"{dataset.path} has no rows of a split {dataset.split or TRAIN}",
            hint=f"set datasets.N.split, or name one file: {ON_HUB}{dataset.path}/FILE",
        )
    return chosen


def config_of(configs: Sequence[Config], dataset: DatasetSpec) -> Config:
    """The config that is asked for; else the card's default one, or its only one. Raises ConfigInvalid."""
    by_name = {config.config_name: config for config in configs}
    usual = [config for config in configs if config.default or config.config_name == "default"]
    fitting = [by_name[dataset.config]] if dataset.config in by_name else [] if dataset.config else usual or configs
    if len(fitting) != 1:
        which = f"no config {dataset.config}" if dataset.config else "several configs"
        raise ConfigInvalid(f"{dataset.path} has {which}", hint=f"set datasets.N.config to one of {', '.join(by_name)}")
    return fitting[0]


def named(names: Sequence[str], dataset: DatasetSpec) -> list[str]:
    """Files by the split's name in theirs; without a split, where none says `train`, those that say no other either."""
    data = [name for name in names if not ABOUT.fullmatch(base_name(name))]
    inside = [name for name in data if not dataset.config or name.startswith(f"{dataset.config}/")]
    chosen = [name for name in inside if says(name, dataset.split or TRAIN)]
    return chosen or ([] if dataset.split else [name for name in inside if not any(says(name, o) for o in OTHERS)])


def says(name: str, split: str) -> bool:
    return bool(re.search(rf"(?<![a-z0-9]){re.escape(split.lower())}(?![a-z0-9])", name.lower()))


def client() -> HfApi:
    """With the token that HF_TOKEN, or a login, gives."""
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


@contextmanager
def coded(repo: str) -> Iterator[None]:
    """Whatever the client raises, with its code."""
    try:
        yield
    except GatedRepoError as error:
        raise AuthRequired(f"{repo} is shown to few", hint="ask for access on the Hub, and set HF_TOKEN") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError) as error:
        hint = f"{did_you_mean(Path(repo))}; a private dataset needs HF_TOKEN"
        what = "revision or file" if not isinstance(error, RepositoryNotFoundError) else "dataset"
        raise InputNotFound(f"no such file, and the Hub has no such {what}: {repo}", hint=hint) from error
    except HfHubHTTPError as error:
        raise refusal(repo, error.response.status_code) from error
    except (httpx.TransportError, OSError) as error:  # LocalEntryNotFoundError, OfflineModeIsEnabled, the cache's disk
        kind = type(error).__name__
        raise HubUnreachable(f"{repo} cannot be had from the Hub ({kind})", hint=RETRY) from error
    except ValueError as error:
        raise InputNotFound(f"{repo} is no dataset of the Hub: {error}", hint="write OWNER/NAME") from error


def refusal(repo: str, status: int) -> BackpropError:
    if status in (401, 403):
        return AuthRequired(f"the Hub does not show {repo} ({status})", hint="give HF_TOKEN a token that may read it")
    return HubUnreachable(f"the Hub answered {status} for {repo}", hint=RETRY)
