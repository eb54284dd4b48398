"""`shardctl rebalance`: a shard is emptied, whatever comes between."""

import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ops.errors import EXIT_FAILURE, EXIT_OK
from ops.session import connect_directory
from sharding.directory import load_map_sync
from sharding.reshard.model import Goal, Move, MoveState
from sharding.reshard.records import list_moves, set_paused
from tests.support.commands import OPERATOR, Program, run_command
from tests.support.databases import FreshCluster
from tests.support.services import Services
from tests.support.waiting import wait_for
from wire.api import CreateFolder, ListFolder

TIMEOUT_S = 120
USERS = 6


@dataclass
class Emptied:
    """Two shards with users on each, one of which drains."""

    services: Services
    cluster: FreshCluster
    going: str
    folder: Path
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.env = {"SHARDBOX_DIRECTORY_DSN": self.cluster.directory_dsn}

    def ctl(self, *args: str, fault: str = "") -> "subprocess.CompletedProcess[str]":
        return run_command(OPERATOR, *args, env=self.env | {"SHARDBOX_FAULT": fault}, timeout_s=TIMEOUT_S)

    def rebalance(self, *args: str, fault: str = "") -> "subprocess.CompletedProcess[str]":
        return self.ctl("rebalance", "--quarantine", "0", *args, fault=fault)

    def finish(self) -> Any:
        """What a rebalance reports that has to empty the shard."""
        done = self.rebalance("--auto", "--output", "json")
        assert done.returncode == EXIT_OK, done.stderr
        assert self.holders() == {self.staying}
        assert self.moves() == []
        return msgspec.json.decode(done.stdout)

    @property
    def staying(self) -> str:
        return next(name for name in self.cluster.shard_dsns if name != self.going)

    def holders(self) -> set[str]:
        """The shards that have slots, by the map."""
        with connect_directory(self.cluster.directory_dsn) as conn:
            return {placed.shard for placed in load_map_sync(conn).slots}

    def moves(self) -> list[Move]:
        """Those that have not ended."""
        with connect_directory(self.cluster.directory_dsn) as conn:
            return list_moves(conn, is_live_only=True)

    def stop(
        self, *args: str, when: "Callable[[Path], bool]", fault: str = "", let_go: Path | None = None
    ) -> str:
        """Interrupt a rebalance as Ctrl-C does, once its stderr shows what it should; what that has then."""
        err = self.folder / "err"
        env = self.env | {"SHARDBOX_FAULT": fault}
        with Program(OPERATOR, "rebalance", *args, out=self.folder / "out", err=err, env=env) as program:
            wait_for(lambda: when(err), "the moment to interrupt it", timeout_s=TIMEOUT_S)
            program.send(signal.SIGINT)
            if let_go is not None:
                let_go.unlink()
            assert program.wait(TIMEOUT_S) == EXIT_FAILURE
        return err.read_text()


@pytest.fixture
async def emptied(services: Services, fresh_cluster: FreshCluster, tmp_path: Path) -> AsyncIterator[Emptied]:
    for number in range(USERS):
        user = await services.user(f"{number}@example.org")
        await user.ok(CreateFolder(path="/before"))
    going = services.router.placement(user.root_ns).shard
    scene = Emptied(services, fresh_cluster, going, tmp_path)
    drained = scene.ctl("shard", "drain", going)
    assert drained.returncode == EXIT_OK, drained.stderr
    yield scene
    for move in scene.moves():  # of a test that failed: databases with streams cannot be dropped
        scene.ctl("move", "cancel", str(move.move_id))


@pytest.mark.long
@pytest.mark.parametrize("point", ["copying.after", "switching.after", "retiring.before"])
def test_one_that_was_killed_goes_on_with_the_next(emptied: Emptied, point: str):
    killed = emptied.rebalance("--auto", fault=f"reshard.{point}")
    assert killed.returncode == -signal.SIGKILL
    (left,) = emptied.moves()
    assert left.state.value == point.partition(".")[0]

    report = emptied.finish()

    assert left.move_id in {move["move_id"] for move in report["moves"]}
    assert {move["state"] for move in report["moves"]} == {MoveState.COMPLETED}
    assert report["left"] == 0


@pytest.mark.long
def test_ctrl_c_leaves_it_where_the_next_goes_on(emptied: Emptied):
    meeting = emptied.folder / "meeting"

    said = emptied.stop(
        *("--auto", "--quarantine", "0"),
        when=lambda _: meeting.exists(),
        fault=f"reshard.copying.before!{meeting}",
        let_go=meeting,
    )

    assert "shardctl: interrupted: " in said
    assert "run it again" in said
    assert "Traceback" not in said
    (left,) = emptied.moves()
    assert left.state is MoveState.COPYING
    emptied.finish()


@pytest.mark.long
def test_ctrl_c_while_old_rows_are_kept(emptied: Emptied):
    said = emptied.stop("--auto", when=lambda err: "all is where it is to be" in err.read_text())

    assert "shardctl: interrupted: " in said
    assert emptied.holders() == {emptied.staying}
    assert {move.state for move in emptied.moves()} == {MoveState.DELETING}


@pytest.mark.long
def test_what_is_left_ready_is_switched_when_told(emptied: Emptied):
    done = emptied.rebalance()

    assert done.returncode == EXIT_OK, done.stderr
    assert "nothing has switched" in done.stdout
    assert {(move.state, move.goal) for move in emptied.moves()} == {(MoveState.READY, Goal.READY)}
    assert emptied.going in emptied.holders()
    again = emptied.rebalance()
    assert again.returncode == EXIT_OK, again.stderr
    assert "preparing" not in again.stderr
    report = emptied.finish()
    assert 0 < report["moved_share"] < 1
    assert all(move["cutovers"] for move in report["moves"])


async def test_users_have_all_that_they_had(emptied: Emptied):
    emptied.finish()

    user = await emptied.services.user("late@example.org")
    assert (await emptied.services.reads.list_folder(user.caller, ListFolder())).entries == []
    for number in range(USERS):
        account = await emptied.services.accounts.find_by_email(f"{number}@example.org")
        assert account is not None
        again = await emptied.services.link(account.account_id)
        found = await emptied.services.reads.list_folder(again.caller, ListFolder())
        assert [entry.name for entry in found.entries] == ["before"]


@pytest.mark.long
def test_one_that_is_paused_is_told_and_left(emptied: Emptied):
    assert emptied.rebalance().returncode == EXIT_OK
    paused = emptied.moves()[0]
    with connect_directory(emptied.cluster.directory_dsn) as conn:
        set_paused(conn, paused.move_id, is_paused=True)

    done = emptied.rebalance("--auto")

    assert f"move {paused.move_id} is left ready, paused" in done.stderr
    assert [move.move_id for move in emptied.moves()] == [paused.move_id]
    with connect_directory(emptied.cluster.directory_dsn) as conn:
        set_paused(conn, paused.move_id, is_paused=False)
    emptied.finish()


def test_a_dry_run_does_nothing(emptied: Emptied):
    done = emptied.rebalance("--auto", "--dry-run", "--output", "json")

    assert done.returncode == EXIT_OK, done.stderr
    planned = msgspec.json.decode(done.stdout)
    assert {(move["source"], move["target"]) for move in planned["moves"]} == {
        (emptied.going, emptied.staying)
    }
    assert emptied.moves() == []
