"""Sends notifications about retrains through Prefect notification blocks. Failures to send only log a warning."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from prefect.blocks.abstract import NotificationBlock, NotificationError
from prefect.blocks.core import Block, UnknownBlockType
from prefect.blocks.notifications import AppriseNotificationBlock, CustomWebhookNotificationBlock
from prefect.utilities.urls import url_for

from backprop_core.errors import BackpropError, BlockUnknown, Interrupted, TimeLimit
from backprop_core.runtime.redaction import blank_secrets
from backprop_core.runtime.url_guard import refuse
from backprop_core.schema.refs import RunResult
from tasks.runs.prefect_artifacts import flow_run_id, sentence

log = logging.getLogger(__name__)
LOST = (NotificationError, httpx.HTTPError, OSError, ValueError, RuntimeError)  # errors of blocks that fail to send
PATH = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:)?[~.]{0,2}[/\\](?:[^\s/\\'\"]+[/\\])*(?=\S)")
TOLD = {"rejected": "rejected", "finished": "released version {version}"}  # statuses worth a notification


class Audience:
    """The notification blocks of a line's retrain."""

    def __init__(self, line: str) -> None:
        self._line = line
        self._blocks: dict[str, NotificationBlock] = {}

    def invite(self, names: Sequence[str]) -> None:
        """Add blocks. Raises BlockUnknown, AddressForbidden."""
        self._blocks |= {name: load(name) for name in names if name not in self._blocks}

    def waits(self, result: RunResult, question: UUID) -> None:
        """Notify that approval is requested on the page of this flow run."""
        self._tell("waits for approval", sentence(result), result.run_id, question)

    def ended(self, result: RunResult) -> None:
        """Notify how the run ended."""
        if result.status in TOLD:
            self._tell(TOLD[result.status].format(version=result.version), sentence(result), result.run_id)

    def failed(self, error: BackpropError) -> None:
        """Notify that the run failed, could not start, or was killed."""
        what = "has not ended in time" if isinstance(error, TimeLimit) else "failed"
        self._tell(what, f"[{error.code}] {error.message}; {error.hint}", error.run_id)

    def _tell(self, what: str, said: str, run_id: str | None, flow_run: UUID | str | None = None) -> None:
        page = (flow_run := flow_run or flow_run_id()) and url_for("flow-run", flow_run)
        lines = [presentable(said), run_id and f"run {run_id}", page]
        for name, block in self._blocks.items():
            try:
                with block.raise_on_failure():
                    notify: Any = block.notify  # its type wrongly says coroutine
                    notify("\n".join(filter(None, lines)), subject=f"line {self._line} {what}")
            except LOST as error:  # its text may contain the URL, which is a secret
                log.warning("could not notify %s that line %s %s (%s)", name, self._line, what, type(error).__name__)


@contextmanager
def notifying(line: str, names: Sequence[str]) -> Iterator[Audience]:
    """Notify blocks about a retrain, including its failure. Raises BlockUnknown, AddressForbidden."""
    audience = Audience(line)
    audience.invite(names)
    try:
        yield audience
    except Interrupted:
        raise
    except BackpropError as error:
        audience.failed(error)
        raise


def load(name: str) -> NotificationBlock:
    """Load a Prefect block by TYPE/NAME. Raises BlockUnknown, AddressForbidden."""
    hint = "make it in the Prefect UI, under Blocks, and name it by TYPE/NAME, like slack-webhook/team"
    try:
        block = Block.load(name)
    except (ValueError, UnknownBlockType) as error:
        raise BlockUnknown(f"Prefect has no block {name}", hint=hint) from error
    if not isinstance(block, NotificationBlock):
        raise BlockUnknown(f"block {name} is not a notification block", hint=hint)
    if host := urlsplit(address_of(block)).hostname:
        refuse(host)
    return block


def address_of(block: NotificationBlock) -> str:
    """The host that a block sends to; empty if its service decides."""
    match block:
        case CustomWebhookNotificationBlock():
            return block.url
        case AppriseNotificationBlock():
            return block.url.get_secret_value()
    return ""


def presentable(text: str) -> str:
    """A text with secrets redacted and paths reduced to their last name."""
    return PATH.sub("", blank_secrets(text))
