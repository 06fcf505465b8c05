"""Pruning: what is kept is whole afterwards, whatever happens meanwhile; the rest is gone and has a tombstone."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from backprop_core.errors import ArtifactMissing, OllamaUnreachable, RunActive
from backprop_core.lines.prune import Pruned, prune, sizes, tag_remover
from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.publishing.release_transaction import Release, Services, release, released
from backprop_core.schema.refs import AdapterRef, GGUFRef, RowsRef
from backprop_core.schema.specs import ExportSpec, PublishSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.leases import Lease, leased
from backprop_core.store.pins import pin, unpin
from tests.backprop_core.lines.test_versions import version

LINE, SIZE = "support", 20_000
NOBODY = Services(None, None, None)  # type: ignore[arg-type]  # a line that is published nowhere asks nobody


def looked_at(store: Store, run_id: str, made: LineVersion, status: str | None) -> None:
    """A drift run over a version, its lease left over unless it has finished."""
    folder = store.layout.run(run_id).root
    folder.mkdir(parents=True)
    asked = {"flow": "drift", "spec": {"line": LINE}, "live": {"version": made.model_dump(mode="json")}}
    (folder / "spec.json").write_text(json.dumps(asked))
    if status:
        (folder / "result.json").write_text(json.dumps({"status": status}))
    lease = Lease(run_id, store)
    lease.add(made.merged.digest)
    lease.end(finished=status == "unchanged")


def artifact(store: Store, text: str, ref: type[Any] = AdapterRef, **fields: Any) -> Any:
    with store.begin("test") as directory:
        (directory / "file").write_text(text.ljust(SIZE))
        return store.commit(directory, ref, record={}, **fields)


def night(store: Store, number: int) -> LineVersion:
    """One retrain: a finished run with its own rows, adapters and an f16 file that only quantizing needed."""
    tuned = artifact(store, f"tuned {number}", kind="tuned")
    made: LineVersion = version(number).model_copy(
        update={
            "tuned": tuned,
            "merged": artifact(store, f"merged {number}", kind="merged"),
            "heldout": {"t": artifact(store, "held-out", RowsRef, rows=1)},
            "scores": {},
            "parent": number - 1 or None,
        }
    )
    f16 = artifact(store, f"f16 {number}", GGUFRef, quantization="f16", bytes=1)
    ended(store, made.run_id, flow="retrain", stages=[f16.digest, tuned.digest])
    return made


def ended(store: Store, run_id: str, *, flow: str, stages: list[str], status: str = "finished") -> None:
    folder = store.layout.run(run_id).root
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps({"flow": flow, "spec": {"line": LINE}}))
    (folder / "result.json").write_text(json.dumps({"status": status, "stages": stages}))


def lived(store: Store, number: int) -> list[str]:
    """A night, and its version live with a GGUF file; digests of all that belongs to the version."""
    made = night(store, number)
    Lines(store).append(LINE, made, after=number - 1)
    gguf = artifact(store, f"gguf {number}", GGUFRef, quantization="q4_k_m", bytes=1)
    wanted = Release(line=LINE, number=number, publish=PublishSpec(), export=ExportSpec(), gguf=[gguf])
    release(wanted, store=store, services=NOBODY)
    went_out = wanted.model_copy(update={"publish": PublishSpec(ollama="support")})
    path = store.layout.line(LINE).release(number)
    path.parent.mkdir(exist_ok=True)
    path.write_text(went_out.model_dump_json())
    return [made.tuned.digest, made.merged.digest, made.heldout["t"].digest, gguf.digest]


class World(NamedTuple):
    store: Store
    versions: dict[int, list[str]]
    unfinished: list[str]
    candidate: str
    tags: list[str]

    def prune(self, **options: Any) -> Pruned:
        return prune(self.store, remove_tag=tag_remover(self.store, self.tags.remove), **options)

    def holds(self, digests: list[str]) -> bool:
        for digest in digests:
            self.store.verify(digest)
        return True

    def there(self) -> set[str]:
        return {path.name for path in self.store.root.glob("artifacts/*")}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Six nights, an interrupted run with a checkpoint, a candidate that nobody promoted, a stale checkpoint."""
    store = Store(tmp_path / "store")
    versions = {number: lived(store, number) for number in range(1, 7)}
    mine = artifact(store, "of an unfinished run", kind="tuned").digest
    lease = Lease("d" * 32, store)
    for name in (mine, "e" * 64):
        lease.add(name)
    lease.end(finished=False)
    candidate = artifact(store, "candidate", kind="merged").digest
    ended(store, "c" * 32, flow="multi-run", stages=[candidate])
    for key in ("e" * 64, "f" * 64):
        store.layout.checkpoints(key).mkdir(parents=True)
        (store.layout.checkpoints(key) / "weights").write_text("x" * 1000)
    for folder in ("keys", "results"):
        (store.layout.cache / folder).mkdir(parents=True)
        for name, digest in {"old": versions[1][0], "new": versions[6][0]}.items():
            (store.layout.cache / folder / name).write_text(json.dumps({"digest": digest}))
    yield World(store, versions, [mine], candidate, [f"support:v{number}" for number in range(1, 7)])
    store.close()


def test_what_is_kept_and_what_goes(world: World) -> None:
    """The newest two, the champion and the one before it, and the unfinished run stay, to the last byte and no more."""
    Lines(world.store).set_champion(LINE, 4)
    kept = {digest for number in (3, 4, 5, 6) for digest in world.versions[number]}
    done = world.prune(keep=2)
    assert world.there() == kept | set(world.unfinished) and world.holds(sorted(world.there()))
    assert done.versions == {LINE: [1, 2]} and world.tags == [f"support:v{number}" for number in (3, 4, 5, 6)]
    assert [path.name for path in world.store.root.glob("checkpoints/*")] == ["e" * 64]
    assert [path.name for path in world.store.layout.cache.glob("*/*")] == ["new", "new"]
    with pytest.raises(ArtifactMissing) as caught:
        world.store.verify(world.versions[1][0])
    assert "pruned" in caught.value.hint
    assert Lines(world.store).versions(LINE) == [1, 2, 3, 4, 5, 6]  # what they were is still told
    assert world.prune(keep=2).artifacts == 0


def test_a_dry_run_changes_nothing(world: World) -> None:
    """It says what the real one then does."""
    before = world.there()
    said = world.prune(keep=2, dry_run=True)
    assert world.there() == before and len(world.tags) == 6
    assert world.prune(keep=2) == said and said.artifacts == len(before) - len(world.there())


def test_a_limit_keeps_fewer_versions(world: World) -> None:
    """As few as it takes; the champion and the one before it whatever the limit."""
    roomy = world.prune(max_bytes=18 * SIZE, keep=6, dry_run=True)
    assert roomy.left <= 18 * SIZE and roomy.versions != {}
    tight = world.prune(max_bytes=1)
    assert tight.versions == {LINE: [1, 2, 3, 4]} and tight.left > 1
    assert world.holds([*world.versions[5], *world.versions[6]])


def test_nothing_goes_while_a_run_lives(world: World) -> None:
    """A run that goes on holds what it has not told anybody of yet."""
    lease = Lease("a" * 32, world.store)
    with pytest.raises(RunActive, match="a" * 32):
        world.prune()
    lease.end(finished=True)
    assert leased(world.store).keys() == {"d" * 32} and world.prune().artifacts


def test_after_a_release_only_the_line_is_tidied(world: World) -> None:
    """What other runs have made stays, what only the line's runs have left behind goes, intermediate files too."""
    world.prune(line=LINE, keep=3)
    kept = {digest for number in (4, 5, 6) for digest in world.versions[number]}
    assert world.candidate in world.there()
    assert world.there() >= kept and not world.there() & set(world.versions[1][:2])
    assert not [path for path in world.store.root.glob("artifacts/*/file") if path.read_text().startswith("f16")]


@pytest.mark.parametrize(
    ("line", "status"), [(LINE, "unchanged"), (LINE, "failed"), (None, "interrupted"), (None, None)]
)
def test_what_drift_looked_at_can_go(world: World, line: str | None, status: str | None) -> None:
    """However a drift run has ended, the champion that it tried is not kept for it, nor is anything for its lease."""
    looked_at(world.store, "b" * 32, Lines(world.store).version(LINE, 1), status)
    world.prune(line=line, keep=2)
    assert not world.there() & set(world.versions[1][:2])
    assert world.there() >= {*world.versions[5], *world.versions[6], *world.unfinished}


def test_notes_of_tries_go_with_the_end_of_their_runs(world: World) -> None:
    """A flow run's note stays while its run may be gone on with, or be found dead; not when that is over."""
    notes = world.store.root / "flow-runs"
    notes.mkdir()
    states = {"finished": "1", "unchanged": "2", "failed": "3", "interrupted": "4"}
    for status, digit in states.items():
        ended(world.store, digit * 32, flow="drift", stages=[], status=status)
        (notes / status).write_text(digit * 32)
    (world.store.layout.run("4" * 32).result).unlink()
    (notes / "interrupted").rename(notes / "killed")
    (notes / "gone").write_text("9" * 32)
    world.prune(dry_run=True)
    assert len(list(notes.iterdir())) == 5
    world.prune()
    assert {path.name for path in notes.iterdir()} == {"failed", "killed"}


def test_a_tag_that_cannot_go_is_tried_again(world: World) -> None:
    """Ollama away: the files go, the tag is remembered, and the next prune removes it."""

    def away(_: str) -> None:
        raise OllamaUnreachable("away", hint="")

    prune(world.store, keep=2, remove_tag=tag_remover(world.store, away))
    assert len(world.tags) == 6
    world.prune(keep=2)
    assert world.tags == ["support:v5", "support:v6"]


def age(store: Store, run_id: str, days: float) -> None:
    """Let a run have ended so many days ago."""
    then = time.time() - days * 86400
    os.utime(store.layout.run(run_id).result, (then, then))


def test_recent_results_stay(world: World) -> None:
    """What `train` and `multi-run` made stays for the days that are asked for, and goes afterwards."""
    world.prune(keep=2, keep_days=30)
    assert world.candidate in world.there() and not world.there() & set(world.versions[1][:2])
    age(world.store, "c" * 32, 29)
    world.prune(keep=2, keep_days=30)
    assert world.candidate in world.there()
    age(world.store, "c" * 32, 31)
    world.prune(keep=2, keep_days=30)
    assert world.candidate not in world.there()


def test_a_rejected_candidate_stays_as_long(world: World) -> None:
    """A retrain that made no version is a result like any other; one that made a version goes by `keep`."""
    rejected = artifact(world.store, "rejected", kind="merged").digest
    ended(world.store, "a" * 32, flow="retrain", stages=[rejected], status="rejected")
    world.prune(keep=2, keep_days=30)
    assert rejected in world.there() and not world.there() & set(world.versions[1][:2])


def test_after_a_release_age_keeps_nothing(world: World) -> None:
    """What a line keeps after a release is `publish.keep` versions, so rejected nights do not pile up for a month."""
    rejected = artifact(world.store, "rejected", kind="merged").digest
    ended(world.store, "a" * 32, flow="retrain", stages=[rejected], status="rejected")
    world.prune(line=LINE, keep=3, keep_days=30)
    assert rejected not in world.there() and world.candidate in world.there()


def test_what_is_pinned_stays(world: World) -> None:
    """Whatever its age, by any prune, until it is kept no longer."""
    pin("support@1", world.versions[1], world.store)
    pin("c" * 32, [world.candidate], world.store)
    world.prune(keep=2)
    world.prune(line=LINE, keep=2)
    assert world.holds([*world.versions[1], world.candidate])
    assert unpin("c" * 32, world.store) and not unpin("c" * 32, world.store)
    world.prune(keep=2)
    assert world.candidate not in world.there() and world.holds(world.versions[1])


def test_a_pinned_version_stays_with_its_tag(world: World) -> None:
    """Pinned by its number or by its run, it keeps its files, its tag and its record, and is not listed."""
    lines = Lines(world.store)
    pin("support@1", world.versions[1], world.store)
    pin(lines.version(LINE, 2).run_id, world.versions[2], world.store)
    assert world.prune(keep=2).versions == {LINE: [3, 4]}
    assert world.tags == [f"support:v{number}" for number in (1, 2, 5, 6)]
    assert released(LINE, 1, world.store) and released(LINE, 2, world.store) and not released(LINE, 3, world.store)


def test_everything_that_goes_is_listed(world: World) -> None:
    """Each artifact once, under the version or the run that named it, with its size."""
    age(world.store, "c" * 32, 0.5)
    stray = artifact(world.store, "stray", kind="tuned").digest
    listed = world.prune(keep=2, dry_run=True)
    names = {item.what: item for item in listed.items}
    assert f"{LINE}@1" in names and f"run {'c' * 12} (multi-run, line {LINE})" in names
    assert names["not used by any run or version"].artifacts == [stray]
    digests = [digest for item in listed.items for digest in item.artifacts]
    assert len(digests) == len(set(digests)) == listed.artifacts
    before = world.there()
    world.prune(keep=2)
    assert before - world.there() == set(digests)


def test_only_what_was_listed_goes(world: World) -> None:
    """What comes between the list and the answer is not removed by that answer."""
    listed = world.prune(keep=2, dry_run=True)
    late = artifact(world.store, "late", kind="tuned").digest
    world.prune(keep=2, only=listed)
    assert late in world.there() and world.candidate not in world.there()
    listed = world.prune(keep=2, dry_run=True)
    world.versions[7] = lived(world.store, 7)
    assert world.prune(keep=2, only=listed).versions == {LINE: [1, 2, 3, 4]} and "support:v5" in world.tags


@pytest.mark.slow
def test_killed_anywhere_loses_nothing(world: World) -> None:
    """SIGKILL before any removal: all that is kept is whole, and the next prune does the rest."""
    kept = [*world.versions[5], *world.versions[6], *world.unfinished]
    for place in count(1, 3):
        child = os.fork()
        if child == 0:
            seen = count(1)

            def audit(event: str, _: object, seen: Iterator[int] = seen, place: int = place) -> None:
                if event in ("os.rename", "os.remove", "os.rmdir") and next(seen) == place:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(audit)
            world.prune(keep=2)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
        assert world.holds(kept)
        if not killed:
            break
    assert place > 15
    world.store.close()
    world.store.sweep()
    world.tags[:] = [f"support:v{number}" for number in range(1, 7)]  # the children's list was a copy
    world.prune(keep=2)
    assert world.there() == set(kept) and list(world.store.check()) == []


@pytest.mark.slow
def test_thirty_nights_take_the_room_of_three(tmp_path: Path) -> None:
    """A release and a prune a night: the store stays under 1.2 times what three versions need."""
    store = Store(tmp_path)
    taken = []
    for number in range(1, 31):
        lived(store, number)
        prune(store, keep=3, line=LINE, remove_tag=lambda *_: True)
        files = [path for path in store.root.rglob("*") if path.is_file()]
        taken.append(sum(path.stat().st_size for path in files if "artifacts" in path.parts))
    assert max(taken) < 1.2 * taken[2]
    assert dict(sizes(store))[LINE] < 1.2 * taken[2]
    store.close()
