"""A process of ours that ends with us: it says "up" on stdout, and ends when its stdin closes, as it does if we die."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE

from backprop_core import children
from backprop_core.errors import BackpropError, ServerFailed


class Child:
    """`python -m MODULE …` in a session of its own, so that Ctrl-C is for us alone; its stderr goes to `log`."""

    failure: type[BackpropError] = ServerFailed

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        sockets: Sequence[int] = (),
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.name, self.log, self._up = name, log, False
        with log.open("wb") as file:
            self._process = children.start(
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
        """Until it is up. Raises `failure` if it has died."""
        assert self._process.stdout is not None
        self._up = self._up or bool(self._process.stdout.readline())
        if not self._up:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise self.failure(f"{self.name} did not start: {last[0]}", hint=f"see {self.log}")

    def close(self) -> None:
        """Let it end; what it still has to write is written first."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        assert self._process.stdout is not None
        self.close()
        children.ends(self._process)
        self._process.stdout.close()
