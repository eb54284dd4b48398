"""`shardctl`, the operators' command.

Exit status: 0 done · 1 failed · 2 wrong usage · 3 not found · 4 conflict with what is there · 5 somebody else
is at work · 6 a part of the cluster does not answer. Errors go to stderr as `shardctl: CODE: message`.
"""

import sys

import psycopg
import typer

from ops.commands import (
    alone,
    backup,
    blocks,
    cluster,
    dev,
    device,
    identity,
    keys,
    map,
    move,
    namespace,
    restore,
    shard,
    user,
)
from ops.commands.doctor import doctor
from ops.commands.migrate import migrate
from ops.commands.plan import plan
from ops.commands.rebalance import rebalance
from ops.commands.top import top
from ops.errors import (
    EXIT_BUSY,
    EXIT_CONFLICT,
    EXIT_FAILURE,
    EXIT_NOT_FOUND,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
    OpsError,
)
from sharding.reshard.errors import MoveError
from wire import faults
from wire.errors import NotFound, ShardboxError

app = typer.Typer(
    name="shardctl",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help=(
        "Operate a Shardbox cluster.\n\n"
        "Exit status: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 conflict with what is there, "
        "5 somebody else is at work, 6 a part of the cluster does not answer."
    ),
)
app.add_typer(dev.app, name="dev")
app.add_typer(cluster.app, name="cluster")
app.add_typer(user.app, name="user")
user.app.add_typer(identity.app, name="identity")
app.add_typer(device.app, name="device")
app.add_typer(shard.app, name="shard")
app.add_typer(map.app, name="map")
app.add_typer(namespace.app, name="namespace")
for command in (alone.move, alone.pin, alone.unpin):
    namespace.app.command()(command)
app.add_typer(move.app, name="move")
app.add_typer(blocks.app, name="blocks")
app.add_typer(backup.app, name="backup")
app.add_typer(restore.app, name="restore")
app.add_typer(keys.app, name="keys")
app.command()(migrate)
app.command()(doctor)
app.command()(rebalance)
app.command()(plan)
app.command()(top)

_MOVE_STATUS = {
    "not_found": EXIT_NOT_FOUND,
    "conflict": EXIT_CONFLICT,
    "move_state": EXIT_CONFLICT,
    "plan_refused": EXIT_CONFLICT,
    "pin_unmet": EXIT_CONFLICT,
    "busy": EXIT_BUSY,
}
_HTTP_CONFLICT = 409
_HTTP_UNAVAILABLE = 503


def exit_status_of(error: ShardboxError) -> int:
    """The exit status for an error of the services."""
    if isinstance(error, NotFound):
        return EXIT_NOT_FOUND
    if error.status == _HTTP_CONFLICT:
        return EXIT_CONFLICT
    return EXIT_UNAVAILABLE if error.status == _HTTP_UNAVAILABLE else EXIT_FAILURE


def main() -> None:
    """Run the command line."""
    faults.arm_from_environment()
    try:
        app()
    except OpsError as error:
        _fail(error.code, str(error), error.exit_status)
    except ShardboxError as error:
        _fail(error.code, str(error), exit_status_of(error))
    except MoveError as error:
        _fail(error.code, str(error), _MOVE_STATUS.get(error.code, EXIT_FAILURE))
    except psycopg.OperationalError as error:
        # A server that goes away while a command is at work, wherever that is.
        _fail("database_unavailable", str(error).strip(), EXIT_UNAVAILABLE)
    except psycopg.ProgrammingError as error:
        if error.sqlstate is not None:
            raise
        # Not from a server: an address that libpq does not take for one.
        _fail("usage", str(error).strip(), EXIT_USAGE)
    except OSError as error:
        if error.filename is None:
            raise
        _fail("file_error", f"{error.filename}: {error.strerror}", EXIT_FAILURE)


def _fail(code: str, message: str, status: int) -> None:
    print(f"shardctl: {code}: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
