"""Training over two machines: torchrun's rendezvous between two network namespaces.

Only where BACKPROP_FAULTS is set, as in `make faults`.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from backprop_core.models import base as bases
from backprop_core.schema.specs import LoraSpec, ModelSpec, TrainSpec
from backprop_core.store.artifacts import Store
from tests.backprop_core import nano

NAMES = ("backprop-one", "backprop-two")
ADDRESSES = ("192.0.2.1", "192.0.2.2")  # of documentation: no machine has them
PORT = "29400"
CAN = os.name == "posix" and os.geteuid() == 0 and shutil.which("ip") is not None
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif("BACKPROP_FAULTS" not in os.environ, reason="takes a minute: make faults"),
    pytest.mark.skipif(not CAN, reason="needs root and ip, for network namespaces"),
]
SPEC = TrainSpec(
    steps=6,
    batch_size=7,
    learning_rate=1e-2,
    precision="fp32",
    device="cpu",
    processes=2,
    lora=LoraSpec(rank=4, alpha=8),
)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[None]:
    """Two network namespaces with a cable between them, and no way out."""
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "veth-one", "netns", NAMES[0], "type", "veth", "peer", "name", "veth-two", "netns", NAMES[1])
        for name, device, address in zip(NAMES, ("veth-one", "veth-two"), ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/30", "dev", device)
            ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        remove()
        pytest.skip(f"no network namespaces here: {error.stderr.decode()}")
    yield
    remove()


def remove() -> None:
    for name in NAMES:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def train(job: Path, prefixes: Sequence[Sequence[str]], key: str, *rendezvous: Sequence[str]) -> str:
    """Train on these machines, one process each or all on one; the digest of the adapter."""
    out = job.with_name(f"{key}.json")
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    started = [
        subprocess.Popen([*prefix, *torchrun, *options, "-m", "tests.faults.rank", str(job), key, str(out)])
        for prefix, options in zip(prefixes, rendezvous, strict=True)
    ]
    try:
        assert [process.wait(300) for process in started] == [0] * len(started)
    finally:
        for process in started:
            process.kill()
            process.wait()
    return str(json.loads(out.read_text())["adapter"]["digest"])


def test_two_machines_train_as_two_processes_of_one(machines: None, tmp_path: Path) -> None:
    """Ranks on two machines meet by torchrun's rendezvous, and make the adapter of two ranks of one, to the digest."""
    store = Store(tmp_path / "store")
    base = bases.resolve(ModelSpec(name=str(nano.build(tmp_path / "base"))), store)
    rows = nano.commit_rows(store, nano.chats(24))
    parts = {name: part.model_dump(mode="json") for name, part in (("base", base), ("rows", rows), ("spec", SPEC))}
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"root": str(store.root), **parts}))
    one = train(job, [[]], "one-machine", ["--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"])
    meet = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}"]
    hosts = [["--rdzv-conf=is_host=1"], ["--rdzv-conf=is_host=0"]]  # their addresses are in no table of names
    options = [[*meet, f"--local-addr={own}", *host] for own, host in zip(ADDRESSES, hosts, strict=True)]
    inside = [
        ["ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={device}"]
        for name, device in zip(NAMES, ("veth-one", "veth-two"), strict=True)
    ]
    assert train(job, inside, "two-machines", *options) == one
    store.close()
