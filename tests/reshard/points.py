"""The fault points of moves, by the registry."""

import importlib
import pkgutil

import ops.cli
import sharding.reshard
from tests.reshard.matrix import PREFIX
from wire import faults

PROGRAM = ops.cli
"""What passes them; importing it declares those that it has."""


def declared_points() -> list[str]:
    """All of them, also of modules that no command imports."""
    for module in pkgutil.iter_modules(sharding.reshard.__path__, f"{sharding.reshard.__name__}."):
        importlib.import_module(module.name)
    return [name for name in faults.declared() if name.startswith(PREFIX)]
