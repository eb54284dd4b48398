"""The two roles of docs/operations.md, made by the statements that stand there, are enough for everything."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from ops.errors import EXIT_OK
from ops.files import write_file
from ops.postgres import PgServer
from tests.support.commands import OPERATOR, run_command
from tests.support.databases import PgServers, drop_database
from wire.ids import parse_ns_id, slot_of

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True)
class OwnServers:
    """A database on each of three servers, and two roles."""

    servers: PgServers
    name: str
    passfile: Path

    @property
    def ops(self) -> str:
        return f"{self.name}_ops"

    @property
    def app(self) -> str:
        return f"{self.name}_app"

    def address(self, server: PgServer) -> str:
        """Without a user."""
        return f"postgresql://127.0.0.1:{server.port}/{self.name}"

    def run_page(self, server: PgServer, block: str) -> None:
        """Carry out a block of the page, as a superuser."""
        database = "postgres" if block == "before" else self.name
        with server.connect(database) as conn:
            for statement in statements(block):
                named = re.sub(r"shardbox_(ops|app)", rf"{self.name}_\1", statement)
                conn.execute(named.replace("DATABASE shardbox", f"DATABASE {self.name}").encode())

    def shardctl(self, role: str, *args: str) -> Any:
        env = {
            "SHARDBOX_DIRECTORY_DSN": self.address(self.servers.directory),
            "PGUSER": role,
            "PGPASSFILE": str(self.passfile),
        }
        done = run_command(OPERATOR, *args, "--output", "json", env=env, timeout_s=120)
        assert done.returncode == EXIT_OK, done.stderr
        return msgspec.json.decode(done.stdout)


def statements(block: str) -> list[str]:
    """The statements of one of the page's blocks."""
    found = re.search(rf"^```sql {block}$(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, block
    text = re.sub(r"--.*", "", found[1])
    return [statement.strip() for statement in text.split(";") if statement.strip()]


@pytest.fixture
def own(pg_servers: PgServers, tmp_path: Path) -> Iterator[OwnServers]:
    """Servers on which the first block has been carried out."""
    own = OwnServers(pg_servers, f"t_{secrets.token_hex(6)}", tmp_path / "pgpass")
    password = secrets.token_hex(8)
    lines = [f"127.0.0.1:*:*:{role}:{password}\n" for role in (own.ops, own.app)]
    write_file(own.passfile, "".join(lines).encode())
    try:
        for server in pg_servers.all:
            own.run_page(server, "before")
            with server.connect() as conn:
                for role in (own.ops, own.app):
                    conn.execute(
                        sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                            sql.Identifier(role), sql.Literal(password)
                        )
                    )
        yield own
    finally:
        for server in pg_servers.all:
            drop_database(server, own.name)
            with server.connect() as conn:
                for role in (own.ops, own.app):
                    conn.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


def test_two_roles_without_superuser_run_migrate_add_and_move(own: OwnServers, tmp_path: Path) -> None:
    first, second = own.servers.shards
    own.shardctl(own.ops, "cluster", "create", f"--shard=shard-1={own.address(first)}", "--slots=8")
    own.run_page(own.servers.directory, "directory")
    own.run_page(first, "shard")
    ann = own.shardctl(own.app, "user", "add", "ann@example.org")
    address = tmp_path / "dsn"
    address.write_text(own.address(second))

    own.shardctl(own.ops, "shard", "add", "shard-2", f"--dsn-file={address}")
    own.run_page(second, "shard")
    slots = f"--slots={slot_of(parse_ns_id(ann['root_ns']))}"
    moved = own.shardctl(own.ops, "move", "start", "--to=shard-2", slots, "--until=soaking", "--quarantine=0")
    own.shardctl(own.ops, "move", "rollback", str(moved["move_id"]))
    own.shardctl(own.ops, "move", "switch", str(moved["move_id"]))
    ended = own.shardctl(own.ops, "move", "complete", str(moved["move_id"]))

    assert (moved["state"], ended["state"]) == ("soaking", "completed")
    assert own.shardctl(own.app, "namespace", "locate", "ann@example.org")["shard"] == "shard-2"
    disabled = own.shardctl(own.app, "user", "disable", "ann@example.org")
    assert disabled["state"] == "disabled"
    assert own.shardctl(own.ops, "plan")["is_exact"]


def test_the_metaservers_role_cannot_change_who_owns_what(own: OwnServers) -> None:
    first = own.servers.shards[0]
    own.shardctl(own.ops, "cluster", "create", f"--shard=shard-1={own.address(first)}", "--slots=8")
    own.run_page(own.servers.directory, "directory")
    own.run_page(first, "shard")

    for server, statement in (
        (first, "UPDATE local.ownership SET epoch = epoch + 1"),
        (first, "DELETE FROM local.cluster"),
        (first, "TRUNCATE ns.entries"),
        (first, "ALTER TABLE ns.entries ADD x int"),
        (own.servers.directory, "UPDATE cluster SET map_version = map_version + 1"),
        (own.servers.directory, "DELETE FROM shards"),
    ):
        dsn = make_conninfo(own.address(server), user=own.app, passfile=str(own.passfile))
        with (
            psycopg.connect(dsn, autocommit=True) as conn,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            conn.execute(statement.encode())
