"""Each fault point has somebody who cuts it. No server is started."""

import importlib
import pkgutil
from pathlib import Path

from tests.kill.points import ELSEWHERE, client_points, server_points
from tests.reshard.points import declared_points as move_points
from tests.restore.course import POINTS as DRILL_POINTS
from wire import faults

ROOT = Path(__file__).parents[2]
PACKAGES = ("wire", "runtime", "sharding", "metaserver", "blockserver", "notifserver", "client", "ops")


def declared_points() -> list[str]:
    """The points of all modules, whether a program imports them or not."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if not module.name.endswith(".__main__"):
                importlib.import_module(module.name)
    return faults.declared()


def test_every_point_is_cut_by_somebody():
    declared = declared_points()

    # Those of moves are all cut: their matrix is made from the registry, and fails if one is never met.
    listed = {*client_points(), *server_points(), *DRILL_POINTS, *move_points()}
    assert [p for p in declared if p not in listed and not p.startswith(tuple(ELSEWHERE))] == []
    assert listed - set(declared) == set()


def test_those_who_cut_points_are_there_and_have_points_to_cut():
    declared = declared_points()

    for kind, test in ELSEWHERE.items():
        assert any(point.startswith(kind) for point in declared), kind
        assert (ROOT / test).is_file(), test
