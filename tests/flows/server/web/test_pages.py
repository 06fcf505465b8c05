"""The pages of lines: what is in the store is on them, whatever is in a row stays text, and Prefect may be away."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from backprop_core.lines import votes
from tests.flows.server.web.conftest import EVIL, LineMaker, Pages, run_id, vote

READS = "GET, HEAD, OPTIONS"
VOID = {"meta", "link", "input", "br", "line", "circle", "polyline", "rect", "path"}


class Outline(HTMLParser):
    """The tags of a page; every one that opens has to close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        while self.open.pop() != tag:  # table rows and cells need no end
            assert self.open


def test_a_lines_page_says_what_is_live_and_why(support: LineMaker, pages: Pages) -> None:
    """The live version, who approved it, every score, every file and what changed are on one page."""
    text = pages().get("/lines/support").text
    for part in (
        "Version 2 is live since",
        "approved by a person: good",
        "90.0 %",
        "80.0 %",
        "+1 rows of routing",
        "<code>training.steps</code>",
        "10 → 20",
        "routing fell",
        "support-v2-q8_0.gguf",
        "support-v1-adapter_model.safetensors",
        "backprop retrain --line support",
    ):
        assert part in text, part


def test_a_vote_on_a_first_candidate_hides_no_page(made: LineMaker, pages: Pages) -> None:
    """A line with a job file and a vote, and without a version, has its pages."""
    folder = made.store.root.parent / "lines"
    folder.mkdir()
    (folder / "first.yaml").write_text("")
    votes.add("first", vote(run_id(1)), made.store)
    for page in ("/", "/lines/first", "/lines/first/try", "/lines/first/delete"):
        assert pages().get(page).status_code == 200, page


def test_the_start_page_lists_lines_with_and_without_a_version(support: LineMaker, pages: Pages) -> None:
    """Lines of the store and lines that have only a job file; a file whose name is no line's is none."""
    folder = support.store.root.parent / "lines"
    folder.mkdir()
    for name in ("billing", EVIL.replace("/", ""), ".hidden"):
        (folder / f"{name}.yaml").write_text("")
    text = pages().get("/").text
    assert "/lines/billing" in text and "no version yet" in text and "version 2 since" in text
    assert set(re.findall('href="/lines/([^"/]*)', text)) == {"billing", "support"}
    assert pages().get("/lines/billing").status_code == 200


def test_the_start_page_leads_back_and_to_the_file(support: LineMaker, pages: Pages) -> None:
    """A rollback is two clicks from the start page, the file of the live version one."""
    browser = pages()
    text = browser.get("/").text
    assert 'href="/lines/support/rollback?to=1"' in text
    [file] = re.findall(r'href="(/lines/support/versions/2/files/[^"]*\.gguf)"', text)
    assert browser.get(file).content.startswith(b"GGUF")


@pytest.mark.parametrize("path", ["/", "/lines/support", "/lines/%3Cscript%3Ealert(1)%3C/script%3E", "/lines/none"])
def test_nothing_of_rows_names_or_reasons_is_markup(support: LineMaker, pages: Pages, path: str) -> None:
    """A page has our scripts alone, no inline style and no handler; a script in a row, name or reason is text."""
    answer = pages().get(path)
    outline = Outline(answer.text)
    scripts = [attributes for tag, attributes in outline.tags if tag == "script"]
    assert scripts == [{"src": f"/static/{name}.js", "defer": None} for name in ("refresh", "upload", "try")]
    assert not [tag for tag, attributes in outline.tags if tag == "style" or any(n == "style" for n in attributes)]
    assert not [tag for tag, attributes in outline.tags for name in attributes if name.startswith("on")]
    assert "<script>alert" not in answer.text
    policy = answer.headers.get_list("content-security-policy")[0]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//(?!127\.0\.0\.1)", answer.text)


def test_the_script_in_a_row_is_shown(support: LineMaker, pages: Pages) -> None:
    """Escaping is what keeps it out, not dropping: the negative control of the test above."""
    assert "row 2 &lt;script&gt;" in pages().get("/lines/support").text


def test_prefect_is_away(support: LineMaker, pages: Pages) -> None:
    """The blocks of Prefect say so; the store's are there; and Prefect being away is no error."""
    answer = pages().get("/lines/support")
    assert answer.status_code == 200 and "Version 2 is live" in answer.text
    assert answer.text.count("Not known now: Prefect does not answer") == 3
    assert "Not known now" in pages().get("/").text


@pytest.mark.parametrize("name", ["none", "%2e%2e%2f", "..%2f..%2fetc", "a" * 300, "%00", "support%0a"])
def test_unknown_lines(support: LineMaker, pages: Pages, name: str) -> None:
    """404 with a code and what to do, never a path of the disk."""
    answer = pages().get(f"/lines/{name}")
    assert answer.status_code == 404 and str(support.store.root) not in answer.text


def test_scores_on_other_rows_are_marked(made: LineMaker, pages: Pages) -> None:
    """A score is only compared where it was measured on the same held-out rows; others are marked."""
    made.version(1, 0.8)
    made.version(2, 0.9)
    assert "on other held-out rows" not in pages().get("/lines/support").text
    path = made.store.layout.line("support").version(1)
    path.write_text(path.read_text().replace("b" * 64, "d" * 64))
    assert pages().get("/lines/support").text.count("<sup>*</sup>") == 3  # two cells and the legend


def test_a_pruned_version_has_no_files(support: LineMaker, pages: Pages) -> None:
    """Files that are gone are not offered."""
    version = support.lines.version("support", 1)
    support.store.remove(version.merged.digest, reason="test")
    text = pages().get("/lines/support").text
    assert "support-v1-adapter" not in text and "support-v1-q8_0.gguf" in text and "support-v2-adapter" in text


@pytest.mark.parametrize("path", ["/", "/health", "/nothing", "/lines/support"])
def test_head_is_get_without_a_body(support: LineMaker, pages: Pages, path: str) -> None:
    """Status and kind are those of GET, on every page."""
    get, head = pages().get(path), pages().head(path)
    assert (get.status_code, get.headers["content-type"]) == (head.status_code, head.headers["content-type"])


def test_other_methods_are_named(pages: Pages) -> None:
    """OPTIONS says what may be done; what may not is 405 with the same list, never 501."""
    options = pages().options("/")
    assert (options.status_code, options.headers["allow"]) == (204, READS)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = pages().request(method, "/")
        assert (answer.status_code, answer.headers["allow"]) == (405, READS)


def test_strangers_are_refused(support: LineMaker, pages: Pages) -> None:
    """With a password every page but /health asks for it, not the style; a foreign Host or Origin is refused always."""
    client = pages(password="team:horse staple")
    for path in ("/", "/lines/support", "/static/none", "/nothing", "/api/v1/nothing"):
        assert client.get(path).status_code == 401
        assert client.get(path, auth=("team", "wrong")).status_code == 401
    assert client.get("/health").status_code == client.get("/static/page.css").status_code == 200
    assert client.get("/", auth=("team", "horse staple")).status_code == 200
    assert pages().get("/", headers={"Host": "evil.example"}).status_code == 403
    assert pages().get("/", headers={"Origin": "http://evil.example"}).status_code == 403


def test_the_pages_load_neither_torch_nor_prefect() -> None:
    """`serve` is ready as fast as before: the pages import nothing heavy."""
    heavy = "('torch', 'transformers', 'prefect', 'mlflow')"
    code = f"import sys, flows.server.web.app; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
