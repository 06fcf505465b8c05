"""Runs a verb of the command line in a process of its own: `serve` itself neither imports Prefect nor reads rows."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from backprop_core.errors import Unexpected
from backprop_core.errors.root import rebuild

LONGEST = 600.0  # seconds of a verb


def run(*words: str, environment: Mapping[str, str] = MappingProxyType({}), limit: float = LONGEST) -> Any:
    """What the verb prints with --json. Raises its error; Unexpected if it prints nothing in time."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "flows", *words, "--json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **environment},
            timeout=limit,
        )
    except subprocess.TimeoutExpired as error:
        raise Unexpected(f"`{words[0]}` took longer than {limit:.0f} seconds", hint="try it in a terminal") from error
    try:
        said = json.loads(done.stdout)
    except ValueError as error:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise Unexpected(f"`{words[0]}` failed: {last[0][:300]}", hint="try it in a terminal") from error
    if isinstance(said, dict) and said.get("error"):
        raise rebuild(said["error"]["code"], said["error"]["message"], hint=said["error"]["hint"])
    return said
