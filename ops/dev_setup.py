"""What an embedded cluster needs before anything can be started: its record, keys and data folders."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from ops.backup.archive import install_archiver
from ops.backup.repository import ShardBackups
from ops.errors import DataLost, NoCluster, UsageError
from ops.files import write_file, write_json
from ops.layout import DevLayout
from ops.osuser import OsUser
from ops.ports import reserve_port
from ops.postgres import PgServer, make_password, read_passfile, write_passfile
from ops.restore.work import work_of
from ops.specs import (
    CURSOR_KEYS,
    DIRECTORY,
    SERVICE_KEYS,
    TOKEN_KEYS,
    TOKEN_VERIFY_KEYS,
    ClusterRecord,
)
from runtime.tokens import generate_keys
from wire.keys import KeyRing

DEFAULT_METASERVERS = 2
DEFAULT_SHARDS = 2


def check_folder(layout: DevLayout) -> None:
    """Pass when the folder is a cluster's, or free to become one.

    Raises:
        UsageError: it holds something else, which we would open to others, or delete one day.
    """
    if not layout.root.is_dir() or layout.record_file.exists():
        return
    if any(path != layout.command_lock for path in layout.root.iterdir()):
        raise UsageError(f"{layout.root} is neither empty nor a cluster of ours; choose another folder")


def read_record(layout: DevLayout) -> ClusterRecord:
    """What the cluster consists of.

    Raises:
        NoCluster: none was made there.
    """
    try:
        return msgspec.json.decode(layout.record_file.read_bytes(), type=ClusterRecord)
    except (FileNotFoundError, PermissionError):
        raise NoCluster(f"there is no cluster in {layout.root}; `shardctl dev up` makes one") from None


def ensure_record(
    layout: DevLayout, metaservers: int | None, shards: int | None, is_archiving: bool | None = None
) -> ClusterRecord:
    """The cluster's record, made or brought up to the options; None keeps what is.

    Raises:
        UsageError: there are more shards than that already.
    """
    try:
        former = read_record(layout)
    except NoCluster:
        former = ClusterRecord(
            metaserver_count=DEFAULT_METASERVERS, shard_count=shards or DEFAULT_SHARDS, ports={}
        )
    more = 0 if shards is None else shards - len(former.shard_names)
    if more < 0:
        raise UsageError(
            f"this cluster has the shards {', '.join(former.shard_names)}: to have fewer, empty one"
            " (`shardctl shard drain`, `shardctl rebalance`) and remove it (`shardctl shard remove`)"
        )
    count = former.shard_count + more
    record = msgspec.structs.replace(
        former,
        metaserver_count=metaservers or former.metaserver_count,
        shard_count=count,
        joining=[*former.joining, *(f"shard-{i}" for i in range(former.shard_count + 1, count + 1))],
        is_archiving=former.is_archiving if is_archiving is None else is_archiving,
    )
    missing = [name for name in record.process_names if name not in record.ports]
    # All are held until all are chosen: no port twice.
    held = {name: reserve_port() for name in missing}
    for reservation in held.values():
        reservation.close()
    record = msgspec.structs.replace(record, ports={**record.ports, **{n: r.port for n, r in held.items()}})
    if record != former or not layout.record_file.exists():
        write_json(layout.record_file, record)
    return record


def ensure_keys(layout: DevLayout) -> None:
    """Make the keys that are not there yet."""
    ensure_key_files(layout.secrets)


def ensure_key_files(folder: Path) -> list[Path]:
    """The key files of a cluster, those made that are not there yet."""
    service, cursor = folder / SERVICE_KEYS, folder / CURSOR_KEYS
    for path in (service, cursor):
        if not path.exists():
            write_file(path, KeyRing.generate())
    private, public = folder / TOKEN_KEYS, folder / TOKEN_VERIFY_KEYS
    if not (private.exists() and public.exists()):
        private_keys, public_keys = generate_keys()
        write_file(public, public_keys)
        write_file(private, private_keys)
    return [service, cursor, private, public]


def ensure_archives(layout: DevLayout, names: list[str], user: OsUser) -> None:
    """Make the folders that the servers archive to, which are PostgreSQL's user's, and the archiver."""
    install_archiver(layout.archiver)
    layout.backups.mkdir(exist_ok=True)
    for name in names:
        backups = ShardBackups(layout.backups, name)
        backups.make_folders()
        backups.wal.chmod(0o700)
        user.give(backups.wal)


def check_nothing_lost(layout: DevLayout, servers: list[PgServer]) -> None:
    """Pass unless a server's data, once made, are gone, or are just being brought back.

    Raises:
        DataLost: an empty database in their place would be taken for the truth.
    """
    for server in servers:
        command = "directory" if server.name == DIRECTORY else f"shard {server.name}"
        if work_of(server.data_dir).state.exists():
            raise DataLost(f"a restore of {server.name} is unfinished: `shardctl restore {command}` again")
        if layout.whole_file.exists() and not (server.data_dir / "PG_VERSION").exists():
            raise DataLost(f"the data of {server.name} are gone: run `shardctl restore {command}`")


def ensure_data_folders(layout: DevLayout, servers: list[PgServer]) -> list[str]:
    """Make the PostgreSQL servers' data folders; the names of those that had to be made."""
    passwords = read_passfile(layout.passfile)
    unknown = [server.port for server in servers if server.port not in passwords]
    if unknown:
        # Before the servers: a password that only a server knows would be lost.
        passwords |= {port: make_password() for port in unknown}
        write_passfile(layout.passfile, passwords)
    with ThreadPoolExecutor(len(servers)) as pool:
        made = pool.map(lambda server: server.ensure_initialised(passwords[server.port]), servers)
        return [server.name for server, is_new in zip(servers, made, strict=True) if is_new]
