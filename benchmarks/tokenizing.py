"""Chats rendered, tokenized and labelled, onto the disk: against `datasets.map` with the tokenizer's own template.

`python -m benchmarks.tokenizing ours|mapped FILE DIRECTORY` is one contender.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from benchmarks.material import chats, tiny_llama
from benchmarks.measure import Contender, Row, contenders, cores, medians, take_turns, threads

NAME = "tokenizing rows per second, against datasets.map"
TWO_THREADS = ", two threads"
ROWS = 20_000
BATCH = 1000  # rows that datasets.map hands over together: its default


def against_map(count: int = 1) -> Row:
    """Rows a second on this many threads and cores; each side finds the same label tokens."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        place = Path(name)
        tiny_llama(place / "base")
        rows = chats(ROWS)
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        jobs = [("benchmarks.tokenizing", contender, str(place)) for contender in CONTENDERS]
        settings = {**threads(count), "RAYON_NUM_THREADS": str(count), "TOKENIZERS_PARALLELISM": str(count > 1).lower()}
        with cores(count), contenders(*jobs, **settings) as [ours, other]:
            labels: set[float] = set()
            rates = medians({"ours": partial(rate, ours, labels), "other": partial(rate, other, labels)})
    title = NAME + (TWO_THREADS if count > 1 else "")
    return Row(title, rates["ours"], rates["other"], "apply_chat_template in batches of 1,000", "rows/s", "more")


def rate(contender: Contender, labels: set[float]) -> float:
    """Rows a second of a turn; raises unless all turns so far found as many label tokens."""
    done = contender.turn()
    labels.add(done["labels"])
    assert len(labels) == 1, f"label tokens by turn: {labels}"
    return done["rate"]


def ours(place: Path) -> Callable[[], dict[str, float]]:
    """As a training does it: `chat_encoding.encode`, then the artifact of tokens, committed and synced."""
    from transformers import AutoTokenizer

    from backprop_core.data import chat_encoding, row_files, token_cache
    from backprop_core.schema.specs import Limit
    from backprop_core.store.artifacts import Store

    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    rows = list(row_files.lines(place / "rows.jsonl"))

    def turn() -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=place) as home:
            store, begun = Store(Path(home)), time.perf_counter()
            examples = chat_encoding.encode(tokenizer, rows, max_length=Limit(tokens=2048, too_long="drop"))
            token_cache.keep(examples, store, record={})
            seconds = time.perf_counter() - begun
            store.close()
        return {"rate": len(rows) / seconds, "labels": sum(sum(example.labels) for example in examples)}

    return turn


def mapped(place: Path) -> Callable[[], dict[str, float]]:
    """As the libraries do it: `apply_chat_template` with the mask of the assistant's turns, mapped in batches."""
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    cache = str(place / "datasets")
    rows = load_dataset("json", data_files=str(place / "rows.jsonl"), split="train", cache_dir=cache)

    def tokenized(batch: Mapping[str, list[object]]) -> Mapping[str, list[list[int]]]:
        made: Mapping[str, list[list[int]]] = tokenizer.apply_chat_template(
            batch["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        return {"input_ids": made["input_ids"], "assistant_masks": made["assistant_masks"]}

    def turn() -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=place) as directory:
            begun = time.perf_counter()
            made = rows.map(
                tokenized,
                batched=True,
                batch_size=BATCH,
                remove_columns=["messages"],
                load_from_cache_file=False,
                cache_file_name=str(Path(directory, "tokens.arrow")),
            )
            seconds = time.perf_counter() - begun
            labels = sum(sum(mask) for mask in made["assistant_masks"])
        return {"rate": len(rows) / seconds, "labels": labels}

    return turn


CONTENDERS: Mapping[str, Callable[[Path], Callable[[], dict[str, float]]]] = {"ours": ours, "mapped": mapped}

if __name__ == "__main__":
    take_turns(CONTENDERS[sys.argv[1]](Path(sys.argv[2])))
