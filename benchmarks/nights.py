"""Unattended nights, measured: which gate releases how many versions, and how far the champion ever falls.

python -m benchmarks.nights [--suite one-task|three-tasks] [--arm NAME] [--nights N]

`one-task`: thirty nights of one task, which is the rows of all intents. `three-tasks`: twelve nights, three tasks by
turns. A night merges and replays as a new line does. In every seventh night the answers are shuffled among the rows, as
a broken export would. What was done is kept in --store and in nights.json: stopped, it goes on. A part of the held-out
rows is kept from every gate; the averages of the table are those of the champion on it.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import torch

from backprop_core.data import curation, row_sets
from backprop_core.data.loading import snapshot
from backprop_core.evaluation.back_off import back_off
from backprop_core.evaluation.gate import gate
from backprop_core.evaluation.scoring import evaluate
from backprop_core.merging.strategies import merge
from backprop_core.models import base as bases
from backprop_core.models.loading import load as load_base
from backprop_core.schema.records import Record
from backprop_core.schema.refs import AdapterRef, RowsRef, Scores, Start
from backprop_core.schema.specs import DatasetSpec, GateSpec, LoraSpec, MergeSpec, ModelSpec, TrainSpec
from backprop_core.store.artifacts import Store, write_atomic
from backprop_core.store.cache_keys import digest_of, part
from backprop_core.training.loop import train
from benchmarks.continual_base import pool_base

HERE = Path(__file__).parent
INTENTS, RESULTS = HERE / "intents", HERE / "nights.json"
SHUFFLED = 7  # every seventh night
LENGTH, METRIC = 128, "exact_match"
MERGE, REPLAY_ROWS = MergeSpec(merge_a=True), 50  # what a new line does
TRAINING = TrainSpec(
    epochs=5,
    batch_size=16,
    learning_rate=1e-3,
    max_length=LENGTH,
    precision="fp32",
    device="cpu",
    checkpoint_seconds=600,
    lora=LoraSpec(rank=8, alpha=16),
)
BETTER, NOT_WORSE = GateSpec(), GateSpec(question="not_worse", margin=0.05)
ARMS: dict[str, tuple[GateSpec | None, bool]] = {
    "better": (BETTER, False),
    "better, back-off": (BETTER, True),
    "not worse": (NOT_WORSE, False),
    "not worse, back-off": (NOT_WORSE, True),
    "no gate": (None, False),
}


class Suite(Record):
    """Rows of each night, in order; of each task the rows for the gate, and those that no gate sees."""

    nights: list[tuple[str, RowsRef]]
    gated: dict[str, RowsRef]
    kept: dict[str, RowsRef]


class Champion(Record):
    merged: AdapterRef
    tuned: AdapterRef
    count: int


class Night(Record):
    """One night: whether it gave a new version, and the champion's averages after it."""

    task: str
    shuffled: bool
    accepted: bool
    taken: float | None
    reason: str
    gated: float
    kept: float


class State(Record):
    """What an arm has done so far."""

    champion: Champion | None = None
    nights: tuple[Night, ...] = ()

    @property
    def live(self) -> AdapterRef | None:
        return self.champion.merged if self.champion else None


def main() -> None:
    """Go through all nights that are not done, arm by arm."""
    asked = arguments(sys.argv[1:])
    store = Store(asked.store)
    bench = Bench(store, pool_base(INTENTS, store), RESULTS)
    for name in asked.suite:
        suite = SUITES[name](bench.store)
        for arm in asked.arm:
            bench.run(name, suite, arm, asked.nights)
    print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nights", description="Measure unattended nights.")
    parser.add_argument("--store", type=Path, default=HERE / ".nights", metavar="DIR", help="what was trained")
    parser.add_argument("--suite", nargs="+", choices=list(SUITES), default=list(SUITES))
    parser.add_argument("--arm", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--nights", type=int, help="the first N alone")
    return parser.parse_args(words)


class Bench:
    """The core's functions on one base; the figures go to the file `results`."""

    def __init__(self, store: Store, base: Path, results: Path) -> None:
        torch.set_num_threads(1)
        self.store, self.results = store, results
        ref = bases.resolve(ModelSpec(name=str(base)), store)
        self.base = load_base(bases.local(ref, store), precision="fp32", device="cpu")

    def run(self, name: str, suite: Suite, arm: str, most: int | None) -> None:
        """All nights of an arm that are left."""
        place = self.store.layout.cache / "nights" / f"{digest_of([name, arm, part(TRAINING), REPLAY_ROWS])}.json"
        state = State.model_validate_json(place.read_bytes()) if place.is_file() else State()
        for number in range(len(state.nights), len(suite.nights[:most])):
            state = self.night(suite, arm, number, state)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(place, state.model_dump_json())
            self.keep(name, arm, state.nights)
            print(f"{name}, {arm}: {number + 1} of {len(suite.nights)}", file=sys.stderr, flush=True)

    def keep(self, suite: str, arm: str, nights: Sequence[Night]) -> None:
        """The figures of an arm, in the file."""
        known = json.loads(self.results.read_text(encoding="utf-8")) if self.results.is_file() else {}
        known.setdefault(suite, {})[arm] = [night.model_dump(mode="json") for night in nights]
        write_atomic(self.results, json.dumps(known, indent=1) + "\n")

    def night(self, suite: Suite, arm: str, number: int, state: State) -> State:
        """Train, merge, back off, gate."""
        task, rows = suite.nights[number]
        spec, backs_off = ARMS[arm]
        live, seen = state.champion, list(dict.fromkeys(each for each, _ in suite.nights[: number + 1]))
        parts = {each: self.parts(suite.gated[each], backs_off) for each in seen}
        tuned = self.train(self.with_replay(rows, learned(suite, state), suite), live, number)
        count = live.count + 1 if live else 1
        made, taken = merge(state.live, tuned, count=count, spec=MERGE, store=self.store), None
        if live and backs_off:
            likes = [choosing for choosing, _ in parts.values()]
            found = back_off(
                self.base, live.merged, made, heldout=likes, metric=METRIC, max_length=LENGTH, store=self.store
            )
            made, taken = found.adapter, found.share
        scored = {each: rows for each, (_, rows) in parts.items()}
        rivals = self.scores(state.live, scored) if live else None
        cells, untouched = self.scores(made, scored), self.scores(None, scored)
        accepted, reason = True, ""
        if spec:
            report = gate(cells, rivals, untouched, watch=[], metric=METRIC, spec=spec, store=self.store)
            accepted, reason = report.accepted, report.reason
        after = Champion(merged=made, tuned=tuned, count=count) if accepted else live
        adapter = after.merged if after else None
        done = Night(
            task=task,
            shuffled=is_shuffled(number),
            accepted=accepted,
            taken=taken,
            reason=reason,
            gated=average(self.scores(adapter, scored)),
            kept=average(self.scores(adapter, suite.kept)),
        )
        return State(champion=after, nights=(*state.nights, done))

    def parts(self, rows: RowsRef, backs_off: bool) -> tuple[RowsRef, RowsRef]:
        """The rows to choose by, and those that score."""
        if not backs_off:
            return rows, rows
        choosing, scoring = (row_sets.apart(rows, to_choose_by=side, store=self.store) for side in (True, False))
        return choosing, scoring

    def with_replay(self, rows: RowsRef, learned: list[list[RowsRef]], suite: Suite) -> RowsRef:
        """The night's rows and some of each task that the champion has learned."""
        if not learned:
            return rows
        heldout = [*suite.gated.values(), *suite.kept.values()]
        passes = math.ceil(TRAINING.epochs)
        return row_sets.replay_by_task(
            rows, learned, heldout=heldout, share=0, least=REPLAY_ROWS, passes=passes, seed=0, store=self.store
        )

    def train(self, rows: RowsRef, live: Champion | None, number: int) -> AdapterRef:
        start = Start(tuned=live.tuned, orthonormal=MERGE.orthonormal_start) if live else None
        made = train(
            self.base,
            rows,
            spec=TRAINING,
            start=start,
            key=digest_of([rows.digest, live and live.tuned.digest, number]),
            store=self.store,
            on_metrics=lambda *_: None,
            should_stop=lambda: False,
        )
        return made.adapter

    def scores(self, adapter: AdapterRef | None, rows: dict[str, RowsRef]) -> dict[str, Scores]:
        return {
            task: evaluate(self.base, adapter, one, max_length=LENGTH, store=self.store) for task, one in rows.items()
        }


def learned(suite: Suite, state: State) -> list[list[RowsRef]]:
    """The rows of the accepted nights so far, those of a task together."""
    tasks: dict[str, list[RowsRef]] = {}
    for (task, rows), night in zip(suite.nights, state.nights, strict=False):
        if night.accepted:
            tasks.setdefault(task, []).append(rows)
    return list(tasks.values())


def average(scores: dict[str, Scores]) -> float:
    return sum(score.exact_match for score in scores.values()) / len(scores)


def is_shuffled(number: int) -> bool:
    return (number + 1) % SHUFFLED == 0


def one_task(store: Store) -> Suite:
    """Thirty nights of about fifty rows; 200 held-out rows for the gate, 400 that it does not see."""
    rows, held = (shuffled(lines(INTENTS.glob(f"*.{kind}.jsonl")), 0) for kind in ("train", "test"))
    return suite({"intents": rows}, {"intents": held}, nights=30, gated=200, store=store)


def three_tasks(store: Store) -> Suite:
    """Twelve nights of about eighty rows; of each task 80 held-out rows for the gate, 40 that it does not see."""
    names = ["banking", "kitchen_and_dining", "utility"]
    rows, held = (
        {name: shuffled(lines([INTENTS / f"{name}.{kind}.jsonl"]), 0) for name in names} for kind in ("train", "test")
    )
    return suite(rows, held, nights=12, gated=80, store=store)


SUITES: dict[str, Callable[[Store], Suite]] = {"one-task": one_task, "three-tasks": three_tasks}


def suite(rows: dict[str, list[str]], held: dict[str, list[str]], *, nights: int, gated: int, store: Store) -> Suite:
    """The tasks by turns, each night with the next rows of its task."""
    tasks = list(rows)
    each = nights // len(tasks)
    made = []
    for number in range(nights):
        task, turn = tasks[number % len(tasks)], number // len(tasks)
        these = rows[task][turn * len(rows[task]) // each : (turn + 1) * len(rows[task]) // each]
        made.append((task, commit(wrong(these, number) if is_shuffled(number) else these, store)))
    return Suite(
        nights=made,
        gated={task: commit(one[:gated], store) for task, one in held.items()},
        kept={task: commit(one[gated:], store) for task, one in held.items()},
    )


def lines(files: Iterable[Path]) -> list[str]:
    return [line for file in sorted(files) for line in file.read_text(encoding="utf-8").splitlines()]


def shuffled(rows: list[str], seed: int) -> list[str]:
    return random.Random(seed).sample(rows, len(rows))


def wrong(rows: list[str], seed: int) -> list[str]:
    """The rows with each other's answers."""
    chats = [json.loads(row)["messages"] for row in rows]
    answers = random.Random(seed).sample([chat[-1] for chat in chats], len(chats))
    return [json.dumps({"messages": [*chat[:-1], answer]}) for chat, answer in zip(chats, answers, strict=True)]


def commit(rows: list[str], store: Store) -> RowsRef:
    file = store.scratch("nights") / "rows.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    return curation.curate(snapshot(str(file), scratch=file.parent), DatasetSpec(path=str(file)), store=store).rows


def table(known: dict[str, dict[str, list[dict[str, object]]]]) -> str:
    """The table of docs/gate.md."""
    head = (
        "| Nights | Gate | Versions | Of shuffled nights | Champion, first → last | Largest fall | Below its best |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    )
    return "\n".join(
        [*head, *(line(suite, arm, nights) for suite, arms in known.items() for arm, nights in arms.items())]
    )


def line(suite: str, arm: str, nights: list[dict[str, object]]) -> str:
    made = [Night.model_validate(night) for night in nights]
    bad = [night for night in made if night.shuffled]
    kept = [night.kept for night in made]
    fall = min([after - before for before, after in pairwise(kept)], default=0.0)
    below = min(now - best for now, best in zip(kept, accumulate(kept, max), strict=True))
    shares = [night.taken for night in made if night.taken is not None and night.accepted]
    taken = f" ({sum(share < 1 for share in shares)} in part)" if shares else ""
    return (
        f"| {len(made)}, {suite} | {arm} | {sum(night.accepted for night in made)}{taken} "
        f"| {sum(night.accepted for night in bad)} of {len(bad)} | {100 * kept[0]:.1f} → {100 * kept[-1]:.1f} "
        f"| {points(fall)} | {points(below)} |"
    )


def points(change: float) -> str:
    return f"{100 * change:+.1f}" if change else "0.0"


if __name__ == "__main__":
    main()
