"""The pages for users say what is so: commands parse, fields exist, links lead somewhere, every code is explained."""

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from backprop_core.errors import all_errors
from backprop_core.runtime.settings import Settings
from flows.cli.main import build, verbs
from flows.cli.spec_fields import pattern_of, spec_fields

ROOT = Path(__file__).parents[3]
DOCS = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "decisions.md"]  # which says what was so
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "deployments" / "README.md", *DOCS]
SECRETS = {"JUDGE_API_KEY"}  # of the environment, and no setting
GROUPS = "|".join({path.partition(".")[0] for path in spec_fields() if "." in path})
README_WORDS = 700
OLD_WORDS = re.compile(r"\b(?:shall|whoever|nobody|somebody)\b", re.IGNORECASE)  # make a newcomer stop
READ = {".py", ".md", ".html", ".js"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def examples(text: str) -> list[str]:
    """The indented commands of a page, those that go on in another line as one."""
    code = "\n".join(re.findall(r"^ {4}(.*)$", text, re.MULTILINE)).replace("\\\n", " ")
    return re.findall(r"^(?:\S+/)?(backprop .*)$", code, re.MULTILINE)


def mentions(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def words_of(command: str) -> list[str]:
    """What follows `backprop`, without a comment; `$'…'` is one word."""
    return shlex.split(command.replace("$'", "'"), comments=True)[1:]


def is_field(path: str) -> bool:
    """Whether there is a field, or part of the spec, of this path."""
    return pattern_of(path.removesuffix(".*").split(".")) in spec_fields()


@every_page
def test_commands_parse(page: Path) -> None:
    """The command line takes each command as it is written; a verb that is only named is one."""
    text = text_of(page)
    named = [words_of(mention) for mention in mentions(text) if mention.startswith("backprop ")]
    whole = [*map(words_of, examples(text)), *(words for words in named if len(words) > 2)]
    for words in whole:
        build().parse_args(words, exit_on_error=False, print_error=False)
    assert {words[0] for words in named} <= {*verbs(), "data", "line", "store", "users", "--help"}


@every_page
def test_fields_exist(page: Path) -> None:
    """Each `--set a.b=…`, each field between backticks, and each variable is one that is read."""
    text = text_of(page)
    set_ = [word.partition("=")[0] for line in examples(text) for word in words_of(line) if re.match(r"[\w.]+=", word)]
    named = [mention for mention in mentions(text) if re.fullmatch(rf"(?:{GROUPS})(?:\.[\w*]+)+", mention)]
    assert [path for path in [*set_, *named] if not is_field(path)] == []
    variables = {name for name in re.findall(r"BACKPROPAGATE_(\w+)", text) if not name.endswith("_")}
    settings = {name.upper() for name in Settings.model_fields} | SECRETS
    fields = {path.upper().replace(".", "__") for path in spec_fields()} | {"LORA__R"}
    assert variables - settings - fields == set()


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    """Files that a page links, and pages that it names, are there."""
    text = text_of(page)
    linked = [page.parent / link for link in re.findall(r"\]\((?!\w+:)([^)#\s]+)", text)]
    named = [ROOT / mention for mention in mentions(text) if re.fullmatch(r"(?:docs|tests|examples)/[\w/.-]+", mention)]
    assert [str(path) for path in [*linked, *named] if not path.exists()] == []


def test_every_page_is_found() -> None:
    """docs/README.md links all pages, and the README links it."""
    index = text_of(ROOT / "docs" / "README.md")
    assert [page.name for page in DOCS if page.name != "README.md" and f"({page.name})" not in index] == []
    assert "(docs/README.md)" in text_of(ROOT / "README.md") and "SECURITY.md" in index


def test_every_code_is_explained() -> None:
    """Troubleshooting has each error code once, marked where it can pass by itself; no page names another."""
    rows = re.findall(r"^\| `([A-Z_]+)`( ↻)? \|", text_of(ROOT / "docs" / "troubleshooting.md"), re.MULTILINE)
    assert Counter(code for code, _ in rows) == Counter(list(all_errors()))
    assert {code for code, passes in rows if passes} == {
        code for code, error in all_errors().items() if error.retryable
    }
    codes = re.compile(r"(?<![A-Z_])(?:INPUT|CONFIG|DEP|RUNTIME|STATE|UI)_[A-Z]\w*[A-Z]")
    assert set(codes.findall("".join(map(text_of, PAGES)))) <= set(all_errors())


def test_the_readme_is_short() -> None:
    """It can be read in three minutes."""
    assert len(text_of(ROOT / "README.md").split()) <= README_WORDS


@pytest.mark.parametrize("root", ["backprop_core", "tasks", "flows", "docs", "README.md"])
def test_plain_words(root: str) -> None:
    """They are in no text that a person reads."""
    place = ROOT / root
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.suffix in READ]
    found = [f"{path}: {word}" for path in files for word in OLD_WORDS.findall(path.read_text(encoding="utf-8"))]
    assert files and not found
