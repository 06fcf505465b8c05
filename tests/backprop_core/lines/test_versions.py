"""Lines: versions are appended, exclusive, never rewritten; one champion."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from backprop_core.errors import LineConflict, RunUnknown
from backprop_core.lines.versions import Lines, LineVersion
from backprop_core.schema.refs import AdapterRef, BaseRef, RowsRef, Scores
from backprop_core.schema.specs import LoraSpec, MergeSpec
from backprop_core.store.artifacts import Store


def version(run: int = 1, base: str = "a") -> LineVersion:
    adapter = AdapterRef(digest=f"{run:064x}", kind="merged")
    return LineVersion(
        run_id=f"{run:032x}",
        base=BaseRef(name="base", digest=base * 64),
        lora=LoraSpec(),
        merge=MergeSpec(),
        tuned=adapter,
        merged=adapter,
        count=run,
        datasets=[],
        heldout={"t": RowsRef(digest="b" * 64, rows=1)},
        scores={"t": Scores(digest="c" * 64, rows=1, tokens=1, loss=0, token_accuracy=1, exact_match=1)},
    )


@pytest.fixture
def lines(tmp_path):
    return Lines(Store(tmp_path))


def test_versions_are_numbered_and_kept(lines):
    """What was appended is read back as it was."""
    assert lines.append("support", version(1), after=0) == 1
    assert lines.append("support", version(2), after=1) == 2
    assert lines.versions("support") == [1, 2]
    assert lines.version("support", 1) == version(1)
    assert lines.names() == ["support"]


def test_a_line_has_a_version(tmp_path, lines):
    """A directory without a version, such as that of votes on a first candidate, is no line yet."""
    (tmp_path / "lines" / "first" / "votes").mkdir(parents=True)
    (tmp_path / "lines" / "second" / "versions").mkdir(parents=True)
    lines.append("support", version(1), after=0)
    assert lines.names() == ["support"]


def test_a_version_is_never_rewritten(lines):
    """Appending after a version that already has a successor is refused."""
    lines.append("support", version(1), after=0)
    with pytest.raises(LineConflict):
        lines.append("support", version(2), after=0)
    with pytest.raises(LineConflict):
        lines.append("support", version(2), after=2)
    assert lines.version("support", 1) == version(1)


def test_of_many_at_once_one_wins(lines):
    """Sixteen writers after the same version: one appends, fifteen are told."""

    def attempt(run: int) -> bool:
        try:
            lines.append("support", version(run), after=0)
        except LineConflict:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(attempt, range(1, 17))) == 1
    assert lines.versions("support") == [1]


def test_the_champion_is_a_version_that_exists(lines):
    """The pointer cannot point to nothing."""
    assert lines.champion("support") is None
    with pytest.raises(RunUnknown):
        lines.set_champion("support", 1)
    lines.append("support", version(1), after=0)
    lines.set_champion("support", 1)
    assert lines.champion("support") == 1


def test_another_base_is_refused(lines):
    """A line stays on its base; a line that does not exist takes any."""
    lines.check_base("support", BaseRef(name="other", digest="f" * 64))
    lines.append("support", version(1), after=0)
    lines.check_base("support", BaseRef(name="elsewhere", digest="a" * 64))
    with pytest.raises(LineConflict, match="built on base"):
        lines.check_base("support", BaseRef(name="other", digest="f" * 64))


def test_the_base_of_a_line_is_that_of_its_champion(lines):
    """After a move to another base and back, the line takes the base of the version that is live."""
    lines.append("support", version(1), after=0)
    lines.append("support", version(2, base="f").model_copy(update={"parent": 1}), after=1)
    for champion, base, refused in [(2, "f", "a"), (1, "a", "f")]:
        lines.set_champion("support", champion)
        lines.check_base("support", BaseRef(name="it", digest=base * 64))
        with pytest.raises(LineConflict) as error:
            lines.check_base("support", BaseRef(name="other", digest=refused * 64))
        assert "backprop rebase support --model other" in error.value.hint


def on(base: str) -> BaseRef:
    return BaseRef(name="", digest=base * 64)


def test_versions_on_one_base_are_those_since_the_last_move(lines):
    """Scores on another base do not compare, so they are not among the earlier ones."""
    bases = "aafa"
    for number, base in enumerate(bases, 1):
        made = version(number, base=base).model_copy(update={"parent": number - 1 or None})
        lines.append("support", made, after=number - 1)
    runs = {
        (number, base): [
            int(one.run_id, 16) for one in lines.on_base("support", number, BaseRef(name="", digest=base * 64))
        ]
        for number, base in [(2, "a"), (3, "f"), (4, "a"), (4, "f")]
    }
    assert runs == {(2, "a"): [1, 2], (3, "f"): [3], (4, "a"): [4], (4, "f"): []}
    assert lines.on_base("support", None, on("a")) == []
