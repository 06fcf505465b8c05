"""Work pools: where the runs of a deployment go by what they need, and the pools that are missing."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound

from backprop_core.runtime.settings import Settings
from backprop_core.schema.flows import FLOWS
from backprop_core.schema.specs import LineSpec


class Place(NamedTuple):
    """A queue of a work pool."""

    pool: str
    queue: str


def place_of(config: Settings, pool: str, flow: str, job: LineSpec | None = None) -> Place:
    """Where the runs of a flow go; for the file of a line, to the queue that it names.

    What needs no GPU goes to the pool and queue for that, if they are set.
    """
    if job and job.queue:
        return Place(pool, job.queue)
    if FLOWS[flow].cpu_only or (job and job.training.device == "cpu"):
        return Place(config.cpu_pool or pool, config.cpu_queue or config.queue)
    return Place(pool, config.queue)


def work_pools(
    client: SyncPrefectClient, names: Iterable[str], *, dry_run: bool
) -> Iterator[tuple[str, bool, list[str]]]:
    """Create each pool that does not exist, as a process pool."""
    for name in dict.fromkeys(names):
        what = f"work pool {name}"
        try:
            client.read_work_pool(name)
            yield what, False, []
        except ObjectNotFound:
            if not dry_run:
                client.create_work_pool(WorkPoolCreate(name=name, type="process"))
            yield what, True, ["type: process"]
