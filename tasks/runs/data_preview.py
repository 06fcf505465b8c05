"""`backprop data preview`: rows of a dataset as a training would see them. No Prefect."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from backprop_core.data.converted_rows import Converted, converted
from backprop_core.data.file_readers import Malformed
from backprop_core.data.loading import ChatRow, find
from backprop_core.data.preview import Preview, preview
from backprop_core.data.template_refusals import Refusals
from backprop_core.data.token_lengths import Counter
from backprop_core.models import base as bases
from backprop_core.models import devices
from backprop_core.models.file_tokenizer import FileTokenizer
from backprop_core.schema.specs import DatasetSpec, ModelSpec, RunSpec
from backprop_core.training.defaults import data_of
from tasks.runs.resolve_defaults import asked, filled, known_shape

FEW_FILES = ("config.json", *bases.TOKENIZER_FILES)  # of a base: what rendering rows needs


def data_preview(spec: RunSpec, *, rows: int, number: int | None) -> Preview:
    """Rows of the spec's one dataset, a sample of `rows` of them or those at line or row `number`.

    Raises what reading the data and the base's tokenizer raises.
    """
    dataset, directory = spec.datasets[0], tokenizer_files(spec.model)
    source = read(dataset)
    return preview(
        dataset.path,
        source,
        FileTokenizer(directory),
        model=spec.model.name,
        refusals=Refusals(bases.chat_template_in(directory), tools_as_text=dataset.tools == "as_text"),
        too_long=spec.training.too_long or "drop",
        max_length=max_length(spec, usable(source), directory),
        rows=rows,
        number=number,
    )


def tokenizer_files(model: ModelSpec) -> Path:
    """The directory of a base's tokenizer and config; of a Hub model, downloads these alone."""
    directory, _ = bases.locate(model.name, model.revision, FEW_FILES)
    return directory


def read(dataset: DatasetSpec) -> Converted:
    """A dataset's rows; a download is removed again."""
    with TemporaryDirectory() as scratch:
        return converted(find(dataset, scratch=Path(scratch)), dataset)


def usable(source: Converted) -> list[ChatRow]:
    return [row for row in source.rows if not isinstance(row, Malformed)]


def max_length(spec: RunSpec, rows: list[ChatRow], directory: Path) -> int:
    """The maximum length of a training on these rows: the one that is set, or the one that it would choose."""
    if "max_length" in spec.training.model_fields_set or not rows:
        return spec.training.max_length
    on_gpu = spec.training.device != "cpu" and devices.visible_gpus()
    device: Literal["cpu", "cuda"] = "cuda" if on_gpu else "cpu"
    data = data_of(rows, Counter(directory))
    return filled(known_shape(directory), asked(spec), [data], device, later=False)[0].max_length
