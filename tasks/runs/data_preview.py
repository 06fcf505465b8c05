"""`backprop data preview`: rows of a dataset as a training would see them. No Prefect."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from backprop_core.data.forgotten_rows import forgotten
from backprop_core.data.loading import ChatRow, find
from backprop_core.data.preview import Preview, chosen, preview
from backprop_core.data.template_refusals import Refusals
from backprop_core.data.token_lengths import Counter, Reservoir, fewer_if_long
from backprop_core.models import base as bases
from backprop_core.models import devices
from backprop_core.models.file_tokenizer import FileTokenizer
from backprop_core.runtime.settings import Settings
from backprop_core.schema.specs import ModelSpec, RunSpec
from backprop_core.store.artifacts import Store
from backprop_core.training.defaults import data_by
from tasks.runs.resolve_defaults import asked, filled, known_shape

FEW_FILES = ("config.json", *bases.TOKENIZER_FILES)  # of a base: what rendering rows needs


def data_preview(spec: RunSpec, config: Settings, *, rows: int, number: int | None) -> Preview:
    """Rows of the spec's one dataset, a sample of `rows` of them or those at line or row `number`.

    Of a row that the home has forgotten only the place is shown. Raises what reading the data and the base's tokenizer
    raises.
    """
    dataset, directory = spec.datasets[0], tokenizer_files(spec.model)
    with TemporaryDirectory() as scratch:
        source, gone = find(dataset, scratch=Path(scratch)), forgotten_in(config)
        found = chosen(source, dataset, rows=rows, number=number, forgotten=gone)
    return preview(
        dataset.path,
        found,
        FileTokenizer(directory),
        model=spec.model.name,
        refusals=Refusals(bases.chat_template_in(directory), tools_as_text=dataset.tools == "as_text"),
        too_long=spec.training.too_long or "drop",
        max_length=max_length(spec, found.sample, directory),
        forgotten=gone,
    )


def forgotten_in(config: Settings) -> set[str]:
    """The identities of rows that the home has forgotten; a home without a store is left as it is."""
    return set(forgotten(Store(config.store_path))) if config.store_path.is_dir() else set()


def tokenizer_files(model: ModelSpec) -> Path:
    """The directory of a base's tokenizer and config; of a Hub model, downloads these alone."""
    directory, _ = bases.locate(model.name, model.revision, FEW_FILES)
    return directory


def max_length(spec: RunSpec, rows: Reservoir[ChatRow], directory: Path) -> int:
    """The maximum length of a training on these rows: the one that is set, or the one that it would choose."""
    if "max_length" in spec.training.model_fields_set or not rows.count:
        return spec.training.max_length
    on_gpu = spec.training.device != "cpu" and devices.visible_gpus()
    device: Literal["cpu", "cuda"] = "cuda" if on_gpu else "cpu"
    data = data_by(fewer_if_long(rows.held), rows.count, Counter(directory))
    return filled(known_shape(directory), asked(spec), [data], device, later=False)[0].max_length
