"""An outside service that asks for a retrain and hands the result on: nothing of this project is installed.

    pip install fastapi uvicorn httpx
    PREFECT_API_URL=http://127.0.0.1:4200/api uvicorn service:app --port 9000

    curl -X POST 'http://127.0.0.1:9000/retrain/support?path=/data/night.jsonl' -H 'Idempotency-Key: night-2026-11-22'
    curl http://127.0.0.1:9000/runs/RUN

The same key always means the same flow run, also after it has failed: to try again, ask with another key; stages that
were finished then come from the cache. PREFECT_API_AUTH_STRING (`user:password`) is the server's, if it has one.
"""

import json
import os
import time
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI, Header, HTTPException, Query

RESULT = "backprop-result"  # the artifact's key; another BACKPROPAGATE_NAMESPACE begins it with another name
CLIENT = "service"
BUSY = 503  # Prefect's database was locked for a moment

app = FastAPI(title="A service that retrains")


class Prefect:
    """Prefect's API, with the token that it asks for."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer to a request; what Prefect refuses is refused here with the same status."""
        for pause in (0.2, 0.5, 1, 2, 0):
            answer = self._http.request(method, path, json=body, headers=self._token() if method == "POST" else None)
            if answer.status_code != BUSY:
                break
            time.sleep(pause)
        if answer.is_error:
            raise HTTPException(answer.status_code, answer.json().get("detail", answer.text))
        return answer.json()

    def _token(self) -> dict[str, str]:
        answer = self._http.get("/csrf-token", params={"client": CLIENT})
        if answer.is_error:  # the server does without
            return {}
        return {"Prefect-Csrf-Client": CLIENT, "Prefect-Csrf-Token": answer.json()["token"]}


def prefect() -> Iterator[Prefect]:
    """For one request."""
    user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    login = (user, password) if user else None
    with httpx.Client(base_url=os.environ["PREFECT_API_URL"], auth=login, timeout=30) as http:
        yield Prefect(http)


Connection = Annotated[Prefect, Depends(prefect)]


@app.post("/retrain/{line}", status_code=202)
def retrain(
    line: str,
    path: Annotated[str, Query(description="A file or an address that the worker can read.")],
    idempotency_key: Annotated[str, Header(description="The same key is the same run.")],
    prefect: Connection,
) -> dict[str, str]:
    """Ask for the next run of a line on new rows."""
    deployment = prefect.ask("GET", f"/deployments/name/retrain/{line}")
    run = prefect.ask(
        "POST",
        f"/deployments/{deployment['id']}/create_flow_run",
        {
            "parameters": {**deployment["parameters"], "data": {"path": path}},
            "idempotency_key": idempotency_key,
            "state": {"type": "SCHEDULED"},
        },
    )
    return {"run": run["id"], "state": run["state_type"]}


@app.get("/runs/{run}")
def result(run: str, prefect: Connection) -> dict[str, Any]:
    """How a run goes, and its result once there is one."""
    state = prefect.ask("GET", f"/flow_runs/{run}")["state"]
    wanted = {"artifacts": {"flow_run_id": {"any_": [run]}, "key": {"any_": [RESULT]}}}
    found = [json.loads(text_of(artifact["data"])) for artifact in prefect.ask("POST", "/artifacts/filter", wanted)]
    return {"state": state["type"], "message": state["message"], "result": found[-1] if found else None}


def text_of(data: str) -> str:
    """The JSON inside the artifact's Markdown."""
    return data.removeprefix("```json\n").removesuffix("\n```")
