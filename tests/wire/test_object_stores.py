"""Files in object stores: read from a real S3 server on loopback; a coded error without package or credentials."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import boto3  # type: ignore[import-untyped]
import pytest
from moto.server import ThreadedMotoServer

from backprop_core.data.loading import read_rows, snapshot
from backprop_core.data.remote_files import AZURE, CLOUDS, GCS, unreadable
from backprop_core.errors import (
    AddressForbidden,
    AuthRequired,
    ExtraMissing,
    InputNotFound,
    InputValidationFailed,
    NoRows,
)
from backprop_core.schema.specs import DatasetSpec
from backprop_core.store.artifacts import Store
from tasks.runs.source_fingerprint import fingerprint
from tasks.runs.sources import keep as kept_for_a_run
from tasks.runs.sources import sources

ROWS = [{"text": f"Row {number}."} for number in range(50)]
PACKED = gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode(), mtime=0)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server with one bucket that has one file."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "who", "aws_secret_access_key": "knows", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=address, **keys)
    client.create_bucket(Bucket="drops")
    client.put_object(Bucket="drops", Key="in/rows #1.jsonl.gz", Body=PACKED)
    for name, text in {"a.jsonl": ROWS[0], "b.jsonl": ROWS[1], "deep/c.jsonl": ROWS[2], ".d.jsonl": ROWS[3]}.items():
        client.put_object(Bucket="drops", Key=f"batch/{name}", Body=json.dumps(text).encode())
    client.put_object(Bucket="drops", Key="batch/", Body=b"")
    client.put_object(Bucket="drops", Key="other/notes.pdf", Body=b"%PDF")
    client.close()
    yield address
    server.stop()


@pytest.fixture(autouse=True)
def alone(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's own accounts is seen."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "who")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "knows")


@pytest.mark.usefixtures("account")
def test_a_file_in_s3(tmp_path: Path) -> None:
    """A file in a bucket is the same source as the file beside it, and its fingerprint stays until it changes."""
    url = "s3://drops/in/rows #1.jsonl.gz"
    (tmp_path / "rows.jsonl.gz").write_bytes(PACKED)
    source = snapshot(url, scratch=tmp_path)
    assert source.digest == snapshot(str(tmp_path / "rows.jsonl.gz"), scratch=tmp_path).digest
    assert read_rows(source, DatasetSpec(path=url)).rows == ROWS
    assert fingerprint(DatasetSpec(path=url)) == fingerprint(DatasetSpec(path=url))


@pytest.mark.usefixtures("account")
def test_a_prefix_is_a_directory(tmp_path: Path, server: str, keep: Store) -> None:
    """The row files below it, and not below it further down, are the same source as a local directory of them."""
    url, local = "s3://drops/batch/", tmp_path / "batch"
    local.mkdir()
    for name, row in zip(("a.jsonl", "b.jsonl"), ROWS, strict=False):
        (local / name).write_text(json.dumps(row))
    [found] = sources([DatasetSpec(path=url)], keep.scratch("source"))
    assert (found.name, found.data.digest) == ("batch", snapshot(str(local), scratch=tmp_path).digest)
    [kept] = kept_for_a_run([found], "a" * 32, keep)
    assert read_rows(kept.data, DatasetSpec(path=url)).rows == ROWS[:2] and not Path(found.data.path).exists()
    before = fingerprint(DatasetSpec(path=url))
    assert fingerprint(DatasetSpec(path=url)) == before
    with pytest.raises(NoRows, match="other/"):
        snapshot("s3://drops/other/", scratch=tmp_path)
    with pytest.raises(InputNotFound):
        snapshot("s3://drops/none/", scratch=tmp_path)


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize("url", ["s3://drops/none.jsonl", "s3://no-bucket/rows.jsonl"])
def test_what_is_not_there(tmp_path: Path, url: str) -> None:
    """A key, and a bucket, that do not exist are a coded error with the URL."""
    with pytest.raises(InputNotFound, match=url):
        snapshot(url, scratch=tmp_path)


def test_without_credentials(tmp_path: Path) -> None:
    """Without credentials the error says how to give them, for a run and for a watcher."""
    url = "s3://drops/in/rows #1.jsonl.gz"
    with pytest.raises(AuthRequired, match="without credentials") as caught:
        snapshot(url, scratch=tmp_path)
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint
    with pytest.raises(AuthRequired):
        fingerprint(DatasetSpec(path=url))


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcs"), ("gcs", "gcs"), ("az", "azure"), ("abfs", "azure")])
def test_a_package_that_is_missing(tmp_path: Path, scheme: str, extra: str) -> None:
    """An object store whose package is not installed is an error with the command that installs it."""
    pytest.importorskip("s3fs")
    try:
        __import__(CLOUDS[scheme].package)
    except ImportError:
        with pytest.raises(ExtraMissing, match=CLOUDS[scheme].package) as caught:
            snapshot(f"{scheme}://box/rows.jsonl", scratch=tmp_path)
        assert caught.value.hint == f"pip install 'backpropagate-pipeline[{extra}]'"
    else:
        pytest.skip(f"{CLOUDS[scheme].package} is installed")


def test_credentials_of_the_other_stores() -> None:
    """What the packages of Google and Azure raise without credentials is the same coded error."""
    own = type("DefaultCredentialsError", (Exception,), {})("no default")
    assert isinstance(unreadable("gs://b/x", own, GCS), AuthRequired)
    said = ValueError("Must provide either a connection_string or account_name with credentials!!")
    assert isinstance(unreadable("az://b/x", said, AZURE), AuthRequired)
    assert isinstance(unreadable("az://b/x", ValueError("else"), AZURE), InputValidationFailed)


@pytest.mark.parametrize(
    "url",
    [
        "generic://http://169.254.169.254/latest/x.jsonl",
        "memory://http://169.254.169.254/x.jsonl",
        "file://http://169.254.169.254/x.jsonl",
        "simplecache::http://169.254.169.254/x.jsonl",
    ],
)
def test_a_url_in_a_url(tmp_path: Path, url: str) -> None:
    """No protocol carries the address of another one past the guard."""
    with pytest.raises(InputValidationFailed, match=r"URL in a URL|chain of URLs"):
        snapshot(url, scratch=tmp_path)


@pytest.mark.parametrize("scheme", ["ftp", "sftp", "webhdfs", "smb"])
def test_other_protocols_are_guarded_too(tmp_path: Path, scheme: str) -> None:
    """A protocol that connects to a host is held to the same addresses as HTTP."""
    with pytest.raises(AddressForbidden):
        snapshot(f"{scheme}://169.254.169.254/rows.jsonl", scratch=tmp_path)
