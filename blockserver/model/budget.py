"""How many bytes of blocks this process holds at once."""

from wire.errors import Overloaded

RETRY_AFTER_S = 1


class ByteBudget:
    """A bound on memory.

    Whoever does not fit in is sent away at once: to wait would hold a connection and help nobody.
    """

    def __init__(self, limit_bytes: int):
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def take(self, byte_count: int) -> "Share":
        """A share of the budget, to be given back by its `release`.

        Raises:
            Overloaded: it does not fit in now.
        """
        if self.used_bytes + byte_count > self.limit_bytes:
            raise Overloaded("too many blocks are under way here", retry_after_s=RETRY_AFTER_S)
        self.used_bytes += byte_count
        return Share(self, byte_count)


class Share:
    """A part of a budget; given back once, however often `release` is called."""

    def __init__(self, budget: ByteBudget, byte_count: int):
        self._budget = budget
        self._byte_count = byte_count

    def release(self) -> None:
        """Give it back."""
        self._budget.used_bytes -= self._byte_count
        self._byte_count = 0

    def __enter__(self) -> "Share":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
