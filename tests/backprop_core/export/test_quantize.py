"""Quantized files hold the types that their names promise, and failures leave nothing behind."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from gguf import GGUFReader

from backprop_core.errors import GGUFExportFailed, QuantizationUnknown
from backprop_core.export.gguf import convert
from backprop_core.export.quantize import quantize
from tests.backprop_core import tiny_models as tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An F32 file whose rows are multiples of 256."""
    root = tmp_path_factory.mktemp("source")
    convert(tiny.build(root / "base", "llama", **tiny.K_QUANT_SHAPE), None, root / "model.gguf", outtype="f32")
    return root / "model.gguf"


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ("q4_k_m", {"Q4_K": 12, "Q6_K": 3, "F32": 5}),
        ("q6_k", {"Q6_K": 15, "F32": 5}),
        ("q8_0", {"Q8_0": 15, "F32": 5}),
        ("f16", {"F16": 15, "F32": 5}),
    ],
)
def test_file_holds_the_types_of_its_name(
    quantization: str, expected: dict[str, int], source: Path, tmp_path: Path
) -> None:
    """The types are read back from the file, not taken from its name, and `gguf`'s own reader finds the same."""
    assert quantize(source, tmp_path / "model.gguf", quantization, threads=1) == expected
    assert Counter(tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "model.gguf").tensors) == expected


def test_narrow_rows_show_in_the_counts(tmp_path: Path) -> None:
    """Negative control: with hidden size 64 a q4_k_m file holds no Q4_K, and the counts say so."""
    convert(tiny.build(tmp_path / "base", "llama"), None, tmp_path / "f32.gguf", outtype="f32")
    types = quantize(tmp_path / "f32.gguf", tmp_path / "model.gguf", "q4_k_m", threads=1)
    assert "Q4_K" not in types and types["Q5_0"] > 0


def test_threads_do_not_change_the_bytes(source: Path, tmp_path: Path) -> None:
    """One thread or two: the same file."""
    for threads in (1, 2):
        quantize(source, tmp_path / str(threads), "q4_k_m", threads=threads)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_unknown_quantization_names_the_known(source: Path, tmp_path: Path) -> None:
    """A quantization that does not exist is refused with the list of those that do."""
    with pytest.raises(QuantizationUnknown) as caught:
        quantize(source, tmp_path / "model.gguf", "q9_k", threads=1)
    assert "q4_k_m" in caught.value.hint


def test_failure_tells_llama_cpps_reason_and_leaves_nothing(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A source that is cut short is an error with llama.cpp's own words; the old file stays, nothing is printed."""
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(source.read_bytes()[:-4096])
    (tmp_path / "model.gguf").write_bytes(b"old")
    with pytest.raises(GGUFExportFailed, match="not within the file bounds"):
        quantize(cut, tmp_path / "model.gguf", "q4_k_m", threads=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf", "model.gguf"]
    assert (tmp_path / "model.gguf").read_bytes() == b"old"
    assert capfd.readouterr() == ("", "")


def test_quantizing_prints_nothing(source: Path, tmp_path: Path) -> None:
    """llama.cpp's own lines reach neither stdout nor stderr, in a process that does nothing else."""
    script = (
        "import sys; from pathlib import Path; from backprop_core.export.quantize import quantize; "
        "quantize(Path(sys.argv[1]), Path(sys.argv[2]), 'q4_k_m', threads=1)"
    )
    argv = [sys.executable, "-c", script, str(source), str(tmp_path / "model.gguf")]
    done = subprocess.run(argv, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
