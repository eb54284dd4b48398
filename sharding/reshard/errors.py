"""What stops a move: a stable code, and words that name the remedy."""

from typing import ClassVar


class MoveError(Exception):
    """A move cannot go on; what is done stays, and it can be resumed."""

    code: ClassVar[str] = "move_failed"


class MoveNotFound(MoveError):
    """There is no move of this number."""

    code = "not_found"


class MoveBusy(MoveError):
    """Another process is at work on the move, or on what it needs."""

    code = "busy"


class MoveConflict(MoveError):
    """What is asked for does not go with the map, or with another move."""

    code = "conflict"


class MoveRefused(MoveError):
    """A server is not in the state that a move needs."""

    code = "move_refused"


class VerifyFailed(MoveError):
    """The shards differ in what they hold of a unit."""

    code = "verify_failed"


class FenceHeld(MoveError):
    """Writers, or a transaction that nobody ends, hold a cutover off."""

    code = "fence_held"


class Interrupted(MoveError):
    """The operator stopped the command; the move can be resumed."""

    code = "interrupted"


class Quarantined(MoveError):
    """The source's rows are kept for a while yet."""

    code = "quarantined"

    def __init__(self, left_s: float):
        super().__init__(f"the old rows are kept for {left_s:.0f} s more; resume the move then")
        self.left_s = left_s
