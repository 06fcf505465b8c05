"""Who is at a page: a name, and whether this person may act or only look."""

from typing import Any

from starlette.requests import Request

from backprop_core.schema.records import Record
from flows.server.audit import How


class Person(Record):
    """Who sent a request."""

    name: str | None  # None: `serve` asks for no password
    may_act: bool


STRANGER = Person(name=None, may_act=False)


def person_of(request: Request) -> Person:
    """Who sent it, as the door has found."""
    person: Person = request.state.person
    return person


def how_of(request: Request) -> How | None:
    """What showed who it was; None for a stranger."""
    how: How | None = request.state.how
    return how


def unknown() -> dict[str, Any]:
    """What is known of a request before anything is."""
    return {"person": STRANGER, "how": None, "session": "", "given": {}, "code": None, "failed": False}
