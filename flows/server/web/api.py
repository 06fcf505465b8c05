"""The JSON API under /api/v1: the blocks of the pages, each with its type. `/api/v1/openapi.json` describes it."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import Depends, FastAPI, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBasic, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from backprop_core.errors import (
    ActionForbidden,
    AlreadyAnswered,
    ArtifactDamaged,
    BackpropError,
    ConfigInvalid,
    DeploymentMissing,
    DeploymentRefused,
    DeviceBusy,
    FileChanged,
    FormExpired,
    InputTooLarge,
    MLflowUnreachable,
    PlaceUnusable,
    PrefectUnreachable,
    RunActive,
    RunUnknown,
    Unexpected,
)
from backprop_core.schema.records import Record
from flows.server.web import (
    audit_page,
    data_page,
    delete_page,
    forms,
    history_page,
    new_page,
    rename_page,
    rows,
    run_api,
    schedule_page,
    settings_page,
    state,
    try_api,
    version_page,
)
from flows.server.web.line_runs import LineRuns
from flows.server.web.rows import Added
from flows.server.web.state import Health, LineState, Overview, Sources
from flows.server.web.try_answers import Trials
from tasks.runs.line_report import VersionReport

PREFIX = "/api/v1"
PROBLEM = "application/problem+json"
READS = ("GET", "HEAD", "OPTIONS")
STATUS = {
    ActionForbidden: 403,
    FormExpired: 403,
    RunUnknown: 404,
    DeploymentMissing: 404,
    AlreadyAnswered: 409,
    FileChanged: 409,
    ArtifactDamaged: 500,
    RunActive: 409,
    DeviceBusy: 409,
    InputTooLarge: 413,
    PlaceUnusable: 500,
    DeploymentRefused: 502,
    PrefectUnreachable: 503,
    MLflowUnreachable: 503,
}  # of coded errors; others are 400
UNEXPECTED = Unexpected("this page failed: an error in this project", hint="report it with the output of `serve`")


class Problem(Record):
    """An error (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    hint: str


FILE = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
REFUSED: dict[str, Any] = {
    "model": Problem,
    "description": "Why not, with a code, and what to do.",
    "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def problem(status: int, error: BackpropError) -> Response:
    """An error as JSON."""
    known = Problem(title=error.code, status=status, detail=error.message, code=error.code, hint=error.hint)
    return JSONResponse(known.model_dump(), status, media_type=PROBLEM)


def coded(error: HTTPException) -> BackpropError:
    """An unknown path, or a method that it does not have, as an error with a code."""
    headers = error.headers or {}
    if error.status_code == HTTPStatus.NOT_FOUND:
        return RunUnknown("there is no such page", hint=f"begin at / , or at {PREFIX}/openapi.json for the API")
    if "Allow" in headers:
        return ConfigInvalid(error.detail, hint=f"this address takes {headers['Allow']}")
    return ConfigInvalid(error.detail, hint="load the page again")


async def failed(request: Request, error: Exception) -> Response:
    """A coded error as JSON."""
    assert isinstance(error, BackpropError)
    request.state.code = error.code
    return problem(STATUS.get(type(error), 400), error)


async def refused(request: Request, error: Exception) -> Response:
    """An unknown path, or a method that it does not have."""
    assert isinstance(error, HTTPException)
    request.state.code = coded(error).code
    answer = problem(error.status_code, coded(error))
    answer.headers.update(error.headers or {})
    return answer


async def invalid(request: Request, error: Exception) -> Response:
    """A parameter that is missing or of another type."""
    assert isinstance(error, RequestValidationError)
    request.state.code = ConfigInvalid.code
    said = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
    return problem(422, ConfigInvalid(said, hint=f"{PREFIX}/openapi.json describes every parameter"))


async def unexpected(request: Request, _: Exception) -> Response:
    """An error without a code. The output of `serve` has its traceback."""
    request.state.code = UNEXPECTED.code
    return problem(500, UNEXPECTED)


ROOMS: list[Callable[[FastAPI, Sources], None]] = [
    audit_page.add_routes,
    history_page.add_routes,
    version_page.add_routes,
    run_api.add_routes,
    new_page.add_routes,
    settings_page.add_routes,
    data_page.add_routes,
    schedule_page.add_routes,
    delete_page.add_routes,
    rename_page.add_routes,
]


def application(sources: Sources, tokens: forms.Tokens) -> FastAPI:
    """The API of a home. Every write passes `forms.check`, whatever its room does."""

    async def guard(request: Request) -> None:
        if request.method not in READS:
            forms.check(request, tokens, request.headers.get("x-backprop-token", ""))

    api = FastAPI(
        title="backprop",
        version="1",
        description="The lines of a home, as its pages show them. What Prefect knows is null while it is away. "
        "A service sends a token that `backprop users token NAME` made; a write needs one of a user who may act.",
        docs_url=None,  # its page would load scripts of another origin
        redoc_url=None,
        responses={"4XX": REFUSED, "5XX": REFUSED},
        dependencies=[
            Depends(guard),
            Security(HTTPBearer(auto_error=False)),  # these two are for the description: the door has let it in
            Security(HTTPBasic(auto_error=False)),
        ],
        exception_handlers={
            BackpropError: failed,
            HTTPException: refused,
            RequestValidationError: invalid,
            Exception: unexpected,
        },
        redirect_slashes=False,
    )
    api.state.sources = sources
    add_routes(api, sources)
    try_api.add_routes(api, sources, Trials(sources))
    for add in ROOMS:
        add(api, sources)
    return api


def add_routes(api: FastAPI, sources: Sources) -> None:
    """All lines, and what is on the page of one."""

    @api.get("/lines")
    def lines() -> Overview:
        """All lines, what runs, and what waits for a person."""
        return state.overview(sources)

    @api.get("/lines/{name}")
    def line(name: str) -> LineState:
        """Everything on the page of a line."""
        return state.line(name, sources)

    @api.get("/lines/{name}/versions")
    def versions(name: str) -> list[VersionReport]:
        """The versions of a line, the newest first: scores, verdicts, files."""
        return state.versions(name, sources)

    @api.get("/lines/{name}/runs")
    def runs(name: str) -> LineRuns:
        """What runs, waits, comes next and has failed. 503 while Prefect is away."""
        return state.runs(state.checked(name, sources), sources)

    @api.post("/lines/{name}/rows", openapi_extra=FILE)
    async def add_rows(name: str, filename: str, request: Request) -> Added:
        """Check a file of rows, the body, and add it to the data of a line."""
        rows.check_size(int(request.headers.get("content-length", 0)))
        return await rows.add(name, filename, request.stream(), sources)

    @api.get("/health")
    def health() -> Health:
        """Which processes of `serve` are running, and the free space of the store's disk."""
        return state.health(sources)
