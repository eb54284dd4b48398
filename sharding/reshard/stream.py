"""The parts of a stream: publication and replication slot on one shard, subscription on the other.

A stream carries every change of some units' rows from its publisher to its subscriber, in the order of
commits. Its three parts bear one name, which tells cluster, move and direction; slots are known to the whole
server, and other clusters may share it.

Whatever makes a part does nothing where it is there already; whatever drops one does nothing where it is not,
and does not need the other server.
"""

import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from sharding.directory import Connection
from sharding.reshard.catalog import Table
from sharding.reshard.errors import MoveError
from sharding.reshard.model import Unit
from sharding.reshard.scope import rows_of
from sharding.reshard.servers import TransactionsOpen, list_transactions
from sharding.reshard.sites import Site
from wire import faults

LOCK_TIMEOUT = "5s"
"""How long to wait for each of the transactions under way: a write takes milliseconds."""
DROP_TIMEOUT_S = 15.0
"""A sender that is told to end does so at its next message; one whose peer is dead as soon as it can."""
_DROP_POLL_S = 0.05
_WATCH_POLL_S = 0.2
CAUGHT_UP_S = 3.0
"""What was written in so short a time is applied in less, and a cutover waits for that."""
MAX_ERRORS = 3
"""Of a worker that does not get on in between. A lost connection is one, and its next try, 5 s later, may
meet a server that is not back yet."""
_ID_CHARS = 8

faults.declare("reshard.stream.slot_made", "reshard.stream.subscribed", "reshard.stream.dropped")


class StreamBroken(MoveError):
    """A stream does not carry what it should; its units are to be copied anew."""

    code = "stream_broken"


class StreamLate(MoveError):
    """A stream does not get to where its publisher is."""

    code = "stream_late"


@dataclass(frozen=True, slots=True)
class StreamState:
    """How a stream does that is whole."""

    lag_bytes: int
    """WAL of the publisher's server that the subscriber has not confirmed yet, whatever is in it."""
    confirmed_bytes: int
    """The place in the WAL up to which it has."""
    room_bytes: int | None
    """WAL that may still be written until the slot is lost; None: no bound."""
    is_active: bool
    """Whether it is being read; it is not while one of the servers comes back, or cannot reach the other."""
    is_ready: bool
    """Whether the subscriber knows all tables of the publication."""
    error_count: int
    """How often a worker of the subscription ended with an error, a lost connection among them."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a shard has of its cluster's streams, by name."""

    publications: tuple[str, ...]
    subscriptions: tuple[str, ...]
    slots: tuple[str, ...]
    origins: tuple[str, ...]
    """Of subscriptions that are gone, anywhere on the server: nothing tells whose they were."""


def stream_name(cluster_id: str, move_id: int, *, is_back: bool) -> str:
    """The name of a stream's parts; `is_back`: from the move's target to its source."""
    return f"{_prefix(cluster_id)}{move_id}{'_back' if is_back else ''}"


def parse_stream_name(cluster_id: str, name: str) -> tuple[int, bool] | None:
    """The move's number and `is_back`; None for a name that this cluster did not give."""
    found = re.fullmatch(re.escape(_prefix(cluster_id)) + r"(\d+)(_back)?", name)
    return (int(found[1]), found[2] is not None) if found else None


def _prefix(cluster_id: str) -> str:
    return f"shardbox_{cluster_id[:_ID_CHARS]}_"


# ---- Publications


def ensure_publication(
    publisher: Connection, name: str, tables: Sequence[Table], units: Sequence[Unit]
) -> None:
    """Publish the changes of some units' rows.

    Raises:
        StreamBroken: there is such a publication, of other tables or rows.
    """
    former = _find_publication(publisher, name)
    if former is None:
        _create_publication(publisher, name, tables, units)
        return
    # PostgreSQL writes a filter down in words of its own: only what it wrote itself can be compared.
    with publisher.transaction(force_rollback=True):
        _create_publication(publisher, f"{name}_wanted", tables, units)
        wanted = _find_publication(publisher, f"{name}_wanted")
    if former != wanted:
        raise StreamBroken(f"publication {name} is not of the move's tables and rows: cancel the move")


def _create_publication(conn: Connection, name: str, tables: Sequence[Table], units: Sequence[Unit]) -> None:
    members = [
        sql.SQL("{} WHERE {}").format(sql.Identifier("ns", table.name), rows_of(units)) for table in tables
    ]
    # TRUNCATE knows no filter: it would empty the subscriber of what is its own.
    statement = sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH (publish = 'insert, update, delete')")
    with conn.transaction():
        conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(LOCK_TIMEOUT))
        conn.execute(statement.format(sql.Identifier(name), sql.SQL(", ").join(members)))


def _find_publication(conn: Connection, name: str) -> object:
    """What a publication is of, to be compared; None if there is none."""
    return conn.execute(_PUBLICATION, [name]).fetchone()


def drop_publication(conn: Connection, name: str) -> None:
    """Publish no more under this name."""
    conn.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))
    faults.fault_point("reshard.stream.dropped")


# ---- Replication slots


@contextmanager
def create_slot(publisher: Site, name: str) -> Generator[str]:
    """Make a slot anew; the id of a snapshot as of where it begins, which can be taken up while this is open.

    A slot of this name is of a run that ended before its copy did: its snapshot is lost, so it goes.

    Raises:
        TransactionsOpen: what was under way does not end; names it.
    """
    with publisher.connect() as conn:
        drop_slot(conn, name)
        # The export is a transaction that stands idle until the copy has taken it up.
        making = publisher.connect_replication(
            lock_timeout=LOCK_TIMEOUT, idle_in_transaction_session_timeout="0"
        )
        with making:
            statement = sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'export')")
            with _naming_open_transactions(conn):
                row = making.execute(statement.format(sql.Identifier(name))).fetchone()
            assert row is not None
            faults.fault_point("reshard.stream.slot_made")
            yield str(row[2])


def ensure_slot(publisher: Connection, name: str) -> None:
    """Keep all changes from now on for a subscriber that has the rows as they are.

    Raises:
        TransactionsOpen: what is under way does not end; names it.
        StreamBroken: the slot is there, but changes are lost.
    """
    former = publisher.execute(_SLOT, [name]).fetchone()
    if former is not None:
        _check_slot(name, former[0])
        return
    with _naming_open_transactions(publisher), publisher.transaction():
        publisher.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(LOCK_TIMEOUT))
        publisher.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
    faults.fault_point("reshard.stream.slot_made")


def drop_slot(conn: Connection, name: str) -> None:
    """Keep no more changes under this name, whoever reads them.

    Raises:
        StreamBroken: its reader does not end.
    """
    deadline = time.monotonic() + DROP_TIMEOUT_S
    while (row := conn.execute(_SLOT_READER, [name]).fetchone()) is not None:
        try:
            if row[0] is None:
                conn.execute("SELECT pg_drop_replication_slot(%s)", [name])
                break
            conn.execute("SELECT pg_terminate_backend(%s)", [row[0]])
        except psycopg.errors.ObjectInUse:
            pass  # a subscriber came back in between
        except psycopg.errors.UndefinedObject:
            break
        if time.monotonic() > deadline:
            raise StreamBroken(f"replication slot {name} is still read by pid {row[0]}: end that, and resume")
        time.sleep(_DROP_POLL_S)
    faults.fault_point("reshard.stream.dropped")


@contextmanager
def _naming_open_transactions(conn: Connection) -> Generator[None]:
    """Say who held off a slot, if somebody did."""
    began = time.monotonic()
    try:
        yield
    except psycopg.errors.LockNotAvailable:
        blockers = list_transactions(conn, time.monotonic() - began) or "they have ended since: try again"
        raise TransactionsOpen(
            f"no replication slot, as transactions that were under way did not end: {blockers}"
        ) from None


def _check_slot(name: str, wal_status: object) -> None:
    if wal_status == "lost":
        raise StreamBroken(
            f"replication slot {name} was invalidated: its subscriber was further behind than"
            " max_slot_wal_keep_size. Cancel the move, see why (or raise the setting), and start it again"
        )


# ---- Subscriptions


def ensure_subscription(subscriber: Connection, publisher: Site, name: str) -> None:
    """Apply a publisher's changes, from where its slot begins.

    Raises:
        StreamBroken: the publisher is not to be reached from here, or there is another such subscription.
    """
    former = subscriber.execute(_SUBSCRIPTION, [name]).fetchone()
    if former is not None:
        if former != (name, [name], "none", "d"):
            raise StreamBroken(f"subscription {name} was not made by this move: drop it, and resume")
        renew_connection(subscriber, publisher, name)
        return
    conninfo = publisher.subscription_conninfo()
    statement = sql.SQL(
        "CREATE SUBSCRIPTION {name} CONNECTION {conninfo} PUBLICATION {name} WITH (connect = true,"
        " create_slot = false, slot_name = {name}, copy_data = false, origin = none, two_phase = false,"
        # A lost connection is an error, too: a stream must find back to a server that was restarted.
        " disable_on_error = false, streaming = parallel, enabled = true)"
    ).format(name=sql.Identifier(name), conninfo=sql.Literal(conninfo))
    _execute_unseen(subscriber, statement, publisher.name, conninfo)
    faults.fault_point("reshard.stream.subscribed")


def renew_connection(subscriber: Connection, publisher: Site, name: str) -> None:
    """Let a subscription connect with the publisher's address and password as they are now, if there is one.

    Raises:
        StreamBroken: the subscriber does not take it.
    """
    if subscriber.execute(_SUBSCRIPTION, [name]).fetchone() is None:
        return
    conninfo = publisher.subscription_conninfo()
    statement = sql.SQL("ALTER SUBSCRIPTION {} CONNECTION {}").format(
        sql.Identifier(name), sql.Literal(conninfo)
    )
    _execute_unseen(subscriber, statement, publisher.name, conninfo)


def _execute_unseen(conn: Connection, statement: sql.Composed, publisher: str, conninfo: str) -> None:
    """Execute a statement that holds a password."""
    try:
        with conn.transaction():
            _log_no_statements(conn)
            conn.execute(statement)
    except psycopg.Error as error:
        # Without the cause: it could be shown with what it was about.
        raise StreamBroken(f"no subscription to {publisher}: {_masked(str(error), conninfo)}") from None


def drop_subscription(conn: Connection, name: str) -> None:
    """Apply no more changes under this name; the publisher's slot stays, and is not asked."""
    subscription = sql.Identifier(name)
    if conn.execute(_SUBSCRIPTION, [name]).fetchone() is not None:
        # Each by itself: with both in one transaction two drops at once would wait for one another.
        conn.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(subscription))
        conn.execute(sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(subscription))
        conn.execute(sql.SQL("DROP SUBSCRIPTION IF EXISTS {}").format(subscription))
    faults.fault_point("reshard.stream.dropped")


def _log_no_statements(conn: Connection) -> None:
    """Keep the text of this transaction's statements out of the server's logs and views.

    Only superusers, and roles that were granted it, may set the most of these: each by itself.
    """
    for setting, value in _SILENCE.items():
        try:
            with conn.transaction():
                conn.execute("SELECT set_config(%s, %s, true)", [setting, value])
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject):
            continue


def _masked(text: str, conninfo: str) -> str:
    password = conninfo_to_dict(conninfo).get("password")
    return text.replace(str(password), "…") if password else text


# ---- Watching


def check_stream(publisher: Connection, subscriber: Connection, name: str) -> StreamState:
    """How a stream does.

    Raises:
        StreamBroken: a part is missing, lost or stopped, or a change met no row.
    """
    slot = publisher.execute(_SLOT_STATE, [name]).fetchone()
    if slot is None:
        raise StreamBroken(f"replication slot {name} is gone from the publisher: cancel the move")
    _check_slot(name, slot[0])
    if _find_publication(publisher, name) is None:
        raise StreamBroken(f"publication {name} is gone from the publisher: cancel the move")
    subscription = subscriber.execute(_SUBSCRIPTION_STATE, [name]).fetchone()
    if subscription is None:
        raise StreamBroken(f"subscription {name} is gone from the subscriber: cancel the move")
    is_enabled, is_ready = subscription[:2]
    counts: Mapping[str, object] = subscription[2] or {}
    _check_subscription(name, is_enabled, counts)
    return StreamState(
        lag_bytes=max(slot[1], 0),
        confirmed_bytes=slot[2],
        room_bytes=slot[3],
        is_active=slot[4],
        is_ready=bool(is_ready),
        error_count=int(str(counts.get("apply_error_count", 0))),
    )


def _check_subscription(name: str, is_enabled: bool, counts: Mapping[str, object]) -> None:
    """Raise for what a subscriber's worker met; PostgreSQL counts conflicts from 18 on, errors always."""
    if not is_enabled:
        raise StreamBroken(f"somebody disabled subscription {name}: enable it, or cancel the move")
    skipped = {kind: counts.get(f"confl_{kind}_missing") for kind in ("update", "delete")}
    if any(skipped.values()):
        raise StreamBroken(
            f"subscription {name} met no row for {skipped['update']} updates and {skipped['delete']} deletes,"
            " so its shard is not as the publisher: cancel the move, and start it again"
        )


def _check_errors(name: str, count: int) -> None:
    if count >= MAX_ERRORS:
        raise StreamBroken(
            f"subscription {name} ends at an error each time ({count} so far), which its server's log tells:"
            " a full disk, a changed table, or a row that was there already"
        )


def wait_until_caught_up(
    publisher: Connection,
    subscriber: Connection,
    name: str,
    timeout_s: float,
    on_state: Callable[[StreamState], None] = lambda _: None,
) -> None:
    """Return when the subscriber is at most some seconds behind.

    Args:
        publisher: of the stream.
        subscriber: of the stream.
        name: of its parts.
        timeout_s: in all.
        on_state: is told several times a second; what it raises ends the wait.

    Raises:
        StreamBroken: as check_stream.
        StreamLate: it did not catch up in time.
    """
    deadline = time.monotonic() + timeout_s
    is_near = False
    while not is_near:
        began, state = time.monotonic(), check_stream(publisher, subscriber, name)
        goal, before = state.confirmed_bytes + state.lag_bytes, state
        while state.confirmed_bytes < goal or not (state.is_ready and state.is_active):
            on_state(state)
            if time.monotonic() > deadline:
                raise StreamLate(
                    f"stream {name} is {state.lag_bytes:,} bytes behind after {timeout_s:g} s, and its reader"
                    f" is {'at work' if state.is_active else 'not there'}: see its log, then resume"
                )
            time.sleep(_WATCH_POLL_S)
            state = check_stream(publisher, subscriber, name)
            if state.confirmed_bytes > before.confirmed_bytes:
                before = state
            _check_errors(name, state.error_count - before.error_count)
        is_near = time.monotonic() - began < CAUGHT_UP_S


# ---- What is there


def list_parts(conn: Connection, cluster_id: str) -> Parts:
    """What a shard has of its cluster's streams, whether or not a move knows of it."""

    def names(query: LiteralString) -> tuple[str, ...]:
        return tuple(str(row[0]) for row in conn.execute(query, {"prefix": _prefix(cluster_id)}).fetchall())

    return Parts(*map(names, (_PUBLICATIONS, _SUBSCRIPTIONS, _SLOTS, _LOST_ORIGINS)))


def drop_origin(conn: Connection, name: str) -> None:
    """Forget how far a subscription was that is gone."""
    with conn.transaction():
        if conn.execute("SELECT 1 FROM pg_replication_origin WHERE roname = %s", [name]).fetchone():
            conn.execute("SELECT pg_replication_origin_drop(%s)", [name])


_SILENCE = {
    "log_statement": "none",
    "log_duration": "off",
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_transaction_sample_rate": "0",
    "log_min_error_statement": "panic",
    "track_activities": "off",
    "pg_stat_statements.track": "none",
    "pgaudit.log": "none",
}
_PUBLICATION: LiteralString = """
SELECT puballtables, pubinsert, pubupdate, pubdelete, pubtruncate,
       (SELECT array_agg(format('%%s.%%s (%%s) %%s', schemaname, tablename, attnames, rowfilter)
                         ORDER BY schemaname, tablename)
          FROM pg_publication_tables t WHERE t.pubname = p.pubname)
  FROM pg_publication p WHERE pubname = %s
"""
_SLOT: LiteralString = (
    "SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s AND database = current_database()"
)
_SLOT_STATE: LiteralString = (
    "SELECT wal_status, pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint,"
    " pg_wal_lsn_diff(confirmed_flush_lsn, '0/0')::bigint, safe_wal_size, active"
    " FROM pg_replication_slots WHERE slot_name = %s AND database = current_database()"
)
_SLOT_READER: LiteralString = (
    "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s AND database = current_database()"
)
_SUBSCRIPTION: LiteralString = (
    "SELECT subslotname::text, subpublications, suborigin, subtwophasestate FROM pg_subscription"
    " WHERE subname = %s AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_SUBSCRIPTION_STATE: LiteralString = """
SELECT s.subenabled,
       (SELECT bool_and(r.srsubstate = 'r') FROM pg_subscription_rel r WHERE r.srsubid = s.oid),
       (SELECT to_jsonb(t) FROM pg_stat_subscription_stats t WHERE t.subid = s.oid)
  FROM pg_subscription s
 WHERE s.subname = %s AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_PUBLICATIONS: LiteralString = (
    "SELECT pubname FROM pg_publication WHERE starts_with(pubname, %(prefix)s) ORDER BY 1"
)
_SUBSCRIPTIONS: LiteralString = (
    "SELECT subname FROM pg_subscription WHERE starts_with(subname, %(prefix)s)"
    " AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1"
)
_SLOTS: LiteralString = (
    "SELECT slot_name FROM pg_replication_slots WHERE starts_with(slot_name, %(prefix)s)"
    " AND database = current_database() ORDER BY 1"
)
_LOST_ORIGINS: LiteralString = (
    "SELECT roname FROM pg_replication_origin WHERE roname ~ '^pg_[0-9]+(_[0-9]+)?$'"
    " AND split_part(roname, '_', 2)::oid NOT IN (SELECT oid FROM pg_subscription) ORDER BY 1"
)
