"""Signing in and out."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from backprop_core.errors import BackpropError
from flows.server.web import forms, strangers
from flows.server.web.door import Door, cookie_name
from flows.server.web.people import Person, how_of


def door_of(request: Request) -> Door:
    door: Door = request.app.state.door
    return door


def login_form(request: Request) -> Response:
    """The login page; who is signed in already goes on."""
    then = strangers.local(request.query_params.get("then", "/"))
    return RedirectResponse(then, 303) if how_of(request) else strangers.login(request, then)


async def login(request: Request) -> Response:
    """Begin a session. An old one of the same browser ends."""
    body = await forms.body_of(request)
    then = "/"
    try:
        fields = forms.sent_from_page(request, body)
        then = strangers.local(fields.get("then", "/"))
        name, secret = fields.get("name", "")[:100], fields.get("password", "")
        user = await door_of(request).by_password(request, name, secret)
    except BackpropError as error:
        request.state.code, request.state.failed = error.code, True
        return strangers.login(request, then, strangers.STATUS.get(type(error), 403), error)
    request.state.person, request.state.how = Person(name=user.name, may_act=user.role == "act"), "session"
    sessions = door_of(request).sessions
    sessions.end(request.cookies.get(cookie_name(request), ""))
    answer = RedirectResponse(then, 303)
    secure = request.url.scheme == "https"
    answer.set_cookie(cookie_name(request), sessions.begin(user), httponly=True, samesite="strict", secure=secure)
    return answer


async def logout(request: Request) -> Response:
    """End the session."""
    forms.sent_from_page(request, await forms.body_of(request))
    door_of(request).sessions.end(request.cookies.get(cookie_name(request), ""))
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(cookie_name(request), httponly=True, samesite="strict")
    return answer


ROUTES = [
    Route("/login", login_form),
    Route("/login", login, methods=["POST"]),
    Route("/logout", logout, methods=["POST"]),
]
