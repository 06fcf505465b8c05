"""Where a request of ours may go: nowhere that hands the credentials of this machine to whoever asks.

Clouds give each machine an address, link-local as a rule, that answers with its keys. An address in a spec may come
from somebody who is not on that machine. Loopback and private networks stay open: that is where models are served.
"""

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import httpx

from backprop_core.errors import AddressForbidden

FORBIDDEN = [
    ip_network(network)
    for network in (
        "169.254.0.0/16",
        "fe80::/10",
        "fd00:ec2::/32",  # AWS, over IPv6
        "fd20:ce::254/128",  # Google Cloud, over IPv6
        "100.100.100.200/32",  # Alibaba Cloud
        "168.63.129.16/32",  # Azure, to the agent of a machine
    )
]
NAMES = {"metadata.google.internal", "metadata.goog"}  # a proxy may know them where this machine does not
MAPPED = [ip_network(network) for network in ("::/96", "::ffff:0:0/96", "64:ff9b::/96")]  # IPv4 in the last 32 bits


def client(**options: Any) -> httpx.Client:
    """An httpx.Client whose every request, redirects too, raises AddressForbidden where `refuse` does.

    What a name means is asked again when the connection is made: that address is looked at too, before anything is
    sent. Behind a proxy, which does its own asking, only the name counts.
    """
    return httpx.Client(event_hooks={"request": [guard]}, **options)


def guard(request: httpx.Request) -> None:
    refuse(request.url.host)
    request.extensions["trace"] = connected


def connected(event: str, about: dict[str, Any]) -> None:
    """Called by the client at each step of a request: look at the other end of a new connection."""
    if event != "connection.connect_tcp.complete":
        return
    stream = about["return_value"]
    try:
        refuse(stream.get_extra_info("server_addr")[0])
    except AddressForbidden:
        stream.close()
        raise


def refuse(host: str) -> None:
    """Raise AddressForbidden if the host is a metadata service or link-local, however it is written."""
    if host.lower().rstrip(".") in NAMES or any(map(is_forbidden, addresses(host))):
        raise AddressForbidden(
            f"{host} is where a cloud gives a machine its credentials", hint="name the address of the service itself"
        )


def addresses(host: str) -> Iterator[str]:
    """What the name or numeral means here, by the resolver that connections use; nothing if it means nothing."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # the request itself will say so
        return
    yield from (str(address[0]) for *_, address in found)


def is_forbidden(address: str) -> bool:
    """Whether a numeric address, or the IPv4 address inside it, is in one of the networks."""
    every = meant(ip_address(address))
    return any(each in network for each in every for network in FORBIDDEN)


def meant(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address | IPv6Address]:
    """An address, and the IPv4 address that an IPv6 one carries."""
    yield address
    if isinstance(address, IPv6Address):
        if any(address in network for network in MAPPED):
            yield IPv4Address(int(address) & 0xFFFFFFFF)
        if address.sixtofour:
            yield address.sixtofour
