"""Blocks requests to cloud metadata services and link-local addresses (SSRF protection).

Metadata services give the machine's credentials to any local caller, and a URL in a spec may come from a remote user.
Loopback and private networks stay allowed: models are served there.
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
        "168.63.129.16/32",  # Azure's machine agent
    )
]
NAMES = {"metadata.google.internal", "metadata.goog"}  # a proxy may resolve them even if this machine does not
MAPPED = [ip_network(network) for network in ("::/96", "::ffff:0:0/96", "64:ff9b::/96")]  # IPv4 in the last 32 bits


def client(**options: Any) -> httpx.Client:
    """An httpx.Client that raises AddressForbidden for every request, including redirects, to a forbidden host.

    The name is resolved again on connect, so the connected address is checked too, before anything is sent. Behind a
    proxy, which resolves names itself, only the name is checked.
    """
    return httpx.Client(event_hooks={"request": [guard]}, **options)


def guard(request: httpx.Request) -> None:
    refuse(request.url.host)
    request.extensions["trace"] = connected


def connected(event: str, about: dict[str, Any]) -> None:
    """httpx trace hook: check the remote address of a new connection."""
    if event != "connection.connect_tcp.complete":
        return
    stream = about["return_value"]
    try:
        refuse(stream.get_extra_info("server_addr")[0])
    except AddressForbidden:
        stream.close()
        raise


def refuse(host: str) -> None:
    """Raise AddressForbidden if the host is a metadata service or link-local, in any notation."""
    if host.lower().rstrip(".") in NAMES or any(map(is_forbidden, addresses(host))):
        raise AddressForbidden(
            f"{host} is a link-local address or a cloud metadata service, which hands out this machine's credentials",
            hint="use the address of the service itself",
        )


def addresses(host: str) -> Iterator[str]:
    """The addresses that a host resolves to, by the resolver that connections use; none if it does not resolve."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # the request itself reports it
        return
    yield from (str(address[0]) for *_, address in found)


def is_forbidden(address: str) -> bool:
    """Whether a numeric address, or the IPv4 address inside it, is in one of the networks."""
    every = meant(ip_address(address))
    return any(each in network for each in every for network in FORBIDDEN)


def meant(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address | IPv6Address]:
    """An address, and the IPv4 address embedded in an IPv6 one."""
    yield address
    if isinstance(address, IPv6Address):
        if any(address in network for network in MAPPED):
            yield IPv4Address(int(address) & 0xFFFFFFFF)
        if address.sixtofour:
            yield address.sixtofour
