"""Where a request comes from, when proxies that are ours stand in front."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network


def find_client_address(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> str:
    """The address that a request comes from: the nearest one that is not a trusted proxy's.

    Whoever connects says in X-Forwarded-For what he likes; only what a trusted proxy has added at the end is
    true. So the list is read from its end, and only on while the hop that wrote it is trusted. (Tornado's own
    `xheaders` believes any peer, and X-Real-Ip over all.)

    Args:
        peer: The other end of the connection.
        forwarded_for: The header's values, in order.
        trusted: Proxies; empty: no header is looked at.
    """
    found = peer
    hops = [hop.strip() for value in forwarded_for for hop in value.split(",")]
    while hops and _is_trusted(found, trusted):
        hop = _parse(hops.pop())
        if hop is None:
            break  # a proxy of ours that writes no address tells nothing about what is before it
        found = str(hop)
    return found


def find_household(address: str) -> str:
    """Whose rate a request from an address counts against: a customer of an IPv6 provider has a /64 at least,
    and with it as many addresses as he likes (RFC 6177)."""
    parsed = _parse(address)
    return str(IPv6Network((parsed, 64), strict=False)) if isinstance(parsed, IPv6Address) else address


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    parsed = _parse(address)
    return parsed is not None and any(parsed in network for network in trusted)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(text)
    except ValueError:
        return None
    # An IPv4 client of a socket that listens on IPv6 has one address, not two.
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found
