"""Reads files at fsspec URLs: S3, Google Cloud Storage, Azure and others, each through its own package.

An URL may neither lead to an address that the URL guard forbids, nor name another URL inside it.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from backprop_core.data.decompression import CHUNK
from backprop_core.errors import AuthRequired, BackpropError, ExtraMissing, InputNotFound, InputValidationFailed
from backprop_core.runtime.optional_packages import require


class Cloud(NamedTuple):
    """An object store: its package and extra, its base errors, those of missing credentials, and how to give them."""

    package: str
    extra: str
    errors: tuple[str, ...]
    unauthorized: tuple[str, ...]
    credentials: str


S3 = Cloud(
    *("s3fs", "s3", ("botocore.exceptions.BotoCoreError", "botocore.exceptions.ClientError")),
    ("NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError", "ProfileNotFound", "TokenRetrievalError"),
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, of an account that may read it",
)
GCS = Cloud(
    *("gcsfs", "gcs", ("google.auth.exceptions.GoogleAuthError", "gcsfs.retry.HttpError", "aiohttp.ClientError")),
    ("GoogleAuthError", "DefaultCredentialsError", "RefreshError"),
    "set GOOGLE_APPLICATION_CREDENTIALS to the key file of an account that may read it",
)
AZURE = Cloud(
    *("adlfs", "azure", ("azure.core.exceptions.AzureError", "aiohttp.ClientError")),
    ("ClientAuthenticationError", "CredentialUnavailableError"),
    "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_CONNECTION_STRING",
)
CLOUDS = {"s3": S3, "s3a": S3, "gs": GCS, "gcs": GCS, "az": AZURE, "abfs": AZURE, "abfss": AZURE}
NO_HOST = {"file", "local", "memory", "hf", *CLOUDS}  # whose first part names no host: a bucket, a directory


@contextmanager
def filesystem(url: str) -> Iterator[tuple[Any, str]]:
    """fsspec's file system for a URL, and the path in it. Errors in the block become coded ones.

    Raises ExtraMissing, AddressForbidden, AuthRequired, InputNotFound, InputValidationFailed.
    """
    scheme, _, rest = url.partition("://")
    cloud = CLOUDS.get(scheme.lower())
    if "://" in rest and not cloud:
        raise InputValidationFailed(f"{url} has a URL in a URL", hint="use a single URL, or copy the file")
    if cloud:
        require((cloud.package,), what=f"{scheme}://", extra=cloud.extra)
    elif scheme.lower() not in NO_HOST and (host := urlsplit(url).hostname):
        from backprop_core.runtime.url_guard import refuse

        refuse(host)
    import fsspec

    with coded(url, cloud):
        yield fsspec.url_to_fs(url, skip_instance_cache=True)


def members(url: str) -> list[str]:
    """The names of the files directly below a prefix, sorted. Raises what `filesystem` raises."""
    with filesystem(url) as (system, path):
        found = system.ls(path, detail=True)
        return sorted(one["name"].rpartition("/")[2] for one in found if one["type"] == "file")


def chunks(url: str) -> Iterator[bytes]:
    """The bytes at a URL. Raises what `filesystem` raises."""
    with filesystem(url) as (system, path), system.open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


@contextmanager
def coded(url: str, cloud: Cloud | None) -> Iterator[None]:
    """Turn errors of reading a URL into coded errors."""
    errors: tuple[type[Exception], ...] = (OSError, ValueError, TypeError, *own_errors(cloud))
    try:
        yield
    except FileNotFoundError as error:
        raise InputNotFound(f"cannot get {url}: {error.__cause__ or error}", hint="check the URL") from error
    except ImportError as error:
        raise ExtraMissing(f"{url} cannot be read: {error}", hint="install that package, or copy the file") from error
    except errors as error:  # TypeError: the protocol needs options
        raise unreadable(url, error, cloud) from error


def unreadable(url: str, error: Exception, cloud: Cloud | None) -> BackpropError:
    """AuthRequired if the error is about credentials, else InputValidationFailed."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    told = "credential" in str(error).lower() or isinstance(error, PermissionError)
    if cloud and (told or kinds & set(cloud.unauthorized)):
        return AuthRequired(f"{url} cannot be read without credentials for it: {error}", hint=cloud.credentials)
    return InputValidationFailed(f"{url} cannot be read: {error}", hint="check the name and its read permission")


def own_errors(cloud: Cloud | None) -> Iterator[type[Exception]]:
    """The base classes of the errors that a cloud's packages raise, beside Python's own."""
    for name in cloud.errors if cloud else ():
        module, _, kind = name.rpartition(".")
        yield getattr(importlib.import_module(module), kind)
