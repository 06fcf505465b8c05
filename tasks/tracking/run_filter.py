"""Which runs of the history are meant, in MLflow's words and in SQL."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from backprop_core.errors import ConfigInvalid
from backprop_core.schema.field_types import NAME
from backprop_core.schema.refs import Status
from tasks.tracking.artifact_copies import OF_ARTIFACTS
from tasks.tracking.connection import LINE
from tasks.tracking.line_curve import OF_LINE
from tasks.tracking.record import ROLE, STATUS

PARENT = "parent"
FIRST_YEAR = 1970  # of times as MLflow has them; a time of the year 1 has none in some zones


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """Runs of a line, with a status, that began at a time or later; with or without the LoRA runs of each.

    Raises ConfigInvalid for what is no name of a line.
    """

    children: bool = False
    line: str | None = None
    status: Status | None = None
    since: datetime | None = None

    def __post_init__(self) -> None:
        if self.line and not re.fullmatch(NAME, self.line):
            raise ConfigInvalid(f"{self.line[:100]} is no name of a line", hint="`backprop lines` lists all lines")

    @property
    def tags(self) -> list[tuple[str, str, str]]:
        """Conditions as (tag, `=` or `!=`, value). MLflow leaves out a run without the tag, also for `!=`."""
        roles = [(ROLE, "!=", OF_LINE), (ROLE, "!=", OF_ARTIFACTS)] if self.children else [(ROLE, "=", PARENT)]
        wanted = ((LINE, self.line), (STATUS, self.status))
        return roles + [(tag, "=", value) for tag, value in wanted if value]

    @property
    def start(self) -> int | None:
        """The earliest start, in milliseconds since 1970. No run began before that."""
        if self.since is None or self.since.year < FIRST_YEAR:
            return None
        return max(0, int(self.since.timestamp() * 1000))

    def in_mlflow(self) -> str:
        """The filter string of MLflow's search."""
        parts = [f"tags.`{tag}` {comparison} '{value}'" for tag, comparison, value in self.tags]
        parts += [] if self.start is None else [f"attributes.start_time >= {self.start}"]
        return " and ".join(parts)

    def in_sql(self) -> tuple[str, list[Any]]:
        """A condition on `runs` in MLflow's database, with its values."""
        of_tags = [
            f"EXISTS (SELECT 1 FROM tags WHERE tags.run_uuid = runs.run_uuid AND key = ? AND value {comparison} ?)"
            for _, comparison, _ in self.tags
        ]
        values: list[Any] = [text for tag, _, value in self.tags for text in (tag, value)]
        if self.start is not None:
            return " AND ".join([*of_tags, "runs.start_time >= ?"]), [*values, self.start]
        return " AND ".join(of_tags), values
