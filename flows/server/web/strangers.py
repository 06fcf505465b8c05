"""What a request gets that is refused at the door: the login page in a browser, a problem from the API, else a text."""

from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from backprop_core.errors import AuthRequired, BackpropError, TooManyAttempts
from flows.server.web import api, forms, frame

STATUS = {AuthRequired: 401, TooManyAttempts: 429}  # of what the door says; others are 500


def refusal(request: Request, error: BackpropError) -> Response:
    """Why the request was refused, and what to do."""
    request.state.code = error.code
    status = STATUS.get(type(error), 500)
    wanted = request.headers.get("accept", "")
    if request.url.path.startswith(f"{api.PREFIX}/"):
        answer = api.problem(status, error)
        challenge = "Bearer"
    elif "text/html" in wanted and "authorization" not in request.headers:
        return login(request, came_for(request), status, error)
    else:
        answer = PlainTextResponse(str(error), status)
        challenge = "Basic"
    if status == STATUS[AuthRequired]:
        answer.headers["WWW-Authenticate"] = f'{challenge} realm="backprop"'
    return later(answer, error)


def login(request: Request, then: str, status: int = 200, error: BackpropError | None = None) -> Response:
    """The login page; `then` is where it leads."""
    cookie = forms.cookie_of(request)
    values = {"then": then, "error": error, "token": forms.token_of(request, cookie)}
    answer = HTMLResponse(frame.TEMPLATES.get_template("login.html").render(values), status)
    answer.headers["Cache-Control"] = "no-store"
    forms.keep_cookie(request, answer, cookie)
    return later(answer, error)


def later(answer: Response, error: BackpropError | None) -> Response:
    """Say when to try again."""
    if isinstance(error, TooManyAttempts):
        answer.headers["Retry-After"] = str(error.seconds)
    return answer


def came_for(request: Request) -> str:
    """The page to show after the login: the one that was asked for, or whose button was pressed."""
    if request.method in ("GET", "HEAD"):
        return local(quote(request.url.path) + (f"?{request.url.query}" if request.url.query else ""))
    try:
        return local(urlsplit(request.headers.get("referer", "")).path)
    except ValueError:
        return "/"


def local(place: str) -> str:
    """A path on this server; the start page for anything that could lead to another one."""
    is_path = place.startswith("/") and not place.startswith(("//", "/\\")) and place.isascii() and place.isprintable()
    return place if is_path and not place.startswith(("/login", "/logout")) else "/"
