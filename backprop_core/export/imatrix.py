"""Computes the importance matrix (imatrix): the mean square of each linear layer's inputs, over held-out text.

llama.cpp weights the quantization error of a column by it. [llama.cpp, tools/imatrix]
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import gguf
import torch
from safetensors.torch import save
from torch import Tensor

from backprop_core.data.batching import Item
from backprop_core.data.preference_items import answered
from backprop_core.export.gguf.architecture import architecture_of
from backprop_core.models.loading import LoadedBase, adapted
from backprop_core.runtime.progress import OnProgress
from backprop_core.schema.refs import AdapterRef, ImportanceRef, RowsRef
from backprop_core.schema.specs import Limit
from backprop_core.store.artifacts import Store

FILE = "importance.safetensors"

# i = inputs of a layer, t = tokens of a row
Means = dict[str, Tensor]


def importance(
    base: LoadedBase,
    adapter: AdapterRef | None,
    heldout: RowsRef,
    *,
    base_digest: str,
    skip: int,
    max_length: int | Limit,
    store: Store,
    on_progress: OnProgress | None = None,
) -> ImportanceRef:
    """Run the base with `adapter`, or alone, on the rows after the first `skip`; commit the mean squares of inputs.

    Float32 (i) under the name of the GGUF tensor. Uses the first rows if there are no more than `skip`.
    `base_digest` goes into the record, not into the artifact. `on_progress` gets (done, total) rows.
    Raises NoRows, AdapterMismatch.
    """
    every = answered(base, heldout, max_length=max_length, store=store)
    items = every[skip:] or every
    with adapted(base, adapter, store) as model:
        means_i = mean_squares(model, tensor_names(model), items, on_progress)
    origin = {"base": base_digest, "adapter": adapter and adapter.digest, "heldout": heldout.digest}
    with store.begin("importance") as directory:
        (directory / FILE).write_bytes(save(means_i, metadata={"format": "pt"}))
        return store.commit(directory, ImportanceRef, record={"stage": "importance", **origin}, rows=len(items))


def tensor_names(model: Any) -> dict[str, str]:
    """Linear layers of the model's blocks, without the adapter's own -> names of their GGUF tensors."""
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture_of(config).name.upper()], config.num_hidden_layers)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    found = {name: names.get_name(f"{name.removesuffix('.base_layer')}.weight", (".weight",)) for name in linear}
    return {name: tensor for name, tensor in found.items() if tensor and tensor.startswith("blk.")}


@torch.inference_mode()
def mean_squares(model: Any, names: dict[str, str], items: Sequence[Item], on_progress: OnProgress | None) -> Means:
    """The mean square of each input over all tokens, by tensor."""
    sums_i: Means = {}
    with listening(model, names, sums_i):
        for done, item in enumerate(items, 1):
            model(input_ids=item.ids_t[None].long().to(model.device), use_cache=False)
            if on_progress:
                on_progress(done, len(items))
    count = sum(map(len, items))
    return {name: (sum_i / count).float().cpu() for name, sum_i in sums_i.items()}


@contextmanager
def listening(model: Any, names: dict[str, str], sums_i: Means) -> Iterator[None]:
    """Within the block, add the squared inputs of these layers to `sums_i`, in float64."""

    def add(tensor: str, _: Any, inputs: tuple[Tensor, ...]) -> None:
        sum_i = inputs[0].double().square().flatten(0, -2).sum(0)
        sums_i[tensor] = sums_i[tensor] + sum_i if tensor in sums_i else sum_i

    with ExitStack() as hooks:
        for name, tensor in names.items():
            handle = model.get_submodule(name).register_forward_pre_hook(partial(add, tensor))
            hooks.callback(handle.remove)
        yield
