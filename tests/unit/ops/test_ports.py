"""Choosing and holding ports."""

import socket
from pathlib import Path

import pytest

from ops.errors import PortTaken
from ops.ports import LOOPBACK, PortReservation, reserve_port


def listen(port: int) -> socket.socket:
    """A server's socket as PostgreSQL and Tornado open it."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((LOOPBACK, port))
        server.listen()
    except OSError:
        server.close()
        raise
    return server


def test_a_held_port_is_given_to_nobody_else_but_its_server() -> None:
    held = [reserve_port() for _ in range(50)]
    assert len({reservation.port for reservation in held}) == 50

    with listen(held[0].port):
        with pytest.raises(PortTaken):
            PortReservation(held[0].port)
        with pytest.raises(OSError, match="in use"), listen(held[0].port):
            pass
    with listen(held[0].port):  # the server comes back
        pass
    for reservation in held:
        reservation.close()


def test_ports_lie_below_those_of_outgoing_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    held = reserve_port()
    held.close()

    assert held.port < lowest or lowest <= 16_000
