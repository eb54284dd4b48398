"""A new password for a database's role, in use without a request that fails.

libpq reads PGPASSFILE whenever it opens a connection, and a connection that is open needs no password any
more. So the role gets the new one and the file is replaced right after; what tries to connect in the
millisecond between is tried again by the pool.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from ops.errors import OpsError, UsageError
from ops.files import write_file
from ops.postgres import make_password
from ops.session import CONNECT_TIMEOUT_S
from wire import faults

faults.declare("ops.passwords.noted", "ops.passwords.altered", "ops.passwords.replaced")


class PasswordRefused(OpsError):
    """The server takes neither the password that is in force nor the one that was to be."""

    code = "password_refused"


def rotate_password(dsn: str, passfile: Path) -> None:
    """Give the role of an address a new password, and the password file with it.

    What is to become the file is noted beside it first: a run that was killed leaves no password unknown.

    Raises:
        UsageError: the file has no line for this address.
        PasswordRefused: neither file fits.
    """
    noted = passfile.with_name(passfile.name + ".next")
    address = conninfo_to_dict(dsn)
    if not noted.exists():
        lines = passfile.read_text().splitlines()
        at = _line_of(lines, address)
        lines[at] = lines[at].rpartition(":")[0] + ":" + make_password()
        _write_like(noted, "\n".join(lines) + "\n", passfile)
        faults.fault_point("ops.passwords.noted")
    lines = noted.read_text().splitlines()
    password = lines[_line_of(lines, address)].rpartition(":")[2]
    if not _connects(dsn, noted):
        _alter(dsn, passfile, password)
    faults.fault_point("ops.passwords.altered")
    noted.replace(passfile)
    faults.fault_point("ops.passwords.replaced")


def _alter(dsn: str, passfile: Path, password: str) -> None:
    try:
        with psycopg.connect(
            dsn, passfile=str(passfile), autocommit=True, connect_timeout=CONNECT_TIMEOUT_S
        ) as conn:
            role = conn.info.user
            # Hashed here: PostgreSQL might log a password in the clear.
            hashed = conn.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
            conn.execute(
                sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(hashed))
            )
    except psycopg.OperationalError as error:
        raise PasswordRefused(f"cannot change the password: {str(error).strip()}") from error


def _connects(dsn: str, passfile: Path) -> bool:
    try:
        psycopg.connect(dsn, passfile=str(passfile), connect_timeout=CONNECT_TIMEOUT_S).close()
    except psycopg.OperationalError:
        return False
    return True


def _line_of(lines: Sequence[str], address: Mapping[str, object]) -> int:
    wanted = [str(address.get(name) or default) for name, default in _FIELDS]
    for at, line in enumerate(lines):
        parts = line.split(":")
        if len(parts) == 5 and all(p in ("*", w) for p, w in zip(parts, wanted, strict=False)):
            return at
    raise UsageError(f"the password file has no line for {wanted[0]}:{wanted[1]}")


_FIELDS = (("host", "localhost"), ("port", "5432"), ("dbname", ""), ("user", ""))


def _write_like(path: Path, content: str, model: Path) -> None:
    found = model.stat()
    write_file(path, content.encode())
    if os.geteuid() == 0:
        os.chown(path, found.st_uid, found.st_gid)
