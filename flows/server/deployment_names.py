"""Names of deployments and of their schedules, and the old name `default` that all deployments had.

Prefect's UI lists deployments by name, so the name says what a run does. On the server of `serve`, `FLOW/default` still
finds the deployment; a server that already has a deployment `default` keeps it.
"""

import hashlib
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backprop_core.schema.flows import FLOWS
from backprop_core.schema.specs import ScheduleSpec

OLD = "default"
BY_NAME = "/api/deployments/name/"
FROM_FILE = "file-"  # prefix of the slug of a schedule from a job file
OF_FILE = re.compile(FROM_FILE + "[0-9a-f]{12}")  # the whole slug, since a person may call a schedule file-import


def path_of(flow: str) -> str:
    """FLOW/DEPLOYMENT of a flow, as in Prefect's API."""
    return f"{flow}/{FLOWS[flow].deployment}"


def slug_of(schedule: ScheduleSpec) -> str:
    """The slug of a schedule from a job file: a digest of what the file says."""
    return FROM_FILE + hashlib.sha256(f"{schedule.cron} {schedule.timezone}".encode()).hexdigest()[:12]


def moved(path: str) -> str | None:
    """The path of today for a request of a deployment by its old name; None for every other request."""
    flow, slash, name = path.removeprefix(BY_NAME).partition("/")
    return BY_NAME + path_of(flow) if path.startswith(BY_NAME) and flow in FLOWS and slash and name == OLD else None


class OldNames:
    """Prefect's application; it answers `FLOW/default` with the deployment of today if there is no `default`."""

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
