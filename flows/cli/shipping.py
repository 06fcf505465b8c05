"""Verbs that publish: `push`, `release`, `rollback`."""

from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from backprop_core.schema.field_types import line_name
from flows.cli import run_here
from flows.cli.config_layers import export_spec, publish_spec
from flows.cli.flags import PLAIN, Force, MadeRef, OutputFlags, Reason, ship
from flows.cli.main import Answer
from flows.cli.running import answer, watched
from tasks.runs.preflight_checks import check_repo

LineRef = Annotated[str, Parameter(help="Name of the line.")]
Files = Annotated[str, Parameter(help="GGUF files to push with --gguf, comma-separated.")]


def push(
    ref: MadeRef,
    /,
    *,
    repo: Annotated[str, ship("publish.repo")],
    private: Annotated[bool, ship("publish.private")] = True,
    gguf: Annotated[bool, ship("publish.gguf"), Parameter(negative="")] = False,
    quantization: Files = "q4_k_m",
    output: OutputFlags = PLAIN,
) -> Answer:
    where = publish_spec({"repo": repo, "private": private}, {"repo": "--repo", "private": "--private"})
    wanted = export_spec({"quantizations": quantization.split(",")}, {"quantizations": "--quantization"})
    with watched(output):
        check_repo(repo)
        files = wanted.quantizations if gguf else []
        return answer(run_here.call("publish", ref=ref, repo=repo, private=where.private, gguf=files))


def release(
    line: LineRef,
    /,
    *,
    ollama: Annotated[str | None, ship("publish.ollama")] = None,
    repo: Annotated[str | None, ship("publish.repo")] = None,
    private: Annotated[bool | None, ship("publish.private")] = None,
    gguf: Annotated[bool | None, ship("publish.gguf")] = None,
    keep: Annotated[str | None, ship("publish.keep")] = None,
    quantization: Annotated[str | None, ship("export.quantizations")] = None,
    force: Force = False,
    reason: Reason = "",
    output: OutputFlags = PLAIN,
) -> Answer:
    given = {"ollama": ollama, "repo": repo, "private": private, "gguf": gguf, "keep": keep}
    where = publish_spec(given, {name: f"--{name}" for name in given})
    name, files = line_name(line), quantization.split(",") if quantization else None
    wanted = export_spec({"quantizations": files}, {"quantizations": "--quantization"})
    with watched(output):
        return answer(run_here.call("release", line=name, publish=where, export=wanted, force=force, reason=reason))


def rollback(
    line: LineRef,
    /,
    *,
    to: Annotated[
        PositiveInt | None, Parameter(help="Version to go back to; default: the one before the champion.")
    ] = None,
    force: Force = False,
    reason: Reason = "",
    output: OutputFlags = PLAIN,
) -> Answer:
    name = line_name(line)
    with watched(output):
        return answer(run_here.call("rollback", line=name, to=to, force=force, reason=reason))
