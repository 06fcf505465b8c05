"""Writes the audit log: one entry for each write, and for each failed attempt to come in, before its answer is sent."""

import logging
from datetime import UTC, datetime
from typing import Any

import anyio.to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backprop_core.runtime.settings import Settings
from flows.server import audit
from flows.server.audit import Entry
from flows.server.web.people import unknown
from flows.server.web.throttle import Throttle, network

log = logging.getLogger(__name__)
READS = ("GET", "HEAD", "OPTIONS")


class Audited:
    """An application whose writes are in the audit log."""

    def __init__(self, app: ASGIApp, config: Settings) -> None:
        self._app, self._config = app, config
        self._strangers = Throttle(burst=100, seconds=1.0)  # entries of one address; the rest is left out

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state.update(unknown())

        async def sending(message: Message) -> None:
            begins = message["type"] == "http.response.start"
            if begins and (scope["method"] not in READS or state["failed"]):
                await anyio.to_thread.run_sync(self._append, entry(scope, message["status"]))
            await send(message)

        await self._app(scope, receive, sending)

    def _append(self, entry: Entry) -> None:
        if entry.how is None:
            place = network(entry.address)
            if self._strangers.wait(place):
                return
            self._strangers.add(place)
        try:
            audit.append(entry, self._config)
        except OSError as error:  # the action is done: the output of `serve` is the last place to say so
            log.error("the audit log cannot be written: %s: %s", error, entry.model_dump_json())


def entry(scope: Scope, status: int) -> Entry:
    """What is kept of a request."""
    state: dict[str, Any] = scope["state"]
    return Entry(
        at=datetime.now(UTC),
        who=state["person"].name,
        how=state["how"],
        address=scope["client"][0] if scope.get("client") else "",
        what=getattr(scope.get("endpoint"), "__name__", scope["method"]),
        target=scope["path"][: audit.LONGEST],
        given=audit.shown(state["given"]),
        status=status,
        code=state["code"],
    )
