"""Asks for approval at the terminal."""

import sys

from backprop_core.errors import Interrupted
from backprop_core.schema.gate_report import Decision
from backprop_core.schema.refs import RunResult
from flows.cli import run_text
from flows.cli.console import say, stderr_console
from tasks.runs.progress import QUESTION, Progress, report

ANSWERS = {"yes": True, "y": True, "no": False, "n": False}


def is_attended() -> bool:
    """Whether stdin is a terminal."""
    return sys.stdin.isatty()


def ask(result: RunResult) -> Decision:
    """Show the result of a run and ask whether it may go live. Raises Interrupted at the end of stdin."""
    report(Progress(stage=QUESTION, done=0, total=0))
    stderr_console().print(run_text.run(result))
    while True:
        say(f"May this go live in line {result.line}? Answer yes or no, and a reason:")
        line = sys.stdin.readline()
        if not line:
            raise Interrupted("no answer given", hint=f"to continue: backprop resume {result.run_id}")
        word, _, reason = line.strip().partition(" ")
        if word.lower() in ANSWERS:
            return Decision(approved=ANSWERS[word.lower()], reason=reason.strip())
