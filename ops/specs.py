"""Which processes an embedded cluster consists of, and how each is started and stopped."""

import sys
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from pathlib import Path

import msgspec

from ops.backup.archive import archive_settings
from ops.layout import CODE_ROOT, DevLayout
from ops.osuser import OsUser
from ops.ports import LOOPBACK
from ops.postgres import ROLE, PgServer
from ops.processes import PRIVATE_UMASK
from ops.programs import PgPrograms

DIRECTORY = "directory"
EVERY_SERVER = "all"
"""Names that commands take beside those of shards."""
SERVICE_KEYS, CURSOR_KEYS = "service-keys.json", "cursor-keys.json"
TOKEN_KEYS, TOKEN_VERIFY_KEYS = "token-keys.json", "token-verify-keys.json"
DRAIN_S = 5
"""How long a server of the embedded cluster may take to drain: its clients are on the same machine."""
SERVER_GRACE_S = DRAIN_S + 5.0
POSTGRES_GRACE_S = 60.0
"""A fast stop writes a checkpoint: up to 1 GB of WAL's worth of pages on a laptop's disk."""


class ProcessKind(StrEnum):
    """What a process is."""

    POSTGRES = "postgres"
    METASERVER = "metaserver"
    BLOCKSERVER = "blockserver"
    NOTIFSERVER = "notifserver"
    CLIENT = "client"


class Stage(IntEnum):
    """The order of starting; stopping goes the other way."""

    DATABASE = 1
    METASERVER = 2
    SERVER = 3
    CLIENT = 4


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How to start one process."""

    name: str
    kind: ProcessKind
    stage: Stage
    argv: list[str]
    env: dict[str, str]
    """For PostgreSQL all of its environment, for the others what is added to the caller's."""
    cwd: str
    log: str
    port: int | None = None
    url: str | None = None
    user: str | None = None
    """The OS user that it runs as; None for the caller."""
    data_dir: str | None = None
    """PGDATA."""
    grace_s: float = SERVER_GRACE_S
    umask: int = PRIVATE_UMASK


class ClusterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a cluster consists of; kept for its life."""

    metaserver_count: int
    shard_count: int
    """How many shards there have ever been: a name is not given twice."""
    ports: dict[str, int]
    """By process name."""
    is_archiving: bool = False
    """Whether the PostgreSQL servers archive their logs into the folder of the backups."""
    joining: list[str] = []
    """Shards that came later, until the directory has them."""
    removed: list[str] = []
    """Shards that the directory has no more."""

    @property
    def shard_names(self) -> list[str]:
        """shard-1, shard-2, …; those that were removed are left out."""
        names = [f"shard-{i}" for i in range(1, self.shard_count + 1)]
        return [name for name in names if name not in self.removed]

    @property
    def member_names(self) -> list[str]:
        """The shards that the directory is to have already."""
        return [name for name in self.shard_names if name not in self.joining]

    @property
    def metaserver_names(self) -> list[str]:
        """metaserver-1, metaserver-2, …"""
        return [f"metaserver-{i}" for i in range(1, self.metaserver_count + 1)]

    @property
    def database_names(self) -> list[str]:
        """The PostgreSQL servers."""
        return [DIRECTORY, *self.shard_names]

    @property
    def server_names(self) -> list[str]:
        """The HTTP servers."""
        return [*self.metaserver_names, "blockserver", "notifserver"]

    @property
    def process_names(self) -> list[str]:
        """All processes with a port."""
        return [*self.database_names, *self.server_names]

    def url(self, name: str) -> str:
        """Where an HTTP server is reached."""
        return f"http://{LOOPBACK}:{self.ports[name]}"

    def dsn(self, name: str) -> str:
        """The address of a PostgreSQL server's database, without the password."""
        return f"postgresql://{ROLE}@{LOOPBACK}:{self.ports[name]}/{database_of(name)}"


def database_of(name: str) -> str:
    """The database on a PostgreSQL server of that name."""
    return name.replace("-", "_")


def pg_server(
    layout: DevLayout,
    record: ClusterRecord,
    name: str,
    programs: PgPrograms,
    user: OsUser,
    settings: Mapping[str, str] | None = None,
) -> PgServer:
    """A PostgreSQL server of the cluster."""
    archive = archive_settings(layout.archiver, layout.backups / name / "wal") if record.is_archiving else {}
    return PgServer(
        name=name,
        folder=layout.postgres / name,
        port=record.ports[name],
        log=layout.log(name),
        programs=programs,
        user=user,
        passfile=layout.passfile,
        settings={**archive, **(settings or {})},
    )


def postgres_spec(server: PgServer) -> ProcessSpec:
    """How to start a PostgreSQL server."""
    return ProcessSpec(
        name=server.name,
        kind=ProcessKind.POSTGRES,
        stage=Stage.DATABASE,
        argv=server.argv(),
        env=server.environment(),
        cwd=str(server.folder),
        log=str(server.log),
        port=server.port,
        user=None if server.user.is_caller else server.user.name,
        data_dir=str(server.data_dir),
        grace_s=POSTGRES_GRACE_S,
    )


def server_specs(layout: DevLayout, record: ClusterRecord, directory_dsn: str) -> list[ProcessSpec]:
    """How to start the HTTP servers (docs/settings.md tells what each needs)."""
    urls = {
        "SHARDBOX_METASERVER_URLS": ",".join(record.url(name) for name in record.metaserver_names),
        "SHARDBOX_BLOCKSERVER_URLS": record.url("blockserver"),
        "SHARDBOX_NOTIFSERVER_URLS": record.url("notifserver"),
    }
    cursor_keys = {"SHARDBOX_CURSOR_KEYS_FILE": str(cursor_keys_file(layout))}

    def spec(name: str, kind: ProcessKind, stage: Stage, env: dict[str, str]) -> ProcessSpec:
        shared = {
            "SHARDBOX_LISTEN_HOST": LOOPBACK,
            "SHARDBOX_LISTEN_PORT": str(record.ports[name]),
            "SHARDBOX_SERVICE_KEYS_FILE": str(service_keys_file(layout)),
            "SHARDBOX_DRAIN_S": str(DRAIN_S),
        }
        return ProcessSpec(
            name=name,
            kind=kind,
            stage=stage,
            argv=[sys.executable, "-m", kind.value],
            env=shared | env,
            cwd=str(CODE_ROOT),
            log=str(layout.log(name)),
            port=record.ports[name],
            url=record.url(name),
        )

    metaserver_env = {
        **urls,
        **cursor_keys,
        "SHARDBOX_DIRECTORY_DSN": directory_dsn,
        "SHARDBOX_TOKEN_KEYS_FILE": str(token_keys_file(layout)),
        "PGPASSFILE": str(layout.passfile),
    }
    blockserver_env = {
        "SHARDBOX_METASERVER_URLS": urls["SHARDBOX_METASERVER_URLS"],
        "SHARDBOX_TOKEN_VERIFY_KEYS_FILE": str(token_verify_keys_file(layout)),
        "SHARDBOX_BLOCK_DIR": str(layout.blocks),
    }
    notifserver_env = {"SHARDBOX_METASERVER_URLS": urls["SHARDBOX_METASERVER_URLS"], **cursor_keys}
    return [
        *(
            spec(
                name,
                ProcessKind.METASERVER,
                Stage.METASERVER,
                metaserver_env | {"SHARDBOX_MAP_FILE": str(layout.maps / f"{name}.json")},
            )
            for name in record.metaserver_names
        ),
        spec("blockserver", ProcessKind.BLOCKSERVER, Stage.SERVER, blockserver_env),
        spec("notifserver", ProcessKind.NOTIFSERVER, Stage.SERVER, notifserver_env),
    ]


def service_keys_file(layout: DevLayout) -> Path:
    """The key ring that servers know one another by."""
    return layout.secrets / SERVICE_KEYS


def cursor_keys_file(layout: DevLayout) -> Path:
    """The key ring that signs cursors."""
    return layout.secrets / CURSOR_KEYS


def token_keys_file(layout: DevLayout) -> Path:
    """The private key set that signs access tokens."""
    return layout.secrets / TOKEN_KEYS


def token_verify_keys_file(layout: DevLayout) -> Path:
    """Its public twin."""
    return layout.secrets / TOKEN_VERIFY_KEYS
