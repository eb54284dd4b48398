"""Ports of the loopback interface that nobody else takes.

A port is chosen once and kept for the life of a cluster, so it lies outside the range that the kernel draws
from for outgoing connections: there, any client of the machine could sit on it while its server restarts.
"""

import random
import socket
from pathlib import Path

from ops.errors import PortTaken

LOOPBACK = "127.0.0.1"
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 15000
"""Below lie the ports that people give to servers by hand."""


class PortReservation:
    """A port held by a bound socket that never listens.

    The server that it is meant for binds beside it (both set SO_REUSEADDR, as PostgreSQL and Tornado do);
    the kernel gives it to nobody else meanwhile.
    """

    def __init__(self, port: int):
        """Hold a port.

        Raises:
            PortTaken: somebody listens there.
        """
        self.port = port
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((LOOPBACK, port))
        except OSError as error:
            self._socket.close()
            raise PortTaken(f"port {port} is taken") from error

    def close(self) -> None:
        """Let go of the port."""
        self._socket.close()


def _is_free(port: int) -> bool:
    # Without SO_REUSEADDR, so that another run's reservation counts as taken.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _highest() -> int:
    try:
        lowest_ephemeral = int(_RANGE_FILE.read_text().split()[0])
    except (OSError, ValueError):
        lowest_ephemeral = 32768  # Linux' default
    # A machine may give nearly all ports to outgoing connections; then any port has to do.
    return lowest_ephemeral - 1 if lowest_ephemeral > _LOWEST + 1000 else 65535


def reserve_port() -> PortReservation:
    """A free port of the loopback interface, held until closed."""
    # Random, so that two runs that start at once do not meet at each port in turn.
    candidates = random.sample(range(_LOWEST, _highest()), 500)
    for port in candidates:
        if _is_free(port):
            try:
                return PortReservation(port)
            except PortTaken:
                continue
    raise PortTaken(f"500 ports between {_LOWEST} and {_highest()} are all taken")
