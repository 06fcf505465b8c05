"""A stand-in for W&B: GraphQL for runs, the file stream of their history, and a place for their files."""

import json
from dataclasses import dataclass, field
from typing import Any

from tests.wire.stand_in import Request, Service

ENTITY = "team"


@dataclass
class Known:
    """A run that W&B knows."""

    name: str
    project: str
    display: str
    group: str
    job_type: str
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


class WandbServer(Service):
    """Keeps runs and everything that was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[str, Known] = {}
        self.bodies: list[str] = []

    def answer(self, request: Request) -> None:
        body = request.body()
        self.bodies.append(body.decode(errors="replace"))
        match request.command, request.path.split("/"):
            case "POST", ["", "graphql"]:
                asked = json.loads(body)
                request.reply(200, {"data": self.graphql(asked["query"], asked.get("variables") or {})})
            case "POST", ["", "files", _, _, name, "file_stream"]:
                self.stream(self.runs[name], json.loads(body))
                request.reply(200, {})
            case "PUT", ["", "storage", *_]:
                request.reply(200)
            case _:
                request.reply(404)

    def stream(self, run: Known, told: dict[str, Any]) -> None:
        for name, chunk in (told.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                del run.rows[chunk["offset"] :]
                run.rows += [json.loads(row) for row in chunk["content"]]
            if name == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
        if told.get("complete"):
            run.exit_code = told["exitcode"]

    def graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            return {"upsertBucket": {"bucket": self.upsert(given), "inserted": True}}
        if "RunResumeStatus" in query:
            run = self.runs.get(given["name"])
            return {"model": {**project(given["project"]), "bucket": run and bucket(run)}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/storage/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        if "query Run" in query:
            run = self.runs.get(given.get("name", ""))
            return {"project": {**project(given["project"]), "run": run and bucket(run)}}
        return {"viewer": {"id": "1", "entity": ENTITY, "username": "u", "flags": "{}"}, "serverInfo": {}}

    def upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        texts = (given["name"], given["project"], given["displayName"], given["groupName"], given["jobType"])
        run = self.runs.setdefault(given["name"], Known(*texts))
        run.config |= {name: each["value"] for name, each in json.loads(given["config"] or "{}").items()}
        return bucket(run)


def project(name: str) -> dict[str, Any]:
    return {"id": "1", "name": name, "internalId": "1", "entity": {"id": "1", "name": ENTITY}, "entityName": ENTITY}


def bucket(run: Known) -> dict[str, Any]:
    """A run as W&B describes it."""
    last = {"_step": run.rows[-1]["_step"], "_runtime": 1} if run.rows else {}
    return {
        "id": "1",
        "projectId": "1",
        "name": run.name,
        "displayName": run.display,
        "state": "running" if run.exit_code is None else "finished",
        "description": "",
        "notes": "",
        "tags": [],
        "sweepName": None,
        "group": run.group,
        "jobType": run.job_type,
        "createdAt": "2026-01-01T00:00:00Z",
        "heartbeatAt": "2026-01-01T00:00:00Z",
        "user": {"name": "u", "username": "u"},
        "config": json.dumps({name: {"value": value} for name, value in run.config.items() if name != "_wandb"}),
        "summaryMetrics": json.dumps(run.summary),
        "systemMetrics": "{}",
        "historyKeys": {"lastStep": last.get("_step", -1), "keys": {}, "sets": []},
        "project": project(run.project),
        "historyLineCount": len(run.rows),
        "historyTail": json.dumps([json.dumps(last)] if last else []),
        "logLineCount": 0,
        "eventsLineCount": 0,
        "eventsTail": "[]",
        "wandbConfig": json.dumps({"t": 1} if run.rows else {}),  # a run that has begun
        "readOnly": False,
    }
