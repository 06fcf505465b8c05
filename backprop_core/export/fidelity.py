"""The fidelity check of a GGUF file: loads it with llama.cpp and compares tokens, logits and answers to the model's."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from backprop_core.data.chat_rendering import Message
from backprop_core.errors import ExportFidelity, GGUFExportFailed
from backprop_core.evaluation.metrics import as_expected
from backprop_core.export.fidelity_reference import ANSWER, TOKENS, Asked, Likely, Notes, Reference, rest
from backprop_core.export.llamacpp import last_error, library
from backprop_core.models import chat_template
from backprop_core.schema.refs import Fidelity, FileAnswer
from backprop_core.schema.specs import CanarySpec

LARGER = "export a larger quantization such as q8_0; if f16 fails too, report it"
F32 = 0  # ggml type of the key/value cache: F16 would add rounding errors
# The minimum share of positions with the same most likely token. A file with wrong rotary pairing reaches 0.12. The
# worst correct case, random weights with similar logits (hidden size 256), reached 0.98 as bf16, 0.92 as q8_0, 0.78 as
# q6_k, 0.67 as q5_k_m, 0.51 as q4_k_m; trained models are far better, around 0.9 as q4_k_m.
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
# The maximum mean divergence in nats per token, at least three times the worst correct case: random weights again (four
# architectures, three seeds each), and the example base with adapters large enough to break its output. They reached
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
    """A GGUF file loaded by llama.cpp, with an optional LoRA file `adapter`, for texts of up to `length` tokens."""

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
                f"llama.cpp cannot load {file}: {last_error()}", hint="export it again; if it fails again, report it"
            ) from error

        model = self.llama._model
        self.adds_bos, self.adds_eos = model.add_bos_token(), model.add_eos_token()

    def close(self) -> None:
        """Free the model's memory."""
        self.llama.close()

    def ids(self, text: str, *, chat: bool = False) -> list[int]:
        """Token ids as in a llama.cpp server: special tokens parsed, BOS and EOS added as the file says.

        From a rendered `chat`, the server first removes the BOS and EOS that it is going to add.
        [llama.cpp, common/chat.cpp, common_chat_templates_apply_jinja]
        """
        if chat and self.adds_bos:
            text = text.removeprefix(self.piece(self.llama.token_bos()))
        if chat and self.adds_eos:
            text = text.removesuffix(self.piece(self.llama.token_eos()))
        return list(self.llama.tokenize(text.encode(), add_bos=True, special=True))

    def piece(self, token: int) -> str:
        """The text of a token; empty for none."""
        return "" if token < 0 else str(self.llama.detokenize([token], special=True).decode(errors="replace"))

    def prompt(self, messages: list[Message]) -> str:
        """Render a conversation with the generation prompt, by the file's own chat template."""
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        tokens = {"eos_token": self.piece(self.llama.token_eos()), "bos_token": self.piece(self.llama.token_bos())}
        write = Jinja2ChatFormatter(self.llama.metadata["tokenizer.chat_template"], **tokens)
        write.strftime_now = chat_template.strftime_now
        return str(write(messages=messages, date_string=chat_template.TODAY).prompt)

    def answer(self, ids: list[int]) -> tuple[str, bool]:
        """The greedy answer, up to ANSWER tokens, and whether it ended with a stop token."""
        self.llama.reset()
        made = self.llama.create_completion(ids, temperature=0, max_tokens=ANSWER)
        [choice] = made["choices"]
        return choice["text"], choice["finish_reason"] == "stop"

    def logits(self, ids: list[int]) -> Tensor:
        """Logits after every token, (tokens, vocabulary) in float32."""
        self.llama.reset()
        self.llama.eval(ids)
        return torch.from_numpy(self.llama.scores[: len(ids)].copy())


def measure(reference: Reference, file: Path, *, quantization: str, canaries: Sequence[CanarySpec] = ()) -> Fidelity:
    """Compare the GGUF `file` with its model's `reference` on rendered chats, raw text and answers.

    Compares the first TOKENS tokens of each text. `canaries` are the canaries among the answers, if any. Raises
    ExportFidelity if the file has another chat template or stop token, if llama.cpp tokenizes a text differently than
    in training, if too few most likely tokens agree (LEAST_TOP1) or the divergence is too large (MOST_KL), if the
    file's template renders a conversation differently, or if the file fails a canary that the model passes;
    ExtraMissing or GGUFExportFailed if the file cannot be loaded.
    """
    notes, likely = reference
    compared = [text.ids[:TOKENS] for text in notes.texts]
    length = max(*map(len, compared), *(len(one.ids) + ANSWER for one in notes.asked), 0)
    with closing(Reader(file, length=length)) as reader:
        check_chat(notes, reader)
        for number, text in enumerate(notes.texts, 1):
            check_ids(reader, f"text {number}", text.ids, reader.ids(text.text, chat=text.chat))
        sizes = [len(ids) for ids in compared if ids]
        parts = zip(*(torch.split(column, sizes) for column in likely), strict=True)
        pairs = zip(map(Likely._make, parts), (reader.logits(ids) for ids in compared if ids), strict=True)
        same, divergence = map(torch.cat, zip(*(compare(one, found) for one, found in pairs), strict=True))
        fidelity = Fidelity(
            positions=len(same),
            ids_equal=True,
            top1=same.float().mean().item(),
            kl=divergence.mean().item(),
            answers=[answer(reader, one) for one in notes.asked],
        )
    check_top1(fidelity, quantization)
    check_kl(fidelity, quantization)
    check_canaries(fidelity, canaries)
    return fidelity


def answer(reader: Reader, asked: Asked) -> FileAnswer:
    """The file's answer. Raises ExportFidelity if its template renders the prompt differently than the model's."""
    prompt = reader.prompt(asked.messages)
    if prompt != asked.prompt:
        raise ExportFidelity(
            f"llama.cpp renders a chat as {prompt[-80:]!r}, the model's tokenizer as {asked.prompt[-80:]!r}",
            hint="prompts would differ from training: do not ship the file, and report the chat template",
        )
    check_ids(reader, "a prompt", asked.ids, reader.ids(asked.text, chat=True))
    text, stopped = reader.answer(asked.ids)
    said = asked.messages[-1]["content"]
    return FileAnswer(prompt=said, answer=text, reference=asked.answer.text, stopped=stopped)


def check_canaries(fidelity: Fidelity, canaries: Sequence[CanarySpec]) -> None:
    """Raise ExportFidelity for a canary that the model passes and the file fails."""
    for canary, said in zip(canaries, fidelity.answers, strict=bool(canaries)):
        if as_expected(canary, said.reference) and not as_expected(canary, said.answer):
            raise ExportFidelity(
                f"the file answers the canary {said.prompt[:60]!r} with {said.answer[:60]!r}, "
                f"the model with {said.reference[:60]!r}",
                hint=LARGER,
            )


def check_chat(notes: Notes, reader: Reader) -> None:
    """Raise ExportFidelity unless the file's metadata has the chat template and stop token of training."""
    expected = {"tokenizer.chat_template": notes.template, "tokenizer.ggml.eos_token_id": str(notes.stop)}
    if other := [name for name, value in expected.items() if reader.llama.metadata.get(name) != value]:
        raise ExportFidelity(
            f"the file's {other[0]} differs from that of the model's tokenizer",
            hint="chats would differ from training: do not ship the file, export it again",
        )


def check_ids(reader: Reader, what: str, expected: list[int], found: list[int]) -> None:
    """Raise ExportFidelity if the token ids differ."""
    if found == expected:
        return
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), len(found))
    near = "".join(map(reader.piece, expected[max(at - 2, 0) : at + 3]))
    raise ExportFidelity(
        f"llama.cpp tokenizes {what} differently than the model's tokenizer from token {at} on, near {near!r}",
        hint="answers would differ from the model's: do not ship the file, and report the tokenizer",
    )


def compare(reference: Likely, found_tv: Tensor) -> tuple[Tensor, Tensor]:
    """By position: whether the most likely token is the same, and KL(reference ‖ found) in nats, float64.

    Tokens that the reference does not store are merged into one, which gives a lower bound of the divergence, tight if
    their probability is small.
    """
    log_q_tv = log_softmax(found_tv, -1)
    log_q_tk = log_q_tv.gather(-1, reference.ids_tk.long()).double()
    log_p_tk, log_p_t, log_q_t = (
        reference.log_p_tk.double(),
        reference.rest_t.double(),
        rest(log_q_tv, reference.ids_tk),
    )
    likely_t = (log_p_tk.exp() * (log_p_tk - log_q_tk)).sum(-1)
    others_t = log_p_t.exp() * (log_p_t - log_q_t.double())
    return reference.best_t == found_tv.argmax(-1), likely_t + others_t.nan_to_num(0.0)


def check_top1(fidelity: Fidelity, quantization: str) -> None:
    """Raise ExportFidelity below LEAST_TOP1."""
    if fidelity.top1 < LEAST_TOP1[quantization]:
        raise ExportFidelity(
            f"the {quantization} file agrees with the model on {fidelity.top1:.1%} of {fidelity.positions} tokens, "
            f"below the minimum of {LEAST_TOP1[quantization]:.0%} for {quantization}",
            hint=LARGER,
        )


def check_kl(fidelity: Fidelity, quantization: str) -> None:
    """Raise ExportFidelity above MOST_KL."""
    if fidelity.kl > MOST_KL[quantization]:
        raise ExportFidelity(
            f"the {quantization} file diverges from the model by {fidelity.kl:.2g} nats per token, "
            f"above the maximum of {MOST_KL[quantization]:.2g} for {quantization}",
            hint=LARGER,
        )
