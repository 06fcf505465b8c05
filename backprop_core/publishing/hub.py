"""Publishes to a Hugging Face Hub repository: uploads files as one commit, and restores an earlier commit.

Uses huggingface_hub's client. HF_ENDPOINT selects another Hub, which needs HF_HUB_DISABLE_XET=1 if it has no Xet
storage.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars, httpx, validate_repo_id  # type: ignore[attr-defined]

from backprop_core.errors import (
    AuthRequired,
    BackpropError,
    ConfigInvalid,
    HubUnreachable,
    HubUploadFailed,
    NameTaken,
    TokenizerUnsupported,
)
from backprop_core.models.base import TOKENIZER_FILES
from backprop_core.models.peft_files import CONFIG, WEIGHTS
from backprop_core.runtime.redaction import excerpt
from backprop_core.schema.records import Record
from backprop_core.schema.refs import BaseRef
from backprop_core.store.cache_keys import canonical

RECORD = "backprop.json"  # marks repositories of this project, and lists their content
SECRET_BLOCK = "hf-token"  # of Prefect, with the token
CommitOperation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete
LATER = {408, 429, 500, 502, 503, 504}


def check_repo_id(repo: str) -> None:
    """Raise ConfigInvalid unless `repo` is a valid OWNER/NAME."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigInvalid(f"invalid repository id {repo}: {error}", hint="write OWNER/NAME") from error
    if repo.count("/") != 1:
        raise ConfigInvalid(f"invalid repository id {repo}: no owner", hint="write OWNER/NAME")


class File(Record):
    """A file for a repository: a local file, or a text."""

    path: str | None = None
    text: str | None = None

    @property
    def content(self) -> Path | bytes:
        return Path(self.path) if self.path else (self.text or "").encode()


def adapter_files(adapter: Path, base: BaseRef, base_directory: Path) -> dict[str, File]:
    """The adapter, with the base's hub id in its config, and the tokenizer. Raises TokenizerUnsupported without one.

    The config does not name a base that is a local directory.
    """
    found = {name: base_directory / name for name in TOKENIZER_FILES if (base_directory / name).is_file()}
    if not {"tokenizer.json", "tokenizer.model", "vocab.json"} & found.keys():
        raise TokenizerUnsupported(f"{base.name} has no tokenizer", hint="restore the base's tokenizer files")
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    named = {"base_model_name_or_path": base.name, "revision": base.revision} if base.revision else {}
    return {
        CONFIG: File(text=canonical({**config, **named}) + "\n"),
        **{name: File(path=str(path)) for name, path in {WEIGHTS: adapter / WEIGHTS, **found}.items()},
    }


class Hub:
    """Client of a Hub, authenticated by `token`. Every call raises AuthRequired, HubUnreachable or HubUploadFailed."""

    def __init__(self, token: str) -> None:
        disable_progress_bars()  # the command line shows its own
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)

    def head(self, repo: str, *, private: bool) -> str:
        """The repository's latest commit; creates the repository if needed. Raises NameTaken if it is not ours."""
        with coded(repo):
            self._api.create_repo(repo, private=private, exist_ok=True)
        return self._state(repo)[0]

    def push(self, repo: str, files: Mapping[str, File], *, message: str, parent: str) -> str:
        """Upload files in one commit on top of `parent`; returns the commit. Idempotent.

        Deletes GGUF files that are not among them, and keeps all other files. Skips unchanged files; creates no commit
        if all are unchanged.
        """
        _, names = self._state(repo)
        stale = [name for name in sorted(names) if name.endswith(".gguf") and name not in files]
        operations: list[CommitOperation] = [
            *(CommitOperationAdd(name, file.content) for name, file in files.items()),
            *(CommitOperationDelete(name) for name in stale),
        ]
        with coded(repo):
            made = self._api.create_commit(repo, operations, commit_message=message, parent_commit=parent)
        return str(made.oid)

    def restore(self, repo: str, commit: str) -> str:
        """Restore the files of an earlier commit in a new commit, without uploading anything."""
        now, names = self._state(repo)
        if now == commit:
            return commit
        with coded(repo):
            wanted = set(self._api.list_repo_files(repo, revision=commit))
            operations: list[CommitOperation] = [
                *(CommitOperationCopy(name, name, src_revision=commit) for name in sorted(wanted)),
                *(CommitOperationDelete(name) for name in sorted(names - wanted)),
            ]
            made = self._api.create_commit(repo, operations, commit_message=f"Back to {commit[:12]}")
        return str(made.oid)

    def holds(self, repo: str, record: str) -> bool:
        """Whether the repository's record equals this one."""
        with coded(repo):
            found = self._api.get_paths_info(repo, [RECORD])
        data = record.encode()
        name = hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()  # git's blob id
        return [file.blob_id for file in found if isinstance(file, RepoFile)] == [name]

    def _state(self, repo: str) -> tuple[str, set[str]]:
        """The latest commit, and its file names. Raises NameTaken."""
        with coded(repo):
            info = self._api.model_info(repo)
        names = {file.rfilename for file in info.siblings or []}
        if RECORD not in names and names - {".gitattributes", "README.md"}:
            raise NameTaken(
                f"the Hub repository {repo} exists and was not created by this tool", hint="choose another --repo"
            )
        return str(info.sha), names


@contextmanager
def coded(repo: str) -> Iterator[None]:
    """Turn the client's errors into coded errors."""
    try:
        yield
    except (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled, RuntimeError, ValueError) as error:
        raise as_coded(repo, error) from error


def as_coded(repo: str, error: BaseException) -> BackpropError:
    """The coded error for the client's error, or for its cause, as the client wraps upload errors."""
    match error:
        case HfHubHTTPError():
            return refusal(repo, error.response.status_code, str(error))
        case httpx.TransportError() | OfflineModeIsEnabled():
            return HubUnreachable(
                f"the Hub did not respond for {repo} ({type(error).__name__})",
                hint="check the network and HF_ENDPOINT, then run it again; uploaded files are kept",
            )
    if error.__cause__:
        return as_coded(repo, error.__cause__)
    return HubUploadFailed(
        f"{repo}: {excerpt(str(error), 300)}", hint="a Hub without Xet storage needs HF_HUB_DISABLE_XET=1"
    )


def refusal(repo: str, status: int, said: str) -> BackpropError:
    if status in (401, 403):
        return AuthRequired(
            f"this token may not write to {repo} on the Hub ({status})",
            hint="set HF_TOKEN, or the Prefect Secret block hf-token, to a token with write access",
        )
    if status in LATER:
        return HubUnreachable(
            f"the Hub returned status {status} for {repo}", hint="run it again later; uploaded files are kept"
        )
    words = excerpt(said, 300)
    return HubUploadFailed(
        f"the Hub returned status {status} for {repo}: {words}", hint="fix the reported problem, then run it again"
    )
