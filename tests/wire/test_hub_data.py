"""Datasets of the Hub: which files are a split's, at which commit, through the Hub's own client over real HTTP."""

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from backprop_core.data.loading import find, read_rows
from backprop_core.errors import AuthRequired, ConfigInvalid, HubUnreachable, InputNotFound, InputValidationFailed
from backprop_core.schema.refs import SourceRef
from backprop_core.schema.specs import DatasetSpec
from tasks.runs.source_fingerprint import fingerprint
from tests.wire.hub_server import TOKEN, HubServer, Repo

NAME = "team/tickets"
CARD = """---
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: [main/test-*]
- config_name: socratic
  data_files: "socratic/**"
---
# Tickets
"""


def parquet(text: str) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": text}]), file)
    return file.getvalue()


def lines(text: str) -> bytes:
    return json.dumps({"text": text}).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub to be reached, with one dataset; its cache and the working directory are empty."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    with HubServer().running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def put(server: HubServer, files: dict[str, bytes]) -> str:
    """One more commit of the dataset, with these files and nothing else."""
    return server.datasets.setdefault(NAME, Repo(private=True)).add(files)


def with_card(server: HubServer) -> str:
    names = ["main/train-0.parquet", "main/train-1.parquet", "main/test-0.parquet", "socratic/deep/a.parquet"]
    return put(server, {"README.md": CARD.encode(), **{name: parquet(name) for name in names}})


def found(**fields: str) -> SourceRef:
    return find(DatasetSpec(path=NAME, **fields), scratch=Path())


def rows(source: SourceRef) -> list[str]:
    return [row["text"] for row in read_rows(source, DatasetSpec(path=NAME)).rows]


def test_the_card_says_which_files_a_split_has(server: HubServer) -> None:
    """By default the card's default config, and `train`, which is what patterns without a split are for."""
    with_card(server)
    assert rows(found()) == ["main/train-0.parquet", "main/train-1.parquet"]
    assert rows(found(split="test")) == ["main/test-0.parquet"]
    assert rows(found(config="socratic")) == ["socratic/deep/a.parquet"]
    with pytest.raises(ConfigInvalid, match="no config plain") as caught:
        found(config="plain")
    assert caught.value.hint.endswith("main, socratic")
    with pytest.raises(ConfigInvalid, match="no files for split validation"):
        found(split="validation")


def test_without_a_card_the_names_say_it(server: HubServer) -> None:
    """A split's name is a word of the path; where no file says `train`, files that say no other split are it."""
    names = ["README.md", "LICENSE.txt", "dataset_infos.json", ".hidden.jsonl"]
    data = ["data/train-0.jsonl", "data/test.jsonl", "other/Train.jsonl", "strain.jsonl"]
    put(server, {name: lines(name) for name in [*names[1:], *data]})
    assert rows(found()) == ["data/train-0.jsonl", "other/Train.jsonl"]
    assert rows(found(config="other")) == ["other/Train.jsonl"]
    assert rows(found(split="test")) == ["data/test.jsonl"]
    put(server, {name: lines(name) for name in [*names[1:], "data/test.jsonl", "strain.jsonl", "rows.jsonl"]})
    assert rows(found()) == ["rows.jsonl", "strain.jsonl"]
    with pytest.raises(ConfigInvalid, match="no files for split train"):
        found(split="train")


def test_the_commit_is_recorded_and_read(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source names commit, files and their digests; what is pushed later is not read, even by another machine."""
    first = put(server, {"train.jsonl": lines("first")})
    source = found()
    assert source.path == f"hf://datasets/{NAME}@{first}" and [file.name for file in source.files] == ["train.jsonl"]
    second = put(server, {"train.jsonl": lines("second")})
    assert rows(source) == ["first"]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path.cwd() / "cache of another machine"))
    assert rows(source) == ["first"] and rows(found()) == ["second"]
    assert found(revision=first) == source != found(revision=second) == found()


def many(name: str, count: int) -> bytes:
    """Rows of a thousand bytes that do not compress."""
    rows = [{"text": f"{name} {number} {random.Random(number).randbytes(500).hex()}"} for number in range(count)]
    if not name.endswith(".parquet"):
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=250)
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_the_first_rows_are_had_without_the_rest(server: HubServer, tmp_path: Path, suffix: str) -> None:
    """The Hub serves about as many bytes as the rows have, not those of the files; the name says which commit it is."""
    names = [f"train-{number}{suffix}" for number in range(2)]
    commit = put(server, {name: many(name, 4000) for name in names})
    spec = DatasetSpec(path=NAME, first=100)
    source = find(spec, scratch=tmp_path)
    every = [row["text"].split()[:2] for row in read_rows(source, spec).rows]
    assert every == [[names[0], str(number)] for number in range(100)]
    assert 100_000 < server.served < 2_500_000  # of 8,000,000; Parquet is read by batches of 1,024 rows
    assert [file.name for file in source.files] == [f"tickets@{commit[:12]}.first-100.jsonl"]
    served = server.served
    assert find(spec, scratch=tmp_path) == source and server.served == served
    assert len(read_rows(find(DatasetSpec(path=NAME, first=4001), scratch=tmp_path), spec).rows) == 4001


def test_half_a_character_makes_one_row_malformed(server: HubServer, tmp_path: Path) -> None:
    """A row with half of a surrogate pair is malformed among the first rows as it is in the whole file."""
    put(server, {"train.jsonl": lines("good") + b'\n{"text": "a\\ud800"}\n' + lines("last")})
    spec = DatasetSpec(path=NAME, first=3, max_bad_rows=1)
    found = read_rows(find(spec, scratch=tmp_path), spec)
    assert len(found.rows) == 2 and [bad.reason for bad in found.bad] == ["not_unicode"]


def test_only_a_dataset_of_the_hub_has_first_rows(tmp_path: Path) -> None:
    """Of a local file `first` is refused, as it would otherwise have no effect."""
    (tmp_path / "rows.jsonl").write_bytes(lines("a"))
    with pytest.raises(ConfigInvalid, match="it has no first"):
        find(DatasetSpec(path=str(tmp_path / "rows.jsonl"), first=3), scratch=tmp_path)


def test_what_is_here_is_not_downloaded_again(server: HubServer) -> None:
    """A second look at the same commit asks what the commit is, and nothing else."""
    with_card(server)
    source = found()
    asked = len(server.requests)
    assert found() == source and rows(source)
    assert server.requests[asked:] == [f"GET /api/datasets/{NAME}"]


def test_what_is_here_comes_first(server: HubServer) -> None:
    """A file or directory of that name is what is meant; a name of a file of rows is never the Hub's."""
    Path(NAME).mkdir(parents=True)
    Path(NAME, "a.jsonl").write_bytes(lines("here"))
    assert rows(found()) == ["here"]
    with pytest.raises(ConfigInvalid, match="not a Hub dataset: it has no split"):
        found(split="train")
    with pytest.raises(InputNotFound, match="no such file"):
        find(DatasetSpec(path="team/b.jsonl"), scratch=Path())
    assert server.requests == []


def test_a_push_is_noticed(server: HubServer) -> None:
    """Each push makes another fingerprint, but of a revision that is a commit; nothing is downloaded."""
    first = put(server, {"train.jsonl": lines("first")})
    named, before = DatasetSpec(path=NAME, revision=first), fingerprint(DatasetSpec(path=NAME))
    assert fingerprint(DatasetSpec(path=NAME)) == before == fingerprint(named)
    put(server, {"train.jsonl": lines("second")})
    assert fingerprint(DatasetSpec(path=NAME)) != before == fingerprint(named)
    assert server.count("GET /datasets") == 0


def test_what_the_hub_does_not_give(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No dataset, no revision, no right, no answer, no network, a strange card: each with its code."""
    with pytest.raises(InputNotFound, match="no such file, and no such dataset on the Hub"):
        found()
    with_card(server)
    with pytest.raises(InputNotFound, match="no such revision"):
        found(revision="v9")
    for how, code in [("403", AuthRequired), ("500", HubUnreachable), ("drop", HubUnreachable)]:
        server.fail(f"GET /api/datasets/{NAME}", how, times=9)
        with pytest.raises(code):
            found()
        server.faults.clear()
    put(server, {"README.md": b"---\nconfigs: [1]\n---\n"})
    with pytest.raises(InputValidationFailed, match="card of team/tickets"):
        found()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachable, match="OfflineModeIsEnabled"):
        found()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(AuthRequired, match="401"):
        found()
