"""Verbs for who may sign in at the pages of `serve`: `users`."""

import getpass
import sys
from datetime import UTC, datetime
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from backprop_core.errors import AuthRequired, ConfigInvalid
from backprop_core.runtime.local_user import local_user
from backprop_core.runtime.settings import Settings, settings
from flows.cli import tables
from flows.cli.console import one_line
from flows.cli.flags import PLAIN, OutputFlags
from flows.cli.main import Answer
from flows.cli.terminal_prompt import is_attended
from flows.server import audit, users
from flows.server.users import Role, User

Name = Annotated[str, Parameter(help="Name of the user.")]


def users_add(
    name: Name,
    /,
    *,
    role: Annotated[Role, Parameter(help="look: see every page; act: press every button too.")] = "look",
    output: OutputFlags = PLAIN,
) -> Answer:
    config = settings()
    user = users.add(name, role, new_password(name), config)
    noted("users add", name, config)
    return Answer(described(user), f"{name} may {role}. The pages ask for a password: start `serve` with --auth USER.")


def users_list(*, output: OutputFlags = PLAIN) -> Answer:
    known = users.read(settings())
    table = tables.table("user", "role", "tokens")
    for user in known.values():
        tokens = (f"{token.id} of {token.made:%Y-%m-%d}" for token in user.tokens)
        table.add_row(user.name, user.role, ", ".join(tokens))
    return Answer([described(user) for user in known.values()], table if known else "There are no users.")


def users_remove(name: Name, /, *, output: OutputFlags = PLAIN) -> Answer:
    config = settings()
    users.remove(name, config)
    noted("users remove", name, config)
    return Answer({"name": name, "removed": True}, f"{name} is removed; sessions and tokens have ended.")


def users_role(
    name: Name, role: Annotated[Role, Parameter(help="look or act.")], /, *, output: OutputFlags = PLAIN
) -> Answer:
    config = settings()
    user = users.set_role(name, role, config)
    noted("users role", name, config, role=role)
    return Answer(described(user), f"{name} may {role}.")


def users_password(name: Name, /, *, output: OutputFlags = PLAIN) -> Answer:
    config = settings()
    users.known(name, users.read(config))
    user = users.set_password(name, new_password(name), config)
    noted("users password", name, config)
    return Answer(described(user), f"{name} has a new password; sessions have ended, tokens have not.")


def users_token(name: Name, /, *, output: OutputFlags = PLAIN) -> Answer:
    config = settings()
    id, token = users.new_token(name, config)
    noted("users token", name, config, id=id)
    text = (
        f"{token}\nIt is shown once. Send it as: Authorization: Bearer TOKEN\nEnd it: backprop users revoke {name} {id}"
    )
    return Answer({"name": name, "id": id, "token": token}, tables.whole_line(text))


def users_revoke(
    name: Name,
    token: Annotated[str, Parameter(help="Id of the token, as `users list` shows it.")],
    /,
    *,
    output: OutputFlags = PLAIN,
) -> Answer:
    config = settings()
    users.revoke(name, token, config)
    noted("users revoke", name, config, id=token)
    return Answer({"name": name, "id": token, "revoked": True}, f"Token {token} of {name} is refused from now on.")


def users_audit(
    *,
    limit: Annotated[PositiveInt, Parameter(help="Number of entries, the newest first.")] = 50,
    output: OutputFlags = PLAIN,
) -> Answer:
    found = audit.entries(settings(), limit)
    table = tables.table("when", "who", "from", "what", "on", "given", "outcome")
    for entry in found:
        given = ", ".join(f"{name}={value}" for name, value in entry.given.items())
        words = (entry.address, entry.what, entry.target, given, entry.code or "done")
        table.add_row(f"{entry.at.astimezone():%Y-%m-%d %H:%M:%S}", entry.who or "–", *map(one_line, words))
    return Answer([entry.model_dump(mode="json") for entry in found], table if found else "Nothing was done yet.")


def described(user: User) -> dict[str, object]:
    """A user without hashes."""
    tokens = [token.model_dump(mode="json", include={"id", "made"}) for token in user.tokens]
    return {"name": user.name, "role": user.role, "tokens": tokens}


def new_password(name: str) -> str:
    """A password, asked for twice at the terminal, else the first line of stdin. Raises AuthRequired, ConfigInvalid."""
    if not is_attended():
        if given := sys.stdin.readline().rstrip("\r\n"):
            return given
        raise AuthRequired(f"no password for {name}", hint="send it as the first line of stdin")
    given = getpass.getpass(f"Password for {name}: ", stream=sys.stderr)
    if getpass.getpass("Again: ", stream=sys.stderr) != given:
        raise ConfigInvalid("the two passwords differ", hint="run the command again")
    return given


def noted(what: str, name: str, config: Settings, **given: str) -> None:
    """Write a change of the users into the audit log."""
    now, who = datetime.now(UTC), local_user()
    entry = audit.Entry(at=now, who=who, how="terminal", address="", what=what, target=name, given=given, status=200)
    audit.append(entry, config)
