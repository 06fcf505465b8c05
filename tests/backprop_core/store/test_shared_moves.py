"""A line of a shared store is deleted or renamed as a whole, wherever that is cut off, and never what another wrote."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backprop_core.errors import LeaseLost, StoreConflict, StoreUnreachable
from backprop_core.lines.deletion import delete
from backprop_core.lines.renaming import rename
from backprop_core.lines.versions import Lines
from backprop_core.store import object_store, remote_leases, shared_moves, sharing
from backprop_core.store.artifacts import Store, remove_file, write_atomic
from tests.backprop_core.lines.test_versions import version
from tests.wire.s3_server import BUCKET, Cutter, environment, s3_server

Act = Callable[[Store], object]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def wire(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cutter]:
    """The way of the first machine to the server."""
    cutter = Cutter(server)
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(object_store, "DELAYS", ())
    monkeypatch.setattr(remote_leases, "LASTS", 0.4)
    monkeypatch.setattr(remote_leases, "SLACK", 0.0)
    yield cutter
    cutter.close()


def opened(root: Path, address: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    sharing.begin(root, address)
    return Store(root)


class Machines:
    """Two machines of one store, with a line of two versions; the way of the first one can be cut."""

    def __init__(self, place: Path, wire: Cutter, monkeypatch: pytest.MonkeyPatch) -> None:
        self._place, self._wire, self._patch = place, wire, monkeypatch
        self._address = f"s3://{BUCKET}/{uuid.uuid4().hex}"
        self.one, self.two = self.first(), self.second()
        lines = Lines(self.one)
        for number in (1, 2):
            lines.append("support", version(number), after=number - 1)
        lines.set_champion("support", 2)
        self.second()

    def first(self) -> Store:
        """The store, opened anew on the first machine."""
        self._wire.last, self._wire.down = 0, False
        return opened(self._place / "one", self._address, self._wire.address, self._patch)

    def second(self) -> Store:
        """The store, opened anew on the second machine."""
        return opened(self._place / "two", self._address, self._wire.target, self._patch)

    def cut_off(self, act: Act, after: int) -> bool:
        """Let the first machine do this until it has sent so many requests; whether that was too few."""
        self._wire.last = self._wire.requests + after
        try:
            act(self.one)
        except StoreUnreachable:
            return True
        return False


@pytest.fixture
def machines(tmp_path: Path, wire: Cutter, monkeypatch: pytest.MonkeyPatch) -> Machines:
    return Machines(tmp_path, wire, monkeypatch)


def deleted(store: Store) -> object:
    return delete("support", "ann", store)


def renamed(store: Store) -> object:
    return rename("support", "helpdesk", "ann", store)


def places(store: Store) -> tuple[list[str], list[int]]:
    """The lines that are whole, and how many versions each deleted line has. Every other line is a fault."""
    lines = Lines(store)
    for name in lines.names():
        assert lines.versions(name) == [1, 2] and lines.champion(name) == 2
    return lines.names(), [len(list(gone.records.glob("versions/*"))) for gone in store.layout.deletions()]


@pytest.mark.parametrize(("act", "to"), [(deleted, ([], [2])), (renamed, (["helpdesk"], []))])
@pytest.mark.slow
@pytest.mark.parametrize("after", [7, 11, 15, 19, 25])
def test_wherever_it_is_cut_off_all_has_moved_or_nothing(
    machines: Machines, act: Act, to: tuple[list[str], list[int]], after: int
) -> None:
    """After the next open the line is whole in one place, on both machines; the same command moves what has not."""
    machines.cut_off(act, after)
    again, other = machines.first(), machines.second()
    assert places(again) == places(other)
    if places(again) == (["support"], []):
        act(again)
    assert places(machines.first()) == places(machines.second()) == to


@pytest.mark.parametrize("act", [deleted, renamed])
@pytest.mark.slow
@pytest.mark.parametrize("after", [7, 11, 15, 19, 25])
def test_what_another_machine_has_written_meanwhile_stays(machines: Machines, act: Act, after: int) -> None:
    """Cut off, then continued on another machine: the first one's next open removes nothing of the line."""
    if not machines.cut_off(act, after):
        return
    other = machines.second()
    with other.lock("line-support"):
        lines = Lines(other)
        if not lines.versions("support"):
            return  # it has moved: nothing is there to be continued
        added = lines.add("support", version(3), champion=lines.champion("support"))
        lines.set_champion("support", added)
    again = machines.first()
    for store in (again, machines.second()):
        lines = Lines(store)
        assert (lines.versions("support"), lines.champion("support")) == ([1, 2, 3], 3)
        assert lines.names() == ["support"] and list(store.layout.deletions()) == []


@pytest.mark.parametrize("removed", [0, 1, 3])
def test_a_move_by_one_that_was_replaced_is_undone(machines: Machines, removed: int) -> None:
    """Another machine took the line over and continued it: a move that the first one begins then leaves nothing."""
    one, two = machines.one, machines.second()
    line, aside = one.layout.line("support").root, one.layout.deleted("support", "now").records
    files = one.shared.mirror.seen(line)
    Lines(two).append("support", version(3), after=2)
    begun = shared_moves.Move(
        lock="line-support", old="lines/support", new="deleted-lines/support-now/records", files=files
    )
    write_atomic(one.layout.moving("a"), begun.model_dump_json())
    shared_moves.copy(one.shared, line, aside, files)
    shared_moves.remove(one.shared, line, sorted(files)[:removed])
    for store in (machines.second(), machines.first()):
        assert (Lines(store).versions("support"), Lines(store).champion("support")) == ([1, 2, 3], 2)
        assert list(store.layout.deletions()) == list(store.layout.all_moving()) == []


def test_one_that_lost_the_line_moves_nothing(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that was cut off and replaced is stopped before it removes a record."""
    monkeypatch.setattr(remote_leases, "RENEWED", 60.0)
    one, two = machines.one, machines.second()
    lock, other = one.lock("line-support"), two.lock("line-support")
    lock.acquire()
    other.acquire(timeout=20)
    with pytest.raises(LeaseLost):
        one.move_records(one.layout.line("support").root, one.layout.line("helpdesk").root, "line-support")
    assert places(machines.second()) == (["support"], [])
    lock.release()
    other.release()


def test_a_record_that_another_machine_changed_is_not_removed(machines: Machines) -> None:
    """A champion is removed only as it was last seen, and one that was removed can be written again."""
    one, two = machines.one, machines.second()
    write_atomic(two.layout.line("support").champion, "1")
    with pytest.raises(StoreConflict, match="champion"):
        remove_file(one.layout.line("support").champion)
    remove_file(two.layout.line("support").champion)
    assert Lines(machines.first()).champion("support") is None
    write_atomic(machines.first().layout.line("support").champion, "2")
    assert Lines(machines.second()).champion("support") == 2


def test_records_that_are_not_here_are_no_removal(machines: Machines) -> None:
    """A process that was killed may have moved a line's records in the local copy: they come back from the bucket."""
    one = machines.one
    one.layout.line("support").root.rename(one.root / "aside")
    again = machines.first()
    for store in (again, machines.second()):
        assert (Lines(store).versions("support"), Lines(store).champion("support")) == ([1, 2], 2)
