"""`backprop data report`: what is in datasets, as records and as one HTML page. No Prefect."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from backprop_core.data.loading import find
from backprop_core.data.report import Base, DatasetReport, refusals_of, report
from backprop_core.data.report_limits import Limit, exceeded, limit
from backprop_core.data.report_page import page
from backprop_core.data.report_rows import read
from backprop_core.errors import DataLimitExceeded, PlaceUnusable
from backprop_core.models import base as bases
from backprop_core.runtime.settings import Settings
from backprop_core.schema.specs import DatasetSpec, RunSpec
from backprop_core.store.artifacts import write_atomic
from tasks.runs.data_preview import forgotten_in, max_length, tokenizer_files


class Reports:
    """The reports of the datasets of some specs, which share a base. Rows that the home has forgotten are not shown."""

    def __init__(self, specs: Sequence[RunSpec], config: Settings) -> None:
        """Examine every dataset. Raises what reading the data and the base's tokenizer raises."""
        self._directory, self._forgotten = base_directory(specs[0]), forgotten_in(config)
        self.all = [self.examine(spec, dataset) for spec in specs for dataset in spec.datasets]

    def examine(self, spec: RunSpec, dataset: DatasetSpec) -> DatasetReport:
        directory = self._directory
        template = bases.chat_template_in(directory) if directory else None
        with TemporaryDirectory() as scratch, ExitStack() as files:
            place = Path(scratch)
            source = find(dataset, scratch=place)
            rows = read(source, dataset, refusals_of(dataset, template), place, files, self._forgotten)
            base = Base(spec.model.name, directory, max_length(spec, rows.sample, directory)) if directory else None
            return report(source.digest, rows, dataset, base, place)

    def write(self, path: Path) -> None:
        """Write the page. Raises PlaceUnusable."""
        try:
            write_atomic(path, page(self.all))
        except OSError as error:
            raise PlaceUnusable(
                f"{path} cannot be written: {error.strerror}", hint="name another file with --output"
            ) from error

    def check(self, limits: Sequence[Limit]) -> DataLimitExceeded | None:
        """The error for limits that are exceeded, or None. Raises ConfigInvalid."""
        found = [words for one in self.all for words in exceeded(one, list(limits))]
        if not found:
            return None
        return DataLimitExceeded("; ".join(found), hint="look at the report, correct the data or raise the limit")


def limits_of(texts: Sequence[str]) -> list[Limit]:
    """Limits as they are written. Raises ConfigInvalid."""
    return [limit(text) for text in texts]


def base_directory(spec: RunSpec) -> Path | None:
    """The files of the spec's base; None if it is not named, and the default one is not on this machine."""
    if "name" in spec.model.model_fields_set:
        return tokenizer_files(spec.model)
    return bases.here(spec.model.name, spec.model.revision)
