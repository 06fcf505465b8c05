"""The proof that what ships is what was trained: a GGUF file against the model that it was made from."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from tokenizers.normalizers import NFC
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from backprop_core.chat import stop_id
from backprop_core.errors import ExportFidelity, GGUFExportFailed
from backprop_core.llamacpp import last_error, library
from backprop_core.refs import Fidelity

TOKENS = 512  # compared per text
F32 = 0  # ggml type of the key/value cache: F16 would add its own rounding
# The least share of positions with the same most likely token. A file whose rotary pairing is wrong reaches 0.12. The
# worst honest case, random weights whose logits lie close together (hidden size 256), reached 0.98 as bf16, 0.92 as
# q8_0, 0.78 as q6_k, 0.67 as q5_k_m, 0.51 as q4_k_m; trained models lie far above it, around 0.9 as q4_k_m.
LEAST_TOP1 = {
    "f32": 0.95,
    "f16": 0.95,
    "bf16": 0.95,
    "q8_0": 0.85,
    "q6_k": 0.7,
    "q5_k_m": 0.6,
    "q5_0": 0.6,
    "q4_k_m": 0.4,
    "q4_0": 0.4,
    "q3_k_m": 0.3,
    "q2_k": 0.2,
}


class Reader:
    """A GGUF file as llama.cpp reads it, with the LoRA file `adapter` on it if any, up to `length` tokens a text."""

    def __init__(self, file: Path, *, length: int, adapter: Path | None = None) -> None:
        llama_cpp, threads = library(), torch.get_num_threads()
        try:
            self.llama = llama_cpp.Llama(
                str(file),
                lora_path=str(adapter) if adapter else None,
                n_ctx=length,
                n_batch=length,
                n_threads=threads,
                n_threads_batch=threads,
                n_gpu_layers=0,
                logits_all=True,
                type_k=F32,
                type_v=F32,
                verbose=False,
            )
        except ValueError as error:
            raise GGUFExportFailed(
                f"llama.cpp cannot load {file}: {last_error()}", hint="export it again; report it if it stays"
            ) from error

    def close(self) -> None:
        """Free the model's memory."""
        self.llama.close()

    def ids(self, text: str) -> list[int]:
        """Token ids, special tokens parsed, no BOS added."""
        return list(self.llama.tokenize(text.encode(), add_bos=False, special=True))

    def logits(self, ids: list[int]) -> Tensor:
        """Logits after every token, (tokens, vocabulary) in float32."""
        self.llama.reset()
        self.llama.eval(ids)
        return torch.from_numpy(self.llama.scores[: len(ids)].copy())


def measure(model: Any, tokenizer: Any, texts: Sequence[str], file: Path, *, quantization: str) -> Fidelity:
    """Compare the GGUF `file` with `model` (transformers, float32, adapter in it) over rendered chats.

    The first TOKENS tokens of each text are compared. Texts are normalized first where the tokenizer does so, since
    llama.cpp has no normalizer. Raises ExportFidelity if the file has another chat template or stop token, if a text
    gives other token ids, or if the share of positions with the same most likely token is below LEAST_TOP1;
    ExtraMissing or GGUFExportFailed if the file cannot be read.
    """
    texts = [normalized(tokenizer, text) for text in texts]
    ids = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
    assert any(ids), "nothing to compare"
    with closing(Reader(file, length=min(max(map(len, ids)), TOKENS))) as reader:
        check_chat(tokenizer, reader.llama.metadata)
        for number, (text, expected) in enumerate(zip(texts, ids, strict=True), 1):
            check_ids(tokenizer, number, expected, reader.ids(text))
        compared = [compare(reference_logits(model, row[:TOKENS]), reader.logits(row[:TOKENS])) for row in ids if row]
    same, divergence = (torch.cat(column) for column in zip(*compared, strict=True))
    fidelity = Fidelity(
        positions=len(same), ids_equal=True, top1=same.float().mean().item(), kl=divergence.double().mean().item()
    )
    check_top1(fidelity, quantization)
    return fidelity


def normalized(tokenizer: Any, text: str) -> str:
    """`text` in NFC where the tokenizer brings it into that form; what else a normalizer does, llama.cpp does too."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return str(normalizer.normalize_str(text)) if isinstance(normalizer, NFC) else text


def check_chat(tokenizer: Any, metadata: Mapping[str, str]) -> None:
    """Raise ExportFidelity unless a server that reads the file's metadata writes chats, and stops, as in training."""
    expected = {
        "tokenizer.chat_template": tokenizer.get_chat_template(),
        "tokenizer.ggml.eos_token_id": str(stop_id(tokenizer)),
    }
    if other := [name for name, value in expected.items() if metadata.get(name) != value]:
        raise ExportFidelity(
            f"the file's {other[0]} is not that of the model's tokenizer",
            hint="the file would chat otherwise than it was trained to: do not ship it, export it again",
        )


def check_ids(tokenizer: Any, number: int, expected: list[int], found: list[int]) -> None:
    """Raise ExportFidelity at the first token that differs."""
    if found == expected:
        return
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), len(found))
    near = tokenizer.decode(expected[max(at - 2, 0) : at + 3])
    raise ExportFidelity(
        f"llama.cpp reads text {number} otherwise than the model's tokenizer from token {at} on, near {near!r}",
        hint="the file would not answer as the model does: do not ship it, and report the tokenizer",
    )


@torch.inference_mode()
def reference_logits(model: Any, ids: list[int]) -> Tensor:
    """The model's own logits after every token, (tokens, vocabulary) in float32 on the CPU."""
    logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device)).logits[0]
    return logits.float().cpu()


def compare(reference: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """By position: whether the most likely token is the same, and KL(reference ‖ found) in nats."""
    same = reference.argmax(-1) == found.argmax(-1)
    p, q = log_softmax(reference, -1), log_softmax(found, -1)
    return same, kl_div(q, p, log_target=True, reduction="none").sum(-1)


def check_top1(fidelity: Fidelity, quantization: str) -> None:
    """Raise ExportFidelity below LEAST_TOP1."""
    if fidelity.top1 < LEAST_TOP1[quantization]:
        raise ExportFidelity(
            f"the {quantization} file agrees with the model on {fidelity.top1:.1%} of {fidelity.positions} tokens, "
            f"less than the {LEAST_TOP1[quantization]:.0%} that {quantization} costs at worst",
            hint="export a larger quantization such as q8_0; if f16 fails too, report it",
        )
