"""What the stages of a run are called where people see them, and what came of each in a few words.

A stage's parameters name rows by digest; whose rows they are is known from the results of the stages before.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from backprop_core.schema.gate_report import GateReport
from backprop_core.schema.refs import (
    AdapterRef,
    BackedOff,
    ByteScores,
    Curated,
    DatasetRef,
    Drift,
    Fidelity,
    Generations,
    GGUFRef,
    PackageRef,
    Perplexities,
    Ratings,
    RowsRef,
    Scores,
    Searched,
    Split,
    TrainResult,
)
from backprop_core.schema.score_text import level

NOT_TRAINED = {  # why good rows are not trained, in words
    "held_out": "held out to score",
    "watched": "watched",
    "held_out_elsewhere": "held out for another task",
    "set_aside": "held out, over the cap",
    "group_held_out": "of a group with held-out rows",
    "held_out_redacted": "held out, with or without redaction",
    "near_held_out": "close to held-out rows",
    "shares_words_with_held_out": "with words of held-out rows",
    "in_held_out_preference": "with an answer of a held-out preference",
    "learned": "learned before",
    "outside_window": "outside the window (rows, skip)",
}
OF = ("rows", "heldout", "heldouts", "generations")  # parameters that say whose rows a stage is about
PLAIN = ("task", "quantization", "outtype", "package", "metric")  # parameters that are words
ON_AN_ADAPTER = {"evaluate", "generate", "harness", "answer"}  # stages that try a model, adapted or not


class Labels:
    """Names of stages: `curate billing.jsonl`, `evaluate billing`, `evaluate billing, base`, `convert f16`."""

    def __init__(self, heldout: Mapping[str, RowsRef]) -> None:
        """`heldout`: rows whose task is known already, by task."""
        self._owners = {rows.digest: task for task, rows in heldout.items()}

    def name(self, stage: str, parameters: Mapping[str, Any]) -> str:
        """What one call of a stage is called."""
        untouched = stage in ON_AN_ADAPTER and parameters.get("adapter") is None
        words = [stage.replace("_", " "), self._about(stage, parameters)]
        return " ".join(filter(None, words)) + (", base" if untouched else "")

    def _about(self, stage: str, parameters: Mapping[str, Any]) -> str:
        if stage == "gate":
            return ""
        if stage == "curate":
            return str(parameters["spec"].path).rstrip("/").rpartition("/")[2]
        if stage == "split":
            tasks = {batch.task for batch in parameters["batches"]}
            return tasks.pop() if len(tasks) == 1 else ""
        plain = next((parameters[name] for name in PLAIN if isinstance(parameters.get(name), str)), None)
        if plain:
            return str(plain)
        gguf = parameters.get("gguf")
        return gguf.quantization if isinstance(gguf, GGUFRef) else self._owner(parameters)

    def _owner(self, parameters: Mapping[str, Any]) -> str:
        """The task whose rows a stage takes; nothing for rows of several."""
        found = {self._owners.get(ref.digest, "") for ref in refs(parameters.get(name) for name in OF)}
        return found.pop() if len(found) == 1 else ""

    def learn(self, parameters: Mapping[str, Any], result: BaseModel) -> None:
        """Keep whose rows a stage has made."""
        match result:
            case Split():
                self._owners |= {one.train.digest: one.task for one in result.datasets}
                self._owners |= {rows.digest: task for task, rows in result.heldout.items()}
            case RowsRef() | Generations():
                if owner := self._owner(parameters):
                    self._owners.setdefault(result.digest, owner)


def refs(values: Iterator[Any]) -> Iterator[RowsRef | Generations]:
    """The rows and answers among some parameters."""
    for value in values:
        if isinstance(value, RowsRef | Generations):
            yield value
        elif isinstance(value, list):
            yield from refs(iter(value))


def outcome(result: BaseModel) -> str:
    """What a stage made, in a few words; nothing where there is nothing to say."""
    match result:
        case Curated():
            apart = {"quarantined": result.quarantined.rows} if result.quarantined else {}
            noted = {f"noted by {step.step}": step.noted for step in result.steps if step.noted}
            return f"{result.rows.rows} rows{counted({**result.dropped, **apart, **noted})}"
        case Split():
            several = len(result.datasets) > 1
            said = [f"{one.task}: {divided(one)}" if several else divided(one) for one in result.datasets]
            return "; ".join(said) or f"{len(result.heldout)} sets of rows to score"
        case RowsRef() | Perplexities():
            return f"{result.rows} rows"
        case TrainResult():
            steps = result.kept.after(result.steps) if result.kept else f"{result.steps} steps"
            return f"{steps}, loss {result.train_loss:.4f}"
        case Scores():
            return f"token accuracy {100 * result.token_accuracy:.1f} %, loss {result.loss:.4f}, {result.rows} rows"
        case ByteScores():
            return f"{result.bits:.4f} bits per byte, {result.rows} rows"
        case Ratings():
            return f"{result.metric} {level(result.score, result.metric)}, {result.rows} rows"
        case Generations():
            return f"{result.rows} answers"
        case Searched():
            return f"lambda {result.weight:g}"
        case BackedOff():
            return f"{result.share:.0%} of the change taken"
        case Drift():
            return f"A moved {100 * result.a:.1f} %, B {100 * result.b:.1f} %"
        case GateReport():
            return f"{'accepted' if result.accepted else 'rejected'}: {result.reason}"
        case GGUFRef() | PackageRef():
            return f"{result.bytes / 1e6:.1f} MB"
        case Fidelity():
            return f"KL {result.kl:.2g} nats a token, ids {'equal' if result.ids_equal else 'differ'}"
        case AdapterRef():
            return f"{result.kind} adapter {result.digest[:12]}"
    return ""


def divided(dataset: DatasetRef) -> str:
    """How many rows of a dataset are trained, how many score, and why the others are not trained."""
    others = {NOT_TRAINED[reason]: count for reason, count in dataset.not_trained.items() if reason != "held_out"}
    judged = preferences(dataset.pairs, dataset.ratings)
    kinds = f" (of them {judged})" if judged else ""
    return f"{dataset.train.rows} rows to train{kinds}, {dataset.heldout.rows} held out{counted(others)}"


def preferences(pairs: int, ratings: int) -> str:
    """`40 pairs, 3 ratings`; nothing if there are none."""
    counts = {"pair": pairs, "rating": ratings}
    return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items() if count)


def counted(reasons: Mapping[str, int]) -> str:
    """`, 3 duplicate, 1 not json`; nothing where there is nothing to count."""
    return "".join(f", {count} {reason.replace('_', ' ')}" for reason, count in reasons.items())
