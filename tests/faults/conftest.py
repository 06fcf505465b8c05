"""A place for all jobs here: the same base and data, and one PREFECT_HOME, whose database takes seconds to make."""

import json
from pathlib import Path

import pytest

from tests.backprop_core import nano


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A two-layer base and three datasets."""
    root = tmp_path_factory.mktemp("world")
    nano.build(root / "base")
    for number in range(3):
        rows = "".join(json.dumps(row) + "\n" for row in nano.chats(60, seed=number))
        (root / f"task{number}.jsonl").write_text(rows)
    return root
