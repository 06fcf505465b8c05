"""Who may sign in at the pages of `serve`: names, roles, hashed passwords and tokens, in one file of the home."""

import hashlib
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

from filelock import FileLock
from pydantic import Field, ValidationError

from backprop_core.errors import ConfigInvalid, UserUnknown
from backprop_core.runtime.redaction import keep_secret
from backprop_core.runtime.settings import Settings
from backprop_core.schema.field_types import NAME
from backprop_core.schema.records import Record
from flows.server import audit, private_files
from flows.server.passwords import check_strength, hashed

Role = Literal["look", "act"]
TOKEN = "bpt_"  # how a token begins: logs redact it by this


class Token(Record):
    """A token of a service. The token itself is not kept."""

    id: str
    digest: str  # sha256; a token is random, so it needs neither salt nor cost
    made: datetime


class User(Record):
    """Who may sign in."""

    name: str = Field(pattern=NAME)
    role: Role
    password: str = Field(repr=False)  # hashed
    tokens: tuple[Token, ...] = ()


class UsersFile(Record):
    """The file."""

    format: Literal[1] = 1
    users: dict[str, User]


def read(config: Settings) -> dict[str, User]:
    """All users by name. Raises ConfigInvalid for a file that is damaged."""
    try:
        return UsersFile.model_validate_json(config.layout.users.read_bytes()).users
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise ConfigInvalid(
            f"{config.layout.users} is damaged", hint="restore it from a backup, or remove it and add every user again"
        ) from error


@contextmanager
def changing(config: Settings) -> Iterator[dict[str, User]]:
    """All users, to be changed; written at the end. Raises PlaceUnusable if the change could not be noted."""
    config.layout.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(config.layout.users_lock, mode=private_files.MODE):
        users = read(config)
        audit.check_writable(config)
        yield users
        private_files.replace(config.layout.users, UsersFile(users=users).model_dump_json(indent=1) + "\n")


def change(name: str, config: Settings, changed: Callable[[User], User]) -> User:
    """Change one user. Raises UserUnknown, ConfigInvalid."""
    with changing(config) as users:
        users[name] = changed(known(name, users))
        return users[name]


def known(name: str, users: dict[str, User]) -> User:
    """The user of this name. Raises UserUnknown."""
    if name not in users:
        raise UserUnknown(f"there is no user {name[:60]}", hint="list them: backprop users list")
    return users[name]


def add(name: str, role: Role, secret: str, config: Settings) -> User:
    """A new user. Raises ConfigInvalid for a name that is taken or malformed, and for a weak password."""
    if not re.fullmatch(NAME, name):
        raise ConfigInvalid(
            f"invalid user name {name[:60]!r}",
            hint="use up to 63 lowercase letters, digits, '.', '_' and '-', starting with a letter or a digit",
        )
    user = User(name=name, role=role, password=kept(name, secret))
    with changing(config) as users:
        if name in users:
            raise ConfigInvalid(f"there is a user {name} already", hint=f"change it: backprop users role {name} {role}")
        users[name] = user
    return user


def kept(name: str, secret: str) -> str:
    """A password's hash. Raises ConfigInvalid if it is weak."""
    keep_secret(secret)
    check_strength(name, secret)
    return hashed(secret)


def remove(name: str, config: Settings) -> None:
    """Remove a user, with password and tokens. Raises UserUnknown."""
    with changing(config) as users:
        known(name, users)
        del users[name]


def set_role(name: str, role: Role, config: Settings) -> User:
    """Let a user act, or only look. Raises UserUnknown."""
    return change(name, config, lambda user: user.model_copy(update={"role": role}))


def set_password(name: str, secret: str, config: Settings) -> User:
    """Give a user another password; sessions of the old one end. Raises UserUnknown, ConfigInvalid."""
    known(name, read(config))
    password = kept(name, secret)
    return change(name, config, lambda user: user.model_copy(update={"password": password}))


def new_token(name: str, config: Settings) -> tuple[str, str]:
    """Make a token: its id, and the token, which is shown once. Raises UserUnknown."""
    secret = TOKEN + secrets.token_urlsafe(32)
    made = Token(id=secrets.token_hex(4), digest=digest(secret), made=datetime.now(UTC))
    change(name, config, lambda user: user.model_copy(update={"tokens": (*user.tokens, made)}))
    return made.id, secret


def revoke(name: str, id: str, config: Settings) -> None:
    """Make a token useless. Raises UserUnknown."""

    def without(user: User) -> User:
        left = tuple(token for token in user.tokens if token.id != id)
        if len(left) == len(user.tokens):
            raise UserUnknown(f"{name} has no token {id[:60]}", hint="list them: backprop users list")
        return user.model_copy(update={"tokens": left})

    change(name, config, without)


def digest(token: str) -> str:
    """A token as it is kept."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
