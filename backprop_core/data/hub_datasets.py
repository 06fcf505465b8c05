"""Hub datasets: finds and downloads the files of a split at one commit, with huggingface_hub's client.

The dataset card lists the files of a split. Without such a list, a split's files are those with its name as a word in
their path.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fsspec.utils import glob_translate
from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]
from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError

from backprop_core.data.sources import ON_HUB, did_you_mean, holds_rows, in_order, listed
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
from backprop_core.store.cache_keys import digest_of

PLACE = re.compile(ON_HUB + r"(?P<repo>[^@]+)@(?P<commit>[0-9a-f]{40})")
TRAIN = "train"
OTHERS = ("test", "validation", "valid", "val", "dev", "eval")  # names of splits not for training
ABOUT = re.compile(r"(dataset_infos|dataset_dict|state)\.json|.*\.txt")  # metadata files
RETRY = "check the network and HF_ENDPOINT, then run it again"


def several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def by_split(value: Any) -> list[Any]:
    """Patterns that a card lists without a split belong to train."""
    return [one if isinstance(one, dict) else {"path": one} for one in several(value)]


class DataFiles(BaseModel):
    """Dataset card: file patterns of one split."""

    split: str = TRAIN
    path: Annotated[list[str], BeforeValidator(several)]


class Config(BaseModel):
    """Dataset card: one config."""

    config_name: str
    default: bool = False
    data_files: Annotated[list[DataFiles], BeforeValidator(by_split)] = Field(default_factory=list)


CONFIGS = TypeAdapter(list[Config])


class State(BaseModel):
    """A repository at one commit."""

    commit: str
    names: list[str]
    configs: list[Config]


def snapshot(dataset: DatasetSpec, *, scratch: Path) -> SourceRef:
    """Resolve the revision to a commit, and download the dataset's row files that are not cached yet.

    With `dataset.first`, only as many rows are downloaded, into `scratch`.

    Raises InputNotFound, AuthRequired, HubUnreachable; ConfigInvalid for an unknown config or split;
    InputValidationFailed if its card cannot be parsed.
    """
    found = state(dataset)
    place = f"{ON_HUB}{dataset.path}@{found.commit}"
    if dataset.first is not None:
        return first_rows(dataset, found.commit, files(found, dataset), dataset.first, scratch)
    return listed(place, {name: local(place, name) for name in files(found, dataset)}, dataset.path, dataset.encoding)


def first_rows(dataset: DatasetSpec, commit: str, names: Sequence[str], count: int, scratch: Path) -> SourceRef:
    """The first rows of some files at a commit, as one file, whose name has the commit."""
    from backprop_core.data.hub_rows import write_first

    asked = digest_of([dataset.path, commit, sorted(names), count, dataset.encoding])
    file = scratch / asked[:16] / f"{base_name(dataset.path)}@{commit[:12]}.first-{count}.jsonl"
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        system = HfFileSystem(endpoint=os.environ.get("HF_ENDPOINT") or None, skip_instance_cache=True)
        with coded(dataset.path):
            places = [f"datasets/{dataset.path}@{commit}/{name}" for name in sorted(names, key=in_order)]
            write_first(count, places, system, file, dataset.encoding)
    return listed(str(file.parent), {file.name: file}, dataset.path)


def local(place: str, name: str) -> Path:
    """The local path of a file of a Hub dataset; downloads it if needed. Raises what `snapshot` raises."""
    known = PLACE.fullmatch(place)
    assert known
    with coded(known["repo"]):
        path = client().hf_hub_download(known["repo"], name, repo_type="dataset", revision=known["commit"])
    return Path(str(path))


def state(dataset: DatasetSpec) -> State:
    """Query the repository's current state. Raises what `snapshot` raises."""
    with coded(dataset.path):
        info = client().dataset_info(dataset.path, revision=dataset.revision)
    try:
        configs = CONFIGS.validate_python(info.card_data.get("configs") or [] if info.card_data else [])
    except ValidationError as error:
        raise InputValidationFailed(
            f"cannot parse the file list in the card of {dataset.path}",
            hint=f"use a single file: {ON_HUB}{dataset.path}/FILE",
        ) from error
    names = [sibling.rfilename for sibling in info.siblings or [] if holds_rows(base_name(sibling.rfilename))]
    return State(commit=str(info.sha), names=names, configs=configs)


def base_name(path: str) -> str:
    return path.rpartition("/")[2]


def files(found: State, dataset: DatasetSpec) -> list[str]:
    """The files of the requested split, by the card or by their names. Raises ConfigInvalid if there are none."""
    config = config_of(found.configs, dataset) if found.configs else None
    if config and config.data_files:
        globs = [glob for one in config.data_files if one.split == (dataset.split or TRAIN) for glob in one.path]
        patterns = [re.compile(glob_translate(glob)) for glob in globs]
        chosen = [name for name in found.names if any(pattern.match(name) for pattern in patterns)]
    else:
        chosen = named(found.names, dataset)
    if not chosen:
        raise ConfigInvalid(
            f"{dataset.path} has no files for split {dataset.split or TRAIN}",
            hint=f"set datasets.N.split, or use a single file: {ON_HUB}{dataset.path}/FILE",
        )
    return chosen


def config_of(configs: Sequence[Config], dataset: DatasetSpec) -> Config:
    """The requested config, or else the card's default or only one. Raises ConfigInvalid."""
    by_name = {config.config_name: config for config in configs}
    usual = [config for config in configs if config.default or config.config_name == "default"]
    fitting = [by_name[dataset.config]] if dataset.config in by_name else [] if dataset.config else usual or configs
    if len(fitting) != 1:
        which = f"no config {dataset.config}" if dataset.config else "several configs"
        raise ConfigInvalid(f"{dataset.path} has {which}", hint=f"set datasets.N.config to one of {', '.join(by_name)}")
    return fitting[0]


def named(names: Sequence[str], dataset: DatasetSpec) -> list[str]:
    """Files with the split's name in their path; without a requested split, also files that name no other split."""
    data = [name for name in names if not ABOUT.fullmatch(base_name(name))]
    inside = [name for name in data if not dataset.config or name.startswith(f"{dataset.config}/")]
    chosen = [name for name in inside if says(name, dataset.split or TRAIN)]
    return chosen or ([] if dataset.split else [name for name in inside if not any(says(name, o) for o in OTHERS)])


def says(name: str, split: str) -> bool:
    return bool(re.search(rf"(?<![a-z0-9]){re.escape(split.lower())}(?![a-z0-9])", name.lower()))


def client() -> HfApi:
    """Hub client; uses the token from HF_TOKEN or from a login."""
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


@contextmanager
def coded(repo: str) -> Iterator[None]:
    """Turn the client's errors into coded errors."""
    try:
        yield
    except GatedRepoError as error:
        raise AuthRequired(f"{repo} is a gated dataset", hint="request access on the Hub, and set HF_TOKEN") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError) as error:
        hint = f"{did_you_mean(Path(repo))}; a private dataset needs HF_TOKEN"
        what = "revision or file" if not isinstance(error, RepositoryNotFoundError) else "dataset"
        raise InputNotFound(f"no such file, and no such {what} on the Hub: {repo}", hint=hint) from error
    except HfHubHTTPError as error:
        raise refusal(repo, error.response.status_code) from error
    except (httpx.TransportError, OSError) as error:  # LocalEntryNotFoundError, OfflineModeIsEnabled, the cache's disk
        kind = type(error).__name__
        raise HubUnreachable(f"cannot download {repo} from the Hub ({kind})", hint=RETRY) from error
    except ValueError as error:
        raise InputNotFound(f"{repo} is not a Hub dataset: {error}", hint="write OWNER/NAME") from error


def refusal(repo: str, status: int) -> BackpropError:
    if status in (401, 403):
        return AuthRequired(
            f"the Hub denies access to {repo} ({status})", hint="set HF_TOKEN to a token that may read it"
        )
    return HubUnreachable(f"the Hub answered {status} for {repo}", hint=RETRY)
