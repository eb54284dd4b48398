"""An exact comparison of what two shards have of the units of a stream, while both are at work.

Each pair of snapshots is of one moment of the stream (`verify_snapshots`), and is compared chunk by chunk
(`verify_chunks`). A pair is used for a minute; the comparison then goes on with another one, from the last
chunk. It may do so in another process as well: how far it is, is handed out after each chunk.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import psycopg

from sharding.reshard.catalog import Table
from sharding.reshard.errors import MoveError
from sharding.reshard.model import Unit
from sharding.reshard.pacing import Pacer
from sharding.reshard.scope import merge
from sharding.reshard.sites import Site
from sharding.reshard.verify_chunks import Chunk, ChunkReader, Difference, DifferenceKind, Key
from sharding.reshard.verify_snapshots import GateOpened, SnapshotPair, take_pair
from wire import faults
from wire.ids import NsId

__all__ = [
    "ComparisonCut",
    "Difference",
    "DifferenceKind",
    "GateOpened",
    "Verified",
    "VerifyReport",
    "verify_units",
]

MAX_DIFFERENCES = 1000
"""That are named; whoever has more wants to know of what kind, and the rest are counted."""
REST = 1.0
"""How long the shards are left alone after a chunk, by the time that it took: the hashes take a processor of
each, which no small commit's latency tells, and nobody waits for them."""

faults.declare("reshard.verify.chunk_done")


class ComparisonCut(MoveError):
    """A comparison lost one of its sessions; it can go on where it was."""

    code = "comparison_cut"


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison found."""

    rows: int = 0
    """Of the owner."""
    chunks: int = 0
    difference_count: int = 0
    differences: tuple[Difference, ...] = ()
    """The first thousand."""
    pauses_ms: tuple[float, ...] = ()
    """How long writers were held off, each time that they were."""


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """How far a comparison is."""

    owner: str
    table: str | None
    """The one to go on with; None: it has ended."""
    first: NsId | None
    """Where the range of the units begins that is compared in this table."""
    key: Key | None
    """The last one of that range that was compared; None: none was."""
    report: VerifyReport = VerifyReport()
    """On all before."""


_Part = tuple[Table, Unit]


def verify_units(
    owner: Site,
    follower: Site,
    tables: Sequence[Table],
    units: Sequence[Unit],
    gate: int,
    progress: Verified | None,
    save: Callable[[Verified], None],
    pacer: Pacer,
) -> VerifyReport:
    """What the two shards have differently of some units; differences are no error.

    Args:
        owner: whose writes the stream carries.
        follower: who applies them.
        tables: that both have.
        units: of one stream.
        gate: the move's number modulo 2^31.
        progress: of a run that did not end. Of another owner, or of a run that ended, it does not count.
        save: is told after each chunk how far it is.
        pacer: is waited for after each chunk, while nothing is held but the snapshots.

    Raises:
        MarkerLate, FenceHeld, MoveBusy, GateOpened: there are no two snapshots of one moment.
        ComparisonCut: a session or a server went.
    """
    parts = [(table, unit) for table in tables for unit in merge(units)]
    done = _resume(progress, owner.name, parts)
    try:
        with ThreadPoolExecutor(1, "follower") as pool:
            while done.table is not None:
                with take_pair(owner, follower, units, gate) as pair:
                    done = _add_pauses(done, pair)
                    reader = ChunkReader(pair, follower.name, pool)
                    while done.table is not None:
                        began_s = time.monotonic()
                        done, rows = _compare_next(reader, parts, done)
                        worked_s = time.monotonic() - began_s
                        save(done)
                        faults.fault_point("reshard.verify.chunk_done")
                        pacer.wait(rows)
                        time.sleep(worked_s * REST)
                        if pair.is_old:
                            break
    except psycopg.Error as error:
        names = f"{owner.name} and {follower.name}"
        raise ComparisonCut(f"the comparison of {names} was cut short; resume it: {error}") from error
    return done.report


def _resume(progress: Verified | None, owner: str, parts: Sequence[_Part]) -> Verified:
    if progress is not None and progress.owner == owner and _find(parts, progress) is not None:
        return progress
    return _at(owner, parts, 0, VerifyReport())


def _find(parts: Sequence[_Part], done: Verified) -> int | None:
    places = (
        i for i, (table, unit) in enumerate(parts) if (table.name, unit.first) == (done.table, done.first)
    )
    return next(places, None)


def _at(owner: str, parts: Sequence[_Part], position: int, report: VerifyReport) -> Verified:
    if position == len(parts):
        return Verified(owner=owner, table=None, first=None, key=None, report=report)
    table, unit = parts[position]
    return Verified(owner=owner, table=table.name, first=unit.first, key=None, report=report)


def _compare_next(reader: ChunkReader, parts: Sequence[_Part], done: Verified) -> tuple[Verified, int]:
    """Compare one chunk more; how far it is then, and how many rows the chunk had."""
    position = _find(parts, done)
    assert position is not None
    chunk = reader.compare(*parts[position], done.key)
    report = _add_chunk(done.report, chunk)
    if chunk.end is None:
        return _at(done.owner, parts, position + 1, report), chunk.rows
    return msgspec.structs.replace(done, key=chunk.end, report=report), chunk.rows


def _add_chunk(report: VerifyReport, chunk: Chunk) -> VerifyReport:
    return msgspec.structs.replace(
        report,
        rows=report.rows + chunk.rows,
        chunks=report.chunks + 1,
        difference_count=report.difference_count + len(chunk.differences),
        differences=(*report.differences, *chunk.differences)[:MAX_DIFFERENCES],
    )


def _add_pauses(done: Verified, pair: SnapshotPair) -> Verified:
    report = done.report
    return msgspec.structs.replace(
        done, report=msgspec.structs.replace(report, pauses_ms=(*report.pauses_ms, *pair.pauses_ms))
    )
