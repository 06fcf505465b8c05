"""A child process that prints "up" when it is ready, and ends when this process stops it or dies."""

import re
import selectors
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE

from backprop_core.errors import BackpropError, ServerFailed
from backprop_core.errors.root import KINDS
from backprop_core.runtime import subprocesses
from backprop_core.runtime.parent_watch import STOP

START = 300.0  # seconds: a first start with new databases takes half a minute, on a busy machine minutes
STARTING = "starting"  # tells a child that the server of its address starts beside it
CODED = re.compile(rf"\[(?:{'|'.join(KINDS)})_[A-Z0-9_]+\] .+")  # an error of ours
END = 100.0  # seconds: the worker of `serve` gives its runs 75 to save their state


class Child:
    """`python -m MODULE …` in its own session, so that Ctrl-C does not reach it; its stderr goes to `log`."""

    failure: type[BackpropError] = ServerFailed

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        sockets: Sequence[int] = (),
        patience: float = START,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.name, self.log, self._up = name, log, False
        self._patience, self._deadline = patience, time.monotonic() + patience
        with log.open("wb") as file:
            self._process = subprocesses.start(
                [sys.executable, "-m", *arguments],
                stdin=PIPE,
                stdout=PIPE,
                stderr=file,
                pass_fds=sockets,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    def wait(self) -> None:
        """Wait until it is up. Raises `failure` if it dies or takes too long."""
        assert self._process.stdout is not None
        if self._up:
            return
        if not self._speaks(self._deadline - time.monotonic()):
            self._process.kill()
            said = f"no answer for {self._patience:g} s"
            raise self.failure(f"{self.name} did not start: {said}", hint=f"see {self.log}, then run it again")
        self._up = bool(self._process.stdout.readline())
        if not self._up:
            raise self.failure(f"{self.name} did not start: {why(self.log)}", hint=f"see {self.log}")

    @property
    def is_late(self) -> bool:
        """Whether it lives, but is not up after its time to start."""
        return self.alive and not self._up and time.monotonic() > self._deadline and not self._speaks(0)

    def _speaks(self, seconds: float) -> bool:
        """Wait until it prints something or ends; whether it has within `seconds`."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            return bool(selector.select(max(0.0, seconds)))

    def close(self) -> None:
        """Ask it to end; it first writes what is pending."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError, ValueError):  # it has died, or was asked before
            self._process.stdin.write(STOP)
            self._process.stdin.close()

    def stop(self, within: float = END) -> None:
        """End it and wait; after `within` seconds it is killed."""
        assert self._process.stdout is not None
        self.close()
        if not subprocesses.ends(self._process, within=within):
            self._process.kill()
            subprocesses.ends(self._process)
        self._process.stdout.close()


def why(log: Path) -> str:
    """Why a process has ended, by its log: its last coded error, or else its last line."""
    said = log.read_text(errors="replace").strip()
    coded = CODED.findall(said)
    return coded[-1] if coded else (said.splitlines() or ["its log is empty"])[-1]
