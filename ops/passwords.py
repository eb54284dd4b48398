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
from ops.files import locked, write_file
from ops.postgres import make_password
from ops.session import CONNECT_TIMEOUT_S
from wire import faults

faults.declare("ops.passwords.noted", "ops.passwords.altered", "ops.passwords.replaced")


class PasswordRefused(OpsError):
    """The server takes neither the password that is in force nor the one that was to be."""

    code = "password_refused"


def rotate_password(name: str, dsn: str, passfile: Path) -> None:
    """Give the role of an address a new password, and the password file with it.

    What is to become the password is noted beside the file first, under the server's name: a run that was
    killed leaves no password unknown, and the next one for that server goes on with it.

    Raises:
        UsageError: the file has no line for this address.
        PasswordRefused: the server takes neither the password in the file nor the noted one.
    """
    address = conninfo_to_dict(dsn)
    note = passfile.with_name(f"{passfile.name}.next.{name}")
    with locked(passfile.with_name(f"{passfile.name}.lock")):
        if not note.exists():
            password = make_password()
            _replaced(passfile, address, password)  # refuses before anything is noted
            _write_like(note, password, passfile)
            faults.fault_point("ops.passwords.noted")
        password = note.read_text()
        if not _connects(dsn, password):
            _alter(dsn, passfile, password)
        faults.fault_point("ops.passwords.altered")
        _write_like(passfile, _replaced(passfile, address, password), passfile)
        faults.fault_point("ops.passwords.replaced")
        note.unlink()


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


def _connects(dsn: str, password: str) -> bool:
    try:
        with psycopg.connect(dsn, password=password, connect_timeout=CONNECT_TIMEOUT_S) as conn:
            # A server that asks for none (`trust`, `peer`) says nothing about it.
            return conn.pgconn.used_password
    except psycopg.OperationalError:
        return False


def _replaced(passfile: Path, address: Mapping[str, object], password: str) -> str:
    """The file with a new password for a role of a server, whichever database it is for.

    A line with `*` for the server or the role may be others' too: one for this address goes before it.
    """
    host, port, database, user = (str(address.get(name) or default) for name, default in _FIELDS)
    lines = passfile.read_text().splitlines()
    at = _line_of(lines, (host, port, database, user))
    for number, line in enumerate(lines):
        parts = line.split(":")
        if len(parts) == 5 and (parts[0], parts[1], parts[3]) == (host, port, user):
            lines[number] = ":".join([*parts[:4], password])
    found = lines[at].split(":")
    if (found[0], found[1], found[3]) != (host, port, user):
        lines.insert(at, ":".join([host, port, "*", user, password]))
    return "\n".join(lines) + "\n"


def _line_of(lines: Sequence[str], wanted: Sequence[str]) -> int:
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
