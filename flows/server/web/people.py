"""Who is at a page: a name, and whether this person may act or only look."""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from backprop_core.schema.records import Record


class Person(Record):
    """Who sent a request."""

    name: str | None  # None: `serve` asks for no password
    may_act: bool


def person_of(request: Request) -> Person:
    """Who sent it, as access control has found."""
    person: Person = request.state.person
    return person


class OnePerson:
    """Everyone who passes access control is the user of `serve --auth`, and may act."""

    def __init__(self, app: ASGIApp, name: str | None) -> None:
        self._app, self._person = app, Person(name=name, may_act=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["person"] = self._person
        await self._app(scope, receive, send)
