"""The JSON API says what the pages say, as its description promises."""

from pydantic import TypeAdapter

from flows.server.web.state import Health, LineState, Overview
from tasks.runs.line_report import VersionReport
from tests.flows.server.web.conftest import EVIL, LineMaker, Pages


def test_every_answer_has_its_type(support: LineMaker, pages: Pages) -> None:
    """Each answer is read back by the record that describes it."""
    client = pages()
    line = LineState.model_validate(client.get("/api/v1/lines/support").json())
    assert line.store and line.store.live and line.store.live.number == 2
    assert [version.average for version in line.store.versions] == [0.675, 0.6000000000000001]
    assert line.prefect is None and "Prefect does not answer" in (line.missing or "")
    assert [one.reason for one in line.rejected] == [f"routing fell {EVIL}"]
    overview = Overview.model_validate(client.get("/api/v1/lines").json())
    assert [row.line for row in overview.lines] == ["support"]
    versions = TypeAdapter(list[VersionReport]).validate_python(client.get("/api/v1/lines/support/versions").json())
    assert versions == line.store.versions
    assert Health.model_validate(client.get("/api/v1/health").json()).running["worker"]


def test_errors_are_problems(support: LineMaker, pages: Pages) -> None:
    """An error is application/problem+json with code and hint (RFC 9457)."""
    client = pages()
    for path, status in (("lines/none", 404), ("lines/none/runs", 404), ("lines/support/runs", 503), ("nothing", 404)):
        answer = client.get(f"/api/v1/{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert answer.json()["status"] == status and answer.json()["detail"]
    assert client.get("/api/v1/lines/none").json()["code"] == "INPUT_REF_UNKNOWN"
    assert client.post("/api/v1/health").status_code == 405


def test_the_description_names_every_path(pages: Pages) -> None:
    """OpenAPI lists the paths, each with the type of its answer; no page of it loads anything from elsewhere."""
    document = pages().get("/api/v1/openapi.json").json()
    assert set(document["paths"]) >= {
        "/lines",
        "/lines/{name}",
        "/lines/{name}/versions",
        "/lines/{name}/runs",
        "/lines/{name}/rows",
        "/lines/{name}/settings",
        "/lines/{name}/time",
        "/lines/{name}/data",
        "/new/{name}/rows",
        "/data/{digest}",
        "/runs/{run}",
        "/runs/{run}/stop",
        "/runs/{run}/retry",
        "/health",
    }
    for one in (operation for path in document["paths"].values() for operation in path.values()):
        assert one["description"]
        assert "204" in one["responses"] or all(each["schema"] for each in one["responses"]["200"]["content"].values())
    assert pages(password="team:horse staple").get("/api/v1/lines").status_code == 401


def test_the_api_has_a_page_of_its_own(pages: Pages) -> None:
    """Every operation and every type is on a page that is rendered here, with scripts and style of this server."""
    text = pages().get("/api/v1/docs").text
    document = pages().get("/api/v1/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"{method.upper()} /api/v1{path}<" in text
    for name in ("LineState", "Problem", "Entry"):
        assert f'id="{name}"' in text
    assert "list of VersionReport" in text and "openapi.json" in text
