"""Who may come in: the user of `serve --auth`, and the users of the home's file."""

import hmac
import secrets
from collections import OrderedDict

from backprop_core.runtime.settings import Settings
from flows.server import passwords, users
from flows.server.users import User

KEPT = 200  # right passwords of services, which are not hashed for every request


class Members:
    """Looks up users. The file is read again when it has changed, so that who is removed is out at once."""

    def __init__(self, config: Settings, password: str | None) -> None:
        self._config, self._served = config, served(password)
        self._state: tuple[int, ...] | None = None
        self._read: dict[str, User] = {}
        self._key, self._right = secrets.token_bytes(32), OrderedDict[bytes, str]()
        self._nobody = passwords.nobodys()
        self._asks = False

    @property
    def asks(self) -> bool:
        """Whether people have to sign in. Once there was a user they have to, until `serve` ends."""
        self._asks = self._asks or bool(self.all())
        return self._asks

    def all(self) -> dict[str, User]:
        """All users by name. Raises ConfigInvalid if the file is damaged: then no user comes in."""
        try:
            known = self._config.layout.users.stat()
            state: tuple[int, ...] = (known.st_mtime_ns, known.st_size, known.st_ino)
        except FileNotFoundError:
            state = ()
        if state != self._state:
            self._read, self._state = users.read(self._config), state
        return self._read | self._served

    def remembered(self, name: str, secret: str) -> User | None:
        """The user, if this password of theirs was right before and is theirs still."""
        user = self.all().get(name)
        return user if user and self._right.get(self._mark(name, secret)) == user.password else None

    def by_password(self, name: str, secret: str) -> User | None:
        """The user of this name and password, after a quarter of a second, also for a name that does not exist."""
        user = self.all().get(name)
        is_right = passwords.is_right(secret, user.password if user else self._nobody)
        if user is None or not is_right:
            return None
        self._right[self._mark(name, secret)] = user.password
        while len(self._right) > KEPT:
            self._right.popitem(last=False)
        return user

    def by_token(self, token: str) -> User | None:
        """The user of a token, found by its hash."""
        given = users.digest(token)
        found = (user for user in self.all().values() if given in [kept.digest for kept in user.tokens])
        return next(found, None)

    def _mark(self, name: str, secret: str) -> bytes:
        return hmac.digest(self._key, f"{name}:{secret}".encode("utf-8", "surrogatepass"), "sha256")


def served(password: str | None) -> dict[str, User]:
    """The user of `serve --auth`, from `user:password`: this one may act."""
    if password is None:
        return {}
    name, _, secret = password.partition(":")
    return {name: User.model_construct(name=name, role="act", password=passwords.hashed(secret), tokens=())}
