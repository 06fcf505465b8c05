"""The proof that what ships is what was trained: a GGUF file against the model that it was made from."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers.normalizers import NFC
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from backprop_core import templates
from backprop_core.chat import Message, answered, render_prompt, stop_id
from backprop_core.errors import ExportFidelity, GGUFExportFailed
from backprop_core.formats import ChatRow
from backprop_core.llamacpp import last_error, library
from backprop_core.metrics import as_expected
from backprop_core.refs import Fidelity, FileAnswer, Generated
from backprop_core.specs import CanarySpec

TOKENS = 512  # compared per text
ANSWER = 64  # tokens of an answer at most
ASKED = 2  # held-out conversations that are answered where there are no canaries
LARGER = "export a larger quantization such as q8_0; if f16 fails too, report it"
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
# The largest mean divergence in nats per token, at least three times the worst honest case: random weights again (four
# architectures, three seeds each), and the example base with adapters so large that it talks nonsense. They reached
# 1e-8 as f32, 1.4e-5 as f16, 5e-4 as bf16, 0.013 as q8_0, 0.059 as q6_k, 0.12 as q5_k_m, 0.16 as q5_0, 0.25 as q4_k_m,
# 0.27 as q4_0, 0.46 as q3_k_m, 1.2 as q2_k; the example base alone 0.012 as q4_k_m and 0.17 as q2_k. f32 and f16 are
# allowed more, since real models have larger activations than any of these.
MOST_KL = {
    "f32": 1e-4,
    "f16": 1e-3,
    "bf16": 2e-3,
    "q8_0": 0.05,
    "q6_k": 0.2,
    "q5_k_m": 0.4,
    "q5_0": 0.5,
    "q4_k_m": 0.8,
    "q4_0": 1.0,
    "q3_k_m": 1.5,
    "q2_k": 4.0,
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

    def prompt(self, messages: list[Message]) -> str:
        """A conversation and the beginning of its next turn, by the file's own template."""
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        names = {"eos_token": self.llama.token_eos(), "bos_token": self.llama.token_bos()}
        tokens = {name: self.llama.detokenize([id_], special=True).decode() for name, id_ in names.items() if id_ >= 0}
        template = self.llama.metadata["tokenizer.chat_template"]
        write = Jinja2ChatFormatter(template, **{"eos_token": "", "bos_token": "", **tokens})
        write.strftime_now = templates.strftime_now
        return str(write(messages=messages, date_string=templates.TODAY).prompt)

    def answer(self, prompt: str) -> tuple[str, bool]:
        """The most likely continuation, at most ANSWER tokens, and whether it ended by itself."""
        self.llama.reset()
        made = self.llama.create_completion(self.ids(prompt), temperature=0, max_tokens=ANSWER)
        [choice] = made["choices"]
        return choice["text"], choice["finish_reason"] == "stop"

    def logits(self, ids: list[int]) -> Tensor:
        """Logits after every token, (tokens, vocabulary) in float32."""
        self.llama.reset()
        self.llama.eval(ids)
        return torch.from_numpy(self.llama.scores[: len(ids)].copy())


class Asked(NamedTuple):
    """A conversation, what the fused model says next, and what has to be in that if it is a canary."""

    messages: list[Message]
    reference: Generated
    canary: CanarySpec | None = None


def conversations(tokenizer: Any, canaries: Sequence[CanarySpec], rows: Sequence[ChatRow]) -> list[list[Message]]:
    """What a file is asked: the canaries, or else the first held-out rows up to their last answers, if not too long."""
    if canaries:
        return [[{"role": "user", "content": canary.prompt}] for canary in canaries]
    chats: list[list[Message]] = [row["messages"] for row in rows if "messages" in row]
    begun = (messages[: answered(messages)[-1]] for messages in chats)
    short = (messages for messages in begun if len(prompt_ids(tokenizer, messages)) + ANSWER <= TOKENS)
    return list(islice(short, ASKED))


def prompt_ids(tokenizer: Any, messages: list[Message]) -> list[int]:
    """A conversation and the beginning of its next turn, as the model's tokenizer has it."""
    return token_ids(tokenizer, normalized(tokenizer, render_prompt(tokenizer, messages)))


def token_ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def measure(
    model: Any, tokenizer: Any, texts: Sequence[str], file: Path, *, quantization: str, asked: Sequence[Asked] = ()
) -> Fidelity:
    """Compare the GGUF `file` with `model` (transformers, float32, adapter in it) over rendered chats and answers.

    The first TOKENS tokens of each text are compared. Texts are normalized first where the tokenizer does so, since
    llama.cpp has no normalizer. Raises ExportFidelity if the file has another chat template or stop token, if a text
    gives other token ids, if too few most likely tokens are the same (LEAST_TOP1) or the divergence is too large
    (MOST_KL), if the file's own template writes a conversation otherwise, or if it fails a canary that the model
    passes; ExtraMissing or GGUFExportFailed if the file cannot be read.
    """
    texts = [normalized(tokenizer, text) for text in texts]
    ids = [token_ids(tokenizer, text) for text in texts]
    assert any(ids), "nothing to compare"
    prompts = [len(prompt_ids(tokenizer, one.messages)) + ANSWER for one in asked]
    with closing(Reader(file, length=max(min(max(map(len, ids)), TOKENS), *prompts, 0))) as reader:
        check_chat(tokenizer, reader.llama.metadata)
        for number, (text, expected) in enumerate(zip(texts, ids, strict=True), 1):
            check_ids(tokenizer, number, expected, reader.ids(text))
        compared = [compare(reference_logits(model, row[:TOKENS]), reader.logits(row[:TOKENS])) for row in ids if row]
        same, divergence = (torch.cat(column) for column in zip(*compared, strict=True))
        fidelity = Fidelity(
            positions=len(same),
            ids_equal=True,
            top1=same.float().mean().item(),
            kl=divergence.double().mean().item(),
            answers=[answer(reader, tokenizer, one) for one in asked],
        )
    check_top1(fidelity, quantization)
    check_kl(fidelity, quantization)
    check_canaries(fidelity, asked)
    return fidelity


def answer(reader: Reader, tokenizer: Any, asked: Asked) -> FileAnswer:
    """What the file answers, by its own template. Raises ExportFidelity if that writes otherwise than the model's."""
    expected, prompt = render_prompt(tokenizer, asked.messages), reader.prompt(asked.messages)
    if prompt != expected:
        raise ExportFidelity(
            f"llama.cpp writes a chat as {prompt[-80:]!r}, the model's tokenizer as {expected[-80:]!r}",
            hint="the file would be asked otherwise than it was trained: do not ship it, and report the template",
        )
    text, stopped = reader.answer(normalized(tokenizer, prompt))
    said = asked.messages[-1]["content"]
    return FileAnswer(prompt=said, answer=text, reference=asked.reference.text, stopped=stopped)


def check_canaries(fidelity: Fidelity, asked: Sequence[Asked]) -> None:
    """Raise ExportFidelity for a canary that the file answers otherwise than expected, and the model does not."""
    for one, said in zip(asked, fidelity.answers, strict=True):
        if one.canary and as_expected(one.canary, said.reference) and not as_expected(one.canary, said.answer):
            raise ExportFidelity(
                f"the file answers the canary {said.prompt[:60]!r} with {said.answer[:60]!r}, "
                f"the model with {said.reference[:60]!r}",
                hint=LARGER,
            )


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
            hint=LARGER,
        )


def check_kl(fidelity: Fidelity, quantization: str) -> None:
    """Raise ExportFidelity above MOST_KL."""
    if fidelity.kl > MOST_KL[quantization]:
        raise ExportFidelity(
            f"the {quantization} file is {fidelity.kl:.2g} nats per token away from the model, "
            f"more than the {MOST_KL[quantization]:.2g} that {quantization} costs at worst",
            hint=LARGER,
        )
