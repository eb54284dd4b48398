"""The row that tells how far a stream has got: bumped on its publisher, looked for on its subscriber."""

import time
from typing import LiteralString

from sharding.directory import Connection
from sharding.reshard.errors import MoveError
from wire.ids import NsId

POLL_S = 0.0005
"""Measured in design: a marker arrives after 0.2 to 1.5 ms, while confirmed_flush_lsn tells after 300."""

BUMP: LiteralString = (
    " ON CONFLICT (ns_id, writer) DO UPDATE SET seq = move_markers.seq + 1, gate = excluded.gate"
    " RETURNING seq"
)
"""What makes the insert of a first marker one of the next."""


class MarkerLate(MoveError):
    """A stream did not bring a marker in time."""

    code = "marker_late"


def bump_marker(conn: Connection, key: NsId, writer: str, gate: int | None = None) -> int:
    """Write a marker behind everything that is committed so far; its number.

    Args:
        conn: to the publisher, in a transaction that holds the slot's lock exclusively: then nothing of the
            slot can commit between what the marker stands behind and the marker.
        key: of the unit.
        writer: the publisher's name.
        gate: the lock that the subscriber's worker is to wait for before it applies the marker.
    """
    row = conn.execute(
        "INSERT INTO ns.move_markers (ns_id, writer, seq, gate) VALUES (%s, %s, 1, %s)" + BUMP,
        [key, writer, gate],
    ).fetchone()
    assert row is not None
    return int(row[0])


def read_marker(conn: Connection, key: NsId, writer: str) -> int:
    """The newest marker of a writer that a shard has for a unit; 0: none. Of a fenced one the fence's own."""
    row = conn.execute(
        "SELECT seq FROM ns.move_markers WHERE ns_id = %s AND writer = %s", [key, writer]
    ).fetchone()
    return 0 if row is None else int(row[0])


def wait_for_marker(conn: Connection, key: NsId, writer: str, seq: int, timeout_s: float) -> None:
    """Return once the subscriber has a marker, the newest that there is.

    Raises:
        MarkerLate: it did not come in time; or the subscriber has a later one, which its publisher has lost
            or never wrote, so that nothing tells how far the stream is.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = read_marker(conn, key, writer)
        if found == seq:
            return
        if found > seq:
            raise MarkerLate(f"marker {found} of {writer} is there, which wrote {seq} last: cancel the move")
        if time.monotonic() > deadline:
            raise MarkerLate(f"the stream from {writer} brought nothing new within {timeout_s:g} s")
        time.sleep(POLL_S)
