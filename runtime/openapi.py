"""What each address takes and answers, said beside its method."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from wire.errors import ShardboxError

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of an address. The docstring of the method is its summary."""

    takes: Any | None
    """The type of its JSON body; None: it has none."""
    answers: Any | None
    """The type of its JSON answer; None: not JSON, see the method."""
    errors: tuple[type[ShardboxError], ...]
    """What it can be refused with, beyond what every address of its kind can."""


def endpoint(takes: Any | None, answers: Any | None, *errors: type[ShardboxError]) -> Callable[[_F], _F]:
    """Say what a handler's method takes, answers, and is refused with."""

    def mark(method: _F) -> _F:
        method.endpoint = Endpoint(takes, answers, errors)  # type: ignore[attr-defined]
        return method

    return mark
