"""Connections to one shard: a bounded pool, and a probe that tells a dead or hanging server from a slow one.

A query may take long for good reasons, so no time-out on it can tell whether its server still lives. The
probe can: it asks for nothing on a connection of its own. When it gets no answer the shard counts as out: the
sockets of all queries under way are shut down, so that their callers hear of it at once, and new callers are
refused without waiting until the probe succeeds again. A process that stood still itself has not listened, so
that such time does not count.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass

import psycopg
import psycopg_pool
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from runtime.logs import get_log
from runtime.tasks import end
from wire.errors import Overloaded, ShardUnavailable

_log = get_log(__name__)

Connection = psycopg.AsyncConnection[TupleRow]

POOL_MAX = 16
"""Connections of one process to one shard. 16 clients already bring one server of two cores to its best
throughput; more only queue inside PostgreSQL."""
POOL_MIN = 4
"""Connections that are kept also where nothing is asked, such as at a shard to which the first namespaces are
being moved: one takes 10 ms to make, a pool makes them one after another, and a cutover takes 3 ms."""
POOL_MAX_WAITING = 256
"""Callers that may queue for a connection; at 3,000 commits/s that is less than 0.1 s of work."""
GET_TIMEOUT_S = 1.5
"""For a connection; with the probe's bounds below, a caller is answered within 2 s."""
PROBE_INTERVAL_S = 0.4
PROBE_TIMEOUT_S = 1.0
"""An idle PostgreSQL answers in 0.1 ms; on two saturated cores it was seen to take 0.2 s."""
PROBE_LOOKS = 10
"""How often at least the event loop looks for the answer within that time."""
SESSION_OPTIONS = {
    # A statement of ours is bounded in rows; half a minute is a hundred times the longest one measured.
    "statement_timeout": "30s",
    # Waiting longer for a namespace than this, the caller had better come again.
    "lock_timeout": "5s",
    # A metaserver that was stopped in mid transaction must not hold a namespace's lock.
    "idle_in_transaction_session_timeout": "10s",
    "timezone": "UTC",
    # Our queries are look-ups by key; a recursive one looks dear to the planner, and compiling it would take
    # longer than running it.
    "jit": "off",
    # Plans for any namespace. Of one that is missing in a table's statistics, as each is that has just grown,
    # the planner believes that it has one row, which any index will do for: a batch of 500 names then looked
    # at all of the namespace 500 times.
    "plan_cache_mode": "force_generic_plan",
}


def session_conninfo(dsn: str, application: str) -> str:
    """The DSN with our session settings and time-outs."""
    options = " ".join(f"-c {name}={value}" for name, value in SESSION_OPTIONS.items())
    return make_conninfo(
        dsn,
        options=options,
        application_name=application,
        connect_timeout=2,
        tcp_user_timeout=5_000,
        keepalives_idle=5,
    )


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """Connections in use and free, and callers in the queue."""

    busy: int
    idle: int
    waiting: int


class ShardPool:
    """The connections of this process to one shard."""

    def __init__(self, shard: str, dsn: str, application: str, *, max_size: int = POOL_MAX):
        self.shard = shard
        self.dsn = dsn
        self._conninfo = session_conninfo(dsn, application)
        self._max_size = max_size
        self._pool: psycopg_pool.AsyncConnectionPool[Connection] | None = None
        self._out_because: str | None = "not asked yet"
        self._busy: set[Connection] = set()
        self._probing: asyncio.Task[None] | None = None
        self._first_probe = asyncio.Event()

    @property
    def is_out(self) -> bool:
        """Whether the shard does not answer."""
        return self._out_because is not None

    def load(self) -> PoolLoad:
        """How busy it is now; all 0 while the shard is out."""
        if self._pool is None:
            return PoolLoad(0, 0, 0)
        stats = self._pool.get_stats()
        return PoolLoad(len(self._busy), stats.get("pool_available", 0), stats.get("requests_waiting", 0))

    async def open(self) -> None:
        """Start probing; returns after the first answer, or its time-out."""
        self._probing = asyncio.create_task(self._probe_forever(), name=f"probe {self.shard}")
        await self._first_probe.wait()

    async def close(self) -> None:
        """Stop probing and close the connections."""
        await end(self._probing)
        await self._drop_pool()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """A connection in autocommit mode, given back clean or thrown away.

        Raises:
            ShardUnavailable: the shard is out, or went out meanwhile.
            Overloaded: all connections are busy and the queue is full or did not move.
        """
        pool = self._pool
        if pool is None or self._out_because is not None:
            raise self._unavailable()
        try:
            conn = await pool.getconn(timeout=GET_TIMEOUT_S)
        except psycopg_pool.TooManyRequests as error:
            raise Overloaded("too many requests wait for the database of this namespace") from error
        except psycopg_pool.PoolTimeout as error:
            if self.is_out:
                raise self._unavailable() from error
            raise Overloaded("the database of this namespace is busy") from error
        except (psycopg_pool.PoolClosed, psycopg.OperationalError) as error:
            raise self._unavailable() from error
        self._busy.add(conn)
        try:
            yield conn
        except psycopg.Error as error:
            # Not operational errors alone: a session idle in its transaction is ended with an internal one.
            if conn.closed or conn.broken:
                raise self._unavailable() from error
            raise
        finally:
            self._busy.discard(conn)
            await pool.putconn(conn)

    def _unavailable(self) -> ShardUnavailable:
        # Clients learn of namespaces, never of shards.
        return ShardUnavailable("the database of this namespace does not answer")

    async def _probe_forever(self) -> None:
        conn: Connection | None = None
        try:
            while True:
                try:
                    if conn is None:
                        conn = await self._connect()
                    await _ask(conn)
                    await self._set_in()
                except (psycopg.Error, TimeoutError, OSError) as error:
                    if conn is not None:
                        await conn.close()
                    conn = None
                    await self._set_out(f"{type(error).__name__}: {error}")
                self._first_probe.set()
                await asyncio.sleep(PROBE_INTERVAL_S)
        finally:
            if conn is not None:
                await conn.close()

    async def _connect(self) -> Connection:
        async with asyncio.timeout(None) as limit:
            with _patience(lambda: limit.reschedule(asyncio.get_running_loop().time())):
                return await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)

    async def _set_in(self) -> None:
        if self._pool is None:
            # A new pool rather than the old one: that one may be sleeping in a long reconnection back-off.
            pool = psycopg_pool.AsyncConnectionPool(
                self._conninfo,
                connection_class=psycopg.AsyncConnection[TupleRow],
                kwargs={"autocommit": True},
                min_size=min(POOL_MIN, self._max_size),
                max_size=self._max_size,
                max_waiting=POOL_MAX_WAITING,
                timeout=GET_TIMEOUT_S,
                reconnect_timeout=5,
                open=False,
                name=self.shard,
            )
            await pool.open(wait=False)
            self._pool = pool
        if self._out_because is not None:
            _log.info("shard_in", shard=self.shard)
            self._out_because = None

    async def _set_out(self, because: str) -> None:
        if self._out_because is None:
            _log.warning("shard_out", shard=self.shard, because=because)
        self._out_because = because
        for conn in list(self._busy):
            _shut_down(conn)
        await self._drop_pool()

    async def _drop_pool(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close(timeout=0.1)


async def _ask(conn: Connection) -> None:
    """An answer within the probe's time, or an error."""
    with _patience(lambda: _shut_down(conn)):
        await conn.execute("SELECT 1")


@contextlib.contextmanager
def _patience(give_up: Callable[[], None]) -> Generator[None]:
    """Give up on the body after the probe's time, counted in turns of the event loop.

    After a stall (a paused machine, a long computation) the answer may lie there unread while a timer that
    ran on meanwhile is due first; a turn counts the same however long it took.
    """

    call_later = asyncio.get_running_loop().call_later
    timer: asyncio.TimerHandle | None = None

    def look(left: int) -> None:
        nonlocal timer
        if left:
            timer = call_later(PROBE_TIMEOUT_S / PROBE_LOOKS, look, left - 1)
        else:
            give_up()

    look(PROBE_LOOKS)
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


def _shut_down(conn: Connection) -> None:
    """Make whoever waits on this connection hear of its end now.

    psycopg answers a cancelled wait by asking the server to cancel and waiting for it, which a hanging server
    never does; an end of file it takes at once.
    """
    try:
        number = conn.pgconn.socket
    except psycopg.Error:
        return
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as twin:
        twin.shutdown(socket.SHUT_RDWR)
