"""`backprop data put`, `backprop data split`: rows into the home's data directory, or into two files. No Prefect."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from backprop_core.data.loading import find
from backprop_core.data.put_rows import Put, put
from backprop_core.data.restored_rows import decided
from backprop_core.data.split_files import SplitFiles, split_files
from backprop_core.data.token_lengths import Counter
from backprop_core.errors import ConfigInvalid, InputNotFound, InputValidationFailed, PlaceUnusable
from backprop_core.runtime.settings import Settings
from backprop_core.schema.field_types import NAME
from backprop_core.schema.specs import DatasetSpec, RunSpec
from backprop_core.store.artifacts import Store
from tasks.runs.data_preview import tokenizer_files
from tasks.runs.line_renaming import check_rows, directory_of_rows

STDIN = "-"


def data_put(dataset: DatasetSpec, stdin: BinaryIO, to: str, config: Settings) -> Put:
    """Put a file, or what comes from `stdin` for the path `-`, into the directory `to` of the home's data.

    Raises ConfigInvalid, InputNotFound, PlaceUnusable, and what reading the rows raises.
    """
    if not re.fullmatch(NAME, to):
        raise ConfigInvalid(f"--to {to} is not a name", hint="use letters, digits, dots, dashes and underscores")
    check_rows(to, config)
    directory = directory_of_rows(to, config)
    try:
        if dataset.path == STDIN:
            return put(stdin, "", directory, dataset.model_copy(update={"path": "standard input"}))
        with opened(dataset.path) as file:
            return put(file, dataset.path, directory, dataset)
    except OSError as error:
        raise PlaceUnusable(
            f"{directory} cannot be written: {error.strerror}", hint="check its permissions and the free space"
        ) from error


def opened(path: str) -> BinaryIO:
    """A local file. Raises InputNotFound, InputValidationFailed."""
    file = Path(path).expanduser()
    if not file.exists():
        raise InputNotFound(f"no such file: {path!r}", hint="check the name and the directory")
    if not file.is_file():
        raise InputValidationFailed(f"{path} is not a file", hint="put its files one by one")
    try:
        return file.open("rb")
    except OSError as error:
        raise InputValidationFailed(
            f"{path} cannot be read: {error.strerror}", hint="check its read permission"
        ) from error


def data_split(
    spec: RunSpec, share: float | None, heldout: Path, train: Path | None, config: Settings, *, force: bool
) -> SplitFiles:
    """Split the spec's one dataset into two files. Its base is needed only where curation counts tokens.

    Rows that the home has forgotten are in neither.

    Raises ConfigInvalid, PlaceUnusable, ModelLoadFailed, and what reading and curation raise.
    """
    dataset = spec.datasets[0]
    counter = Counter(tokenizer_files(spec.model)) if dataset.curation.counts_tokens else None
    outputs = [heldout, *([train] if train else [])]
    check_outputs(Path(dataset.path).expanduser(), outputs, force=force)
    with TemporaryDirectory() as scratch:
        store, home = Store(Path(scratch)), Store(config.store_path)
        try:
            source = decided(find(dataset, scratch=store.scratch("source")), dataset, home)
            return split_files(source, dataset, share=share, heldout=heldout, train=train, counter=counter, store=store)
        except OSError as error:
            raise PlaceUnusable(
                f"{error.filename or heldout} cannot be written: {error.strerror}", hint="name another file"
            ) from error
        finally:
            store.close()
            home.close()


def check_outputs(source: Path, outputs: list[Path], *, force: bool) -> None:
    """Raise ConfigInvalid if a file would be written over the source, over the other one, or over an existing one."""
    places = [path.resolve() for path in (source, *outputs)]
    if len(set(places)) < len(places):
        raise ConfigInvalid("FILE, --heldout and --train must be different files", hint="name other files")
    if not force and (there := [path for path in outputs if path.exists()]):
        raise ConfigInvalid(f"{there[0]} exists already", hint="name another file, or overwrite it with --force")
