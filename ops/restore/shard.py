"""Bringing a shard back: its files from a backup (here) or by other means (at an address), then the steps."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import msgspec
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from migrations import Tree
from ops.errors import UsageError
from ops.migrate import is_current, migrate_databases, migration_lock
from ops.restore import claims, listed, steps
from ops.restore.private import Tell, private_server
from ops.restore.recover import Recovery
from ops.restore.steps import Restored, Step, run_steps
from ops.restore.work import Phase, Target
from ops.session import CONNECT_TIMEOUT_S, load_map
from ops.specs import DIRECTORY
from sharding.directory import Connection
from sharding.shardmap import ShardMap
from wire import faults
from wire.errors import NotFound, ShardUnavailable

APPLICATION = "shardctl restore"
WORK = {
    Step.FENCED: steps.fence,
    Step.RECONCILED: steps.settle_ownership,
    Step.CLAIMED: claims.claim_again,
    Step.LISTED: listed.list_again,
    Step.JUMPED: steps.jump,
    Step.ACTIVE: steps.let_in,
    Step.PUBLISHED: steps.publish,
}
"""The live run and the dry run read the same table."""

faults.declare("ops.restore.recovered", "ops.restore.let_in")


class RestoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore came to."""

    restore_id: str
    shard: str
    restored_to: str
    backup_id: str | None
    former_data: str | None
    """Where the data lie that were replaced."""
    step: str
    counts: dict[str, int]
    """What the steps changed."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster that a shard comes back to."""

    directory_dsn: str
    without: Sequence[str] = ()
    """Shards that are lost as well, and will be restored after this one."""

    def shard_map(self, name: str) -> ShardMap:
        """The map.

        Raises:
            NotFound: no shard has that name.
        """
        shard_map = load_map(self.directory_dsn)
        for shard in (name, *self.without):
            if shard not in shard_map.shards:
                raise NotFound(f"the directory knows no shard {shard!r}")
        return shard_map


def recover_shard(
    cluster: Cluster, recovery: Recovery, target: Target, backup_id: str | None, password: str | None
) -> RestoreReport:
    """Bring a shard's data folder back; its server can be started as ever afterwards.

    Args:
        cluster: the others.
        recovery: the files.
        target: the moment.
        backup_id: None: the newest that reaches the moment.
        password: the role's, which may have been changed since the moment; None leaves it.

    Raises:
        UsageError: another database of the cluster lies on the same server.
        OpsError: nothing has been let in; the same command goes on where this one ended.
    """
    tell, name = recovery.tell, recovery.backups.shard
    info = cluster.shard_map(name).shards[name]
    check_server_is_own(cluster, name)
    address = conninfo_to_dict(info.dsn)
    role, database = str(address.get("user", "postgres")), str(address["dbname"])
    state = recovery.ensure_copied(recovery.begin(target, backup_id))
    report = RestoreReport(
        restore_id=state.restore_id,
        shard=name,
        restored_to=state.target.text,
        backup_id=state.backup_id,
        former_data=None,
        step=Step.PUBLISHED.value,
        counts={},
    )
    if recovery.work.restoring.exists():
        tell(f"recovering to {state.target.text}")
        with private_server(
            recovery.programs,
            recovery.user,
            recovery.work.restoring,
            recovery.work.log,
            role=role,
            settings=recovery.settings(state.target),
            tell=tell,
        ) as server:
            if state.phase is Phase.COPIED:
                state = recovery.advance(state, Phase.RECOVERED, "ops.restore.recovered")
            if password is not None:
                _set_password(server.dsn(database), role, password)
            counts = reconcile_at(
                cluster,
                name,
                server.dsn(database),
                state.restore_id,
                state.target.text,
                tell,
                public_dsn=None,
            )
            report = msgspec.structs.replace(report, counts=counts)
        state = recovery.advance(state, Phase.LET_IN, "ops.restore.let_in")
    former = recovery.place(state)
    return msgspec.structs.replace(report, former_data=str(former) if former else None)


def check_server_is_own(cluster: Cluster, name: str) -> None:
    """Pass when no other database of the cluster lies on a shard's server.

    Raises:
        UsageError: one does; it would go back with the shard, and nobody would make it fit the others.
    """
    dsns = {other: info.dsn for other, info in cluster.shard_map(name).shards.items()}
    dsns[DIRECTORY] = cluster.directory_dsn
    address = _server_of(dsns.pop(name))
    shared = sorted(other for other, dsn in dsns.items() if _server_of(dsn) == address)
    if shared:
        raise UsageError(
            f"{name} shares its server with {', '.join(shared)}, which would go back to the moment as well:"
            " bring the backup back on another server, and go on with --at"
        )


def _server_of(dsn: str) -> tuple[str, str]:
    address = conninfo_to_dict(dsn)
    return str(address.get("host", "")), str(address.get("port", "5432"))


def _set_password(dsn: str, role: str, password: str) -> None:
    with psycopg.connect(dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as conn:
        # Hashed here: PostgreSQL might log a password in the clear.
        hashed = conn.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
        conn.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(hashed)))


def reconcile_at(
    cluster: Cluster,
    name: str,
    dsn: str,
    restore_id: str,
    restored_to: str,
    tell: Tell,
    *,
    public_dsn: str | None,
) -> dict[str, int]:
    """Take a server that was brought back to some moment through the steps; what they changed.

    Args:
        cluster: the others.
        name: the shard.
        dsn: where it is reached, by us alone.
        restore_id: names the restore; under the same id the steps go on where they ended.
        restored_to: for the record.
        tell: told what is being done.
        public_dsn: where metaservers will reach it, if that changes.
    """
    shard_map = cluster.shard_map(name)
    if not is_current(dsn, Tree.SHARD):
        tell(f"{name}: migrate it to the newest schema")
        migrate_databases(cluster.directory_dsn, {name: dsn}).raise_for_failures()
    with ExitStack() as stack:
        directory = stack.enter_context(migration_lock(cluster.directory_dsn))
        restored = Restored(
            restore_id=restore_id,
            name=name,
            restored_to=restored_to,
            conn=stack.enter_context(_connect(name, dsn)),
            others={
                other: stack.enter_context(_connect(other, info.dsn))
                for other, info in shard_map.shards.items()
                if other != name and other not in cluster.without
            },
            directory=directory,
            tell=tell,
            public_dsn=public_dsn,
        )
        _check_cluster(restored, shard_map)
        return run_steps(restored, WORK).counts


def _check_cluster(restored: Restored, shard_map: ShardMap) -> None:
    row = restored.conn.execute("SELECT cluster_id, shard FROM local.cluster").fetchone()
    if row is not None and tuple(row) != (shard_map.cluster_id, restored.name):
        raise UsageError(
            f"what was restored is {row[1]} of cluster {row[0]},"
            f" not {restored.name} of {shard_map.cluster_id}"
        )


@contextmanager
def _connect(name: str, dsn: str) -> Iterator[Connection]:
    try:
        conn = psycopg.connect(
            dsn,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=APPLICATION,
            # A fence or a busy slot is waited for; half a minute is a hundred times what either takes.
            options="-c lock_timeout=30s -c timezone=UTC",
        )
    except psycopg.OperationalError as error:
        raise ShardUnavailable(
            f"{name} does not answer: {str(error).strip()}; if it is lost as well, add --without {name}"
        ) from error
    with conn:
        yield conn


def check_old_is_gone(dsn: str, name: str) -> None:
    """Pass when the address that the map names for a shard does not answer.

    Raises:
        UsageError: it does; two servers would both take writes.
    """
    try:
        psycopg.connect(dsn, connect_timeout=CONNECT_TIMEOUT_S).close()
    except psycopg.OperationalError as error:
        # One that refuses us alone would still take the metaservers' writes.
        if "authentication" not in str(error) and "pg_hba.conf" not in str(error):
            return
    raise UsageError(f"{name} still answers where the directory says ({dsn}): stop that server first")
