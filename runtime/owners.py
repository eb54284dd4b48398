"""Whose rate and memory a request takes."""

from wire.internal import Caller, DeviceCaller

MAX_REMEMBERED = 100_000
"""Identities of some 200 bytes; beyond it all are forgotten, and known again by their next request."""


class Owners:
    """An account's, whoever asks for it.

    Whose account an outside identity stands for takes a look-up, which must not be had without a rate. So an
    identity has a rate of its own until a request of its has been served.
    """

    def __init__(self) -> None:
        self._by_identity: dict[str, str] = {}

    def find(self, caller: Caller) -> str:
        """Whose it is."""
        name = _name(caller)
        return self._by_identity.get(name, name)

    def learn(self, caller: Caller, owner: str) -> None:
        """The caller has been looked up."""
        if isinstance(caller, DeviceCaller):
            return
        if len(self._by_identity) >= MAX_REMEMBERED:
            self._by_identity.clear()
        self._by_identity[_name(caller)] = owner

    def forget(self, caller: Caller) -> None:
        """The caller has been found to be nobody's."""
        self._by_identity.pop(_name(caller), None)


def _name(caller: Caller) -> str:
    if isinstance(caller, DeviceCaller):
        return caller.account_id
    return f"{caller.issuer}\0{caller.subject}"
