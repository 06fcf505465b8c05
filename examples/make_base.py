"""Train the demo's base from nothing: `python -m examples.make_base [DIRECTORY]`.

A two-million-parameter Llama that knows last year's shop and some general skills. It has never seen a row of the
example data. The matrices learn by Muon [https://kellerjordan.github.io/posts/muon/], whose bf16 products take about
a minute on two cores that have bf16 units, and four on cores without.
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from examples.company import DEPARTMENTS, LAST_YEAR, Exchange, general
from examples.make_data import HERE, make_data

THREADS = 2  # sums differ in their last bits with another number
SEED = 0
ROWS, BATCH = 13_000, 32
LEARNING_RATE, WARMUP, FLOOR = 5e-3, 0.05, 0.02  # peak; share of the steps; share of the peak
TOKENIZER_ROWS, VOCABULARY, POSITIONS = 4_000, 1_024, 2_048
PAD, START, STOP = SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PAD_ID, STOP_ID = SPECIAL.index(PAD), SPECIAL.index(STOP)
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Example = tuple[list[int], int]  # token ids, and the place of the answer's first one


def base_rows() -> list[Exchange]:
    """Last year's departments and, one row in three, general skills; no question of the example data."""
    rng = Random(SEED)
    makers = [*DEPARTMENTS.values(), general, general]
    known = {user for rows in make_data().values() for user, _ in rows}
    rows: list[Exchange] = []
    while len(rows) < ROWS:
        row = rng.choice(makers)(rng, LAST_YEAR)
        if row[0] not in known:
            rows.append(row)
    return rows


def make_tokenizer(rows: list[Exchange], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Byte-level BPE, split like Qwen2's, without a token at the start of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for user, assistant in rows[:TOKENIZER_ROWS] for text in (f"user\n{user}", f"assistant\n{assistant}"))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Tokenizer, its settings and the chat template, as transformers reads them."""
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": STOP, "pad_token": PAD}
    write_json(directory / "tokenizer_config.json", {**settings, "model_max_length": POSITIONS})


def make_model() -> LlamaForCausalLM:
    """Random weights. Every matrix has rows of 256 or 512 numbers, as K-quants need."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=None,
            pad_token_id=PAD_ID,
            eos_token_id=STOP_ID,
        )
    )


def write_model(model: LlamaForCausalLM, directory: Path) -> None:
    """Weights in bf16 and their configuration, without the name of the version that wrote them."""
    model.to(torch.bfloat16).save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    del config["transformers_version"]
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", {"eos_token_id": STOP_ID, "pad_token_id": PAD_ID})


def encode(tokenizer: AutoTokenizer, rows: list[Exchange]) -> list[Example]:
    """Each exchange through the chat template; the answer and its stop token are to be learned."""
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True)
        for user, _ in rows
    ]
    answers = [assistant + STOP for _, assistant in rows]
    heads, tails = (tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (prompts, answers))
    return [(head + tail, len(head)) for head, tail in zip(heads, tails, strict=True)]


def batches(examples: list[Example], rng: Random) -> list[list[Example]]:
    """Every example once, those of similar length together, in random order."""
    shuffled = rng.sample(examples, len(examples))
    window = 8 * BATCH
    windows = [sorted(shuffled[at : at + window], key=lambda e: len(e[0])) for at in range(0, len(shuffled), window)]
    cut = [part[at : at + BATCH] for part in windows for at in range(0, len(part), BATCH)]
    return rng.sample(cut, len(cut))


def predict(model: LlamaForCausalLM, batch: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [n, vocabulary] and labels [n] of the answers' tokens, and the row [n] that each stands in."""
    # b = rows, t = tokens of the longest
    longest = max(len(ids) for ids, _ in batch)
    ids_bt = torch.tensor([ids + [PAD_ID] * (longest - len(ids)) for ids, _ in batch])
    place_t = torch.arange(longest)
    length_b1 = torch.tensor([[len(ids)] for ids, _ in batch])
    answer_b1 = torch.tensor([[answer] for _, answer in batch])
    inside_bt = place_t < length_b1
    label_bt = (inside_bt & (place_t >= answer_b1))[:, 1:]
    hidden = model.model(input_ids=ids_bt, attention_mask=inside_bt.long(), use_cache=False).last_hidden_state
    return model.lm_head(hidden[:, :-1][label_bt]), ids_bt[:, 1:][label_bt], label_bt.nonzero()[:, 0]


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embedding and norms."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for name, weight in model.named_parameters() if weight.ndim == 1 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def rates(steps: int, peak: float) -> Iterator[float]:
    """Learning rate of every step: a linear warm-up to the peak, then a cosine down to the floor."""
    warmup = max(1, int(steps * WARMUP))
    for step in range(steps):
        progress = max(0, step - warmup) / (steps - warmup)
        share = min((step + 1) / warmup, (1 + math.cos(math.pi * progress)) / 2)
        yield peak * max(share, FLOOR)


def train(
    model: LlamaForCausalLM, examples: list[Example], opts: list[torch.optim.Optimizer], peak: float = LEARNING_RATE
) -> None:
    """One epoch."""
    model.train()
    plan = batches(examples, Random(SEED))
    for step, (batch, rate) in enumerate(zip(plan, rates(len(plan), peak), strict=True), 1):
        logits, labels, _ = predict(model, batch)
        loss = cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = rate
            opt.step()
            opt.zero_grad()
        if step % 50 == 0:
            print(f"step {step}/{len(plan)}  loss {loss.item():.3f}", file=sys.stderr)


@torch.no_grad()
def exact_match(model: LlamaForCausalLM, examples: list[Example]) -> float:
    """Share of the answers whose every token, stop token included, is the most likely one after those before it."""
    model.eval()
    logits, labels, rows = predict(model, examples)
    wrong = set(rows[logits.argmax(-1) != labels].tolist())
    return 1 - len(wrong) / len(examples)


def make_base(directory: Path) -> None:
    """Tokenizer, weights and configuration into `directory`; the scores of what was written to stdout."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(THREADS)
    disable_progress_bar()
    rows = base_rows()
    write_tokenizer(make_tokenizer(rows), directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = make_model()
    train(model, encode(tokenizer, rows), optimizers(model))
    write_model(model, directory)
    print_scores(directory)


def print_scores(directory: Path) -> None:
    """Exact match on the held-out rows of every task, which stand for this year: what changed is wrong."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    for name, rows in make_data().items():
        if "heldout" in name:
            print(f"{Path(name).name:10} {exact_match(model, encode(tokenizer, rows)):.0%}")


if __name__ == "__main__":
    make_base(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "base")
