"""Prefect's REST API for the pages. Prefect's own client would cost a second and a hundred megabytes."""

import json
import math
import os
import random
import threading
import time
import uuid
from typing import Any

import httpx

from backprop_core.errors import DeploymentRefused, PrefectUnreachable
from backprop_core.runtime.redaction import blank_address

PATIENCE = httpx.Timeout(5.0)  # seconds: a page says that Prefect is away rather than wait for it
WRITING = httpx.Timeout(5.0, read=30.0)  # a write follows a read, and waits as long as Prefect does for its database

KEEP, SOON = 15.0, 1.5  # seconds that an answer is kept: while nothing happens, and while something does
SETTLING = 15.0  # seconds after a sign of change in which something happens
MOST_KEPT = 200  # answers
BUSY = (0.1, 0.3, 0.9, 2.7, 2.7)  # seconds until the next try: Prefect says 503 while its database is locked
BROKEN_OFF = (httpx.ReadError, httpx.RemoteProtocolError)  # it also resets connections while it has many
IDLE = httpx.Limits(keepalive_expiry=2.0)  # seconds: uvicorn closes a connection after five


class PrefectApi:
    """A Prefect server, by the address of its API. Safe for any number of threads."""

    def __init__(self, api: str, auth: str | None) -> None:
        self._api, self._guard = api, threading.Lock()
        self._headers, self._auth = credentials(auth), auth
        self._csrf: dict[str, str] | None = None  # what a write needs; empty if the server asks for nothing
        self._client: httpx.Client | None = None
        self._kept: dict[tuple[str, str], tuple[float, Any]] = {}
        self._changes, self._changed_at = 0, -math.inf
        self._sign: object = None

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs in its environment to use the same server."""
        return {"PREFECT_API_URL": self._api, **({"PREFECT_API_AUTH_STRING": self._auth} if self._auth else {})}

    def query(self, path: str, body: Any = None, keep: float = KEEP) -> Any:
        """The answer to a query, GET without a body; kept for some seconds, so that a page that refreshes costs little.

        Raises PrefectUnreachable, DeploymentRefused.
        """
        key, now = (path, json.dumps(body)), time.monotonic()
        with self._guard:
            changes, known = self._changes, self._kept.get(key)
            limit = min(keep, SOON if now - self._changed_at < SETTLING else KEEP)
        if known and now - known[0] < limit:
            return known[1]
        answer = self.get(path) if body is None else self._ask("POST", path, body)
        with self._guard:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            if changes == self._changes:
                self._kept[key] = now, answer
        return answer

    def forget(self) -> None:
        """Ask for everything again."""
        with self._guard:
            self._kept.clear()
            self._changes += 1

    def changed(self) -> None:
        """Something was written: forget, and keep little for a while, as more may follow."""
        self.forget()
        with self._guard:
            self._changed_at = time.monotonic()

    def notice(self, sign: object) -> None:
        """Forget what was kept if this sign of what runs do is another than the last time."""
        with self._guard:
            before, self._sign = self._sign, sign
        if sign != before:
            self.changed()

    def get(self, path: str) -> Any:
        """The answer; None for 404. Raises PrefectUnreachable, DeploymentRefused."""
        return self._answer(self._send("GET", path, None, {}))

    def send(self, method: str, path: str, body: Any) -> Any:
        """The answer to a write; None for 404. Raises PrefectUnreachable, DeploymentRefused."""
        try:
            return self._ask(method, path, body)
        finally:
            self.changed()

    def _ask(self, method: str, path: str, body: Any) -> Any:
        answer = self._send(method, path, body, self._token())
        if answer.status_code == httpx.codes.FORBIDDEN:  # the token has expired
            answer = self._send(method, path, body, self._token(renew=True))
        return self._answer(answer)

    def close(self) -> None:
        with self._guard:
            if self._client:
                self._client.close()

    def _token(self, *, renew: bool = False) -> dict[str, str]:
        """The headers of the server's protection against forged requests."""
        with self._guard:
            known = self._csrf
        if known is None or renew:
            name = f"backprop-page-{uuid.uuid4().hex}"
            answer = self._send("GET", f"/csrf-token?client={name}", None, {})
            token = answer.json()["token"] if answer.status_code == httpx.codes.OK else None
            known = {"Prefect-Csrf-Client": name, "Prefect-Csrf-Token": token} if token else {}
            with self._guard:
                self._csrf = known
        return known

    def _send(self, method: str, path: str, body: Any, headers: dict[str, str]) -> httpx.Response:
        with self._guard:
            if self._client is None:
                self._client = httpx.Client(base_url=self._api, headers=self._headers, timeout=PATIENCE, limits=IDLE)
        pauses = list(BUSY)
        while True:
            try:
                patience = PATIENCE if is_read(method, path) else WRITING
                answer = self._client.request(method, path, json=body, headers=headers, timeout=patience)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or not pauses:
                    return answer
            except httpx.HTTPError as error:
                if not (isinstance(error, BROKEN_OFF) and pauses and is_repeatable(method, path, body)):
                    raise self._away(type(error).__name__) from error
            time.sleep(pauses.pop(0) * random.uniform(0.5, 1.5))  # others that were refused try at other moments

    def _answer(self, answer: httpx.Response) -> Any:
        status = answer.status_code
        if status == httpx.codes.NOT_FOUND:
            return None
        if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.UNAUTHORIZED:
            raise self._away(f"HTTP {status}")
        if status >= httpx.codes.BAD_REQUEST:
            raise DeploymentRefused(
                f"Prefect refuses it: {said_by(answer)}", hint="update its deployments: backprop deploy"
            )
        return answer.json() if answer.content else None

    def _away(self, why: str) -> PrefectUnreachable:
        return PrefectUnreachable(
            f"Prefect does not answer at {blank_address(self._api)}: {why}",
            hint="wait for it to restart, or look at `backprop doctor`",
        )


def is_read(method: str, path: str) -> bool:
    """Whether a request changes nothing."""
    return method == "GET" or path.endswith("/filter")


def is_repeatable(method: str, path: str, body: Any) -> bool:
    """Whether a request that broke off may be sent again: it only reads, or Prefect does it once by its key."""
    if method != "POST" or is_read(method, path):
        return True
    return isinstance(body, dict) and ("idempotency_key" in body or is_transition(body))


def is_transition(body: dict[str, Any]) -> bool:
    """Whether a change of a run's state has the key by which Prefect knows it again."""
    return "transition_id" in body.get("state", {}).get("state_details", {})


def credentials(auth: str | None) -> dict[str, str]:
    """The header for `user:password`, or for what Prefect's own environment names."""
    basic, key = auth or os.environ.get("PREFECT_API_AUTH_STRING"), os.environ.get("PREFECT_API_KEY")
    if basic:
        name, _, password = basic.partition(":")
        return {"Authorization": httpx.BasicAuth(name, password)._auth_header}
    return {"Authorization": f"Bearer {key}"} if key else {}


def said_by(answer: httpx.Response) -> str:
    """What a refusal says, cut."""
    try:
        return str(answer.json()["detail"])[:500]
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"
