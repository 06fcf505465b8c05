"""Forms of the pages: a token that only a page of this `serve` has, and what was filled in."""

import hmac
import re
import secrets
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response

from backprop_core.errors import ActionForbidden, ConfigInvalid, FormExpired, InputTooLarge
from flows.server import audit
from flows.server.web.people import how_of, person_of

COOKIE = "backprop-page"
LARGEST = 64 * 1024  # bytes of a form
MOST_FIELDS = 500  # the settings of a line have 200


class Tokens:
    """Signs a random cookie and the session. Another site can neither read the page nor have the cookie sent."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def token(self, cookie: str, session: str) -> str:
        return hmac.new(self._key, f"{cookie} {session}".encode("utf-8", "surrogatepass"), "sha256").hexdigest()

    def is_valid(self, cookie: str, session: str, token: str) -> bool:
        return bool(cookie) and hmac.compare_digest(self.token(cookie, session).encode(), token.encode())


def cookie_of(request: Request) -> str:
    """The browser's cookie, or a new one."""
    return request.cookies.get(COOKIE) or secrets.token_hex(16)


def token_of(request: Request, cookie: str) -> str:
    """The token of a page for this browser."""
    tokens: Tokens = request.app.state.tokens
    return tokens.token(cookie, request.state.session)


def keep_cookie(request: Request, answer: Response, cookie: str) -> None:
    """Have the browser keep the cookie: for this site alone, and out of reach of scripts."""
    if request.cookies.get(COOKIE) != cookie:
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, cookie, httponly=True, samesite="strict", secure=secure)


def checked(request: Request, body: bytes) -> dict[str, str]:
    """The fields of a form, from a person who may act.

    Raises FormExpired unless it comes from a page of ours, ActionForbidden, and ConfigInvalid for what is no form.

    The Origin header was compared by access control; here it has to be there, as it is from every browser.
    """
    fields = fields_of(body)
    check(request, request.app.state.tokens, fields.pop("token", ""))
    request.state.given = fields
    return fields


def sent_from_page(request: Request, body: bytes) -> dict[str, str]:
    """The fields of a form that anyone may send. Raises FormExpired unless it comes from a page of ours."""
    fields = fields_of(body)
    check_page(request, request.app.state.tokens, fields.pop("token", ""))
    return fields


def check(request: Request, tokens: Tokens, token: str) -> None:
    """Raise FormExpired unless this is the token of the browser's page, ActionForbidden unless its person may act.

    What comes with the token of a service comes from no browser, so no other site can have sent it.
    """
    if how_of(request) != "token":
        check_page(request, tokens, token)
    if not person_of(request).may_act:
        raise ActionForbidden(
            f"{person_of(request).name} may look here, not act",
            hint="ask for the role act: backprop users role NAME act",
        )
    audit.check_writable(request.app.state.sources.config)
    request.state.given = dict(request.query_params)


def check_page(request: Request, tokens: Tokens, token: str) -> None:
    """Raise FormExpired unless this is the token of the browser's page."""
    cookie, session = request.cookies.get(COOKIE, ""), request.state.session
    if not tokens.is_valid(cookie, session, token) or "origin" not in request.headers:
        raise FormExpired(
            "this form did not come from a page of this server, or the server was started again since",
            hint="load the page again, then press the button again",
        )


def fields_of(body: bytes) -> dict[str, str]:
    """Names and values. Raises ConfigInvalid."""
    try:
        return dict(
            parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
        )
    except ValueError as error:
        raise ConfigInvalid("this is no form", hint="use the form on the page") from error


def without_actions(html: str) -> str:
    """A page for who may only look: without its forms that act, which are those with a token. Text in it is escaped."""
    return re.sub(r"<form\b.*?</form>", lambda form: "" if acts(form[0]) else form[0], html, flags=re.DOTALL)


def acts(form: str) -> bool:
    return 'name="token"' in form and 'action="/logout"' not in form


async def body_of(request: Request, largest: int = LARGEST) -> bytes:
    """The body. Raises InputTooLarge as soon as it is too much."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > largest:
            raise InputTooLarge(f"this may have {largest // 1024} KiB here", hint="shorten it")
    return bytes(body)
