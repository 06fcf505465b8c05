"""The judge's client against a server over real HTTP that grades, and fails on command."""

import json
from collections.abc import Iterator

import pytest

from backprop_core.errors import BackpropError, JudgeFailed, JudgeUnreachable
from backprop_core.evaluation.judge import KEY, judge
from backprop_core.schema.refs import Generations, Ratings
from backprop_core.schema.specs import JudgeSpec
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical
from tests.wire.prefect_server import free_port
from tests.wire.stand_in import Request, Service


class Grader(Service):
    """Grades an answer 10 if it is the reference, else 3; keeps keys and questions."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str | None] = []
        self.asked: list[dict] = []

    def answer(self, request: Request) -> None:
        sent = request.json()
        with self.guard:
            self.keys.append(request.headers.get("Authorization"))
            self.asked.append(sent)
        if request.fault:
            return request.reply(200, BROKEN[request.fault])
        shown = json.loads(sent["messages"][1]["content"])
        grade = 10 if shown["answer"] == shown["reference"] else 3
        content = f"Both say it.\n**Grade:** {grade}"
        return request.reply(200, {"choices": [{"message": {"role": "assistant", "content": content}}]})


BROKEN = {
    "no grade": {"choices": [{"message": {"content": "I like it."}}]},
    "no choice": {"choices": []},
    "no json": b"<html>",
    "nothing said": {"choices": [{"message": {"content": None}}]},
}


@pytest.fixture
def server() -> Iterator[Grader]:
    with Grader().running() as server:
        yield server


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


def graded(store: Store, url: str, pairs: list[tuple[str, str]], timeout: float = 1) -> Ratings:
    lines = [
        {"row": row, "messages": [{"role": "user", "content": "q"}], "output": output, "reference": reference}
        for row, (output, reference) in enumerate(pairs)
    ]
    with store.begin("generations") as directory:
        (directory / "generations.jsonl").write_text("".join(canonical(line) + "\n" for line in lines))
        made = store.commit(directory, Generations, record={}, rows=len(lines), stopped=0)
    spec = JudgeSpec(address=f"{url}/v1/", model="grader", timeout=timeout)
    return judge(made, spec=spec, store=store, on_progress=lambda done, total: None)


def test_every_row_gets_its_grade(store, server, monkeypatch) -> None:
    """Grades from 0 to 1 in the rows' order, the model and the key as they were given, the key nowhere on disk."""
    monkeypatch.setenv(KEY, "a-secret-key")
    pairs = [(str(row), str(row - row % 2)) for row in range(20)]
    ratings = graded(store, server.url, pairs)
    lines = [json.loads(line) for line in (store.local(ratings) / "ratings.jsonl").read_text().splitlines()]
    assert [line["score"] for line in lines] == [1.0, 0.3] * 10 and ratings.score == pytest.approx(0.65)
    assert set(server.keys) == {"Bearer a-secret-key"} and server.count("POST /v1/chat/completions") == 20
    assert {(sent["model"], sent["temperature"]) for sent in server.asked} == {("grader", 0)}
    files = [path for path in store.root.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"a-secret-key" in path.read_bytes()]


@pytest.mark.parametrize("how", ["503", "429", "drop"])
def test_what_passes_is_tried_again(store, server, how: str) -> None:
    """A busy service, or one that goes away once, costs a second and no row; no key is sent where there is none."""
    server.fail("POST", how)
    assert graded(store, server.url, [("a", "a"), ("b", "a")]).score == pytest.approx(0.65)
    assert set(server.keys) == {None}


@pytest.mark.parametrize(
    ("how", "error", "part"),
    [
        ("401", JudgeFailed, "401"),
        ("no grade", JudgeFailed, "no grade for row 1: 'I like it.'"),
        ("no choice", JudgeFailed, "did not return a chat completion"),
        ("no json", JudgeFailed, "did not return a chat completion"),
        ("nothing said", JudgeFailed, "no grade"),
        ("slow", JudgeUnreachable, "ReadTimeout"),
    ],
)
def test_what_stays_wrong_is_a_coded_error(store, server, how: str, error: type[BackpropError], part: str) -> None:
    """Refused, unreadable, or too slow: a code, the judge's address, and nothing committed."""
    server.fail("POST", how, times=9)
    with pytest.raises(error, match="the judge") as caught:
        graded(store, server.url, [("a", "a")], timeout=0.2)
    assert part in caught.value.message and server.url in caught.value.message
    assert caught.value.retryable == (error is JudgeUnreachable)


def test_nobody_there(store) -> None:
    """An address where nothing listens is a retryable error."""
    with pytest.raises(JudgeUnreachable, match="ConnectError"):
        graded(store, f"http://127.0.0.1:{free_port()}", [("a", "a")])
