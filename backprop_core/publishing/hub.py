"""The Hub: what was made as one commit of a repository, and a commit as the state of the repository again.

Everything through huggingface_hub's own client; HF_ENDPOINT names another Hub than the usual one, which needs
HF_HUB_DISABLE_XET=1 if it has no Xet storage.
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

RECORD = "backprop.json"  # says that a repository is ours, and what is in it
CommitOperation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete
LATER = {408, 429, 500, 502, 503, 504}


def check_repo_id(repo: str) -> None:
    """Raise ConfigInvalid unless `repo` is OWNER/NAME as the Hub takes it."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigInvalid(f"{repo} is no repository's id: {error}", hint="write OWNER/NAME") from error
    if repo.count("/") != 1:
        raise ConfigInvalid(f"{repo} is no repository's id: it has no owner", hint="write OWNER/NAME")


class File(Record):
    """What a file of a repository holds: the bytes of a file of this machine, or a text."""

    path: str | None = None
    text: str | None = None

    @property
    def content(self) -> Path | bytes:
        return Path(self.path) if self.path else (self.text or "").encode()


def adapter_files(adapter: Path, base: BaseRef, base_directory: Path) -> dict[str, File]:
    """The adapter, its config naming the base by hub id, and the tokenizer. Raises TokenizerUnsupported without one.

    A base that is a directory of some machine is not named: nobody else has it.
    """
    found = {name: base_directory / name for name in TOKENIZER_FILES if (base_directory / name).is_file()}
    if not {"tokenizer.json", "tokenizer.model", "vocab.json"} & found.keys():
        raise TokenizerUnsupported(f"{base.name} has no tokenizer", hint="put the base's tokenizer files back")
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    named = {"base_model_name_or_path": base.name, "revision": base.revision} if base.revision else {}
    return {
        CONFIG: File(text=canonical({**config, **named}) + "\n"),
        **{name: File(path=str(path)) for name, path in {WEIGHTS: adapter / WEIGHTS, **found}.items()},
    }


class Hub:
    """A Hub, as the owner of `token`. Every call raises AuthRequired, HubUnreachable or HubUploadFailed."""

    def __init__(self, token: str) -> None:
        disable_progress_bars()  # the command line has a bar of its own
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)

    def head(self, repo: str, *, private: bool) -> str:
        """The commit that the repository is at; it is made if it is not there. Raises NameTaken if it is not ours."""
        with coded(repo):
            self._api.create_repo(repo, private=private, exist_ok=True)
        return self._state(repo)[0]

    def push(self, repo: str, files: Mapping[str, File], *, message: str, parent: str) -> str:
        """Put these files beside what is there, in one commit on top of `parent`; the commit.

        GGUF files that are not among them go. Files that are there already are not sent, and if all are, there is no
        commit: doing it again changes nothing.
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
        """Make the repository's files those of an earlier commit again, in a new commit; nothing is uploaded."""
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
        """Whether the repository's record is this one."""
        with coded(repo):
            found = self._api.get_paths_info(repo, [RECORD])
        data = record.encode()
        name = hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()  # as git names it
        return [file.blob_id for file in found if isinstance(file, RepoFile)] == [name]

    def _state(self, repo: str) -> tuple[str, set[str]]:
        """The commit on top, and the names of its files. Raises NameTaken."""
        with coded(repo):
            info = self._api.model_info(repo)
        names = {file.rfilename for file in info.siblings or []}
        if RECORD not in names and names - {".gitattributes", "README.md"}:
            raise NameTaken(f"the Hub has a repository {repo} that was not made here", hint="choose another --repo")
        return str(info.sha), names


@contextmanager
def coded(repo: str) -> Iterator[None]:
    """Whatever the client raises, with its code."""
    try:
        yield
    except (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled, RuntimeError, ValueError) as error:
        raise as_coded(repo, error) from error


def as_coded(repo: str, error: BaseException) -> BackpropError:
    """The client wraps what went wrong in an upload: the cause decides."""
    match error:
        case HfHubHTTPError():
            return refusal(repo, error.response.status_code, str(error))
        case httpx.TransportError() | OfflineModeIsEnabled():
            return HubUnreachable(
                f"the Hub did not answer for {repo} ({type(error).__name__})",
                hint="look at the network and HF_ENDPOINT, then run it again; what was uploaded is kept there",
            )
    if error.__cause__:
        return as_coded(repo, error.__cause__)
    return HubUploadFailed(
        f"{repo}: {excerpt(str(error), 300)}", hint="a Hub without Xet storage needs HF_HUB_DISABLE_XET=1"
    )


def refusal(repo: str, status: int, said: str) -> BackpropError:
    if status in (401, 403):
        return AuthRequired(
            f"the Hub does not let this token write to {repo} ({status})",
            hint="give HF_TOKEN, or the Prefect Secret block hf-token, a token that may write there",
        )
    if status in LATER:
        return HubUnreachable(f"the Hub answered {status} for {repo}", hint="run it again later; what it has is kept")
    words = excerpt(said, 300)
    return HubUploadFailed(f"the Hub answered {status} for {repo}: {words}", hint="correct what it says, run it again")
