"""Quarantined rows that a person has looked at are kept from then on, and the lineage says so; others stay apart."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet  # type: ignore[import-untyped]
import pytest

from backprop_core.data import restored_rows
from backprop_core.data.curation import curate
from backprop_core.data.forgotten_rows import forget
from backprop_core.data.loading import snapshot
from backprop_core.data.row_files import index, load
from backprop_core.errors import RefAmbiguous, RowUnknown
from backprop_core.runtime.settings import settings
from backprop_core.schema.refs import Curated, SourceRef
from backprop_core.schema.specs import DatasetSpec, RunSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import stage_key
from tasks.runs.data_put import data_split
from tasks.runs.data_restore import Restored, data_restore, named

MAILS = [f"Write to user{number}@example.com" for number in range(4)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "home"))
    store = Store(settings().store_path)
    yield store
    store.close()


class Data:
    """A file of rows, of which four have an address, and its curation as a run does it."""

    def __init__(self, path: Path, store: Store, **spec: Any) -> None:
        asked = [
            *(f"Where is {number}?" for number in range(8)),
            *MAILS,
            *(f"Who is {number}?" for number in range(12)),
        ]
        rows = [{"question": text, "answer": "Yes.", "customer": number % 3} for number, text in enumerate(asked)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.store = store
        self.spec = DatasetSpec.model_validate({"path": str(path), "curation": {"personal_data": "quarantine"}, **spec})

    def source(self) -> SourceRef:
        return restored_rows.marked(snapshot(self.spec.path, scratch=Path()), self.spec, self.store)

    def key(self) -> str:
        return stage_key("curate", {"source": self.source(), "spec": self.spec, "template": None, "tokenizer": None})

    def curate(self) -> Curated:
        return curate(self.source(), self.spec, store=self.store)

    def trained(self, made: Curated) -> set[str]:
        return {row["messages"][0]["content"] for row in load(self.store.local(made.rows))}


def listed(*rows: str) -> Restored:
    return data_restore(rows, settings())


def test_a_row_that_is_put_back_is_kept(tmp_path: Path, store: Store) -> None:
    """What is in quarantine is listed with its line; a row that is put back is trained, and the lineage says why."""
    data = Data(tmp_path / "rows.jsonl", store)
    before, key = data.curate(), data.key()
    found = listed()
    assert [one.content["messages"][0]["content"] for one in found.quarantined] == MAILS
    assert [one.files[0].place for one in found.quarantined] == [f"line {number}" for number in range(9, 13)]
    row = found.quarantined[2].row
    done = listed(row[:8])
    assert [one.row for one in done.restored] == [row] and len(done.quarantined) == 3
    made = data.curate()
    assert data.trained(made) - data.trained(before) == {MAILS[2]} and data.key() != key
    assert made.quarantined and made.quarantined.rows == 3 and made.lineage
    table = pyarrow.parquet.read_table(store.local(made.lineage) / "lineage.parquet").to_pylist()
    assert Counter((one["outcome"], one["reason"]) for one in table) == {
        ("kept", None): 20,
        ("kept", "restored"): 1,
        ("quarantined", "personal_data"): 3,
    }
    assert next(one["detail"] for one in table if one["reason"] == "restored") == "1 e-mail"


def test_a_row_can_be_put_back_again(tmp_path: Path, store: Store) -> None:
    """The same command, again, has the same answer."""
    Data(tmp_path / "rows.jsonl", store).curate()
    row = listed().quarantined[0].row
    assert listed(row[:8]) == listed(row[:8]) and [one.row for one in listed(row).restored] == [row]
    assert len(listed().quarantined) == 3


def test_its_group_stays(tmp_path: Path, store: Store) -> None:
    """A row that is put back is of the group that it always was."""
    data = Data(tmp_path / "rows.jsonl", store, group_by="customer")
    apart = index(data.curate().quarantined, store)  # type: ignore[arg-type]
    group = dict(zip(apart.keys.tolist(), apart.entries["group"].tolist(), strict=True))
    listed(*(one.row for one in listed().quarantined))
    rows = index(data.curate().rows, store)
    back = rows.take(rows.among(apart.keys))
    assert len(back) == 4 and dict(zip(back.keys.tolist(), back.entries["group"].tolist(), strict=True)) == group


def test_other_sources_keep_their_keys(tmp_path: Path, store: Store) -> None:
    """A row that is put back changes the key of no source without it, and of none that sets no rows apart."""
    data = Data(tmp_path / "rows.jsonl", store)
    data.curate()
    redacted = Data(tmp_path / "same.jsonl", store, curation={"personal_data": "redact"})
    other = Data(tmp_path / "other.jsonl", store)
    Path(other.spec.path).write_text('{"question": "a", "answer": "b"}\n')
    before = [redacted.key(), other.key()]
    listed(listed().quarantined[0].row)
    assert [redacted.key(), other.key()] == before


def test_a_forgotten_row_is_not_in_quarantine(tmp_path: Path, store: Store) -> None:
    """A row that was forgotten cannot be put back."""
    Data(tmp_path / "rows.jsonl", store).curate()
    row = listed().quarantined[0].row
    forget([row], [], store)
    assert len(listed().quarantined) == 3
    with pytest.raises(RowUnknown):
        listed(row)


def test_split_files_are_as_decided(tmp_path: Path, store: Store) -> None:
    """`data split` writes a row that was put back, and none that was forgotten, as a run trains it."""
    data = Data(tmp_path / "rows.jsonl", store)
    data.curate()
    back, gone = (one.row for one in listed().quarantined[:2])
    listed(back)
    forget([gone], [], store)
    out, rest = tmp_path / "heldout.jsonl", tmp_path / "train.jsonl"
    spec = RunSpec(datasets=[data.spec])
    made = data_split(spec, None, out, rest, settings(), force=False)
    text = out.read_text() + rest.read_text()
    assert MAILS[0] in text and not any(mail in text for mail in MAILS[1:])
    assert made.dropped == {"forgotten": 1, "quarantined": 2}


@pytest.mark.parametrize("asked", ["0000000", "abc", "", "Write to", "../etc"])
def test_an_id_that_no_row_has_is_an_error(asked: str, store: Store) -> None:
    """Rows are named by at least six digits of their ids, not by text: a person has to have looked."""
    with pytest.raises(RowUnknown, match="no row in quarantine"):
        listed(asked)


def test_an_id_of_two_rows_is_an_error() -> None:
    """An id that could be two rows names both."""
    with pytest.raises(RefAmbiguous, match="2 rows in quarantine"):
        named("abcdef", ["abcdef0" + "1" * 57, "abcdef0" + "2" * 57])
