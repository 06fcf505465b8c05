"""The manifests: every object is valid by the schema of Kubernetes, and no pod may do more than it has to."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "deployments/kubernetes").glob("*.yaml"))
OBJECTS: list[dict[str, Any]] = [each for path in FILES for each in yaml.safe_load_all(path.read_text())]
PODS = {
    one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in OBJECTS if "template" in one.get("spec", {})
}
VERSION = "1.37"


@pytest.mark.parametrize("manifest", OBJECTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_manifests_are_valid(manifest: dict[str, Any]) -> None:
    """Each object has the fields of its kind, and no other."""
    kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_a_typo_is_found() -> None:
    """The check above can fail."""
    wrong = {**OBJECTS[0], "spce": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_pods_are_narrow(name: str) -> None:
    """No root, no capability, no token of the cluster, a limit of memory, and an image with a version."""
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["resources"]["limits"]["memory"] and not container["image"].endswith("latest")


def test_no_secret_is_written_down() -> None:
    """Secrets are an object that the manifests name and do not contain."""
    assert not [one for one in OBJECTS if one["kind"] == "Secret"]
    settings = next(one["data"] for one in OBJECTS if one["kind"] == "ConfigMap")
    assert not [name for name in settings if "PASSWORD" in name or "AUTH" in name]


def test_workers_take_the_queues_that_are_deployed_to() -> None:
    """What a deployment goes to, by the settings, is what a worker polls."""
    settings = next(one["data"] for one in OBJECTS if one["kind"] == "ConfigMap")
    polled = {word for name in ("backprop-gpu", "backprop-cpu") for word in PODS[name]["containers"][0]["command"]}
    assert {
        settings["BACKPROPAGATE_POOL"],
        settings["BACKPROPAGATE_QUEUE"],
        settings["BACKPROPAGATE_CPU_QUEUE"],
    } <= polled


def test_the_example_of_a_rented_machine_names_what_exists() -> None:
    """The SkyPilot file installs extras of this project, and its secrets have no value."""
    task = yaml.safe_load((ROOT / "deployments/skypilot.yaml").read_text())
    extras = task["setup"].partition("'.[")[2].partition("]")[0].split(",")
    project = (ROOT / "pyproject.toml").read_text()
    assert extras and all(f"\n{extra} = [" in project for extra in extras)
    assert set(task["secrets"].values()) == {None}
