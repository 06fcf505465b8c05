"""Training against transformers Trainer and TRL: the same rows, model, LoRA, batches a step and steps."""

import statistics
import tempfile
from functools import cache, partial
from pathlib import Path

from backprop_core.store.artifacts import Store
from benchmarks import material
from benchmarks.measure import REPEATS, Contender, Row, contenders, medians, threads
from benchmarks.smollm2 import smollm2

BEST = "training tokens per second, against the best of Trainer and TRL"
DEFAULTS = "training tokens per second, against their defaults"
TWO_THREADS = ", two threads"
MEMORY = "peak memory of a training, against the leaner of Trainer and TRL"
REAL = "training tokens per second of SmolLM2-135M, against the best of Trainer and TRL, two threads"
REAL_MEMORY = "peak memory of a training of SmolLM2-135M, against the leaner of Trainer and TRL"
ROWS, REAL_ROWS = 96, 32
WORDS = 4.5  # letters of a token of SmolLM2, about
OURS, TRAINER, TRL, PLAIN = ENGINES = ("ours", "Trainer, length-grouped", "TRL, length-grouped", "Trainer, defaults")
TOLERANCE = 0.05  # between any two losses, as a share of what training took off; a quarter fewer steps make 0.12
REAL_TOLERANCE = 0.5  # of four steps: those of the others begin with the longest rows
UNIT = "tokens/s"


def against_best(count: int = 1) -> Row:
    """The better of the two libraries, each with its fastest settings."""
    speed = speeds(count)
    other = max((TRAINER, TRL), key=speed.__getitem__)
    return Row(BEST + TWO_THREADS * (count == 2), speed[OURS], speed[other], other, UNIT, "more")


def against_defaults(count: int = 1) -> Row:
    """Random batches of eight, each padded to its longest row."""
    speed = speeds(count)
    return Row(DEFAULTS + TWO_THREADS * (count == 2), speed[OURS], speed[PLAIN], PLAIN, UNIT, "more")


def peak_memory() -> Row:
    """Resident memory at the end of the first training of a process, imports included: a process a turn."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        known = specs(Path(name))
        turns = [{engine: peak_of(known[engine]) for engine in (OURS, TRAINER, TRL)} for _ in range(REPEATS)]
    return leaner(MEMORY, {engine: statistics.median(turn[engine] for turn in turns) for engine in turns[0]})


def leaner(name: str, peaks: dict[str, float]) -> Row:
    other = min((TRAINER, TRL), key=peaks.__getitem__)
    return Row(name, peaks[OURS], peaks[other], other, "bytes", "less")


def real_speed() -> Row:
    speed = {engine: figures["speed"] for engine, figures in real().items()}
    other = max((TRAINER, TRL), key=speed.__getitem__)
    return Row(REAL, speed[OURS], speed[other], other, UNIT, "more")


def real_memory() -> Row:
    return leaner(REAL_MEMORY, {engine: figures["peak"] for engine, figures in real().items()})


@cache
def real() -> dict[str, dict[str, float]]:
    """Tokens a second and peak bytes of each engine on a real model: a process a turn, as memory holds one only."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        base = smollm2(Store(Path(name) / "store"))
        (base / "chat_template.jinja").write_text(material.CHATML)  # marks the assistant's turns, as TRL wants it
        data = material.write_rows(material.chats(REAL_ROWS, letters=WORDS), Path(name) / "chats.jsonl")
        turns: list[dict[str, dict[str, float]]] = []
        for _ in range(REPEATS):
            losses: dict[str, float] = {}
            turns.append({engine: real_turn(engine, base, data, losses) for engine in (OURS, TRAINER, TRL)})
    return {
        engine: {what: statistics.median(turn[engine][what] for turn in turns) for what in ("speed", "peak")}
        for engine in turns[0]
    }


def real_turn(engine: str, base: Path, data: Path, losses: dict[str, float]) -> dict[str, float]:
    with contenders(("benchmarks.engines", engine, str(base), str(data)), **threads(2)) as [process]:
        done = checked(engine, process, losses, REAL_TOLERANCE)
        return {"speed": done["tokens"] / done["seconds"], "peak": done["peak"]}


def peak_of(spec: tuple[str, ...]) -> float:
    with contenders(spec) as [process]:
        return process.turn()["peak"]


def specs(place: Path) -> dict[str, tuple[str, ...]]:
    """The contenders by engine, on one base and the same rows."""
    base = material.tiny_llama(place / "base")
    data = material.write_rows(material.chats(ROWS), place / "chats.jsonl")
    return {engine: ("benchmarks.engines", engine, str(base), str(data)) for engine in ENGINES}


@cache
def speeds(count: int) -> dict[str, float]:
    """Real tokens a second, of training alone: padding, imports, loading and tokenizing are not counted."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        known = specs(Path(name))
        with contenders(*known.values(), **threads(count)) as processes:
            losses: dict[str, float] = {}
            pairs = zip(known, processes, strict=True)
            return medians({engine: partial(speed_of, engine, process, losses) for engine, process in pairs})


def speed_of(engine: str, process: Contender, losses: dict[str, float]) -> float:
    """Tokens a second of one turn."""
    done = checked(engine, process, losses, TOLERANCE)
    return done["tokens"] / done["seconds"]


def checked(engine: str, process: Contender, losses: dict[str, float], tolerance: float) -> dict[str, float]:
    """One turn; raises AssertionError unless the engine did what the others did."""
    done = process.turn()
    losses[engine] = done["loss"]
    low, high = min(losses.values()), max(losses.values())
    assert high - low <= tolerance * (done["loss_before"] - low), f"one contender trains less: {done}, {losses}"
    return done
