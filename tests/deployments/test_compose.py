"""The compose file: no password in it, nothing open to other machines, nothing that changes by itself."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "docker-compose.yml", ROOT / "docker-compose.gpu.yml"]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILES[0].read_text())["services"]
REQUIRED = {"POSTGRES_PASSWORD", "PREFECT_AUTH_STRING", "MLFLOW_USERNAME", "MLFLOW_PASSWORD", "MLFLOW_SECRET_KEY"}
PLACES = {"MLFLOW_AUTH_CONFIG_PATH"}  # of a file in the image that has no secret in it
SECRET = re.compile("PASSWORD|AUTH|TOKEN|SECRET|CREDENTIAL")
FROM_ENVIRONMENT = re.compile(r"\$\{[A-Z_]+(:\?[^}]*|:-)\}")
COMPOSE = shutil.which("docker-compose")
DOCKERFILE = (ROOT / "deployments/Dockerfile").read_text()

every_service = pytest.mark.parametrize("name", SERVICES)


def literal_secrets(environment: dict[str, str]) -> list[str]:
    """Variables that are secrets by their name and do not come from outside."""
    return [
        name
        for name, value in environment.items()
        if SECRET.search(name) and name not in PLACES and not FROM_ENVIRONMENT.fullmatch(value)
    ]


def test_services() -> None:
    """Database, broker, Prefect with its services, MLflow, Ollama, the deployments, those of lines, and a worker."""
    servers = {"postgres", "redis", "prefect", "services", "mlflow", "ollama"}
    assert servers | {"deploy", "lines", "worker"} == SERVICES.keys()


def test_only_servers_reach_the_databases() -> None:
    """PostgreSQL and Redis, which has no password, are in a network of their own, without a port outside."""
    [*inside] = (name for name in SERVICES if "data" in SERVICES[name].get("networks", []))
    assert inside == ["postgres", "redis", "prefect", "services", "mlflow"]
    for name in ("postgres", "redis"):
        assert SERVICES[name]["networks"] == ["data"] and "ports" not in SERVICES[name]


@every_service
def test_no_secret_is_written_down(name: str) -> None:
    """What is secret comes from the environment; a default would be a password that everybody knows."""
    assert literal_secrets(SERVICES[name].get("environment", {})) == []
    assert not re.search(r"://[^/\s]*:[^/\s]*@", str(SERVICES[name]))


@pytest.mark.parametrize("value", ["hunter2", "${POSTGRES_PASSWORD:-hunter2}", "${POSTGRES_PASSWORD:?x}hunter2"])
def test_a_written_secret_would_be_found(value: str) -> None:
    """The check above can fail: on a literal, on a default, on a part."""
    assert literal_secrets({"POSTGRES_PASSWORD": value}) == ["POSTGRES_PASSWORD"]


@every_service
def test_ports_are_of_this_machine_only(name: str) -> None:
    """No port is published but on 127.0.0.1, and no service shares the host's network."""
    assert all(str(port).startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))
    assert not {"network_mode", "privileged"} & SERVICES[name].keys()


@every_service
def test_images_do_not_change_by_themselves(name: str) -> None:
    """Every image has a version as its tag."""
    assert re.fullmatch(r"[a-z/-]+:\d+(\.\d+)+", SERVICES[name]["image"])


@every_service
def test_health_is_watched(name: str) -> None:
    """Every service that stays says whether it works."""
    stays = SERVICES[name]["restart"] != "no"
    assert stays == ("healthcheck" in SERVICES[name]) == (name != "deploy")


def test_mlflow_asks_for_a_password() -> None:
    """Its own access control, with users in PostgreSQL; the worker has the name and the password of the first one."""
    assert "--app-name=basic-auth" in SERVICES["mlflow"]["command"]
    users = ROOT / "deployments/mlflow-auth.ini"
    assert "postgresql" in users.read_text() and "admin_password" not in users.read_text()
    assert f"COPY deployments/{users.name} {SERVICES['mlflow']['environment']['MLFLOW_AUTH_CONFIG_PATH']}" in DOCKERFILE
    told = SERVICES["worker"]["environment"]
    assert told["MLFLOW_TRACKING_PASSWORD"] == SERVICES["mlflow"]["environment"]["MLFLOW_AUTH_ADMIN_PASSWORD"]


def test_job_files_are_deployed() -> None:
    """lines/ of the checkout has the job files, for the same machine each time; no container writes there."""
    for name in ("deploy", "lines"):
        assert any(place.endswith(":/home/backpropagate/lines:ro") for place in SERVICES[name]["volumes"])
        assert SERVICES[name]["hostname"] == "lines"
    assert "--follow" in SERVICES["lines"]["command"]


def test_the_image_is_pinned_and_listed() -> None:
    """Both stages take the base image that a digest names, a user runs it, and it has a list of what is in it."""
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == 2 * ["${PYTHON_IMAGE:-python:3.11-slim-bookworm}"]
    assert re.search(r"^USER backpropagate$", DOCKERFILE, re.MULTILINE)
    assert "cyclonedx-py environment" in DOCKERFILE
    gpu = yaml.safe_load(FILES[1].read_text())["services"]["worker"]
    assert "qlora" in gpu["build"]["args"]["EXTRAS"].split(",") and gpu["image"].endswith("-gpu")


def test_nothing_is_reported_to_anyone() -> None:
    """Telemetry is off wherever there is some, and MLflow runs no jobs and knows its hosts."""
    for name in ("prefect", "services", "mlflow", "deploy", "lines", "worker"):
        assert SERVICES[name]["environment"]["DO_NOT_TRACK"] == "1"
    for name in ("prefect", "services"):
        assert SERVICES[name]["environment"]["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert {"--workers=1"} < set(SERVICES["mlflow"]["command"])
    assert any(part.startswith("--allowed-hosts=") and "*" not in part for part in SERVICES["mlflow"]["command"])


def test_example_names_every_variable_and_gives_none() -> None:
    """`.env.example` holds each variable that the compose file reads, without a value."""
    example = dict(
        line.split("=") for line in (ROOT / ".env.example").read_text().splitlines() if re.match("[A-Z]", line)
    )
    read = set(re.findall(r"\$\{([A-Z_]+)", FILES[0].read_text())) | {"PIP_INDEX_URL", "PYTHON_IMAGE"}
    assert example == dict.fromkeys(read, "")


def test_the_image_holds_what_it_runs_and_no_more() -> None:
    """The build context is a list of what to take, and what the Dockerfile copies is on it."""
    ignored, *rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    taken = {rule[1:] for rule in rules if rule.startswith("!")}
    lines = (ROOT / "deployments/Dockerfile").read_text().splitlines()
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    assert ignored == "*" and {source.split("/")[0] for source in copied} == taken
    assert all((ROOT / source).exists() for source in copied)


def test_compose_accepts_it_with_the_secrets_only() -> None:
    """docker-compose, where there is one, takes both files with the secrets set and refuses each empty one."""
    for missing in [None, *REQUIRED] if COMPOSE else []:
        secrets = dict.fromkeys(REQUIRED - {missing}, "a:b")
        environment = {name: value for name, value in os.environ.items() if name not in REQUIRED} | secrets
        arguments = [word for file in FILES for word in ("--file", str(file))]
        command = [str(COMPOSE), *arguments, "--env-file", str(ROOT / ".env.example"), "config", "--quiet"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.returncode == 0) == (missing is None), done.stderr
        assert missing is None or "set it in .env" in done.stderr
