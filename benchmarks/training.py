"""Training speed against transformers Trainer and TRL: the same rows, model, LoRA, batches a step and steps."""

import tempfile
from functools import cache, partial
from pathlib import Path

from benchmarks import material
from benchmarks.measure import Contender, Row, contenders, medians

BEST = "training tokens per second, against the best of Trainer and TRL"
DEFAULTS = "training tokens per second, against their defaults"
ROWS = 96
ENGINES = ("ours", "Trainer, length-grouped", "TRL, length-grouped", "Trainer, defaults")
TOLERANCE = 0.05  # between any two losses, as a share of what training took off; a quarter fewer steps make 0.12
UNIT = "tokens/s"


def against_best() -> Row:
    """The better of the two libraries, each with its fastest settings."""
    speed = speeds()
    other = max(ENGINES[1:3], key=speed.__getitem__)
    return Row(BEST, speed["ours"], speed[other], other, UNIT, "more")


def against_defaults() -> Row:
    """Random batches of eight, each padded to its longest row."""
    speed = speeds()
    return Row(DEFAULTS, speed["ours"], speed[ENGINES[3]], ENGINES[3], UNIT, "more")


@cache
def speeds() -> dict[str, float]:
    """Real tokens a second, of training alone: padding, imports, loading and tokenizing are not counted."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        place = Path(name)
        base = material.tiny_llama(place / "base")
        data = material.write_rows(material.chats(ROWS), place / "chats.jsonl")
        specs = [("benchmarks.engines", engine, str(base), str(data)) for engine in ENGINES]
        with contenders(*specs) as processes:
            losses: dict[str, float] = {}
            turns = {
                engine: partial(speed_of, engine, process, losses)
                for engine, process in zip(ENGINES, processes, strict=True)
            }
            return medians(turns)


def speed_of(engine: str, process: Contender, losses: dict[str, float]) -> float:
    """One turn; raises AssertionError unless the engine did what the others did."""
    done = process.turn()
    losses[engine] = done["loss"]
    low, high = min(losses.values()), max(losses.values())
    assert high - low <= TOLERANCE * (done["loss_before"] - low), f"somebody trains less: {done}, {losses}"
    return done["tokens"] / done["seconds"]
