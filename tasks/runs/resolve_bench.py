"""Resolves what `bench` compares: the datasets of a directory, or those of a line. No Prefect."""

import json
from itertools import islice
from pathlib import Path

from backprop_core.data.token_lengths import Counter
from backprop_core.errors import ConfigInvalid, NoRows, RefAmbiguous, RunUnknown
from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.models import base as bases
from backprop_core.runtime.settings import Settings
from backprop_core.schema.field_types import ROWS_FILE
from backprop_core.schema.specs import BenchSpec, DatasetSpec, ExportSpec, PublishSpec, RunSpec
from backprop_core.store.artifacts import Store
from backprop_core.training.defaults import Data, data_by
from tasks.runs.preflight_checks import check_metric, check_preferences
from tasks.runs.prepared_run import Prepared, load
from tasks.runs.resolve import prepare
from tasks.runs.sources import stem

TRAIN, TEST = ".train", ".test"
SAMPLE = 200  # rows of a dataset whose tokens are counted
JUDGED = "a comparison has the settings of the line's last run: set training.preference.loss in its next retrain"


def of_datasets(spec: RunSpec, compare: BenchSpec, store: Store) -> Prepared:
    """Resolve a comparison on datasets. Raises ConfigInvalid with one dataset, and what `prepare` raises."""
    if len(spec.datasets) < 2:
        raise ConfigInvalid("bench compares runs in a row, and there is one dataset", hint="give two or more")
    return prepare("bench", spec, store).model_copy(update={"bench": compare})


def of_line(line: str, compare: BenchSpec, store: Store) -> Prepared:
    """Resolve a comparison on what a line has learned, with its base and settings.

    Raises RunUnknown, NoRows, and ConfigInvalid for preferences without a loss.
    """
    live = Lines(store).live(line)
    if live is None:
        raise RunUnknown(f"line {line} has no champion", hint="`backprop lines` lists all lines")
    version = live.version
    if len(version.datasets) < 2:
        raise NoRows(f"line {line} has learned one dataset", hint="compare when it has learned two or more")
    earlier = load(version.run_id, store).spec
    check_metric(earlier.evaluation)
    check_preferences(line, version.datasets, earlier.training, hint=JUDGED)
    training = earlier.training.model_copy(update={"lora": version.lora})
    spec = earlier.model_copy(
        update={
            "line": line,
            "training": training,
            "merge": version.merge,
            "export": ExportSpec(),
            "publish": PublishSpec(),
        }
    )
    base = bases.dated(version.base)
    return Prepared(flow="bench", spec=spec, base=base, sources=[], watch=[], live=live, bench=compare)


def sizes(version: LineVersion, base: Path, store: Store) -> list[Data]:
    """The sizes of the datasets that a line has learned, by their first rows."""
    counter = Counter(base)
    found = []
    for rows in (dataset.train for dataset in version.datasets):
        with (store.local(rows) / "rows.jsonl").open(encoding="utf-8") as file:
            found.append(data_by([json.loads(line) for line in islice(file, SAMPLE)], rows.rows, counter))
    return found


def is_directory(place: str, config: Settings) -> bool:
    """Whether a name is a directory of datasets; else a line. Raises RefAmbiguous if it is both."""
    is_line = place in Lines(Store(config.store_path)).names()
    if is_line and Path(place).is_dir():
        raise RefAmbiguous(f"{place} is both a line and a directory", hint=f"write ./{place} for the directory")
    return not is_line and Path(place).is_dir()


def datasets_in(directory: Path) -> list[DatasetSpec]:
    """A dataset for each file of rows, by name; TASK.train and TASK.test are one. Raises NoRows."""
    files = sorted(file for file in directory.iterdir() if ROWS_FILE.search(file.name))
    pairs = {stem(str(file)): file for file in files}
    chosen = {name: file for name, file in pairs.items() if name.endswith(TRAIN)} or pairs
    if not chosen:
        raise NoRows(f"{directory} has no files of rows", hint="one file a task, or TASK.train and TASK.test files")
    return [dataset(name, file, pairs) for name, file in chosen.items()]


def dataset(name: str, file: Path, every: dict[str, Path]) -> DatasetSpec:
    task = name.removesuffix(TRAIN)
    heldout = every.get(f"{task}{TEST}") if task != name else None
    return DatasetSpec(path=str(file), task=task, heldout=str(heldout) if heldout else None)
