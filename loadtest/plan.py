"""What the runner tells Locust: where the servers are, and how each device links."""

import msgspec


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`codes` are used up from the end; two that follow one another are of one account."""

    metaservers: list[str]
    blockserver: str
    notifserver: str
    codes: list[str]
