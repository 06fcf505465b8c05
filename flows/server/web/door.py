"""The door of the pages: who a request comes from, by session, password or token; strangers see the login page.

Passwords are hashed one at a time, in a thread: a thousand attempts cost one core and 16 MiB.
"""

import base64
import binascii
from pathlib import Path

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from backprop_core.errors import AuthRequired, BackpropError, TooManyAttempts
from flows.server.audit import How
from flows.server.users import User
from flows.server.web import strangers
from flows.server.web.members import Members
from flows.server.web.people import Person
from flows.server.web.sessions import Sessions
from flows.server.web.throttle import Throttle, network

STATIC = Path(__file__).parent / "static"
OPEN = {"/health", "/login", *(f"/static/{path.name}" for path in STATIC.iterdir())}  # hold nothing of the home
READS = ("GET", "HEAD")


class Door:
    """Who comes in."""

    def __init__(self, members: Members) -> None:
        self.members, self.sessions = members, Sessions()
        self._of_a_name = Throttle(burst=10, seconds=60.0)  # failures from one address: the name works from elsewhere
        self._of_an_address = Throttle(burst=20, seconds=10.0)  # with any names
        self._one = anyio.CapacityLimiter(1)

    async def who(self, request: Request) -> tuple[User, How] | None:
        """Whose request it is; None for a stranger. Raises AuthRequired, TooManyAttempts, ConfigInvalid."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            user = self.members.by_token(given.strip())
            if user is None:
                raise AuthRequired("this token is not known", hint="make one: backprop users token NAME")
            return user, "token"
        if scheme.lower() == "basic":
            name, secret = decoded(given)
            return await self.by_password(request, name, secret), "password"
        session = request.cookies.get(cookie_name(request), "")
        user = self.sessions.user(session, self.members.all())
        request.state.session = session if user else ""
        return (user, "session") if user else None

    async def by_password(self, request: Request, name: str, secret: str) -> User:
        """The user of a name and password. Raises AuthRequired, and TooManyAttempts without looking at the password."""
        place = network(request.client.host if request.client else "")
        request.state.given = {"name": name} if name in self.members.all() else {}  # what is no name may be a password
        self._check(place, name)
        if user := self.members.remembered(name, secret):
            return user
        return await anyio.to_thread.run_sync(self._by_password, place, name, secret, limiter=self._one)

    def _by_password(self, place: str, name: str, secret: str) -> User:
        self._check(place, name)
        user = self.members.by_password(name, secret)
        if user is None:
            self._of_a_name.add((place, name))
            self._of_an_address.add(place)
            raise AuthRequired("the name or the password is wrong", hint="correct it, or ask who runs this server")
        self._of_a_name.forget((place, name))
        return user

    def _check(self, place: str, name: str) -> None:
        """Raise TooManyAttempts if too many have failed."""
        if wait := max(self._of_a_name.wait((place, name)), self._of_an_address.wait(place)):
            error = TooManyAttempts(f"too many failed attempts from {place}", hint=f"try again in {wait} seconds")
            error.seconds = wait
            raise error


class Guarded:
    """An application behind the door."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            is_known = await self._identify(request)
        except BackpropError as error:
            request.state.failed = True
            await strangers.refusal(request, error)(scope, receive, send)
            return
        if is_known or is_open(request):
            await self._app(scope, receive, send)
        else:
            unknown = AuthRequired("password required", hint="sign in, or send a name and password, or a token")
            await strangers.refusal(request, unknown)(scope, receive, send)

    async def _identify(self, request: Request) -> bool:
        """Note who sent a request; whether that is known. Raises BackpropError."""
        if not self._door.members.asks:
            request.state.person, request.state.how = Person(name=None, may_act=True), "open"
            return True
        found = await self._door.who(request)
        if found:
            user, request.state.how = found
            request.state.person = Person(name=user.name, may_act=user.role == "act")
        return found is not None


def is_open(request: Request) -> bool:
    """Whether strangers may have it."""
    path, method = request.url.path, request.method
    return (path in OPEN and method in READS) or (path, method) == ("/login", "POST")


def cookie_name(request: Request) -> str:
    """The cookie of a session; another for each port, because browsers do not tell the ports of a host apart."""
    port = request.url.port
    return f"backprop-session-{port}" if port else "backprop-session"


def decoded(given: str) -> tuple[str, str]:
    """Name and password of HTTP basic authentication. Raises AuthRequired."""
    try:
        name, colon, secret = base64.b64decode(given, validate=True).decode().partition(":")
    except (binascii.Error, ValueError) as error:
        raise AuthRequired("this is no HTTP basic authentication", hint="send base64 of NAME:PASSWORD") from error
    if not colon:
        raise AuthRequired("this is no HTTP basic authentication", hint="send base64 of NAME:PASSWORD")
    return name, secret
