"""What each address takes and answers, said beside its method: what the OpenAPI document is built from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from wire.errors import ShardboxError

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Parameter:
    """A part of a request, or a header of an answer, that is not its body."""

    name: str
    where: Literal["path", "query", "header"]
    type: Any
    """As msgspec reads it; its bounds are in `Meta`."""
    description: str
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class Raw:
    """A body that is not JSON."""

    content_type: str
    description: str
    max_bytes: int | None = None
    headers: tuple[Parameter, ...] = ()
    """What its answer's head has beside what every answer has."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What all addresses of a kind have in common: `kind` in a handler, for it and those derived from it."""

    errors: tuple[type[ShardboxError], ...] = ()
    parameters: tuple[Parameter, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of an address. The docstring of the method is its summary."""

    takes: Any | None
    """The type of its JSON body, or a Raw one; None: it has none."""
    answers: Any | None
    """The type of its JSON answer with status 200, or a Raw one; None: an empty answer."""
    errors: tuple[type[ShardboxError], ...]
    """What it can be refused with, beyond what every address of its kind can."""
    parameters: tuple[Parameter, ...]
    """Path parameters in the order of the route's groups; query and headers beyond those of its kind."""
    also: Mapping[int, Any]
    """Answers with another status of success."""


def endpoint(
    takes: Any | None,
    answers: Any | None,
    *errors: type[ShardboxError],
    parameters: tuple[Parameter, ...] = (),
    also: Mapping[int, Any] = MappingProxyType({}),
) -> Callable[[_F], _F]:
    """Say what a handler's method takes, answers, and is refused with."""

    def mark(method: _F) -> _F:
        method.endpoint = Endpoint(takes, answers, errors, parameters, also)  # type: ignore[attr-defined]
        return method

    return mark


def kinds_of(handler: type) -> list[Kind]:
    """What a handler's class and the classes above it say in `kind`, the most general first."""
    found = [cls.__dict__["kind"] for cls in reversed(handler.__mro__) if "kind" in cls.__dict__]
    assert all(isinstance(kind, Kind) for kind in found), f"{handler.__name__} has a kind that is none"
    return found
