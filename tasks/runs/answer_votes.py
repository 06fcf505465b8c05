"""Votes of people on the answers of a version or candidate, kept beside the versions of the line."""

from pydantic import Field

from backprop_core.lines import votes
from backprop_core.lines.votes import Verdict, Vote
from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from backprop_core.store.artifacts import Store
from tasks.runs.readable_records import of_line

__all__ = ["Verdict", "Vote", "Votes", "add", "votes_on"]


class Votes(Record):
    """The votes on what a run made."""

    better: int
    same: int
    worse: int
    notes: list[str] = Field(description="What was written beside them, with the name of who wrote it; newest first.")

    @property
    def total(self) -> int:
        return self.better + self.same + self.worse


def add(line: str, vote: Vote, config: Settings) -> None:
    """Append a vote to the record of a line."""
    votes.add(line, vote, Store(config.store_path))


def votes_on(line: str, run_id: str, config: Settings) -> Votes:
    """The votes on what a run made, counted. Raises ArtifactDamaged."""
    with of_line(line):
        cast = votes.votes(line, run_id, Store(config.store_path))
    counts = {verdict: sum(vote.verdict == verdict for vote in cast) for verdict in ("better", "same", "worse")}
    notes = [f"{vote.by}: {vote.note}" if vote.by else vote.note for vote in reversed(cast) if vote.note]
    return Votes(**counts, notes=notes)
