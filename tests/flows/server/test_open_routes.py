"""SECURITY.md names every route that answers without the password, and no other."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SECURITY = Path(__file__).parents[3] / "SECURITY.md"
ASK = """
import json, re, sys
from starlette.testclient import TestClient
from flows.server.server_main import app

def paths(routes, before=""):
    for route in routes:
        path = before + getattr(route, "path", "")
        below = getattr(route, "routes", None) or getattr(getattr(route, "app", None), "routes", None) or ()
        yield path, sorted((getattr(route, "methods", None) or {"GET"}) - {"HEAD", "OPTIONS"})
        yield from paths(below, path)

made = app(sys.argv[1], ["testserver"])()
inside = made
while not hasattr(inside, "routes"):
    inside = inside._app
found = {(path, method) for path, methods in paths(inside.routes) for method in methods}
spec = inside.openapi()["paths"] if hasattr(inside, "openapi") else {}
found |= {(path, method.upper()) for path, methods in spec.items() for method in methods}
flask = [getattr(getattr(route, "app", None), "app", None) for route in inside.routes]
for wrapped in filter(lambda each: hasattr(each, "url_map"), flask):
    rules = list(wrapped.url_map.iter_rules())
    found |= {(rule.rule, method) for rule in rules for method in rule.methods - {"HEAD", "OPTIONS"}}
found |= {(f"/api{path}", method) for path, method in found}
client = TestClient(made, raise_server_exceptions=False)
answered = {}
for path, method in sorted(found):
    asked = re.sub("{.*?}|<.*?>", "11111111-1111-1111-1111-111111111111", path) or "/"
    if not asked.startswith("/"):
        asked = "/" + asked
    status = client.request(method, asked, follow_redirects=False, json=None if method == "GET" else {}).status_code
    answered[f"{method} {asked}"] = status
print(json.dumps(answered))
"""


def open_routes(server: str, home: Path) -> tuple[set[str], int]:
    """What a server answers to somebody without the password, and how many routes were asked."""
    told = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_API_AUTH_STRING": "team:horse staple",
        "BACKPROPAGATE_AUTH_STRING": "team:horse staple" if server == "mlflow" else "",
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home / "ui"),
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "MLFLOW_SERVER_ALLOWED_HOSTS": "testserver",
        "BACKPROPAGATE_HOME": str(home),
    }
    command = [sys.executable, "-W", "ignore", "-c", ASK, server]
    done = subprocess.run(command, env=os.environ | told, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    answered = json.loads(done.stdout.splitlines()[-1])
    return {route.split()[1] for route, status in answered.items() if status not in (401, 403, 404, 405)}, len(answered)


def listed(server: str) -> set[str]:
    """The routes of a server in SECURITY.md's table."""
    rows = re.findall(
        r"^\| (Prefect|MLflow|start page) \| (.*?) \|", SECURITY.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {route for name, routes in rows if name == server for route in re.findall(r"`(\S+?)`", routes)}


@pytest.mark.parametrize(("server", "name", "fewest"), [("prefect", "Prefect", 150), ("mlflow", "MLflow", 50)])
def test_security_names_every_open_route(tmp_path: Path, server: str, name: str, fewest: int) -> None:
    """Every route of the server is asked without the password: what answers is in the table, and nothing else is."""
    found, asked = open_routes(server, tmp_path)
    assert asked > fewest
    assert found == {route for route in listed(name) if "*" not in route}
