"""The short form: each victim once, each course but one, each ending; `make test-moves` is the whole."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sharding.reshard.model import MoveState
from tests.reshard.cell import play_cell
from tests.reshard.matrix import Cell, Course, Ending, Kind, Passing, Victim
from tests.reshard.points import declared_points
from tests.reshard.suite import Stage
from tests.support.databases import PgServers

CELLS = (
    # A slot is nobody's, and its writers wait for what the operator does.
    Cell(
        Passing(Course.SWITCH, MoveState.SWITCHING, "reshard.cutover.fenced", 1),
        Victim.RUNNER,
        Ending.ROLLBACK,
        Kind.SLOTS,
    ),
    # Some tables are copied, and the slot's snapshot is gone.
    Cell(
        Passing(Course.START, MoveState.COPYING, "reshard.copy.table_done", 2),
        Victim.SOURCE,
        Ending.RESUME,
        Kind.NAMESPACE,
    ),
    # The heir dies when it has all, before it owns.
    Cell(
        Passing(Course.SWITCH, MoveState.SWITCHING, "reshard.cutover.drained", 1),
        Victim.TARGET,
        Ending.RESUME,
        Kind.SLOTS,
    ),
    # The owner is another one, and the map does not say so.
    Cell(
        Passing(Course.ROLLBACK, MoveState.ROLLING_BACK, "reshard.cutover.activated", 1),
        Victim.DIRECTORY,
        Ending.CANCEL,
        Kind.SLOTS,
    ),
    # No way back from here.
    Cell(
        Passing(Course.COMPLETE, MoveState.RETIRING, "reshard.retiring.before", 1),
        Victim.METASERVER,
        Ending.RESUME,
        Kind.SLOTS,
    ),
)


@pytest.fixture(scope="module")
async def stage(pg_servers: PgServers, own_passfile: None) -> AsyncIterator[Stage]:
    async with Stage() as stage:
        yield stage


@pytest.mark.cluster
@pytest.mark.timeout(300)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
async def test_nothing_is_lost_doubled_or_left_whoever_dies(stage: Stage, tmp_path: Path, cell: Cell):
    outcome = await play_cell(await stage.world(), tmp_path, cell)

    if complaints := outcome.complaints():
        await stage.strike()
        pytest.fail("\n".join(complaints), pytrace=False)
    assert outcome.acked > 0


def test_the_short_form_kills_everybody_at_points_that_there_are():
    assert {cell.victim for cell in CELLS} == set(Victim)
    assert {cell.ending for cell in CELLS} == set(Ending)
    assert {cell.passing.point for cell in CELLS} <= set(declared_points())
