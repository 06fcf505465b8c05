"""Which GPU a run uses, from what the driver lists and CUDA_VISIBLE_DEVICES says."""

import pytest

from backprop_core.errors import GPUNotAvailable
from backprop_core.models.devices import check_enough, name_means, resolve

PRESENT = ["GPU-aaaa-1", "GPU-bbbb-2"]


@pytest.mark.parametrize(
    "name, chosen", [("0", "GPU-aaaa-1"), ("1", "GPU-bbbb-2"), ("GPU-bbbb", "GPU-bbbb-2"), ("7", None), ("-1", None)]
)
def test_an_index_or_the_start_of_a_uuid_names_a_gpu(name, chosen):
    """Indices count as the driver does; what names nothing hides everything behind it."""
    assert [uuid for uuid in PRESENT if name_means(name, uuid, PRESENT)] == ([chosen] if chosen else [])


def test_a_gpu_that_is_not_there_is_a_coded_error(monkeypatch):
    """`cuda` without a GPU is refused, `auto` takes the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve("auto") == resolve("cpu") == "cpu"
    with pytest.raises(GPUNotAvailable):
        resolve("cuda")


def test_every_process_needs_a_gpu_of_its_own(monkeypatch):
    """More processes than GPUs are refused before anything starts; a CPU has room for all."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_enough("cpu", 4)
    with pytest.raises(GPUNotAvailable, match="2 processes"):
        check_enough("cuda", 2)
