"""Users are added, changed and removed from a terminal; no password or token is kept or shown twice."""

import io
import json
import multiprocessing
import stat
from typing import Any

import pytest

from backprop_core.runtime.settings import settings
from flows.cli import main
from flows.server import passwords, users

Capture = pytest.CaptureFixture[str]
SECRET = "horse staple"


@pytest.fixture
def run(home: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`backprop users …` with a password on stdin: exit status, and the document or the error's code."""

    def run(*words: str, secret: str = SECRET) -> tuple[int, Any]:
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{secret}\n"))
        status = main.main(["users", *words, "--json"])
        out, err = capsys.readouterr()
        said = json.loads(out)
        assert SECRET not in out + err
        return status, said["error"]["code"] if isinstance(said, dict) and "error" in said else said

    return run


def test_a_users_life(run: Any) -> None:
    """Added, given another role and a token, taken both, removed; each step is in the audit log."""
    assert run("add", "ann") == (0, {"name": "ann", "role": "look", "tokens": []})
    assert run("role", "ann", "act")[1]["role"] == "act"
    token = run("token", "ann")[1]
    [known] = run("list")[1]
    assert [each["id"] for each in known["tokens"]] == [token["id"]] and "password" not in known
    assert run("revoke", "ann", token["id"])[0] == 0
    before = users.read(settings())["ann"].password
    assert run("password", "ann", secret="another staple")[0] == 0
    after = users.read(settings())["ann"].password
    assert passwords.is_right(SECRET, before) and not passwords.is_right(SECRET, after)
    assert passwords.is_right("another staple", after)
    assert run("remove", "ann") == (0, {"name": "ann", "removed": True})
    assert run("list") == (0, [])
    entries = run("audit")[1]
    assert [entry["what"].split()[1] for entry in entries] == [
        *("remove", "password", "revoke", "token", "role", "add")
    ]
    assert {(entry["target"], entry["how"]) for entry in entries} == {("ann", "terminal")}
    assert token["token"] not in json.dumps(entries)


def test_what_is_kept_is_private_and_hashed(run: Any) -> None:
    """The file has mode 0600, neither password nor token, and another salt for the same password."""
    run("add", "ann")
    run("add", "bob")
    token = run("token", "ann")[1]["token"]
    path = settings().layout.users
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(settings().layout.audit.stat().st_mode) == 0o600
    assert SECRET not in path.read_text() and token not in path.read_text()
    known = users.read(settings())
    assert known["ann"].password != known["bob"].password


@pytest.mark.parametrize(
    ("words", "secret", "code"),
    [
        (["add", "Ann"], SECRET, "CONFIG_INVALID"),
        (["add", "../ann"], SECRET, "CONFIG_INVALID"),
        (["add", "ann"], "", "INPUT_AUTH_REQUIRED"),
        (["add", "ann"], "password", "CONFIG_INVALID"),
        (["add", "ann", "--role", "all"], SECRET, "CONFIG_INVALID"),
        (["add", "known"], SECRET, "CONFIG_INVALID"),
        (["remove", "none"], SECRET, "INPUT_USER_UNKNOWN"),
        (["role", "none", "act"], SECRET, "INPUT_USER_UNKNOWN"),
        (["password", "none"], SECRET, "INPUT_USER_UNKNOWN"),
        (["token", "none"], SECRET, "INPUT_USER_UNKNOWN"),
        (["revoke", "known", "none"], SECRET, "INPUT_USER_UNKNOWN"),
    ],
    ids=str,
)
def test_what_is_refused_changes_nothing(run: Any, words: list[str], secret: str, code: str) -> None:
    """A bad name, a weak password, a user that is there or is not: a code, and the file as it was."""
    run("add", "known")
    before = settings().layout.users.read_bytes()
    assert run(*words, secret=secret) == (1, code)
    assert settings().layout.users.read_bytes() == before


@pytest.mark.parametrize("words", [["token", "ann"], ["remove", "ann"], ["role", "ann", "act"], ["password", "ann"]])
def test_what_cannot_be_noted_is_not_done(run: Any, words: list[str]) -> None:
    """While the audit log cannot be written no user is changed: no token is made that nobody was shown."""
    run("add", "ann")
    before = settings().layout.users.read_bytes()
    settings().layout.audit.unlink()
    settings().layout.audit.mkdir()
    assert run(*words)[1] == "CONFIG_PLACE_UNUSABLE"
    assert settings().layout.users.read_bytes() == before


def add(number: int) -> None:
    users.new_token("ann", settings())


def test_changes_at_once_are_all_kept(run: Any) -> None:
    """Eight processes change the file at once: none is lost."""
    run("add", "ann")
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(add, range(8))
    assert len(users.read(settings())["ann"].tokens) == 8
