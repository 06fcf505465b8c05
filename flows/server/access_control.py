"""Access control of a server: it refuses foreign Host headers, other sites, and requests without the password."""

import base64
import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backprop_core.errors import AddressForbidden, AuthRequired, BackpropError, FormExpired

ONLY_HERE = "connect-src 'self'"  # pages connect to this server only; Prefect's would send analytics
HEALTH = {"/health", "/api/health", "/api/ready"}  # say only that the server is up


class AccessControl:
    """Refuses a foreign Host (DNS rebinding), a foreign Origin (cross-site requests, websockets), a missing password.

    `hosts` are names without port. `password` is `user:password` for HTTP basic authentication; None disables it.
    `head_as_get`: the application answers GET alone.
    """

    def __init__(self, app: ASGIApp, *, hosts: Sequence[str], password: str | None, head_as_get: bool = True) -> None:
        self._app, self._hosts, self._head_as_get = app, frozenset(hosts), head_as_get
        encoded = base64.b64encode(password.encode()).decode() if password else ""
        self._expected = f"Basic {encoded}".encode() if password else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self.refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            if self._head_as_get and scope["type"] == "http" and scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}  # uvicorn leaves the body out
            await self._app(scope, receive, confining(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, send)

    def refusal(self, scope: Scope) -> Response | None:
        """The response to a refused request; None if it is allowed."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if name_of(host) not in self._hosts:
            known = AddressForbidden("Host header not allowed", hint="see BACKPROPAGATE_ALLOWED_HOSTS")
            return refused(scope, 403, known)
        if "origin" in headers and place_of(headers["origin"]) != host:
            return refused(scope, 403, FormExpired("Origin header not allowed", hint=f"open http://{host} itself"))
        given = headers.get("authorization", "").encode()
        if self._expected is None or scope["path"] in HEALTH or hmac.compare_digest(given, self._expected):
            return None
        error = AuthRequired("password required", hint="use the name and password of `serve --auth`")
        answer = refused(scope, 401, error)
        answer.headers["WWW-Authenticate"] = 'Basic realm="backprop"'
        return answer


def confining(send: Send) -> Send:
    """`send` with a header that keeps pages from connecting to other servers."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).append("Content-Security-Policy", ONLY_HERE)
        await send(message)

    return sending


def refused(scope: Scope, status: int, error: BackpropError) -> Response:
    """A refusal as text: code, what and what to do."""
    scope.setdefault("state", {})["code"] = error.code  # for the audit log
    return PlainTextResponse(str(error), status)


def name_of(host: str) -> str:
    """The name in a Host header without its port; empty if the header is anything else."""
    try:
        parts = urlsplit(f"//{host}")
        whole = parts.netloc == host and parts.username is None and parts.port != 0  # `port` raises if it is no number
    except ValueError:
        return ""
    return (parts.hostname or "") if whole else ""


def place_of(origin: str) -> str:
    """Name and port in an Origin header; empty if there are none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
