"""Objects in an S3 bucket: read, listed, written on a condition, sent and fetched in parts, verified.

A request whose connection breaks is repeated. A conditional write that may have arrived before its connection broke
counts as done if the object has its content.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import urlsplit

from backprop_core.errors import ArtifactDamaged, AuthRequired, PlaceUnusable, StoreUnreachable
from backprop_core.runtime.optional_packages import require
from backprop_core.runtime.settings import s3_endpoint

R = TypeVar("R")
PART = 16 * 2**20  # bytes of one request
AT_ONCE = 4  # requests for one file
PATIENCE = 120  # seconds
DELAYS = (0.1, 0.3, 1.0, 3.0, 8.0, 15.0)  # seconds before a request is repeated
FRESH = timedelta(minutes=5)  # for how long keys are used before botocore is asked again
CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, of an account that may use the bucket"


class Found(NamedTuple):
    """An object and its etag, which changes with its content."""

    content: bytes
    etag: str
    written: float = 0.0  # seconds since the epoch, by the server's clock


class Listed(NamedTuple):
    """An object in a listing; `key` is relative to the listed prefix."""

    key: str
    etag: str
    size: int
    written: float  # seconds since the epoch, by the server's clock


class Objects:
    """The objects below `s3://bucket/prefix`. A request is given up, and repeated, after `patience` seconds."""

    def __init__(self, address: str, *, patience: int = PATIENCE) -> None:
        require(("obstore",), what=f"the store {address}", extra="s3")
        from obstore.store import S3Store

        parts = urlsplit(address)
        self.address, self._bucket = address, parts.netloc
        self._store: Any = S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            retry_config={"max_retries": 3},
            client_options={"allow_http": True, "timeout": f"{patience}s", "connect_timeout": "10s"},
            **place(),
            **account(address),
        )

    def read(self, key: str) -> Found | None:
        """An object, or None."""
        import obstore

        def get() -> Found:
            got = obstore.get(self._store, key)
            return Found(bytes(got.bytes()), str(got.meta["e_tag"]), got.meta["last_modified"].timestamp())

        try:
            return self._tried(get)
        except FileNotFoundError:
            return None

    def write(self, key: str, content: bytes) -> str:
        """Write an object, whatever was there; its etag."""
        import obstore

        return str(self._tried(lambda: obstore.put(self._store, key, content))["e_tag"])

    def create(self, key: str, content: bytes) -> str | None:
        """Write an object that is not there yet: its etag; None if another writer was first with other content."""
        return self._conditional(key, content, "create")

    def change(self, key: str, content: bytes, etag: str) -> str | None:
        """Write an object that has this etag now: the new one; None if it has changed since."""
        return self._conditional(key, content, {"e_tag": etag})

    def _conditional(self, key: str, content: bytes, mode: Any) -> str | None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            return str(self._tried(lambda: obstore.put(self._store, key, content, mode=mode))["e_tag"])
        except (AlreadyExistsError, PreconditionError, FileNotFoundError):
            now = self.read(key)  # it may be our own, if the connection broke after it
            return now.etag if now and now.content == content else None

    def list(self, prefix: str) -> list[Listed]:
        """The objects below a prefix."""
        import obstore

        def collect() -> list[Listed]:
            chunks = obstore.list(self._store, prefix=prefix)
            every = [one for chunk in chunks for one in chunk]
            return [
                Listed(one["path"][len(prefix) + 1 :], str(one["e_tag"]), one["size"], one["last_modified"].timestamp())
                for one in every
            ]

        return self._tried(collect)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are gone are no error."""
        import obstore

        if keys:
            self._tried(lambda: obstore.delete(self._store, list(keys)))

    def move(self, key: str, to: str) -> None:
        """Give an object another key."""
        import obstore

        self._tried(lambda: obstore.copy(self._store, key, to))
        self.delete([key])

    def send(self, key: str, path: Path) -> None:
        """Write a file, a large one in parts."""
        import obstore

        self._tried(lambda: obstore.put(self._store, key, path, chunk_size=PART, max_concurrency=AT_ONCE))

    def fetch(self, key: str, path: Path, size: int, sha256: str) -> None:
        """Write an object to a new file. Raises ArtifactDamaged unless it has this size and sha256."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("xb") as file:
                found = self._copied(key, file, size)
        except FileNotFoundError:
            found = "nothing"
        if found != sha256:
            hint = "run the command that made it again; `backprop store check` lists everything that is damaged"
            raise ArtifactDamaged(f"{key} in {self.address} is not what was committed", hint=hint)

    def _copied(self, key: str, file: BinaryIO, size: int) -> str:
        """Write the parts in their order; the sha256 of all."""
        sha = hashlib.sha256()
        for part in self._parts(key, size):
            file.write(part)
            sha.update(part)
        return sha.hexdigest()

    def _parts(self, key: str, size: int) -> Iterator[memoryview]:
        """The bytes of an object in their order, a few requests ahead."""
        import obstore

        def part(start: int) -> memoryview:
            length = min(PART, size - start)
            return memoryview(self._tried(lambda: obstore.get_range(self._store, key, start=start, length=length)))

        if not size:
            return
        with ThreadPoolExecutor(AT_ONCE) as pool:
            ahead: deque[Future[memoryview]] = deque()
            for start in range(0, size, PART):
                ahead.append(pool.submit(part, start))
                if len(ahead) > AT_ONCE:
                    yield ahead.popleft().result()
            for one in ahead:
                yield one.result()

    def _tried(self, request: Callable[[], R]) -> R:
        """The answer to a request that is repeated if it fails for a reason that can pass.

        Raises StoreUnreachable, PlaceUnusable, AuthRequired, FileNotFoundError, and obstore's AlreadyExistsError and
        PreconditionError.
        """
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        lasting: tuple[type[Exception], ...] = (*refusals(), FileNotFoundError)
        passing: type[Exception] = BaseError
        for delay in (*DELAYS, None):
            try:
                return request()
            except (PermissionDeniedError, UnauthenticatedError) as error:
                raise AuthRequired(f"no access to the store {self.address}", hint=CREDENTIALS) from error
            except lasting:
                raise
            except passing as error:
                if "NoSuchBucket" in str(error):
                    hint = "create the bucket, or correct BACKPROPAGATE_STORE"
                    raise PlaceUnusable(f"there is no bucket {self._bucket}", hint=hint) from error
                if delay is None:
                    raise self._unreachable(error) from error
                time.sleep(delay)
        raise AssertionError("the last try returns or raises")

    def _unreachable(self, error: Exception) -> StoreUnreachable:
        reason = str(error).strip().partition("\n")[0][:200]
        return StoreUnreachable(
            f"the store {self.address} cannot be reached: {reason}",
            hint="check the network and AWS_ENDPOINT_URL; then `backprop resume RUN_ID` continues the run",
        )


def refusals() -> tuple[type[Exception], ...]:
    """Errors that the same request gets again."""
    from obstore import exceptions

    return (
        exceptions.AlreadyExistsError,
        exceptions.PreconditionError,
        exceptions.InvalidPathError,
        exceptions.NotSupportedError,
    )


def place() -> dict[str, Any]:
    """Endpoint and region, from the environment."""
    endpoint = s3_endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return {"region": region} | ({"endpoint": endpoint} if endpoint else {})


def account(address: str) -> dict[str, Any]:
    """How to sign requests: nothing to add if the environment has the keys, else what botocore finds.

    Raises AuthRequired if that is nothing.
    """
    if os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"):
        return {}
    from botocore.exceptions import BotoCoreError
    from botocore.session import get_session

    try:
        found = get_session().get_credentials()
    except BotoCoreError as error:
        raise AuthRequired(f"no credentials for the store {address}: {error}", hint=CREDENTIALS) from error
    if found is None:
        raise AuthRequired(f"no credentials for the store {address}", hint=CREDENTIALS)

    def keys() -> dict[str, Any]:
        now = found.get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(UTC) + FRESH,
        }

    return {"credential_provider": keys}
