"""What the deployments of flows are called, and the name that all of them had before.

A list of deployments shows their names large and their flows small, so a name says what a run of it does. Callers of
`FLOW/default` still reach it where `serve` runs the server; a deployment `default` that a server has already is kept.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backprop_core.schema.flows import FLOWS

OLD = "default"
BY_NAME = "/api/deployments/name/"


def path_of(flow: str) -> str:
    """A flow's own deployment, as Prefect's API names it."""
    return f"{flow}/{FLOWS[flow].deployment}"


def moved(path: str) -> str | None:
    """Where a request for a deployment by its old name finds it; None for every other request."""
    flow, slash, name = path.removeprefix(BY_NAME).partition("/")
    return BY_NAME + path_of(flow) if path.startswith(BY_NAME) and flow in FLOWS and slash and name == OLD else None


class OldNames:
    """Prefect's application, which finds `FLOW/default` under its name of today where it has no such deployment."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = moved(scope["path"]) if scope["type"] == "http" and scope["method"] == "GET" else None
        if path is None:
            await self._app(scope, receive, send)
            return
        answer: list[Message] = []

        async def keep(message: Message) -> None:
            answer.append(message)

        await self._app(dict(scope), receive, keep)
        if answer[0]["status"] == 404:
            await self._app({**scope, "path": path, "raw_path": path.encode()}, receive, send)
            return
        for message in answer:
            await send(message)
