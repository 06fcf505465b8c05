"""What docker-compose.yml starts, as processes of this machine: commands and environments are those of the file.

Only places are others: a service's name becomes 127.0.0.1, its port a free one, a volume a directory.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from tests.wire.prefect_server import FOREIGN, ROOT, free_port, wait_until

BIN = Path(sys.executable).parent
ADDRESS = re.compile(r"\b(postgres|redis|prefect|mlflow|127\.0\.0\.1|localhost):(\d+)\b")
PLACE = re.compile(r"(?<![\w.])/(datasets|data|tmp)\b")
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::[?-][^}]*)?\}")
STARTS = 300  # seconds; a database is made and brought up to date on a machine that does other things, too


class Composed:
    """The services of the file, in a directory. Started one by one; closed, nothing of them is left."""

    def __init__(self, place: Path, secrets: Mapping[str, str]) -> None:
        file: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
        self.services: dict[str, dict[str, Any]] = file["services"]
        self.place, self.secrets = place, secrets
        self.ports = {port: str(free_port()) for port in ("5432", "6379", "4200", "5000", "8080")}
        self._cleanup = ExitStack()

    def environment(self, name: str) -> dict[str, str]:
        """Of a service, without what the tests' own environment says."""
        own = {key: value for key, value in os.environ.items() if not key.startswith((*FOREIGN, "PG"))}
        given = self.services[name].get("environment", {})
        told = {key: self.here(name, str(value)) for key, value in given.items()}
        if "MLFLOW_AUTH_CONFIG_PATH" in told:
            told["MLFLOW_AUTH_CONFIG_PATH"] = str(self.users_of_mlflow(name))
        image = {
            "PREFECT_HOME": f"{self.volume(name)}/prefect",
            "PREFECT_WORKER_WEBSERVER_PORT": str(self.ports["8080"]),
        }
        return own | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | image | told

    def users_of_mlflow(self, name: str) -> Path:
        """The file of the image that says where MLflow keeps its users."""
        path = self.volume(name) / "mlflow-auth.ini"
        path.write_text(self.here(name, (ROOT / "deployments" / path.name).read_text()))
        return path

    def here(self, name: str, text: str) -> str:
        """A text of the file, with the places of this machine and the secrets."""
        text = VARIABLE.sub(lambda found: self.secrets.get(found[1], ""), text)
        text = ADDRESS.sub(lambda found: f"127.0.0.1:{self.ports[found[2]]}", text)
        text = {"postgres": "127.0.0.1", **self.ports}.get(text, text)
        text = PLACE.sub(
            lambda found: str(self.place / "datasets" if found[1] == "datasets" else self.volume(name)), text
        )
        return text.replace("0.0.0.0", "127.0.0.1")

    def volume(self, name: str) -> Path:
        """What a service's own volume is."""
        path = self.place / name
        path.mkdir(exist_ok=True)
        return path

    def command(self, name: str) -> list[str]:
        program, *words = self.services[name]["command"]
        own = BIN / program
        return [str(own) if own.exists() else program, *(self.here(name, word) for word in words)]

    def start(self, name: str, *more: str, command: Sequence[str] = ()) -> "subprocess.Popen[bytes]":
        """Start a service with the file's command, or with what its image would run."""
        with (self.place / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*(command or self.command(name)), *more],
                env=self.environment(name),
                cwd=self.volume(name),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._cleanup.callback(end, process)
        return process

    def healthy(self, name: str, process: "subprocess.Popen[bytes]") -> None:
        """Wait until the health check of the file passes."""
        log = self.place / f"{name}.log"
        wait_until(lambda: self.check(name) or process.poll() is not None, STARTS, f"health of {name}", log)
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]

    def check(self, name: str) -> bool:
        """The health check of the file, as it would be run beside the service."""
        [kind, program, *words] = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        words = [self.socket(self.here(name, word)) for word in words]
        at = {"redis-cli": ["-p", self.ports["6379"]], "pg_isready": ["-h", "127.0.0.1", "-p", self.ports["5432"]]}
        command = [sys.executable if program == "python" else program, *at.get(program, []), *words]
        return subprocess.run(command, env=self.environment(name), capture_output=True, timeout=60).returncode == 0

    def socket(self, text: str) -> str:
        """Addresses written as Python's pairs."""
        return re.sub(r"\('(postgres|redis)', (\d+)\)", lambda found: f"('127.0.0.1', {self.ports[found[2]]})", text)

    def postgres(self) -> None:
        """The database as its image makes it: a user, a database, and the SQL files that are mounted.

        PostgreSQL does not run as root; as root it is run as Debian's user postgres.
        """
        told, data = self.environment("postgres"), self.volume("postgres")
        password = self.place / "password"
        password.write_text(told["POSTGRES_PASSWORD"])
        as_user: list[str] = []
        if os.getuid() == 0:
            as_user = ["runuser", "-u", "postgres", "--"]
            for path in (self.place, data, password):
                shutil.chown(path, "postgres")
        user, port = told["POSTGRES_USER"], self.ports["5432"]
        options = [f"--username={user}", f"--pwfile={password}", "--auth=scram-sha-256", "-D", str(data / "db")]
        subprocess.run([*as_user, program("initdb"), *options], check=True, capture_output=True, cwd=data)
        served = ["-D", str(data / "db"), "-h", "127.0.0.1", "-p", port, "-k", ""]
        process = self.start("postgres", command=[*as_user, program("postgres"), *served])
        self.healthy("postgres", process)
        self.query("postgres", f"CREATE DATABASE {told['POSTGRES_DB']}")
        for volume in self.services["postgres"]["volumes"]:
            source, _, target = volume.partition(":")
            if target.startswith("/docker-entrypoint-initdb.d/"):
                for statement in (ROOT / source).read_text().split(";")[:-1]:  # each by itself, as psql reads a file
                    self.query(told["POSTGRES_DB"], statement)

    def query(self, database: str, statement: str) -> str:
        """What psql answers."""
        told = self.environment("postgres")
        options = ["-h", "127.0.0.1", "-p", self.ports["5432"], "-U", told["POSTGRES_USER"], "-d", database]
        command = ["psql", "-v", "ON_ERROR_STOP=1", "-tA", *options, "-c", statement]
        environment = told | {"PGPASSWORD": told["POSTGRES_PASSWORD"]}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    def close(self) -> None:
        self._cleanup.close()


@contextmanager
def composed(place: Path, secrets: Mapping[str, str]) -> Iterator[Composed]:
    services = Composed(place, secrets)
    try:
        yield services
    finally:
        services.close()


def end(process: "subprocess.Popen[bytes]") -> None:
    """End it with all that it has started."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(60)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def program(name: str) -> str:
    """A program of PostgreSQL's: Debian keeps the server's own beside its version."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(places[-1]) if places else str(shutil.which(name) or name)


def missing() -> list[str]:
    """Programs and packages that this machine lacks."""
    programs = [name for name in ("initdb", "postgres") if shutil.which(program(name)) is None]
    programs += [name for name in ("psql", "pg_isready", "redis-server", "redis-cli") if shutil.which(name) is None]
    packages = [name for name in ("psycopg2", "prefect_redis") if not has(name)]
    return programs + packages


def has(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None
