"""Sessions of browsers: in memory, until they sign out, are idle for long, or their user is changed."""

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from flows.server.users import User

IDLE = 12 * 3600  # seconds without a request
WHOLE = 7 * 24 * 3600  # seconds from the password to the next time that it is asked for
MOST = 1000  # sessions at once


@dataclass
class Session:
    """A browser that has given a right password."""

    name: str
    password: str  # hash of then: the session ends when it is another
    made: float
    seen: float


class Sessions:
    """All sessions, by the hash of what the cookie holds. To be used from one thread."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, user: User) -> str:
        """A new session; returns what its cookie holds, which was never sent before."""
        now, secret = self._now(), secrets.token_urlsafe(32)
        for key in [key for key, session in self._sessions.items() if self._is_over(session)]:
            del self._sessions[key]
        while len(self._sessions) >= MOST:
            del self._sessions[min(self._sessions, key=lambda key: self._sessions[key].seen)]
        self._sessions[digest(secret)] = Session(user.name, user.password, now, now)
        return secret

    def user(self, secret: str, users: dict[str, User]) -> User | None:
        """Whose session it is; None if it is over, or its user is gone or has another password."""
        session = self._sessions.get(digest(secret))
        if session is None:
            return None
        user = users.get(session.name)
        if user is None or user.password != session.password or self._is_over(session):
            self.end(secret)
            return None
        session.seen = self._now()
        return user

    def end(self, secret: str) -> None:
        """End a session."""
        self._sessions.pop(digest(secret), None)

    def _is_over(self, session: Session) -> bool:
        return self._now() - session.seen > IDLE or self._now() - session.made > WHOLE


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
