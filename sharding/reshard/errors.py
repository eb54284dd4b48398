"""What stops a move: a stable code, and words that name the remedy."""

from typing import ClassVar


class MoveError(Exception):
    """A move cannot go on; what is done stays, and it can be resumed."""

    code: ClassVar[str] = "move_failed"
