"""Slows down who does something too often: so many times at once, then once in so many seconds. Bounded memory."""

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

MOST_KEYS = 10_000  # remembered at once; the oldest is forgotten


class Throttle:
    """Counts by key; a count fades by one in `seconds`. Safe for any number of threads."""

    def __init__(self, burst: int, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._seconds, self._now = burst, seconds, now
        self._counts: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # the count, and when that was
        self._guard = threading.Lock()

    def __len__(self) -> int:
        return len(self._counts)

    def wait(self, key: Hashable) -> int:
        """Seconds until the next time is allowed; 0: now."""
        with self._guard:
            over = self._count(key) + 1 - self._burst
        return int(over * self._seconds) + 1 if over > 0 else 0

    def add(self, key: Hashable) -> None:
        """Count one."""
        with self._guard:
            self._counts[key] = self._count(key) + 1, self._now()
            self._counts.move_to_end(key)
            if len(self._counts) > MOST_KEYS:
                self._counts.popitem(last=False)

    def forget(self, key: Hashable) -> None:
        """Begin again from none."""
        with self._guard:
            self._counts.pop(key, None)

    def _count(self, key: Hashable) -> float:
        count, at = self._counts.get(key, (0.0, self._now()))
        return max(count - (self._now() - at) / self._seconds, 0.0)


def network(address: str) -> str:
    """An IPv4 address, or the /64 of an IPv6 address, all of which one customer has."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ip if ip.version == 4 else ipaddress.ip_network((ip, 64), strict=False))
