"""Curation of short rows: near duplicates against a datasketch loop, all of it against the same with pandas.

`python -m benchmarks.curation near|datasketch|ours|pandas FILE DIRECTORY` is one contender.
"""

import hashlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from backprop_core.runtime import process_memory
from benchmarks.measure import Contender, Row, contenders, medians, take_turns

NEAR = "near-duplicates, against a datasketch loop"
SECONDS = "seconds to curate {:,} rows, against pandas"
MEMORY = "peak memory of curating {:,} rows, against pandas"
MANY, MORE = 100_000, 1_000_000
NEAR_MANY = "near-duplicates of {:,} rows, against a datasketch loop on {:,}"
NEAR_ROWS = 20_000
CHECKED = 3_000  # rows of which every pair is compared
RECALL, NEARLY = 0.95, 0.1  # least share of close pairs that lose a row; how far below the threshold none is dropped
THRESHOLD = 0.8
SAME = 1.02  # rows that one contender may leave, by those that another leaves
WORDS = [f"word{number}" for number in range(40)]


def write(count: int, path: Path) -> Path:
    """Chats of about 26 words; one in twenty repeats the one before, one in twenty with one word changed."""
    drawn, last = random.Random(0), ["", ""]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            if number % 20 == 1:
                last = [last[0], " ".join([*last[1].split()[:-1], drawn.choice(WORDS)])]
            elif number % 20:
                last = [" ".join(drawn.choices(WORDS, k=size)) for size in (12, 14)]
            turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), last, strict=True)]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def near_duplicates() -> Row:
    """Rows a second through exact and near deduplication, from a file."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        file = write(NEAR_ROWS, Path(name, "rows.jsonl"))
        jobs = [("benchmarks.curation", contender, str(file), name) for contender in ("near", "datasketch")]
        with contenders(*jobs) as [ours, other]:
            left: list[float] = []
            rates = medians({"ours": partial(rate, ours, left), "other": partial(rate, other, left)})
    return Row(NEAR, rates["ours"], rates["other"], "MinHashLSH of datasketch, row by row", "rows/s", "more")


def many_near_duplicates(count: int = MORE) -> Row:
    """Rows a second of one pass over many rows; the loop's on the first of them, as it slows down with their number."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        file = write(count, Path(name, "rows.jsonl"))
        part = write(min(count, NEAR_ROWS), Path(name, "part.jsonl"))
        check(write(CHECKED, Path(name, "checked.jsonl")), Path(name))
        rates = []
        for contender, rows in (("near", file), ("datasketch", part)):
            with contenders(("benchmarks.curation", contender, str(rows), name)) as [one]:
                rates.append(one.turn()["rate"])
    title = NEAR_MANY.format(count, NEAR_ROWS)
    return Row(title, *rates, "MinHashLSH of datasketch, row by row", "rows/s", "more", 1)


def check(file: Path, place: Path) -> None:
    """Raise unless close pairs, found by comparing every pair, lose a row, and no other row is dropped."""
    texts = list(dict.fromkeys("\n".join(turn["content"] for turn in row["messages"]) for row in lines(file)))
    sets = [{*zip(said, said[1:], said[2:], strict=False)} for said in (text.split() for text in texts)]
    pairs = [(a, b) for a in range(len(sets)) for b in range(a) if similarity(sets[a], sets[b]) >= THRESHOLD]
    dropped = near_of(texts, place)
    found = sum(a in dropped or b in dropped for a, b in pairs) / len(pairs)
    least = min(similarity(sets[row], sets[kept]) for row, kept in dropped.items())
    assert found >= RECALL and least >= THRESHOLD - NEARLY, f"recall {found:.3f}, least similarity {least:.3f}"
    print(f"recall {found:.4f} of {len(pairs)} pairs, least similarity of a dropped row {least:.3f}", file=sys.stderr)


def similarity(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    """The Jaccard similarity of two sets of words in a row."""
    return len(one & other) / max(1, len(one | other))


def near_of(texts: list[str], place: Path) -> dict[int, int]:
    """The rows that ours drops, each with the one that is kept for it."""
    from backprop_core.data.steps.near_duplicates import NearDuplicates

    with tempfile.TemporaryDirectory(dir=place) as scratch:
        near = NearDuplicates(Path(scratch), THRESHOLD)
        near.add(texts)
        return {row: kept for row, kept, _ in near.found()}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def rate(contender: Contender, left: list[float]) -> float:
    """Rows a second of a turn; raises unless all turns so far left about as many rows."""
    done = contender.turn()
    left.append(done["left"])
    assert max(left) <= SAME * min(left), f"rows left by turn: {left}"
    return done["rate"]


@cache
def measured(count: int, repeats: int) -> dict[str, list[dict[str, float]]]:
    """What new processes took for these rows, each with one turn."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        file = write(count, Path(name, "rows.jsonl"))
        found: dict[str, list[dict[str, float]]] = {"ours": [], "pandas": []}
        for _ in range(repeats):
            for contender, figures in found.items():
                with contenders(("benchmarks.curation", contender, str(file), name)) as [one]:
                    figures.append(one.turn())
    return found


def curate(count: int, figure: str, repeats: int) -> Row:
    """Seconds or peak memory; both rows of one count are measured together."""
    ours, other = (statistics.median(one[figure] for one in turns) for turns in measured(count, repeats).values())
    title, unit = (SECONDS, "s") if figure == "seconds" else (MEMORY, "bytes")
    plain = "read_json, drop_duplicates, sort by hash, to_json"
    return Row(title.format(count), ours, other, plain, unit, "less", repeats)


ROWS: dict[str, Callable[[], Row]] = {
    NEAR: near_duplicates,
    NEAR_MANY.format(MORE, NEAR_ROWS): many_near_duplicates,
    **{SECONDS.format(count): partial(curate, count, "seconds", n) for count, n in ((MANY, 3), (MORE, 1))},
    **{MEMORY.format(count): partial(curate, count, "peak", n) for count, n in ((MANY, 3), (MORE, 1))},
}


def near(file: Path, place: Path) -> dict[str, float]:
    """Ours: exact duplicates by identity, then the step `near_duplicates`."""
    import numpy as np

    from backprop_core.data.row_files import indexed
    from backprop_core.data.row_index import distinct
    from backprop_core.data.steps.near_duplicates import step

    with tempfile.TemporaryDirectory(dir=place) as scratch:
        begun = time.perf_counter()
        every = indexed(file)
        rows = every.take(distinct(every))
        dropped = sum(1 for _ in step(THRESHOLD, "conversation")(rows, np.arange(len(rows)), Path(scratch)))
        return {"rate": len(every) / (time.perf_counter() - begun), "left": len(rows) - dropped}


def datasketch(file: Path, place: Path) -> dict[str, float]:
    """The loop of datasketch's documentation."""
    from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]

    begun, seen, left, count = time.perf_counter(), set[str](), 0, 0
    index = MinHashLSH(threshold=THRESHOLD, num_perm=128)
    with file.open(encoding="utf-8") as lines:
        for count, line in enumerate(lines, 1):
            text = "\n".join(turn["content"] for turn in json.loads(line)["messages"])
            if text in seen:
                continue
            seen.add(text)
            said, sketch = text.lower().split(), MinHash(num_perm=128)
            sketch.update_batch([" ".join(three).encode() for three in zip(said, said[1:], said[2:], strict=False)])
            if not index.query(sketch):
                index.insert(count, sketch)
                left += 1
    return {"rate": count / (time.perf_counter() - begun), "left": left}


def ours(file: Path, place: Path) -> dict[str, float]:
    """The stage `curate`: checked, deduplicated, sorted by hash, committed with the outcome of every row."""
    from backprop_core.data import curation
    from backprop_core.data.loading import snapshot
    from backprop_core.schema.specs import DatasetSpec
    from backprop_core.store.artifacts import Store

    with tempfile.TemporaryDirectory(dir=place) as home:
        store, begun = Store(Path(home)), time.perf_counter()
        curation.curate(snapshot(str(file), scratch=Path(home)), DatasetSpec(path=str(file)), store=store)
        seconds = time.perf_counter() - begun
        store.close()
        return {"seconds": seconds, "peak": process_memory.peak()}


def pandas(file: Path, place: Path) -> dict[str, float]:
    """The same rows in the same order, by a table in memory; nothing is checked."""
    import pandas as pd

    begun = time.perf_counter()
    table = pd.read_json(file, lines=True)
    table["key"] = table["messages"].map(lambda turns: hashlib.sha256(json.dumps(turns).encode()).hexdigest())
    table.drop_duplicates("key").sort_values("key")[["messages"]].to_json(
        place / "table.jsonl", orient="records", lines=True
    )
    return {"seconds": time.perf_counter() - begun, "peak": process_memory.peak()}


CONTENDERS: Mapping[str, Callable[[Path, Path], dict[str, float]]] = {
    one.__name__: one for one in (near, datasketch, ours, pandas)
}

if __name__ == "__main__":
    take_turns(partial(CONTENDERS[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3])))
